"""The paper's Fig. 1c: which patches of a photograph share a token, for every K from N to 1 and without a model.

Ward's clustering joins two clusters at a time, so its N - 1 merges are one tree: cut it anywhere and the clusters for
that K are there. A `Photograph` holds the image and the trees of some blocks; `write_page` puts photographs into one
page that needs no Python, and `figure` draws the README's image. The trees of six photographs ship with the package.

    page = write_page(Path("clusters.html"), shipped())
    page = write_page(Path("mine.html"), [photograph("me", pixels, load_model("vits14", image_size=448))])
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.hierarchy import linkage
from timm.data import resolve_data_config
from torch import Tensor, nn

from tokenpool.data.files import replace_file
from tokenpool.data.photographs import photographs
from tokenpool.data.weights import shipped_weights
from tokenpool.models.vit import PooledViT
from tokenpool.report.figures import cluster_image

BLOCKS = (3, 6, 9, 12)
SIZE = 448                                  # pixels: 32 x 32 patches of 14, near the paper's 24 x 24
_SHARES = 65535                             # a share of the variance, stored as an integer


@dataclass(frozen=True)
class Photograph:
    """An image and, for each block, in which order clustering merges its N patch tokens and a score drops them."""

    name: str
    pixels: np.ndarray                      # (3, H, W) uint8
    grid: tuple[int, int]                   # rows and columns of patches
    trees: Mapping[int, np.ndarray]         # block -> (N - 1, 3) uint16, see `merge_tree`
    ranks: Mapping[int, np.ndarray]         # block -> (N,) uint16: patches, from the highest significance score down

    def labels(self, block: int, k: int) -> np.ndarray:
        """Cluster of each patch, (N,), at K = k after this block; clusters are numbered by their first patch."""
        return cut(self.trees[block], k)


def merge_tree(tokens: Tensor) -> np.ndarray:
    """Ward's merges of N tokens, compared by direction: (N, C) -> (N - 1, 3) uint16.

    Row i joins the cluster whose first token is column 1 to the one whose first token is column 0. Column 2 is
    what is lost so far: the reconstruction error of the N - 1 - i clusters left, as a share of the tokens' variance
    (65535: all of it).
    """
    directions = nn.functional.normalize(tokens.double(), dim=1).numpy()
    merges = linkage(directions, "ward")
    n = len(directions)
    first = [*range(n), *[0] * (n - 1)]                       # first token of every cluster, merged ones behind
    pairs = np.empty((n - 1, 2), np.int64)
    for i, (one, other) in enumerate(merges[:, :2].astype(int)):
        pairs[i] = sorted((first[one], first[other]))
        first[n + i] = pairs[i, 0]
    lost = np.cumsum(merges[:, 2] ** 2 / 2)                   # scipy's height is sqrt(2 x the increase of the error)
    return np.column_stack([pairs, np.rint(_SHARES * lost / lost[-1])]).astype(np.uint16)


def cut(tree: np.ndarray, k: int) -> np.ndarray:
    """Labels (N,) of the K = k clusters that are left after the first N - k merges of a tree."""
    n = len(tree) + 1
    if not 1 <= k <= n:
        raise ValueError(f"k={k} clusters of {n} patches: use a number from 1 to {n}.")
    first = np.arange(n)
    for a, b in tree[:n - k, :2]:
        first[first == b] = a
    return np.unique(first, return_inverse=True)[1]


@torch.inference_mode()
def photograph(name: str, pixels: np.ndarray, vit: Any, blocks: Sequence[int] = BLOCKS) -> Photograph:
    """Run a ViT on one square image, (3, side, side) uint8 of the model's own size, and build the trees of `blocks`."""
    wrong = [b for b in blocks if not 1 <= b <= len(vit.blocks)]
    if wrong:
        raise ValueError(f"Block {wrong[0]} does not exist: {type(vit).__name__} has blocks 1 to {len(vit.blocks)}.")
    config = resolve_data_config({}, model=vit)
    mean, std = (torch.tensor(config[what]).view(3, 1, 1) for what in ("mean", "std"))
    x = ((torch.from_numpy(pixels) / 255 - mean) / std)[None]
    n, depth = vit.patch_embed.num_patches, len(vit.blocks)
    plain = PooledViT(vit).eval().trace(x)
    trees, ranks = {}, {}
    for block in blocks:
        trees[block] = merge_tree(plain.steps[block - 1].tokens[0])
        # one token fewer after this block, so that the score is computed there
        scored = PooledViT(vit, [n] * (block - 1) + [n - 1] * (depth - block + 1), method="top_k").eval().trace(x)
        ranks[block] = scored.steps[block - 1].score[0].argsort(descending=True, stable=True).numpy().astype(np.uint16)
    return Photograph(name, pixels, plain.grid, trees, ranks)


