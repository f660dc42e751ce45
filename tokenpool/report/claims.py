"""The paper's claims, as one table, and the verdict that recorded rows give on each.

    for verdict in verdicts(rows, "imagenet50_cpu"):        # finetuned models of a preset
        print(verdict.status, verdict.effects)
    verdicts(rows)                                          # rows of `tokenpool reproduce`: without finetuning

A claim says which selections of rows it compares, the paper's own effect where it is known, and the rule that judges
it. A verdict is a value: a status, and effects with their intervals. Pages, sentences and notebooks are rendered from
it; nothing reads a number back out of a sentence.

A claim holds where every comparison it makes is above 0 with its 95 % interval. It fails where one is below, with an
interval widened for the number of comparisons (Bonferroni): among eight, one easily falls below 0 at random. A claim
that does not say "at every budget" is judged by the mean over budgets.

To add a claim, add a line to `CLAIMS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tokenpool.data.weights import data_folder
from tokenpool.report.stats import Effect, gap, mean_gap, run_noise

HOLDS, FAILS, UNDECIDED, UNTESTED = ("holds here", "does not hold here", "undecided within noise", "not tested here")
MARGIN = 0.01            # a difference below one point is called little, or the same
FINETUNED, OFF_THE_SHELF = "finetuned", "untouched"         # values of the rows' column `stage`


# ---- the paper's own numbers ----

@functools.lru_cache(maxsize=1)
def paper_curves() -> pd.DataFrame:
    """Points read off Figures 1b, 3a and 3b: figure, series, base, gmacs, top1 in % (data/paper/README.md)."""
    return pd.read_csv(data_folder() / "paper" / "curves.csv")


@dataclass(frozen=True)
class PaperGap:
    """A difference between two curves of the paper at equal computations, clustering counted.

    Between two points of a curve we interpolate on a line (I); outside a curve the difference is not known.
    """

    ours: tuple[str, str]                   # figure, series
    other: tuple[str, str]
    whole: float = 4.60                     # GMACs of the model that is pooled; DeiT-S
    upto: float = float("inf")              # use the points up to these GMACs: those of one base model
    ours_at: float | None = None            # GMACs of one fixed point, whatever the saving
    other_at: float | None = None

    def at(self, saving: float | None) -> float | None:
        """Share of top-1 at a saving; None where the paper's curves do not reach."""
        if saving is None:
            return None
        cost = (1 - saving) * self.whole
        ours, other = self._read(self.ours, self.ours_at or cost), self._read(self.other, self.other_at or cost)
        return None if ours is None or other is None else (ours - other) / 100

    def _read(self, curve: tuple[str, str], gmacs: float) -> float | None:
        table = paper_curves()
        mine = table[(table["figure"] == curve[0]) & (table["series"] == curve[1]) & (table["gmacs"] <= self.upto)]
        near = 0.02 * self.whole                                        # a budget of ours just outside a curve
        if not mine["gmacs"].min() - near <= gmacs <= mine["gmacs"].max() + near:
            return None
        return float(np.interp(gmacs, mine["gmacs"], mine["top1"]))


# ---- rows by setting ----

