"""Notebook 08: which comparisons are fair, how sure they are, and which claims hold here."""

from __future__ import annotations

import functools
import math
import numbers
import re
import textwrap
import time
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

import tokenpool as tp
from tokenpool.core.methods import one_of
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.lessons.lesson_07_finetuning import NAMES, PEBBLES, PHOTOGRAPHS, recorded, table_of, untouched_rows
from tokenpool.lab.widgets.controls import Choice
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.measure import compare
from tokenpool.measure.rows import unpack
from tokenpool.models import published
from tokenpool.report import compare_page
from tokenpool.report.claims import UNDECIDED, claims, gap
from tokenpool.report.verdicts import FAILS, HOLDS, UNTESTED, Verdict, verdicts

PAPER = dict(method="wk_medoids")                                        # top-K start, no counts
OTHER = dict(method="wk_medoids", init="farthest_first", counts=True)   # not in the paper


# ---- comparisons that flip ----

def flips() -> pd.DataFrame:
    """Three comparisons made unfairly and fairly: name, unfair, fair, half of the fair one's 95 % interval; points."""
    pebbles, photographs = table_of(PEBBLES), table_of(PHOTOGRAPHS)
    rows = []

    ours, grid = pebbles.setting("wk_medoids", 0.42), pebbles.setting("grid_average", 0.42)
    all_rows = pebbles.all
    raw = all_rows[(all_rows["method"] == "grid_average") & np.isclose(all_rows["saving"], 0.42)
                   & (all_rows["stage"] == "untouched")]
    fair = gap(ours, grid, pebbles.noise)
    rows.append(("WK-Medoids above average on the grid: ours finetuned, theirs untouched",
                 ours["top1"].mean() - raw["top1"].mean(), fair))

    means, medoids = (pebbles.setting(m, 0.42) for m in ("k_means", "k_medoids"))
    curve = pebbles.rows[(pebbles.rows["method"] == "k_medoids") & (pebbles.rows["init"] == "top_k")]
    rows.append(("K-Means above K-Medoids: clustering left out of the cost",
                 means["top1"].mean() - _at_cost(curve, means["gmacs_without_clustering"].mean()),
                 gap(means, medoids, pebbles.noise)))

    ours, chance = (photographs.setting(m, 0.42) for m in ("wk_medoids", "random"))
    rows.append(("WK-Medoids above random: our better seed, their worse one",
                 ours["top1"].max() - chance["top1"].min(), gap(ours, chance, photographs.noise)))
    return pd.DataFrame([(name, 100 * unfair, 100 * fair.value, 100 * fair.half) for name, unfair, fair in rows],
                        columns=["comparison", "unfair", "fair", "half"])


def _at_cost(curve: pd.DataFrame, cost: float, column: str = "gmacs_without_clustering") -> float:
    """Top-1 of a method at a cost between two of its budgets, on the line between them."""
    mean = curve.groupby("saving")[[column, "top1"]].mean().sort_values(column)
    return float(np.interp(cost, mean[column], mean["top1"]))


def cost_curves() -> pd.DataFrame:
    """K-Means and K-Medoids untouched, six budgets: method, counted, left_out (MMACs), top1 (%)."""
    rows = untouched_rows()
    mine = rows[rows["method"].isin(["k_means", "k_medoids"]) & (rows["init"] == "top_k") & ~rows["counts"]]
    return pd.DataFrame({"method": mine["method"], "counted": (1e3 * mine["gmacs"]).round(1),
                         "left_out": (1e3 * mine["gmacs_without_clustering"]).round(1),
                         "top1": (100 * mine["top1"]).round(1)}).sort_values(["method", "counted"], ignore_index=True)


def above(curves: pd.DataFrame, axis: str) -> tuple[int, int]:
    """At how many of K-Means' points, of those inside K-Medoids' range, does it lie above K-Medoids' line?"""
    means, medoids = (curves[curves["method"] == m].sort_values(axis) for m in ("k_means", "k_medoids"))
    # budgets are met to within a percent, so a point just outside the range still has its partner
    inside = means[means[axis] >= 0.99 * medoids[axis].min()]
    line = np.interp(inside[axis], medoids[axis], medoids["top1"])
    return int((inside["top1"] > line).sum()), len(inside)


@functools.lru_cache(maxsize=4)
def right_bits(saving: float = 0.42) -> np.ndarray:
    """(runs, images) 0 or 1: which photographs each finetuned run of one budget got right."""
    rows = table_of(PHOTOGRAPHS).rows
    mine = rows[np.isclose(rows["saving"], saving) & (rows["qk"] == "")
                & (rows["model"] == table_of(PHOTOGRAPHS).first)]
    return np.stack([unpack(r.right, r.images) for r in mine.itertuples()]).astype(np.float32)


@functools.lru_cache(maxsize=4)
def selection(splits: int = 300) -> pd.DataFrame:
    """Choose the best of k systems on one half of the images: how much lower is it on the other half?

    Columns: k; recorded (the finetuned systems at -42 %); equal (the same answers dealt out anew among the systems,
    image by image, so that none is better than another). Points of top-1, mean over random halves.
    """
    bits, draw = right_bits(), np.random.default_rng(0)
    systems, images = bits.shape
    ks = (1, 2, 4, 8, systems)
    lost = {name: np.zeros(len(ks)) for name in ("recorded", "equal")}
    for _ in range(splits):
        order = draw.permutation(images)
        for name, answers in (("recorded", bits), ("equal", draw.permuted(bits, axis=0))):
            # against the mean of all systems on the same half: a half that is easy is easy for all of them
            first, second = (half.mean(1) - half.mean() for half in np.array_split(answers[:, order], 2, axis=1))
            for place, k in enumerate(ks):
                chosen = draw.choice(systems, k, replace=False)
                for here, there in ((first, second), (second, first)):
                    best = chosen[here[chosen].argmax()]
                    lost[name][place] += (here[best] - there[best]) / 2
    return pd.DataFrame({"k": ks} | {name: 100 * total / splits for name, total in lost.items()})


