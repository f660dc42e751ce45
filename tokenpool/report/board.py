"""The board: all rows on one page, a forest plot per claim, a panel per figure of the paper, a run card on click.

    evidence = read([Path("data/runs"), Path("results")])
    write_page(Path("results/board.html"), evidence)

`docs/reproduction.md` is written from the same evidence, so that neither can drift from the rows.
"""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from tokenpool.data.files import replace_file
from tokenpool.measure.compare import Entry, comparisons
from tokenpool.measure.rows import COLUMNS, Results, frame
from tokenpool.report import claims, compare_page
from tokenpool.report.claims import Table, Verdict
from tokenpool.report.figures import INIT_LOOKS, LOOKS, PEER_LOOKS, Line, Look, curves, percent
from tokenpool.report.pages import ClaimView, Listing, claim_views, render
from tokenpool.report.stats import summary
from tokenpool.train.recipe import PRESETS, Job, load_preset

NAMES = {"imagenet1k": "ImageNet-1k", "imagenet50": "photographs", "imagenet50_cpu": "photographs, small model",
         "pebbles": "synthetic images, pebbles"}


# ---- evidence ----

@dataclass(frozen=True)
class Evidence:
    """Rows of trained systems, the card of every run by (preset, run), and comparisons without finetuning."""

    rows: pd.DataFrame
    cards: Mapping[tuple[str, str], dict[str, Any]]
    comparisons: tuple[list[Entry], ...] = ()          # `reproduce --peers`: one list per model, its images and a device

    @property
    def presets(self) -> list[str]:
        """Those with rows, real images first."""
        have = set(self.rows["preset"])
        return [p for p in NAMES if p in have]

    def of(self, preset: str) -> pd.DataFrame:
        return self.rows[self.rows["preset"] == preset]

    @functools.cached_property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """Preset -> its verdicts, in the same order for all."""
        return {preset: claims.verdicts(self.rows, preset) for preset in self.presets}


def read(sources: Iterable[Path]) -> Evidence:
    """Rows and cards from CSV files and from folders of runs. A row found twice counts once, the newer one."""
    rows: dict[tuple[str, str, str, str], Any] = {}
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    entries: dict[str, Entry] = {}
    sources = list(sources)
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"No rows at {source}. Give a CSV file or a folder of runs.")
        files = [source] if source.is_file() else sorted({*source.glob("**/rows.csv"), *source.glob("**/peers.csv"),
                                                            *source.glob("*.csv")})
        for file in files:
            if file.name == "metrics.csv":
                continue
            if file.name.endswith("peers.csv"):
                entries |= {e.key: e for e in Results(file, Entry).rows
                            if e.key not in entries or entries[e.key].date <= e.date}
                continue
            for row in Results(file).rows:
                key = row.preset, row.run, row.stage, row.key
                if row.preset and (key not in rows or rows[key].date <= row.date):
                    rows[key] = row
        for file in () if source.is_file() else (*source.glob("**/card.json"), *source.glob("*.cards.json")):
            found = json.loads(file.read_text())
            for card in found if isinstance(found, list) else [found]:
                if "identity" in card:
                    key = card["identity"]["job"]["preset"], card["run"]
                    cards[key] = cards.get(key, card) if isinstance(found, list) else card
    if not rows:
        raise ValueError(f"No rows of trained systems in {', '.join(map(str, sources)) or 'nothing'}. "
                         "Run `tokenpool protocol` first.")
    return Evidence(frame(list(rows.values())), cards, comparisons(entries.values()))


