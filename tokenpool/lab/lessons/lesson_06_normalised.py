"""Notebook 06: keys and queries of one length. Two readings of the paper's eq. (6), their bound, an ablation."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from tokenpool.data.photographs import photographs
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.kit.session import photograph_vit, shipped_rows
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.measure.rows import wilson
from tokenpool.models.attention import UnitNorm, normalise_qk
from tokenpool.report.claims import MARGIN, Table, Verdict, verdicts
from tokenpool.report.stats import gap

PRESET = "imagenet50_cpu"
READINGS = {"r1": "R1: alpha cos", "r2": "R2: alpha² cos / √d"}


# ---- the two readings ----

def slope(alpha: float, reading: str, d: int) -> float:
    """What the cosine is multiplied with: alpha in R1, alpha² / sqrt(d) in R2 (both I)."""
    return alpha if reading == "r1" else alpha ** 2 / math.sqrt(d)


def package_scores(q: Tensor, k: Tensor, alpha: float, reading: str) -> Tensor:
    """Logits as `tokenpool.models.attention.normalise_qk` has a ViT compute them: (N, d) and (M, d) -> (N, M)."""
    d = q.shape[-1]
    log_alpha = nn.Parameter(torch.full((1,), math.log(alpha)), requires_grad=False)
    q_norm = UnitNorm(log_alpha, 1, math.sqrt(d)) if reading == "r1" else UnitNorm(log_alpha, 2)
    q, k = q_norm(q[None, None])[0, 0], UnitNorm()(k[None, None])[0, 0]
    return q @ k.mT / math.sqrt(d)


def reached_ratio(reading: str, alpha: float = 1.0, d: int = 64) -> float:
    """Largest over smallest weight for one key along the query and one against it, computed by the package."""
    q = torch.randn(1, d, generator=torch.Generator().manual_seed(0))
    weights = package_scores(q, torch.cat([3 * q, -0.5 * q]), alpha, reading).softmax(-1)
    return (weights.max() / weights.min()).item()


def fewest_keys(n: int, slope: float) -> float:
    """The least effective number of keys, exp of the entropy, that weights exp(slope * cos) can have among n keys.

    The entropy is concave, so its minimum lies at a corner: m keys along the query, all others against it.
    """
    least = float(n)
    for m in range(1, n):
        logits = torch.full((n,), -slope, dtype=torch.float64)
        logits[:m] = slope
        least = min(least, effective(logits.softmax(0).numpy()))
    return least


def effective(weights: np.ndarray) -> float:
    """Over how many keys an average runs: exp of the entropy of its weights (n,)."""
    p = weights[weights > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


# ---- four keys on a circle ----

ANGLES = {"A": 0, "B": 60, "C": 120, "D": 180}


def circle() -> tuple[Tensor, Tensor]:
    """A query and four keys of length one, in the plane: (2,) and (4, 2)."""
    turn = torch.tensor(list(ANGLES.values())) * math.pi / 180
    return torch.tensor([1.0, 0.0]), torch.stack([turn.cos(), turn.sin()], 1)


def circle_figure(lines: Mapping[tuple[str, float], list[float]]) -> go.Figure:
    """The circle, and the four weights for some readings and alphas: (reading, alpha) -> weights (4,)."""
    keys = circle()[1]
    fig = make_subplots(1, 2, column_widths=[0.36, 0.64], horizontal_spacing=0.12)
    turn = np.linspace(0, 2 * np.pi, 73)
    fig.add_scatter(x=np.cos(turn).round(3).tolist(), y=np.sin(turn).round(3).tolist(), mode="lines", hoverinfo="skip",
                    line=dict(color=GREY, dash="dot"), showlegend=False, row=1, col=1)
    fig.add_scatter(x=keys[:, 0].tolist(), y=keys[:, 1].tolist(), mode="markers+text", text=list(ANGLES),
                    textposition=["bottom left", "top right", "top left", "bottom right"], textfont_size=15,
                    marker=dict(symbol="circle", size=13, color=BLUE), name="key", showlegend=False, row=1, col=1)
    fig.add_annotation(x=0.86, y=0, ax=0, ay=0, xref="x", yref="y", axref="x", ayref="y", showarrow=True, arrowhead=3,
                       arrowwidth=3, arrowcolor=ORANGE, text="")
    fig.add_annotation(x=0.35, y=0.16, xref="x", yref="y", text="query", showarrow=False, font=dict(color=ORANGE))
    looks = {("r1", 1.0): (BLUE, "circle", "solid"), ("r2", 1.0): (ORANGE, "square", "dash"),
             ("r1", 4.0): (GREEN, "diamond", "solid"), ("r2", 4.0): (PURPLE, "triangle-up", "dash")}
    for (reading, alpha), weights in lines.items():
        colour, symbol, dash = looks[reading, alpha]
        fig.add_scatter(x=[f"{n}, {a}°" for n, a in ANGLES.items()], y=[round(100 * w, 2) for w in weights],
                        mode="lines+markers", name=f"{reading.upper()}, alpha = {alpha:g}", row=1, col=2,
                        line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=10))
    fig.add_hline(y=25, line=dict(color=GREY, dash="dot"), row=1, col=2)
    fig.add_annotation(x="D, 180°", y=27, text="plain mean", showarrow=False, xanchor="right", xref="x2", yref="y2",
                       yanchor="bottom", font=dict(color=GREY))
    fig.update_xaxes(visible=False, range=[-1.35, 1.35], row=1, col=1)
    fig.update_yaxes(visible=False, range=[-1.35, 1.35], scaleanchor="x", row=1, col=1)
    fig.update_xaxes(title="key, and its angle to the query", row=1, col=2)
    fig.update_yaxes(title="weight, %", range=[-3, 103], row=1, col=2)
    return fig.update_layout(title="How sharply can a query choose among four keys?", height=400,
                             legend=dict(orientation="h", y=-0.25))


def fewest_figure(n: int = 64, d: int = 64) -> tuple[go.Figure, pd.DataFrame]:
    """The least effective number of keys by alpha, both readings."""
    alphas = [2 ** (e / 2) for e in range(-4, 9)]
    table = pd.DataFrame({"alpha": [round(a, 3) for a in alphas], **{
        reading: [round(fewest_keys(n, slope(a, reading, d)), 2) for a in alphas] for reading in READINGS}})
    fig = go.Figure()
    for reading, colour, symbol, dash in (("r1", BLUE, "circle", "solid"), ("r2", ORANGE, "square", "dash")):
        fig.add_scatter(x=table["alpha"].tolist(), y=table[reading].tolist(), mode="lines+markers",
                        name=READINGS[reading], line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9))
    for x, text in ((1, "alpha = 1"), (math.sqrt(d), "alpha = √d")):
        fig.add_vline(x=x, line=dict(color=GREY, dash="dot"))
        fig.add_annotation(x=math.log10(x), y=n * 1.12, text=f" {text}", showarrow=False, xanchor="left",
                           font=dict(color=GREY))
    fig.update_xaxes(title="alpha (logarithmic)", type="log", tickvals=[0.25, 0.5, 1, 2, 4, 8, 16])
    fig.update_yaxes(title=f"effective number of keys, of {n}", range=[0, 1.17 * n])
    return fig.update_layout(title=f"Over how many of {n} keys does a query average, at least?",
                             legend=dict(orientation="h", y=-0.25)), table


# ---- real keys and queries ----

def head_vectors(vit: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of every block, (B, heads, N, d) each, caught at timm's q_norm and k_norm."""
    caught: list[dict[str, Tensor]] = [{} for _ in vit.blocks]
    hooks = [getattr(block.attn, f"{name}_norm").register_forward_hook(
        lambda module, given, out, name=name, at=at: at.__setitem__(name, out.detach()))
        for block, at in zip(vit.blocks, caught, strict=True) for name in "qk"]
    try:
        with torch.no_grad():
            vit(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [(at["q"], at["k"]) for at in caught]


def one_length(x: Tensor) -> Tensor:
    """Vectors (..., N, d) with their directions kept and all lengths replaced by the mean length of the N."""
    length = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=1e-12) * length.mean(-2, keepdim=True)


