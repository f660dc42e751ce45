"""Notebook 04: two steps, again and again. How an update is written, how it goes wrong, what a start decides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from tokenpool.core import clustering
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.kit.session import shipped_rows
from tokenpool.lab.lessons.lesson_03_reconstruction import CLOUDS, cloud
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.report.claims import Table
from tokenpool.report.figures import INIT_LOOKS
from tokenpool.report.stats import Effect, gap, summary

INITS = tuple(INIT_LOOKS)
#: one colour and one symbol a cluster, so that neither has to be seen to follow the other
CLUSTER_LOOKS = ((BLUE, "circle"), (ORANGE, "square"), (GREEN, "diamond"), (PURPLE, "triangle-up"),
                 (INK, "triangle-down"), (GREY, "pentagon"), (BLUE, "star"), (ORANGE, "hexagon"))


# ---- the two steps, one at a time ----

def six_tokens() -> tuple[Tensor, Tensor]:
    """Six tokens on a line, and a score that rises to the right: (6, 1) and (6,)."""
    return torch.tensor([[0.0], [2.0], [9.0], [10.0], [15.0], [16.0]]), torch.arange(1.0, 7.0) / 21


@dataclass(frozen=True)
class Step:
    """What a clustering holds after one of its half-steps."""

    kind: str                # "start", "assign" or "move"
    labels: Tensor           # (N,) int64; -1 at the start, where nobody is assigned yet
    centres: Tensor          # (K, C)
    error: float             # sum of squared distances to the own centre; NaN at the start
    changed: int             # tokens with another label than a half-step before, or centres at another place


def steps(f: Tensor, init: Tensor, method: str, rounds: int = 8) -> list[Step]:
    """Start, assign, move, assign, move, ...: 1 + 2 * rounds half-steps of the package's own clusterings.

    Args:
        f: (N, C) tokens, all of weight 1. start: (K,) token indices. method: "k_means" or "k_medoids".
    """
    k, x = len(init), clustering.centred(f[None])
    ones = x.new_ones(1, len(f))
    d = clustering.pairwise(x)
    centres = f[init].double()
    out = [Step("start", torch.full((len(f),), -1), centres, float("nan"), 0)]
    for t in range(rounds):
        if method == "k_medoids":
            labels, _ = clustering.k_medoids(d, init[None], ones, t)
            _, medoids = clustering.k_medoids(d, init[None], ones, t + 1)
            new = f[medoids[0]].double()
        else:
            labels, _ = clustering.k_means(x, init[None], ones, t + 1)
            new = clustering.cluster_means(f[None].double(), labels, k, ones)[0]
        moved = int((new - centres).abs().amax(1).gt(1e-6).sum())
        for kind, at, changed in (("assign", centres, int((labels[0] != out[-1].labels).sum())), ("move", new, moved)):
            error = (f.double() - at[labels[0]]).square().sum().item()
            out.append(Step(kind, labels[0], at, error, changed))
        centres = new
    return out


def settled(run: list[Step]) -> int | None:
    """The half-step after which nothing changes any more; None if the run is cut before."""
    if run[-1].changed or run[-2].changed:
        return None
    return max(i for i, step in enumerate(run) if step.changed)


def told(f: Tensor, run: list[Step], until: int) -> list[str]:
    """Half-steps of tokens on a line as text: who belongs together, where the centres are, what is lost."""
    lines = []
    for i, step in enumerate(run[:until + 1]):
        centres = "  ".join(f"{c:g}" for c in step.centres[:, 0].tolist())
        groups = " | ".join(" ".join(f"{v:g}" for v in f[step.labels == j, 0].tolist())
                            for j in range(len(step.centres)))
        what = f"groups {groups}" if step.kind == "assign" else f"centres {centres}"
        lines.append(f"{i} {step.kind:6s} {what:30s}" + ("" if step.kind == "start" else f" error {step.error:g}"))
    return lines


def best_possible(f: Tensor, k: int) -> dict[str, float]:
    """The least error over all ways to share N tokens among k centres, with free centres and with tokens as centres.

    All partitions are tried: for eight tokens at most.
    """
    best = {"k_means": float("inf"), "k_medoids": float("inf")}
    for labels in itertools.product(range(k), repeat=len(f)):
        groups = [f[[i for i, j in enumerate(labels) if j == c]] for c in range(k)]
        if any(len(g) == 0 for g in groups):
            continue
        best["k_means"] = min(best["k_means"], sum((g - g.mean(0)).square().sum().item() for g in groups))
        best["k_medoids"] = min(best["k_medoids"],
                                sum(torch.cdist(g, g).square().sum(1).min().item() for g in groups))
    return best


def rises(seeds: int = 15, k: int = 5) -> tuple[int, int]:
    """Half-steps at which the error rose, and half-steps looked at: all clouds, both methods, random starts."""
    risen = looked = 0
    for name, method, seed in itertools.product(CLOUDS, ("k_means", "k_medoids"), range(seeds)):
        f, _ = cloud(name, seed=seed)
        errors = [s.error for s in steps(f, torch.randperm(len(f), generator=_draw(seed))[:k], method, rounds=6)[1:]]
        risen += sum(after > before + 1e-3 for before, after in itertools.pairwise(errors))
        looked += len(errors) - 1
    return risen, looked


# ---- the bug hunt ----

def broken_medoid_update(d, labels, w, k):
    """Distances d (N, N), labels (N,), weights w (N,) -> the new medoid of each of the k clusters, (k,)."""
    medoids = []
    for j in range(k):
        cost = (w[:, None] * d).sum(1)          # what is lost with each token as the medoid
        cost[labels != j] = torch.inf           # only a member may speak for its cluster
        medoids.append(cost.argmin())
    return torch.stack(medoids)


def cost_of(d: Tensor, labels: Tensor, w: Tensor, medoids: Tensor) -> Tensor:
    """What each cluster loses with its medoid: sum over its members of w * distance. (k,)"""
    onehot = labels[:, None] == torch.arange(len(medoids))
    return (onehot * (w[:, None] * d[:, medoids])).sum(0)


def least_cost(d: Tensor, labels: Tensor, w: Tensor, k: int) -> Tensor:
    """The least that each cluster can lose, every member tried, one number at a time. (k,)"""
    lost = []
    for j in range(k):
        inside = [i for i, label in enumerate(labels.tolist()) if label == j]
        lost.append(min(sum(float(w[n]) * float(d[n, i]) for n in inside) for i in inside))
    return torch.tensor(lost)


def wrong_updates(tokens: Tensor, weights: Tensor, k: int) -> pd.DataFrame:
    """`broken_medoid_update` on the first clusters from a random start: one row per cluster.

    Args:
        tokens: (images, N, C). weights: (images, N).

    Returns:
        columns size, inside (is the new medoid a member?), wrong (is there a better member?), cost, least.
    """
    d = clustering.pairwise(clustering.centred(tokens))
    starts = random_starts(len(tokens), tokens.shape[1], k, seed=0)
    labels, _ = clustering.k_medoids(d, starts, torch.ones_like(weights), 0)
    rows = []
    for one, label, w in zip(d, labels, weights, strict=True):
        medoids = broken_medoid_update(one, label, w, k)
        cost, least = cost_of(one, label, w, medoids), least_cost(one, label, w, k)
        inside = label[medoids] == torch.arange(k)
        wrong = cost > least * (1 + 1e-4) + 1e-9
        rows += zip(label.bincount(minlength=k).tolist(), inside.tolist(), wrong.tolist(), cost.tolist(),
                    least.tolist(), strict=True)
    return pd.DataFrame(rows, columns=["size", "inside", "wrong", "cost", "least"])


def run_with(update: Callable[..., Tensor], d: Tensor, init: Tensor, w: Tensor, rounds: int) -> list[float]:
    """K-Medoids of one set with any update, (N, N) distances: the weighted error after every half-step."""
    k, medoids, errors = len(init), init, []
    for _ in range(rounds):
        labels = d[:, medoids].argmin(1)
        labels[medoids] = torch.arange(k)       # a medoid speaks for itself, so that no cluster is empty
        errors.append(cost_of(d, labels, w, medoids).sum().item())
        medoids = update(d, labels, w, k)
        errors.append(cost_of(d, labels, w, medoids).sum().item())
    return errors


def symptom(tokens: Tensor, score: Tensor, k: int, rounds: int = 5) -> dict[str, np.ndarray]:
    """Error by half-step as a share of that of the first assignment, mean over images; broken and right update,
    equal weights and the score as weight: name -> (2 * rounds,)."""
    d = clustering.pairwise(clustering.centred(tokens))
    starts = random_starts(len(tokens), tokens.shape[1], k, seed=0)
    found = {}
    for name, update in (("right", medoid_update.solution), ("broken", broken_medoid_update)):
        for kind, weights in (("equal weights", torch.ones_like(score)), ("score as weight", score)):
            errors = np.array([run_with(update, one, s, w, rounds)
                               for one, s, w in zip(d, starts, weights, strict=True)])
            found[f"{name}, {kind}"] = (errors / errors[:, :1]).mean(0)
    return found


# ---- starts at full size ----

def random_starts(images: int, n: int, k: int, seed: int) -> Tensor:
    """k different tokens by chance, anew for every image: (images, k). The package draws one set of places for a
    whole batch; here images must be independent, because intervals over images are taken."""
    return torch.rand(images, n, generator=_draw(seed)).argsort(1)[:, :k]


def make_start(name: str, d: Tensor, score: Tensor, k: int, seed: int) -> Tensor:
    """The k tokens that a clustering begins with: distances (B, N, N), score (B, N) -> (B, k)."""
    images, n, _ = d.shape
    if name == "top_k":
        return clustering.top_k(score, k)
    if name == "random":
        return random_starts(images, n, k, seed)
    if name == "farthest_first":
        return clustering.farthest_first(d, k)
    # numbers of shape (step, image, 1): every image draws for itself, as in `random_starts`
    noise = torch.rand(n, images, 1, generator=_draw(seed))
    return clustering.k_means_plus_plus(d, k, torch.ones_like(score), noise)


def error_path(tokens: Tensor, score: Tensor, k: int, init: str, rounds: int = 5, weighted: bool = False,
               seeds: int = 1) -> Tensor:
    """What K-Medoids loses after 0, 1, ..., `rounds` rounds, as a share of the variance: (seeds, rounds + 1, images).

    The error is the one that the rounds lower: the stand-ins are the medoids, and the weights, also of the variance,
    are those of the update.

    Args:
        tokens: (images, N, C). score: (images, N), for the top-K start and, if `weighted`, as weight.
    """
    x = clustering.centred(tokens)
    d = clustering.pairwise(x)
    w = score if weighted else torch.ones_like(score)
    middle = (w[..., None] * x).sum(1, keepdim=True) / w.sum(1)[:, None, None]
    variance = (w * (x - middle).square().sum(2)).sum(1)
    out = []
    for seed in range(seeds):
        medoids, path = make_start(init, d, score, k, seed), []
        for t in range(rounds + 1):
            labels, medoids = clustering.k_medoids(d, medoids, w, min(t, 1))
            own = d.gather(2, medoids.gather(1, labels)[..., None])[..., 0]
            path.append((w * own).sum(1) / variance)
        out.append(torch.stack(path))
    return torch.stack(out)


def seeds_of(init: str, many: int) -> int:
    """How many seeds are worth a run: one where there is no chance."""
    return many if init in ("random", "k_means_plus_plus") else 1


def final_by_start(tokens: Tensor, score: Tensor, k: int, seeds: int) -> dict[str, Tensor]:
    """What every start has lost after five rounds: init -> (seeds, images)."""
    return {s: error_path(tokens, score, k, s, seeds=seeds_of(s, seeds))[:, -1] for s in INITS}


def error_by_round(tokens: Tensor, score: Tensor, k: int, rounds: int = 6, seeds: int = 5) -> pd.DataFrame:
    """Columns init, round, error, half: mean over seeds and images, with its 95 % interval over images."""
    rows = []
    for init in INITS:
        path = error_path(tokens, score, k, init, rounds, seeds=seeds_of(init, seeds)).mean(0)
        rows += [(init, t, e.mean().item(), 1.96 * e.std().item() / len(e) ** 0.5) for t, e in enumerate(path)]
    return pd.DataFrame(rows, columns=["init", "round", "error", "half"])


def still_moving(tokens: Tensor, score: Tensor, k: int, init: str, rounds: int = 5) -> float:
    """Share of images that a further round would still change."""
    d = clustering.pairwise(clustering.centred(tokens))
    begin, ones = make_start(init, d, score, k, 0), torch.ones_like(score)
    before, after = (clustering.k_medoids(d, begin, ones, t)[1] for t in (rounds, rounds + 1))
    return (before != after).any(1).double().mean().item()


def intervals(errors: dict[str, Tensor], against: str = "random") -> pd.DataFrame:
    """Difference of each start's error from that of one of them, in % of the latter, with two 95 % half widths.

    Args:
        errors: init -> (images,), the same images for all.

    Returns:
        columns init, difference, paired, unpaired.
    """
    base = errors[against]
    rows = []
    for init, e in errors.items():
        if init == against:
            continue
        mean, half = paired_interval.solution(e, base)
        apart = 1.96 * ((e.var() + base.var()) / len(e)) ** 0.5
        rows.append((init, *(100 * float(v / base.mean()) for v in (mean, half, apart))))
    return pd.DataFrame(rows, columns=["init", "difference", "paired", "unpaired"])


def gap_by_block(layers: list[tuple[Tensor, Tensor]], k: int, seeds: int = 3) -> pd.DataFrame:
    """Error from the top-K start above that from a random one, in %, block by block, for both losses.

    Args:
        layers: of every block its tokens (images, N, C) and score (images, N).

    Returns:
        columns block (from 1), loss, difference, half (95 %, paired over images), held (share of all score that
        the k tokens with most of it hold).
    """
    rows = []
    for block, (tokens, score) in enumerate(layers, 1):
        held = (score.topk(k).values.sum(1) / score.sum(1)).mean().item()
        for weighted in (False, True):
            errors = {s: error_path(tokens, score, k, s, weighted=weighted, seeds=seeds_of(s, seeds))[:, -1].mean(0)
                      for s in ("top_k", "random")}
            line = intervals(errors).iloc[0]
            rows.append((block, "score as weight" if weighted else "equal weights", line["difference"],
                         line["paired"], held))
    return pd.DataFrame(rows, columns=["block", "loss", "difference", "half", "held"])


def group_sizes(tokens: Tensor, score: Tensor, k: int) -> pd.DataFrame:
    """Groups of WK-Medoids after five rounds, mean over images: columns init, largest (tokens of the largest group),
    alone (groups of one token)."""
    d = clustering.pairwise(clustering.centred(tokens))
    rows = []
    for init in ("top_k", "random", "farthest_first"):
        labels, _ = clustering.k_medoids(d, make_start(init, d, score, k, 0), score, 5)
        counts = clustering.members(labels, k).sum(1)
        rows.append((init, counts.amax(1).double().mean().item(), (counts == 1).sum(1).double().mean().item()))
    return pd.DataFrame(rows, columns=["init", "largest", "alone"])


# ---- recorded accuracies ----

PRESETS = {"pebbles": "made-up images (pebbles)", "imagenet50_cpu": "photographs (50 classes)"}


@functools.lru_cache(maxsize=2)
def recorded(preset: str) -> pd.DataFrame:
    """The recorded rows of WK-Medoids and its starts: one model, geometric schedules, untouched and finetuned."""
    rows = shipped_rows(f"{preset}-runs")
    table = Table(rows, preset)
    return rows[(rows["preset"] == preset) & (rows["method"] == "wk_medoids") & (rows["model"] == table.first)
                & (rows["qk"] == "") & (rows["schedule_name"] == "") & rows["init"].isin(INITS)]


def accuracy(preset: str, saving: float = 0.42) -> pd.DataFrame:
    """Columns stage, init, counts, error, top1, low, high (95 %), seeds: recorded, mean over seeds."""
    rows = recorded(preset)
    mine = rows[np.isclose(rows["saving"], saving)]
    noise = Table(shipped_rows(f"{preset}-runs"), preset).noise
    return summary(mine, ["stage", "init", "counts"], noise)[
        ["stage", "init", "counts", "error", "top1", "low", "high", "seeds"]]


def with_counts(init: str, saving: float = 0.42) -> float:
    """Top-1 of the untouched model with carried counts, WK-Medoids on pebbles, mean over the recorded seeds."""
    rows = shipped_rows("pebbles")
    mine = rows[(rows["method"] == "wk_medoids") & (rows["init"] == init) & rows["counts"]
                & np.isclose(rows["saving"], saving)]
    return float(mine["top1"].mean())


def robustness(preset: str) -> Effect:
    """Fig. 6 in one number: finetuned, top-1 of the random start above the top-K start, mean over all budgets."""
    table = Table(shipped_rows(f"{preset}-runs"), preset)
    found = table.over_budgets(dict(method="wk_medoids", init="random"), dict(method="wk_medoids", init="top_k"))
    assert found is not None
    return found


def accuracy_gap(preset: str, a: str, b: str, stage: str, saving: float = 0.42) -> Effect:
    """Top-1 of start a above start b, on the same images, counts not carried: difference and 95 % half width."""
    rows = recorded(preset)
    mine = rows[np.isclose(rows["saving"], saving) & (rows["stage"] == stage) & ~rows["counts"]]
    # what one finetuning differs from the next is estimated from all of the preset's settings
    noise = Table(shipped_rows(f"{preset}-runs"), preset).noise
    return gap(mine[mine["init"] == a], mine[mine["init"] == b], noise if stage == "finetuned" else 0.0)


# ---- figures ----

def steps_figure(f: Tensor, runs: dict[str, list[Step]], until: int) -> go.Figure:
    """Tokens on a line, a row per half-step, a panel per method: groups by colour and symbol, centres as crosses."""
    fig = make_subplots(cols=len(runs), rows=1, shared_yaxes=True, subplot_titles=list(runs), horizontal_spacing=0.05)
    for column, run in enumerate(runs.values(), 1):
        shown = run[:until + 1]
        for j in range(len(run[0].centres)):
            colour, symbol = CLUSTER_LOOKS[j]
            at = [(v, row) for row, step in enumerate(shown) for v in f[step.labels == j, 0].tolist()]
            fig.add_scatter(x=[a for a, _ in at], y=[r for _, r in at], mode="markers", name=f"group {j + 1}",
                            marker=dict(color=colour, symbol=symbol, size=10), showlegend=column == 1,
                            col=column, row=1)
        fig.add_scatter(x=f[:, 0].tolist(), y=[0] * len(f), mode="markers", name="token, not yet in a group",
                        showlegend=column == 1, marker=dict(color=GREY, symbol="circle-open", size=10),
                        col=column, row=1)
        centres = [(round(c, 2), row) for row, step in enumerate(shown) for c in step.centres[:, 0].tolist()]
        fig.add_scatter(x=[c for c, _ in centres], y=[r + 0.3 for _, r in centres], mode="markers", name="centre",
                        showlegend=column == 1, marker=dict(color=INK, symbol="x", size=9), col=column, row=1)
        for row, step in enumerate(shown[1:], 1):
            fig.add_annotation(x=21.5, y=row, text=f"{step.error:g}", showarrow=False, font_size=13, col=column, row=1)
        fig.add_annotation(x=21.5, y=0, text="error", showarrow=False, font_size=13, col=column, row=1)
    rows = list(range(until + 1))
    names = [f"{i} {step.kind}" for i, step in enumerate(next(iter(runs.values()))[:until + 1])]
    fig.update_yaxes(range=[until + 0.7, -0.6], tickvals=rows, ticktext=names)
    fig.update_xaxes(title="position of the token", range=[-1.5, 24], tickvals=[0, 5, 10, 15])
    return fig.update_layout(title="The same six tokens, the same start: where does each method stop?", height=440,
                             margin_t=96, legend=dict(orientation="h", y=-0.2))


def symptom_figure(found: dict[str, np.ndarray]) -> go.Figure:
    """Error by half-step, right and broken update."""
    looks = {"right": (GREEN, "triangle-up"), "broken": (ORANGE, "square")}
    fig = go.Figure()
    for name, errors in found.items():
        colour, symbol = looks[name.split(",")[0]]
        weighted = "score" in name
        fig.add_scatter(x=list(range(1, len(errors) + 1)), y=(100 * errors).round(1).tolist(), name=name,
                        mode="lines+markers", line=dict(color=colour, dash="dash" if weighted else "solid"),
                        marker=dict(symbol=f"{symbol}-open" if weighted else symbol, size=9))
    fig.update_xaxes(title="half-step (odd: assign, even: move)", dtick=1)
    fig.update_yaxes(title="error, % of the first assignment's")
    return fig.update_layout(title="Does the error ever rise?", legend=dict(orientation="h", y=-0.25))


def round_figure(table: pd.DataFrame) -> go.Figure:
    """Columns init, round, error, half: a curve per start."""
    fig = go.Figure()
    for init, part in table.groupby("init", sort=False):
        colour, symbol, dash = INIT_LOOKS[init]
        fig.add_scatter(x=part["round"].tolist(), y=part["error"].round(4).tolist(), name=f"{init} start",
                        mode="lines+markers", line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9),
                        error_y=dict(type="data", array=part["half"].round(4).tolist(), thickness=1))
    fig.update_xaxes(title="rounds of assign and move", dtick=1)
    fig.update_yaxes(title="share of the variance lost", rangemode="tozero")
    return fig.update_layout(title="Do the rounds make up for the start?", legend=dict(orientation="h", y=-0.25))


def strip_figure(finals: dict[str, list[float]], title: str, up: str) -> go.Figure:
    """init -> final errors: one column of points a start, spread sideways so that none hides another."""
    fig = go.Figure()
    for column, (init, errors) in enumerate(finals.items()):
        colour, symbol, _ = INIT_LOOKS[init]
        many = len(errors) > 1
        fig.add_scatter(x=_spread(column, len(errors)), y=[round(e, 4) for e in errors], mode="markers",
                        name=f"{init} start", marker=dict(color=colour, symbol=symbol, size=7 if many else 12,
                                                           opacity=0.7 if many else 1.0))
    fig.update_xaxes(tickvals=list(range(len(finals))), ticktext=list(finals), title="initialisation")
    fig.update_yaxes(title=up)
    return fig.update_layout(title=title, showlegend=False)


def block_figure(table: pd.DataFrame) -> go.Figure:
    """Columns block, loss, difference, half: how much more the top-K start loses, by depth."""
    fig = go.Figure()
    for loss, colour, symbol, dash in (("equal weights", GREEN, "triangle-up-open", "dash"),
                                       ("score as weight", GREEN, "triangle-up", "solid")):
        part = table[table["loss"] == loss]
        fig.add_scatter(x=part["block"].tolist(), y=part["difference"].round(1).tolist(), name=f"loss: {loss}",
                        mode="lines+markers", line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=10),
                        error_y=dict(type="data", array=part["half"].round(1).tolist(), thickness=1))
    fig.add_hline(y=0, line=dict(color=INK, width=1))
    fig.update_xaxes(title="tokens after block", dtick=1)
    fig.update_yaxes(title="top-K above random, %")
    return fig.update_layout(title="Which start loses less? It depends on what a loss is",
                             legend=dict(orientation="h", y=-0.25))


def accuracy_figure(tables: dict[str, pd.DataFrame]) -> go.Figure:
    """Recorded top-1 against recorded error, a point per start: untouched (open, dotted) and finetuned (full)."""
    fig = make_subplots(cols=len(tables), rows=1, subplot_titles=[PRESETS[p] for p in tables], horizontal_spacing=0.1)
    for column, table in enumerate(tables.values(), 1):
        for stage, dash, mark in (("untouched", "dot", "-open"), ("finetuned", "solid", "")):
            part = table[(table["stage"] == stage) & ~table["counts"]].sort_values("error")
            fig.add_scatter(x=part["error"].round(4).tolist(), y=(100 * part["top1"]).round(2).tolist(), mode="lines",
                            line=dict(color=GREY, dash=dash), name=stage, showlegend=column == 1, col=column, row=1)
            for _, point in part.iterrows():
                colour, symbol, _ = INIT_LOOKS[point["init"]]
                fig.add_scatter(
                    x=[round(point["error"], 4)], y=[round(100 * point["top1"], 2)], mode="markers",
                    name=f"{point['init']} start", showlegend=column == 1 and stage == "finetuned",
                    marker=dict(color=colour, symbol=symbol + mark, size=11),
                    error_y=dict(type="data", symmetric=False, thickness=1,
                                 array=[round(100 * (point["high"] - point["top1"]), 2)],
                                 arrayminus=[round(100 * (point["top1"] - point["low"]), 2)]), col=column, row=1)
        fig.update_xaxes(title="share of the variance lost", col=column, row=1)
    fig.update_yaxes(title="top-1, %", col=1, row=1)
    return fig.update_layout(title="Does accuracy follow the error? 42 % fewer computations", height=440, margin_t=96,
                             legend=dict(orientation="h", y=-0.25))


def _spread(column: int, count: int) -> list[float]:
    """Places about a column, the same ones every time."""
    if count == 1:
        return [float(column)]
    return [round(column + 0.32 * (2 * ((i * 0.618034) % 1) - 1), 3) for i in range(count)]


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the explorer: compute, draw, say ----

SEEDS = 50
_LAST = 20              # rounds that count as "left alone": all runs on the clouds have settled by then


@dataclass(frozen=True)
class Scene:
    cloud: str
    method: str
    init: str
    seed: int
    at: int                         # half-step shown
    tokens: np.ndarray              # (40, 2)
    run: tuple[Step, ...]
    finals: dict[str, list[float]]  # init -> final errors, by seed
    settled: int | None             # half-step

    @property
    def best(self) -> float:
        """The lowest final error of all starts and seeds."""
        return min(min(errors) for errors in self.finals.values())

    @property
    def final(self) -> float:
        mine = self.finals[self.init]
        return mine[self.seed if len(mine) > 1 else 0]


@functools.lru_cache(maxsize=128)
def final_errors(cloud_name: str, k: int, method: str) -> dict[str, list[float]]:
    """Where every start ends when left alone: init -> errors, one for each seed where there is chance."""
    f, _ = cloud(cloud_name)
    out = {}
    for init in INITS:
        begin = torch.cat([cloud_start(cloud_name, k, init, seed) for seed in range(seeds_of(init, SEEDS))])
        x = clustering.centred(f[None]).expand(len(begin), -1, -1)
        ones = x.new_ones(x.shape[:2])
        if method == "k_medoids":
            labels, medoids = clustering.k_medoids(clustering.pairwise(x), begin, ones, _LAST)
            centres = clustering.take(x, medoids)
        else:
            labels, _ = clustering.k_means(x, begin, ones, _LAST)
            centres = clustering.cluster_means(x, labels, k, ones)
        out[init] = (x - clustering.take(centres, labels)).square().sum((1, 2)).tolist()
    return out


def cloud_start(cloud_name: str, k: int, init: str, seed: int) -> Tensor:
    """The k tokens that `tp.pool_tokens` starts from with this seed, (1, k)."""
    f, score = cloud(cloud_name)
    d = clustering.pairwise(clustering.centred(f[None]))
    noise = torch.rand(len(f), generator=_draw(seed), dtype=torch.float64).to(d)
    if init == "random":
        return clustering.random_k(noise, k, 1)
    if init == "k_means_plus_plus":
        return clustering.k_means_plus_plus(d, k, torch.ones_like(d[:, 0]), noise)
    return make_start(init, d, score[None], k, seed)


@functools.lru_cache(maxsize=512)
def _run(cloud_name: str, k: int, method: str, init: str, seed: int) -> tuple[Step, ...]:
    f, _ = cloud(cloud_name)
    return tuple(steps(f, cloud_start(cloud_name, k, init, seed)[0], method))


@functools.lru_cache(maxsize=512)
def scene(cloud_name: str, method: str, k: int, init: str, seed: int, at: int) -> Scene:
    """One half-step of one run, and where all runs end."""
    f, _ = cloud(cloud_name)
    run = _run(cloud_name, k, method, init, seed if seeds_of(init, SEEDS) > 1 else 0)
    return Scene(cloud_name, method, init, seed, at, f.numpy(), run, final_errors(cloud_name, k, method),
                 settled(list(run)))


def against_chance() -> pd.DataFrame:
    """K-Medoids on every cloud and every K of the explorer: how often a start ends no higher than the median random
    one, and how far above the best of all it ends. Columns init, no_higher, of, above (mean, in %)."""
    rows = []
    for init in ("top_k", "farthest_first", "k_means_plus_plus"):
        finals = [final_errors(name, k, "k_medoids") for name in CLOUDS for k in range(2, 9)]
        mine = [float(np.median(e[init])) for e in finals]
        best = [min(min(v) for v in e.values()) for e in finals]
        rows.append((init, sum(m <= np.median(e["random"]) + 1e-3 for m, e in zip(mine, finals, strict=True)),
                     len(finals), 100 * float(np.mean([m / b - 1 for m, b in zip(mine, best, strict=True)]))))
    return pd.DataFrame(rows, columns=["init", "no_higher", "of", "above"])


def scene_figure(c: Scene) -> go.Figure:
    """Left the tokens with their groups and centres, right where all starts end."""
    now, before = c.run[c.at], c.run[max(c.at - 1, 0)]
    centres, labels = now.centres.numpy().round(3), now.labels.tolist()
    lines = np.full((3 * len(c.tokens), 2), np.nan)
    if now.kind != "start":
        lines[0::3], lines[1::3] = c.tokens, centres[labels]
    colours = [CLUSTER_LOOKS[j][0] if j >= 0 else GREY for j in labels]
    symbols = [CLUSTER_LOOKS[j][1] if j >= 0 else "circle-open" for j in labels]
    fig = make_subplots(cols=2, rows=1, column_widths=[0.62, 0.38], horizontal_spacing=0.12)
    fig.add_scatter(x=lines[:, 0], y=lines[:, 1], mode="lines", line=dict(color=GREY, width=1), name="to its centre",
                    hoverinfo="skip", showlegend=False, col=1, row=1)
    fig.add_scatter(x=c.tokens[:, 0].round(3), y=c.tokens[:, 1].round(3), mode="markers",
                    name="token (colour and symbol: its group)", col=1, row=1,
                    marker=dict(color=colours, symbol=symbols, size=9))
    was = before.centres.numpy().round(3)
    fig.add_scatter(x=was[:, 0], y=was[:, 1], mode="markers", name="centre, a half-step before", col=1, row=1,
                    marker=dict(color=INK, symbol="circle-open", size=15))
    fig.add_scatter(x=centres[:, 0], y=centres[:, 1], mode="markers", name="centre", col=1, row=1,
                    marker=dict(color=INK, symbol="x", size=12, line=dict(color="white", width=1)))
    best = c.best
    for column, (init, errors) in enumerate(c.finals.items()):
        colour, symbol, _ = INIT_LOOKS[init]
        many = len(errors) > 1
        fig.add_scatter(x=_spread(column, len(errors)), y=[round(e / best, 3) for e in errors], mode="markers",
                        name=init, showlegend=False, col=2, row=1,
                        marker=dict(color=colour, symbol=symbol, size=6 if many else 11, opacity=0.6 if many else 1.0))
    column, mine = INITS.index(c.init), c.finals[c.init]
    place = _spread(column, len(mine))[c.seed if len(mine) > 1 else 0]
    fig.add_scatter(x=[place], y=[round(c.final / best, 3)], mode="markers", name="this run's end", col=2, row=1,
                    marker=dict(color=PURPLE, symbol="circle-open", size=17, line=dict(width=3)))
    fig.update_xaxes(title="first coordinate", range=[-3.6, 3.8], constrain="domain", col=1, row=1)
    fig.update_yaxes(title="second coordinate", range=[-2.9, 4.3], scaleanchor="x", col=1, row=1)
    fig.update_xaxes(title="initialisation", tickvals=[0, 1, 2, 3], range=[-0.5, 3.5], tickangle=0,
                     ticktext=["top_k", "random", "farthest<br>_first", "k_means<br>_plus_plus"], tickfont_size=11,
                     col=2, row=1)
    # a logarithmic axis: a few random starts end ten times as high, and the rest should not look alike for that
    fig.update_yaxes(title="final error, times the best of all", type="log", col=2, row=1,
                     tickvals=[1, 1.2, 1.5, 2, 3, 5, 10, 20], ticktext=["1", "1.2", "1.5", "2", "3", "5", "10", "20"])
    what = "" if now.kind == "start" else f": error {now.error:.1f}"
    return fig.update_layout(title=f"{c.method}, {c.init} start, half-step {c.at} ({now.kind}){what}", height=470,
                             legend=dict(orientation="h", y=-0.24))


def scene_words(c: Scene) -> str:
    now, k = c.run[c.at], len(c.run[0].centres)
    if now.kind == "start":
        first = f"Half-step 0: {k} tokens are centres ({_WHY[c.init]}). Nobody belongs to them yet."
    elif c.at == 1:
        first = f"Half-step 1, assign: every token goes to its nearest centre. Error {now.error:.1f}."
    elif not now.changed:
        first = f"Half-step {c.at}, {now.kind}: nothing changes. Error {now.error:.1f}."
    else:
        was = c.run[c.at - 1].error
        if now.kind == "assign":
            what = f"tokens that change over to a nearer centre: {now.changed} of {len(c.tokens)}"
        else:
            place = "mean of their members" if c.method == "k_means" else "member that loses least for its group"
            what = f"centres that go to the {place}: {now.changed} of {k}"
        first = f"Half-step {c.at}, {now.kind}: {what}. Error {was:.1f} → {now.error:.1f}."
    above = c.final / c.best - 1
    near = "that is the best of all starts and seeds" if above < 0.005 else \
        f"{above:.0%} above the best of all starts and seeds ({c.best:.1f})"
    why = "" if above < 0.005 else \
        " No half-step raises the error, so a run ends where it cannot go down, not where it is lowest."
    beaten = sum(e < c.final - 1e-3 for e in c.finals["random"])
    stops = "moves on beyond the last half-step here" if c.settled is None else f"settles after half-step {c.settled}"
    return (f"{first} Left alone, this run {stops} and ends at {c.final:.1f}: {near}.{why} {beaten} of {SEEDS} random "
            "starts end lower.")


_WHY = {"top_k": "those with the highest score", "random": "drawn by chance",
        "farthest_first": "each the farthest from those before", "k_means_plus_plus": "by chance, far ones likelier"}


def scene_table(c: Scene) -> pd.DataFrame:
    return pd.DataFrame([(i, s.kind, s.changed, "" if s.kind == "start" else f"{s.error:.2f}")
                         for i, s in enumerate(c.run)],
                        columns=["half-step", "kind", "tokens or centres changed", "error"])


def explore() -> Explorer:
    return Explorer({"cloud_name": Choice("Token cloud", CLOUDS, CLOUDS[1]),
                     "method": Choice("Method", ("k_medoids", "k_means")),
                     "k": Number("Centres, K", 6, 2, 8), "init": Choice("Initialisation", INITS),
                     "seed": Number("Seed, where there is chance", 0, 0, SEEDS - 1),
                     "at": Number("Half-step (odd: assign, even: move)", 8, 0, 16)},
                    scene, scene_figure, scene_words, scene_table, height=470,
                    measure=lambda c: ("error in the end", c.final, "{:.1f}"))


# ---- predictions ----

PREDICTIONS = (
    Prediction("a", "Real tokens, 16 of 64 kept, K-Medoids, five rounds. Once it starts from the K tokens with the "
                    "highest score, once from K tokens by chance. How far apart are the two errors afterwards, on "
                    "average?",
               ("hardly, less than 3 %: five rounds forget the start", "3 to 25 %, top-K has the lower error",
                "3 to 25 %, top-K has the higher error", "more than 25 %"),
               answer=lambda percent: 0 if abs(percent) < 3 else 3 if abs(percent) > 25 else 2 if percent > 0 else 1,
               why={0: "The rounds do converge within five. But each move looks at one group only, so they converge to "
                       "*whichever local optimum the start lies next to*.",
                    1: "High scores sound like a head start. But tokens with high scores lie close together (notebook "
                       "03), and a centre has no reason to leave a crowd that it shares with others.",
                    3: "The rounds do repair much of a bad start, most of it in the first one."},
               tell=lambda percent: f"the top-K start ends {percent:+.1f} % above the random start"),
    Prediction("b", "One image, one seed: a random start against `farthest_first`, which has no chance in it. In how "
                    "many of all such pairs does *chance* end at the lower error?",
               ("in about half: starts are a lottery", "in about a quarter", "in fewer than one in ten"),
               answer=lambda share: 0 if share > 0.35 else 1 if share > 0.1 else 2,
               why={0: "Seeds do scatter. But the scatter must be compared with the distance of the two means, and "
                       "that is larger.",
                    1: "A fair guess where few tokens are kept. With many places to give away, chance gives some "
                       "groups two and others none; farthest-first does not."},
               tell=lambda share: f"chance wins {share:.1%} of the pairs"),
    Prediction("c", "A trained model, pooled to 42 % fewer computations and *not* finetuned. Of the three starts "
                    "`farthest_first` has the lowest error. Which start has the highest accuracy?",
               ("farthest_first: accuracy follows the error", "random", "top_k, the paper's"),
               answer=lambda best: ("farthest_first", "random", "top_k").index(best),
               why={0: "The error bounds the damage to the *tokens* (notebook 03). It does not see that one token now "
                       "speaks for many and another for one, and that attention counts both once.",
                    2: "Top-K keeps what was attended to. It has the highest error here *and* the lowest accuracy."},
               tell=lambda best: f"highest accuracy without finetuning: {best}"),
)


# ---- exercises ----

@exercise("a", minutes=8, level=2, hints=(
    "For one cluster: `inside = labels == j`. Rows of `d` are candidates, columns are the tokens that would be served.",
    "The cost of every candidate is a weighted sum over the *members*: `d[:, inside] * w[inside]`, summed over axis 1.",
    "Candidates outside the cluster get `cost[~inside] = torch.inf`; then `cost.argmin()`. Collect the k answers with "
    "`torch.stack`."))
def medoid_update(d, labels, w, k):
    medoids = []
    for j in range(k):
        inside = labels == j
        cost = (d[:, inside] * w[inside]).sum(1)        # a column per member served, weighted by its weight
        cost[~inside] = torch.inf                       # a row per candidate: members only
        medoids.append(cost.argmin())
    return torch.stack(medoids)


def _on_line(*positions: float) -> Tensor:
    x = torch.tensor(positions)
    return (x[:, None] - x[None]).square()


@medoid_update.check_by
def _(answer):
    def ask(d: Tensor, labels: list[int], w: list[float], k: int) -> Tensor:
        got = torch.as_tensor(answer(d.clone(), torch.tensor(labels), torch.tensor(w), k))
        ensure(not got.is_floating_point() and got.shape == (k,),
               f"One token *index* per cluster is wanted, an integer tensor of shape ({k},); "
               f"{got.dtype} of shape {tuple(got.shape)} came.")
        ensure((got >= 0).all() and (got < len(d)).all(), "An index points at no token.")
        return got

    got = ask(_on_line(5.0, 0.0, 1.0, 2.0), [0, 1, 1, 1], [1.0] * 4, 2)
    ensure(got.tolist() != [0, 1], "Tokens at 5 | 0, 1, 2: you answer the place *within* the cluster. Wanted is the "
                                   "index among all tokens; here [0, 2].")
    got = ask(_on_line(0.0, 10.0, 5.0), [0, 0, 1], [1.0] * 3, 2)
    ensure(got[0] != 2, "Tokens at 0 and 10 are one cluster, the one at 5 another: your medoid of the first cluster is "
                        "the token at 5, which is no member. Candidates must be members.")
    f, _ = six_tokens()
    d = _on_line(*f[:, 0].tolist())
    got = ask(d, [0, 0, 0, 0, 1, 2], [1.0] * 6, 3)
    ensure(got[0] != 2, "Members at 0, 2, 9, 10, others at 15 and 16: you choose 9, the token nearest to *all "
                        "six*. The sum must run over the members only.")
    expect(got, [1, 4, 5], "Members at 0, 2, 9, 10: costs 185, 117, 131, 165, so the token at 2 is the medoid.")
    got = ask(_on_line(0.0, 1.0, 2.0), [0, 0, 0], [1.0, 10.0, 1.0], 1)
    ensure(got[0] == 1, "Members at 0, 1, 2, the middle one of weight 10: you choose an end, so that the heavy one is "
                        "moved. Whose weight do you multiply by, the candidate's or the served member's?")
    got = ask(_on_line(0.0, 1.0, 2.0), [0, 0, 0], [1.0, 1.0, 10.0], 1)
    ensure(got[0] == 2, "Members at 0, 1, 2, the last of weight 10: costs 41, 11, 5. Do the weights enter your sum?")
    for seed in range(5):
        draw = _draw(seed)
        x = torch.randn(20, 3, generator=draw)
        d = torch.cdist(x, x).square()
        labels, w = torch.arange(20) % 4, torch.rand(20, generator=draw) * (torch.arange(20) != 7)
        got = ask(d, labels.tolist(), w.tolist(), 4)
        ensure((labels[got] == torch.arange(4)).all(), "Medoid j must be a member of cluster j, in this order. (One "
                                                       "token weighs 0: does 0 * infinity stand somewhere?)")
        expect(cost_of(d, labels, w, got), least_cost(d, labels, w, 4),
               "Twenty random tokens, random weights, four clusters: what each cluster loses with your medoid.")


@exercise("b", minutes=8, level=3, hints=(
    "First input: with equal weights, a cluster of two always ties, so it must have three members. And there must be "
    "someone outside for the sum over *all* to go wrong.",
    "Put the outsider far to one side: it pulls the broken choice towards itself.",
    "Second input: with one cluster, all tokens are members and the sum is right. Two tokens with different weights "
    "are enough: who should be the medoid, and who is chosen?"))
def expose():
    far = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([0, 0, 0, 1]), torch.ones(4)
    heavy = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]), torch.tensor([1.0, 2.0])
    return far, heavy


@expose.check_by
def _(answer):
    returned = answer()
    ensure(isinstance(returned, tuple | list) and len(returned) == 2
           and all(isinstance(one, tuple | list) and len(one) == 3 for one in returned),
           "Return two inputs, each of three things: tokens (N, C), labels (N,), weights (N,).")
    for name, most, one in zip(("first", "second"), (4, 2), returned, strict=True):
        f, labels, w = (torch.as_tensor(t) for t in one)
        f, w = f.float(), w.float()
        ensure(f.ndim == 2 and labels.shape == w.shape == f.shape[:1],
               f"The {name} input needs tokens (N, C), labels (N,) and weights (N,); {tuple(f.shape)}, "
               f"{tuple(labels.shape)} and {tuple(w.shape)} came.")
        ensure(not labels.is_floating_point() and labels.min() >= 0
               and len(labels.unique()) == int(labels.max()) + 1,
               f"The labels of the {name} input must be integers 0, 1, ..., without a gap.")
        ensure((w >= 0).all() and (w > 0).any(), f"The weights of the {name} input must not be negative, nor all zero.")
        k = int(labels.max()) + 1
        if name == "first":
            ensure((w == w[0]).all(), "The first input is for the sum, so its weights must be equal: else nobody "
                                      "knows which of the two mistakes was seen.")
            ensure(k > 1, "In the first input all tokens are one cluster: then a sum over all tokens is right. "
                          "Somebody must stand outside.")
        else:
            ensure(k == 1, "The second input is for the weights, so all tokens must be one cluster: else nobody knows "
                           "which of the two mistakes was seen.")
        d = torch.cdist(f, f).square()
        chosen = broken_medoid_update(d, labels, w, k)
        cost, least = cost_of(d, labels, w, chosen), least_cost(d, labels, w, k)
        ensure((cost > least * 1.0001 + 1e-6).any(),
               f"On the {name} input the broken function is right: its medoids {chosen.tolist()} lose "
               f"{[round(c, 3) for c in cost.tolist()]}, which is the least possible."
               + (" A cluster of two with equal weights always ties." if name == "first"
                  and int(labels.bincount().max()) == 2 else ""))
        if len(f) > most:
            raise Wrong(f"The {name} input does expose it, with {len(f)} tokens. It can be done with {most}: a smaller "
                        "input says more clearly what is wrong.")


@exercise("c", minutes=6, level=2, hints=(
    "One image, one difference: `difference = a - b`, n numbers.",
    "Their standard deviation, with n - 1 in the denominator (`std()` of torch does that), divided by the root of n, "
    "is how far their *mean* scatters.",
    "Return `difference.mean()` and `1.96 * difference.std() / n ** 0.5`."))
def paired_interval(a, b):
    difference = a - b
    return difference.mean(), 1.96 * difference.std() / len(difference) ** 0.5


@paired_interval.check_by
def _(answer):
    a, b = torch.tensor([3.0, 5.0, 7.0, 9.0, 11.0]), torch.tensor([1.0, 4.0, 5.0, 8.0, 9.0])
    returned = answer(a, b)
    ensure(isinstance(returned, tuple | list) and len(returned) == 2,
           "Return two things: the mean difference and the half width of its interval.")
    try:
        mean, half = (float(v) for v in returned)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong("Both the mean difference and the half width must be single numbers.") from None
    case = "a = 3, 5, 7, 9, 11 and b = 1, 4, 5, 8, 9, so the differences are 2, 1, 2, 1, 2."
    ensure(abs(mean + 1.6) > 1e-4, f"{case} Your mean difference is that of b - a; wanted is a - b.")
    ensure(abs(mean - 8.0) > 1e-4, f"{case} Your first answer is their sum; wanted is their mean.")
    expect(mean, 1.6, f"{case} Their mean:")
    differences, n = a - b, len(a)
    right = 1.96 * differences.std().item() / n ** 0.5
    for wrong, say in (
            (right * n ** 0.5,
             "Your half width is 1.96 standard deviations of *one* difference. The mean of n scatters less: divide by "
             "the root of n."),
            (right / n ** 0.5, "You divide by n. The standard deviation of a mean falls with the *root* of n."),
            (1.96 * differences.std(correction=0).item() / n ** 0.5,
             "Your standard deviation divides by n. The mean was estimated from the same numbers: divide by n - 1."),
            (1.96 * ((a.var() + b.var()) / n).item() ** 0.5,
             "Your interval is the unpaired one: it adds the scatter of a to that of b. Pairs are compared one by one, "
             "so only the scatter of the *differences* counts."),
            (right / 1.96, "Your half width is one standard error; for 95 % it takes 1.96 of them."),
            (2 * right, "That is the whole width; half of it is wanted.")):
        ensure(abs(half - wrong) > 1e-4, f"{case} {say}")
    expect(half, right, f"{case} Half of the interval's width:")
    draw = _draw(0)
    a, b = torch.randn(30, generator=draw), torch.randn(30, generator=draw)
    expect([float(v) for v in answer(a, b)], [float(v) for v in paired_interval.solution(a, b)],
           "Thirty random pairs:")
