"""Notebook 01: where the multiply-adds of a vision transformer go, and what fewer tokens save."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.core.cost import PARTS, BlockShape, Cost, ModelShape, count_macs
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import geometric
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer

# ---- counted by hand ----

@dataclass(frozen=True)
class Product:
    """One matrix product of a block, and how often it multiplied."""

    name: str
    left: Tensor            # (n, m)
    right: Tensor           # (m, k)
    out: Tensor             # (n, k)
    macs: int


def counted_product(left: Tensor, right: Tensor) -> tuple[Tensor, int]:
    """left @ right in three loops, counting every multiplication that is done: the product (n, k), and the count."""
    (n, m), k = left.shape, right.shape[1]
    out, count = torch.zeros(n, k), 0
    for row in range(n):
        for column in range(k):
            for i in range(m):
                out[row, column] += left[row, i] * right[i, column]
                count += 1
    return out, count


def written_out(left: Tensor, right: Tensor) -> list[str]:
    """left @ right for small whole numbers, every multiplication in sight: a line per row of the result."""
    def entry(row: int, column: int) -> str:
        terms = [f"{int(a)}*{int(b)}" for a, b in zip(left[row], right[:, column], strict=True)]
        return f"{' + '.join(terms)} = {int((left[row] * right[:, column]).sum())}"

    return ["   ".join(entry(row, column) for column in range(right.shape[1])) for row in range(len(left))]


#: three tokens of two channels, and a matrix that makes queries of them
TINY_X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
TINY_W = torch.tensor([[1.0, 2.0], [3.0, 1.0]])


def tiny_block(x: Tensor = TINY_X) -> list[Product]:
    """One transformer block with one head on tokens x (N, C): all its matrix products, each counted.

    Norms, biases, the softmax and the additions around them multiply no matrices, and are not counted anywhere.
    """
    c = x.shape[1]
    draw = torch.Generator().manual_seed(0)
    done: list[Product] = []

    def product(name: str, left: Tensor, right: Tensor) -> Tensor:
        out, macs = counted_product(left, right)
        done.append(Product(name, left, right, out, macs))
        return out

    def weights(rows: int, columns: int) -> Tensor:
        return torch.randint(-2, 3, (rows, columns), generator=draw).float()

    q = product("queries", x, TINY_W if c == 2 else weights(c, c))
    k = product("keys", x, weights(c, c))
    v = product("values", x, weights(c, c))
    scores = product("queries x keys", q, k.T)
    mixed = product("weights x values", (scores / c ** 0.5).softmax(1), v)
    x = x + product("projection", mixed, weights(c, c))
    hidden = product("MLP, up to 4 C", x, weights(c, 4 * c))
    product("MLP, down to C", nn.functional.gelu(hidden), weights(4 * c, c))
    return done


def counted_by_torch(module: nn.Module, *shape: int) -> int:
    """Multiply-adds that torch's own counter sees while the module runs on zeros of a shape."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(*shape))
    return counter.get_total_flops() // 2


# ---- whole models ----

#: name shown -> (timm's name, width, image side)
MODELS = {"DeiT-Ti": ("deit_tiny_patch16_224", 192, 224), "e252": ("deit_e252_patch16_224", 252, 224),
          "e318": ("deit_e318_patch16_224", 318, 224), "DeiT-S": ("deit_small_patch16_224", 384, 224),
          "ViT-B": ("deit_base_patch16_224", 768, 224), "ViT-B/384": ("deit_base_patch16_384", 768, 384)}


@functools.lru_cache(maxsize=8)
def model(name: str) -> nn.Module:
    """A model of MODELS without weights: it can be counted, not run, and takes no memory."""
    with torch.device("meta"):
        return timm.create_model(MODELS[name][0])


def model_costs(names: Sequence[str] = tuple(MODELS)) -> dict[str, Cost]:
    """What `tp.macs` says of each."""
    return {name: tp.macs(model(name)) for name in names}