#: what attention becomes: name -> (q, k) (..., N, d) -> weights (..., N, N)
CHANGES = {
    "queries of one length": lambda q, k: _weights(one_length(q) @ k.mT, k),
    "keys of one length": lambda q, k: _weights(q @ one_length(k).mT, k),
    "plain Gaussian of q - k": lambda q, k: _weights(-torch.cdist(q, k).square() / 2, k),
    "plain mean": lambda q, k: torch.full_like(q @ k.mT, 1 / k.shape[-2]),
}


def _weights(products: Tensor, k: Tensor) -> Tensor:
    return (products / math.sqrt(k.shape[-1])).softmax(-1)


def attention_change(q: Tensor, k: Tensor, change: str) -> Tensor:
    """Share of a query's attention that moves to other keys: total variation, mean over images and queries.

    Args:
        q, k: (B, heads, N, d). change: a name of `CHANGES`.

    Returns:
        (heads,), each 0 (nothing moves) to 1 (everything does).
    """
    return (_weights(q @ k.mT, k) - CHANGES[change](q, k)).abs().sum(-1).div(2).mean((0, 2))


def length_spread(x: Tensor) -> Tensor:
    """Standard deviation over mean of the vectors' lengths in one image, mean over images: (B, H, N, d) -> (H,)."""
    length = x.norm(dim=-1)
    return (length.std(-1) / length.mean(-1)).mean(0)


def head_table(models: Mapping[str, tuple[nn.Module, Tensor]]) -> pd.DataFrame:
    """A row per head: model, block, head, spread of key and query lengths, slope, and how far each change takes it.

    The slope is mean |q| times mean |k| over sqrt(d): what multiplies the cosine of a typical pair.
    """
    rows = []
    for name, (vit, x) in models.items():
        for block, (q, k) in enumerate(head_vectors(vit, x), start=1):
            steep = (q.norm(dim=-1).mean((0, 2)) * k.norm(dim=-1).mean((0, 2)) / math.sqrt(q.shape[-1])).tolist()
            # exp(|k|² / 2 sqrt(d)) is what a key's length adds to the plain Gaussian (notebook 02)
            extra = k.square().sum(-1) / (2 * math.sqrt(k.shape[-1]))
            favour = (extra.amax(-1) - extra.amin(-1)).exp().median(0).values.tolist()
            moved = {change: attention_change(q, k, change).tolist() for change in CHANGES}
            spreads = length_spread(k).tolist(), length_spread(q).tolist()
            rows += [{"model": name, "block": block, "head": h + 1, "keys": spreads[0][h], "queries": spreads[1][h],
                      "slope": steep[h], "favour": favour[h], **{c: m[h] for c, m in moved.items()}}
                     for h in range(q.shape[1])]
    return pd.DataFrame(rows)


