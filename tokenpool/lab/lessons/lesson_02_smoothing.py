"""Notebook 02: softmax attention averages with weights that fall with distance. Identity, filter, real tokens."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

import tokenpool as tp
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREY, INK, ORANGE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.widgets.controls import Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.models.attention import attention_half, mlp_half

# ---- toys: five keys ----

SHAPES = ("straight", "bent")


def five_keys(shape: str) -> tuple[Tensor, Tensor]:
    """Five keys 1.5 apart in the plane, and a query that sits exactly on the fourth.

    Args:
        shape: "straight", a line that passes the origin at a distance of 3, so that norms differ; "bent", the same
            line bent into an arc around the origin, so that all norms are 3.

    Returns:
        query (2,), keys (5, 2).
    """
    along = torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0], dtype=torch.float64)
    if shape == "straight":
        k = torch.stack([along, torch.full_like(along, 3.0)], 1)
    else:
        k = 3 * torch.stack([(along / 3).sin(), (along / 3).cos()], 1)
    return k[3].clone(), k


def factors(q: Tensor, k: Tensor) -> pd.DataFrame:
    """One query's weights taken apart: the Gaussian of the distance, the key's own factor, their product, the softmax.

    Args:
        q: (d,). k: (keys, d).

    Returns:
        a row per key; the key factors and the products are given as multiples of the smallest key factor.
    """
    root = math.sqrt(len(q))
    squared = (q - k).square().sum(1)
    own = k.square().sum(1) / (2 * root)
    gaussian, factor = (-squared / (2 * root)).exp(), (own - own.min()).exp()
    return pd.DataFrame({"key": range(1, len(k) + 1), "distance²": squared.tolist(), "Gaussian": gaussian.tolist(),
                         "key factor": factor.tolist(), "product": (gaussian * factor).tolist(),
                         "softmax": (k @ q / root).softmax(0).tolist()}).round(3)


def five_figure() -> go.Figure:
    """Both shapes side by side: a key's disc is as large as its weight, and the weight stands beside it."""
    fig = go.Figure()
    for column, shape in enumerate(SHAPES):
        q, k = five_keys(shape)
        weight = factors(q, k)["softmax"]
        at = k + torch.tensor([9.5 * column, 0.0])
        fig.add_scatter(x=at[:, 0].tolist(), y=at[:, 1].tolist(), mode="lines", line=dict(color=GREY, dash="dot"),
                        showlegend=False, hoverinfo="skip")
        fig.add_scatter(x=at[:, 0].tolist(), y=at[:, 1].tolist(), mode="markers", name="key (larger: more weight)",
                        showlegend=not column, customdata=weight.tolist(), hovertemplate="weight %{customdata:.3f}",
                        marker=dict(color=BLUE, size=(9 + 34 * weight).round(1).tolist(),
                                    line=dict(color=INK, width=1)))
        fig.add_scatter(x=[at[3, 0].item()], y=[at[3, 1].item()], mode="markers", name="query, exactly on key 4",
                        showlegend=not column, marker=dict(color=ORANGE, symbol="x", size=11,
                                                           line=dict(color="white", width=1)))
        fig.add_scatter(x=[9.5 * column], y=[0], mode="markers", name="origin", showlegend=not column,
                        marker=dict(color=INK, symbol="cross-thin", size=12, line=dict(color=INK, width=2)))
        for place in range(5):
            out = k[place] / k[place].norm() * (1.05 if shape == "bent" else 1.0)
            x, y = (at[place] + out).tolist() if shape == "bent" else (at[place, 0].item(), 4.05)
            fig.add_annotation(x=round(x, 3), y=round(y, 3), text=f"{place + 1}: {weight[place]:.2f}", showarrow=False,
                               font_size=13)
        fig.add_annotation(x=9.5 * column, y=-0.9, showarrow=False,
                           text=("straight: norms differ", "bent: all norms are 3")[column])
    fig.update_xaxes(visible=False, range=[-4.4, 14]).update_yaxes(visible=False, range=[-1.4, 4.9], scaleanchor="x")
    return fig.update_layout(title="Which key does the query listen to?", height=340,
                             legend=dict(orientation="h", y=-0.02))


# ---- toys: keys along a closed line ----

PLACES, RADIUS, FINE = 64, 7.0, 8       # FINE: what every fourth of 64 places can carry, by Nyquist's rule


def softmax_weights(q: Tensor, k: Tensor, alpha: float = 1.0) -> Tensor:
    """Attention of queries q (N, d) over keys k (M, d), logits times alpha: (N, M), rows sum to one."""
    return (alpha * q @ k.T / math.sqrt(q.shape[1])).softmax(1)