# ---- intervals ----

def four_counts(a: np.ndarray, b: np.ndarray) -> dict[str, int]:
    """Of two systems on the same images: how often both are right, only one, neither."""
    return {"both": int((a & b).sum()), "only A": int((a & ~b).sum()), "only B": int((~a & b).sum()),
            "neither": int((~a & ~b).sum())}


def paired_half(counts: dict[str, int]) -> float:
    """Half of the 95 % interval of A - B from the images on which they differ; a share."""
    n, plus, minus = sum(counts.values()), counts["only A"], counts["only B"]
    return 1.96 * math.sqrt((plus + minus) - (plus - minus) ** 2 / n) / n


def unpaired_half(counts: dict[str, int]) -> float:
    """The same, as if each had been measured on images of its own."""
    n = sum(counts.values())
    shares = [(counts["both"] + counts[one]) / n for one in ("only A", "only B")]
    return 1.96 * math.sqrt(sum(p * (1 - p) / n for p in shares))


def interval_rows(saving: float = 0.42) -> pd.DataFrame:
    """WK-Medoids (the paper's) against others on photographs: difference, and three half intervals, in points."""
    table, found = table_of(PHOTOGRAPHS), []
    ours = table.setting("wk_medoids", saving)
    for name, rival in (("top-K", dict(method="top_k")), ("random", dict(method="random")),
                        ("importance", dict(method="importance")), ("K-Medoids", dict(method="k_medoids")),
                        ("farthest-first, counts", OTHER), ("DynamicViT", dict(method="dynamic_vit"))):
        theirs = table.setting(saving=saving, **rival)
        one = [part.iloc[0] for part in (ours, theirs)]
        counts = four_counts(*(unpack(r["right"], r["images"]) for r in one))
        whole = gap(ours, theirs, table.noise)
        found.append((f"above {name}", *(round(100 * v, 2) for v in (
            one[0]["top1"] - one[1]["top1"], unpaired_half(counts), paired_half(counts), whole.value, whole.half))))
    return pd.DataFrame(found, columns=["comparison", "one run", "unpaired", "paired", "all runs", "with run noise"])


@functools.lru_cache(maxsize=32)
def false_alarms(among: int, trials: int = 20_000, seed: int = 0) -> dict[str, float]:
    """No system is better than another. How often is at least one of so many comparisons "clearly below"?

    "alone": every comparison has systems of its own. "shared": ours is the same in all. "widened": shared, intervals
    widened for the number of comparisons (Bonferroni).
    """
    draw = np.random.default_rng(seed)
    alone = draw.standard_normal((trials, among))
    shared = (draw.standard_normal((trials, 1)) - draw.standard_normal((trials, among))) / math.sqrt(2)
    return {"alone": float((alone < -1.96).any(1).mean()), "shared": float((shared < -1.96).any(1).mean()),
            "widened": float((shared < -NormalDist().inv_cdf(1 - 0.025 / among)).any(1).mean())}


# ---- our own recommendation ----

def comparison_of(preset: str) -> list[compare.Entry]:
    """The recorded comparison (`tokenpool reproduce --peers`) on a preset's images."""
    return next(entries for entries in recorded().comparisons if entries[0].model.startswith(preset))


def rivals() -> tuple[str, ...]:
    """Who met our recommendation, by the names that `check_recommendation` takes."""
    return tuple(dict.fromkeys(e.label for e in comparison_of(PHOTOGRAPHS) if e.label != published.OURS.label))


def check_recommendation(rival: str, fair: str = "time") -> pd.DataFrame:
    """Ours minus the rival's top-1 at every budget that both reached, on both sets of images, in points.

    Columns: images, budget, ours, theirs (%), gap, half (95 %, image by image, widened for the number of budgets
    and sets), verdict.
    """
    one_of("rival", rival, rivals(), "See toys.rivals().")
    one_of("fair", fair, compare.FAIR, "Cost can be equal in multiply-adds or in measured time.")
    pairs = []
    for preset in (PHOTOGRAPHS, PEBBLES):
        place = compare_page.by_place(comparison_of(preset))
        for budget in sorted({b for _, _, b in place}):
            ours, theirs = (place.get((name, fair, budget)) for name in (published.OURS.label, rival))
            if ours is not None and theirs is not None:
                pairs.append((NAMES[preset], budget, ours, theirs))
    wider = NormalDist().inv_cdf(1 - 0.025 / len(pairs)) / 1.96
    rows = []
    for name, budget, ours, theirs in pairs:
        counts = four_counts(*(unpack(e.right, e.images) for e in (ours, theirs)))
        found, half = 100 * (ours.top1 - theirs.top1), 100 * wider * paired_half(counts)
        word = HOLDS if found > half else FAILS if found < -half else UNDECIDED
        rows.append((name, f"-{budget:.0%}", 100 * ours.top1, 100 * theirs.top1, found, half, word))
    return pd.DataFrame(rows, columns=["images", "budget", "ours", "theirs", "gap", "half", "verdict"])