class Table:
    """Rows of one preset and stage, asked for by setting."""

    def __init__(self, rows: pd.DataFrame, preset: str = "", stage: str = FINETUNED) -> None:
        self.all = rows[rows["preset"] == preset]
        self.stage = stage
        self.noise = run_noise(self.all, stage)
        self.rows = self.all[(self.all["stage"] == stage) & (self.all["schedule_name"] == "")]
        self.first = _first_model(preset) if preset else next(iter(self.rows["model"]), "")

    def setting(self, method: str, saving: float = 0.0, init: str | None = None, counts: bool = False,
                model: str = "", qk: str = "") -> pd.DataFrame:
        """One row per run. A clustering without `init` is initialised from the top-K tokens, as in the paper."""
        r = self.rows
        init = ("top_k" if "_me" in method else "") if init is None else init
        return r[(r["method"] == method) & np.isclose(r["saving"], saving) & (r["init"] == init)
                 & (r["counts"] == counts) & (r["model"] == (model or self.first)) & (r["qk"] == qk)]

    def pairs(self, a: dict, b: dict) -> dict[float, tuple[pd.DataFrame, pd.DataFrame]]:
        """Budget -> rows of both settings, where both were measured. A plain model has one budget, 0."""
        plain = [one["method"] == "plain" for one in (a, b)]
        budgets = [0.0] if all(plain) else [s for s in sorted(self.rows["saving"].unique()) if s > 0]
        found = {s: tuple(self.setting(saving=0.0 if whole else s, **one)
                          for one, whole in zip((a, b), plain, strict=True)) for s in budgets}
        return {s: pair for s, pair in found.items() if all(map(len, pair))}

    def gaps(self, a: dict, b: dict) -> dict[float, Effect]:
        """Budget -> top-1 of the first above the second."""
        return {s: gap(*pair, self.noise, saving=s) for s, pair in self.pairs(a, b).items()}

    def over_budgets(self, a: dict, b: dict) -> Effect | None:
        """The mean over all budgets that both have."""
        pairs = list(self.pairs(a, b).values())
        return mean_gap(pairs, self.noise) if pairs else None


def _first_model(preset: str) -> str:
    from tokenpool.train.recipe import load_preset
    return f"{preset}/{next(iter(load_preset(preset).models))}"


# ---- rules: effects -> status ----

def above(effects: Sequence[Effect], margin: float) -> str:
    """Holds where all are above 0, fails where one is clearly below."""
    if all(e.low > 0 for e in effects):
        return HOLDS
    return FAILS if any(e.clearly_below(0.0, len(effects)) for e in effects) else UNDECIDED


def above_on_average(effects: Sequence[Effect], margin: float) -> str:
    """The same for the last effect of each comparison: its mean over budgets, where there are several."""
    return above(list({e.label: e for e in effects}.values()), margin)


def same(effects: Sequence[Effect], margin: float) -> str:
    """Holds where all lie within the margin, fails where one differs by more than it and is clearly not 0."""
    if all(-margin < e.low and e.high < margin for e in effects):
        return HOLDS
    budgets = sum(e.saving is not None for e in effects)
    return FAILS if any(e.clearly_not(among=1 if e.saving is None else budgets) and abs(e.value) > margin
                        for e in effects) else UNDECIDED


def no_loss(effects: Sequence[Effect], margin: float) -> str:
    """Holds where no more than the margin is lost."""
    if all(e.low > -margin for e in effects):
        return HOLDS
    return FAILS if any(e.high < 0 and e.value < -margin for e in effects) else UNDECIDED


def only_at_low_cost(effects: Sequence[Effect], margin: float) -> str:
    """Holds where the first is below at the highest budget and not below at the lowest."""
    if len(effects) < 2:
        return UNTESTED
    high, low = (pick(effects, key=lambda e: e.saving or 0.0) for pick in (min, max))
    return FAILS if high.low > 0 else HOLDS if high.high < 0 <= low.high else UNDECIDED


# ---- the table of claims ----

@dataclass(frozen=True)
class Comparison:
    """Top-1 of the rows `a` minus that of the rows `b`, at every budget that both have."""

    label: str
    a: dict[str, Any]
    b: dict[str, Any]
    paper: PaperGap | None = None
    stage: str = ""                         # only in rows of this stage
    judged: bool = True                     # False: shown beside the claim, not part of it
    mean: bool = False                      # also the mean over budgets
    at: float | None = None                 # only the budget nearest to this one
    within: float = 0.011                   # farther off it does not count

    def effects(self, table: Table) -> list[Effect]:
        pairs = table.pairs(self.a, self.b)
        if self.at is not None:
            nearest = min(pairs, key=lambda s: abs(s - self.at), default=None)
            pairs = {s: p for s, p in pairs.items() if s == nearest and abs(s - self.at) <= self.within}
        found = [gap(*pair, table.noise, label=self.label, saving=s, paper=self.paper and self.paper.at(s))
                 for s, pair in pairs.items()]
        if self.mean and len(pairs) > 1:
            found.append(mean_gap(list(pairs.values()), table.noise, label=self.label))
        return found


