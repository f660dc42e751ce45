"""Notebook 03: which K tokens speak for all of them? Reconstruction error, and why a score cannot see it."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import tokenpool as tp
from tokenpool.lab.kit.exercises import ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.report.figures import LOOKS

# ---- toys ----

def six_tokens() -> tuple[Tensor, Tensor]:
    """Three copies of one token, which have the highest score, and three others: (6, 2) and (6,)."""
    f = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0]])
    return f, torch.tensor([0.30, 0.30, 0.30, 0.05, 0.03, 0.02])


def best_subset(f: Tensor, k: int) -> tuple[tuple[int, ...], float]:
    """The k tokens with the least reconstruction error, by trying all subsets; for a dozen tokens at most."""
    d = torch.cdist(f, f).square()
    choices = itertools.combinations(range(len(f)), k)
    return min(((c, d[:, list(c)].min(1).values.sum().item()) for c in choices), key=lambda pair: pair[1])


def tokens_on_a_line(n: int = 40) -> tuple[Tensor, Tensor]:
    """Positions from 0 to 10 and a smooth score with a high and a low hill: (n, 1) and (n,)."""
    x = torch.linspace(0, 10, n)
    return x[:, None], torch.exp(-(x - 3) ** 2 / 1.5) + 0.35 * torch.exp(-(x - 8) ** 2 / 0.8) + 0.05


CLOUDS = ("one crowd, two outposts", "three equal groups", "a ring", "one even blob")


@functools.lru_cache(maxsize=64)
def cloud(name: str, copies: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Forty tokens in the plane and a score that falls with the distance from the right: (40, 2) and (40,).

    Args:
        copies: how many tokens become copies of the one with the highest score.
    """
    draw = torch.Generator().manual_seed(seed)

    def group(n: int, x: float, y: float, spread: float) -> Tensor:
        return torch.tensor([x, y]) + spread * torch.randn(n, 2, generator=draw)

    if name == CLOUDS[0]:
        f = torch.cat([group(30, 2, 0, 0.5), group(6, -2, 1.5, 0.3), group(4, -1, -2, 0.3)])
    elif name == CLOUDS[1]:
        f = torch.cat([group(14, 2, 0, 0.4), group(13, -1.5, 1.5, 0.4), group(13, -1.5, -1.5, 0.4)])
    elif name == CLOUDS[2]:
        turn = 2 * torch.pi * torch.rand(40, generator=draw)
        f = 2 * torch.stack([turn.cos(), turn.sin()], 1) + 0.12 * torch.randn(40, 2, generator=draw)
    else:
        f = group(40, 0, 0, 1.2)
    score = torch.sigmoid(1.2 * f[:, 0])
    if copies:
        order = score.argsort(descending=True)
        f[order[1:copies + 1]] = f[order[0]].clone()
        score[order[1:copies + 1]] = score[order[0]].clone()
    return f, score / score.sum()


# ---- figures ----

def six_figure(kept: dict[str, list[int]]) -> go.Figure:
    """The six tokens twice: what each method keeps, and a line from every token to its stand-in."""
    f, _ = six_tokens()
    fig = go.Figure()
    for column, (name, keep) in enumerate(kept.items()):
        at = f + torch.tensor([7.0 * column, 0.0])
        nearest = torch.cdist(f, f[keep]).argmin(1)
        for i, j in enumerate(nearest.tolist()):
            a, b = at[i], at[keep[j]]
            fig.add_scatter(x=[a[0].item(), b[0].item()], y=[a[1].item(), b[1].item()], mode="lines",
                            line=dict(color=GREY, dash="dot"), showlegend=False, hoverinfo="skip")
        fig.add_scatter(x=at[:, 0].tolist(), y=at[:, 1].tolist(), mode="markers", name="token", showlegend=not column,
                        marker=dict(symbol="circle-open", size=16, color=INK))
        chosen = at[keep]
        fig.add_scatter(x=chosen[:, 0].tolist(), y=chosen[:, 1].tolist(), mode="markers", name="kept",
                        showlegend=not column, marker=dict(symbol="square", size=11, color=GREEN))
        fig.add_annotation(x=7 * column + 2, y=3.9, text=f"{name}", showarrow=False)
        fig.add_annotation(x=7 * column, y=-0.55, text="A B C (copies)", showarrow=False, font_size=13)
        for label, x, y in (("D", 4, -0.55), ("E", 0, 2.45), ("F", 4, 2.45)):
            fig.add_annotation(x=7 * column + x, y=y, text=label, showarrow=False, font_size=13)
    fig.update_xaxes(visible=False, range=[-1.2, 12.2]).update_yaxes(visible=False, range=[-1, 4.4], scaleanchor="x")
    return fig.update_layout(title="Which three tokens speak for all six?", height=360)


