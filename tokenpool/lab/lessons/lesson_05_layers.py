"""Notebook 05: how many tokens after which block? A budget becomes a schedule, and errors are read by depth."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

import tokenpool as tp
from tokenpool.core.cost import BlockShape, ModelShape, count_macs
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import check_schedule, geometric
from tokenpool.data.datasets import open_data
from tokenpool.data.weights import data_folder
from tokenpool.lab.k_explorer.explorer import KExplorer
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.kit.session import pebbles, shipped_rows, shipped_vit
from tokenpool.models.model_cost import model_shape
from tokenpool.report.figures import LOOKS

Schedule = tuple[int, ...]
N, DEPTH = 64, 6                        # patch tokens and blocks of the model that ships
SCHEDULE_LOOKS = {"early": (ORANGE, "square", "dot"), "geometric": (BLUE, "circle", "solid"),
                  "late": (GREEN, "triangle-up", "dash")}

# ---- the toy: three blocks, eight tokens ----

TOY_SCHEDULES: dict[str, Schedule] = {"early": (4, 4, 4), "between": (5, 3, 3), "late": (6, 2, 2)}


def toy_shape() -> ModelShape:
    """Three blocks of width C = 8 on eight tokens, no class token: 12 C² = 768 MACs a token, 2 C = 16 a pair."""
    return ModelShape(patches=8, prefix=0, channels=8, patch_embed=0, head=0,
                      blocks=(BlockShape(qkv=3 * 64, proj=64, mlp=8 * 64, pair=16),) * 3)


def toy_macs(schedule: Sequence[int]) -> int:
    """MACs of the toy with `schedule[l]` tokens kept after block l, clustering left out.

    Raises:
        ValueError: not a schedule: it rises, or keeps no token.
    """
    return count_macs(toy_shape(), check_schedule(tuple(schedule), 3, 8)).total


def toy_error(schedule: Sequence[int]) -> int:
    """A made-up error: going from n to k tokens after block l loses w_l ((8 - k)² - (8 - n)²), w = 5, 1, 0.

    Early cuts hurt most, and each further token hurts more than the one before.
    """
    before = (8, *schedule[:-1])
    return sum(w * ((8 - k) ** 2 - (8 - n) ** 2) for w, n, k in zip((5, 1, 0), before, schedule, strict=True))


def toy_best(budget: int) -> tuple[Schedule, int]:
    """The schedule with the least `toy_error` within the budget, by trying all 36."""
    fits = [(a, b, b) for a in range(1, 9) for b in range(1, a + 1) if toy_macs((a, b, b)) <= budget]
    return min(((s, toy_error(s)) for s in fits), key=lambda pair: pair[1])


def toy_geometric(budget: int) -> Schedule:
    """The dearest geometric schedule within the budget."""
    fits = {s for r in np.linspace(0.05, 1, 400) if toy_macs(s := geometric(8, 3, float(r))) <= budget}
    return max(fits, key=toy_macs)


def toy_figure() -> go.Figure:
    """Tokens that enter each block, and the MACs that they cost there, for the three schedules."""
    fig = go.Figure()
    for (name, kept), (colour, pattern) in zip(TOY_SCHEDULES.items(), ((ORANGE, "/"), (BLUE, ""), (GREEN, ".")),
                                               strict=True):
        cost = count_macs(toy_shape(), kept)
        entering = (8, *kept[:-1])
        fig.add_bar(x=["block 1", "block 2", "block 3"], y=[sum(b.values()) for b in cost.blocks], name=name,
                    marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay")), textposition="outside",
                    text=[f"{t} tokens" for t in entering], textfont_size=12, cliponaxis=False)
    fig.update_yaxes(title="MACs of the block", range=[0, 8300])
    return fig.update_layout(title="Where does each schedule spend its MACs?", barmode="group", height=380,
                             legend=dict(orientation="h", y=-0.15))


# ---- schedules of equal cost ----

def macs_of(schedule: Sequence[int], method: str = "wk_medoids", clustering: bool = True) -> int:
    """MACs of the shipped model with a schedule, with the clustering of `method` or without any."""
    step, shape = Pooling(method).macs, _shape()
    return count_macs(shape, schedule, (lambda n, k: step(n, k, shape.channels)) if clustering else None).total


@functools.lru_cache(maxsize=1)
def _shape() -> ModelShape:
    return model_shape(shipped_vit())


@functools.lru_cache(maxsize=32)
def shaped(bend: float, saving: float, method: str) -> Schedule:
    """The schedule 64 (1 - c (l / 5)^bend), l = 1..5, whose cost comes nearest to what is left after the saving.

    bend = 0: all at once after block 1. bend = 1: as many tokens after every block. Nothing after the last block.
    """
    target = (1 - saving) * macs_of((N,) * DEPTH)

    def at(c: float) -> Schedule:
        ks = [max(1, round(N * (1 - c * (block / 5) ** bend))) for block in range(1, DEPTH)]
        return (*ks, ks[-1])

    return min((at(i / 320) for i in range(320)), key=lambda ks: abs(macs_of(ks, method) - target))


@functools.lru_cache(maxsize=8)
def equal_cost(saving: float = 0.42, method: str = "wk_medoids") -> dict[str, Schedule]:
    """Three schedules of the shipped model that save the same, clustering counted in: early, geometric, late."""
    middle = tp.PooledViT(shipped_vit(), saving=saving, method=method).schedule
    assert middle is not None
    return {"early": shaped(0.0, saving, method), "geometric": middle, "late": shaped(1.0, saving, method)}


# ---- measuring ----

@dataclass(frozen=True)
class Measured:
    """What a schedule does to images nobody has trained on."""

    right: np.ndarray           # (images,) bool
    belief: np.ndarray          # (images,) probability given to the true class
    error: np.ndarray           # (blocks, images) share of the tokens' variance lost by each pooling

    def lost_to(self, other: Measured) -> tuple[float, float]:
        """Accuracy below `other`, in points, with the half-width of its 95 % interval: image by image."""
        return paired(other.right, self.right)


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Accuracy of a above that of b in points, and the half-width of the 95 % interval over images."""
    difference = 100 * (a.astype(float) - b)
    return float(difference.mean()), float(1.96 * difference.std(ddof=1) / len(difference) ** 0.5)