@functools.lru_cache(maxsize=1)
def photo_images() -> Tensor:
    """Five photographs, each whole and in quarters, as `photograph_vit` wants them: (25, 3, 64, 64)."""
    cut = []
    for pixels in photographs(128).values():
        cut.append(pixels.reshape(3, 64, 2, 64, 2).mean((2, 4)))
        cut += [pixels[:, top:top + 64, left:left + 64] for top in (0, 64) for left in (0, 64)]
    config = photograph_vit().pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (torch.from_numpy(np.stack(cut)).float() / 255 - mean) / std


MODEL_LOOKS = {"pebbles": (BLUE, "circle"), "photographs": (ORANGE, "square")}


def spread_figure(heads: pd.DataFrame) -> go.Figure:
    """Every head as a point: the spread of its keys' lengths and of its queries', by block."""
    fig = go.Figure()
    for place, (model, part) in enumerate(heads.groupby("model", sort=False)):
        colour, symbol = MODEL_LOOKS[str(model)]
        for what, mark in (("keys", symbol), ("queries", f"{symbol}-open")):
            fig.add_scatter(x=(part["block"] + 0.22 * (place - 0.5)).round(3).tolist(),
                            y=(100 * part[what]).round(1).tolist(), mode="markers", name=f"{what}, {model} model",
                            marker=dict(color=colour, symbol=mark, size=10, line_width=2 if "open" in mark else 0))
    fig.add_hline(y=0, line=dict(color=INK))
    fig.add_annotation(x=6.4, y=1, text="the assumption", showarrow=False, xanchor="right", yanchor="bottom")
    fig.update_xaxes(title="block", tickvals=list(range(1, 7)), range=[0.5, 6.5])
    fig.update_yaxes(title="spread of lengths, % of their mean", range=[-2, 46])
    return fig.update_layout(title="Are the keys of a head of one length?", legend=dict(orientation="h", y=-0.25))


def change_figure(heads: pd.DataFrame) -> go.Figure:
    """Every head as a point: the share of its attention that each change moves."""
    fig = go.Figure()
    for place, (model, part) in enumerate(heads.groupby("model", sort=False)):
        colour, symbol = MODEL_LOOKS[str(model)]
        # heads side by side, so that none hides another
        nudge = np.linspace(-0.13, 0.13, len(part)) + 0.34 * (place - 0.5)
        x = np.concatenate([i + nudge for i in range(len(CHANGES))])
        y = np.concatenate([part[change] for change in CHANGES])
        fig.add_scatter(x=x.round(3).tolist(), y=(100 * y).round(1).tolist(), mode="markers", name=f"{model} model",
                        marker=dict(color=colour, symbol=symbol, size=8))
    fig.update_xaxes(title="what is changed", tickvals=list(range(len(CHANGES))),
                     ticktext=[change.replace(" of ", "<br>of ").replace("plain mean", "plain<br>mean")
                               for change in CHANGES], range=[-0.5, len(CHANGES) - 0.5])
    fig.update_yaxes(title="attention that moves, %", range=[-2, 78])
    return fig.update_layout(title="How much attention moves when lengths are taken away?",
                             legend=dict(orientation="h", y=-0.3))


# ---- lengths taken away from a trained model ----

class Changed(nn.Module):
    """A function of the vectors (B, heads, N, d) in the place of timm's q_norm or k_norm."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


def with_change(vit: nn.Module, queries: Callable[[Tensor], Tensor] | None = None,
                keys: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy of a ViT whose queries or keys go through a function before they meet."""
    vit = copy.deepcopy(vit)
    for block in vit.blocks:
        if queries is not None:
            block.attn.q_norm = Changed(queries)
        if keys is not None:
            block.attn.k_norm = Changed(keys)
    return vit


def lengths_away(vit: nn.Module, x: Tensor, labels: np.ndarray) -> pd.DataFrame:
    """Top-1 of a trained model without lengths, nothing trained afterwards. Columns what, top1, low, high."""
    changed = {
        "as it was trained": vit,
        "queries of one length": with_change(vit, queries=one_length),
        "keys of one length": with_change(vit, keys=one_length),
        "both of one length": with_change(vit, queries=one_length, keys=one_length),
        "R1 or R2, alpha = √d": normalise_qk(copy.deepcopy(vit), "r1", learned=True),
        "R1, alpha = 1": normalise_qk(copy.deepcopy(vit), "r1", learned=False),
        "R2, alpha = 1": normalise_qk(copy.deepcopy(vit), "r2", learned=False),
        "all weights equal": with_change(vit, keys=torch.zeros_like)}
    rows = []
    for what, model in changed.items():
        with torch.no_grad():
            right = int((model(x).argmax(1).numpy() == labels).sum())
        rows.append((what, right / len(labels), *wilson(right, len(labels))))
    return pd.DataFrame(rows, columns=["what", "top1", "low", "high"])