def line_figure(k: int = 6) -> tuple[go.Figure, dict[str, float]]:
    """Tokens on a line with a smooth score: what top-K and K-Medoids keep, and what is lost (paper, Fig. 2)."""
    f, score = tokens_on_a_line()
    fig = go.Figure(go.Scatter(x=f[:, 0].tolist(), y=score.tolist(), mode="lines+markers", name="score of each token",
                               line=dict(color=GREY), marker=dict(symbol="circle", size=5)))
    lost = {}
    for height, method in ((-0.12, "top_k"), (-0.28, "wk_medoids")):
        out = tp.pool_tokens(f[None], k, method=method, weights=score[None], init="farthest_first", output="medoid")
        colour, symbol, _ = LOOKS[method]
        fig.add_scatter(x=out.tokens[0, :, 0].tolist(), y=[height] * k, mode="markers", name=f"kept by {method}",
                        marker=dict(color=colour, symbol=symbol, size=12))
        lost[method] = (f - out.unpool()[0]).square().sum().item()
    fig.update_xaxes(title="position of the token")
    fig.update_yaxes(title="score", range=[-0.4, 1.15])
    return fig.update_layout(title=f"A smooth score, {k} tokens to keep", height=360), lost


def error_figure(table: pd.DataFrame, title: str) -> go.Figure:
    """Columns k, method, error, half (95 % interval, may be missing): a curve a method."""
    fig = go.Figure()
    for method, part in table.groupby("method", sort=False):
        colour, symbol, dash = LOOKS[method]
        bars = dict(type="data", array=part["half"].tolist(), thickness=1) if "half" in part else None
        fig.add_scatter(x=part["k"].tolist(), y=part["error"].round(4).tolist(), name=method, mode="lines+markers",
                        line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9), error_y=bars)
    fig.update_xaxes(title="tokens kept, K, of 64")
    fig.update_yaxes(title="share of the variance lost", rangemode="tozero")
    return fig.update_layout(title=title)


def sensitivity_figure(points: pd.DataFrame, slope: float) -> go.Figure:
    """Columns method, moved, changed: every pooling as a point under the line of the bound."""
    fig = go.Figure()
    for method, part in points.groupby("method", sort=False):
        colour, symbol, _ = LOOKS[method]
        fig.add_scatter(x=part["moved"].round(3).tolist(), y=part["changed"].round(3).tolist(), mode="markers",
                        name=method, marker=dict(color=colour, symbol=symbol, size=8))
    end = float(points["moved"].max()) * 1.05
    fig.add_scatter(x=[0, end], y=[0, slope * end], mode="lines", name="bound: largest gain x error",
                    line=dict(color=INK, dash="dash"))
    fig.update_xaxes(title="root of the reconstruction error", rangemode="tozero")
    fig.update_yaxes(title="change of the block's output", rangemode="tozero")
    return fig.update_layout(title="Does a small reconstruction error mean a small change?")


# ---- at full size ----

def error_by_k(tokens: Tensor, score: Tensor, ks: tuple[int, ...],
               methods: tuple[str, ...] = ("top_k", "random", "wk_medoids", "wk_means")) -> pd.DataFrame:
    """Share of the tokens' variance that is lost, mean over images with its 95 % interval.

    Args:
        tokens: (images, N, C). score: (images, N).
    """
    variance = (tokens - tokens.mean(1, keepdim=True)).square().sum((1, 2))
    rows = []
    for k in ks:
        for method in methods:
            start = "farthest_first" if "_me" in method else None
            out = tp.pool_tokens(tokens, k, method=method, weights=score, init=start)
            lost = (tokens - out.unpool()).square().sum((1, 2)) / variance
            rows.append((k, method, lost.mean().item(), 1.96 * lost.std().item() / len(lost) ** 0.5))
    return pd.DataFrame(rows, columns=["k", "method", "error", "half"])