def say_recommendation(checked: pd.DataFrame, rival: str, fair: str) -> str:
    """The finding in a sentence: at how many budgets ours is above, below, neither."""
    said = [f"{name}: above at {(part['verdict'] == HOLDS).sum()}, below at {(part['verdict'] == FAILS).sum()}, "
            f"undecided at {(part['verdict'] == UNDECIDED).sum()} of {len(part)} budgets"
            for name, part in checked.groupby("images", sort=False)]
    return f"Ours minus {rival} at {compare.FAIR[fair]}. {'; '.join(said)}. Each model is one small net, not finetuned."


def recommendation_figure(checked: pd.DataFrame, rival: str) -> go.Figure:
    """One interval a budget and a set of images, the two sets a little apart."""
    fig = go.Figure()
    budgets = list(dict.fromkeys(checked.sort_values("budget")["budget"]))
    for name, colour, symbol, shift in ((NAMES[PHOTOGRAPHS], BLUE, "circle", -0.12),
                                        (NAMES[PEBBLES], ORANGE, "square", 0.12)):
        part = checked[checked["images"] == name]
        fig.add_scatter(x=part["gap"].round(1).tolist(), y=[budgets.index(b) + shift for b in part["budget"]],
                        mode="markers", name=name, marker=dict(color=colour, symbol=symbol, size=10),
                        error_x=dict(type="data", array=part["half"].round(1).tolist(), thickness=1.5))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title=f"our recommendation is above {rival} by, points of top-1")
    fig.update_yaxes(title="saved", tickvals=list(range(len(budgets))), ticktext=budgets, autorange="reversed")
    return fig.update_layout(title="Would you sign what we recommend?", height=400,
                             legend=dict(orientation="h", y=-0.24))


def seeds_needed(noise: float, effect: float) -> int:
    """Runs a side to see an effect in four of five experiments, at 95 %: the normal approximation."""
    return math.ceil(2 * (1.96 + 0.84) ** 2 * (noise / effect) ** 2)


# ---- latency ----

TIMED = {
    "plain": None,
    "top-K": dict(method="top_k"),
    "random": dict(method="random"),
    "WK-Medoids": dict(method="wk_medoids", init="top_k"),
    "WK-Medoids, counts": dict(method="wk_medoids", init="top_k", carry_counts=True),
    "WK-Means": dict(method="wk_means", init="top_k"),
}


@torch.inference_mode()
def interleaved(vit: nn.Module, x: Tensor, rounds: int = 9) -> pd.DataFrame:
    """Every system once a round, in a new order each: system, macs and time in % of the plain model's.

    time is the median over rounds of the ratio to the plain model of the *same* round, so that a machine that is busy
    for a while is busy for both; low and high are the quartiles.
    """
    systems = {name: tp.PooledViT(vit, saving=0.42 if options else None, **(options or {})).eval()
               for name, options in TIMED.items()}
    for system in systems.values():
        system(x)
    seconds = {name: np.zeros(rounds) for name in systems}
    draw = np.random.default_rng(0)
    for number in range(rounds):
        for name in draw.permutation(list(systems)):
            began = time.perf_counter()
            systems[name](x)
            seconds[name][number] = time.perf_counter() - began
    plain = tp.macs(systems["plain"]).total
    rows = []
    for name, system in systems.items():
        low, middle, high = np.percentile(100 * seconds[name] / seconds["plain"], (25, 50, 75))
        rows.append((name, round(100 * tp.macs(system).total / plain, 1), round(middle, 1), round(low, 1),
                     round(high, 1)))
    return pd.DataFrame(rows, columns=["system", "macs", "time", "low", "high"])


# ---- figures ----

def flips_figure(found: pd.DataFrame) -> go.Figure:
    """A line a comparison: a cross as it was made unfairly, a circle with its interval as it should be."""
    names = ["<br>".join(name.split(": ", 1)) for name in found["comparison"]]
    fig = go.Figure([
        go.Scatter(x=found["unfair"].round(1).tolist(), y=names, mode="markers", name="made unfairly",
                   marker=dict(color=ORANGE, symbol="x", size=12)),
        go.Scatter(x=found["fair"].round(1).tolist(), y=names, mode="markers", name="made fairly (95 %)",
                   marker=dict(color=BLUE, symbol="circle", size=11),
                   error_x=dict(type="data", array=found["half"].round(1).tolist(), thickness=1))])
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title="the first is above the second by, points of top-1")
    fig.update_yaxes(autorange="reversed")
    return fig.update_layout(title="Who is better? It depends on how you ask", height=360, margin=dict(l=300),
                             legend=dict(orientation="h", y=-0.3))


def cost_figure(curves: pd.DataFrame) -> go.Figure:
    """The same twelve measurements on two axes."""
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05,
                        subplot_titles=["clustering counted", "clustering left out"])
    for method, name, colour, symbol, dash in (("k_means", "K-Means", ORANGE, "circle-open", "dash"),
                                               ("k_medoids", "K-Medoids", GREEN, "triangle-up", "solid")):
        part = curves[curves["method"] == method]
        for column, axis in enumerate(("counted", "left_out"), 1):
            fig.add_scatter(x=part[axis].tolist(), y=part["top1"].tolist(), name=name, mode="lines+markers",
                            line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9),
                            showlegend=column == 1, legendgroup=name, row=1, col=column)
    fig.update_xaxes(title="MMACs an image", range=[11, 42])
    fig.update_yaxes(title="top-1 untouched, %", col=1)
    return fig.update_layout(title="Which clustering is better per computation?", height=380, margin=dict(t=90),
                             legend=dict(orientation="h", y=-0.28))