@dataclass(frozen=True)
class PooledWider:
    """Wider models, pooled to the cost of the preset's first one, against that one whole."""

    label: str
    paper: PaperGap | None = None
    stage: str = ""
    judged: bool = True

    def effects(self, table: Table) -> list[Effect]:
        narrow, found = table.setting("plain"), []
        for name in table.rows["model"].unique():
            wide = table.rows[table.rows["model"] == name]
            cheap = wide[(wide["method"] == "wk_medoids") & (wide["init"] == "top_k") & ~wide["counts"]
                         & (wide["qk"] == "") & (wide["gmacs"] <= 1.01 * narrow["gmacs"].mean())]
            if name != table.first and len(cheap):
                saving = cheap["saving"].min()
                label = f"{name.split('/')[-1]} pooled − {table.first.split('/')[-1]} whole"
                found.append(gap(cheap[cheap["saving"] == saving], narrow, table.noise, label=label,
                                 saving=float(saving), paper=self.paper and self.paper.at(saving)))
        return found


@dataclass(frozen=True)
class Claim:
    """One statement of the paper and how it is tested."""

    id: str
    figure: str                             # of the paper; "abstract"
    mark: str                               # P primary, S secondary, I our reading
    short: str
    sentence: str
    rule: Callable[[Sequence[Effect], float], str] | None = None
    compares: tuple[Comparison | PooledWider, ...] = ()
    stages: tuple[str, ...] = (FINETUNED, OFF_THE_SHELF)    # rows that can answer it
    margin: float = MARGIN
    needs: str = ""                         # said where no row answers it
    partly: bool = False                    # judged by those comparisons that were measured

    @property
    def source(self) -> str:
        """Where the paper says so, and how sure that is."""
        return f"{self.figure if self.figure == 'abstract' else f'Fig. {self.figure}'}; {self.mark}"

    def __str__(self) -> str:
        return f"{self.sentence} ({self.source})"


_3A = "3a", "WK-Medoids"
_OURS = dict(method="wk_medoids")
_LABELS = {"wk_medoids": "WK-Medoids", "k_medoids": "K-Medoids", "wk_means": "WK-Means", "k_means": "K-Means",
           "top_k": "PoWER-BERT", "importance": "importance", "random": "random", "dynamic_vit": "DynamicViT",
           "convolution": "convolution", "grid_average": "grid average"}


def _versus(a: str, b: str, paper: PaperGap | None = None, **more: Any) -> Comparison:
    return Comparison(f"{_LABELS[a]} − {_LABELS[b]}", dict(method=a), dict(method=b), paper, **more)


def _in_3a(ours: str, other: str) -> PaperGap:
    return PaperGap(("3a", ours), ("3a", other))


def _init(init: str, label: str, **more: Any) -> Comparison:
    counts = more.pop("counts", False)
    return Comparison(f"{label} − top-K init", _OURS | dict(init=init, counts=counts), _OURS, **more)