@functools.lru_cache(maxsize=4)
def _images(series: str, count: int) -> tuple[Tensor, Tensor]:
    """"test": those that results are measured on. "tune": others, to choose by."""
    if series == "tune":
        x, _, labels, _ = pebbles(count)
        return x, torch.from_numpy(labels)
    batches = list(open_data("pebbles", shipped_vit(), count=count))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@functools.lru_cache(maxsize=128)
def measure(schedule: Schedule | None, method: str = "wk_medoids", init: str | None = None, counts: bool = False,
            count: int = 300, series: str = "test") -> Measured:
    """The shipped model with a schedule (None: all tokens), without finetuning, on `count` pebbles."""
    model = tp.PooledViT(shipped_vit(), schedule, method=method, init=init, carry_counts=counts).eval()
    x, y = _images(series, count)
    with torch.no_grad():
        traces = [model.trace(part) for part in x.split(100)]
    logits = torch.cat([t.logits for t in traces])
    error = torch.cat([torch.stack([s.error for s in t.steps]) for t in traces], 1)
    belief = logits.softmax(1).gather(1, y[:, None])[:, 0]
    return Measured((logits.argmax(1) == y).numpy(), belief.numpy(), error.numpy())


def once(block: int, k: int) -> Schedule:
    """All 64 tokens up to a block (0 is the first), k after it."""
    return (N,) * block + (k,) * (DEPTH - block)


#: how tokens are chosen: name shown -> (method, start, counts, look)
WAYS: dict[str, tuple[str, str | None, bool, tuple[str, str, str]]] = {
    "top_k": ("top_k", None, False, LOOKS["top_k"]),
    "wk_medoids, top_k start (paper)": ("wk_medoids", "top_k", False, LOOKS["wk_medoids"]),
    "wk_medoids, farthest_first start": ("wk_medoids", "farthest_first", False, (BLUE, "circle", "dash")),
    "the same, counts carried": ("wk_medoids", "farthest_first", True, (PURPLE, "diamond", "dashdot")),
}


def one_cut(k: int = 16, count: int = 100, ways: Sequence[str] = tuple(WAYS)[:3]) -> pd.DataFrame:
    """A single cut 64 -> k, made after each of the first five blocks in turn.

    Returns:
        way, block (1..5), error and its half, lost (points of accuracy below the plain model) and its half.
    """
    plain = measure(None, count=count, series="tune")
    rows = []
    for way in ways:
        method, init, counts, _ = WAYS[way]
        for block in range(DEPTH - 1):
            m = measure(once(block, k), method, init, counts, count, "tune")
            lost, half = m.lost_to(plain)
            error = m.error[block]
            rows.append((way, block + 1, error.mean(), 1.96 * error.std(ddof=1) / count ** 0.5, lost, half))
    return pd.DataFrame(rows, columns=["way", "block", "error", "error_half", "lost", "lost_half"])