# ---- what ships ----

def shipped() -> list[Photograph]:
    """Six photographs of scikit-image and scikit-learn with their trees at 448 px, from vits14 (see data/README.md)."""
    stored = np.load(shipped_weights("clusters/vits14-448.npz"))
    names = list(dict.fromkeys(key.split("/")[0] for key in stored.files))
    images = photographs(SIZE, names)
    return [Photograph(name, images[name], (SIZE // 14, SIZE // 14),
                       *({b: stored[f"{name}/{what}/{b}"] for b in BLOCKS} for what in ("trees", "ranks")))
            for name in names]


def save(path: Path, made: Sequence[Photograph]) -> None:
    """Trees and ranks without the images, as they ship."""
    np.savez_compressed(path, **{f"{p.name}/{what}/{block}": values for p in made for what in ("trees", "ranks")
                                 for block, values in getattr(p, what).items()})


# ---- images ----

def paint(photo: Photograph, labels: np.ndarray) -> np.ndarray:
    """The photograph with every cluster in its mean colour and an outline between clusters, (H, W, 3) uint8."""
    return cluster_image(photo.pixels, labels, photo.grid, scale=1, grey=255)


def blank(photo: Photograph, kept: np.ndarray) -> np.ndarray:
    """The photograph with all but the patches in `kept` blanked out, (H, W, 3) uint8."""
    patches = np.arange(photo.grid[0] * photo.grid[1])
    return cluster_image(photo.pixels, patches, photo.grid, np.isin(patches, kept), scale=1, outlines=False,
                         paper=225)


def figure(photos: Sequence[Photograph], block: int = 6, kept: int = 64, ks: Sequence[int] = (64, 16, 6),
           side: int = 224) -> Image.Image:
    """A row a photograph: as it is, what `kept` patches of highest score show, and its clusters for each of `ks`."""
    titles = ["1,024 patches", f"top-K keeps {kept} by score", *(f"Token Pooling: {k} tokens" for k in ks)]
    gap, head = 8, 30
    sheet = Image.new("RGB", (len(titles) * (side + gap) - gap, head + len(photos) * (side + gap) - gap), "white")
    font = ImageFont.load_default(size=15)
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (side + gap) + side / 2, head / 2), title, "#1b1b1b", font, anchor="mm")
    for row, photo in enumerate(photos):
        whole = photo.pixels.transpose(1, 2, 0)
        cells = [whole, blank(photo, photo.ranks[block][:kept]), *(paint(photo, photo.labels(block, k)) for k in ks)]
        for column, cell in enumerate(cells):
            small = Image.fromarray(np.ascontiguousarray(cell)).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (side + gap), head + row * (side + gap)))
    return sheet


# ---- the page ----

def write_page(path: Path, photos: Sequence[Photograph], block: int = 6, k: int = 6,
               credit: str = "") -> Path:
    """One file with all photographs, a slider from N to 1 and a switch of blocks; opens from disk, needs no network."""
    shown = [dict(name=p.name, image=_jpeg(p.pixels), rows=p.grid[0], cols=p.grid[1],
                  **{what: {b: base64.b64encode(values.astype("<u2").tobytes()).decode()
                            for b, values in getattr(p, what).items()} for what in ("trees", "ranks")}) for p in photos]
    page = Environment(loader=PackageLoader("tokenpool.report"), autoescape=True).get_template("clusters.html.j2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        html = page.render(photos=shown, block=block, k=k, size=photos[0].pixels.shape[1], credit=credit)
        temporary.write_text(html, encoding="utf-8")
    return path


def _jpeg(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
