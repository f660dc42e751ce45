"""The K-per-layer explorer: one slider a block, and what the tokens, the cost and the class make of it.

    KExplorer({"geometric": (48, 36, 27, 21, 15, 15), ...})        # notebook 05 and `tokenpool explore`

Four kinds of pure functions, each tested without a browser: `follow` (a setting and a move give the next setting),
`look` (a setting -> all that can be seen, cached), `figure` and `table` (draw it), `first_words` and `move_words` (say
it, the latter against what was there before the move). `KExplorer` is the wiring.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from PIL import Image, ImageOps
from torch import Tensor

import tokenpool as tp
from tokenpool.core.cost import Cost, ModelShape, count_macs
from tokenpool.core.methods import Pooling
from tokenpool.core.schedule import geometric
from tokenpool.data.datasets import scale
from tokenpool.data.pebbles import CLASSES, REGIONS
from tokenpool.data.photographs import photographs, square
from tokenpool.lab.kit.cards import inline
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, details
from tokenpool.lab.kit.session import pebbles, shipped_vit
from tokenpool.lab.widgets.controls import Choice, Number, Switch, Upload
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.models.vit import TraceStep, model_shape
from tokenpool.report.figures import cluster_image, png

Ks = tuple[int, ...]
N, DEPTH = 64, 6                        # patch tokens and blocks of the model that ships
POOLING = DEPTH - 1                     # blocks that pool: a cut after the last one would save nothing
HAND, BUDGET = "by hand", "geometric, for the budget below"
OWN, NOBODY = "your own", "nothing"
OUTPUTS = {"the method's own": "", "medoid": "medoid", "mean": "mean", "weighted mean": "weighted_mean"}
_GAP = 34                               # between two rows of images; the name of the second stands in it
PLACES = ("start", *(f"block {b}" for b in range(1, DEPTH)))


# ---- images: shipped, and your own ----

#: of the 24 pebbles of `lab.images`, some that are easy to keep and some that are easily lost
_PEBBLES = (4, 2, 18, 22, 0, 8)
_PHOTOGRAPHS = ("cat", "coffee", "astronaut", "temple", "flower")
#: what an uploaded image may be
FORMATS, ENDINGS = ("PNG", "JPEG", "WEBP", "BMP"), ".png,.jpg,.jpeg,.webp,.bmp"
MOST_BYTES, MOST_PIXELS = 5_000_000, 40_000_000


@dataclass(frozen=True)
class Sample:
    """An image of the explorer."""

    pixels: np.ndarray              # (3, 64, 64) uint8
    regions: np.ndarray | None      # (64,) of every patch: 0 ground, 1 large pebble, 2 small; None: nobody knows


@functools.lru_cache(maxsize=1)
def image_names() -> tuple[str, ...]:
    """Six pebbles by their class, five photographs."""
    labels = pebbles(24)[2]
    return (*(f"pebbles {place}: {spoken(int(labels[i]))}" for place, i in enumerate(_PEBBLES, start=1)),
            *(f"photograph: {name}" for name in _PHOTOGRAPHS))


@functools.lru_cache(maxsize=16)
def sample(name: str, own: bytes = b"") -> Sample:
    """An image by its name; `own`: the pixels of an uploaded one."""
    if name == OWN:
        return Sample(np.frombuffer(own, np.uint8).reshape(3, 64, 64), None)
    place = image_names().index(name)
    if place >= len(_PEBBLES):
        return Sample(_photographs()[_PHOTOGRAPHS[place - len(_PEBBLES)]], None)
    _, pixels, _, regions = pebbles(24)
    return Sample(pixels[_PEBBLES[place]], regions[_PEBBLES[place]])


@functools.lru_cache(maxsize=1)
def _photographs() -> dict[str, np.ndarray]:
    return photographs()


def spoken(label: int) -> str:
    """A class in words."""
    large, small = CLASSES[label]
    return f"large {large}, small {small}"


def read_upload(name: str, size: int, content: bytes) -> bytes:
    """The centre of an uploaded image as 3 x 64 x 64 bytes. Read from memory, never written to a disk.

    Raises:
        ValueError: too large, no image, or not one of the four formats; a sentence for the person who chose it.
    """
    if max(size, len(content)) > MOST_BYTES:
        raise ValueError(f"{name} has {max(size, len(content)) / 1e6:.1f} MB; use an image of at most "
                         f"{MOST_BYTES // 1_000_000} MB.")
    wanted = f"Use a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)    # the bound below is tighter
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has far too many pixels; use at most {MOST_PIXELS // 1_000_000} million.") from None
    except Exception:               # Pillow's plugins raise whatever a broken header makes them raise
        raise ValueError(f"{name} cannot be read as an image. {wanted}") from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{name} has {image.width} x {image.height} pixels; use at most "
                             f"{MOST_PIXELS // 1_000_000} million.")
        try:
            image.draft("RGB", (256, 256))                                   # a JPEG decodes at a fraction at once
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        except Exception:           # cut off, or damaged behind a good header
            raise ValueError(f"{name} cannot be read to its end: it is damaged. {wanted}") from None
        ground = Image.new("RGBA", upright.size, "white")
        return square(Image.alpha_composite(ground, upright).convert("RGB"), 64).tobytes()


# ---- cost ----

@functools.lru_cache(maxsize=1)
def _shape() -> ModelShape:
    return model_shape(shipped_vit())


def whole(ks: Sequence[int]) -> Ks:
    """Five numbers -> a schedule of six blocks: nothing is pooled after the last."""
    return (*ks, ks[-1])


def pooling(method: str, init: str, output: str) -> Pooling:
    """A method with what it uses of the other choices: only clusterings start somewhere and choose an output."""
    clusters = Pooling(method).spec.kind == "clustering"
    return Pooling(method, init if clusters else None, output=(output or None) if clusters else None)


def cost(ks: Sequence[int], how: Pooling, counts: bool) -> Cost:
    shape = _shape()
    return count_macs(shape, whole(ks), lambda n, k: how.macs(n, k, shape.channels, stand_ins=counts))


@functools.lru_cache(maxsize=1)
def plain_macs() -> int:
    return count_macs(_shape()).total


def percent(macs: float) -> str:
    """MACs as a share of the plain model's."""
    return f"{macs / plain_macs():.1%}"