def collect(evidence: Evidence, folder: Path) -> list[Path]:
    """Write the rows and cards of each preset to `folder`: what ships as evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for preset in evidence.presets:
        path = folder / f"{preset}-runs.csv"
        mine = evidence.of(preset).sort_values(["run", "stage"])
        with replace_file(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *mine[list(COLUMNS)].itertuples(index=False)])
        cards = [evidence.cards[key] for key in sorted(evidence.cards) if key[0] == preset]
        with replace_file(folder / f"{preset}-runs.cards.json") as temporary:
            temporary.write_text("[\n" + ",\n".join(json.dumps(c) for c in cards) + "\n]\n")
        written.append(path)
    for model in dict.fromkeys(entries[0].model for entries in evidence.comparisons):       # of all devices
        path = folder / f"{model.replace('/', '-')}-peers.csv"
        with replace_file(path) as temporary:
            kept = Results(temporary, Entry)
            for entry in (e for entries in evidence.comparisons for e in entries if e.model == model):
                kept.add(entry)
        written.append(path)
    return written


def left(evidence: Evidence) -> dict[str, list[Job]]:
    """Preset -> runs of the plan of all figures that have no rows yet."""
    from tokenpool.train.plan import plan
    done = set(zip(evidence.rows["preset"], evidence.rows["run"], strict=True)) | set(evidence.cards)
    return {p: [j for j in plan(["all"], load_preset(p)) if (p, j.name) not in done] for p in PRESETS}


# ---- panels ----

@dataclass(frozen=True)
class Curve:
    """Rows with these values of method, init, counts, model, qk; model None: the preset's first."""

    label: str
    method: str
    look: Look
    init: str = ""
    counts: bool = False
    model: str | None = None
    qk: str = ""
    searched: bool = False


def select(rows: pd.DataFrame, curve: Curve, first: str) -> pd.DataFrame:
    """The rows of a curve, of any stage."""
    model = first if curve.model is None else curve.model
    of_model = rows["model"].str.endswith(model[1:]) if model.startswith("*") else rows["model"] == model
    return rows[(rows["method"] == curve.method) & (rows["init"] == curve.init) & (rows["counts"] == curve.counts)
                & of_model & (rows["qk"] == curve.qk) & ((rows["schedule_name"] != "") == curve.searched)]


@dataclass(frozen=True)
class Panel:
    figure: str                     # of the paper
    title: str                      # the question it answers
    says: str                       # what is known of the paper's figure, with its mark
    curves: tuple[Curve, ...] | Callable[[pd.DataFrame], list[Curve]]
    stages: tuple[str, ...] = ("untouched", "finetuned")
    speed: bool = False             # images per second across, not computations
    note: str = ""

    @property
    def heading(self) -> str:
        first = {"search": "Step 2", "peers": "Beyond the paper"}.get(self.figure, f"Fig. {self.figure}")
        return f"{first}: {self.title}"

    def of(self, rows: pd.DataFrame) -> list[Curve]:
        return self.curves(rows) if callable(self.curves) else list(self.curves)


_OURS = Curve("WK-Medoids, top-K init (the paper's)", "wk_medoids", LOOKS["wk_medoids"], "top_k")
_BEST = Curve("WK-Medoids, farthest-first, counts (not in the paper)", "wk_medoids", ("#0072B2", "circle", "solid"),
              "farthest_first", True)
_TOP_K = Curve("PoWER-BERT (top-K)", "top_k", LOOKS["top_k"])
_RANDOM = Curve("random", "random", LOOKS["random"])
_IMPORTANCE = Curve("importance", "importance", LOOKS["importance"])
_PLAIN = Curve("plain, trained as long", "plain", ("#000000", "star", "solid"))
_CONVOLUTION = Curve("convolution", "convolution", ("#555555", "triangle-down", "dashdot"))
_WIDTHS = (("#007A5E", "triangle-up", "solid"), ("#0072B2", "circle", "solid"), ("#D55E00", "square", "solid"),
           ("#AA4499", "diamond", "solid"))
_PEERS = (*(Curve(n, n, (*PEER_LOOKS[n], "solid"), counts=n != "EViT") for n in ("tokenpool", "ToMe", "ATC", "EViT")),
          Curve("patch merger", "patch_merger", ("#555555", "x", "dash")))


def _per_model(method: str, label: str, rows: pd.DataFrame, init: str = "") -> list[Curve]:
    names = sorted(rows["model"].unique(), key=lambda m: rows[rows["model"] == m]["gmacs_plain"].iloc[0])
    return [Curve(f"{label} on {n.split('/')[1]}", method, _WIDTHS[i % 4], init, model=n) for i, n in enumerate(names)]


def _widths(rows: pd.DataFrame) -> list[Curve]:
    return [replace(c, look=(c.look[0], "star", "dot")) for c in _per_model("plain", "plain", rows)]


