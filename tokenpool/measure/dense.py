"""Dense use: does a pooled backbone still know what is where in the image?

Every patch gets the features of its representative (`unpool`), so the map stays as large as before. How much of it is
right? Pebbles come with masks, so it can be measured: a **linear probe** decides for every patch whether it shows
ground, the large pebble or the small one. It is fitted once on the features of the plain model and then reads pooled
ones ("plain": does an existing decoder go on working?), and once more on the pooled features themselves ("own": is the
information still there?). Nothing else is trained. The features are those of the last four blocks side by side, as in
DINOv2's linear evaluation: a dense decoder reads several depths, and the last block of a model with a class token
keeps little of what is where.

    rows = measure(load_model(), settings(), Data.make(), Results(path, DenseRow))        # mIoU against computations

There are two truths. Of a patch: the class of most of its pixels; the first of equals. Of a pixel: the mask; answers
are enlarged by repeating every patch. A perfect answer per patch is therefore below 100 % in pixels; this bound is
recorded as "best".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tokenpool.core.checks import one_of
from tokenpool.core.clustering import take
from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import TEST_SEED, scale
from tokenpool.data.pebbles import CLASSES, MATERIALS, REGIONS, Pebbles
from tokenpool.data.weights import SHIPPED, fingerprint
from tokenpool.measure.accuracy import Setting, build, check_wanted, cost_of, inits_of, seeds_of
from tokenpool.measure.rows import DenseRow, Results, frame, key_of
from tokenpool.measure.sweep import Task, Tell, sweep
from tokenpool.models.published import NAMED
from tokenpool.models.vit import PooledViT

#: what a pixel can be -> names of its classes
TRUTHS = {"regions": REGIONS, "materials": ("ground", *MATERIALS)}
PROBES = {"plain": "fitted on the plain model", "own": "fitted on the pooled features"}
#: with their authors' options, and ours
PEERS = ("tokenpool", "ToMe", "ATC", "EViT")
COMPARED = ("random", "top_k", "grid_average", "k_medoids", "wk_medoids", *PEERS)
BUDGETS = (0.2, 0.42, 0.6)
BLOCKS = 4                           # the last four
TRAIN_SEED = 5                       # of the probe's scenes; the model was trained on 1, results are measured on 3
_PENALTY = 1e-4                      # L2 on the probe's weights: keeps a separable fit finite
_BATCH = 100
_RESAMPLES = 1000                    # of the test images, for the 95 % interval


# ---- truth and agreement, on integer maps ----

def pixel_truth(labels: np.ndarray, masks: np.ndarray, kind: str = "regions") -> Tensor:
    """Class of every pixel: labels (B,), masks (B, H, W) of Pebbles -> (B, H, W) int64, an index into TRUTHS[kind]."""
    one_of("truth", kind, TRUTHS, "")
    if kind == "regions":
        return torch.from_numpy(masks.astype(np.int64))
    of = np.array([[0, *(1 + MATERIALS.index(m) for m in CLASSES[label])] for label in labels])      # (B, 3)
    return torch.from_numpy(np.take_along_axis(of, masks.reshape(len(masks), -1).astype(np.int64), 1)
                            ).reshape(masks.shape)


def patch_truth(pixels: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Class of every patch, (B, H, W) -> (B, rows * cols): that of most of its pixels, the first of equals."""
    B, H, W = pixels.shape
    rows, cols = grid
    patches = pixels.reshape(B, rows, H // rows, cols, W // cols).transpose(2, 3).reshape(B, rows * cols, -1)
    return nn.functional.one_hot(patches, classes).sum(2).argmax(2)


def to_pixels(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Every patch's class repeated over its pixels: (B, rows * cols) -> (B, H, W)."""
    rows, cols = grid
    maps = patches.reshape(len(patches), rows, cols)
    return maps.repeat_interleave(size[0] // rows, 1).repeat_interleave(size[1] // cols, 2)


def confusion(truth: Tensor, answer: Tensor, classes: int) -> Tensor:
    """How often class i was called class j, per image: two maps (B, ...) -> (B, classes, classes)."""
    pair = (truth * classes + answer).flatten(1)
    return torch.zeros(len(pair), classes * classes, dtype=torch.int64).scatter_add_(
        1, pair, torch.ones_like(pair)).reshape(-1, classes, classes)


def iou(counted: Tensor) -> Tensor:
    """Intersection over union of every class, (..., C, C) -> (..., C); NaN where a class is nowhere."""
    hit = counted.diagonal(dim1=-2, dim2=-1).double()
    return hit / (counted.sum(-1) + counted.sum(-2) - hit)


def mean_iou(counted: Tensor) -> Tensor:
    """Mean over the classes that occur in either map, (..., C, C) -> (...).

    >>> mean_iou(torch.tensor([[3, 1], [0, 4]]))          # 3 of 4 and 4 of 5
    tensor(0.7750, dtype=torch.float64)
    """
    return iou(counted).nanmean(-1)


def interval(counted: Tensor) -> tuple[float, float]:
    """95 % interval of the mean IoU of all images together, by the bootstrap over images. counted: (B, C, C)."""
    drawn = np.random.default_rng(0).multinomial(len(counted), [1 / len(counted)] * len(counted), _RESAMPLES)
    again = torch.from_numpy(drawn).double() @ counted.flatten(1).double()
    low, high = mean_iou(again.reshape(-1, *counted.shape[1:])).quantile(torch.tensor([0.025, 0.975]).double())
    return float(low), float(high)


# ---- the probe ----

@dataclass(frozen=True)
class Probe:
    """A linear classifier of single tokens, on standardised features."""

    mean: Tensor               # (C,)
    std: Tensor                # (C,)
    weight: Tensor             # (C + 1, classes), the last row is the bias

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) -> (...) class."""
        return (_with_one((x.float() - self.mean) / self.std) @ self.weight).argmax(-1)


def fit_probe(x: Tensor, y: Tensor, classes: int) -> Probe:
    """Logistic regression: (n, C) features, (n,) classes. The loss is convex: the initial weights do not matter."""
    x = x.detach().float()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x = _with_one((x - mean) / std)
    # Whitened, because the features of neighbouring blocks are nearly equal: a thousand steps otherwise.
    root = torch.linalg.cholesky(x.mT @ x / len(x) + 1e-4 * torch.eye(x.shape[1]))
    white = torch.linalg.solve_triangular(root.mT, x, upper=True, left=False)
    turned = torch.zeros(x.shape[1], classes, requires_grad=True)
    solver = torch.optim.LBFGS([turned], max_iter=100, history_size=20, tolerance_grad=3e-4,
                               line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        weight = torch.linalg.solve_triangular(root.mT, turned, upper=True)
        value = nn.functional.cross_entropy(white @ turned, y) + _PENALTY / 2 * weight[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return Probe(mean, std, torch.linalg.solve_triangular(root.mT, turned.detach(), upper=True))


def _with_one(x: Tensor) -> Tensor:
    return torch.cat((x, torch.ones_like(x[..., :1])), dim=-1)


# ---- features of every patch ----

@torch.no_grad()
def dense(pooled: PooledViT, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Normalised features of every original patch after the last four blocks, (B, N, 4 C), and its group, (B, N).

    The features are those of `pooled.forward_intermediates(x, indices=4, norm=True)`. Patches of one group share them:
    later groups are made of earlier ones, so the first of the four blocks decides.
    """
    steps = pooled.trace(x, generator).steps[-BLOCKS:]
    return torch.cat([take(pooled.vit.norm(s.tokens), s.labels) for s in steps], dim=-1), steps[0].labels


def best_answer(labels: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Each patch answers the most frequent class of its group. labels, truth (B, N) -> (B, N)."""
    votes = torch.zeros(*labels.shape, classes, dtype=torch.int64)             # room for N groups
    votes.scatter_add_(1, labels[..., None].expand(-1, -1, classes), nn.functional.one_hot(truth, classes))
    return votes.argmax(2).gather(1, labels)


# ---- measuring ----

@dataclass(frozen=True)
class Scenes:
    """Images ready for the model with their truths."""

    x: Tensor                  # (B, 3, H, W)
    pixels: Tensor             # (B, H, W)
    patches: Tensor            # (B, N)


@dataclass(frozen=True)
class Data:
    """Scenes to fit a probe on, and others to measure it on."""

    train: Scenes
    test: Scenes
    grid: tuple[int, int]
    truth: str = "regions"

    @classmethod
    def make(cls, train: int = 300, test: int = 300, truth: str = "regions", size: int = 64,
             grid: tuple[int, int] = (8, 8)) -> Data:
        for name, count in (("scenes to fit on", train), ("images", test)):
            if count < 1:
                raise ValueError(f"{count} {name} are too few. Use at least 1, better hundreds.")

        def scenes(seed: int, count: int) -> Scenes:
            images, labels, masks = Pebbles(seed=seed, size=size).batch(range(count))
            pixels = pixel_truth(labels, masks, truth)
            return Scenes(scale(images), pixels, patch_truth(pixels, grid, len(TRUTHS[truth])))

        return cls(scenes(TRAIN_SEED, train), scenes(TEST_SEED, test), grid, truth)


def settings(methods: Sequence[str] = COMPARED, budgets: Sequence[float] = BUDGETS, seeds: int = 3) -> list[Setting]:
    """The plain model; then at every budget every method from two inits, with counts and without, and every peer."""
    check_wanted([m for m in methods if m not in NAMED], budgets, seeds)
    return [Setting()] + [Setting(method, init, counts, budget, seed) for budget in budgets for method in methods
                          for init, counts in _ways(method) for seed in seeds_of(method, init, seeds)]


def _ways(method: str) -> list[tuple[str, bool]]:
    """(init, counts) of a method; a peer has only its own."""
    if method in NAMED:
        return [("", NAMED[method].get("carry_counts", False))]
    return list(product(inits_of(method), (False, True)))


def measure(model: nn.Module, wanted: Sequence[Setting], data: Data, results: Results[DenseRow], name: str = SHIPPED,
            tell: Tell | None = None) -> pd.DataFrame:
    """Measure what is missing; returns the rows of all settings, one for each probe."""
    model = model.eval()
    about = dict(model=name, weights=fingerprint(model), truth=data.truth, train_images=len(data.train.x),
                 images=len(data.test.x))
    plain_probe = functools.cache(lambda: fit(PooledViT(model), data, Setting()))

    def measure_one(setting: Setting, missing: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            pooled = build(model, setting)
        except OutOfReach:                         # a clustering that costs more than the budget saves
            return
        features, groups = _features(pooled, data.test.x, setting)
        best = best_answer(groups, data.test.patches, len(TRUTHS[data.truth]))
        pixel_best, patch_best = (float(mean_iou(counted.sum(0))) for counted in _agreement(data, best))
        for key, probe in missing.items():
            own = probe == "own" and setting.method != "plain"
            pixels, patches = _agreement(data, (fit(pooled, data, setting) if own else plain_probe())(features))
            low, high = interval(pixels)
            yield key, {**vars(setting), **about, **cost_of(pooled), "probe": probe,
                        "pixel_miou": float(mean_iou(pixels.sum(0))), "pixel_low": low, "pixel_high": high,
                        "patch_miou": float(mean_iou(patches.sum(0))), "pixel_best": pixel_best,
                        "patch_best": patch_best, "ious": " ".join(f"{v:.4f}" for v in iou(pixels.sum(0)))}

    size = tuple(data.test.x.shape[2:])
    tasks = [Task(str(setting), {key_of(**vars(setting), **about, probe=probe, size=size): probe for probe in PROBES},
                  functools.partial(measure_one, setting)) for setting in wanted]
    return frame(sweep(tasks, results, tell=tell), DenseRow)


def _features(pooled: PooledViT, x: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """In batches of one size, as everywhere; random methods draw again for every batch."""
    generator = torch.Generator().manual_seed(setting.seed) if pooled.draws else None
    parts = [dense(pooled, batch, generator) for batch in x.split(_BATCH)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def fit(pooled: PooledViT, data: Data, setting: Setting) -> Probe:
    """A probe of a pooled model's features."""
    features, _ = _features(pooled, data.train.x, setting)
    return fit_probe(features.flatten(0, 1), data.train.patches.flatten(), len(TRUTHS[data.truth]))


def _agreement(data: Data, answer: Tensor) -> tuple[Tensor, Tensor]:
    """How often each class was called which, in pixels and in patches: answer (B, N) -> two of (B, C, C)."""
    classes, (height, width) = len(TRUTHS[data.truth]), data.test.pixels.shape[1:]
    return (confusion(data.test.pixels, to_pixels(answer, data.grid, (height, width)), classes),
            confusion(data.test.patches, answer, classes))