def selection_figure(found: pd.DataFrame) -> go.Figure:
    """How much a winner loses on other images, by the number of candidates."""
    fig = go.Figure()
    for name, label, colour, symbol, dash in (("recorded", "the recorded systems", BLUE, "circle", "solid"),
                                              ("equal", "if all were equally good", ORANGE, "square", "dash")):
        fig.add_scatter(x=found["k"].tolist(), y=found[name].round(2).tolist(), name=label, mode="lines+markers",
                        line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9))
    fig.update_xaxes(title="candidates, of which the best is chosen", tickvals=found["k"].tolist())
    fig.update_yaxes(title="points lost on other images", rangemode="tozero")
    return fig.update_layout(title="What does choosing on the test images add?", height=340,
                             legend=dict(orientation="h", y=-0.3))


def interval_figure(found: pd.DataFrame) -> go.Figure:
    """Three intervals of the same comparison, one below the other."""
    fig = go.Figure()
    places = np.arange(len(found))
    kinds = (("unpaired", "one run", "as if on different images", GREY, "square-open", -0.22),
             ("paired", "one run", "image by image", BLUE, "circle", 0.0),
             ("with run noise", "all runs", "and with the noise of finetunings", GREEN, "diamond", 0.22))
    for half, value, name, colour, symbol, shift in kinds:
        fig.add_scatter(x=found[value].tolist(), y=(places + shift).tolist(), mode="markers", name=name,
                        marker=dict(color=colour, symbol=symbol, size=9),
                        error_x=dict(type="data", array=found[half].tolist(), thickness=1.5))
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title="WK-Medoids (the paper's start) is above by, points of top-1")
    fig.update_yaxes(tickvals=places.tolist(), ticktext=found["comparison"].tolist(), autorange="reversed")
    return fig.update_layout(title="How sure is a difference? Photographs, 42 % saved", height=430,
                             margin=dict(l=215), legend=dict(orientation="h", y=-0.22))


def alarms_figure(counts: tuple[int, ...] = (1, 2, 4, 8, 16)) -> go.Figure:
    """False alarms by the number of comparisons: of the formula, and simulated."""
    fig = go.Figure()
    fig.add_scatter(x=list(counts), y=[round(100 * (1 - 0.975 ** n), 1) for n in counts], mode="lines",
                    name="formula: each on its own", line=dict(color=GREY, dash="dash"))
    for name, label, colour, symbol in (("alone", "each on its own", GREY, "square-open"),
                                        ("shared", "one system against many", ORANGE, "circle"),
                                        ("widened", "the same, intervals widened", BLUE, "diamond")):
        fig.add_scatter(x=list(counts), y=[round(100 * false_alarms(n)[name], 1) for n in counts], name=label,
                        mode="lines+markers" if name != "alone" else "markers", line=dict(color=colour),
                        marker=dict(symbol=symbol, size=9))
    fig.update_xaxes(title="comparisons", tickvals=list(counts))
    fig.update_yaxes(title="at least one clearly below, %", rangemode="tozero")
    return fig.update_layout(title="Nobody is better. How often does somebody look worse?", height=360,
                             legend=dict(orientation="h", y=-0.28))


def latency_figure(found: pd.DataFrame) -> go.Figure:
    """MACs and time side by side, in % of the plain model's."""
    fig = go.Figure([
        go.Scatter(x=found["macs"].tolist(), y=found["system"].tolist(), mode="markers", name="MACs",
                   marker=dict(color=GREY, symbol="square-open", size=12, line=dict(width=2))),
        go.Scatter(x=found["time"].tolist(), y=found["system"].tolist(), mode="markers",
                   name="time: median and quartiles", marker=dict(color=BLUE, symbol="circle", size=11),
                   error_x=dict(type="data", symmetric=False, thickness=1,
                                array=(found["high"] - found["time"]).round(1).tolist(),
                                arrayminus=(found["time"] - found["low"]).round(1).tolist()))])
    fig.update_xaxes(title="% of the plain model's", rangemode="tozero")
    fig.update_yaxes(autorange="reversed")
    return fig.update_layout(title="42 % fewer MACs: how much less time?", height=380, margin=dict(l=180),
                             legend=dict(orientation="h", y=-0.25))


# ---- the ledger of claims ----

@dataclass(frozen=True)
class Topic:
    """One claim of the paper, wherever it is judged."""

    short: str
    finetuned: str          # what its sentence holds, in the list for finetuned models; "" where it is not in it
    untouched: str
    notebook: str           # where it is taught


TOPICS = (
    Topic("above the scores (Fig. 3a)", "is above PoWER-BERT", "more accuracy than PoWER-BERT", "03"),
    Topic("same top-1, 42 % less (abstract)", "the same top-1 with 42 %", "the same ImageNet accuracy", "07"),
    Topic("robust to the start (Fig. 6)", "robust to the start", "hardly depends on the start", "04"),
    Topic("weighted above unweighted (Fig. 5b)", "weighted clustering is above", "weighted clustering beats", "04"),
    Topic("normalised q and k (Fig. 10)", "normalised keys and queries change", "with normalised keys", "06"),
    Topic("a wider net, pooled (Fig. 4)", "pooling a wider net", "pooling a wider DeiT", "05"),
    Topic("the grid, at low cost only (Fig. 8)", "convolution on the grid", "downsampling on a grid", "07"),
    Topic("above DynamicViT (Fig. 3b)", "above DynamicViT", "beats DynamicViT", "07"),
    Topic("K-Medoids above K-Means (Fig. 5b)", "K-Medoids is above K-Means", "K-Medoids beats K-Means", "04"),
    Topic("accuracy retained untouched (Fig. 9)", "", "without finetuning the model retains", "07"),
    Topic("importance above random (Fig. 5a)", "", "importance sampling beats random", "03"),
    Topic("top-K above importance (Fig. 5a)", "", "top-K beats importance", "03"),
    Topic("fully connected layers (P, S)", "", "fully connected layers", "01"),
    Topic("affordable in images/s (Fig. 12)", "", "affordable in images per second", "08"),
)
LEDGERS = ("photographs, finetuned", "pebbles, finetuned", "pebbles, untouched")
KINDS = ("holds", "does not hold", "undecided or in part", "not tested")
_KIND_LOOKS = {KINDS[0]: (GREEN, "circle"), KINDS[1]: (ORANGE, "x"), KINDS[2]: (PURPLE, "diamond"),
               KINDS[3]: (GREY, "square-open")}