def away_figure(table: pd.DataFrame, images: int) -> go.Figure:
    """A row per change, its top-1 and the 95 % interval over images."""
    fig = go.Figure(go.Scatter(
        x=(100 * table["top1"]).round(1).tolist(), y=table["what"].tolist(), mode="markers", showlegend=False,
        marker=dict(color=BLUE, size=11),
        error_x=dict(type="data", symmetric=False, array=(100 * (table["high"] - table["top1"])).round(1).tolist(),
                     arrayminus=(100 * (table["top1"] - table["low"])).round(1).tolist(), thickness=2)))
    fig.update_xaxes(title=f"top-1 on {images} pebble images, %; bars: 95 %", range=[0, 103])
    fig.update_yaxes(autorange="reversed", automargin=True)
    return fig.update_layout(title="What is left of a trained model without lengths?", height=360)


# ---- recorded runs ----

@functools.lru_cache(maxsize=1)
def recorded() -> Table:
    """The finetunings on photographs that ship with the project."""
    return Table(shipped_rows(f"{PRESET}-runs"), PRESET)


def recorded_pairs() -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """What was measured with normalised keys and queries, beside what it is compared with: name -> (R1, usual)."""
    t = recorded()
    base = t.all[(t.all["stage"] == "base") & (t.all["model"] == t.first)]
    return {"base models": (base[base["qk"] == "r1-learned"], base[base["qk"] == ""]),
            "plain, finetuned": (t.setting("plain", qk="r1-learned"), t.setting("plain")),
            "pooled, -42 %": (t.setting("wk_medoids", 0.42, qk="r1-learned"), t.setting("wk_medoids", 0.42))}


def ablation() -> pd.DataFrame:
    """R1 with learned alpha minus usual attention, in points of top-1, with two 95 % half widths.

    Columns: what, r1, usual (top-1), difference, images (half width from images alone), half (with the noise
    between finetunings; missing for the base models, whose noise was never measured), runs (R1 and usual).
    """
    rows = []
    for what, (ours, theirs) in recorded_pairs().items():
        alone, both = gap(ours, theirs, 0.0), gap(ours, theirs, recorded().noise)
        rows.append({"what": what, "r1": 100 * ours["top1"].mean(), "usual": 100 * theirs["top1"].mean(),
                     "difference": 100 * alone.value, "images": 100 * alone.half,
                     "half": math.nan if what == "base models" else 100 * both.half,
                     "runs": f"{len(ours)} and {len(theirs)}"})
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Two decimals, and words where a number is not known."""
    return table.round(2).astype(str).replace("nan", "not known")


def ablation_figure(table: pd.DataFrame) -> go.Figure:
    """Differences with both intervals; the band is what the claim calls little."""
    little, known = 200 * MARGIN, table["half"].notna().to_numpy()
    at, part = np.arange(len(table)), table[known]
    fig = go.Figure()
    fig.add_vrect(x0=-little, x1=little, fillcolor=GREY, opacity=0.15, line_width=0)
    fig.add_vline(x=0, line=dict(color=INK))
    fig.add_annotation(x=0, y=1.0, yref="paper", yanchor="bottom", text=f"band: {little:g} points, called little",
                       showarrow=False, font=dict(color=GREY))
    for name, y, x, half, colour, symbol in (
            ("95 %, images alone", at - 0.13, table["difference"], table["images"], ORANGE, "diamond"),
            ("95 %, images and finetunings", at[known] + 0.13, part["difference"], part["half"], BLUE, "circle")):
        fig.add_scatter(x=x.round(2).tolist(), y=y.tolist(), mode="markers", name=name,
                        marker=dict(color=colour, symbol=symbol, size=11),
                        error_x=dict(type="data", array=half.round(2).tolist(), thickness=2, width=6, color=colour))
    fig.update_xaxes(title="top-1 of R1 with learned alpha, minus usual attention, points", range=[-3, 5.5])
    fig.update_yaxes(range=[len(table) - 0.5, -0.5], automargin=True, tickvals=at.tolist(),
                     ticktext=table["what"].tolist())
    return fig.update_layout(title="Do normalised keys and queries change the result?", height=360,
                             legend=dict(orientation="h", y=-0.3), margin=dict(t=84))


def verdict() -> Verdict:
    """The ledger's verdict on the claim (docs/reproduction.md), from the same rows."""
    return next(v for v in verdicts(shipped_rows(f"{PRESET}-runs"), PRESET) if v.claim.id == "normalised")


def half_width(images: float, noise: float, runs: int) -> float:
    """95 % half width of a difference, with so many finetunings on each side."""
    return math.hypot(images, 1.96 * noise * math.sqrt(2 / runs))


# ---- the explorer: compute, draw, say ----

LAYOUTS = ("in random directions", "fanned out, 0 to 180 degrees")
_FLOOR = 1e-6                   # of the logarithmic axis


