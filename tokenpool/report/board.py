"""The board: all rows on one page, a panel per figure of the paper, a verdict per claim, a run card on click.

    evidence = read([Path("data/runs"), Path("results")])
    write_page(Path("results/board.html"), evidence)

`docs/reproduction.md` is written from the same evidence, so that neither can drift from the rows.
"""

# ruff: noqa: E501  (sentences and scripts of the page)

from __future__ import annotations

import csv
import html
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from tokenpool.data.files import replace_file
from tokenpool.measure.compare import Entry, comparisons
from tokenpool.measure.rows import COLUMNS, Results, frame
from tokenpool.report import compare_page, figures
from tokenpool.report.accuracy_page import PAGE, plot, verdict_mark
from tokenpool.report.claims import Table, claims
from tokenpool.report.verdicts import Verdict
from tokenpool.train.recipe import PRESETS, Job, load_preset


@dataclass(frozen=True)
class Evidence:
    """Rows of trained and untouched systems, the card of every run by (preset, run), and comparisons of the peers."""

    rows: pd.DataFrame
    cards: Mapping[tuple[str, str], dict[str, Any]]
    comparisons: tuple[list[Entry], ...] = ()          # `reproduce --peers`: one list for a model, its images and a device

    @property
    def presets(self) -> list[str]:
        """Those with rows, real images first."""
        have = set(self.rows["preset"])
        return [p for p in ("imagenet1k", "imagenet50", "imagenet50_cpu", "pebbles") if p in have]


def read(sources: Iterable[Path]) -> Evidence:
    """Rows and cards from CSV files and from folders of runs. The same row met twice counts once, the newer one."""
    rows: dict[tuple[str, str, str, str], Any] = {}
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    entries: dict[str, Entry] = {}
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
        if source.is_dir():
            for file in source.glob("**/card.json"):
                card = json.loads(file.read_text())
                if "identity" in card:
                    cards[card["identity"]["job"]["preset"], card["run"]] = card
            for file in source.glob("*.cards.json"):
                for card in json.loads(file.read_text()):
                    cards.setdefault((card["identity"]["job"]["preset"], card["run"]), card)
    if not rows:
        raise ValueError(f"No rows of trained systems in {', '.join(map(str, sources)) or 'nothing'}. "
                         "Run `tokenpool protocol` first.")
    return Evidence(frame(list(rows.values())), cards, comparisons(entries.values()))


def collect(evidence: Evidence, folder: Path) -> list[Path]:
    """Write the rows and cards of each preset to `folder`: what ships as evidence."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for preset in evidence.presets:
        mine = evidence.rows[evidence.rows["preset"] == preset].sort_values(["run", "stage"])
        path = folder / f"{preset}-runs.csv"
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


# ---- panels ----

@dataclass(frozen=True)
class Curve:
    """Rows with these values of method, start, counts, model, qk; model None: the preset's first."""

    label: str
    method: str
    look: tuple[str, str, str]
    init: str = ""
    counts: bool = False
    model: str | None = None
    qk: str = ""
    searched: bool = False


@dataclass(frozen=True)
class Panel:
    figure: str                     # of the paper
    title: str                      # the question it answers
    says: str                       # what is known of the paper's figure, with its mark
    curves: Callable[[pd.DataFrame], list[Curve]]
    untouched: bool = True          # also draw the systems before finetuning
    finetuned: bool = True
    speed: bool = False             # images per second across, not computations
    note: str = ""


_L = figures.LOOKS
_OURS = Curve("WK-Medoids, top-K start (the paper's)", "wk_medoids", _L["wk_medoids"], "top_k")
_BEST = Curve("WK-Medoids, farthest-first, counts (not in the paper)", "wk_medoids", ("#0072B2", "circle", "solid"),
              "farthest_first", True)