ALL = "all claims"


def kind_of(verdict: str) -> str:
    """The package's word for a verdict -> one of KINDS."""
    return KINDS[{HOLDS: 0, FAILS: 1, UNTESTED: 3}.get(verdict, 2)]


@dataclass(frozen=True)
class Entry:
    """A claim in the ledger."""

    topic: Topic
    verdict: Verdict
    numbers: tuple[tuple[str, float, float], ...]       # what is compared, points, half of the interval (or range)

    @property
    def kind(self) -> str:
        return kind_of(self.verdict.verdict)

    @property
    def mark(self) -> str:
        """How sure it is that the paper says so."""
        found = re.findall(r"\b[PSI]\b", self.verdict.claim.rsplit("(", 1)[-1])
        return ", ".join(dict.fromkeys(found))


@functools.lru_cache(maxsize=4)
def ledger(name: str) -> tuple[Entry, ...]:
    """The package's verdicts on one body of evidence, in the order of TOPICS."""
    one_of("ledger", name, LEDGERS, "")
    trained = name != LEDGERS[2]
    said = claims(recorded().rows, PHOTOGRAPHS if name == LEDGERS[0] else PEBBLES) if trained else \
        verdicts(untouched_rows())
    entries = []
    for topic in TOPICS:
        key = topic.finetuned if trained else topic.untouched
        found = [v for v in said if key and key in v.claim]
        if found:
            numbers = intervals_in(found[0].evidence) if trained else ranges_in(found[0].evidence)
            entries.append(Entry(topic, found[0], numbers))
    return tuple(entries)


_GAP = re.compile(r"([+-]\d+\.\d) ± (\d+\.\d)( on average| at -\d+%)?")


def intervals_in(evidence: str) -> tuple[tuple[str, float, float], ...]:
    """The differences that a verdict's sentence quotes: what, points, half of the interval.

    Read from the sentence and not computed anew, so that the ledger shows what was judged.
    """
    text = re.sub(r" ?\((?![+-])[^()]*\)", "", evidence)          # asides in parentheses; lists of gaps stay
    found, about, last = [], "", 0
    for match in _GAP.finditer(text):
        before = text[last:match.start()]
        if ":" in before or not about:
            about = re.split(r"[;.] ", before.rsplit(":", 1)[0])[-1].strip(" ;.,()")
            about = re.sub(r"^Points of top-1,? ?|^Points above the usual attention: |^From a |, in points$", "", about)
            if text.startswith("Points of top-1 above") and not about.startswith("above"):
                about = f"above {about}"
        found.append((f"{about}{match[3] or ''}", float(match[1]), float(match[2])))
        last = match.end()
    return tuple(found)


def ranges_in(evidence: str) -> tuple[tuple[str, float, float], ...]:
    """Untouched systems are judged by their lowest and highest difference over the budgets: middle and half range."""
    match = re.search(r"differences ([+-][\d.]+) to ([+-][\d.]+)", evidence) or \
        re.search(r"([+-][\d.]+) points at the highest, ([+-][\d.]+) at the lowest", evidence)
    if match is None:
        return ()
    low, high = sorted((float(match[1]), float(match[2])))
    return (("lowest to highest over the budgets", round((low + high) / 2, 2), round((high - low) / 2, 2)),)


@dataclass(frozen=True)
class Page:
    """What the explorer shows of a ledger."""

    name: str
    kind: str
    shown: tuple[Entry, ...]
    all: tuple[Entry, ...]
    claim: str              # a short name, or ALL
    entry: Entry | None     # of the claim, whether shown or not


@functools.lru_cache(maxsize=64)
def look_up(name: str, kind: str, claim: str) -> Page:
    entries = ledger(name)
    chosen = next((e for e in entries if e.topic.short == claim), None)
    shown = tuple(e for e in entries if kind in ("any", e.kind) and claim in (ALL, e.topic.short))
    return Page(name, kind, shown, entries, claim, chosen)


