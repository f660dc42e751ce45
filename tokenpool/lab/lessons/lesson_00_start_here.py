"""Notebook 00: an image as tokens. What 16 of 64 can still say, what goes first, and how the course is used."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

import tokenpool as tp
from tokenpool.core.methods import METHODS
from tokenpool.data.datasets import scale
from tokenpool.data.pebbles import CLASSES, REGIONS, Pebbles
from tokenpool.data.photographs import photographs
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.kit.session import pebbles, shipped_vit
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.report.figures import cluster_image, png

GRID, SIDE = (8, 8), 64                     # rows and columns of patches; pixels along a side
#: what a patch can hold: one thing only, or a border between two
KINDS = (*REGIONS, "outline")
KIND_LOOKS = {"ground": (GREY, "solid", "circle"), "large pebble": (BLUE, "dash", "square"),
              "small pebble": (GREEN, "dot", "triangle-up"), "outline": (ORANGE, "dashdot", "diamond")}


# ---- images and their tokens ----

def materials(label: int) -> str:
    """The class of an image in words."""
    large, small = CLASSES[label]
    return f"large pebble {large}, small pebble {small}"


def patch_tokens(pixels: np.ndarray) -> Tensor:
    """Images as sets of tokens, before any network: each patch's pixels in a row, 0 to 1.

    Args:
        pixels: (B, 3, 64, 64) uint8.

    Returns:
        (B, 64, 192): 8 x 8 patches read line by line, 3 colours of 8 x 8 pixels each.
    """
    cut = pixels.reshape(len(pixels), 3, 8, 8, 8, 8).transpose(0, 2, 4, 1, 3, 5)
    return torch.tensor(cut.reshape(len(pixels), 64, 192)).float() / 255


def redraw(tokens: Tensor) -> np.ndarray:
    """The way back: (B, 64, 192) -> images (B, 3, 64, 64) uint8."""
    cut = tokens.reshape(len(tokens), 8, 8, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), 3, SIDE, SIDE)
    return (255 * cut).round().clamp(0, 255).to(torch.uint8).numpy()


def start_of(method: str) -> str | None:
    """Where this notebook starts a clustering; None for methods that start nowhere. Notebook 04 is about starts."""
    return "farthest_first" if METHODS[method].kind == "clustering" else None


def in_the_network(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Patch tokens of the shipped network after a block (0 is the first), and the attention each receives there.

    Args:
        x: (B, 3, 64, 64), scaled.

    Returns:
        tokens (B, 64, 96), score (B, 64).
    """
    vit = shipped_vit()
    # the score is worked out where a block pools; what is pooled there is looked at before, so nothing is lost
    watched = tp.PooledViT(vit, [64] * block + [63] * (6 - block), method="top_k")
    with torch.no_grad():
        score = watched.trace(x).steps[block].score
        assert score is not None
        return tp.PooledViT(vit).trace(x).steps[block].tokens, score


def reconstruct(tokens: Tensor, k: int, method: str, score: Tensor | None = None, seed: int = 0) -> Tensor:
    """Every token replaced by its stand-in, (B, N, C). Where chance decides, every five images get their own draw: a
    single draw for all can be a lucky one."""
    draw = torch.Generator().manual_seed(seed)
    score = score if METHODS[method].scored else None
    parts = [(tokens, score)] if method != "random" else [(part, None) for part in tokens.split(5)]
    return torch.cat([tp.pool_tokens(part, k, method=method, weights=w, init=start_of(method), generator=draw).unpool()
                      for part, w in parts])


def top1(pixels: np.ndarray, labels: np.ndarray, model: torch.nn.Module | None = None, draws: int = 3) -> float:
    """Share of images whose class the model tells; None: the network that ships, with all its tokens.

    A model that draws is asked `draws` times, with a new draw for every five images.
    """
    model, x = model or shipped_vit(), scale(pixels)
    with torch.inference_mode():
        if not getattr(model, "draws", False):
            return float((model(x).argmax(1).numpy() == labels).mean())
        draw = torch.Generator().manual_seed(0)
        told = [torch.cat([model(part, generator=draw).argmax(1) for part in x.split(5)]) for _ in range(draws)]
        return float((torch.stack(told).numpy() == labels).mean())