@dataclass(frozen=True)
class Kernel:
    alpha: float
    reading: str
    keys: int
    d: int
    spread: float
    slope: float
    cos: np.ndarray             # (keys,) of every key with the query
    lengths: np.ndarray         # (keys,) raw lengths over their mean
    weights: np.ndarray         # (keys,) normalised attention
    usual: np.ndarray           # (keys,) attention with the raw lengths
    log_sum: float              # log of the normaliser of `weights`


@functools.lru_cache(maxsize=512)
def kernel(alpha: float, reading: str, keys: int, d: int, spread: float, layout: str) -> Kernel:
    """One query among keys: weights in a reading of eq. (6), and of usual attention on the same directions.

    Usual attention has queries and keys of mean length sqrt(d), as of vectors whose channels have variance 1.

    Args:
        spread: standard deviation of the raw key lengths over their mean; lengths are lognormal.
    """
    draw = np.random.default_rng(0)
    if layout == LAYOUTS[0]:
        vectors = draw.standard_normal((keys, d))
        cos = vectors[:, 0] / np.linalg.norm(vectors, axis=1)
    else:
        cos = np.cos(np.linspace(0, np.pi, keys))
    z = draw.standard_normal(keys)
    width = math.sqrt(math.log1p(spread ** 2))
    z = (z - z.mean()) / z.std()
    lengths = np.exp(width * z)
    lengths /= lengths.mean()
    s = slope(alpha, reading, d)
    log_sum = float(np.logaddexp.reduce(s * cos))
    usual = math.sqrt(d) * lengths * cos
    return Kernel(alpha, reading, keys, d, spread, s, cos, lengths, np.exp(s * cos - log_sum),
                  np.exp(usual - np.logaddexp.reduce(usual)), log_sum)


def kernel_figure(c: Kernel) -> go.Figure:
    """Left: weight against angle. Right: the weights from large to small."""
    angles, turn = np.degrees(np.arccos(np.clip(c.cos, -1, 1))), np.linspace(0, 180, 61)
    curve = np.exp(c.slope * np.cos(np.radians(turn)) - c.log_sum)

    def times_mean(w: np.ndarray) -> list[float]:
        return [float(f"{v:.4g}") for v in np.maximum(c.keys * w, _FLOOR)]

    fig = make_subplots(1, 2, horizontal_spacing=0.14)
    fig.add_scatter(x=turn.tolist(), y=times_mean(curve), mode="lines", name="kernel", line=dict(color=BLUE),
                    row=1, col=1)
    fig.add_scatter(x=angles.round(1).tolist(), y=times_mean(c.usual), mode="markers", name="usual attention",
                    marker=dict(color=ORANGE, symbol="x", size=7), row=1, col=1)
    fig.add_scatter(x=angles.round(1).tolist(), y=times_mean(c.weights), mode="markers", name="normalised",
                    marker=dict(color=BLUE, symbol="circle-open", size=8), row=1, col=1)
    rank = list(range(1, c.keys + 1))
    for w, colour, dash in ((c.usual, ORANGE, "dash"), (c.weights, BLUE, "solid")):
        fig.add_scatter(x=rank, y=(100 * np.sort(w)[::-1]).round(3).tolist(), mode="lines", showlegend=False,
                        line=dict(color=colour, dash=dash, width=3), row=1, col=2)
    fig.add_scatter(x=[1, c.keys], y=[round(100 / c.keys, 3)] * 2, mode="lines", name="plain mean",
                    line=dict(color=GREY, dash="dot"), row=1, col=2)
    fig.update_xaxes(title="angle between key and query, degrees", range=[-4, 184], tickvals=[0, 45, 90, 135, 180],
                     row=1, col=1)
    top = max(1.3 * c.keys * max(c.weights.max(), c.usual.max()), 1.3 * c.keys * curve[0], 10)
    fig.update_yaxes(title="weight, in plain means", type="log", range=[math.log10(_FLOOR / 1.5), math.log10(top)],
                     exponentformat="power", dtick=2, row=1, col=1)
    fig.update_xaxes(title="key, by weight", row=1, col=2)
    fig.update_yaxes(title="weight, %", rangemode="tozero", row=1, col=2)
    return fig.update_layout(title=f"{c.reading.upper()}, alpha = {c.alpha:g}: {effective(c.weights):.1f} of {c.keys} "
                                   f"keys count; usual attention: {effective(c.usual):.1f}",
                             legend=dict(orientation="h", y=-0.22))


def kernel_words(c: Kernel) -> str:
    """What the setting does, and why."""
    count, raw = effective(c.weights), effective(c.usual)
    reached = c.slope * (c.cos.max() - c.cos.min())
    told = (f"{c.reading.upper()}, alpha = {c.alpha:g}, d = {c.d}: the logits are {c.slope:.3g} times the cosine, so "
            f"no weight can be more than {_power(2 * c.slope)} times another; among these keys the ratio reaches "
            f"{_power(reached)}. The query averages over {count:.1f} of {c.keys} keys. ")
    fall = math.log(10) / c.slope
    if fall > 2:
        told += "No angle costs a factor of ten: the kernel is wider than the circle, so most keys have a say. "
    else:
        told += f"The weight falls to a tenth within {math.degrees(math.acos(1 - fall)):.0f} degrees of the query. "
    if c.d >= 16 and float(np.abs(c.cos).max()) < 0.5:
        told += (f"Random directions in many channels all lie near 90 degrees: no cosine here is beyond "
                 f"{float(np.abs(c.cos).max()):.2f}. ")
    told += f"Usual attention, with lengths around √d, averages over {raw:.1f}: "
    if c.spread == 0:
        return told + "its keys are of one length too, so it is the same kind of kernel, with slope √d."
    return told + (f"its key lengths spread by {c.spread:.0%}, so its crosses lie on no curve: in front of the query a "
                   f"long key gets more than a short one at the same angle; behind the query, less.")