_TOP_K = Curve("PoWER-BERT (top-K)", "top_k", _L["top_k"])
_RANDOM = Curve("random", "random", _L["random"])
_IMPORTANCE = Curve("importance", "importance", _L["importance"])
_PLAIN = Curve("plain, trained as long", "plain", ("#000000", "star", "solid"))
_CONVOLUTION = Curve("convolution", "convolution", ("#555555", "triangle-down", "dashdot"))
_WIDTHS = (("#007A5E", "triangle-up", "solid"), ("#0072B2", "circle", "solid"), ("#D55E00", "square", "solid"),
           ("#AA4499", "diamond", "solid"))


def _per_model(method: str, label: str, init: str = "") -> Callable[[pd.DataFrame], list[Curve]]:
    def curves(rows: pd.DataFrame) -> list[Curve]:
        names = sorted(rows["model"].unique(), key=lambda m: rows[rows["model"] == m]["gmacs_plain"].iloc[0])
        return [Curve(f"{label} on {n.split('/')[1]}", method, _WIDTHS[i % 4], init, model=n)
                for i, n in enumerate(names)]
    return curves


def _widths(rows: pd.DataFrame) -> list[Curve]:
    return [replace(c, look=(c.look[0], "star", "dot")) for c in _per_model("plain", "plain")(rows)]


def _qk(rows: pd.DataFrame) -> list[Curve]:
    out: list[Curve] = []
    kinds = sorted(rows["qk"].unique())
    for i, kind in enumerate(kinds if len(kinds) > 1 else ()):      # nothing to compare with one kind only
        look = _WIDTHS[i % 4]
        out += [Curve(f"WK-Medoids, {kind or 'usual attention'}", "wk_medoids", look, "top_k", qk=kind),
                Curve(f"top-K, {kind or 'usual attention'}", "top_k", (look[0], "x", "dot"), qk=kind),
                Curve(f"plain, {kind or 'usual attention'}", "plain", (look[0], "star", "dot"), qk=kind)]
    return out


_FINETUNED_PEERS = (
    *(Curve(n, n, (*figures.PEER_LOOKS[n], "solid"), counts=n != "EViT") for n in ("tokenpool", "ToMe", "ATC", "EViT")),
    Curve("patch merger", "patch_merger", ("#555555", "x", "dash")))


def _of(*chosen: Curve) -> Callable[[pd.DataFrame], list[Curve]]:
    return lambda rows: list(chosen)