# ---- what is lost first ----

@functools.lru_cache(maxsize=4)
def kinds(count: int) -> np.ndarray:
    """What each patch of the first `count` images holds: (count, 64), places in KINDS.

    A patch is of one kind where at least nine tenths of it are; all others lie on an outline.
    """
    masks = Pebbles(seed=4).batch(range(count))[2]
    cut = masks.reshape(count, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(count, 64, 64)
    share = np.stack([(cut == r).mean(2) for r in range(len(REGIONS))], 2)
    return np.where(share.max(2) >= 0.9, share.argmax(2), len(REGIONS))


def lost_by_kind(count: int = 100, ks: Sequence[int] = tuple(range(60, 11, -4)),
                 methods: Sequence[str] = ("k_means", "top_k", "random")) -> pd.DataFrame:
    """What patches of each kind lose when their stand-ins speak for them; over `count` images.

    Returns:
        Columns method, k, kind; lost: of what sets the patches apart from the image's mean patch, the share that
        the stand-ins do not say (0 is all said, 1 no better than the mean patch for all); grey: the same loss as the
        root of the mean squared error of a pixel, in grey levels of 255.
    """
    x, pixels, _, _ = pebbles(count)
    f, kind = patch_tokens(pixels), torch.tensor(kinds(count))
    _, score = in_the_network(x, 0)
    apart = (f - f.mean(1, keepdim=True)).square().sum(-1)
    rows = []
    for method in methods:
        for k in ks:
            error = (f - reconstruct(f, k, method, score)).square().sum(-1)
            for i, name in enumerate(KINDS):
                mine = error[kind == i]
                rows.append((method, k, name, (mine.sum() / apart[kind == i].sum()).item(),
                             255 * (mine.mean() / f.shape[-1]).sqrt().item()))
    return pd.DataFrame(rows, columns=["method", "k", "kind", "lost", "grey"])


def first_to_lose(lost: pd.DataFrame, share: float = 0.1) -> dict[str, int]:
    """Largest K, coming down from all tokens, at which each kind has lost `share` of itself; 0 where it never does."""
    gone = lost[lost["lost"] >= share].groupby("kind")["k"].max()
    return {kind: int(gone.get(kind, 0)) for kind in KINDS}


def pattern_share(f: Tensor, u: Tensor, kind: np.ndarray, name: str) -> float:
    """Of what patches of a kind lose, the share that is pattern inside the patch; the rest is the patch's mean colour.

    Args:
        f, u: (B, 64, 192) patches and their stand-ins. kind: (B, 64) of `kinds`. name: one of KINDS.
    """
    error = (f - u).reshape(*f.shape[:2], 3, 64)
    colour = 64 * error.mean(-1).square().sum(-1)               # 64 pixels share the error of their mean
    whole = error.square().sum((2, 3))
    here = torch.tensor(kind == KINDS.index(name))
    return (1 - colour[here].sum() / whole[here].sum()).item()


# ---- figures ----

def number_clusters(labels: np.ndarray) -> np.ndarray:
    """Labels (N,) as numbers from 1, in the order in which a reader meets them."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[place] + 1


def _panels(views: Sequence[np.ndarray], titles: Sequence[str], numbers: Sequence[np.ndarray | None], title: str,
            height: int, frames: Sequence[int] = ()) -> go.Figure:
    """Images side by side, some with a number on every patch, black on light and white on dark.

    Args:
        frames: patches that get a frame in every image; empty: no such trace.
    """
    # one layout in one go: plotly checks every update anew, and an explorer draws at every key press
    traces: list[go.Image | go.Scatter] = []
    layout: dict[str, object] = dict(title=dict(text=title), height=height, margin=dict(l=10, r=10, t=88, b=10),
                                     showlegend=False)
    each, notes = 1.03 / len(views), []
    for i, (view, count) in enumerate(zip(views, numbers, strict=True)):
        place, left, side = str(i + 1) if i else "", i * each, view.shape[0]
        axes = dict(xaxis=f"x{place}", yaxis=f"y{place}")
        traces.append(go.Image(source=png(view), hoverinfo="skip", **axes))
        if count is not None:
            traces.append(_numbers(view, count, 12 if len(views) > 2 else 14, axes))
        layout[f"xaxis{place}"] = dict(domain=[left, left + each - 0.03], anchor=f"y{place}", visible=False,
                                       range=[-0.5, side - 0.5], constrain="domain")
        layout[f"yaxis{place}"] = dict(anchor=f"x{place}", visible=False, range=[side - 0.5, -0.5],
                                       scaleanchor=f"x{place}", constrain="domain", constraintoward="top")
        notes.append(dict(text=titles[i], x=left + (each - 0.03) / 2, y=1, xref="paper", yref="paper", xanchor="center",
                          yanchor="bottom", showarrow=False, font=dict(size=14)))
    for i, view in enumerate(views if len(frames) else ()):
        step, place = view.shape[0] / GRID[0], str(i + 1) if i else ""
        x, y = ((step * (np.array(at) + 0.5) - 0.5).tolist() for at in (np.array(frames) % 8, np.array(frames) // 8))
        for colour, size in (("#ffffff", 30), (INK, 26)):           # white around black is seen on every ground
            traces.append(go.Scatter(x=x, y=y, mode="markers", hoverinfo="skip", xaxis=f"x{place}", yaxis=f"y{place}",
                                     marker=dict(symbol="square-open", size=size, color=colour, line=dict(width=2.5))))
    return go.Figure(traces, layout | dict(annotations=notes))


def _numbers(view: np.ndarray, numbers: np.ndarray, size: int, axes: dict[str, str]) -> go.Scatter:
    """A number in the middle of every patch of a view (H, W, 3)."""
    step = view.shape[0] / GRID[0]
    middle = (np.arange(GRID[0]) + 0.5) * step - 0.5
    y, x = (m.ravel() for m in np.meshgrid(middle, middle, indexing="ij"))
    patch = view.reshape(GRID[0], int(step), GRID[1], int(step), 3).mean((1, 3, 4)).ravel()
    return go.Scatter(x=x.tolist(), y=y.tolist(), mode="text", text=[str(n) for n in numbers.tolist()],
                      textfont=dict(size=size, color=np.where(patch > 120, "#000000", "#ffffff").tolist()),
                      hoverinfo="skip", **axes)


def plain_view(pixels: np.ndarray) -> np.ndarray:
    """An image as it is, (3, 64, 64) uint8 -> (64, 64, 3): small in the file, and the page enlarges it."""
    return pixels.transpose(1, 2, 0)


def grid_figure(pixels: np.ndarray, regions: np.ndarray) -> go.Figure:
    """An image, its patches numbered as the network reads them, and which of them belong to what."""
    cut = cluster_image(pixels, np.arange(64), GRID, np.ones(64, bool), scale=2)
    means = cluster_image(pixels, np.arange(64), GRID, scale=2)
    parts = cluster_image(pixels, regions, GRID, scale=2)
    letters = np.array(list("GLS"))[regions]
    return _panels([cut, means, parts], ["cut into 8 x 8 patches", "numbered, line by line", "ground, large, small"],
                   [None, np.arange(64), letters], "How does a network read an image?", 330)


def redrawn_figure(pixels: np.ndarray, redrawn: np.ndarray, labels: np.ndarray) -> go.Figure:
    """An image, who shares a stand-in with whom, and the image with every patch redrawn as its stand-in."""
    k = len(np.unique(labels))
    shared = cluster_image(pixels, labels, GRID, scale=2)
    return _panels([plain_view(pixels), shared, plain_view(redrawn)],
                   ["the image", f"{k} clusters, numbered", f"redrawn with {k} means"],
                   [None, number_clusters(labels), None], f"What do {k} of 64 tokens say?", 330)


def lost_figure(lost: pd.DataFrame) -> go.Figure:
    """Share lost by kind of patch as K falls to 16, a panel per method."""
    names = {"k_means": "averaged in clusters", "top_k": "kept by score", "random": "kept by chance"}
    methods = list(dict.fromkeys(lost["method"]))
    fig = make_subplots(1, len(methods), subplot_titles=[names.get(m, m) for m in methods], shared_yaxes=True,
                        horizontal_spacing=0.06)
    for column, method in enumerate(methods, start=1):
        for kind, part in lost[(lost["method"] == method) & (lost["k"] >= 16)].groupby("kind", sort=False):
            colour, dash, symbol = KIND_LOOKS[kind]
            fig.add_trace(go.Scatter(x=part["k"].tolist(), y=part["lost"].round(3).tolist(), name=kind,
                                     mode="lines+markers", line=dict(color=colour, dash=dash),
                                     marker=dict(symbol=symbol, size=8), legendgroup=kind, showlegend=column == 1),
                          1, column)
        fig.add_hline(y=0.1, line=dict(color=INK, width=1, dash="dot"), row=1, col=column)
    fig.update_xaxes(title="tokens left, K, of 64", range=[62, 14], dtick=16, tick0=0)
    fig.update_yaxes(rangemode="tozero").update_yaxes(title="share lost", col=1)
    return fig.update_layout(title="As tokens go, what goes first?", height=420, margin_t=92)


# ---- the explorer: compute, draw, say ----

PEBBLES = {f"pebbles {i + 1}": i for i in range(6)}
PHOTOGRAPHS = ("cat", "coffee", "astronaut", "temple", "flower")
IMAGES = (*PEBBLES, *(f"{name} (photograph)" for name in PHOTOGRAPHS))
TOKENS = {"the pixels of the patches": -1, "the network's tokens after block 1": 0,
          "the network's tokens after block 3": 2}


@dataclass(frozen=True)
class Groups:
    image: str
    source: str
    method: str
    patch: int
    pixels: np.ndarray                  # (3, 64, 64) uint8
    regions: np.ndarray | None          # (64,) of REGIONS; None for photographs
    labels: np.ndarray                  # (64,) numbers from 1, in reading order
    kept: np.ndarray | None             # (64,) bool for selections
    lost: float                         # share of the tokens' variance
    dearest: tuple[int, float]          # the group that loses most, and its share of all that is lost

    @property
    def k(self) -> int:
        return len(self.served)

    @property
    def served(self) -> np.ndarray:
        return np.unique(self.labels)

    @property
    def companions(self) -> list[int]:
        return companions.solution(torch.tensor(self.labels), self.patch)

    @property
    def by_region(self) -> list[int]:
        """How many stand-ins speak mainly for each region; for selections, how many kept patches lie in it."""
        assert self.regions is not None
        if self.kept is not None:
            return np.bincount(self.regions[self.kept], minlength=len(REGIONS)).tolist()
        main = [np.bincount(self.regions[self.labels == g], minlength=len(REGIONS)).argmax() for g in self.served]
        return np.bincount(main, minlength=len(REGIONS)).tolist()


_photographs = functools.lru_cache(maxsize=1)(photographs)


@functools.lru_cache(maxsize=64)
def _material(image: str, block: int) -> tuple[np.ndarray, np.ndarray | None, Tensor, Tensor]:
    """An image's pixels, its regions, its tokens (1, 64, C) and the attention each receives (1, 64)."""
    if image in PEBBLES:
        _, pixels, _, regions = (np.asarray(part)[PEBBLES[image]] for part in pebbles(6))
    else:
        pixels, regions = _photographs()[image.split(" ")[0]], None
    tokens, score = in_the_network(scale(pixels[None]), max(block, 0))
    return pixels, regions, patch_tokens(pixels[None]) if block < 0 else tokens, score


@functools.lru_cache(maxsize=512)
def group(image: str, block: int, method: str, k: int, patch: int) -> Groups:
    """Pool one image's tokens into k.

    Args:
        image: of IMAGES. block: -1 for the pixels of the patches, else the network's block, 0 is the first.
        patch: the one looked at.
    """
    pixels, regions, tokens, score = _material(image, block)
    scored = METHODS[method].scored
    out = tp.pool_tokens(tokens, k, method=method, weights=score if scored else None, init=start_of(method))
    gone = (tokens - out.unpool()).square().sum(2)[0].numpy()                   # of every patch
    whole = (tokens - tokens.mean(1, keepdim=True)).square().sum().item()
    labels = number_clusters(out.labels[0].numpy())
    by_group = np.bincount(labels, gone)
    kept = None
    if METHODS[method].kind == "selection":
        kept = np.zeros(64, bool)
        kept[out.indices[0].numpy()] = True
    source = next(name for name, place in TOKENS.items() if place == block)
    return Groups(image, source, method, patch, pixels, regions, labels, kept, float(gone.sum()) / whole,
                  (int(by_group.argmax()), float(by_group.max() / max(gone.sum(), 1e-9))))


def group_figure(g: Groups) -> go.Figure:
    """The image; and beside it every patch with the number of its stand-in, that of one patch framed."""
    view = cluster_image(g.pixels, g.labels, GRID, g.kept, scale=2)
    right = "kept patches, and who speaks for whom" if g.kept is not None else "clusters: mean colour and number"
    return _panels([plain_view(g.pixels), view], ["the image", right], [None, g.labels],
                   f"{g.image}: who speaks for patch {g.patch}?", 440, frames=sorted([g.patch, *g.companions]))


def group_words(g: Groups) -> str:
    others = g.companions
    alone = f"Patch {g.patch} speaks for itself alone." if not others else \
        f"Patch {g.patch} is in group {g.labels[g.patch]} with {len(others)} other{'s' * (len(others) > 1)}: " \
        f"{_listed(others)}."
    more = ", more than if one mean token spoke for all" if g.lost > 1 else ""
    group, share = g.dearest
    why = f" The largest part of that, {share:.0%}, is lost where group {group} has one token for " \
          f"{int((g.labels == group).sum())} patches that differ." if g.lost > 0.005 else \
        " Whoever shares a token looks the same." if g.k < 64 else " Nobody shares a token."
    what = f"{g.k} of 64 tokens by {g.method}, from {g.source}: {g.lost:.0%} of the variance is lost{more}.{why}"
    largest = int(np.bincount(g.labels).argmax())
    crowd = f"The largest group, number {largest}, has {int((g.labels == largest).sum())} of the 64 patches."
    if g.regions is None:
        return f"{what} {crowd} {alone}"
    ground, large, small = g.by_region
    patches = int((g.regions == 2).sum())
    head = "Kept patches" if g.kept is not None else "Stand-ins, by what they mainly speak for"
    gone = "" if small else f" Nobody is left to speak for the small pebble first: its {patches} patches are told as " \
                            "if they were something else."
    return (f"{what} {head}: ground {ground}, large pebble {large}, small pebble {small} (of {patches} patches).{gone} "
            f"{crowd} {alone}")


def _listed(numbers: list[int], most: int = 12) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return f"{shown} and {len(numbers) - most} more" if len(numbers) > most else shown


def group_table(g: Groups) -> pd.DataFrame:
    """The largest groups, and which patches are in them."""
    size = np.bincount(g.labels, minlength=g.k + 1)
    order = sorted(g.served.tolist(), key=lambda n: (-size[n], n))[:16]
    return pd.DataFrame({"group": order, "patches": [int(size[n]) for n in order],
                         "which": [_listed(np.flatnonzero(g.labels == n).tolist(), 20) for n in order]})


def explore() -> Explorer:
    return Explorer({"image": Choice("Image", IMAGES), "block": Choice("Tokens", TOKENS),
                     "method": Choice("Method", tp.method_names(), "k_means"),
                     "k": Number("Tokens left, K", 16, 1, 64), "patch": Number("Look at patch", 0, 0, 63)},
                    group, group_figure, group_words, group_table, height=440,
                    measure=lambda g: ("share of the variance lost", g.lost, "{:.0%}"))


# ---- predictions ----

_OPTIONS = ("the small pebble", "the outlines", "the large pebble", "the ground")
_ORDER = ("small pebble", "outline", "large pebble", "ground")


PREDICTIONS = (
    Prediction("a", "Images of a large and a small pebble on a ground are cut into 64 patches. The patches become 16 "
                    "cluster means, a quarter (for DeiT it would be 196 becoming 49), and each patch is redrawn as the "
                    "mean of its cluster. On the way from 64 down to 16: *which patches are the first to lose a tenth "
                    "of what sets them apart from the average patch?* Those of ...",
               _OPTIONS,
               answer=lambda first: max(range(4), key=lambda i: first[_ORDER[i]]),
               why={0: "It has the fewest patches, and that would settle it if clusters were dealt out by size. But "
                       "its patches look like nothing else, so merging them with anything costs most, and a clustering "
                       "avoids what costs most.",
                    1: "They do go first when patches are *thrown away*, by a score or by chance: what a patch on an "
                       "outline says, no other patch can say. A clustering averages patches that look alike, and a "
                       "patch on an outline looks like few others.",
                    2: "It has many patches, and some are alike and merged early. The ground has more of them."},
               tell=lambda first: "a tenth is lost at " + ", ".join(
                   f"K = {first[kind]} ({kind})" if first[kind] else f"no K ({kind})"
                   for kind in sorted(_ORDER, key=lambda kind: -first[kind]))),
)


# ---- exercises ----

@exercise("a", minutes=3, level=1, hints=(
    "How many patches fit side by side along one edge? And how many rows of them are there?",
    "(size // patch) patches along an edge, the same number of rows: the square of it. The prefix tokens come on top.",
    "`return (size // patch) ** 2 + prefix`"))
def count_tokens(size, patch, prefix):
    return (size // patch) ** 2 + prefix


@count_tokens.check_by
def _(answer):
    got = _number(answer(224, 16, 0))
    ensure(got != 14, "14 is the number of patches along *one edge*. An image has rows and columns of them.")
    ensure(got != 224 * 224 // 16, "A patch of side 16 covers 16 times 16 pixels, not 16.")
    ensure(got not in (50176, 256, 768), "That counts pixels, or the numbers inside a patch. How many *patches* are "
                                         "there?")
    expect(got, 196, "An image of 224 pixels has 14 rows of 14 patches of 16 pixels.")
    expect(answer(32, 4, 0), 64, "An image of 32 pixels has 8 rows of 8 patches of 4 pixels.")
    got = _number(answer(224, 16, 1))
    ensure(got != 196, "The prefix tokens are missing: the class token is a token too, though no patch.")
    expect(got, 197, "196 patches and one class token.")
    expect(answer(224, 16, 5), 201, "196 patches, one class token and four registers: the prefix is *added*, once.")


@exercise("b", minutes=4, level=1, hints=(
    "First find the label of the patch itself: `labels[patch]`.",
    "All patches with that label: go through `range(len(labels))` and compare. Leave the patch itself out.",
    "`[i for i in range(len(labels)) if labels[i] == labels[patch] and i != patch]`"))
def companions(labels, patch):
    return [i for i in range(len(labels)) if labels[i] == labels[patch] and i != patch]


@companions.check_by
def _(answer):
    labels = torch.tensor([0, 2, 0, 1, 2, 2])
    got = _places(answer(labels, 1), labels)
    ensure(got != [0, 0, 1, 0, 1, 1] and got != [0, 1, 0, 0, 1, 1],
           "That is a yes or no for every patch. Return the *places* of the yeses, `[4, 5]` in this case.")
    ensure(got != [1, 4, 5], "Patch 1 is on its own list. Its companions are the *others*.")
    ensure(got != [3], "That compares the labels with the *number* of the patch. Compare them with the patch's label, "
                       "`labels[patch]`.")
    ensure(got != [2], "That is how many companions patch 1 has (or its label). Return which ones.")
    expect(got, [4, 5], "Labels 0 2 0 1 2 2: patch 1 has label 2, and so have patches 4 and 5.")
    expect(_places(answer(labels, 0), labels), [2], "Labels 0 2 0 1 2 2: patch 0 shares label 0 with patch 2.")
    expect(_places(answer(labels, 3), labels), [], "Patch 3 is alone with label 1: an empty list.")


def _number(got: object) -> float:
    try:
        return float(got)                               # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Wrong(f"Return one number; {got!r} came.") from None


def _places(got: object, labels: Tensor) -> list[int]:
    """What came, as a sorted list of whole numbers."""
    try:
        return [int(v) for v in torch.as_tensor(got).flatten().tolist()] if not isinstance(got, set) else sorted(got)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Return a list of patch numbers; {got!r} came.") from None
