"""What the model makes of a setting: `look(setting)` -> `View`, cached; and the images to choose from, or your own."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import tokenpool as tp
from tokenpool.core.methods import Pooling
from tokenpool.data.datasets import photographs, scale, square
from tokenpool.data.pebbles import CLASSES
from tokenpool.lab.k_explorer.settings import DEPTH, OWN, POOLING, Ks, N, Setting, plain_macs
from tokenpool.lab.kit.session import pebbles, shipped_vit
from tokenpool.models.vit import TraceStep
from tokenpool.report.figures import cluster_image, png

GAP = 34                                # pixels between two rows of images; the name of the second is written there
#: some of the 24 pebbles of `lab.images`: easy ones and hard ones
_PEBBLES = (4, 2, 18, 22, 0, 8)
_PHOTOGRAPHS = ("cat", "coffee", "astronaut", "temple", "flower")
#: what can be uploaded
FORMATS, ENDINGS = ("PNG", "JPEG", "WEBP", "BMP"), ".png,.jpg,.jpeg,.webp,.bmp"
MOST_BYTES, MOST_PIXELS = 5_000_000, 40_000_000


_photographs = functools.lru_cache(maxsize=1)(photographs)


# ---- images ----

@dataclass(frozen=True)
class Sample:
    """An image of the explorer."""

    pixels: np.ndarray              # (3, 64, 64) uint8
    regions: np.ndarray | None      # (64,) of every patch: 0 ground, 1 large pebble, 2 small; None: unknown


@functools.lru_cache(maxsize=1)
def image_names() -> tuple[str, ...]:
    """Six pebbles, named by their class, and five photographs."""
    labels = pebbles(24)[2]
    return (*(f"pebbles {place}: {spoken(int(labels[i]))}" for place, i in enumerate(_PEBBLES, start=1)),
            *(f"photograph: {name}" for name in _PHOTOGRAPHS))


@functools.lru_cache(maxsize=16)
def sample(name: str, own: bytes = b"") -> Sample:
    """An image by name; `own`: the pixels of an uploaded one."""
    if name == OWN:
        return Sample(np.frombuffer(own, np.uint8).reshape(3, 64, 64), None)
    place = image_names().index(name)
    if place >= len(_PEBBLES):
        return Sample(_photographs()[_PHOTOGRAPHS[place - len(_PEBBLES)]], None)
    _, pixels, _, regions = pebbles(24)
    return Sample(pixels[_PEBBLES[place]], regions[_PEBBLES[place]])


def spoken(label: int) -> str:
    """A class in words."""
    large, small = CLASSES[label]
    return f"large {large}, small {small}"


def read_upload(name: str, size: int, content: bytes) -> bytes:
    """The centre of an uploaded image as 3 x 64 x 64 bytes. The file is read from memory and never written to disk.

    Raises:
        ValueError: too large, damaged, not an image or not in one of the four formats.
    """
    wanted = f"Use a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
    fewer = f"Use an image of at most {MOST_PIXELS // 1_000_000} million pixels."
    size = max(size, len(content))
    if size > MOST_BYTES:
        raise ValueError(f"{name} has {size / 1e6:.1f} MB. Use an image of at most {MOST_BYTES // 1_000_000} MB.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)    # MOST_PIXELS is stricter
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has far too many pixels. {fewer}") from None
    except Exception:               # Pillow's plugins raise anything for a broken header
        raise ValueError(f"{name} cannot be read as an image. {wanted}") from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{name} has {image.width} x {image.height} pixels. {fewer}")
        try:
            image.draft("RGB", (256, 256))                                   # decodes a JPEG at a fraction of its size
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        except Exception:           # cut off, or damaged behind a good header
            raise ValueError(f"{name} is damaged and cannot be read to its end. {wanted}") from None
        ground = Image.new("RGBA", upright.size, "white")
        return square(Image.alpha_composite(ground, upright).convert("RGB"), 64).tobytes()


# ---- what the model does ----

@dataclass(frozen=True)
class Run:
    """What one method does with a schedule."""

    how: Pooling
    share: float                        # of the MACs of the plain model, clustering included
    share_without: float                # without the clustering
    strip: np.ndarray                   # (128, 952, 3): the image, after each of five blocks, rebuilt from its tokens
    rebuilt: np.ndarray                 # (3, 64, 64) uint8
    error: tuple[float, ...]            # of the five poolings; 0 where nothing is pooled
    left: np.ndarray                    # (6, 3) tokens by region, at first and after each block; zeros: unknown
    after: np.ndarray                   # (30,) probabilities

    @property
    def method(self) -> str:
        return self.how.method


@dataclass(frozen=True)
class View:
    """Everything that can be seen of a setting."""

    setting: Setting
    runs: tuple[Run, ...]               # the method, and the one it is compared with
    strip: str                          # their rows of images, a data URI
    before: np.ndarray                  # (30,) probabilities of the plain model
    patches: tuple[int, ...]            # of the image, by region; zeros: unknown

    @property
    def ks(self) -> Ks:
        return self.setting.schedule[:POOLING]

    @property
    def known(self) -> bool:
        """Whether the model was trained on such images and their regions are known."""
        return sum(self.patches) > 0


def look(setting: Setting) -> View:
    """Pure; the cache behind it depends only on what matters, so moving an unused control costs nothing."""
    image = setting.shown
    own = setting.own if image == OWN else b""
    runs = tuple(_run(setting.schedule, how, setting.counts, image, own) for how in setting.poolings)
    regions = sample(image, own).regions
    patches = (0, 0, 0) if regions is None else tuple(np.bincount(regions, minlength=3).tolist())
    rows = [runs[0].strip, *(np.pad(r.strip, ((GAP, 0), (0, 0), (0, 0)), constant_values=255) for r in runs[1:])]
    return View(setting, runs, png(np.concatenate(rows)), plain(image, own), patches)


@functools.lru_cache(maxsize=16)
def plain(image: str, own: bytes = b"") -> np.ndarray:
    """Probabilities (30,) without pooling."""
    with torch.no_grad():
        return shipped_vit()(_ready(sample(image, own))).softmax(1)[0].numpy()


def _ready(shown: Sample) -> Tensor:
    return scale(np.array(shown.pixels[None]))


@functools.lru_cache(maxsize=512)
def _run(schedule: Ks, how: Pooling, counts: bool, image: str, own: bytes) -> Run:
    shown = sample(image, own)
    model = tp.PooledViT(shipped_vit(), schedule, method=how.method, init=how.init, output=how.output,
                         carry_counts=counts).eval()
    with torch.no_grad():
        trace = model.trace(_ready(shown))
    steps = trace.steps[:POOLING]
    chooses = how.spec.kind == "selection"
    again = rebuilt(shown.pixels, steps[-1], how.output_name == "medoid")
    strip = in_a_row([framed(shown), *(_clusters(shown, step, chooses) for step in steps), _doubled(again)])
    left = np.zeros((DEPTH, 3), int)
    if shown.regions is not None:
        every = [shown.regions, *(regions_of(shown.regions, step, chooses) for step in steps)]
        left = np.stack([np.bincount(regions, minlength=3) for regions in every])
    counted = tp.macs(model)
    # pooling copies of one token divides 0 by 0: they have no variance and lose none
    error = tuple(float(torch.nan_to_num(s.error)) for s in steps)
    return Run(how, counted.total / plain_macs(), counted.without_clustering / plain_macs(), strip, again, error, left,
               trace.logits.softmax(1)[0].numpy())


def regions_of(regions: np.ndarray, step: TraceStep, chooses: bool) -> np.ndarray:
    """Region of every token after a block, (K,): of its own patch if tokens are selected, else of the majority of the
    patches it represents."""
    if chooses and step.origin is not None:
        return regions[step.origin[0].numpy()]
    share = np.zeros((step.kept, 3))
    np.add.at(share, (step.labels[0].numpy(), regions), 1)
    return share.argmax(1)[share.sum(1) > 0]


# ---- images of it ----

def rebuilt(pixels: np.ndarray, step: TraceStep, own: bool) -> np.ndarray:
    """The image redrawn from the tokens that are left, (3, 64, 64) uint8: every patch becomes the patch of its
    representative (`own`), or the mean of all patches with the same one."""
    patches = pixels.reshape(3, 8, 8, 8, 8).transpose(1, 3, 0, 2, 4).reshape(N, -1)
    labels = step.labels[0].numpy()
    if own and step.origin is not None:
        shown = patches[step.origin[0].numpy()[labels]]
    else:
        same = labels[:, None] == labels
        shown = np.rint(same @ patches.astype(float) / same.sum(1, keepdims=True)).astype(np.uint8)
    return shown.reshape(8, 8, 3, 8, 8).transpose(2, 0, 3, 1, 4).reshape(3, 64, 64)


def _clusters(shown: Sample, step: TraceStep, chooses: bool) -> np.ndarray:
    """The clusters or the selected patches after a block, (128, 128, 3)."""
    kept = None
    if chooses and step.origin is not None:
        kept = np.zeros(N, bool)
        kept[step.origin[0].numpy()] = True
    return cluster_image(shown.pixels, step.labels[0].numpy(), (8, 8), kept)


def _doubled(pixels: np.ndarray) -> np.ndarray:
    """(3, 64, 64) -> (128, 128, 3)."""
    return pixels.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)


def framed(shown: Sample) -> np.ndarray:
    """The image with a white frame inside the small pebble's patches, (128, 128, 3)."""
    big = _doubled(shown.pixels)
    if shown.regions is not None:
        small = (shown.regions == 2).reshape(8, 8).repeat(16, 0).repeat(16, 1)
        around = np.lib.stride_tricks.sliding_window_view(np.pad(small, 2), (5, 5))
        big[small & ~around.all((2, 3))] = 255
    return big


def in_a_row(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (128, 128, 3) side by side on white, each 136 pixels wide."""
    return np.concatenate([np.pad(i, ((0, 0), (4, 4), (0, 0)), constant_values=255) for i in images], 1)