_PLAIN = dict(method="plain")
_CAREFUL = _OURS | dict(init="farthest_first", counts=True)
CLAIMS = (
    Claim("above_scores", "3a", "S", "above the scores", "WK-Medoids is above PoWER-BERT, importance and random at "
          "every budget", above, tuple(_versus("wk_medoids", b, _in_3a("WK-Medoids", paper)) for b, paper in (
              ("top_k", "PoWER-BERT"), ("importance", "importance"), ("random", "random")))),
    Claim("same_with_less", "abstract", "P", "same top-1, 42 % less", "the same top-1 with 42 % fewer computations",
          no_loss, (
              Comparison("WK-Medoids − plain model", _OURS, _PLAIN, at=0.42, paper=PaperGap(
                  ("1b", "WK-Medoids"), ("3a", "DeiT, width scaling"), whole=1.25, other_at=1.25)),
              Comparison("farthest-first init and counts − plain model", _CAREFUL, _PLAIN, at=0.42, judged=False)),
          (FINETUNED,), needs="Needs the plain model and WK-Medoids at 42 %, finetuned alike."),
    Claim("robust", "6", "P", "robust to the init", "the result hardly depends on the initialisation, top-K or random",
          same, (_init("random", "random init", mean=True),
                 _init("farthest_first", "farthest-first init", judged=False),
                 _init("farthest_first", "farthest-first init and counts", counts=True, judged=False,
                       stage=OFF_THE_SHELF))),
    Claim("weighted", "5b", "S", "weighted above unweighted", "weighted clustering is above unweighted",
          above_on_average, (
              _versus("wk_medoids", "k_medoids", PaperGap(("3b", "WK-Medoids"), ("3b", "K-Medoids"), 1.25, 0.93),
                      mean=True),
              _versus("wk_means", "k_means", mean=True))),
    Claim("normalised", "10", "P caption, the size I", "normalised q and k",
          "normalised keys and queries change little", same, tuple(
              Comparison(f"{kind}, {label} − usual", one | dict(qk=kind), one)
              for kind in ("r1-learned", "r2-learned", "r1-one", "r2-one")
              for label, one in (("plain model", _PLAIN), ("WK-Medoids", _OURS))),
          (FINETUNED,), 2 * MARGIN, partly=True, needs="Needs models trained with normalised keys and queries."),
    Claim("wider", "4", "P", "a wider net, pooled", "pooling a wider net beats a narrower net at its cost", above,
          (PooledWider("wider net pooled − narrower net whole", PaperGap(
              ("1b", "WK-Medoids"), ("3a", "DeiT, width scaling"), ours_at=1.25, other_at=1.25)),), (FINETUNED,),
          needs="Needs a second width, pooled down to the narrower one's cost."),
    Claim("grid", "8", "S", "the grid, at low cost only", "downsampling on the grid competes only at low computations",
          only_at_low_cost, (_versus("convolution", "wk_medoids", _in_3a("convolution", "WK-Medoids"), stage=FINETUNED),
                             _versus("grid_average", "wk_medoids", stage=OFF_THE_SHELF)),
          needs="Needs downsampling on the grid and WK-Medoids at two budgets or more."),
    Claim("dynamic_vit", "3b", "S", "above DynamicViT", "WK-Medoids is above DynamicViT at every budget", above,
          (_versus("wk_medoids", "dynamic_vit"),), (FINETUNED,), needs="Needs DynamicViT, finetuned."),
    Claim("medoids_above_means", "5b", "S", "K-Medoids above K-Means",
          "K-Medoids is above K-Means at equal computations, clustering counted", above_on_average,
          (_versus("wk_medoids", "wk_means", mean=True),)),
    Claim("importance_above_random", "5a", "S", "importance above random", "importance sampling beats random selection",
          above, (_versus("importance", "random", _in_3a("importance", "random")),), (OFF_THE_SHELF,)),
    Claim("top_k_above_importance", "5a", "S", "top-K above importance",
          "PoWER-BERT's top-K beats importance sampling", above,
          (_versus("top_k", "importance", _in_3a("PoWER-BERT", "importance")),), (OFF_THE_SHELF,)),
    Claim("retains", "9", "P", "accuracy retained", "without finetuning the model retains its accuracy, because the "
          "reconstruction error is small", no_loss, (
              Comparison("WK-Medoids − plain model", _OURS, _PLAIN, at=0.42, within=1.0),
              Comparison("farthest-first init and counts − plain model", _CAREFUL, _PLAIN, at=0.42, within=1.0,
                         judged=False)), (OFF_THE_SHELF,), 2 * MARGIN),
    Claim("fully_connected", "1", "P, S", "fully connected layers", "over 80 % of a DeiT's computations are fully "
          "connected layers, under 15 % attention", stages=(OFF_THE_SHELF,)),
    Claim("affordable", "12", "P", "affordable in images/s", "the clustering is affordable in images per second",
          stages=(), needs="Images per second are in every row, but that is not a benchmark: see `tokenpool bench`."),
)