def _power(exponent: float) -> str:
    """exp(exponent), readable however large."""
    return f"{math.exp(exponent):.3g}" if exponent < 9 else f"10^{exponent / math.log(10):.0f}"


def kernel_table(c: Kernel) -> pd.DataFrame:
    rows = [(name, 100 * w.max(), 100 * w.min(), _power(float(np.log(w.max()) - np.log(max(w.min(), 1e-300)))),
             bound, math.log(effective(w)), effective(w))
            for name, w, bound in ((READINGS[c.reading], c.weights, _power(2 * c.slope)), ("usual", c.usual, "none"))]
    return pd.DataFrame(rows, columns=["attention", "largest, %", "smallest, %", "ratio", "bound", "entropy, nats",
                                       "effective keys"])


def explore() -> Explorer:
    alphas = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0, 5.66, 8.0, 11.3, 16.0)
    return Explorer({"alpha": Choice("alpha", {f"{a:g}": a for a in alphas}, 1.0),
                     "reading": Choice("Reading of eq. (6)", {name: key for key, name in READINGS.items()}),
                     "layout": Choice("Keys", LAYOUTS, LAYOUTS[1]),
                     "keys": Number("Number of keys", 64, 4, 128),
                     "d": Choice("Channels of a head, d", {str(d): d for d in (4, 16, 32, 64, 128)}, 64),
                     "spread": Number("Spread of raw key lengths, share", 0.3, 0.0, 0.6, 0.05)},
                    kernel, kernel_figure, kernel_words, kernel_table, height=440,
                    measure=lambda c: ("number of keys that the query averages over", effective(c.weights), "{:.1f}"))


# ---- predictions ----

PREDICTIONS = (
    Prediction("a", "A query and its keys are scaled to length one, alpha = 1, the head has 64 channels. How many "
                    "times larger than the smallest attention weight can the largest be?",
               ("any number of times: one key can take everything",
                "less than ten times in one reading, less than twice in the other",
                "less than twice, in both readings"),
               answer=lambda found: 0 if max(found.values()) > 10 else 2 if max(found.values()) < 2 else 1,
               why={0: "True of usual attention: a long key makes its logit as large as it likes. A cosine cannot "
                       "leave -1 to 1, and alpha is all that multiplies it.",
                    2: "The readings differ by the division by the root of the channels. Only one of them keeps it."},
               tell=lambda found: ", ".join(f"{v:.2f} in {r.upper()}" for r, v in found.items())),
    Prediction("b", "Alpha = 1 in R1, and 64 keys that lie as unevenly as you please. Over how many keys does a query "
                    "average, at least? (Counted by exp of the entropy: equal weights on m keys count m.)",
               ("1 to 8", "9 to 32", "more than 32"),
               answer=lambda keys: 0 if keys <= 8.5 else 1 if keys <= 32.5 else 2,
               why={0: "A ratio of seven sounds like a choice. But 63 keys with a seventh of the weight each still "
                       "weigh more than eight times as much as the one.",
                    1: "Make the weights as uneven as the bound allows: some keys along the query, all others against "
                       "it. Even the worst mixture is flatter than this."},
               tell=lambda keys: f"at least {keys:.1f} of 64 keys"),
    Prediction("c", "Two trained models with usual attention. In a typical head, by how much do the lengths of a "
                    "image's keys spread, as a share of their mean?",
               ("less than 5 %: as good as one length", "5 to 20 %", "more than 20 %"),
               answer=lambda spread: 0 if max(spread.values()) < 0.05 else 2 if min(spread.values()) > 0.2 else 1,
               why={0: "Tokens are normalised before each block, which makes this tempting. But a key is a matrix "
                       "times the token, and the matrix stretches some directions.",
                    1: "Nothing in training holds the lengths together, and a length is useful: a long key is louder "
                       "for every query that agrees with it."},
               tell=lambda spread: "median head, " + ", ".join(f"{v:.0%} in the {n} model" for n, v in spread.items())),
    Prediction("d", "R1 with learned alpha against usual attention: both finetuned, 2,500 images. How small a "
                    "difference can such an experiment tell from chance?",
               ("a tenth of a point", "half a point", "about two points"),
               answer=lambda half: 0 if half < 0.3 else 1 if half < 1.0 else 2,
               why={0: "One image is a twenty-fifth of a point, so a tenth can be *written down*. But between two "
                       "equally good models many images change sides, by chance not equally many each way.",
                    1: "Half a point is what one finetuning differs from the next, as one standard deviation. The "
                       "images come on top, and a 95 % interval reaches two standard deviations to each side."},
               tell=lambda half: f"a 95 % interval of ± {half:.1f} points"),
)