def look_up_figure(page: Page) -> go.Figure:
    """A forest: a line a claim with all its comparisons, or, of one claim, a line a comparison."""
    fig = go.Figure()
    alone = page.claim != ALL and len(page.shown) == 1
    lines: list[str] = []
    wide = 30 if alone else 36              # letters in a label
    marks: dict[str, list[tuple[float, float, float, str]]] = {kind: [] for kind in KINDS}
    for place, entry in enumerate(page.shown):
        if not alone:
            lines.append(entry.topic.short)
        for number, (about, value, half) in enumerate(entry.numbers):
            if alone:
                lines.append(about)
                at = float(number)
            else:
                at = place + (number - (len(entry.numbers) - 1) / 2) * 0.7 / max(len(entry.numbers), 4)
            marks[entry.kind].append((value, half, round(at, 3), f"{entry.topic.short}: {about}"))
    for kind, points in marks.items():
        colour, symbol = _KIND_LOOKS[kind]
        fig.add_scatter(x=[p[0] for p in points], y=[p[2] for p in points], mode="markers", name=kind,
                        showlegend=True, marker=dict(color=colour, symbol=symbol, size=8),
                        error_x=dict(type="data", array=[p[1] for p in points], thickness=1.2, width=3),
                        text=[p[3] for p in points], hovertemplate="%{text}<br>%{x:+.1f} points<extra></extra>")
    fig.add_vline(x=0, line=dict(color=INK, width=1))
    lowest, highest = (edge([v + sign * h for e in page.shown for _, v, h in e.numbers] + [sign * 3]) for edge, sign in
                       ((min, -1), (max, 1)))
    what = "range over the budgets" if page.name == LEDGERS[2] else "95 % interval"
    fig.update_xaxes(title=f"the first is above by, points of top-1 (bar: {what})",
                     range=[lowest - 1, highest + 1])
    fig.update_yaxes(tickvals=list(range(len(lines))), ticktext=[_folded(line, wide) for line in lines],
                     range=[max(len(lines), 1) - 0.4, -0.6])
    empty = "" if any(marks.values()) else ": no interval to draw, read the words"
    return fig.update_layout(title=f"Which claims hold? {page.name.capitalize()}{empty}", height=640,
                             margin=dict(l=270, b=120), legend=dict(orientation="h", y=-0.13, yanchor="top"))


def _folded(line: str, width: int) -> str:
    """A label in two lines where it is long."""
    if len(line) <= width:
        return line
    cut = line.rfind(" ", 0, width)
    return f"{line[:cut]}<br>{line[cut + 1:]}"


def look_up_words(page: Page) -> str:
    counts = {kind: sum(e.kind == kind for e in page.all) for kind in KINDS}
    words = f"{page.name.capitalize()}: of {len(page.all)} claims " + ", ".join(
        f"{n} {'hold' if kind == 'holds' and n != 1 else 'do not hold' if kind == 'does not hold' and n != 1 else kind}"
        for kind, n in counts.items()) + "."
    if page.claim == ALL:
        if page.kind != "any":
            words += f" Shown: {', '.join(e.topic.short for e in page.shown) or 'none'}."
        return f"{words} Choose a claim to read the differences and intervals that decide it."
    if page.entry is None:
        return f"{words}\n\nThis claim is not judged on this evidence."
    e = page.entry
    hidden = "" if e in page.shown else f" (hidden: you asked for those that are *{page.kind}*)"
    return (f"{words}\n\n*{e.verdict.claim}*: {e.verdict.verdict}{hidden}. {e.verdict.evidence} Taught in notebook "
            f"{e.topic.notebook}.")


def look_up_table(page: Page) -> pd.DataFrame:
    """The ledger: claim, source, our number, verdict, notebook."""
    rows = []
    for e in page.shown:
        told = "; ".join(f"{v:+.1f} ± {h:.1f} {about}" for about, v, h in e.numbers[:2])
        more = f"; {len(e.numbers) - 2} more" if len(e.numbers) > 2 else ""
        rows.append((e.topic.short, e.mark, (told + more) or "see the words", e.verdict.verdict, e.topic.notebook))
    return pd.DataFrame(rows, columns=["claim", "source", "ours, points of top-1", "verdict", "notebook"])


def explore() -> Explorer:
    return Explorer({"name": Choice("Evidence", LEDGERS), "kind": Choice("Verdict", ("any", *KINDS)),
                     "claim": Choice("Claim", (ALL, *(t.short for t in TOPICS)))},
                    look_up, look_up_figure, look_up_words, look_up_table, height=640,
                    measure=lambda page: ("number of claims shown", len(page.shown), "{:d}"))


# ---- predictions ----

def _fastest(times: dict[str, float]) -> int:
    order = ("top-K", "WK-Medoids", "WK-Means")
    low, high = min(times[n] for n in order), max(times[n] for n in order)
    return 3 if high < 1.1 * low else [times[n] for n in order].index(low)


PREDICTIONS = (
    Prediction("a", "Three systems, one budget: with clustering counted, top-K, WK-Medoids and WK-Means are given "
                    "the same "
                    "MACs. Which ranks higher on latency than on MACs?",
               ("top-K", "WK-Medoids", "WK-Means", "none: equal MACs are equal time"),
               answer=_fastest,
               why={1: "Its clustering has few MACs and many steps: an assignment and a new medoid, five times over at "
                       "every block. Little of that is matrix products, which is what MACs count and machines do best.",
                    2: "Its clustering consists of matrix products, which run well. But they cost MACs, and "
                       "assignments "
                       "and empty clusters cost time on top.",
                    3: "MACs count matrix products. Sorting, gathering and comparing are not in them, and take time."},
               tell=lambda t: ", ".join(f"{name} {value:.0f} %" for name, value in t.items())
                              + " of the plain model's time"),
    Prediction("b", "Nine claims of the paper were tested on photographs, finetuned. How many hold here, beyond noise?",
               ("none", "one or two", "about half", "seven or more"),
               answer=lambda words: 0 if not (n := words.count(HOLDS)) else 1 if n <= 2 else 2 if n < 7 else 3,
               why={0: "Nearly. WK-Medoids is above DynamicViT, which one epoch may be too short to train.",
                    2: "More than half are not *refuted*, and that is what stays in memory. Undecided is no weak yes.",
                    3: "That is what a published paper makes one expect. Ours is a tiny net, a short training and few "
                       "seeds: a small experiment can rarely decide."},
               tell=lambda words: ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))),
    Prediction("c", "No system is better than any other, and you compare ours with eight rivals, each with a 95 % "
                    "interval. "
                    "How often does at least one of the eight lie clearly above ours?",
               ("in about 2 of 100 papers", "in about 13 of 100 papers", "in about half of all papers"),
               answer=lambda share: 0 if share < 0.06 else 1 if share < 0.35 else 2,
               why={0: "That is one comparison. Each of the eight has its own chance to be unlucky.",
                    2: "Eight times a small chance is not a half; and the eight share one side, so they err together."},
               tell=lambda share: f"in {share:.1%} of the simulated papers"),
)