def gain(block: nn.Module, x: Tensor, u: Tensor, places: int = 4, steps: int = 15) -> float:
    """The largest gain of a block between two sets of tokens: max over the segment of the Jacobian's spectral norm.

    For any smooth block, ‖block(x) - block(u)‖ <= gain * ‖x - u‖ (mean value inequality). The norm is found by power
    iteration with Jacobian-vector products, at `places` points of the segment. x, u: (1, N, C).
    """
    largest = 0.0
    with sdpa_kernel(SDPBackend.MATH):          # the fused kernel has no forward derivative on a CPU
        for t in torch.linspace(0, 1, places):
            point = u + t * (x - u)
            v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            _, back = torch.func.vjp(block, point)
            for _ in range(steps):
                _, jv = torch.func.jvp(block, (point,), (v / v.norm(),))
                largest = max(largest, jv.norm().item())
                (v,) = back(jv)
    return largest


# ---- the explorer: compute, draw, say ----

@dataclass(frozen=True)
class Comparison:
    cloud: str
    k: int
    method: str
    tokens: np.ndarray          # (40, 2)
    score: np.ndarray           # (40,)
    stand_ins: np.ndarray       # (k, 2)
    labels: np.ndarray          # (40,)
    errors: dict[str, float]    # of all methods, unweighted


_FAR = 1.5          # a token this far from its stand-in is badly spoken for; groups have a radius of about 1


@functools.lru_cache(maxsize=512)
def compare(cloud_name: str, copies: int, k: int, method: str) -> Comparison:
    """One method drawn, all methods measured."""
    f, score = cloud(cloud_name, copies)
    errors, shown = {}, None
    for name in tp.method_names():
        if name == "grid_average":
            continue
        init = "farthest_first" if "_me" in name else None
        out = tp.pool_tokens(f[None], k, method=name, weights=score[None], init=init)
        errors[name] = (f - out.unpool()[0]).square().sum().item()
        if name == method:
            shown = out
    assert shown is not None
    return Comparison(cloud_name, k, method, f.numpy(), score.numpy(), shown.tokens[0].numpy(),
                      shown.labels[0].numpy(), errors)


def compare_figure(c: Comparison) -> go.Figure:
    """Tokens (size: score), the stand-ins, and a line from each token to its own."""
    lines = np.full((3 * len(c.tokens), 2), np.nan)
    lines[0::3], lines[1::3] = c.tokens, c.stand_ins[c.labels]
    fig = go.Figure([
        go.Scatter(x=lines[:, 0], y=lines[:, 1], mode="lines", line=dict(color=GREY, width=1),
                   name="to its stand-in", hoverinfo="skip"),
        go.Scatter(x=c.tokens[:, 0], y=c.tokens[:, 1], mode="markers", name="token (larger: higher score)",
                   marker=dict(color=BLUE, size=(6 + 12 * c.score / c.score.max()).round(1), opacity=0.55,
                               line=dict(color=INK, width=1))),
        go.Scatter(x=c.stand_ins[:, 0], y=c.stand_ins[:, 1], mode="markers", name="stand-in",
                   marker=dict(color=ORANGE, symbol="x", size=13, line=dict(color="white", width=1)))])
    fig.update_xaxes(title="first coordinate", range=[-3.6, 3.8], constrain="domain")
    fig.update_yaxes(title="second coordinate", range=[-3.4, 4.4], scaleanchor="x")
    return fig.update_layout(title=f"{c.method}, K = {c.k}: error {c.errors[c.method]:.1f}", height=460)


