"""Dense use: does a pooled backbone still know what lies where?

Fewer tokens need not mean fewer answers: every patch gets the features of its stand-in (`unpool`), so the map is as
large as before. How much of it is right? Pebbles come with masks, so it can be measured: a **linear probe** says for
every patch whether it shows ground, the large pebble or the small one. It is fitted once on the features of the plain
model and then reads pooled ones ("plain": does a decoder that exists go on working?), and once more on the pooled
features themselves ("own": is the knowledge still there?). Nothing else is trained. The features are those of the last
four blocks side by side, as in DINOv2's linear evaluation: a dense decoder reads several depths, and the last block of
a model with a class token keeps little of what lies where.

    rows = measure(load_model(), settings(), Data.make())          # mIoU against computations

`dense_page.py` tells what the rows say.

Two truths. Of a patch: the class most of its pixels have; the first of equals. Of a pixel: the mask; answers are
enlarged by repeating every patch. A perfect answer per patch is therefore below 100 % in pixels; it is shown as "best".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tokenpool.core.checks import one_of
from tokenpool.core.clustering import take
from tokenpool.core.methods import METHODS
from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import TEST_SEED, scale
from tokenpool.data.files import replace_file
from tokenpool.data.pebbles import CLASSES, MATERIALS, REGIONS, Pebbles
from tokenpool.data.weights import SHIPPED, fingerprint
from tokenpool.measure.accuracy import Setting, check_wanted, device_name
from tokenpool.measure.rows import key_of, provenance
from tokenpool.models.model_cost import macs
from tokenpool.models.published import NAMED, options_of
from tokenpool.models.vit import PooledViT

#: what a pixel can be -> names of its classes
TRUTHS = {"regions": REGIONS, "materials": ("ground", *MATERIALS)}
PROBES = {"plain": "fitted on the plain model", "own": "fitted on the pooled features"}
#: as their authors have them, and ours
PEERS = ("tokenpool", "ToMe", "ATC", "EViT")
COMPARED = ("random", "top_k", "grid_average", "k_medoids", "wk_medoids", *PEERS)
INITS = ("top_k", "farthest_first")
BUDGETS = (0.2, 0.42, 0.6)
BLOCKS = 4                           # the last four
TRAIN_SEED = 5                       # of the probe's scenes; the model was trained on 1, results are measured on 3
_PENALTY = 1e-4                      # L2 on the probe's weights: keeps a separable fit finite, moves nothing else
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
    """Class of every patch, (B, H, W) -> (B, rows * cols): what most of its pixels are, the first of equals."""
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
    """Intersection over union of every class, (..., C, C) -> (..., C); NaN where a class neither is nor is said."""
    hit = counted.diagonal(dim1=-2, dim2=-1).double()
    return hit / (counted.sum(-1) + counted.sum(-2) - hit)


def mean_iou(counted: Tensor) -> Tensor:
    """Mean over the classes that are there or are said, (..., C, C) -> (...).

    >>> mean_iou(torch.tensor([[3, 1], [0, 4]]))          # 3 of 4 and 4 of 5
    tensor(0.7750, dtype=torch.float64)
    """
    return iou(counted).nanmean(-1)


def interval(counted: Tensor) -> tuple[float, float]:
    """95 % of the mean IoU of all images together, images drawn anew with replacement. counted: (B, C, C)."""
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
    """Logistic regression: (n, C) features, (n,) classes. The loss is convex, so where it starts does not matter."""
    x = x.detach().float()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x = _with_one((x - mean) / std)
    # Whitened, or the features of neighbouring blocks, which are nearly equal, would take a thousand steps.
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

    What `pooled.forward_intermediates(x, indices=4, norm=True)` gives, with the groups beside it and a generator.
    Patches of one group have the same features: later groups are made of earlier ones, so the first of the four decide.
    """
    steps = pooled.trace(x, generator).steps[-BLOCKS:]
    return torch.cat([take(pooled.vit.norm(s.tokens), s.labels) for s in steps], dim=-1), steps[0].labels


def best_answer(labels: Tensor, truth: Tensor, classes: int) -> Tensor:
    """What the groups allow: all patches of one say what most of them are. labels, truth (B, N) -> (B, N)."""
    votes = torch.zeros(*labels.shape, classes, dtype=torch.int64)             # room for N tokens: there are never more
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


@dataclass(frozen=True)
class Row:
    """One probe on one way to pool."""

    key: str
    method: str
    init: str
    counts: bool
    saving: float
    seed: int
    probe: str                 # a name of PROBES
    schedule: str
    gmacs: float               # of the backbone, clustering included; the probe adds less than a hundredth
    gmacs_plain: float
    pixel_miou: float
    pixel_low: float           # 95 % interval over images
    pixel_high: float
    patch_miou: float
    pixel_best: float          # the same with the best class for every group of patches: what the groups allow
    patch_best: float
    ious: str                  # per class, in pixels
    truth: str
    train_images: int
    images: int
    model: str
    weights: str
    device: str
    threads: int
    tokenpool: str
    torch: str
    timm: str
    python: str
    commit: str
    date: str