# ---- schedules ----

def allowed(asked: Sequence[int]) -> tuple[Ks, str]:
    """What a row of five sliders means: K that never rises, and a sentence on the blocks that had to change.

    >>> ks, told = allowed((40, 50, 20, 20, 20))
    >>> ks, told[:34]
    ((40, 40, 20, 20, 20), 'Block 2 asks for 50 of 40 tokens: ')
    """
    ks: list[int] = []
    rises = []
    for block, k in enumerate(asked, start=1):
        before = ks[-1] if ks else N
        if k > before:
            rises.append((block, k))
        ks.append(min(k, before))
    told = ""
    if len(rises) == 1:
        block, k = rises[0]
        told = (f"Block {block} asks for {k} of {ks[block - 1]} tokens: what is gone does not come back, so nothing is "
                "pooled there.")
    elif rises:
        named = ", ".join(f"{block} ({k} of {ks[block - 1]})" for block, k in rises)
        told = f"These blocks ask for more tokens than there are left: {named}. What is gone does not come back, so " \
               "nothing is pooled there."
    return tuple(ks), told


def for_budget(target: float, macs: Callable[[Ks], int]) -> tuple[Ks, str]:
    """The geometric schedule that comes nearest to a budget, and a sentence where it is over 1 % away."""
    tried = dict.fromkeys(geometric(N, DEPTH, rate / 400)[:POOLING] for rate in range(1, 401))
    best = min(tried, key=lambda ks: abs(macs(ks) - target))
    return best, "" if _near(macs(best), target) else (
        f"No geometric schedule costs {percent(target)} with this clustering: the nearest costs {percent(macs(best))}.")