def _qk(rows: pd.DataFrame) -> list[Curve]:
    kinds = sorted(rows["qk"].unique())
    return [Curve(f"{name}, {kind or 'usual attention'}", method, (_WIDTHS[i % 4][0], symbol, dash), init, qk=kind)
            for i, kind in enumerate(kinds if len(kinds) > 1 else ())           # nothing to compare with one kind only
            for name, method, init, symbol, dash in (("WK-Medoids", "wk_medoids", "top_k", "circle", "solid"),
                                                     ("top-K", "top_k", "", "x", "dot"), ("plain", "plain", "", "star", "dot"))]


PANELS = (
    Panel("1b", "How much accuracy for how many computations?", "Token Pooling saves 42 % of the computations at the same "
          "top-1 (P: abstract). That is DeiT-Ti: 74.0 % at 0.73 GMACs against 73.9 % at 1.25. DeiT-S loses 0.6 points at "
          "43 % saved, 1.1 at 53 % and 3.1 at 66 % (P, read off).", (_OURS, _BEST, _PLAIN)),
    Panel("3a", "Scores or reconstruction?", "WK-Medoids is above PoWER-BERT, importance and random at every budget; random "
          "is about as good as a narrower net (S). At the same number of tokens it is 2.4 points above PoWER-BERT in the "
          "deepest cut and level with it where little is cut (P, read off).",
          lambda rows: [_OURS, _TOP_K, _IMPORTANCE, _RANDOM, _BEST, *_widths(rows)]),
    Panel("3b", "And against a learned predictor?", "Highest accuracy at all budgets against DynamicViT, HVT and ConViT "
          "(S; HVT and ConViT are not built here).",
          (_OURS, Curve("DynamicViT", "dynamic_vit", ("#AA4499", "diamond", "dash")), _PLAIN)),
    Panel("4", "A wider net pooled, or a narrower one whole?", "Pooling improves every width, and wider nets pooled form "
          "the outer envelope (P: caption): 3.3 points more at DeiT-Ti's cost (P: Fig. 1b).",
          lambda rows: [] if rows["model"].nunique() < 2 else
          _per_model("wk_medoids", "WK-Medoids", rows, "top_k") + _widths(rows)),
    Panel("5a", "How to use the significance score?", "PoWER-BERT's top-K is the best use of the score (S).",
          (_TOP_K, _IMPORTANCE, Curve("importance, with replacement", "importance_with_replacement",
                                      LOOKS["importance_with_replacement"]), _RANDOM)),
    Panel("5b", "Which clustering?", "Weighted above unweighted, K-Medoids better per computation than K-Means (S). "
          "Weighting adds 1.0 points in the deepest cut and nothing where little is cut (P, read off Fig. 3b).",
          tuple(Curve(n, n, LOOKS[n], "top_k") for n in ("k_means", "wk_means", "k_medoids", "wk_medoids"))),
    Panel("6", "Does the initialisation matter?", "Robust: top-K and random initialisation end alike (P: caption; numbers "
          "not known).", tuple(Curve(f"{s} init", "wk_medoids", INIT_LOOKS[s], s)
                               for s in ("top_k", "random", "farthest_first"))),
    Panel("7", "The public DeiT weights", "Shows the public models of Touvron et al. pooled (P: caption). They and ImageNet "
          "are not part of this kit. With both available, these commands measure them.", ()),
    Panel("8", "Convolution on the grid?", "Good only at low computations (S).",
          (_CONVOLUTION, Curve("average on the grid", "grid_average", LOOKS["grid_average"]), _OURS),
          note="A grid can only be quartered, so the convolution's budgets are the nearest ones it can meet."),
    Panel("9", "And without any finetuning?", "The model retains its accuracy, because the reconstruction error is small "
          "(P: the authors' words; numbers not known).",
          (_OURS, _BEST, _TOP_K, _IMPORTANCE, _RANDOM, Curve("k_means", "k_means", LOOKS["k_means"], "top_k")),
          ("untouched",)),
    Panel("10", "Normalised keys and queries?", "Curves only; that they repeat the comparison is our reading (P: caption, "
          "I).", _qk),
    Panel("11", "PoWER-BERT on the middle widths?", "Curves only (P: caption).", tuple(
        Curve(f"{label}, {m}", method, (colour, symbol, dash), init, model=f"*/{m}")
        for m, dash in (("e252", "solid"), ("e318", "dash")) for label, method, init, colour, symbol in (
            ("WK-Medoids", "wk_medoids", "top_k", "#007A5E", "triangle-up"), ("top-K", "top_k", "", "#D55E00", "square")))),
    Panel("12", "Is it faster, too?", "The authors' PyTorch code was not optimised for speed (P: their words).",
          (_OURS, _TOP_K, _RANDOM, _CONVOLUTION, _PLAIN), ("finetuned",), speed=True,
          note="Images per second while measuring accuracy, on a busy machine: an impression, not a benchmark."),
    Panel("search", "Do learned schedules beat geometric ones?", "The paper learns K per layer with PoWER-BERT's soft "
          "masks (S); no comparison with other schedules is known.",
          (_OURS, Curve("WK-Medoids, learned K", "wk_medoids", ("#0072B2", "circle", "dash"), "top_k", searched=True),
           _TOP_K, Curve("top-K, learned K", "top_k", ("#AA4499", "diamond", "dash"), searched=True))),
    Panel("peers", "other published methods, finetuned", "Not in it. Each method has its authors' options; tokenpool is "
          "OFF_THE_SHELF; K is geometric for all.",
          lambda rows: [_PLAIN, _OURS, *_PEERS] if rows["method"].isin([c.method for c in _PEERS]).any() else []),
)
_STAGES = {"untouched": "without finetuning", "finetuned": "finetuned"}