def compare_words(c: Comparison) -> str:
    """Which error, how far from the best, and whom it comes from."""
    best = min(c.errors, key=c.errors.__getitem__)
    where = "the lowest of all methods" if best == c.method else \
        f"{c.errors[c.method] / max(c.errors[best], 1e-9):.1f} times that of {best} ({c.errors[best]:.1f})"
    away = np.sqrt(np.square(c.tokens - c.stand_ins[c.labels]).sum(1))
    spots = len(np.unique(c.stand_ins.round(4), axis=0))
    lost = np.square(away)
    badly = int((away > _FAR).sum())
    whom = (f"{badly} of the 40 tokens lie farther than {_FAR} from their stand-in and make up "
            f"{lost[away > _FAR].sum() / max(lost.sum(), 1e-9):.0%} of it" if badly else
            f"no token lies farther than {away.max():.1f} from its stand-in")
    copies = f" Its {c.k} stand-ins lie on only {spots} spot{'s' if spots > 1 else ''}: the rest are copies." \
        if spots < c.k else ""
    return f"K = {c.k}, {c.method}: error {c.errors[c.method]:.1f}, {where}. Why: {whom}.{copies}"


def compare_table(c: Comparison) -> pd.DataFrame:
    return pd.DataFrame({"method": list(c.errors), "reconstruction error": [round(e, 2) for e in c.errors.values()]})


def explore() -> Explorer:
    methods = tuple(m for m in tp.method_names() if m != "grid_average")
    return Explorer({"cloud_name": Choice("Token cloud", CLOUDS), "copies": Number("Copies of the top token", 0, 0, 12),
                     "k": Number("Tokens kept, K", 4, 1, 12), "method": Choice("Method", methods, "top_k")},
                    compare, compare_figure, compare_words, compare_table, height=460,
                    measure=lambda c: ("error", c.errors[c.method], "{:.1f}"))


# ---- predictions ----

PREDICTIONS = (
    Prediction("a", "Six tokens. Three of them, A, B and C, are exact copies and have the highest score. K = 3. "
                    "What does top-K keep?",
               ("A, B and C", "one copy, D and E", "one copy, and the two farthest from it"),
               answer=lambda kept: 0 if set(kept) == {0, 1, 2} else 1,
               why={1: "That is what we would *like*. A score is given to each token alone; it cannot know that B says "
                       "what A has said.",
                    2: "That is what a clustering does. A score is given to each token alone."},
               tell=lambda kept: f"top-K keeps {', '.join('ABCDEF'[i] for i in kept)}"),
    Prediction("b", "One more token is kept: K becomes K + 1. Can the reconstruction error *rise*?",
               ("No, never", "Not for the best K tokens, but what a method finds may rise", "Yes, even for the best K"),
               answer=lambda rises: 2 if rises["best"] else 1 if rises["found"] else 0,
               why={0: "True of the best K tokens: the old K plus any other cannot do worse. But five iterations from "
                       "one start stop in a local optimum, and the one for K + 1 may be the worse one.",
                    2: "Keep the old K tokens and add any other: no token's nearest stand-in is farther than before."},
               tell=lambda rises: f"{rises['best']} rises among the best subsets, {rises['found']} among what five "
                                  f"iterations found"),
    Prediction("c", "K-Means may put its centres anywhere, K-Medoids only on tokens. Same start, five iterations, "
                    "centres as stand-ins. Who has the lower error?",
               ("K-Means, always", "K-Means almost always, K-Medoids now and then", "each about half of the time"),
               answer=lambda share: 0 if share == 0 else 1 if share < 0.3 else 2,
               why={0: "True of the two *optima*: K-Means may choose among more centres. Five iterations find local "
                       "optima, and the freer search can stop in the worse one.",
                    2: "The mean of a cluster is its best stand-in, so on the same clusters K-Means is never above."},
               tell=lambda share: f"K-Medoids was below K-Means in {share:.1%} of the trials"),
)


# ---- exercises ----

@exercise("a", minutes=8, level=2, hints=(
    "All differences at once: `f[:, None] - f_hat[None]` has shape (N, K, C).",
    "Squared distances are `(...).square().sum(-1)`, of shape (N, K). Every *token* looks for its nearest stand-in.",
    "Minimum over axis 1 (the K stand-ins), then the sum over what is left (the N tokens)."))