def hold(ks: Sequence[int], moved: int | None, target: float, macs: Callable[[Ks], int]) -> tuple[Ks, str]:
    """Keep the budget: block `moved` (0 is the first; None: no block) stays, the others share what is left.

    They are multiplied by one factor, kept between 1 and 64 and never rising, and then improved by single tokens,
    because whole numbers rarely meet a budget.

    Returns:
        the five K, and a sentence where they miss the budget by more than 1 %.
    """
    ks = tuple(ks)
    lowest = tuple(1 if moved is None or b > moved else ks[moved] for b in range(POOLING))
    highest = tuple(N if moved is None or b < moved else ks[moved] for b in range(POOLING))
    shape = allowed(ks if moved is None else
                    [k if b == moved else max(k, ks[moved]) if b < moved else min(k, ks[moved])
                     for b, k in enumerate(ks)])[0]

    def scaled(factor: float) -> Ks:
        return tuple(min(high, max(low, round(k * factor)))
                     for k, low, high in zip(shape, lowest, highest, strict=True))

    def distance(ks: Ks) -> float:
        return abs(macs(ks) - target)

    def climbed(best: Ks) -> Ks:
        """Token by token towards the budget."""
        while not _near(macs(best), target, 0.002):
            single = [(*best[:b], best[b] + step, *best[b + 1:]) for b in range(POOLING) for step in (-1, 1)
                      if lowest[b] <= best[b] + step <= highest[b]]
            nearer = min((s for s in single if list(s) == sorted(s, reverse=True)), key=distance, default=best)
            if distance(nearer) >= distance(best):
                break
            best = nearer
        return best

    # a scan, not a bisection: a pooling that removes nothing costs nothing, so the cost is no monotone function of K
    tried = dict.fromkeys([shape, *(scaled(2 ** (step / 32)) for step in range(-192, 193)), lowest, highest])
    best = climbed(min(tried, key=distance))
    if not _near(macs(best), target):           # another shape may do what this one cannot
        steps = [sorted({low, high, *range(8 * (low // 8 + 1), high, 8)}, reverse=True)
                 for low, high in zip(lowest, highest, strict=True)]
        coarse = (ks for ks in itertools.product(*steps) if all(a >= b for a, b in itertools.pairwise(ks)))
        best = min(map(climbed, heapq.nsmallest(8, coarse, key=distance)), key=distance)
    if _near(macs(best), target):
        return best, ""
    got, wanted = percent(macs(best)), percent(target)
    if moved is None:
        return best, f"The budget of {wanted} cannot be kept with this choice: the nearest schedule costs {got}."
    block, k = moved + 1, ks[moved]
    if macs(best) > target:
        why = "the blocks before it must keep at least as many" if moved else "all tokens pass the first block"
        verb = "kept"
    else:
        why = f"later blocks cannot have more than {k}, what is gone does not come back"
        verb = "spent"
    return best, (f"The budget of {wanted} cannot be {verb}: with {_tokens(k)} after block {block} the nearest "
                  f"schedule costs {got}, because {why}.")


def _near(macs: float, target: float, share: float = 0.01) -> bool:
    return abs(macs - target) <= share * target


# ---- a setting, and what a move makes of it ----

@dataclass(frozen=True)
class Setting:
    """Everything that is chosen. What comes after `image` has no control of its own."""

    preset: str
    budget: int                                 # % of the plain model's MACs
    k1: int
    k2: int
    k3: int
    k4: int
    k5: int
    lock: bool
    method: str
    init: str
    output: str
    counts: bool
    compare: str
    image: str
    shown: str                                  # the image that is seen: the last one while "your own" is empty
    own: bytes = field(default=b"", repr=False)
    target: float = 0.0                         # MACs to keep, while locked
    streak: tuple[int, Ks] | None = None        # block that is being moved, and K when that began
    told: str = ""                              # what a move could not do

    @property
    def ks(self) -> Ks:
        """What the five sliders say."""
        return self.k1, self.k2, self.k3, self.k4, self.k5

    @property
    def schedule(self) -> Ks:
        """What PooledViT gets."""
        return whole(allowed(self.ks)[0])

    @property
    def how(self) -> Pooling:
        return pooling(self.method, self.init, self.output)

    @property
    def code(self) -> str:
        """The model, or both models, as Python. `vit` is the timm model."""
        return "\n".join(
            f"tp.PooledViT(vit, schedule={list(self.schedule)}, method={how.method!r}, init={how.init!r}, "
            f"output={how.output!r}, carry_counts={self.counts})"
            for how in (pooling(m, self.init, self.output) for m in self.methods))

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,) if self.compare in (NOBODY, self.method) else (self.method, self.compare)

    def macs(self, ks: Ks) -> int:
        return cost(allowed(ks)[0], self.how, self.counts).total

    def with_ks(self, ks: Ks, told: str = "") -> Setting:
        return replace(self, **{f"k{b}": k for b, k in enumerate(ks, start=1)}, told=told)


def follow(now: Setting, name: str, value: Any, presets: Mapping[str, Ks]) -> Setting:
    """What a person's move of one control makes of the others. Pure."""
    then = replace(now, **{name: value}, told="", streak=None)
    if name == "preset":
        if value == BUDGET:
            then = then.with_ks(*for_budget(value_of(then.budget), then.macs))
        elif value != HAND:
            then = then.with_ks(presets[value][:POOLING])
        return _relocked(then)
    if name == "budget":
        then = replace(then, preset=BUDGET)
        return _relocked(then.with_ks(*for_budget(value_of(value), then.macs)))
    if name == "lock":
        then = then.with_ks(allowed(then.ks)[0]) if value else then
        return _relocked(then)
    if name.startswith("k"):
        block = int(name[1:]) - 1
        then = replace(then, preset=HAND)
        if not now.lock:
            return then
        # as long as the same slider moves, the others are worked out from where it began: there and back is no change
        began = now.streak[1] if now.streak and now.streak[0] == block else now.ks
        asked = (*began[:block], value, *began[block + 1:])
        return replace(then.with_ks(*hold(asked, block, then.target, then.macs)), streak=(block, began))
    if name in ("method", "init", "output", "counts"):
        if then.preset == BUDGET:
            return _relocked(then.with_ks(*for_budget(value_of(then.budget), then.macs)))
        if then.lock and not _near(then.macs(then.ks), then.target):
            return replace(then.with_ks(*hold(then.ks, None, then.target, then.macs)), preset=HAND)
    if name == "image":
        if value == OWN and not then.own:
            return replace(then, told="You have not uploaded an image yet: choose a file below. The image is still "
                                      f"{now.shown}.")
        return replace(then, shown=value)
    return then


def value_of(budget: int) -> float:
    """A budget in % of the plain model, in MACs."""
    return budget / 100 * plain_macs()


def _relocked(setting: Setting) -> Setting:
    """The lock keeps what has just been chosen."""
    return replace(setting, target=float(setting.macs(setting.ks)) if setting.lock else 0.0)


# ---- compute ----

@dataclass(frozen=True)
class Run:
    """What one method does with one schedule."""

    how: Pooling
    share: float                        # MACs over those of the plain model, clustering included
    share_without: float
    strip: np.ndarray                   # (128, 952, 3): the image, after each of five blocks, rebuilt from its tokens
    rebuilt: np.ndarray                 # (3, 64, 64) uint8
    error: tuple[float, ...]            # of the five poolings; 0 where nothing is pooled
    left: np.ndarray                    # (6, 3) tokens by region, before and after each block; zeros where unknown
    after: np.ndarray                   # (30,) probabilities

    @property
    def method(self) -> str:
        return self.how.method


@dataclass(frozen=True)
class View:
    """Everything that can be seen of one setting."""

    setting: Setting
    runs: tuple[Run, ...]               # the method, and the one it is compared with
    strip: str                          # their rows of images
    before: np.ndarray                  # (30,) probabilities of the plain model
    patches: tuple[int, ...]            # of the image, by region; zeros where nobody knows them

    @property
    def ks(self) -> Ks:
        return self.setting.schedule[:POOLING]

    @property
    def known(self) -> bool:
        """Whether the model knows such images, and we their regions."""
        return sum(self.patches) > 0


def look(setting: Setting) -> View:
    """Pure; the work behind it is cached by what decides it, so idle controls cost nothing."""
    image = setting.shown
    own = setting.own if image == OWN else b""
    runs = tuple(_run(setting.schedule, pooling(m, setting.init, setting.output), setting.counts, image, own)
                 for m in setting.methods)
    regions = sample(image, own).regions
    patches = (0, 0, 0) if regions is None else tuple(np.bincount(regions, minlength=3).tolist())
    rows = [runs[0].strip, *(np.pad(r.strip, ((_GAP, 0), (0, 0), (0, 0)), constant_values=255) for r in runs[1:])]
    return View(setting, runs, png(np.concatenate(rows)), _plain(image, own), patches)


@functools.lru_cache(maxsize=512)
def _run(schedule: Ks, how: Pooling, counts: bool, image: str, own: bytes) -> Run:
    shown = sample(image, own)
    model = tp.PooledViT(shipped_vit(), schedule, method=how.method, init=how.init, output=how.output,
                         carry_counts=counts).eval()
    with torch.no_grad():
        trace = model.trace(_ready(shown))
    steps = trace.steps[:POOLING]
    chooses = how.spec.kind == "selection"
    images = [_first(shown), *(_image(shown, step, chooses) for step in steps)]
    again = rebuilt(shown.pixels, steps[-1], how.output_name == "medoid")
    images.append(again.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1))
    left = np.zeros((DEPTH, 3), int)
    if shown.regions is not None:
        every = [shown.regions, *(_regions(shown.regions, step, chooses) for step in steps)]
        left = np.stack([np.bincount(regions, minlength=3) for regions in every])
    counted = tp.macs(model)
    # copies of one token have no variance, and lose none of it: 0 / 0 is 0 here
    error = tuple(float(torch.nan_to_num(s.error)) for s in steps)
    return Run(how, counted.total / plain_macs(), counted.without_clustering / plain_macs(), _in_a_row(images), again,
               error, left, trace.logits.softmax(1)[0].numpy())


@functools.lru_cache(maxsize=16)
def _plain(image: str, own: bytes) -> np.ndarray:
    """Probabilities (30,) without pooling."""
    with torch.no_grad():
        return shipped_vit()(_ready(sample(image, own))).softmax(1)[0].numpy()


def _ready(shown: Sample) -> Tensor:
    return scale(np.array(shown.pixels[None]))


def _regions(regions: np.ndarray, step: TraceStep, chooses: bool) -> np.ndarray:
    """Region of every token after a block, (K,): of its own patch where tokens are kept as they are, else of most of
    the patches it stands for."""
    if chooses and step.origin is not None:
        return regions[step.origin[0].numpy()]
    share = np.zeros((step.kept, 3))
    np.add.at(share, (step.labels[0].numpy(), regions), 1)
    return share.argmax(1)[share.sum(1) > 0]


def rebuilt(pixels: np.ndarray, step: TraceStep, own: bool) -> np.ndarray:
    """The image made of what is left: every patch shows the patch of its token (`own`), else the average of the
    patches that its token stands for. (3, 64, 64) uint8."""
    patches = pixels.reshape(3, 8, 8, 8, 8).transpose(1, 3, 0, 2, 4).reshape(N, -1)
    labels = step.labels[0].numpy()
    if own and step.origin is not None:
        shown = patches[step.origin[0].numpy()[labels]]
    else:
        same = labels[:, None] == labels
        shown = np.rint(same @ patches.astype(float) / same.sum(1, keepdims=True)).astype(np.uint8)
    return shown.reshape(8, 8, 3, 8, 8).transpose(2, 0, 3, 1, 4).reshape(3, 64, 64)


def _image(shown: Sample, step: TraceStep, chooses: bool) -> np.ndarray:
    """The image as the tokens after a block see it, (128, 128, 3)."""
    kept = None
    if chooses and step.origin is not None:
        kept = np.zeros(N, bool)
        kept[step.origin[0].numpy()] = True
    return cluster_image(shown.pixels, step.labels[0].numpy(), (8, 8), kept)


def _first(shown: Sample) -> np.ndarray:
    """The image itself, the small pebble's patches framed, (128, 128, 3)."""
    big = shown.pixels.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1).copy()
    if shown.regions is not None:
        inside = np.pad((shown.regions == 2).reshape(8, 8).repeat(16, 0).repeat(16, 1), 2)
        core = inside[2:-2, 2:-2]
        near = np.logical_and.reduce([inside[2 + i:130 + i, 2 + j:130 + j] for i in (-2, 0, 2) for j in (-2, 0, 2)])
        big[core & ~near] = (255, 255, 255)
    return big


def _in_a_row(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (128, 128, 3) side by side with a white gap, (128, 136 times as many, 3)."""
    return np.concatenate([np.pad(i, ((0, 0), (4, 4), (0, 0)), constant_values=255) for i in images], 1)


# ---- draw ----

def figure(v: View) -> go.Figure:
    """Images, error by block, whose tokens are left, cost, classes: 9 traces for one method, 14 for two.

    Written as data, not with plotly's helpers for subplots: those take a third of a second, and a slider is waiting.
    """
    two = len(v.runs) == 2
    looks = list(zip(v.runs, ((GREEN, "."), (INK, "/")), strict=False))
    data: list[dict[str, Any]] = [dict(type="image", source=v.strip, hoverinfo="skip", xaxis="x1", yaxis="y1")]
    for run, (colour, pattern) in looks:
        data.append(dict(type="bar", x=PLACES[1:], y=[round(e, 3) for e in run.error], name=run.method,
                         legendgroup=run.method, text=[f"{e:.2f}" if e else "" if two else "none" for e in run.error],
                         textfont_size=12, textposition="outside", cliponaxis=False, xaxis="x2", yaxis="y2",
                         marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay"))))
    for place, run in enumerate(v.runs):
        for region, (colour, pattern) in enumerate(((GREY, ""), (BLUE, "/"), (ORANGE, "x"))):
            data.append(dict(
                type="bar", x=PLACES, y=run.left[:, region].tolist(), name=REGIONS[region], xaxis="x3", yaxis="y3",
                showlegend=v.known and not place, legendgroup=REGIONS[region], offsetgroup=f"regions {place}",
                base=run.left[:, :region].sum(1).tolist(),                                                  # stacked
                hovertemplate=f"{run.method}: %{{y}} of {REGIONS[region]}<extra></extra>",
                marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay"))))
    rows = ["plain model", *(run.method for run in v.runs)][::-1]                               # bars grow upwards
    without = [100.0, *(round(100 * run.share_without, 1) for run in v.runs)][::-1]
    every = [100.0, *(round(100 * run.share, 1) for run in v.runs)][::-1]
    extra = [round(e - w, 1) for e, w in zip(every, without, strict=True)]
    for name, values, base, colour, pattern, text in (
            ("MACs of the blocks", without, [0] * len(rows), GREY, "", [""] * len(rows)),
            ("of the clustering", extra, without, PURPLE, "x", [f"{e:g}" for e in every])):
        data.append(dict(type="bar", orientation="h", y=rows, x=values, base=base, name=name, offsetgroup="cost",
                         xaxis="x4", yaxis="y4", text=text, textfont_size=12, textposition="outside",
                         cliponaxis=False, marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay"))))
    likely = np.argsort(-(v.before + sum(r.after for r in v.runs)), kind="stable")[:3][::-1].tolist()
    classes = [spoken(c).replace(", ", ",<br>") for c in likely]
    shown = [*((run.method, run.after, look) for run, look in looks), ("plain model", v.before, (PURPLE, ""))]
    for name, values, (colour, pattern) in shown[::-1]:
        data.append(dict(type="bar", orientation="h", y=classes, name=name, xaxis="x5", yaxis="y5",
                         x=[round(100 * float(values[c]), 1) for c in likely], showlegend=name == "plain model",
                         legendgroup=name, marker=dict(color=colour, pattern=dict(shape=pattern, fillmode="overlay"))))
    return go.Figure(data=data, layout=_layout(v))


def _layout(v: View) -> dict[str, Any]:
    """Four panels under one or two rows of images."""
    two = len(v.runs) == 2
    # heights in pixels, made shares of the plot below: a second row of images pushes the panels down
    images = 280 if two else 128
    tall = images + 515

    def up(low: float, high: float) -> tuple[float, float]:
        return 1 - (images + low) / tall, 1 - (images + high) / tall

    below = [f"image<br>{N}", *(f"block {b}<br>{k}" for b, k in enumerate(v.ks, start=1)), f"rebuilt<br>{v.ks[-1]}"]
    top = round(max(0.1, 1.25 * max(max(run.error) for run in v.runs)), 2)
    share = " and ".join(f"{run.share:.1%}" for run in v.runs)
    row = [dict(text=f"{run.method}", x=4, y=y, xref="x", yref="y", xanchor="left", yanchor="bottom", showarrow=False,
                font_size=13) for run, y in zip(v.runs, (0, 128 + _GAP), strict=False)] if two else []
    return dict(
        title_text=f"{' '.join(map(str, v.ks))}: {share} of the MACs", height=tall + 190, barmode="group",
        margin=dict(l=56, r=16, t=72 if two else 50),
        annotations=[*row, _heading("error of the pooling, by block", 0.21, up(0, 74)[1]),
                     _heading("whose tokens are left" + ("" if v.known else ": nobody knows"), 0.77, up(0, 74)[1]),
                     _heading("cost, % of the plain model", 0.21, up(0, 326)[1]),
                     _heading("class of the image", 0.77, up(0, 326)[1])],
        **_axes(1, (0, 1), up(0, -images),
                dict(tickvals=[68 + 136 * i for i in range(DEPTH + 1)], ticktext=below, tickangle=0, ticks="",
                     tickfont_size=12, showgrid=False, showline=False, range=[0, 136 * (DEPTH + 1)]),
                dict(visible=False, scaleanchor="x", range=[256 + _GAP if two else 128, 0], constrain="domain",
                     constraintoward="top")),
        **_axes(2, (0, 0.42), up(256, 78), dict(tickfont_size=11), dict(title_text="share lost", range=[0, top])),
        **_axes(3, (0.56, 1), up(256, 78), dict(tickfont_size=11), dict(title_text="tokens", range=[0, 70])),
        **_axes(4, (0.1, 0.42), up(515, 330), dict(title_text="MACs, %", range=[0, 118]), dict(tickfont_size=11)),
        **_axes(5, (0.66, 1), up(515, 330), dict(title_text="probability, %", range=[0, 101]), dict(tickfont_size=11)))


def _axes(number: int, across: tuple[float, float], up: tuple[float, float], x: dict[str, Any], y: dict[str, Any]
          ) -> dict[str, Any]:
    """A pair of axes in a part of the figure, as layout."""
    return {f"xaxis{number}": dict(domain=across, anchor=f"y{number}", **x),
            f"yaxis{number}": dict(domain=up, anchor=f"x{number}", **y)}


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    return dict(text=text, x=x, y=y, xref="paper", yref="paper", xanchor="center", yanchor="bottom", showarrow=False,
                font_size=13)


def table(v: View) -> pd.DataFrame:
    parts = []
    for run in v.runs:
        parts.append(pd.DataFrame({
            "method": run.method, "after": PLACES[1:], "tokens": v.ks,
            "share of the variance lost": [round(e, 3) for e in run.error],
            **{f"tokens of {name}": run.left[1:, r] if v.known else "unknown" for r, name in enumerate(REGIONS)}}))
    return pd.concat(parts)


# ---- say ----

def first_words(v: View) -> str:
    """What is set, what it costs, what it does to tokens and class."""
    run = v.runs[0]
    said = [v.setting.told, allowed(v.setting.ks)[1], f"K = {' '.join(map(str, v.ks))} with {_way(v, run)}: "
            f"{run.share:.1%} of the plain model's MACs, {run.share_without:.1%} without the clustering."]
    worst = int(np.argmax(run.error))
    said.append(f"Block {worst + 1} loses most, {run.error[worst]:.0%} of its tokens' variance." if max(run.error) > 0
                else "Nothing is pooled, so nothing is lost.")
    was, now = int(v.before.argmax()), int(run.after.argmax())
    if v.known:
        said.append(f"The class stays *{spoken(was)}* ({v.before[was]:.0%} before, {run.after[now]:.0%} after)."
                    if was == now else f"The class changes from *{spoken(was)}* ({v.before[was]:.0%}) to "
                                       f"*{spoken(now)}* ({run.after[now]:.0%}).")
    else:
        said.append("The model knows pebbles only: its class for such an image means nothing, and nobody has marked "
                    "the regions; the clusters are worth a look.")
    return " ".join([*filter(None, said), *_remains(v), *_second(v), *_idle(v)])


def move_words(before: View, now: View, name: str) -> str:
    """What a move has changed, and why."""
    a, b, old, new = before.setting, now.setting, before.runs[0], now.runs[0]
    if (a.shown, a.own) != (b.shown, b.own):
        head = ("Another image, the same K: the MACs stay, they do not depend on what is seen."
                if name == "image" else _head(a, b, name))
        return f"{head} {first_words(now)}"
    said = [_head(a, b, name), b.told, allowed(b.ks)[1]]
    if (old.how, a.schedule, a.counts) == (new.how, b.schedule, b.counts):      # nothing that the images depend on
        return " ".join([*filter(None, said), *(_second(now) if a.methods != b.methods else []),
                         *(_idle(now) if a.methods != b.methods or name in ("init", "output") else [])])
    said += [_cost_change(old, new, b), _error_change(before, now)]
    if now.known:
        was, old_class, new_class = (int(p.argmax()) for p in (now.before, old.after, new.after))
        if old_class != new_class:
            back = " again, as in the plain model" if new_class == was else ""
            said.append(f"The class changes from *{spoken(old_class)}* to *{spoken(new_class)}* "
                        f"({new.after[new_class]:.0%}){back}.")
        else:
            right = "stays" if new_class == was else f"is still not *{spoken(was)}* but"
            said.append(f"The class {right} *{spoken(new_class)}* ({old.after[new_class]:.0%} before the move, "
                        f"{new.after[new_class]:.0%} now).")
        said += _remains(now) if (old.left[-1] != new.left[-1]).any() else []
    return " ".join([*filter(None, said), *_second(now), *(_idle(now) if old.how != new.how else [])])


def _head(a: Setting, b: Setting, name: str) -> str:
    """The move itself, and what it moved along."""
    row = " ".join(map(str, b.ks))
    if name.startswith("k"):
        block = int(name[1:])
        said = f"You moved block {block} from {a.ks[block - 1]} to {_tokens(b.ks[block - 1])}"
        others = [k for i, k in enumerate(b.ks) if i != block - 1]
        same = others == [k for i, k in enumerate(a.ks) if i != block - 1]
        return said + (f", and the lock moved the others: K = {row}." if b.lock and not same else ".")
    moved = f" The lock moved K to {row}." if b.lock and b.ks != a.ks else ""
    if b.preset == BUDGET and a.ks != b.ks:
        moved = f" K = {row}."
    match name:
        case "preset":
            return "The sliders are yours." if b.preset == HAND else f"You chose *{b.preset}*: K = {row}."
        case "budget":
            return f"You asked for {b.budget}% of the MACs: the nearest geometric schedule is K = {row}."
        case "image":
            return ""
        case "lock":
            return (f"The budget is locked at {percent(b.target)} of the plain model's MACs: move one block, and the "
                    "others make up for it." if b.lock else "The budget is free: a block moves alone.")
        case "method":
            return f"You changed the method from {a.method} to {b.method} ({b.how.spec.story}).{moved}"
        case "init":
            return f"You changed the start from {a.init} to {b.init}.{moved}"
        case "output":
            return f"A clustering now returns {_label(b.output)} instead of {_label(a.output)}.{moved}"
        case "counts":
            return ("A token that stands for many now counts as often in attention." if b.counts else
                    "Every token counts once in attention again.") + moved
        case "compare":
            return f"The second row of images is {b.compare} with the same K." if b.compare != NOBODY else \
                "One method is shown."
    return {"undo": "One move taken back.", "redo": "The move is made again.",
            "reset": "All controls are where they began."}.get(name, "") + f" K = {row}."


def _tokens(k: int) -> str:
    return f"{k} token{'s' if k != 1 else ''}"


def _label(output: str) -> str:
    return next(name for name, value in OUTPUTS.items() if value == output)


def _cost_change(old: Run, new: Run, setting: Setting) -> str:
    points = round(100 * new.share, 1) - round(100 * old.share, 1)          # of the numbers that are shown
    if setting.lock and _near(setting.macs(setting.ks), setting.target):
        return f"The MACs are {new.share:.1%}, locked at {percent(setting.target)}."
    if abs(points) < 0.05:
        return f"The MACs stay at {new.share:.1%}."
    return (f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} MACs: {old.share:.1%} became "
            f"{new.share:.1%}, {new.share_without:.1%} without the clustering.")


def _error_change(before: View, now: View) -> str:
    """The block whose error moved most, and why."""
    old, new = before.runs[0].error, now.runs[0].error
    gap = np.subtract(new, old)
    b = int(np.argmax(np.abs(gap)))
    if abs(gap[b]) < 0.005:
        return "No error moves by as much as 0.01." if np.any(gap) else "The errors stay."
    was, cut = ((N, *v.ks)[b:b + 2] for v in (before, now))
    if was != cut:
        why = f"it turned {was[0]} tokens into {was[1]}, now {cut[0]} into {cut[1]}"
    elif before.runs[0].how != now.runs[0].how:
        why = "the same number of tokens, chosen or averaged in another way"
    elif before.ks != now.ks:
        why = "the cut is the same, but other tokens come in"
    else:
        why = "the same cut, but attention has made other tokens of the image"
    return (f"The error after block {b + 1} {'rose' if gap[b] > 0 else 'fell'} from {old[b]:.2f} to {new[b]:.2f}: "
            f"{why}.")


def _remains(v: View) -> list[str]:
    """What is left of the two pebbles."""
    if not v.known:
        return []
    run = v.runs[0]
    gone = [(REGIONS[r], v.patches[r], int(np.argmax(run.left[:, r] == 0))) for r in (1, 2) if run.left[-1, r] == 0]
    wrong = v.before.argmax() != run.after.argmax()
    if gone:
        return [f"Of the {name}'s {patches} tokens none is left after block {block}"
                + (", and it decides half of the class." if wrong else ", yet the class holds.")
                for name, patches, block in gone]
    return [f"Of the {int(run.left[-1].sum())} tokens in the end {run.left[-1, 1]} are the large pebble's, which had "
            f"{v.patches[1]} of {N}, and {run.left[-1, 2]} the small one's, which had {v.patches[2]}."]


def _second(v: View) -> list[str]:
    """The method it is compared with."""
    if len(v.runs) == 1:
        return [f"({v.setting.method} compared with itself is one row.)"] if v.setting.compare == v.setting.method \
            else []
    first, second = v.runs
    said = (f"Next to it, {second.method} costs {second.share:.1%} and loses {sum(second.error) / POOLING:.2f} of the "
            f"variance per pooling, {first.method} {sum(first.error) / POOLING:.2f}")
    if v.known:
        said += f"; its class is *{spoken(int(second.after.argmax()))}* ({second.after.max():.0%})"
    return [said + "."]


def _idle(v: View) -> list[str]:
    """Controls that change nothing here."""
    idle = [r.method for r in v.runs if r.how.init is None]
    return [f"({' and '.join(idle)} start{'s' if len(idle) == 1 else ''} nowhere: Start and Output change nothing "
            "there.)"] if idle else []


def _way(v: View, run: Run) -> str:
    return (run.method + (f" from a {run.how.init} start" if run.how.init else "")
            + (f", output {run.how.output}" if run.how.output else "")
            + (", counts carried" if v.setting.counts else ""))


# ---- wire ----

class KExplorer(Explorer):
    """One compute a move, whatever the move makes of other controls; undo, redo, reset, code, and your own image.

    Args:
        presets: name shown -> tokens kept after each of the six blocks; the first is where it begins.
    """

    def __init__(self, presets: Mapping[str, Ks]) -> None:
        self.presets = dict(presets)
        first = next(iter(presets))
        sliders = {f"k{b}": Number(f"K after block {b}", presets[first][b - 1], 1, N) for b in range(1, DEPTH)}
        controls: dict[str, Number | Choice | Switch] = {
            "preset": Choice("Schedule", (*presets, BUDGET, HAND)),
            "budget": Number("Budget, % of the MACs", 58, 20, 100), **sliders,
            "lock": Switch("Keep the total budget"),
            "method": Choice("Method", tp.method_names(), "wk_medoids"),
            "init": Choice("Start of a clustering", tp.init_names(), "top_k"),
            "output": Choice("Output of a clustering", OUTPUTS, ""),
            "counts": Switch("Carry counts"),
            "compare": Choice("Compare with", (NOBODY, *tp.method_names())),
            "image": Choice("Image", (*image_names(), OWN))}
        self.upload = Upload("Upload an image", ENDINGS, MOST_BYTES, self.receive)
        self.buttons = {name: widgets.Button(description=label, layout=widgets.Layout(width="auto"))
                        for name, label in (("undo", "Undo"), ("redo", "Redo"), ("reset", "Reset"),
                                            ("code", "Copy as code"))}
        self._code = widgets.HTML()
        self._quiet = False
        self._undo: collections.deque[Setting] = collections.deque(maxlen=500)
        self._redo: collections.deque[Setting] = collections.deque(maxlen=500)
        self._setting: Setting | None = None
        self._view: View | None = None
        self._move = ""
        super().__init__(controls, look, figure, first_words, table, height=None)

    # ---- the state ----

    @property
    def setting(self) -> Setting:
        """What the explorer stands for."""
        if self._setting is None:
            values = self.values()
            self._setting = Setting(**values, shown=values["image"])
        return self._setting

    @property
    def code(self) -> str:
        """The line that makes this model; two lines while two methods are compared."""
        return self.setting.code

    def undo(self) -> KExplorer:
        return self._go(self._undo, self._redo, "undo", "There is nothing to undo.")

    def redo(self) -> KExplorer:
        return self._go(self._redo, self._undo, "redo", "There is nothing to make again.")

    def reset(self) -> KExplorer:
        """Back to the beginning. One move: it can be undone."""
        with self._told():
            self._become(replace(self._began, own=self.setting.own), "reset")
        return self

    def receive(self, name: str, size: int, content: bytes) -> None:
        """A file from the browser."""
        try:
            own = read_upload(name, size, content)
        except ValueError as error:         # the person's file, not our mistake
            self._write(f"{error} The image is still {self.setting.shown}.")
            return
        with self._told():
            self._become(replace(self.setting, image=OWN, shown=OWN, own=own, told="", streak=None), "image")

    def _go(self, source: collections.deque[Setting], other: collections.deque[Setting], name: str, nothing: str
            ) -> KExplorer:
        with self._told():
            if not source:
                self._write(nothing)
                return self
            other.append(self.setting)
            self._become(source.pop(), name, keep=False)
        return self

    def _pressed(self, name: str, button: widgets.Button) -> None:
        {"undo": self.undo, "redo": self.redo, "reset": self.reset, "code": self.show_code}[name]()

    def _moved(self, change: Any) -> None:
        if self._quiet:
            return
        name = next(n for n, c in self.controls.items() if c is change["owner"])
        with self._told():
            self._become(follow(self.setting, name, self.values()[name], self.presets), name)

    def _become(self, then: Setting, name: str, keep: bool = True) -> None:
        """Make a setting the explorer's: all controls at once, one compute, one drawing."""
        if keep:
            self._undo.append(self.setting)
            self._redo.clear()
        self._setting, self._move = then, name
        with self._silence():
            for control, widget in self.controls.items():
                widget.value = getattr(then, control)
        self._show()
        if self._code.value:
            self._write_code()

    @contextlib.contextmanager
    def _silence(self) -> Iterator[None]:
        """Controls that we move ourselves are no moves of a person."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    # ---- the page ----

    def _look(self) -> View:
        return self.compute(self.setting)

    def _tell(self, found: View) -> None:
        if self._view is None:
            self._began = self.setting
            words = self.say(found)
        else:
            words = move_words(self._view, found, self._move)
        self._view = found
        self._write(words)
        self._numbers.value = details(table(found))

    def _arrange(self) -> widgets.Box:
        names = list(self.controls)
        half = names.index("lock") + 1
        columns = widgets.HBox([
            widgets.VBox([self.controls[n] for n in names[:half]]),
            widgets.VBox([*(self.controls[n] for n in names[half:]), self.upload])],
            layout=widgets.Layout(flex_flow="row wrap"))
        columns.add_class("tp-columns")
        for name, button in self.buttons.items():
            button.on_click(functools.partial(self._pressed, name))
        row = widgets.HBox(list(self.buttons.values()), layout=widgets.Layout(flex_flow="row wrap", margin="0 0 8px 0"))
        return widgets.VBox([columns, row, self._code, self._status, self.figure, self._numbers])

    def show_code(self) -> KExplorer:
        """Show the line; it follows all later moves."""
        with self._told():
            self._write_code()
            self._write("The code for this setting stands above. One click selects it, then copy it. `vit` is the "
                        "model that ships: `lab.vit` in a notebook.")
        return self

    def _write_code(self) -> None:
        lines = "".join(f'<pre style="user-select:all;white-space:pre-wrap;margin:.2em 0;padding:.4em .6em;'
                        f'background:#f3f3f3;color:#1b1b1b" tabindex="0"><code>{inline(line)}</code></pre>'
                        for line in self.code.split("\n"))
        self._code.value = f'<div class="tp-code" aria-label="This setting as code">{lines}</div>'

    def close(self) -> None:
        for button in self.buttons.values():
            button._click_handlers.callbacks.clear()
        self._undo.clear()
        self._redo.clear()
        super().close()