def settings(methods: Sequence[str] = COMPARED, budgets: Sequence[float] = BUDGETS, seeds: int = 3,
             starts: Sequence[str] = INITS) -> list[Setting]:
    """The plain model, then every method from every start, with counts and without, and every peer, at every budget."""
    check_wanted([m for m in methods if m not in NAMED], budgets, seeds)
    return [Setting("plain", "", False, 0.0, 0)] + [
        Setting(method, init, counts, budget, seed) for budget in budgets for method in methods
        for init, counts in _ways(method, starts)
        for seed in range(seeds if method in METHODS and METHODS[method].draws else 1)]


def _ways(method: str, starts: Sequence[str]) -> list[tuple[str, bool]]:
    """(start, counts): every start, with counts and without; of a peer its own way."""
    if method in NAMED:
        return [("", NAMED[method].get("carry_counts", False))]
    return list(product(starts if METHODS[method].kind == "clustering" else ("",), (False, True)))


def measure(model: nn.Module, wanted: Sequence[Setting], data: Data, path: Path | None = None, name: str = SHIPPED,
            tell: Callable[[str, int, int], None] | None = None) -> pd.DataFrame:
    """Rows of all settings, two a setting. What `path` holds already is not measured again.

    Args:
        path: CSV file; rewritten in one step after every setting. None: nothing is kept.
        tell: called with (what is going on, done, total).
    """
    model = model.eval()
    identity = dict(model=name, weights=fingerprint(model), truth=data.truth, train_images=len(data.train.x),
                    images=len(data.test.x))
    about = identity | provenance() | dict(device=device_name("cpu"), threads=torch.get_num_threads())
    done = {} if path is None else _read(path)
    keys, plains = [], None
    for index, setting in enumerate(wanted):
        if tell:
            what = f"{setting.method} {setting.init}".strip()
            tell(f"{what}, saving {setting.saving:.0%}{', counts' if setting.counts else ''}", index, len(wanted))
        mine = {probe: key_of(**vars(setting), probe=probe, **identity, tokenpool=about["tokenpool"])
                for probe in PROBES}
        if not all(key in done for key in mine.values()):
            plains = plains or fit(PooledViT(model), data, setting)
            try:
                pooled = build(model, setting)
            except OutOfReach:                         # a clustering that costs more than the budget saves
                continue
            for row in _rows(pooled, setting, data, plains, mine, about):
                done[row.key] = row
            if path is not None:
                _write(path, done.values())
        keys += mine.values()
    if tell:
        tell("done", len(wanted), len(wanted))
    return pd.DataFrame([asdict(done[key]) for key in keys])


def build(model: nn.Module, setting: Setting) -> PooledViT:
    if setting.method == "plain":
        return PooledViT(model).eval()
    return PooledViT(model, saving=setting.saving, seed=setting.seed,
                     **options_of(setting.method, setting.init, setting.counts)).eval()


def _features(pooled: PooledViT, x: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """In batches of one size, as everywhere; what draws draws anew for every batch."""
    generator = torch.Generator().manual_seed(setting.seed) if pooled.draws else None
    parts = [dense(pooled, batch, generator) for batch in x.split(_BATCH)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def fit(pooled: PooledViT, data: Data, setting: Setting) -> Probe:
    features, _ = _features(pooled, data.train.x, setting)
    return fit_probe(features.flatten(0, 1), data.train.patches.flatten(), len(TRUTHS[data.truth]))


def _rows(pooled: PooledViT, setting: Setting, data: Data, plains: Probe, keys: dict[str, str],
          about: dict) -> Iterable[Row]:
    classes = len(TRUTHS[data.truth])
    features, labels = _features(pooled, data.test.x, setting)
    probes = {"plain": plains, "own": plains if setting.method == "plain" else fit(pooled, data, setting)}
    size = (data.test.pixels.shape[1], data.test.pixels.shape[2])

    def agreement(answer: Tensor) -> tuple[Tensor, Tensor]:
        return (confusion(data.test.pixels, to_pixels(answer, data.grid, size), classes),
                confusion(data.test.patches, answer, classes))

    best = [float(mean_iou(c.sum(0))) for c in agreement(best_answer(labels, data.test.patches, classes))]
    for probe, key in keys.items():
        pixels, patches = agreement(probes[probe](features))
        low, high = interval(pixels)
        yield Row(key=key, **vars(setting), probe=probe, schedule=" ".join(map(str, pooled.schedule or ())),
                  gmacs=macs(pooled).total / 1e9, gmacs_plain=macs(pooled.vit).total / 1e9,
                  pixel_miou=float(mean_iou(pixels.sum(0))), pixel_low=low, pixel_high=high,
                  patch_miou=float(mean_iou(patches.sum(0))), pixel_best=best[0], patch_best=best[1],
                  ious=" ".join(f"{v:.4f}" for v in iou(pixels.sum(0))), **about)


def _read(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, keep_default_na=False)
        if list(table.columns) != [f.name for f in fields(Row)]:
            raise ValueError("its columns differ")
        return {str(line["key"]): Row(**line) for line in table.to_dict("records")}
    except ValueError as error:
        raise ValueError(f"{path} is not a file of dense rows of this version ({error}). Move it away, or give another "
                         "folder with --out.") from error


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        pd.DataFrame([asdict(row) for row in rows]).to_csv(temporary, index=False)