# ---- exercises ----

@exercise("a", minutes=8, level=2, hints=(
    "Two kinds of claim. \"Above\" asks where all intervals lie relative to 0; \"the same\" asks whether all of them "
    "lie "
    "inside -within .. +within.",
    "A claim *fails* when one interval lies wholly on the wrong side: `high < 0`, or wholly outside the margin. "
    "Whatever neither holds nor fails is undecided.",
    "Above: HOLDS if all(low > 0), FAILS if any(high < 0). The same: HOLDS if all(-within < low and high < within), "
    "FAILS if any(low > within or high < -within)."))
def verdict(gaps, within=None):
    if within is None:
        holds, fails = all(low > 0 for low, _ in gaps), any(high < 0 for _, high in gaps)
    else:
        holds = all(-within < low and high < within for low, high in gaps)
        fails = any(low > within or high < -within for low, high in gaps)
    return HOLDS if holds else FAILS if fails else UNDECIDED


@verdict.check_by
def _(answer):
    def said(gaps, within=None):
        got = answer(gaps, within)
        ensure(got in (HOLDS, FAILS, UNDECIDED), f"Return HOLDS, FAILS or UNDECIDED; {got!r} came.")
        return got

    expect(said([(0.5, 2.0), (0.1, 3.0)]), HOLDS, "Both intervals lie above 0.")
    got = said([(-0.5, 2.0)])
    ensure(got != HOLDS, "From -0.5 to 2.0: the middle is above 0, the interval is not. Zero is among the likely "
                         "values.")
    ensure(got != FAILS, "From -0.5 to 2.0 the claim was not shown to be true. Nor was it shown to be false: "
                         "undecided.")
    ensure(said([(1.0, 2.0), (-0.5, 2.0)]) == UNDECIDED, "One budget above 0 is not *every* budget: the second "
                                                         "interval "
                                                         "contains 0.")
    expect(said([(1.0, 2.0), (-3.0, -1.0)]), FAILS, "At one of the budgets ours is clearly below, so \"at every "
                                                    "budget\" "
                                                    "is refuted.")
    got = said([(-3.0, 3.5)], 1.0)
    ensure(got != HOLDS, "From -3.0 to 3.5 contains 0, and differences of three points as well. \"No difference was "
                         "seen\" "
                         "is not \"they are the same\": the whole interval has to lie inside the margin.")
    expect(got, UNDECIDED, "From -3.0 to 3.5, the same within 1.0?")
    got = said([(0.2, 0.8)], 1.0)
    ensure(got != FAILS, "From 0.2 to 0.8 there is a difference beyond doubt, and it is smaller than the margin of "
                         "1.0: "
                         "for this claim the two are the same.")
    expect(got, HOLDS, "From 0.2 to 0.8, the same within 1.0?")
    expect(said([(1.5, 3.0)], 1.0), FAILS, "From 1.5 to 3.0 lies wholly outside the margin of 1.0.")
    expect(said([(-3.0, -1.5)], 1.0), FAILS, "The margin has two sides: -3.0 to -1.5 is outside it too.")
    expect(said([(0.5, 3.0)], 1.0), UNDECIDED, "From 0.5 to 3.0 lies half inside the margin of 1.0.")


#: an invented abstract: sentence -> the flaw in it, or the flaw that it rules out
REVIEW = (
    ("We compare TokenBlend, which groups tokens by k-means, with TopCut. Both go on from the same public DeiT-S "
     "weights.",
     "", "different base models"),
    ("TokenBlend is finetuned for 30 epochs; TopCut is plugged into the model without training, as its authors allow.",
     "unequal training", ""),
    ("Cost is in GMACs of blocks and head; the k-means itself is a negligible preprocessing and is not included.",
     "clustering not counted", ""),
    ("All systems are measured on the same 50,000 validation images.", "", "different images"),
    ("Of twelve schedules we report the one with the highest accuracy on these images.", "chosen on the test "
                                                                                           "images", ""),
    ("Intervals are 95 % over images, compared image by image.", "", "unpaired intervals"),
    ("Each line is one finetuning.", "one seed", ""),
    ("TokenBlend runs at 5,100 images a second on our card; for TopCut we quote the speed printed in its paper.",
     "different machines", ""),
    ("We make one claim, for one budget, fixed before the runs: TokenBlend is above TopCut by 0.4 ± 0.2 points.",
     "", "many comparisons"),
)
FLAWS = ("unequal training", "clustering not counted", "different base models", "different images",
         "chosen on the test images", "unpaired intervals", "one seed", "too few images", "different machines",
         "many comparisons")