PANELS = (
    Panel("1b", "How much accuracy for how many computations?",
          "Token Pooling saves 42 % of the computations at the same top-1 (P: abstract).", _of(_OURS, _BEST, _PLAIN)),
    Panel("3a", "Scores or reconstruction?", "WK-Medoids above PoWER-BERT above importance above random, which is about "
          "as good as a narrower net; at every budget (S).", lambda rows: [_OURS, _TOP_K, _IMPORTANCE, _RANDOM, _BEST,
                                                                           *_widths(rows)]),
    Panel("3b", "And against a learned predictor?", "Highest accuracy at all budgets against DynamicViT, HVT, ConViT "
          "(S; HVT and ConViT are not built here).",
          _of(_OURS, Curve("DynamicViT", "dynamic_vit", ("#AA4499", "diamond", "dash")), _PLAIN)),
    Panel("4", "A wider net pooled, or a narrower one whole?", "Pooling improves every width, and wider nets pooled form "
          "the outer envelope (P: caption).",
          lambda rows: [] if rows["model"].nunique() < 2 else
          _per_model("wk_medoids", "WK-Medoids", "top_k")(rows) + _widths(rows)),
    Panel("5a", "How to use the significance score?", "PoWER-BERT's top-K is the best use of the score (S).",
          _of(_TOP_K, _IMPORTANCE, Curve("importance, with replacement", "importance_with_replacement",
                                         _L["importance_with_replacement"]), _RANDOM)),
    Panel("5b", "Which clustering?", "Weighted above unweighted, K-Medoids better per computation than K-Means (S).",
          _of(*(Curve(n, n, _L[n], "top_k") for n in ("k_means", "wk_means", "k_medoids", "wk_medoids")))),
    Panel("6", "Does the start matter?", "Robust: top-K and random starts end alike (P: caption; numbers not known).",
          _of(*(Curve(f"{s} start", "wk_medoids", figures.INIT_LOOKS[s], s)
                for s in ("top_k", "random", "farthest_first")))),
    Panel("8", "Convolution on the grid?", "Good only at low computations (S).",
          _of(_CONVOLUTION, Curve("average on the grid", "grid_average", _L["grid_average"]), _OURS),
          note="A grid can only be quartered, so the convolution's budgets are those nearest to the asked ones."),
    Panel("9", "And without any finetuning?", "The model retains its accuracy, because the reconstruction error is small "
          "(P: the authors' words; numbers not known).",
          _of(_OURS, _BEST, _TOP_K, _IMPORTANCE, _RANDOM, Curve("k_means", "k_means", _L["k_means"], "top_k")),
          finetuned=False),
    Panel("10", "Normalised keys and queries?", "Curves only; that they repeat the comparison is our reading (P: caption, "
          "I).", _qk),
    Panel("11", "PoWER-BERT on the middle widths?", "Curves only (P: caption).",
          lambda rows: [c for m in ("e252", "e318") for c in
                        (*(Curve(f"{label}, {m}", method, (colour, symbol, dash), init, model=f"*/{m}")
                           for label, method, init, colour, symbol, dash in (
                               ("WK-Medoids", "wk_medoids", "top_k", "#007A5E", "triangle-up",
                                "solid" if m == "e252" else "dash"),
                               ("top-K", "top_k", "", "#D55E00", "square", "solid" if m == "e252" else "dash"))),)]),
    Panel("12", "Is it faster, too?", "The authors' PyTorch code was not optimised for speed (P: their words).",
          _of(_OURS, _TOP_K, _RANDOM, _CONVOLUTION, _PLAIN), untouched=False, speed=True,
          note="Images per second while measuring accuracy, on a busy machine: an impression, not a benchmark."),
    Panel("search", "Do learned schedules beat geometric ones?", "The paper learns K per layer with PoWER-BERT's soft "
          "masks (S); it shows no comparison that is known.",
          _of(_OURS, Curve("WK-Medoids, learned K", "wk_medoids", ("#0072B2", "circle", "dash"), "top_k", searched=True),
              _TOP_K, Curve("top-K, learned K", "top_k", ("#AA4499", "diamond", "dash"), searched=True))),
    Panel("peers", "what others do, and ours, finetuned", "None of this is in it. Options are those of the methods' authors; "
          "tokenpool is OFF_THE_SHELF; K geometric for all.",
          lambda rows: [_PLAIN, _OURS, *_FINETUNED_PEERS] if rows["method"].isin([c.method for c in _FINETUNED_PEERS]).any()
          else []),
)


def points(rows: pd.DataFrame, noise: float) -> pd.DataFrame:
    """One point per budget: mean over seeds and a 95 % interval over images and runs."""
    def one(group: pd.DataFrame) -> pd.Series:
        p, n = group["top1"].mean(), group["images"].iloc[0]
        half = 1.96 * np.hypot(np.sqrt(p * (1 - p) / n), noise / np.sqrt(len(group)))
        return pd.Series({"mmacs": 1e3 * group["gmacs"].mean(), "speed": group["images_per_second"].median(), "top1": p,
                          "half": half, "seeds": len(group), "runs": "|".join(group["run"]),
                          "share": group["gmacs"].mean() / group["gmacs_plain"].iloc[0]})
    return rows.groupby(["saving", "schedule_name"])[list(rows.columns)].apply(one).reset_index()


def select(rows: pd.DataFrame, curve: Curve, first: str) -> pd.DataFrame:
    """The rows of a curve, of any stage."""
    model = first if curve.model is None else curve.model
    of_model = rows["model"].str.endswith(model[1:]) if model.startswith("*") else rows["model"] == model
    return rows[(rows["method"] == curve.method) & (rows["init"] == curve.init) & (rows["counts"] == curve.counts)
                & of_model & (rows["qk"] == curve.qk) & ((rows["schedule_name"] != "") == curve.searched)]