def one_cut_figure(table: pd.DataFrame, k: int = 16) -> go.Figure:
    """Two panels over the block of the cut: what the cut loses of the tokens, and what it costs the answer."""
    fig = make_subplots(1, 2, subplot_titles=("error of the cut", "accuracy lost in the end"), horizontal_spacing=0.14)
    for way, part in table.groupby("way", sort=False):
        colour, symbol, dash = WAYS[way][3]
        for column, what in ((1, "error"), (2, "lost")):
            fig.add_scatter(row=1, col=column, x=part["block"].tolist(), y=part[what].round(3).tolist(), name=way,
                            mode="lines+markers", line=dict(color=colour, dash=dash), showlegend=column == 1,
                            marker=dict(symbol=symbol, size=9), legendgroup=way,
                            error_y=dict(type="data", array=part[f"{what}_half"].round(3).tolist(), thickness=1))
    fig.update_xaxes(title="cut after block", dtick=1)
    fig.update_yaxes(title="share of the variance", rangemode="tozero", col=1)
    fig.update_yaxes(title="points of top-1", rangemode="tozero", col=2)
    return fig.update_layout(title=f"One cut, {N} → {k} tokens: does it matter after which block?", height=400,
                             legend=dict(orientation="h", y=-0.25))


# ---- the search: soft masks, as recorded ----

@dataclass(frozen=True)
class Found:
    """What one search found on pebbles."""

    penalty: float              # lambda
    schedule: Schedule          # as recorded: the last entry repeats the one before
    masks: Tensor               # (6, 64) r_l[p]


@functools.lru_cache(maxsize=1)
def found() -> tuple[Found, ...]:
    """The three searches of preset `pebbles`, from the run cards that ship; the weakest lambda first."""
    cards = json.loads((data_folder() / "runs" / "pebbles-runs.cards.json").read_text())
    kept = [card["schedule"] for card in cards if "schedule" in card]
    return tuple(sorted((Found(s["penalty"], tuple(s["tokens"]), torch.tensor(s["masks"])) for s in kept),
                        key=lambda f: f.penalty))


def masks_figure(search: Found) -> go.Figure:
    """Learned masks over the rank, averaged over eight ranks at a time, and the step that a hard cut would be."""
    fig = go.Figure()
    looks = {1: (ORANGE, "square", "solid"), 3: (BLUE, "circle", "dash"), 4: (GREEN, "triangle-up", "dot"),
             5: (PURPLE, "diamond", "dashdot")}
    middle = [8 * i + 4.5 for i in range(8)]
    for block, (colour, symbol, dash) in looks.items():
        level = search.masks[block - 1].reshape(8, 8).mean(1)
        fig.add_scatter(x=middle, y=[round(v, 3) for v in level.tolist()], mode="lines+markers", name=f"block {block}",
                        line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9))
    k = search.schedule[0]
    fig.add_scatter(x=[1, k, k, N], y=[1, 1, 0, 0], mode="lines", name=f"block 1 as a hard cut, K = {k}",
                    line=dict(color=INK, dash="longdash", width=1))
    fig.update_xaxes(title="rank of the token by score (1: highest)")
    fig.update_yaxes(title="r, how much of it is kept", range=[-0.05, 1.08])
    return fig.update_layout(title="A cut or a dimmer? Masks learned on pebbles", height=380,
                             legend=dict(orientation="h", y=-0.25))


#: tokens kept after each merge, class token included, published by DiffRate (P; paper.md, end of section 5)
DIFFRATE = {"DiffRate, DeiT-Ti at 0.7 G": (197, 196, 192, 158, 133, 103, 88, 72, 64, 58, 49, 3),
            "DiffRate, DeiT-S at 2.3 G": (197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3)}