# ---- exercises ----

@exercise("a", minutes=8, level=2, hints=(
    "Both readings start from the cosine: scale every query and every key to length one, then multiply.",
    "The length of a vector is taken over its channels, the last axis: `torch.nn.functional.normalize(q, dim=-1)`.",
    "R1 is `alpha * cos`. In R2 *both* vectors have length alpha, so alpha counts twice, and the usual division by "
    "sqrt(d) stays: d is `q.shape[-1]`."))
def normalised_scores(q, k, alpha, reading):
    cos = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    return alpha * cos if reading == "r1" else alpha ** 2 * cos / q.shape[-1] ** 0.5


@normalised_scores.check_by
def _(answer):
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 4, generator=draw), torch.randn(2, 5, 4, generator=draw)
    cos = torch.nn.functional.cosine_similarity(q[:, :, None], k[:, None], dim=-1)
    got = torch.as_tensor(answer(q, k, 1.0, "r1")).float()
    ensure(tuple(got.shape) == (2, 3, 5), f"Two heads, 3 queries, 5 keys make logits of shape (2, 3, 5); yours have "
                                          f"{tuple(got.shape)}. `.mT` turns the last two axes over.")
    n = torch.nn.functional.normalize
    for axis, name in ((-2, "the tokens"), (0, "the heads")):
        ensure(not _same(got, n(q, dim=axis) @ n(k, dim=axis).mT), f"You divide by a length taken over {name}. A "
               "vector has its length over the channels, the last axis: dim=-1.")
    ensure(not _same(got, cos / 2), "In R1 alpha is all there is: no division by sqrt(d). You still divide.")
    ensure(not _same(got, cos.softmax(-1)), "Logits are asked for, before the softmax.")
    for a, b, text in ((q, n(k, dim=-1), "The keys have length one; the queries still have their own."),
                       (n(q, dim=-1), k, "The queries have length one; the keys still have their own.")):
        ensure(not _same(got, a @ b.mT), text)
    ensure(got.abs().max() <= 1 + 1e-5, f"With alpha = 1 no logit of R1 can leave -1 to 1; yours reach "
                                        f"{got.abs().max():.2f}. Are both vectors of length one?")
    expect(got, cos, "R1 with alpha = 1 is the cosine of the angle between query and key.")
    expect(answer(q, k, 3.0, "r1"), 3 * cos, "R1 with alpha = 3 is three times the cosine.")
    got = torch.as_tensor(answer(q, k, 3.0, "r2")).float()
    ensure(not _same(got, 3 * cos), "Your R2 is R1. In R2 both vectors have length alpha, and the usual sqrt(d) stays.")
    ensure(not _same(got, 3 * cos / 2), "In R2 *both* vectors have length alpha, so alpha comes in twice.")
    ensure(not _same(got, 9 * cos), "R2 keeps the usual division by sqrt(d), here 2.")
    ensure(not _same(got, 9 * cos / 4), "You divide by d; attention divides by its root.")
    expect(got, 9 * cos / 2, "R2 with alpha = 3 and d = 4: 3² / 2 = 4.5 times the cosine.")


@exercise("b", minutes=6, level=2, hints=(
    "The largest logit belongs to a key along the query, cos = 1; the smallest to one against it, cos = -1.",
    "A ratio of weights is exp of the *difference* of logits. From cos = -1 to cos = 1 that is twice the slope.",
    "The slope is alpha in R1 and alpha² / sqrt(d) in R2: `math.exp(2 * slope)`."))
def largest_ratio(alpha, reading, d):
    slope = alpha if reading == "r1" else alpha ** 2 / math.sqrt(d)
    return math.exp(2 * slope)


@largest_ratio.check_by
def _(answer):
    got = float(answer(1.0, "r1", 64))
    ensure(not _near(got, math.e), "Your smallest weight belongs to a key at a right angle, cos = 0. A key can point "
                                   "*against* the query.")
    ensure(not _near(got, 2.0), "That is the difference of the logits. Weights are exp of logits: what is their ratio?")
    ensure(not _near(got, math.exp(2 / 8)), "R1 has no division by sqrt(d); you divide in both readings.")
    expect(got, math.exp(2), "R1, alpha = 1: logits from -1 to 1, so e².", tolerance=1e-3)
    expect(answer(2.0, "r1", 64), math.exp(4), "R1, alpha = 2: logits from -2 to 2, so e⁴.", tolerance=1e-3)
    expect(answer(2.0, "r1", 16), math.exp(4), "In R1 the number of channels plays no part.", tolerance=1e-3)
    got = float(answer(1.0, "r2", 64))
    ensure(not _near(got, math.exp(2 / 64)), "You divide by d; attention divides by its root, 8 here.")
    ensure(not _near(got, math.exp(2)), "R2 keeps the usual division by sqrt(d); R1 does without.")
    expect(got, math.exp(0.25), "R2, alpha = 1, d = 64: logits from -1/8 to 1/8.", tolerance=1e-3)
    got = float(answer(2.0, "r2", 16))
    ensure(not _near(got, math.exp(1)), "In R2 both vectors have length alpha: alpha counts twice.")
    expect(got, math.exp(2), "R2, alpha = 2, d = 16: logits from -1 to 1.", tolerance=1e-3)