def panel_figure(panel: Panel, rows: pd.DataFrame, preset: str) -> go.Figure | None:
    """Untouched and finetuned side by side, on one scale; None where nothing was measured."""
    table = Table(rows, preset)
    mine = rows[rows["preset"] == preset]
    stages = [s for s, wanted in (("untouched", panel.untouched), ("finetuned", panel.finetuned)) if wanted]
    titles = {"untouched": "without finetuning", "finetuned": "finetuned"}
    chart = make_subplots(1, len(stages), shared_yaxes=True, shared_xaxes="all", horizontal_spacing=0.03,
                          subplot_titles=[titles[s] for s in stages])
    shown: set[str] = set()
    curves = panel.curves(mine)
    for column, stage in enumerate(stages, 1):
        for rank, curve in enumerate(curves, 1):
            # nothing is pooled in a plain model, so "untouched" shows the base model there
            want = "base" if curve.method == "plain" and stage == "untouched" else stage
            part = select(mine[mine["stage"] == want], curve, table.first)
            if not len(part):
                continue
            p = points(part, table.noise if stage == "finetuned" else 0.0).sort_values("mmacs")
            colour, symbol, dash = curve.look
            x = p["speed"] if panel.speed else p["mmacs"]
            chart.add_trace(go.Scatter(
                x=x.round(3).tolist(), y=(100 * p["top1"]).round(2).tolist(), name=curve.label,
                legendgroup=curve.label, legendrank=rank, showlegend=curve.label not in shown,
                mode="lines+markers", line=dict(color=colour, dash=dash, width=2), marker=dict(symbol=symbol, size=9),
                error_y=dict(type="data", array=(100 * p["half"]).round(2).tolist(), thickness=1, width=3),
                customdata=[[r.runs, f"{r.mmacs:.1f} MMACs ({r.share:.0%} of its plain model)<br>{r.seeds:.0f} seed(s), "
                             f"{r.speed:.0f} images/s"] for r in p.itertuples()],
                hovertemplate=f"<b>{curve.label}</b><br>top-1 %{{y:.1f}} %<br>%{{customdata[1]}}<br>click: run card"
                              "<extra></extra>"), 1, column)
            shown.add(curve.label)
    if not shown:
        return None
    across = "images per second" if panel.speed else "MMACs an image, clustering included"
    lines = -(-len(shown) // 2)
    chart.update_layout(template=figures.TEMPLATE, height=440 + 22 * lines, hovermode="closest",
                        margin=dict(l=70, r=16, t=40, b=80 + 22 * lines),
                        legend=dict(orientation="h", y=-0.2, yanchor="top", x=0, font_size=13))
    chart.update_xaxes(title=dict(text=across, standoff=8, font_size=14), rangemode="tozero")
    chart.update_yaxes(title=dict(text="top-1", font_size=14), ticksuffix=" %", col=1)
    return chart


# ---- the page ----

_NAMES = {"imagenet1k": "ImageNet-1k", "imagenet50": "photographs, tiny-imagenet-50",
          "imagenet50_cpu": "photographs, tiny-imagenet-50, small model", "pebbles": "made-up images, pebbles"}


def verdicts(evidence: Evidence) -> dict[str, list[Verdict]]:
    """Preset -> its verdicts, in the same order for all."""
    return {preset: claims(evidence.rows, preset) for preset in evidence.presets}


def write_page(path: Path, evidence: Evidence) -> list[Verdict]:
    """Write the board; returns the verdicts of the first preset (real images, where there are any)."""
    said = verdicts(evidence)
    parts = [_lead(evidence), _claims(said)]
    for panel in PANELS:
        parts.append(_section(panel, evidence, said))
        if panel.figure == "6":
            parts.append(_public_weights())
    parts += [_peers(evidence), _left(evidence), _numbers(evidence)]
    page = PAGE.replace("{{title}}", "Token pooling: the results board").replace("{{plotly}}", get_plotlyjs())
    body = "\n".join(parts) + _CARD_HTML + f"<script>const CARDS={_cards(evidence)};{_CARD_JS}</script>"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(page.replace("{{body}}", body), encoding="utf-8")
    return next(iter(said.values()))


def _lead(evidence: Evidence) -> str:
    rows = evidence.rows
    told = []
    for preset in evidence.presets:
        mine = rows[rows["preset"] == preset]
        trained = mine[mine["stage"] == "finetuned"]
        told.append(f"<li><b>{html.escape(_NAMES.get(preset, preset))}</b> (preset {preset}): {len(trained)} finetunings of "
                    f"{_epochs(trained)}, {mine['images'].iloc[0]:,} images to measure on; "
                    f"{_noise(Table(rows, preset))}</li>")
    devices = ", ".join(sorted(rows["device"].unique()))
    return ("<h1>Token pooling: the results board</h1><p>The paper's protocol: train a base model, choose how many tokens "
            "to keep, finetune with the pooling in. Every system is finetuned by one recipe per preset from the same base "
            f"model; the clustering is counted in the computations.</p><ul>{''.join(told)}</ul>"
            f"<p class=small>Measured on: {html.escape(devices)}. Intervals are 95 %, over images and finetunings. P: the "
            "paper's abstract or captions. S: summaries of it. I: our choice. Its full text was not at hand.</p>")


def _epochs(trained: pd.DataFrame) -> str:
    lengths = sorted(trained["epochs"].unique())
    return " or ".join(f"{e:g}" for e in lengths) + (" epoch" if lengths == [1.0] else " epochs")


def _noise(table: Table) -> str:
    if not table.noise:
        return "no setting was finetuned twice, so intervals are over images only"
    return f"one finetuning differs from the next by {100 * table.noise:.2f} points (standard deviation)"


def _claims(said: dict[str, list[Verdict]]) -> str:
    head = "".join(f"<th>{html.escape(_NAMES.get(p, p))}" for p in said)
    lines = []
    for group in zip(*said.values(), strict=True):
        cells = "".join(f"<td>{verdict_mark(v.verdict)}<br><span class=small>{html.escape(v.evidence)}</span></td>"
                        for v in group)
        lines.append(f"<tr><th scope=row>{html.escape(group[0].claim)}</th>{cells}</tr>")
    return f"<h2>The paper's claims, finetuned</h2><table class=claims><tr><th>Claim{head}</tr>{''.join(lines)}</table>"


def _section(panel: Panel, evidence: Evidence, said: dict[str, list[Verdict]]) -> str:
    head = {"search": "Step 2", "peers": "Beyond the paper"}.get(panel.figure, f"Fig. {panel.figure}")
    parts = [f"<h2 id=fig{panel.figure}>{head}: {html.escape(panel.title)}</h2>"
             f"<p><b>The paper:</b> {html.escape(panel.says)} {html.escape(panel.note)}</p>"]
    empty = True
    for preset in evidence.presets:
        chart = panel_figure(panel, evidence.rows, preset)
        if chart is None:
            continue
        empty = False
        chart.layout.title = None
        name = _NAMES.get(preset, preset)
        mine = "".join(f"<li>{verdict_mark(v.verdict)}: {html.escape(v.claim)}</li>" for v in said[preset]
                       if f"Fig. {panel.figure};" in v.claim or (panel.figure == "1b" and "abstract" in v.claim)
                       or f"Fig. {panel.figure} " in v.claim)
        parts.append(f"<h3>{html.escape(name)}</h3>" + (f"<ul class=verdicts>{mine}</ul>" if mine else "") + plot(f"f{panel.figure}-{preset}", chart, "",
                                                            label=f"{head}, {panel.title} {name}"))
    if empty:
        parts.append(f"<p class=small>Nothing was run for this figure. List its runs: <code>tokenpool plan "
                     f"{panel.figure} --preset imagenet50</code>.</p>")
    return "".join(parts)


def _title(entries: list[Entry]) -> str:
    model = entries[0].model
    return _NAMES.get(model.split("/")[0].removesuffix("_vit"), model)


def _peers(evidence: Evidence) -> str:
    """ToMe, ATC, EViT and the others beside ours; nothing is finetuned here."""
    head = ("<h2 id=peers>Beyond the paper: all methods side by side, without finetuning</h2><p>What one would plug in instead, each with "
            "the options it was published with, at equal multiply-adds and at equal time on one machine.</p>")
    if not evidence.comparisons:
        return head + "<p class=small>Nothing was measured. Type <code>tokenpool reproduce --peers</code>.</p>"
    return head + "".join(
        f"<h3>{html.escape(_title(e))}</h3>"
        + compare_page.section(e, f"peers-{i}") for i, e in enumerate(evidence.comparisons))


def _public_weights() -> str:
    """Fig. 7: timm's public DeiT weights, their published top-1, and how to measure them pooled."""
    published = (("deit_tiny_patch16_224", "72.2"), ("deit_small_patch16_224", "79.9"), ("deit_base_patch16_224", "82.0"))
    lines = "".join(f"<tr><td>{name}.fb_in1k<td>{top1} %<td><code>tokenpool reproduce --model {name} --pretrained "
                    "--data wds/SHARDS --split validation</code></tr>" for name, top1 in published)
    return ("<h2 id=fig7>Fig. 7: the public DeiT weights</h2><p><b>The paper:</b> shows the public models of Touvron et al. "
            "pooled (P: caption). They and ImageNet are not part of this kit; with both at hand, this measures them:</p>"
            f"<table><tr><th>timm's weights<th>published top-1 on ImageNet-1k (P)<th>command</tr>{lines}</table>")


def left(evidence: Evidence) -> dict[str, list[Job]]:
    """Preset -> runs of the plan of all figures that have no rows yet."""
    from tokenpool.train.plan import plan
    done = set(zip(evidence.rows["preset"], evidence.rows["run"], strict=True)) | set(evidence.cards)
    return {p: [j for j in plan(["all"], load_preset(p)) if (p, j.name) not in done] for p in PRESETS}


def _left(evidence: Evidence) -> str:
    parts = []
    for preset, jobs in left(evidence).items():
        commands = "\n".join(j.command() for j in jobs)
        parts.append(f"<details><summary>{preset}: {len(jobs)} runs</summary><p class=small>"
                     f"{html.escape(load_preset(preset).expects)}</p><pre>{html.escape(commands)}</pre></details>")
    return ("<h2>Runs left for later</h2><p>All figures, one seed. Each line runs on its own; rows merge by copying "
            f"folders.</p>{''.join(parts)}")


def _numbers(evidence: Evidence) -> str:
    rows = evidence.rows.sort_values(["preset", "stage", "model", "method", "init", "saving", "train_seed"])
    lines = "".join(
        f"<tr><td>{r.preset}<td>{r.stage}<td>{r.model.split('/')[-1]} {r.qk}<td>{r.method}<td>{r.init}"
        f"<td>{'yes' if r.counts else 'no'}<td>{r.schedule_name or f'{r.saving:.0%}'}<td>{r.train_seed}"
        f"<td>{1e3 * r.gmacs:.1f}<td>{1e3 * r.gmacs_without_clustering:.1f}<td>{100 * r.top1:.1f}"
        f"<td>{r.images_per_second:.0f}<td><button data-run='{r.preset}/{html.escape(r.run)}'>card</button></tr>"
        for r in rows.itertuples())
    return ("<h2>All rows</h2><details><summary>Show the table</summary><table class=numbers><tr><th>Preset<th>Stage"
            "<th>Model<th>Method<th>Start<th>Counts<th>Saving<th>Seed<th>MMACs<th>without clustering<th>Top-1, %"
            f"<th>Images/s<th>Run</tr>{lines}</table></details>")


def _cards(evidence: Evidence) -> str:
    def short(card: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in card.items() if k != "identity"}
        return kept | {"recipe": card["identity"]["recipe"]}
    found = {f"{preset}/{run}": short(card) for (preset, run), card in evidence.cards.items()}
    return json.dumps(found).replace("</", "<\\/")


_CARD_HTML = ("<aside id=card hidden role=region aria-label='run card'><button id=shut aria-label='close the run card'>"
              "close</button><h2 id=cardname></h2><pre id=cardtext></pre></aside>")
_CARD_JS = """
const box=document.getElementById('card');
function showCard(names){const t=names.map(n=>CARDS[n]?n+'\\n'+JSON.stringify(CARDS[n],null,1):n+'\\nno card').join('\\n\\n');
document.getElementById('cardname').textContent=names.length>1?names.length+' runs':'Run card';
document.getElementById('cardtext').textContent=t;box.hidden=false;document.getElementById('shut').focus();}
document.getElementById('shut').onclick=()=>{box.hidden=true};
document.addEventListener('keydown',e=>{if(e.key==='Escape')box.hidden=true});
document.querySelectorAll('button[data-run]').forEach(b=>b.onclick=()=>showCard([b.dataset.run]));
document.querySelectorAll('.plot[id^="f"]').forEach(d=>{const p=d.id.replace(/^f[^-]+-/,'');
if(d.on)d.on('plotly_click',e=>showCard(e.points[0].customdata[0].split('|').map(r=>p+'/'+r)));});"""


# ---- the same in Markdown ----

def markdown(evidence: Evidence) -> str:
    """The claims and all means over seeds, for docs/reproduction.md."""
    said = verdicts(evidence)
    out = []
    for preset, list_of in said.items():
        mine = evidence.rows[evidence.rows["preset"] == preset]
        first = mine.sort_values("date").iloc[-1]
        trained = mine[mine["stage"] == "finetuned"]
        out.append(f"## {_NAMES.get(preset, preset)}\n\nPreset `{preset}`: {len(trained)} finetunings, measured on "
                   f"{first.images} images; {first.device}; torch {first.torch}, timm {first.timm}; finetunings of "
                   f"{_epochs(trained)}; {_noise(Table(evidence.rows, preset))}.\n\n"
                   "| claim | verdict | what was seen |\n|---|---|---|")
        out += [f"| {v.claim} | **{v.verdict}** | {v.evidence} |" for v in list_of]
        out.append("\nTop-1 in %, mean over seeds:\n\n| model | system | start | counts | saving or schedule | MMACs | "
                   "untouched | finetuned | seeds |\n|---|---|---|---|---|---|---|---|---|")
        keys = ["model", "qk", "method", "init", "counts", "saving", "schedule_name"]
        for key, group in mine[mine["stage"] != "base"].groupby(keys):
            model, qk, method, init, counts, saving, schedule = key
            before, after = (group[group["stage"] == s]["top1"] for s in ("untouched", "finetuned"))
            cells = [f"{model.split('/')[1]} {qk}".strip(), method, init or "-", "carried" if counts else "-",
                     schedule or f"{saving:.0%}", f"{1e3 * group['gmacs'].mean():.1f}",
                     f"{100 * before.mean():.1f}" if len(before) else "-",
                     f"{100 * after.mean():.1f}" if len(after) else "-", str(len(after))]
            out.append(f"| {' | '.join(cells)} |")
        for base in mine[mine["stage"] == "base"].itertuples():
            out.append(f"| {base.model.split('/')[1]} {base.qk} | base model | - | - | 0% | {1e3 * base.gmacs:.1f} | "
                       f"{100 * base.top1:.1f} | - | - |")
        out.append("")
    if evidence.comparisons:
        out.append("# Beyond the paper: all methods side by side, without finetuning\n\nEach with the options it was published "
                   "with, at equal multiply-adds and at equal time: `tokenpool reproduce --peers`. Top-1 in % with half its "
                   "95 % interval. ↓ below, ↑ above ours (`tokenpool`, fitted K) on the same images, beyond the 95 % interval "
                   "of the pairs; no mark: not to be told apart; -: cannot be met. DynamicViT and the patch merger need "
                   "training: they are among the finetuned systems.\n")
    for entries in evidence.comparisons:
        out.append(f"## {_title(entries)}\n\n{compare_page.markdown(entries)}")
    return "\n".join(out)