def panel_figure(panel: Panel, rows: pd.DataFrame, preset: str) -> go.Figure | None:
    """Without finetuning and finetuned side by side, on one scale; None where nothing was measured."""
    table = Table(rows, preset)
    drawn: dict[str, list[Line]] = {}
    for stage in panel.stages:
        drawn[_STAGES[stage]] = []
        for curve in panel.of(table.all):
            # nothing is pooled in a plain model, so without finetuning it is the base model
            want = "base" if curve.method == "plain" and stage == "untouched" else stage
            part = select(table.all[table.all["stage"] == want], curve, table.first)
            if len(part):
                p = summary(part, ["schedule_name"], table.noise if stage == "finetuned" else None).sort_values("gmacs")
                drawn[_STAGES[stage]].append(Line(
                    curve.label, curve.look, p["speed"] if panel.speed else 1e3 * p["gmacs"], percent(p["top1"]),
                    percent(p["low"]), percent(p["high"]), [
                        f"top-1 {100 * r.top1:.1f} ± {100 * r.half:.1f} %<br>{1e3 * r.gmacs:.1f} MMACs ({r.share:.0%} of its "
                        f"plain model)<br>{r.seeds} run(s), {r.speed:.0f} images/s<br>click: run card" for r in p.itertuples()],
                    ["|".join(f"{preset}/{run}" for run in runs.split("|")) for runs in p["runs"]]))
    if not any(drawn.values()):
        return None
    across = "images per second" if panel.speed else "MMACs per image, clustering included"
    return curves(drawn, across, "top-1", percent="y").update_xaxes(rangemode="tozero")


# ---- the page ----

@dataclass(frozen=True)
class Section:
    panel: Panel
    views: list[ClaimView]
    charts: list[tuple[str, str, go.Figure]]           # preset, its name, curves