def cost_table(costs: dict[str, Cost]) -> pd.DataFrame:
    """A row a model: width, tokens, GMACs, shares in %."""
    rows = []
    for name, cost in costs.items():
        _, width, side = MODELS[name]
        shares = cost.shares
        rows.append((name, width, (side // 16) ** 2 + 1, round(cost.total / 1e9, 3),
                     round(100 * shares["fully_connected"], 1), round(100 * shares["attention"], 1)))
    return pd.DataFrame(rows, columns=["model", "width C", "tokens N", "GMACs", "fully connected, %", "attention, %"])


def vit_shape(width: int, side: int, depth: int = 12, classes: int = 1000) -> ModelShape:
    """A ViT with patches of 16 pixels, one class token and an MLP four times as wide, of any width and image side."""
    c, n = width, (side // 16) ** 2
    block = BlockShape(qkv=3 * c * c, proj=c * c, mlp=8 * c * c, pair=2 * c)
    return ModelShape(n, 1, c, 3 * 16 * 16 * c * n, (block,) * depth, classes * c)


def block_parts(n: int, c: int) -> tuple[int, int]:
    """Multiply-adds of a block of n tokens and c channels: its linear layers, its two attention products."""
    block = vit_shape(c, 224).blocks[0]
    return (block.qkv + block.proj + block.mlp) * n, block.pair * n * n


def attention_share(n: float | np.ndarray, c: float) -> float | np.ndarray:
    """Share of the two attention products in a block: 2 N^2 C of 12 N C^2 + 2 N^2 C, which is N / (6 C + N)."""
    return n / (6 * c + n)


def clustering_bill(names: Sequence[str] = ("DeiT-Ti", "DeiT-S"), saving: float = 0.42) -> pd.DataFrame:
    """What the clustering itself costs, for one schedule a model: that of `saving` without counting clustering.

    Returns:
        Columns model, method, output, share: clustering as a share of the pooled model, itself included.
    """
    rows = []
    for name in names:
        vit = timm.create_model(MODELS[name][0])
        schedule = tp.PooledViT(vit, saving=saving, method="top_k").schedule
        for method, output in (("k_medoids", "medoid"), ("wk_medoids", "weighted_mean"), ("wk_means", "weighted_mean")):
            cost = tp.macs(tp.PooledViT(vit, schedule, method=method, output=output))
            rows.append((name, method, output, cost.clustering / cost.total))
    return pd.DataFrame(rows, columns=["model", "method", "output", "share"])


# ---- the clock ----

def clocked(name: str = "DeiT-Ti", batch: int = 1, rounds: int = 200, seconds: float = 3.0) -> pd.DataFrame:
    """Where the time of one block goes on this machine. The jobs take turns, so that a slow moment hits all of them.

    Args:
        rounds, seconds: stop after so many turns, or so long, whichever comes first.

    Returns:
        Columns tokens, part, ms (of each job the fastest round: what the machine can do undisturbed), macs: for all
        tokens and for half of them, the linear layers, the two attention products (with their softmax), and the rest
        of the block: norms, GELU, sums, copies.
    """
    _, c, side = MODELS[name]
    block = timm.create_model(MODELS[name][0], depth=1).eval().blocks[0]
    heads, patches = block.attn.num_heads, (side // 16) ** 2
    tokens = (patches + 1, patches // 2 + 1)
    jobs: dict[tuple[int, str], Callable[[], object]] = {}
    for n in tokens:
        x, hidden = torch.randn(batch, n, c), torch.randn(batch, n, 4 * c)
        q = torch.randn(batch, heads, n, c // heads)
        jobs[n, "block"] = functools.partial(block, x)
        jobs[n, "linear layers"] = functools.partial(_linears, block, x, hidden)
        jobs[n, "attention products"] = functools.partial(nn.functional.scaled_dot_product_attention, q, q, q)
    times: dict[tuple[int, str], list[float]] = {job: [] for job in jobs}
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        for turn in range(rounds):
            for job, run in jobs.items():
                begin = time.perf_counter()
                run()
                times[job].append(1e3 * (time.perf_counter() - begin))
            if turn >= 5 and time.perf_counter() > end:    # the first turns warm up; the fastest is none of them
                break
    rows = []
    for n in tokens:
        whole, linear, products = (min(times[n, job]) for job in ("block", "linear layers", "attention products"))
        rows += [(n, "linear layers", linear, batch * 12 * n * c * c),
                 (n, "attention products", products, batch * 2 * n * n * c),
                 (n, "the rest", max(0.0, whole - linear - products), 0)]
    return pd.DataFrame(rows, columns=["tokens", "part", "ms", "macs"])


def _linears(block: nn.Module, x: Tensor, hidden: Tensor) -> None:
    block.attn.qkv(x), block.attn.proj(x), block.mlp.fc1(x), block.mlp.fc2(hidden)


# ---- figures ----

PART_NAMES = {"patch_embed": "patch embedding", "qkv": "queries, keys, values", "attention": "attention products",
              "proj": "projection", "mlp": "MLP", "clustering": "clustering", "head": "head"}
PART_LOOKS = {"qkv": (BLUE, "/"), "proj": (PURPLE, "x"), "mlp": (GREEN, ""), "attention": (ORANGE, "\\"),
              "patch_embed": (GREY, "."), "clustering": (INK, "-"), "head": (GREY, "")}


def _filled(colour: str, pattern: str) -> dict[str, object]:
    """How a bar is filled: colour, and a white pattern on it."""
    return dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay", fgcolor="white", size=7, solidity=0.2),
                line_width=0)


def shares_figure(costs: dict[str, Cost]) -> go.Figure:
    """A bar a model, cut into the parts that cost something; percentages written into the larger ones."""
    fig = go.Figure()
    names = list(costs)[::-1]
    for part in ("mlp", "qkv", "proj", "attention", "patch_embed"):
        colour, pattern = PART_LOOKS[part]
        values = [round(100 * costs[name].shares[part], 1) for name in names]
        fig.add_bar(x=values, y=names, name=PART_NAMES[part], orientation="h",
                    marker=_filled(colour, pattern))
    for name in names:
        share = costs[name].shares
        fig.add_annotation(x=101, y=name, xanchor="left", showarrow=False, font_size=13,
                           text=f"{share['attention']:.1%} attention")
    fig.update_xaxes(title="% of the multiply-adds", range=[0, 128], tickvals=[0, 20, 40, 60, 80, 100])
    return fig.update_layout(barmode="stack", title="Where do the multiply-adds go?", height=190 + 44 * len(names),
                             margin_l=90, legend_traceorder="normal")


WIDTHS = {"DeiT-Ti, C = 192": (192, BLUE, "solid", "circle"), "DeiT-S, C = 384": (384, GREEN, "dash", "square"),
          "ViT-B, C = 768": (768, PURPLE, "dot", "diamond")}
SIDES = (224, 384, 512)


def resolution_figure(longest: int = 5000) -> go.Figure:
    """Attention's share of a block against the number of tokens, for three widths; marks at three image sides."""
    n = np.unique(np.geomspace(50, longest, 60).round())
    fig = go.Figure()
    for name, (c, colour, dash, symbol) in WIDTHS.items():
        fig.add_scatter(x=n.tolist(), y=(100 * attention_share(n, c)).round(2).tolist(), mode="lines",
                        name=f"{name}: half at {6 * c}", line=dict(color=colour, dash=dash))
        marked = [(side // 16) ** 2 + 1 for side in SIDES]
        fig.add_scatter(x=marked, y=[round(100 * attention_share(m, c), 2) for m in marked], mode="markers",
                        showlegend=False, marker=dict(color=colour, symbol=symbol, size=9))
        fig.add_scatter(x=[6 * c], y=[50], mode="markers", showlegend=False,
                        marker=dict(color=colour, symbol="x", size=11))
    for side in SIDES:
        tokens = (side // 16) ** 2 + 1
        fig.add_vline(x=tokens, line=dict(color=GREY, width=1, dash="dot"))
        fig.add_annotation(x=np.log10(tokens), y=88, text=f"{side} px", showarrow=False, font_size=13, textangle=-90,
                           xanchor="right", xshift=-2)
    fig.add_hline(y=50, line=dict(color=INK, width=1, dash="dash"))
    fig.update_xaxes(title="tokens, N (logarithmic)", type="log", tickvals=[50, 100, 200, 500, 1000, 2000, 5000])
    fig.update_yaxes(title="attention products, % of a block", range=[0, 100])
    return fig.update_layout(title="When does attention become the larger half?", height=440)


def blocks_figure(plain: Cost, pooled: Cost, schedule: Sequence[int]) -> go.Figure:
    """MACs of every block, plain as an outline, pooled as bars of linear layers, attention products and clustering."""
    depth = range(1, len(plain.blocks) + 1)
    fig = go.Figure()
    groups = {"linear layers": (("qkv", "proj", "mlp"), GREEN, ""),
              "attention products": (("attention",), ORANGE, "\\"),
              "clustering": (("clustering",), INK, "-")}
    for name, (parts, colour, pattern) in groups.items():
        fig.add_bar(x=list(depth), y=[round(sum(b[p] for p in parts) / 1e6, 2) for b in pooled.blocks], name=name,
                    marker=_filled(colour, pattern))
    fig.add_scatter(x=list(depth), y=[round(sum(b.values()) / 1e6, 2) for b in plain.blocks], name="not pooled",
                    mode="lines+markers", line=dict(color=GREY, dash="dash"), marker=dict(symbol="circle-open", size=8))
    for block, n in zip(depth, [196, *schedule[:-1]], strict=True):
        fig.add_annotation(x=block, y=0, text=str(n), showarrow=False, yshift=12, font=dict(size=14, color="white"))
    fig.update_xaxes(title="block (white: patch tokens that enter it)", dtick=1)
    highest = max(sum(b.values()) for b in (*plain.blocks, *pooled.blocks))
    fig.update_yaxes(title="million multiply-adds", range=[0, 1.05 * highest / 1e6])
    return fig.update_layout(title="Which blocks become cheaper?", barmode="stack", height=420,
                             legend_traceorder="normal")


def clock_figure(clock: pd.DataFrame) -> go.Figure:
    """Shares of multiply-adds beside shares of time, for all tokens and for half."""
    fig = go.Figure()
    looks = {"linear layers": GREEN, "attention products": ORANGE, "the rest": GREY}
    bars = [(n, what) for n in clock["tokens"].unique()[::-1] for what in ("ms", "macs")]
    labels = [f"{n} tokens, {'time' if what == 'ms' else 'multiply-adds'}" for n, what in bars]
    for part, colour in looks.items():
        values = []
        for n, what in bars:
            here = clock[clock["tokens"] == n].set_index("part")[what]
            values.append(round(float(100 * here[part] / here.sum()), 1))
        fig.add_bar(x=values, y=labels, orientation="h", name=part, text=[f"{v:.0f}" if v >= 6 else "" for v in values],
                    textposition="inside", insidetextanchor="middle", textangle=0,
                    textfont=dict(color="white", size=14),
                    marker=dict(color=colour, line_width=0))
    fig.update_xaxes(title="% of one block", range=[0, 100])
    return fig.update_layout(barmode="stack", title="Does the clock agree with the count?", height=340,
                             margin_l=190, legend_traceorder="normal")


# ---- the explorer: compute, draw, say ----

METHODS = {"wk_medoids (Token Pooling)": "wk_medoids", "wk_means": "wk_means", "top_k (nothing to cluster)": "top_k"}


@dataclass(frozen=True)
class Bill:
    width: int
    side: int
    keep: float
    method: str
    schedule: tuple[int, ...]
    plain: Cost
    pooled: Cost

    @property
    def patches(self) -> int:
        return (self.side // 16) ** 2

    @property
    def saved(self) -> float:
        return 1 - self.pooled.total / self.plain.total

    @property
    def saved_without_clustering(self) -> float:
        return 1 - self.pooled.without_clustering / self.plain.total


@functools.lru_cache(maxsize=512)
def bill(width: int, side: int, keep: float, method: str) -> Bill:
    """The multiply-adds of a ViT of 12 blocks, plain, and with the share `keep` of its tokens kept after each block."""
    shape = vit_shape(width, side)
    schedule = geometric(shape.patches, len(shape.blocks), keep)
    pooling = Pooling(method)
    return Bill(width, side, keep, method, schedule, count_macs(shape),
                count_macs(shape, schedule, lambda n, k: pooling.macs(n, k, width)))


def bill_figure(b: Bill) -> go.Figure:
    """Two bars a part: plain and pooled."""
    order = ("mlp", "qkv", "proj", "attention", "clustering", "patch_embed", "head")
    names = [{"qkv": "q, k, v", "attention": "attention", "patch_embed": "embedding"}.get(part, PART_NAMES[part])
             for part in order]
    fig = go.Figure()
    for name, cost, colour, pattern in (("plain", b.plain, BLUE, ""), ("pooled", b.pooled, ORANGE, "/")):
        values = [round(cost.parts[part] / 1e9, 4) for part in order]
        fig.add_bar(x=names, y=values, name=f"{name}: {cost.total / 1e9:.3f} GMACs", text=[_short(v) for v in values],
                    textposition="outside", textfont_size=12, cliponaxis=False,
                    marker=_filled(colour, pattern))
    fig.update_xaxes(title="part of the model", tickangle=0)
    fig.update_yaxes(title="billion multiply-adds", rangemode="tozero")
    return fig.update_layout(title=f"Width {b.width}, {b.side} pixels: what does the image cost?", barmode="group",
                             height=440)


def _short(value: float) -> str:
    return "0" if value == 0 else "<.001" if value < 0.001 else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def bill_words(b: Bill) -> str:
    n, meet = b.patches + 1, 6 * b.width
    share = b.plain.shares["attention"]
    side = "less than" if n < meet else "as much as" if n == meet else "more than"
    start = (f"{n} tokens of width {b.width}: the attention products are {share:.1%} of the plain model's "
             f"{b.plain.total / 1e9:.3f} GMACs, {side} the linear layers (they meet at N = 6 C = {meet} tokens).")
    if b.keep == 1:
        return f"{start} Every token is kept, so nothing is saved and nothing is clustered."
    linear, products = (1 - sum(b.pooled.parts[p] for p in parts) / sum(b.plain.parts[p] for p in parts)
                        for parts in (("qkv", "proj", "mlp"), ("attention",)))
    change = f"{b.saved:.0%} saved" if b.saved >= 0 else f"{-b.saved:.0%} *more* than before"
    end = (f"Keeping {b.keep:.0%} after each block leaves {b.schedule[-1]} of {b.patches} patches and "
           f"{b.pooled.total / 1e9:.3f} GMACs: {change}. The linear layers lose {linear:.0%} of their cost, the "
           f"attention products, which go with the square of the tokens, {products:.0%}.")
    if b.pooled.clustering == 0:
        return f"{start} {end} A selection multiplies nothing, so it adds nothing here."
    return (f"{start} {end} The clustering is {b.pooled.clustering / b.pooled.total:.1%} of the pooled model; without "
            f"counting it, {b.saved_without_clustering:.0%} would be saved.")


def bill_table(b: Bill) -> pd.DataFrame:
    rows = [(PART_NAMES[p], f"{b.plain.parts[p] / 1e9:.4f}", f"{b.pooled.parts[p] / 1e9:.4f}") for p in PARTS]
    rows.append(("total", f"{b.plain.total / 1e9:.4f}", f"{b.pooled.total / 1e9:.4f}"))
    rows.append(("total without clustering", f"{b.plain.total / 1e9:.4f}", f"{b.pooled.without_clustering / 1e9:.4f}"))
    return pd.DataFrame(rows, columns=["part", "plain, GMACs", "pooled, GMACs"])


def explore() -> Explorer:
    return Explorer({"width": Number("Width C", 192, 192, 768, 6),
                     "side": Number("Image side in pixels", 224, 96, 640, 32),
                     "keep": Number("Share kept after each block", 0.9, 0.5, 1, 0.01),
                     "method": Choice("Method", METHODS)},
                    bill, bill_figure, bill_words, bill_table, height=440,
                    measure=lambda b: ("cost of the pooled model", b.pooled.total / 1e9, "{:.3f} GMACs"))


# ---- predictions ----

def _trend(shares: Sequence[float]) -> int:
    """0 rising, 1 falling, 2 neither."""
    pairs = list(itertools.pairwise(shares))
    return 0 if all(b > a for a, b in pairs) else 1 if all(b < a for a, b in pairs) else 2


PREDICTIONS = (
    Prediction("a", "DeiT-Ti reads an image of 224 pixels as 197 tokens. Which share of its multiply-adds are the two "
                    "products of softmax attention (queries times keys, and weights times values)?",
               ("about 15 %", "about 50 %", "about 80 %"),
               answer=lambda share: min(range(3), key=lambda i: abs(share - (0.15, 0.5, 0.8)[i])),
               why={1: "The *module* called attention has four matrices of its own, for queries, keys, values and the "
                       "projection. With them it comes to 42 %. But these are linear layers, applied to each token by "
                       "itself.",
                    2: "The square of the number of tokens frightens. But attention is N / (6 C + N) of a block, and "
                       "197 tokens are few beside 6 times 192. The 80 % belong to the linear layers."},
               tell=lambda share: f"{share:.1%} of the multiply-adds"),
    Prediction("b", "Now make the network wider, from DeiT-Ti's 192 channels to DeiT-S's 384, with as many tokens as "
                    "before. The share of the two attention products ...",
               ("rises", "falls", "stays as it is"), answer=_trend,
               why={0: "Attention does get dearer with the width: 2 N^2 C. But linear layers have C times C weights, "
                       "so they get dearer with its square.",
                    2: "It would if both went with C. The attention products do; the linear layers go with C squared."},
               tell=lambda shares: " then ".join(f"{share:.1%}" for share in shares) + " as the width grows"),
)


# ---- exercises ----

def _whole(got: object, what: str) -> float:
    try:
        return float(got)                                   # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Wrong(f"Return one number, {what}; {got!r} came.") from None


#: answers that are wrong in a way that can be named; m: how many times as wide the MLP is inside
_MISTAKES: tuple[tuple[Callable[[int, int, int], float], str], ...] = (
    (lambda n, c, m: (4 + 2 * m) * n * c * c,
     "The attention products are missing: every query meets every key, N * N * C, and every weight a value: again."),
    (lambda n, c, m: (4 + 2 * m) * n * c * c + n * n * c,
     "There are *two* attention products: queries times keys, and weights times values."),
    (lambda n, c, m: (4 + 2 * m) * c * c + 2 * n * n * c, "The linear layers are applied to each of the N tokens."),
    (lambda n, c, m: (2 + 2 * m) * n * c * c + 2 * n * n * c,
     "Queries, keys and values need a matrix each: 3 N C^2 for all three."),
    (lambda n, c, m: (3 + 2 * m) * n * c * c + 2 * n * n * c, "The projection after the attention is missing: N C^2."),
    (lambda n, c, m: (4 + m) * n * c * c + 2 * n * n * c,
     "The MLP has two layers: up to `mlp` times C, and back to C."),
    (lambda n, c, m: 6 * n * c * c + 2 * n * n * c,
     "The MLP is `mlp` times as wide inside: that makes both of its layers dearer."),
    (lambda n, c, m: 12 * n * c * c + 2 * n * n * c,
     "With mlp = 4 that is right. But `mlp` may be another number: then the MLP is not 8 N C^2."),
    (lambda n, c, m: (8 + 4 * m) * n * c * c + 4 * n * n * c,
     "That counts a multiplication and its addition apart. One multiply-add is one MAC."),
    (lambda n, c, m: (4 + 2 * m) * n * n * c + 2 * n * c * c,
     "N and C are swapped: the linear layers go with C squared, attention with N squared."),
)


@exercise("a", minutes=4, level=1, hints=(
    "A product of an (n, m) with an (m, k) matrix takes n * m * k multiply-adds. Write down the shapes of them all.",
    "Queries, keys, values and projection: 4 N C^2. MLP: N * C * (mlp * C), twice. Then the two attention products.",
    "`return (4 + 2 * mlp) * n * c**2 + 2 * n**2 * c`"))
def block_macs(n, c, mlp=4):
    linear = 3 * n * c**2 + n * c**2 + 2 * n * c * mlp * c
    attention = n * n * c + n * n * c
    return linear + attention


@block_macs.check_by
def _(answer):
    cases = [(3, 2, 4), (5, 7, 3), (197, 192, 4)]
    got = [_whole(answer(*case), "the multiply-adds of one block") for case in cases]
    for mistake, words in _MISTAKES:
        ensure(any(g != mistake(*case) for g, case in zip(got, cases, strict=True)), words)
    expect(got[0], 180, "Three tokens of two channels: the toy above counted 180.")
    expect(got[1], 10 * 5 * 49 + 2 * 25 * 7, "Five tokens, seven channels, and an MLP that is 3 times as wide inside.")
    expect(got[2], 102_049_152, "A block of DeiT-Ti.", tolerance=1e-9)


@exercise("b", minutes=3, level=2, hints=(
    "Set the cost of the attention products equal to that of the linear layers, and solve for N.",
    "2 N^2 C = 12 N C^2. Divide both sides by 2 N C."))
def crossing_point(c):
    return 6 * c


@crossing_point.check_by
def _(answer):
    got = [_whole(answer(c), "a number of tokens") for c in (1, 192, 768)]
    ensure(got != [12, 2304, 9216], "One factor two is missing: there are two attention products, 2 N^2 C.")
    ensure(got != [6, 6, 6], "Six times *what*? A wider network needs more tokens until attention costs as much.")
    ensure(got != [6, 36864 * 6, 589824 * 6], "After dividing 2 N^2 C = 12 N C^2 by 2 N C, one C is left.")
    ensure(got != [4, 768, 3072], "That is where attention meets the MLP alone. Queries, keys, values and the "
                                  "projection are linear layers too: 12 N C^2 in all.")
    expect(got[1], 1152, "DeiT-Ti, C = 192: put your N into 2 N^2 C and 12 N C^2 and compare.")
    expect(got, [6, 1152, 4608], "For C = 1, 192 and 768.")


@exercise("c", minutes=7, level=2, hints=(
    "Let the number of tokens shrink by the same share after each block: `196 * keep ** block`.",
    "Print `1 - tp.macs(tp.PooledViT(vit, schedule)).total / tp.macs(vit).total` for keep = 0.95, 0.9, 0.85 and go on "
    "from there.",
    "`keep` lies a little above 0.88. Round to whole tokens, and repeat the last number: pooling after the last block "
    "gains nothing."))
def schedule_42():
    keep = 0.882
    schedule = [round(196 * keep**block) for block in range(1, 12)]
    return [*schedule, schedule[-1]]


@schedule_42.check_by
def _(answer):
    ks = _tokens(answer())
    ensure(len(ks) == 12, f"DeiT-Ti has 12 blocks, so 12 numbers are needed; {len(ks)} came.")
    ensure(min(ks) >= 1, f"{min(ks)} tokens cannot go on. Keep at least 1 after each block.")
    ensure(max(ks) <= 196, f"{max(ks)} are more than the 196 patches there are. (The class token always stays and is "
                           "not counted here.)")
    rise = next((i for i in range(1, 12) if ks[i] > ks[i - 1]), None)
    if rise is not None:
        raise Wrong(f"The schedule rises from {ks[rise - 1]} to {ks[rise]} after block {rise + 1}. Tokens that are "
                    "gone do not come back.")
    ensure(ks[10] < 196, "Nothing is pooled before the last block has run, and pooling after it saves nothing: the "
                         "head reads the class token only.")
    vit = model("DeiT-Ti")
    cost, plain = tp.macs(tp.PooledViT(vit, ks)), tp.macs(vit).total
    saved, without = 1 - cost.total / plain, 1 - cost.without_clustering / plain
    ensure(saved >= 0.41 or not 0.41 <= without <= 0.43,
           f"Not counting the clustering that saves {without:.1%}, but the clustering has to be paid too: {saved:.1%} "
           "are left. Pool a little harder.")
    ensure(saved >= 0.41, f"That saves {saved:.1%}, too little. Let the tokens go faster, or from an earlier block on.")
    ensure(saved <= 0.43, f"That saves {saved:.1%}, too much for our budget. Keep more tokens.")


def _tokens(got: object) -> list[int]:
    """What came, as whole numbers."""
    if isinstance(got, int | float | str) or not hasattr(got, "__len__"):
        raise Wrong(f"Return a list of 12 numbers, the patch tokens kept after each block; {got!r} came.")
    values = [float(v) for v in got]
    whole = all(v == int(v) for v in values)
    ensure(whole, f"{next((v for v in values if v != int(v)), 0):g} is no number of tokens. Use `round(...)`.")
    return [int(v) for v in values]