def depth_figure() -> tuple[go.Figure, pd.DataFrame]:
    """Share of the patch tokens left by depth: found here, geometric at the same cost, and two of DiffRate's (P)."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for search in found():
        curves[f"found here, λ = {search.penalty:g}"] = ([b / DEPTH for b in range(DEPTH)],
                                                         [1.0, *(k / N for k in search.schedule[:-1])])
    middle = found()[1].schedule
    share = macs_of(middle, clustering=False) / macs_of((N,) * DEPTH)
    same = tp.PooledViT(shipped_vit(), saving=1 - share, method="top_k").schedule
    assert same is not None
    curves[f"geometric, at the cost of λ = {found()[1].penalty:g}"] = ([b / DEPTH for b in range(DEPTH)],
                                                                       [1.0, *(k / N for k in same[:-1])])
    for name, kept in DIFFRATE.items():
        curves[name] = ([b / 12 for b in range(13)], [1.0, *((k - 1) / 196 for k in kept)])
    looks = [(GREEN, "triangle-up", "dot"), (GREEN, "triangle-up", "solid"), (GREEN, "triangle-up-open", "dash"),
             (BLUE, "circle", "solid"), (PURPLE, "diamond", "dash"), (PURPLE, "diamond-open", "dot")]
    fig, rows = go.Figure(), []
    for (name, (x, y)), (colour, symbol, dash) in zip(curves.items(), looks, strict=True):
        fig.add_scatter(x=[round(100 * v, 1) for v in x], y=[round(100 * v, 1) for v in y], name=name,
                        mode="lines+markers", line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=8))
        rows.append((name, " ".join(f"{100 * v:.0f}" for v in y)))
    fig.update_xaxes(title="blocks passed, % of the depth", range=[-2, 102])
    fig.update_yaxes(title="patch tokens left, %", rangemode="tozero")
    fig.update_layout(title="Where do learned schedules spend their tokens?", height=440,
                      legend=dict(orientation="h", y=-0.22))
    return fig, pd.DataFrame(rows, columns=["schedule", "% of the tokens left, block by block"])


# ---- counts ----

def replaced(vit: nn.Module, x: Tensor, block: int, stand_ins: Tensor) -> Tensor:
    """Logits of the plain model whose patch tokens after a block (0 is the first) are swapped for others.

    Args:
        x: (B, 3, 64, 64). stand_ins: (B, 64, C), as many tokens as before; the class token goes on as it is.
    """
    model: Any = vit
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for index, layer in enumerate(model.blocks):
        tokens = layer(tokens)
        if index == block:
            tokens = torch.cat([tokens[:, :1], stand_ins], 1)
    return model.forward_head(model.norm(tokens))


# ---- at full size ----

def schedules_table(saving: float = 0.42, count: int = 300) -> pd.DataFrame:
    """Accuracy of early, geometric and late for every way of choosing tokens, without finetuning.

    Returns:
        way, schedule, tokens, top1 and half (in %), error (summed over blocks), above_early and its half (in points).
    """
    rows = []
    for way, (method, init, counts, _) in WAYS.items():
        family = equal_cost(saving, method)
        early = measure(family["early"], method, init, counts, count)
        for name, ks in family.items():
            m = measure(ks, method, init, counts, count)
            p = m.right.mean()
            rows.append((way, name, " ".join(map(str, ks)), 100 * p, 196 * (p * (1 - p) / count) ** 0.5,
                         m.error.mean(1).sum(), *paired(m.right, early.right)))
    return pd.DataFrame(rows, columns=["way", "schedule", "tokens", "top1", "half", "error", "above_early",
                                       "above_half"])


def error_table(saving: float = 0.42, count: int = 300) -> pd.DataFrame:
    """Error of every pooling of the geometric schedule, by block: way, block, error, half."""
    ways = {"random": ("random", None, False), **{w: v[:3] for w, v in WAYS.items()}}
    rows = []
    for way, (method, init, counts) in ways.items():
        error = measure(equal_cost(saving, method)["geometric"], method, init, counts, count).error[:DEPTH - 1]
        rows += [(way, block + 1, e.mean(), 1.96 * e.std(ddof=1) / count ** 0.5) for block, e in enumerate(error)]
    return pd.DataFrame(rows, columns=["way", "block", "error", "half"])


def schedules_figure(table: pd.DataFrame, errors: pd.DataFrame, title: str) -> go.Figure:
    """Left the accuracy of the three schedules, right the error of the geometric one by block; a curve a way."""
    fig = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("accuracy of three schedules",
                                                                       "error of geometric, by block"))
    for column, frame, x, y in ((1, table, "schedule", "top1"), (2, errors, "block", "error")):
        for way, part in frame.groupby("way", sort=False):
            colour, symbol, dash = LOOKS["random"] if way == "random" else WAYS[way][3]
            fig.add_scatter(row=1, col=column, x=part[x].tolist(), y=part[y].round(3).tolist(), name=way,
                            mode="lines+markers", line=dict(color=colour, dash=dash), legendgroup=way,
                            marker=dict(symbol=symbol, size=9), showlegend=column == 1 or way == "random",
                            error_y=dict(type="data", array=part["half"].round(3).tolist(), thickness=1))
    fig.update_xaxes(title="schedule, all of the same cost", col=1).update_xaxes(title="pooled after block", col=2)
    fig.update_yaxes(title="top-1 without finetuning, %", range=[50, 103], col=1)
    fig.update_yaxes(title="share of the variance lost", rangemode="tozero", col=2)
    return fig.update_layout(title=title, height=430, legend=dict(orientation="h", y=-0.22))


@functools.lru_cache(maxsize=1)
def damage_tables(count: int = 100, ks: tuple[int, ...] = (1, 4, 16, 32)) -> dict[str, np.ndarray]:
    """What one cut to k after block l costs, paper's method, measured on images that no result is taken from.

    Returns:
        "error": share of the variance lost; "belief": probability of the true class lost. Each (5, 65), by block and
        tokens left, interpolated between measured cuts, never falling as tokens get fewer.
    """
    plain = measure(None, count=count, series="tune").belief
    tables = {"error": np.zeros((DEPTH - 1, len(ks) + 1)), "belief": np.zeros((DEPTH - 1, len(ks) + 1))}
    for block in range(DEPTH - 1):
        for place, k in enumerate(ks):
            m = measure(once(block, k), init="top_k", count=count, series="tune")
            tables["error"][block, place] = m.error[block].mean()
            tables["belief"][block, place] = max(0.0, float((plain - m.belief).mean()))
    full = {}
    for name, table in tables.items():
        level = np.maximum.accumulate(table[:, ::-1], axis=1)[:, ::-1]
        full[name] = np.stack([np.interp(np.arange(N + 1), (*ks, N), row) for row in level])
    return full


def total(table: np.ndarray) -> Callable[[Sequence[int]], float]:
    """A table (5, 65) of single cuts as the error of a whole schedule: each block answers for its own cut.

    Block l takes K_{l-1} tokens down to K_l, so it adds table[l, K_l] - table[l, K_{l-1}].
    """
    return lambda schedule: float(sum(row[k] - row[n] for row, n, k in
                                      zip(table, (N, *schedule[:DEPTH - 2]), schedule[:DEPTH - 1], strict=True)))


def bought_table(count: int = 300) -> pd.DataFrame:
    """Three schedules of the same MACs (clustering left out), paper's method, on the test images.

    Returns:
        rule, tokens, share and share_without (of the plain model's MACs, with and without clustering), top1, half,
        above_geometric and its half.
    """
    plain, middle = macs_of((N,) * DEPTH), equal_cost()["geometric"]
    budget = macs_of(middle, clustering=False)
    tables = damage_tables()
    rules = {"geometric": middle}
    for name, rule in (("error", "greedy, by error"), ("belief", "greedy, by belief lost")):
        ks = greedy_schedule.solution((N,) * (DEPTH - 1), total(tables[name]),
                                      lambda s: macs_of((*s, s[-1]), clustering=False), budget)
        rules[rule] = (*ks, ks[-1])
    rows = []
    base = measure(middle, init="top_k", count=count).right
    for rule, ks in rules.items():
        right = measure(ks, init="top_k", count=count).right
        p = right.mean()
        rows.append((rule, " ".join(map(str, ks)), macs_of(ks) / plain, macs_of(ks, clustering=False) / plain, 100 * p,
                     196 * (p * (1 - p) / count) ** 0.5, *paired(right, base)))
    return pd.DataFrame(rows, columns=["rule", "tokens", "share", "share_without", "top1", "half", "above_geometric",
                                       "above_half"])


def bought_figure(table: pd.DataFrame) -> go.Figure:
    """Top-1 of the three rules, with their schedules as labels."""
    fig = go.Figure()
    for (_, row), (colour, symbol) in zip(table.iterrows(), ((BLUE, "circle"), (ORANGE, "square"),
                                                             (GREEN, "triangle-up")), strict=True):
        fig.add_scatter(x=[round(row["top1"], 1)], y=[row["rule"]], mode="markers+text", name=row["rule"],
                        text=[row["tokens"]], textposition="top center",
                        marker=dict(color=colour, symbol=symbol, size=13),
                        error_x=dict(type="data", array=[round(row["half"], 1)], thickness=1), showlegend=False)
    fig.update_xaxes(title="top-1 without finetuning, %", range=[60, 103])
    fig.update_yaxes(title="how K was chosen", range=[2.5, -0.8])
    return fig.update_layout(title="Same MACs: which damage should a greedy choice look at?", height=330,
                             margin=dict(l=200))


@functools.lru_cache(maxsize=1)
def recorded() -> pd.DataFrame:
    """Rows of preset `pebbles` for top_k and wk_medoids (paper's start), geometric and found, untouched and finetuned.

    Returns:
        method, stage, schedule_name, schedule, share (of the plain model's MACs), top1, top1_low, top1_high.
    """
    rows = shipped_rows("pebbles-runs")
    rows = rows[rows["method"].isin(["top_k", "wk_medoids"]) & rows["init"].isin(["", "top_k"]) & ~rows["counts"]]
    rows = rows.assign(share=rows["gmacs"] / rows["gmacs_plain"]).sort_values("share")
    return rows[["method", "stage", "schedule_name", "schedule", "share", "top1", "top1_low", "top1_high"]]


def recorded_gap(rows: pd.DataFrame, method: str, stage: str) -> float:
    """Points by which the found schedule of the strongest lambda lies above the line between its geometric
    neighbours at the same cost. The other two cost more than any geometric schedule that was finetuned."""
    part = rows[(rows["method"] == method) & (rows["stage"] == stage)]
    line, star = part[part["schedule_name"] == ""], part[part["schedule_name"] != ""].iloc[0]
    return 100 * float(star["top1"] - np.interp(star["share"], line["share"], line["top1"]))


def recorded_figure(rows: pd.DataFrame) -> go.Figure:
    """Top-1 against cost: geometric as curves, found schedules as stars; untouched left, finetuned right."""
    fig = make_subplots(1, 2, shared_yaxes=True, subplot_titles=("without finetuning", "finetuned"),
                        horizontal_spacing=0.06)
    for column, stage in ((1, "untouched"), (2, "finetuned")):
        for method in ("top_k", "wk_medoids"):
            colour, circle, _ = LOOKS[method]
            for name, symbol, size, dash in (("geometric", circle, 9, "solid"), ("found", "star", 13, "dot")):
                part = rows[(rows["method"] == method) & (rows["stage"] == stage)
                            & ((rows["schedule_name"] != "") == (name == "found"))]
                y = 100 * part["top1"]
                fig.add_scatter(
                    row=1, col=column, x=(100 * part["share"]).round(1).tolist(), y=y.round(1).tolist(),
                    name=f"{method}, {name}", legendgroup=f"{method}{name}", showlegend=column == 1,
                    mode="lines+markers", line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=size),
                    error_y=dict(type="data", symmetric=False, thickness=1,
                                 array=(100 * part["top1_high"] - y).round(1).tolist(),
                                 arrayminus=(y - 100 * part["top1_low"]).round(1).tolist()))
    fig.update_xaxes(title="computations, % of plain", range=[25, 80])
    fig.update_yaxes(title="top-1, %", col=1)
    return fig.update_layout(title="Found by search or geometric: what is left after finetuning?", height=420,
                             legend=dict(orientation="h", y=-0.25))


# ---- the explorer ----

@functools.lru_cache(maxsize=1)
def presets() -> dict[str, Schedule]:
    """Name shown -> schedule. The first three save 42 % with K-Medoids, clustering counted in."""
    family = equal_cost()
    searches = {f"found by search, λ = {f.penalty:g}": f.schedule for f in found()[1:]}
    return {"geometric, 42 % saved": family["geometric"], "early and hard, 42 % saved": family["early"],
            "late and gently, 42 % saved": family["late"], **searches, "nothing pooled": (N,) * DEPTH}


def explore() -> KExplorer:
    return KExplorer(presets())


# ---- predictions ----

def _clearly(difference: float, half: float) -> int:
    """-1, 0 or 1: below, not told apart, above."""
    return 0 if abs(difference) <= half else 1 if difference > 0 else -1


PREDICTIONS = (
    Prediction("a", "A ViT with 64 tokens and 6 blocks, pooled with the paper's method, not finetuned. Two schedules "
                    "cost the same MACs. *Early and hard*: 31 tokens after block 1, and no cut after that. *Late and "
                    "gently*: 52, 41, 29, 17 and 6 tokens, an equal step after every block. Which keeps more accuracy?",
               ("Early and hard: a single cut, and 31 tokens are left to the end",
                "Late and gently, although it ends with 6 tokens",
                "They cannot be told apart"),
               answer=lambda late: {-1: 0, 0: 2, 1: 1}[_clearly(*late)],
               why={0: "A single cut has the smaller error, and 31 tokens can say more than 6. But what is lost after "
                       "block 1 is missing in five blocks, what is lost after block 5 in one.",
                    1: "Late cuts fall on tokens that have already been read. That helps only if an early cut loses "
                       "what is needed.",
                    2: "The MACs are the same; what they are spent on is not."},
               tell=lambda late: f"late above early by {late[0]:+.1f} ± {late[1]:.1f} points"),
    Prediction("b", "Now a single cut, from 64 to 16 tokens, with the paper's method. You may make it after block 1, "
                    "or 2, ... or 5. What does depth do to the *error* (the share of the tokens' variance that is "
                    "lost), and what to the *accuracy* lost in the end?",
               ("The error falls by half or more: deep tokens are alike",
                "The error doubles or more: deep tokens are specialists",
                "The error stays about the same, and the accuracy lost with it",
                "The error stays about the same, but the accuracy lost all but vanishes"),
               answer=lambda e: (0 if e["ratio"] <= 0.5 else 1 if e["ratio"] >= 2 else
                                 3 if e["lost_late"] < e["lost_early"] / 4 else 2),
               why={0: "Attention smooths block after block, so one expects copies. But the error is a share: it "
                       "compares with the variance there is at that depth.",
                    1: "That is nearer to what top-K would show, whose error does rise. K-Medoids finds the groups of "
                       "the specialists too.",
                    2: "Equal errors, equal damage: a fair rule between methods at one depth, not between depths."},
               tell=lambda e: f"after block 5 the error is {e['ratio']:.2f} times that after block 1, and the "
                              f"accuracy lost goes from {e['lost_early']:.0f} points to {e['lost_late']:.0f}"),
)


# ---- exercises ----

@exercise("a", minutes=5, level=1, hints=(
    "For one block: `int(mask.sum())` is the floor of a positive number. Then at least 1.",
    "Never rising: compare with the K that you have just given to the block before, `kept[-1]`.",
    "k = max(1, int(mask.sum())), then `kept.append(min(k, kept[-1]) if kept else k)`."))
def integers(masks):
    kept = []
    for mask in masks:
        k = max(1, int(mask.sum()))
        kept.append(min(k, kept[-1]) if kept else k)
    return kept


@integers.check_by
def _(answer):
    def k_of(*rows: Sequence[float]) -> list[int]:
        return [int(k) for k in answer(torch.tensor(rows))]

    expect(k_of([0.5, 0.5, 0.5, 0.5]), [2], "The mask is 0.5 four times: its mass is 2. K is the *sum* of the mask, "
                                            "not the number of its large entries.")
    expect(k_of([1, 1, 1, 0.75]), [3], "A mass of 3.75 keeps 3 tokens: floor, not round.")
    expect(k_of([0.25, 0.25, 0, 0]), [1], "A mass of 0.5 would keep no token at all; at least 1 must stay.")
    expect(k_of([1, 1, 0, 0], [1, 1, 1, 0]), [2, 2], "The second block asks for 3 tokens and gets 2: a schedule never "
                                                     "rises, tokens that are gone do not come back.")
    expect(k_of([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]), [1, 1, 1], "Masses 1, 2, 3: compare each block with the K "
           "*given* to the block before, not with that block's own mass.")
    expect(k_of([1] * 4, [0.5, 0.5, 0.5, 0], [0.25, 0.5, 0, 0]), [4, 1, 1], "Masses 4, 1.5 and 0.75.")


@exercise("b", minutes=10, level=3, hints=(
    "While the schedule costs more than the budget: list all schedules that are one token shorter, take the best.",
    "One token fewer after block l: `schedule[:l] + tuple(min(k, schedule[l] - 1) for k in schedule[l:])`. The `min` "
    "pulls later blocks along, because a schedule never rises. Skip blocks that keep one token.",
    "A cut after the last block saves no MACs: drop every candidate s with `macs(s) == macs(schedule)`. Of the others "
    "take the least `(error(s) - error(schedule)) / (macs(schedule) - macs(s))`."))
def greedy_schedule(schedule, error, macs, budget):
    while macs(schedule) > budget:
        shorter = [schedule[:l] + tuple(min(k, schedule[l] - 1) for k in schedule[l:])
                   for l in range(len(schedule)) if schedule[l] > 1]
        saving = [s for s in shorter if macs(s) < macs(schedule)]
        schedule = min(saving, key=lambda s: (error(s) - error(schedule)) / (macs(schedule) - macs(s)))
    return schedule


@greedy_schedule.check_by
def _(answer):
    def run(schedule: Schedule, error: Callable[[Schedule], float], macs: Callable[[Schedule], float], budget: float
            ) -> Schedule:
        calls = 0

        def counted(s: Schedule) -> float:
            nonlocal calls
            calls += 1
            if calls > 20_000:
                raise Wrong("Your loop does not end: does every round make the schedule shorter, and do you skip cuts "
                            "that save nothing?")
            return macs(check_schedule(tuple(s), len(schedule), max(schedule)))

        got = answer(schedule, error, counted, budget)
        ensure(isinstance(got, tuple | list), f"Return a schedule, a tuple of {len(schedule)} numbers; {got!r} came.")
        return tuple(int(k) for k in got)

    plain = toy_macs((8, 8, 8))
    expect(run((8, 8, 8), toy_error, toy_macs, plain), (8, 8, 8), "The budget pays for all tokens, so none has to go: "
           "stop as soon as the cost is *at most* the budget.")

    def price(s: Schedule) -> float:
        return 10 * s[0] + s[1]

    mild = run((8, 8), lambda s: 3 * (8 - s[0]) + (s[0] - s[1]), price, 77)
    expect(mild, (7, 7), "A token fewer after block 1 costs 3 and saves 11 MACs; one fewer after block 2 costs 1 and "
           "saves 1. Divide the rise of the error by the MACs saved; the rise alone is not what counts.")
    harsh = run((8, 8), lambda s: 30 * (8 - s[0]) + (s[0] - s[1]), price, 85)
    expect(harsh, (8, 5), "Now a token fewer after block 1 costs 30 for 11 MACs, after block 2 still 1 for 1: three of "
           "those meet the budget. You seem to look at the MACs alone, or to go on when the budget is met.")
    budget = toy_macs((6, 2, 2))
    got = run((8, 8, 8), toy_error, toy_macs, budget)
    ensure(toy_macs(got) <= budget, f"{got} costs {toy_macs(got)}, the budget is {budget}: go on removing.")
    expect(got, (6, 2, 2), f"The toy with a budget of {budget}: geometric takes (5, 3, 3) with error "
                           f"{toy_error((5, 3, 3))}, yours has {toy_error(got)}.")


@exercise("c", minutes=5, level=1, hints=(
    "The softmax turns log(count) into a factor: exp(logit + log n) = n exp(logit).",
    "softmax(q @ k.T / sqrt(d) + log(counts), over the keys) @ v, with d = q.shape[-1]."))
def attention_with_counts(q, k, v, counts):
    logits = q @ k.T / q.shape[-1] ** 0.5 + counts.log()
    return logits.softmax(-1) @ v


@attention_with_counts.check_by
def _(answer):
    draw = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(n, 4, generator=draw) for n in (3, 2, 2))
    one = torch.ones(2)
    plain = (q @ k.T / 2).softmax(-1) @ v
    got = answer(q, k, v, one)
    ensure(torch.as_tensor(got).shape == (3, 4), f"Three queries and channels of width 4: the answer is (3, 4); "
                                                 f"{tuple(torch.as_tensor(got).shape)} came.")
    expect(got, plain, "With all counts 1 nothing may change: softmax(q k^T / sqrt(d)) v, over the keys.")
    counts = torch.tensor([7.0, 1.0])
    many = (q @ k[[0] * 7 + [1]].T / 2).softmax(-1) @ v[[0] * 7 + [1]]
    got = torch.as_tensor(answer(q, k, v, counts))
    ensure(not torch.allclose(got, plain, atol=1e-5), "The counts change nothing in your answer.")
    added = ((q @ k.T / 2) + counts).softmax(-1) @ v
    ensure(not torch.allclose(got, added, atol=1e-5), "You add the count to the logit; add its *logarithm*, because "
                                                      "the softmax will exponentiate it.")
    times = ((q @ k.T / 2) * counts).softmax(-1) @ v
    ensure(not torch.allclose(got, times, atol=1e-5), "You multiply the logit by the count: the softmax makes that "
                                                      "a power, not a factor. Add log(count) to the logit.")
    expect(got, many, "Counts 7 and 1 must give what seven copies of the first key and value and one of the second "
                      "give. Do the weights of every query still sum to 1?")