@exercise("c", minutes=10, level=3, hints=(
    "Pair first: for every image, the mean over our runs minus the mean over theirs. `difference` is their mean.",
    "Images: the standard error of that mean, `apart.std() / n ** 0.5`. Finetunings: the difference of two means, "
    "over R and over S runs, has the standard deviation `run_noise * (1 / R + 1 / S) ** 0.5`.",
    "Independent parts add in quadrature: `half = 1.96 * math.hypot(images, runs)`. Undecided if the interval "
    "difference ± half holds 0."))
def beyond_noise(ours, theirs, run_noise):
    apart = ours.mean(0) - theirs.mean(0)
    images = apart.std().item() / len(apart) ** 0.5
    runs = run_noise * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    difference, half = apart.mean().item(), 1.96 * math.hypot(images, runs)
    verdict = "undecided" if abs(difference) <= half else "above" if difference > 0 else "below"
    return difference, half, verdict


def _image_rows(n: int, runs: int, right: float, seed: int) -> Tensor:
    """Runs of one system on n images, of which some are hard for every run: (runs, n), 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    easy = torch.rand(n, generator=torch.Generator().manual_seed(99))
    return (easy + 0.25 * torch.randn(runs, n, generator=draw) < right).float()


@beyond_noise.check_by
def _(answer):
    ours, theirs, noise = _image_rows(900, 1, 0.62, 1), _image_rows(900, 2, 0.5, 2), 0.012

    def asked(ours: Tensor, theirs: Tensor, noise: float) -> tuple[float, float, str]:
        got = answer(ours, theirs, noise)
        ensure(isinstance(got, tuple | list) and len(got) == 3, "Return three things: difference, half, verdict.")
        return float(got[0]), float(got[1]), str(got[2])

    apart = ours.mean(0) - theirs.mean(0)
    n, images = len(apart), apart.std().item() / len(apart) ** 0.5
    runs = noise * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    right = 1.96 * math.hypot(images, runs)
    difference, half, _ = asked(ours, theirs, noise)
    ensure(not _near(difference, -apart.mean().item()), "The sign: ours minus theirs, so that above means better.")
    ensure(not _near(difference, 100 * apart.mean().item()), "Shares are asked for, not percent.")
    expect(difference, apart.mean().item(), "The difference is the mean of ours minus the mean of theirs.", 1e-4)
    apart_alone = math.hypot(*(s.mean(0).std().item() / n ** 0.5 for s in (ours, theirs)))
    for wrong, why in (
        (1.96 * images, "Your interval knows the images only. Finetune again and the difference moves: run_noise "
                          "is missing."),
        (1.96 * runs, "Your interval knows the finetunings only. With other images the difference moves too."),
        (1.96 * (images + runs), "You add the two parts. They are independent, so their *variances* add: in "
                                   "quadrature, math.hypot."),
        (1.96 * math.sqrt(images + runs), "Squares are missing: the root of the sum of the *squares*, math.hypot."),
        (1.645 * math.hypot(images, runs), "1.645 leaves 5 % on *one* side. The interval has two: 2.5 % each, 1.96."),
        (math.hypot(images, runs), "That is one standard error. A 95 % interval is 1.96 of them on each side."),
        (1.96 * math.hypot(images, noise), "The runs' part is that of one finetuning. Here a mean over one run is "
                                             "compared with a mean over two: noise times the root of 1/1 + 1/2."),
        (1.96 * math.hypot(apart_alone, runs), "You treat the two systems as if they had seen different images. Take "
                                               "the difference image by image first, then its spread."),
        (1.96 * math.hypot(apart.std().item(), runs), "The spread of one image is not the spread of the mean over n: "
                                                      "divide by the root of n."),
    ):
        ensure(not _near(half, wrong), why)
    if not _near(half, right):
        raise Wrong(f"For one run against two on {n} images, noise {noise}: expected a half width of {right:.5f}, "
                    f"got {half:.5f}. Two parts: images, and finetunings.")
    for better, worse, sigma, wanted, why in (
        (_image_rows(900, 2, 0.66, 3), theirs, 0.001, "above", "The whole interval lies above 0."),
        (theirs, _image_rows(900, 2, 0.66, 3), 0.001, "below", "The whole interval lies below 0."),
        (_image_rows(900, 1, 0.53, 4), theirs, 0.05, "undecided", "The interval holds 0."),
        (theirs, _image_rows(900, 1, 0.53, 4), 0.05, "undecided", "The interval holds 0, although the difference is "
                                                                    "negative."),
    ):
        d, h, said = asked(better, worse, sigma)
        ensure(said in ("above", "below", "undecided"),
               f"The verdict is one of above, below, undecided; yours is {said!r}.")
        ensure(said == wanted, f"{100 * d:+.1f} ± {100 * h:.1f} points: {why} So the verdict is {wanted!r}; "
                               f"yours is {said!r}.")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b.float(), rtol=1e-4, atol=1e-5)


def _near(a: float, b: float) -> bool:
    """Equal up to half a percent: the standard deviation may divide by n or by n - 1."""
    return abs(a - b) <= 5e-3 * abs(b)