def write_page(path: Path, evidence: Evidence) -> list[Verdict]:
    """Write the board; returns the verdicts of the first preset (real images, where there are any)."""
    views = claim_views({NAMES[p]: said for p, said in evidence.verdicts.items()})
    sections = [Section(panel, [v for v in views if v.claim.figure.replace("abstract", "1b") == panel.figure],
                        [(p, NAMES[p], chart) for p in evidence.presets
                         if (chart := panel_figure(panel, evidence.rows, p)) is not None]) for panel in PANELS]
    rows = evidence.rows.sort_values(["preset", "stage", "model", "method", "init", "saving", "train_seed"])
    cards = {f"{preset}/{run}": {k: v for k, v in card.items() if k != "identity"} | {"recipe": card["identity"]["recipe"]}
             for (preset, run), card in evidence.cards.items()}
    render(path, "board", "Token pooling: the results board", views=views, sections=sections, rows=rows.itertuples(),
           about=[(NAMES[p], _about(evidence, p)) for p in evidence.presets],
           devices=", ".join(sorted(evidence.rows["device"].unique())), left=left(evidence), preset=load_preset,
           comparisons=[compare_page.context(e, f"peers-{i}", comparison_title(e))
                        for i, e in enumerate(evidence.comparisons)],
           cards=Markup(json.dumps(cards).replace("</", "<\\/")))
    return next(iter(evidence.verdicts.values()))


def _about(evidence: Evidence, preset: str) -> str:
    """How much was measured, and how much one run differs from the next."""
    mine, noise = evidence.of(preset), Table(evidence.rows, preset).noise
    trained = mine[mine["stage"] == "finetuned"]
    lengths = sorted(trained["epochs"].unique())
    repeats = (f"one finetuning differs from the next by {100 * noise:.2f} points (standard deviation, {noise.freedom} "
               "degrees of freedom)" if noise else "no setting was finetuned twice, so intervals are over images only")
    return (f"{len(trained)} finetunings of {' or '.join(f'{e:g}' for e in lengths)} epoch{'' if lengths == [1.0] else 's'}, "
            f"measured on {mine['images'].iloc[0]:,} images; {repeats}")


def comparison_title(entries: list[Entry]) -> str:
    model = entries[0].model
    return NAMES.get(model.split("/")[0].removesuffix("_vit"), model)


# ---- the same in Markdown ----

def verdict_table(said: Iterable[Verdict]) -> str:
    return Listing("", ("claim", "verdict", "evidence"), [
        (str(v.claim), f"**{v.status}**", v.evidence) for v in said]).markdown()


def markdown(evidence: Evidence) -> str:
    """The claims and all means over runs, for docs/reproduction.md."""
    out = []
    for preset, said in evidence.verdicts.items():
        mine = evidence.of(preset)
        first = mine.sort_values("date").iloc[-1]
        out.append(f"## {NAMES[preset].capitalize()}\n\nPreset `{preset}`: {_about(evidence, preset)}; {first.device}; torch "
                   f"{first.torch}, timm {first.timm}.\n\n{verdict_table(said)}\n\nTop-1 in %, mean over runs:\n")
        lines = []
        keys = ["model", "qk", "method", "init", "counts", "saving", "schedule_name"]
        for key, group in mine[mine["stage"] != "base"].groupby(keys):
            model, qk, method, init, counts, saving, schedule = key
            before, after = (group[group["stage"] == s]["top1"] for s in ("untouched", "finetuned"))
            lines.append((f"{model.split('/')[1]} {qk}".strip(), method, init or "-", "carried" if counts else "-",
                          schedule or f"{saving:.0%}", f"{1e3 * group['gmacs'].mean():.1f}",
                          *(f"{100 * part.mean():.1f}" if len(part) else "-" for part in (before, after)), str(len(after))))
        lines += [(f"{base.model.split('/')[1]} {base.qk}".strip(), "base model", "-", "-", "0%", f"{1e3 * base.gmacs:.1f}",
                   f"{100 * base.top1:.1f}", "-", "-") for base in mine[mine["stage"] == "base"].itertuples()]
        out.append(Listing("", ("model", "system", "init", "counts", "saving or schedule", "MMACs", "without finetuning",
                                "finetuned", "runs"), lines).markdown() + "\n")
    if evidence.comparisons:
        out.append("# Beyond the paper: all methods side by side, without finetuning\n\nEach has the options it was published "
                   "with, at equal multiply-adds and at equal time: `tokenpool reproduce --peers`. Top-1 in % with half its "
                   f"95 % interval. {compare_page.MARKS} DynamicViT and the patch merger need training: they are among the "
                   "finetuned systems.\n")
    out += [f"## {comparison_title(entries).capitalize()}\n\n{compare_page.markdown(entries)}" for entries in evidence.comparisons]
    return "\n".join(out)