def gaussian_weights(q: Tensor, k: Tensor) -> Tensor:
    """The same by distances alone, as if all keys had one norm: (..., N, d), (..., M, d) -> (..., N, M)."""
    # without "mm" a distance is a sum of squared differences: a dot product would take the identity for granted
    squared = torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (-squared / (2 * math.sqrt(q.shape[-1]))).softmax(-1)


def closed_line(spread: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """64 places at equal distances on a circle of radius 7: queries and keys, both (64, 2), double precision.

    Args:
        spread: norms of the keys are drawn from 7 (1 - spread) to 7 (1 + spread); queries stay on the circle.
    """
    turn = 2 * torch.pi * torch.arange(PLACES, dtype=torch.float64) / PLACES
    q = RADIUS * torch.stack([turn.cos(), turn.sin()], 1)
    draw = 2 * torch.rand(PLACES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    return q, q * (1 + spread * draw)[:, None]


def signal(waves: int = 12, noise: float = 0.2) -> Tensor:
    """Values along the line: a half, a slow wave (2 periods), a fine one (`waves` periods), and noise: (64,)."""
    turn = 2 * torch.pi * torch.arange(PLACES, dtype=torch.float64) / PLACES
    hiss = torch.randn(PLACES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.5 + (2 * turn).sin() + 0.6 * (waves * turn).sin() + noise * hiss


def amplitudes(v: Tensor) -> Tensor:
    """Amplitude of each frequency, 0 to 32 waves around the line: (64,) -> (33,)."""
    size = torch.fft.rfft(v).abs() / len(v)
    size[1:-1] *= 2             # a wave lives at a positive and a negative frequency; mean and the finest have no twin
    return size


def fine_energy(v: Tensor) -> float:
    """Energy at more than 8 waves: what every fourth sample cannot carry."""
    return (torch.fft.fft(v).abs().square() * (frequencies(len(v)) > FINE)).sum().item()


def frequencies(n: int) -> Tensor:
    """Waves over n samples, of every coefficient of the Fourier transform, without its sign: (n,)."""
    return torch.fft.fftfreq(n, 1 / n).abs()


def lost_by_sampling(v: Tensor, step: int = 4) -> float:
    """Keep every `step`-th sample, draw the smoothest curve through them: the share of the variance that is lost."""
    kept = torch.fft.rfft(v[::step])
    kept[-1] /= 2               # of the finest wave the samples hold the positive and the negative frequency in one
    rebuilt = torch.fft.irfft(kept, n=len(v)) * step
    return ((v - rebuilt).square().sum() / (v - v.mean()).square().sum()).item()


def effective_number(weights: Tensor) -> Tensor:
    """How many keys a query averages: exp of the entropy of its weights, (..., keys) -> (...).

    >>> effective_number(torch.tensor([0.25, 0.25, 0.25, 0.25])).item()
    4.0
    """
    return torch.special.entr(weights).sum(-1).exp()


def sharpened(spread: float = 0.1, draws: int = 50) -> float:
    """Share of the queries on the closed line that average *fewer* keys when the norms of the keys are unequal."""
    q, k = closed_line()
    equal = effective_number(softmax_weights(q, k))
    found = [effective_number(softmax_weights(q, closed_line(spread, seed)[1])) < equal for seed in range(draws)]
    return torch.stack(found).double().mean().item()


def kernel_figure(spread: float = 0.02) -> go.Figure:
    """Weights against the distance from query to key, for equal and for unequal norms of the keys.

    A weight is given as a multiple of what a key of norm 7 at the query's own place would get, so that equal norms
    must give the Gaussian.
    """
    q, equal = closed_line()
    fig = go.Figure()
    reach = torch.linspace(0, 5, 51, dtype=torch.float64)
    fig.add_scatter(x=reach.tolist(), y=(-reach.square() / (2 * math.sqrt(2))).exp().numpy().round(4).tolist(),
                    mode="lines", name="Gaussian, variance √2", line=dict(color=INK))
    for k, name, look in (
            (equal, "all norms 7", dict(color=BLUE, symbol="circle-open", size=12, line=dict(width=2))),
            (closed_line(spread)[1], f"norms within {spread:.0%} of 7", dict(color=ORANGE, symbol="x", size=6))):
        ratio = ((q @ k.T - RADIUS ** 2) / math.sqrt(2)).exp()
        apart = (q[:, None] - k[None]).norm(dim=2)
        # every fourth query is enough for the eye
        near = [(i, j) for i, j in (apart < 5).nonzero().tolist() if i % 4 == 0]
        fig.add_scatter(x=[round(apart[i, j].item(), 3) for i, j in near], mode="markers", name=name,
                        y=[round(ratio[i, j].item(), 4) for i, j in near],
                        marker=look)
    fig.update_xaxes(title="distance between query and key")
    fig.update_yaxes(title="weight (norm 7 at distance 0: 1)", rangemode="tozero")
    return fig.update_layout(title="Does a weight depend on the distance alone?", height=380,
                             legend=dict(orientation="h", y=-0.25))


def lifted(spread: float) -> tuple[float, float]:
    """The smallest and the largest key factor on the closed line, as multiples of that of a key of norm 7."""
    _, k = closed_line(spread)
    factor = ((k.square().sum(1) - RADIUS ** 2) / (2 * math.sqrt(2))).exp()
    return factor.min().item(), factor.max().item()


def spectrum_figure(v: Tensor, out: Tensor) -> go.Figure:
    """Two panels, one above the other: values and attention output along the line, and their spectra."""
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    _signals(fig, v, out, row=1, col=1)
    _spectra(fig, v, out, row=2, col=1)
    return fig.update_layout(title="What does attention do to fine detail?", height=560,
                             legend=dict(orientation="h", y=-0.14))


def _signals(fig: go.Figure, v: Tensor, out: Tensor, row: int, col: int) -> None:
    for y, name, colour, dash in ((v, "values", GREY, "dot"), (out, "attention output", BLUE, "solid")):
        fig.add_trace(go.Scatter(x=list(range(PLACES)), y=y.numpy().round(3).tolist(), mode="lines", name=name,
                                 line=dict(color=colour, dash=dash), legendgroup=name), row=row, col=col)
    fig.update_xaxes(title="place along the closed line", range=[0, 63], row=row, col=col)
    fig.update_yaxes(title="value", range=[-1.9, 2.9], row=row, col=col)


def _spectra(fig: go.Figure, v: Tensor, out: Tensor, row: int, col: int) -> None:
    for y, name, colour, symbol in ((v, "values", GREY, "diamond-open"), (out, "attention output", BLUE, "circle")):
        fig.add_trace(go.Scatter(x=list(range(33)), y=amplitudes(y).numpy().round(4).tolist(), mode="lines+markers",
                                 name=name, line=dict(color=colour, width=1), marker=dict(symbol=symbol, size=7),
                                 showlegend=False, legendgroup=name), row=row, col=col)
    fig.update_xaxes(title="frequency, waves around the line", range=[-0.7, 32.7], row=row, col=col)
    fig.update_yaxes(title="amplitude", range=[-0.04, 1.1], row=row, col=col)


# ---- at full size ----

def fine_detail(tokens: Tensor, limit: int = 2) -> Tensor:
    """Share of the variance of tokens on a square grid that is finer than `limit` waves along rows or columns.

    A two-dimensional Fourier transform of every channel, energies summed over channels, the mean token left out. With
    the limit at a quarter of the grid's side it is what a grid of every second token cannot carry.

    Args:
        tokens: (images, side * side, C).

    Returns:
        (images,) between 0 and 1.
    """
    B, N, C = tokens.shape
    side = math.isqrt(N)
    energy = torch.fft.fft2(tokens.reshape(B, side, side, C), dim=(1, 2)).abs().square().sum(-1)
    waves = frequencies(side)
    high = torch.maximum(waves[:, None], waves[None]) > limit
    return (energy * high).sum((1, 2)) / (energy.sum((1, 2)) - energy[:, 0, 0])


def fine_detail_of_noise(side: int = 8, limit: int = 2) -> float:
    """The expected `fine_detail` of tokens in shuffled places: every frequency but the mean holds the same energy."""
    return 1 - ((2 * limit + 1) ** 2 - 1) / (side * side - 1)


def rank(tokens: Tensor) -> Tensor:
    """Effective rank: in how many directions the tokens differ, (..., N, C) -> (...).

    exp of the entropy of the shares of variance along the principal directions (the shares are squared singular
    values of the centred tokens; Roy and Vetterli's definition has them unsquared).
    """
    spread = torch.linalg.svdvals(tokens - tokens.mean(-2, keepdim=True)).square()
    return effective_number(spread / spread.sum(-1, keepdim=True))


def variance(tokens: Tensor) -> Tensor:
    """Summed squared distance to the mean token, (..., N, C) -> (...)."""
    return (tokens - tokens.mean(-2, keepdim=True)).square().sum((-2, -1))


def lost_by_pooling(tokens: Tensor, k: int = 16) -> Tensor:
    """Share of the variance that is lost when k cluster means stand in for all tokens: (B, N, C) -> (B,)."""
    out = tp.pool_tokens(tokens, k, method="k_means", init="farthest_first")
    return (tokens - out.unpool()).square().sum((1, 2)) / variance(tokens)


@torch.no_grad()
def by_depth(vit: Any, x: Tensor) -> pd.DataFrame:
    """What every block does to the patch tokens of every image.

    Args:
        vit: a ViT of timm with a class token and timm's plain Attention. x: (B, 3, height, width).

    Returns:
        a row per image and block; block 0 is the embedding, with the columns of the stream only.
        stream, values, output = the residual stream after the block; the values its attention averages; the averages.
        fine_*: `fine_detail`. rank_*: `rank`. lost_*: `lost_by_pooling` to 16 (not of the stream's embedding).
        kept, kept_shuffled: variance of the output over that of the values, and the same with the patches' values
        dealt out to other patches. keys: effective number of keys a patch averages. factor: logarithm of the largest
        over the smallest key factor exp(‖k‖² / (2 √d)), mean over heads. elsewhere: share of the weight that the plain
        Gaussian, without key factors, puts on other keys. outside: channels in which an output leaves the values'
        range. grown: share of channels in which the variance grows.
    """
    t = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    B, N = t.shape[:2]
    deal = torch.cat([torch.zeros(1, dtype=torch.long),
                      1 + torch.randperm(N - 1, generator=torch.Generator().manual_seed(0))])

    def patches(heads: Tensor) -> Tensor:
        return heads.transpose(1, 2).reshape(B, N, -1)[:, 1:].contiguous()

    rows = [pd.DataFrame({"block": 0, "image": range(B)} | _numbers(_stream(t)))]
    for place, block in enumerate(vit.blocks):
        q, k, v = block.attn.qkv(block.norm1(t)).reshape(B, N, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        t, seen = attention_half(block, t, None, None)
        t, weights = mlp_half(block, t), seen.attention
        values, output, shuffled = patches(v), patches(weights @ v), patches(weights @ v[:, :, deal])
        own = k.square().sum(-1) / (2 * math.sqrt(k.shape[-1]))
        low, high = (m.reshape(B, 1, -1) for m in (v.amin(2), v.amax(2)))
        grown = output.var(1) > values.var(1)
        found = _stream(t) | {
            "lost_stream": lost_by_pooling(t[:, 1:].contiguous()),
            "fine_values": fine_detail(values), "fine_output": fine_detail(output),
            "rank_values": rank(values), "rank_output": rank(output),
            "lost_values": lost_by_pooling(values), "lost_output": lost_by_pooling(output),
            "kept": variance(output) / variance(values), "kept_shuffled": variance(shuffled) / variance(values),
            "keys": effective_number(weights)[:, :, 1:].mean((1, 2)),
            "factor": (own.amax(-1) - own.amin(-1)).mean(1),
            "elsewhere": (weights - gaussian_weights(q, k)).abs().sum(-1).mean((1, 2)) / 2,
            "outside": ((output < low - 1e-4) | (output > high + 1e-4)).any(1).sum(1),
            "grown": grown.double().mean(1)}
        rows.append(pd.DataFrame({"block": place + 1, "image": range(B)} | _numbers(found)))
    return pd.concat(rows, ignore_index=True)


def _stream(t: Tensor) -> dict[str, Tensor]:
    return {"fine_stream": fine_detail(t[:, 1:]), "rank_stream": rank(t[:, 1:])}


def _numbers(found: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in found.items()}


_LINES = {"pebbles": (BLUE, "circle"), "photographs": (ORANGE, "square")}
_BESIDE = {BLUE: -0.08, ORANGE: 0.08}         # whiskers of the two models stand beside one another


def _curve(fig: go.Figure, table: pd.DataFrame, column: str, name: str, look: tuple[str, str, str], col: int,
           legend: bool = True, whiskers: bool = True) -> None:
    """Mean over images by block; whiskers from the lowest image to the highest."""
    group = table.dropna(subset=[column]).groupby("block")[column]
    mean, low, high = (getattr(group, what)() for what in ("mean", "min", "max"))
    colour, symbol, dash = look
    bars = dict(type="data", symmetric=False, array=(high - mean).round(4).tolist(),
                arrayminus=(mean - low).round(4).tolist(), thickness=1, width=3)
    fig.add_trace(go.Scatter(x=[block + _BESIDE[colour] for block in mean.index], y=mean.round(4).tolist(), name=name,
                             mode="lines+markers", showlegend=legend, legendgroup=name,
                             line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=9),
                             error_y=bars if whiskers else None), row=1, col=col)


def attention_figure(measured: dict[str, pd.DataFrame]) -> go.Figure:
    """Left: variance that attention leaves, with the values and with shuffled ones. Right: effective rank around it.

    Args:
        measured: of `by_depth`, by name of the model.
    """
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.14)
    for name, table in measured.items():
        colour, symbol = _LINES[name]
        _curve(fig, table, "kept", f"{name}: output", (colour, symbol, "solid"), 1)
        _curve(fig, table, "kept_shuffled", f"{name}: output, values shuffled", (colour, "x", "dot"), 1)
        _curve(fig, table, "rank_output", f"{name}: output", (colour, symbol, "solid"), 2, legend=False)
        _curve(fig, table, "rank_values", f"{name}: values", (colour, symbol + "-open", "dash"), 2)
    fig.update_xaxes(title=dict(text="block", standoff=12), dtick=1)
    fig.update_yaxes(title="share of variance left", type="log", dtick=1, row=1, col=1)
    fig.update_yaxes(title="effective rank of 64 tokens", rangemode="tozero", row=1, col=2)
    return fig.update_layout(title="What does attention leave of its values?", height=500,
                             margin=dict(b=150), legend=dict(orientation="h", y=-0.2))


def stream_figure(measured: dict[tuple[str, str], pd.DataFrame]) -> go.Figure:
    """By depth, of the stream: share of fine detail in the image plane, and effective rank.

    Args:
        measured: of `by_depth`, by (model, images). Whiskers where a model sees the images it was trained for.
    """
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.14)
    for (model, images), table in measured.items():
        colour, symbol = _LINES[model]
        own = model == images
        look = (colour, symbol if own else symbol + "-open", "solid" if own else "dash")
        _curve(fig, table, "fine_stream", f"{model} model on {images}", look, 1, whiskers=own)
        _curve(fig, table, "rank_stream", f"{model} model on {images}", look, 2, legend=False, whiskers=own)
    depth = int(table["block"].max())
    noise = round(fine_detail_of_noise(), 4)
    fig.add_trace(go.Scatter(x=[0, depth], y=[noise, noise], mode="lines", name="tokens in shuffled places",
                             showlegend=False, line=dict(color=GREY, dash="dot")), row=1, col=1)
    fig.add_annotation(x=depth, y=noise, text="tokens in shuffled places", xanchor="right", yanchor="bottom",
                       showarrow=False, font_size=13, row=1, col=1)
    fig.update_xaxes(title=dict(text="after block (0: embedding)", standoff=12), dtick=1)
    fig.update_yaxes(title="share of fine detail", rangemode="tozero", row=1, col=1)
    fig.update_yaxes(title="effective rank of 64 tokens", rangemode="tozero", row=1, col=2)
    return fig.update_layout(title="Do the tokens get smoother from block to block?", height=500,
                             margin=dict(b=150), legend=dict(orientation="h", y=-0.2))


def first_and_last(measured: dict[tuple[str, str], pd.DataFrame], column: str = "fine_stream") -> pd.DataFrame:
    """A quantity of the stream at the embedding and after the last block, and in how many images it fell."""
    rows = []
    for (model, images), table in measured.items():
        wide = table.pivot(index="image", columns="block", values=column)
        first, last = wide.iloc[:, 0], wide.iloc[:, -1]
        rows.append((model, images, first.mean(), last.mean(), f"{(last < first).sum()} of {len(wide)}"))
    return pd.DataFrame(rows, columns=["model", "images", "embedding", "last", "fell in"]).round(3)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Of a table of `by_depth`: means over images, a row per block, the embedding left out."""
    return table[table["block"] > 0].groupby("block").mean()


def by_block(measured: dict[str, pd.DataFrame], columns: dict[str, str]) -> pd.DataFrame:
    """`means` of several models one below the other. `columns`: of `by_depth` -> heading."""
    parts = [means(table).reset_index().assign(model=name) for name, table in measured.items()]
    return pd.concat(parts)[["model", "block", *columns]].rename(columns=columns).round(3)


def norms_by_block(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """How far a model is from keys of equal norm: geometric mean of the ratio of key factors, weight put elsewhere."""
    table = by_block(measured, {"factor": "largest / smallest key factor", "elsewhere": "share of weight elsewhere"})
    table["largest / smallest key factor"] = table["largest / smallest key factor"].map(lambda x: f"{math.exp(x):.0f}")
    return table


# ---- the explorer: compute, draw, say ----

@dataclass(frozen=True)
class Smoothing:
    log_alpha: int
    spread: int                 # per cent
    waves: int
    weights: np.ndarray         # (64,) of the query in the middle
    values: Tensor              # (64,)
    output: Tensor              # (64,)
    width: float                # distance of the keys the middle query hears, in places: root mean square by weight
    keys: float                 # effective number of keys, mean over queries
    keys_equal: float           # the same with equal norms
    fine_left: float            # energy above 8 waves: output over values
    gain: float                 # of the fine wave
    gain_slow: float            # of the slow wave
    strayed: int                # queries whose heaviest key is not the nearest


@functools.lru_cache(maxsize=512)
def smooth(log_alpha: int, spread: int, waves: int) -> Smoothing:
    """Attention along the closed line: logits times 2 ** log_alpha, key norms within `spread` per cent of 7."""
    q, k = closed_line(spread / 100)
    v = signal(waves)
    weights = softmax_weights(q, k, 2.0 ** log_alpha)
    out = weights @ v
    middle = PLACES // 2
    away = (torch.arange(PLACES) - middle).double()
    before, after = amplitudes(v), amplitudes(out)
    equal = softmax_weights(q, closed_line()[1], 2.0 ** log_alpha)
    nearest = (q[:, None] - k[None]).norm(dim=2).argmin(1)
    return Smoothing(log_alpha, spread, waves, weights[middle].numpy(), v, out,
                     (weights[middle] * away.square()).sum().sqrt().item(), effective_number(weights).mean().item(),
                     effective_number(equal).mean().item(), fine_energy(out) / fine_energy(v),
                     (after[waves] / before[waves]).item(), (after[2] / before[2]).item(),
                     int((weights.argmax(1) != nearest).sum()))


def smooth_figure(s: Smoothing) -> go.Figure:
    """The kernel of the query in the middle, the spectra, and the signal before and after."""
    fig = make_subplots(rows=2, cols=2, specs=[[{}, {}], [{"colspan": 2}, None]], vertical_spacing=0.22,
                        horizontal_spacing=0.13)
    fig.add_trace(go.Scatter(x=list(range(PLACES)), y=s.weights.round(4).tolist(), mode="lines+markers",
                             name="weights of the query at place 32", line=dict(color=ORANGE, width=1),
                             marker=dict(symbol="square", size=5)), row=1, col=1)
    fig.update_xaxes(title="place of the key", range=[0, 63], row=1, col=1)
    fig.update_yaxes(title="weight", rangemode="tozero", row=1, col=1)
    _spectra(fig, s.values, s.output, row=1, col=2)
    _signals(fig, s.values, s.output, row=2, col=1)
    norms = f"norms within {s.spread} %" if s.spread else "equal norms"
    return fig.update_layout(title=f"alpha = {_alpha(s)}, {norms}: {s.fine_left:.0%} of the fine energy is left",
                             height=560, legend=dict(orientation="h", y=-0.14))


def _alpha(s: Smoothing) -> str:
    return str(2 ** s.log_alpha) if s.log_alpha >= 0 else f"1/{2 ** -s.log_alpha}"


def smooth_words(s: Smoothing) -> str:
    """What the kernel is, what is left of the fine detail, and why."""
    wave = f"A wave of the fine detail is {PLACES / s.waves:.1f} places long"
    left = f"of the fine wave's amplitude {s.gain:.0%} is left, of the slow wave's {s.gain_slow:.0%}"
    even, alone = s.keys > 0.75 * PLACES, s.keys < 1.5
    if even:
        why = f"Alpha is so small that distance hardly counts: every output is near the mean of all values ({left})."
    elif alone and s.strayed:
        why = "A query hears little more than one key, so almost nothing is averaged; but a long key is heard by many."
    elif alone:
        why = "Alpha is so large that a query hears its nearest key alone: the output repeats the values."
    elif s.gain < 0.25:
        why = f"{wave}: its ups and downs fall under one kernel and cancel ({left})."
    elif s.gain > 0.75:
        why = f"{wave}, and the kernel is narrow beside it, so it passes ({left})."
    else:
        why = f"{wave} and passes in part ({left})."
    norms = ""
    if s.spread:
        norms = (" With weights so even, unequal norms hardly matter." if even else
                 f" Unequal norms: {s.strayed} of 64 queries give most weight to a key that is not the nearest; with "
                 f"equal norms a query would average {s.keys_equal:.1f} keys.")
    return (f"The query at place 32 listens to keys {s.width:.1f} places away (root mean square, by weight); a "
            f"query averages {s.keys:.1f} of 64 keys. Above 8 waves, {s.fine_left:.0%} of the energy is left. "
            f"{why}{norms}")


def smooth_table(s: Smoothing) -> pd.DataFrame:
    before, after = amplitudes(s.values), amplitudes(s.output)
    at = sorted({0, 1, 2, 4, 8, 16, 24, 32, s.waves})
    return pd.DataFrame({"waves": at, "amplitude of the values": [round(before[i].item(), 4) for i in at],
                         "amplitude of the output": [round(after[i].item(), 4) for i in at]})


def explore() -> Explorer:
    return Explorer({"log_alpha": Number("Logits times alpha = 2 to the power", 0, -8, 6),
                     "spread": Number("Key norms differ by up to, %", 0, 0, 30, 5),
                     "waves": Number("Waves of the fine detail", 12, 4, 30)},
                    smooth, smooth_figure, smooth_words, smooth_table, height=560,
                    measure=lambda s: ("energy left above 8 waves", s.fine_left, "{:.0%}"))


# ---- predictions ----

PREDICTIONS = (
    Prediction("a", "All logits are multiplied by alpha before the softmax. Let alpha go to 0. What does attention put "
                    "out?",
               ("the mean of all values", "the value of the nearest key", "zero"),
               answer=lambda away: min(range(3), key=lambda i: away[i]),
               why={1: "That is the other end: alpha to infinity, where the largest logit takes all.",
                    2: "The logits go to zero, the weights do not: exp(0) = 1 for every key, and weights sum to one."},
               tell=lambda away: f"at alpha = 0.000001 the output is {away[0]:.4f} from the mean of all values, "
                                 f"{away[1]:.2f} from the nearest key's value, {away[2]:.2f} from zero"),
    Prediction("b", "The keys of a head get slightly unequal norms: some longer, some shorter, the same on average. Do "
                    "queries now average fewer keys?",
               ("Yes, every query does", "Most do, some average more", "No change: the norms cancel in the softmax"),
               answer=lambda share: 2 if share == 0 else 0 if share == 1 else 1,
               why={0: "A long key next to the query does sharpen. A short key in the place that was heaviest makes "
                       "way for its neighbours, and the weights become more even.",
                    2: "The query's norm cancels, because it is the same for all keys. A key's own norm stays with "
                       "it."},
               tell=lambda share: f"{share:.0%} of the queries average fewer keys than with equal norms"),
    Prediction("c", "A small ViT trained on photographs, looking at photographs. From the embedding to the last block, "
                    "what happens to the share of fine detail in its tokens?",
               ("It falls by more than a tenth", "It stays within a tenth", "It rises by more than a tenth"),
               answer=lambda ratio: 0 if ratio < 0.9 else 2 if ratio > 1.1 else 1,
               why={0: "Attention smooths, so six blocks should smooth six times. But every block *adds* its smooth "
                       "output to a stream that keeps its own detail, and its MLP works on each token alone.",
                    2: "Taking away what is coarse would do that, and nothing forbids it; here it is little."},
               tell=lambda ratio: f"the share after the last block is {ratio:.2f} times that of the embedding"),
)


# ---- exercises ----

@exercise("a", minutes=7, level=2, hints=(
    "All squared distances at once: `(q[:, None] - k[None]).square().sum(-1)` has shape (N, M).",
    "The variance of the Gaussian is sqrt(d), so the exponent is `-squared / (2 * d ** 0.5)` with `d = q.shape[1]`.",
    "Each query's weights must sum to one: a softmax over the keys, axis 1, does both the exp and the division."))
def gaussian_attention(q, k, v):
    squared = (q[:, None] - k[None]).square().sum(-1)            # (N, M)
    weights = (-squared / (2 * q.shape[1] ** 0.5)).softmax(1)
    return weights @ v


@gaussian_attention.check_by
def _(answer):
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(4, 9, generator=draw), torch.randn(6, 9, generator=draw)
    v = torch.randn(6, 2, generator=draw)
    k = 3 * k / k.norm(dim=1, keepdim=True)
    squared = (q[:, None] - k[None]).square().sum(-1)
    wanted = softmax_weights(q, k) @ v
    got = answer(q, k, v)
    for mistake, say in (
            ((-squared / 18).softmax(1) @ v, "The Gaussian is too wide: its variance is sqrt(d), not d."),
            ((-squared / 3).softmax(1) @ v, "The 2 of the Gaussian is missing: exp(-distance² / (2 variance))."),
            ((-squared / 2).softmax(1) @ v, "A variance of 1 will not do: the softmax divides by sqrt(d), so the "
                                            "variance is sqrt(d)."),
            ((-squared.sqrt() / 6).softmax(1) @ v, "The exponent wants the *squared* distance."),
            ((squared / 6).softmax(1) @ v, "Far keys get the most weight: the sign of the exponent is wrong."),
            ((-squared / 6).exp() @ v, "The weights of a query do not sum to one: divide by their sum."),
            ((-squared / 6).softmax(0) @ v, "The weights sum to one over the queries. Each *query* shares out one unit "
                                            "over the keys: normalise over axis 1."),
            (squared.neg().div(6).exp().div(squared.neg().div(6).exp().sum()) @ v,
             "You divided by the sum of all weights. Each query has a sum of its own: axis 1, with keepdim=True.")):
        came = torch.as_tensor(got)
        if came.shape == mistake.shape and torch.allclose(came.float(), mistake, atol=1e-4):
            raise Wrong(say)
    expect(got, wanted, "With keys of equal norm it should equal softmax attention.")
    longer = k * torch.linspace(0.5, 1.5, 6)[:, None]
    got = torch.as_tensor(answer(q, longer, v))
    ensure(not torch.allclose(got.float(), softmax_weights(q, longer) @ v, atol=1e-4),
           "This is softmax attention itself: with keys of unequal norm the two must differ. Use distances only.")
    expect(got, gaussian_weights(q, longer) @ v, "With keys of unequal norm only the distance may count.")


@exercise("b", minutes=6, level=2, hints=(
    "`torch.fft.fft(signal).abs().square()` is the energy of every frequency, negative ones included.",
    "Their frequencies are `torch.fft.fftfreq(n, 1 / n)`: 0, 1, 2, ..., -2, -1 waves. Only the size counts, not the "
    "sign.",
    "Sum where `frequency.abs() > cutoff`, and divide by the sum without element 0, which is the mean."))
def high_frequency_energy(signal, cutoff):
    energy = torch.fft.fft(signal).abs().square()
    waves = torch.fft.fftfreq(len(signal), 1 / len(signal)).abs()
    return energy[waves > cutoff].sum() / energy[1:].sum()


@high_frequency_energy.check_by
def _(answer):
    turn = 2 * torch.pi * torch.arange(32) / 32
    two = 2 * (2 * turn).cos() + (10 * turn).cos()          # amplitudes 2 and 1: energies 4 to 1
    got = float(answer(two, 5))
    story = "Two waves, of amplitude 2 at frequency 2 and of amplitude 1 at frequency 10: energies 4 to 1."
    ensure(abs(got - 1 / 3) > 1e-3, f"{story} You added amplitudes; energy is amplitude *squared*.")
    ensure(abs(got - 0.6) > 1e-3, f"{story} The last elements of `fft` are *negative* frequencies: element 30 of 32 is "
                                  "frequency -2, which is low. Use `torch.fft.fftfreq(n, 1 / n).abs()`.")
    ensure(abs(got - 0.1) > 1e-3, f"{story} You counted the high frequencies on one side, and all on both sides. Each "
                                  "wave has a positive and a negative half.")
    ensure(abs(got - 0.8) > 1e-3, f"{story} That is the share *below* the cutoff.")
    ensure(abs(got - 0.25) > 1e-3, f"{story} The share is high over *all*, not high over low.")
    expect(got, 0.2, story, 1e-3)
    ensure(abs(float(answer(two + 3, 5)) - 0.2) < 1e-3, "Adding a constant to the signal must not change the share: "
                                                        "leave element 0, the mean, out of the total.")
    finest = 2 * (2 * turn).cos() + (16 * turn).cos()
    ensure(abs(float(answer(finest, 5)) - 0.5) > 1e-3, "`rfft` keeps one of the two halves of every wave, but the "
           "finest one (16 of 32) has no second half, so it counts double. Use `fft`, or count the others twice.")
    expect(answer(finest, 5), 1 / 3, "Amplitude 2 at frequency 2 and 1 at the finest frequency, 16: energies 2 to 1.",
           1e-3)
    expect(answer(two, 10), 0.0, "The cutoff itself is not above the cutoff.", 1e-3)