def chamfer(f, f_hat):
    distances = (f[:, None] - f_hat[None]).square().sum(-1)      # (N, K)
    return distances.min(1).values.sum()


@chamfer.check_by
def _(answer):
    f, _ = six_tokens()
    spread = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    expect(answer(f, f), 0.0, "Every token can stand in for itself, so with F^ = F nothing is lost.")
    asymmetric = answer(f, torch.tensor([[0.0, 0.0]]))
    ensure(abs(float(asymmetric)) > 1e-9, "With one stand-in left, five others are lost: the minimum belongs to the K "
                                          "stand-ins, the sum to the N tokens. Yours are the other way round.")
    expect(asymmetric, 50.0, "Six tokens, one stand-in at A: distances squared, 0 + 0 + 0 + 16 + 9 + 25. Did you "
                             "forget the square, or take a mean?")
    expect(answer(spread, spread[1:2]), 17.0, "Tokens at 0, 1 and 5, the stand-in at 1: 1 + 0 + 16.")


@exercise("b", minutes=6, level=1, hints=(
    "Set the derivative to zero: the sum of w_i (m - f_i) over all tokens must vanish.",
    "So m = (sum of w_i f_i) / (sum of w_i). With shapes: w[:, None] * f is (N, C)."))
def best_stand_in(f, w):
    return (w[:, None] * f).sum(0) / w.sum()


@best_stand_in.check_by
def _(answer):
    f = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 6.0]])
    got = answer(f, torch.ones(3))
    expect(got, [2.0, 2.0], "With equal weights the best single stand-in is the plain mean of the three tokens.")
    got = answer(f, torch.tensor([1.0, 1.0, 2.0]))
    ensure(torch.as_tensor(got).flatten().shape != (2,) or torch.dist(torch.as_tensor(got), torch.tensor([2.0, 2.0]))
           > 1e-4, "The weights change nothing in your answer. A token of weight 2 counts like two tokens.")
    expect(got, [2.5, 3.0], "The third token weighs 2 of 4: half of the way to it. Did you divide by the number of "
                            "tokens instead of the sum of the weights?")


@exercise("c", minutes=12, level=3, hints=(
    "What does a score not see? That two tokens are alike. So let the highest scores belong to tokens that are close "
    "together.",
    "Put k tokens (almost) on one spot with the highest score, and one token far away with a lower one.",
    "The score must be smooth, so let it fall slowly with the distance: `score = 1 / (1 + f.norm(dim=1))`."))
def counter_example():
    f = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [9.0, 0.0], [0.0, 9.0]])
    score = 1 / (1 + f.norm(dim=1))
    return f, score, 3


@counter_example.check_by
def _(answer):
    returned = answer()
    ensure(isinstance(returned, tuple) and len(returned) == 3, "Return three things: tokens (N, 2), score (N,), and k.")
    f, score, k = torch.as_tensor(returned[0]).float(), torch.as_tensor(returned[1]).float(), int(returned[2])
    ensure(f.ndim == 2 and f.shape[1] == 2 and score.shape == f.shape[:1],
           f"Tokens (N, 2) and a score (N,) are needed; {tuple(f.shape)} and {tuple(score.shape)} came.")
    ensure(len(f) <= 12, f"At most 12 tokens, so that all subsets can be tried; {len(f)} came.")
    ensure(1 <= k < len(f), f"k = {k} must leave something out: 1 to {len(f) - 1} here.")
    apart, differ = torch.cdist(f, f), (score[:, None] - score[None]).abs()
    ensure((differ <= apart + 1e-5).all(), "The score is not smooth: two tokens differ more in score than they lie "
                                           "apart. A network's score is a continuous function of the token.")
    kept = score.argsort(descending=True)[:k]
    lost = torch.cdist(f, f[kept]).square().min(1).values.sum().item()
    _, least = best_subset(f, k)
    ensure(lost >= 10 * max(least, 1e-9), f"Top-{k} loses {lost:.2f}, the best {k} tokens {least:.2f}. Make it "
                                          "at least ten times as much: where do copies hurt top-K most?")