def review() -> str:
    """The invented paper and the list of flaws to choose from."""
    lines = [f"{number} {sentence}" for number, (sentence, _, _) in enumerate(REVIEW, 1)]
    folded = [textwrap.fill(line, 92, subsequent_indent="  ") for line in (*lines, f"  Flaws: {', '.join(FLAWS)}")]
    return "\n".join(["TokenBlend (invented, and so are its numbers)", *folded])


@exercise("b", minutes=8, level=2, hints=(
    "Go through the sentences one by one. Which of them say what a fair comparison needs, and which admit that it is "
    "missing?",
    "Sentences 1, 4, 6 and 9 acquit the authors of something. The other five each contain one flaw.",
    "Sentences 2, 3, 5, 7 and 8: training, cost, choice, seeds, machines."))
def flaws():
    return {"unequal training", "clustering not counted", "chosen on the test images", "one seed", "different "
                                                                                                     "machines"}


@flaws.check_by
def _(answer):
    got = answer()
    if isinstance(got, str) or not hasattr(got, "__iter__"):
        raise Wrong("A set of names is wanted: `{\"one seed\", ...}`.")
    got = set(got)
    if ... in got:
        raise TypeError("an ellipsis is left")
    for name in got:
        try:
            one_of("flaw", name, FLAWS, "")
        except ValueError as error:
            raise Wrong(str(error)) from None
    for number, (sentence, has, rules_out) in enumerate(REVIEW, 1):
        ensure(rules_out not in got or not rules_out,
               f"You accuse the authors of \"{rules_out}\". Sentence {number} says otherwise: \"{sentence}\"")
        ensure(not has or has in got, f"Read sentence {number} again: \"{sentence}\" Would you let that pass?")
    ensure("too few images" not in got, "50,000 images give an interval of a fifth of a point: few they are not. "
                                          "What "
                                          "they cannot show is how much the next finetuning would differ.")


#: what decides a run here; an experiment varies one of them
FACTORS = ("base model", "method", "init", "saving", "recipe", "images")


@exercise("c", minutes=10, level=3, hints=(
    "The question asks about one factor. It is the `variable`; the other five of FACTORS are `fixed`.",
    "Two groups are compared, each with its own noise, hence the 2: n >= 2 (1.96 + 0.84)^2 (noise / effect)^2, "
    "rounded up.",
    "`seeds=math.ceil(2 * (1.96 + 0.84) ** 2 * (noise / effect) ** 2)`. A stop rule must not look at the result: "
    "\"after the planned seeds of both levels\"."))
def next_experiment(noise, effect):
    return dict(variable="init", levels=["top_k", "random"],
                seeds=math.ceil(2 * (1.96 + 0.84) ** 2 * (noise / effect) ** 2),
                fixed=["base model", "method", "saving", "recipe", "images"],
                stop="after the planned seeds of both levels, whatever they say")


@next_experiment.check_by
def _(answer):
    def plan(noise, effect):
        got = answer(noise, effect)
        ensure(isinstance(got, dict), "A dictionary is wanted: dict(variable=..., levels=..., seeds=..., fixed=..., "
                                      "stop=...).")
        missing = [k for k in ("variable", "levels", "seeds", "fixed", "stop") if k not in got]
        ensure(not missing, f"The plan does not say: {', '.join(missing)}.")
        if any(v is ... for v in got.values()):
            raise TypeError("an ellipsis is left")
        return got

    got = plan(0.55, 1.0)
    variable = got["variable"]
    ensure(isinstance(variable, str), "Vary one thing. If two change at once, a difference has two possible causes, "
                                      "and the "
                                      "experiment cannot tell them apart.")
    try:
        one_of("factor", variable, FACTORS, "")
    except ValueError as error:
        raise Wrong(str(error)) from None
    ensure(variable == "init", f"The question is about the start; your plan varies \"{variable}\".")
    levels, fixed = list(got["levels"]), list(got["fixed"])
    ensure({"top_k", "random"} <= set(levels), "The question names two starts, \"top_k\" and \"random\": both must "
                                               "be among "
                                               "the levels, the second as the control of the first.")
    ensure(variable not in fixed, "The start is varied, so it cannot be fixed as well.")
    left = [f for f in FACTORS if f != variable and f not in fixed]
    ensure(not left, f"Nothing is said of: {', '.join(left)}. What is not fixed may differ between the two sides.")
    for noise, effect in ((0.55, 1.0), (0.55, 0.5), (1.2, 1.0)):
        n, needed = plan(noise, effect)["seeds"], seeds_needed(noise, effect)
        ensure(isinstance(n, numbers.Integral), f"Seeds come in whole numbers; {n!r} came. Round up.")
        half = math.ceil((1.96 + 0.84) ** 2 * (noise / effect) ** 2)
        what = f"for a noise of {noise} and an effect of {effect} points"
        ensure(n != half or half == needed, f"{n} seeds {what}: the 2 is missing. Both sides have noise.")
        ensure(n != needed - 1, f"{n} seeds {what} are one too few: round up, not down.")
        ensure(n >= needed, f"{n} seeds {what} are too few: an effect that is there would often be missed. {needed} "
                            f"are "
                            "needed, by the formula above.")
        ensure(n <= 2 * needed, f"{n} seeds {what} are more than twice what is needed: computing time for nothing.")
    stop = str(got["stop"]).strip().lower()
    ensure(len(stop) >= 8, "When does it end? Without a stop rule one goes on until the result pleases.")
    ensure(not any(word in stop for word in ("signific", "clear", "better", "until it", "works", "convinc")),
           "That rule looks at the result. Whoever stops when a difference shows finds one in the end, in pure noise "
           "as well: "
           "stop at a number that was fixed before.")