# ---- verdicts ----

@dataclass(frozen=True)
class Verdict:
    """What the rows say on a claim."""

    claim: Claim
    status: str
    effects: tuple[Effect, ...] = ()        # those that were judged come first
    beside: tuple[Effect, ...] = ()         # shown, not judged
    note: str = ""

    @property
    def evidence(self) -> str:
        """The effects in words."""
        shown = (*self.effects, *self.beside)
        if not shown:
            return self.note
        groups: dict[str, list[str]] = {}
        for e in shown:
            groups.setdefault(e.label, []).append(f"{e} {'on average' if e.saving is None else f'at {e.budget}'}")
        said = "; ".join(f"{label}: {', '.join(each)}" for label, each in groups.items())
        known = sorted(round(100 * e.paper, 1) + 0.0 for e in shown if e.paper is not None)
        paper = "" if not known else f" In the paper: {known[0]:+.1f}" + (
            f" to {known[-1]:+.1f}." if known[-1] > known[0] else ".")
        seeds = sorted({e.seeds for e in shown})
        runs = f"{' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} run{'s' if seeds[-1] > 1 else ''}"
        return f"Difference in top-1, points. {said}.{paper} {runs} per setting. {self.note}".strip()


def judge(claim: Claim, table: Table) -> Verdict:
    """The verdict of one table of rows."""
    if claim.id == "fully_connected":
        return _fully_connected(claim)
    if table.stage not in claim.stages:
        return Verdict(claim, UNTESTED, note=claim.needs)
    found = [(c, c.effects(table)) for c in claim.compares if c.stage in ("", table.stage) and len(table.rows)]
    missing = [c.label for c, effects in found if c.judged and not effects]
    judged = tuple(e for c, effects in found if c.judged for e in effects)
    if not judged or (missing and not claim.partly):
        return Verdict(claim, UNTESTED, note=claim.needs or f"Not measured here: {', '.join(missing) or 'anything'}.")
    beside = tuple(e for c, effects in found if not c.judged for e in effects)
    notes = []
    if not all(e.paired for e in (*judged, *beside)):
        notes.append("These rows do not say which images were right, so the intervals are those of independent images.")
    if claim.id in ("normalised", "wider"):
        notes.append("One base model each.")
    return Verdict(claim, claim.rule(judged, claim.margin), judged, beside, " ".join(notes))


def _fully_connected(claim: Claim) -> Verdict:
    import timm

    from tokenpool.models.model_cost import macs
    shares = {name: macs(timm.create_model(f"deit_{size}_patch16_224")).shares
              for name, size in (("DeiT-Ti", "tiny"), ("DeiT-S", "small"))}
    holds = all(s["fully_connected"] > 0.8 and s["attention"] < 0.15 for s in shares.values())
    counted = ", ".join(f"{name} {s['fully_connected']:.1%} and {s['attention']:.1%}" for name, s in shares.items())
    return Verdict(claim, HOLDS if holds else FAILS, note=f"Counted: {counted}.")


def verdicts(rows: pd.DataFrame, preset: str = "") -> list[Verdict]:
    """One verdict per claim: on the finetuned models of a preset, or on rows that belong to none, without finetuning.

    The first list has the claims that finetuned rows can answer, the second has all of them.
    """
    stage = FINETUNED if preset else OFF_THE_SHELF
    table = Table(rows, preset, stage)
    return [judge(claim, table) for claim in CLAIMS if not preset or stage in claim.stages]
