"""Where images come from: the generator, two packages' photographs, folders of Parquet, and all that timm can read.

    open_data("pebbles", model, count=600)                    no file at all
    open_data("some/folder", model)                           Parquet with `image` and `label`, or one folder a class
    open_data("hfds/uoft-cs/cifar10", model)                  any name that timm.data.create_dataset knows
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tokenpool.data.pebbles import Pebbles

#: seeds of the pebbles that results are measured on, and that schedules are fitted on; training uses 1, its check 2
TEST_SEED, FIT_SEED = 3, 6


@dataclass(frozen=True)
class Images:
    """Batches of (images ready for the model, labels), always the same and in the same order."""

    name: str
    count: int
    loader: Any                         # iterable of (B, 3, H, W) float, (B,) int64
    batch_size: int
    masks: np.ndarray | None = None     # (count, H, W), where the truth is known

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)


def scale(images: np.ndarray) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 in -1..1, what the shipped model was trained on."""
    return torch.from_numpy(images).float() / 127.5 - 1


def open_data(name: str, model: nn.Module, count: int | None = None, split: str = "validation",
              batch_size: int = 100, download: bool = False) -> Images:
    """Images by name, prepared the way the model wants them.

    Args:
        name: "pebbles"; a folder with .parquet files (columns `image`, `label`) or with one folder of images per
            class; or a name of timm's: "torch/cifar10", "hfds/...", "wds/...".
        model: a timm model; its configuration gives size, mean and std.
        count: how many images at most; None: all (600 for pebbles).
        split: which split, for data sets that have several.
    """
    if count is not None and count < 1:
        raise ValueError(f"{count} images are too few to measure on. Use at least 1.")
    if name == "pebbles":
        size = model.patch_embed.img_size[0]
        images, labels, masks = Pebbles(seed=TEST_SEED, size=size).batch(range(count or 600))
        if model.num_classes != 30:
            raise ValueError(f"Pebbles have 30 classes, this model {model.num_classes}. "
                             "Use --model pebbles_vit, or --data with images of the model's own classes.")
        pixels, truth = scale(images), torch.from_numpy(labels)
        batches = list(zip(pixels.split(batch_size), truth.split(batch_size), strict=True))
        return Images(name, len(truth), batches, min(batch_size, len(truth)), masks)
    data = find(name, split, transform_of(model), download)
    if count is not None and count < len(data):
        data = torch.utils.data.Subset(data, spread(len(data), count))
    loader: Any = DataLoader(data, batch_size=batch_size, shuffle=False, num_workers=0)
    return Images(name, len(data), loader, min(batch_size, len(data)))


def open_unlabelled(name: str, model: nn.Module, split: str = "validation", count: int = 32,
                    download: bool = False) -> tuple[Tensor, str]:
    """A few images to choose K by, (count, 3, H, W), and where they are from; no labels.

    Never those that results are measured on where there are others: pebbles of another seed, else the training split,
    else `split`.
    """
    if name == "pebbles":
        return scale(Pebbles(seed=FIT_SEED, size=model.patch_embed.img_size[0]).batch(range(count))[0]), "other pebbles"
    try:
        data, used = find(name, "train", transform_of(model), download), "train"
    except (ValueError, OSError):
        data, used = find(name, split, transform_of(model), download), split
    where = spread(len(data), min(count, len(data)))
    return torch.stack([data[i][0] for i in where]), f"the split {used!r}"


def spread(total: int, count: int) -> list[int]:
    """`count` numbers spread evenly over range(total): sorted data sets give every class a share."""
    return [i * total // count for i in range(count)]


def transform_of(model: nn.Module) -> Any:
    """From a PIL image to what the model expects."""
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({"input_size": (3, *model.patch_embed.img_size)}, model=model)
    return create_transform(**config, is_training=False)


def find(name: str, split: str, transform: Any, download: bool = False, batch_size: int = 1, training: bool = False,
         seed: int = 0) -> Any:
    """The data set behind a name: Parquet, a folder a class, or whatever timm's factory opens.

    Args:
        batch_size, training, seed: hints for timm's streaming readers, which shuffle and deal out shards by them.
    """
    folder = Path(name)
    if folder.is_dir():
        parquet = sorted(folder.glob("**/*.parquet"))
        if parquet:
            return ParquetImages(_of_split(parquet, split), transform)
        if not any(p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp") for p in folder.glob("*/*")):
            raise ValueError(f"The folder {folder} holds neither .parquet files nor one folder of images per class. "
                             "Point --data at either.")
    elif "/" not in name or folder.is_absolute() or name.startswith("."):
        raise FileNotFoundError(f"No data called {name!r}: it is not a folder here. Use pebbles, a folder, or a timm "
                                "name such as torch/cifar10, hfds/uoft-cs/cifar10, wds/...")
    from timm.data import create_dataset

    # timm keeps the place of WebDataset shards apart from the reader's name
    where = {"root": name if folder.is_dir() else name[4:] if name.startswith("wds/") else "data_cache"}
    try:
        data = create_dataset("" if folder.is_dir() else name, split=split, download=download, batch_size=batch_size,
                              is_training=training, seed=seed, **where)
    except Exception as error:       # timm's readers raise whatever their libraries raise, the network's included
        raise OSError(f"timm could not open {name!r} (split {split!r}): {type(error).__name__}: "
                      f"{str(error).splitlines()[0] if str(error) else 'no reason given'}. Check the name and the "
                      "network, add --download for torch/ names, or use a folder that is on this machine.") from error
    data.transform = transform
    return data


def _of_split(files: list[Path], split: str) -> list[Path]:
    """Files whose name says the split (train-00000-of-..., validation-...); all, where no name says any."""
    names = ("train", "validation", "val", "test")
    told = {f: next((n for n in names if f.name.startswith(n)), None) for f in files}
    if not any(told.values()):
        return files
    wanted = [f for f, n in told.items() if n is not None and (n == split or {n, split} == {"val", "validation"})]
    if not wanted:
        have = sorted({n for n in told.values() if n})
        raise ValueError(f"No Parquet file of the split {split!r} in {files[0].parent}. "
                         f"Use --split {' or '.join(have)}.")
    return wanted


class ParquetImages(Dataset[tuple[Any, int]]):
    """Rows of Parquet files with `image` (a struct with `bytes`, or the bytes) and `label` (int)."""

    def __init__(self, files: list[Path], transform: Any = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for file in files:
            try:
                tables.append(pq.read_table(file, columns=["image", "label"]))
            except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
                raise ValueError(f"{file} is not a Parquet file with the columns image and label: "
                                 f"{str(error).splitlines()[0]}") from error
        table = pa.concat_tables(tables, promote_options="permissive")
        if not len(table):
            raise ValueError(f"The Parquet files in {files[0].parent} hold no rows.")
        self.files, self.transform = files, transform
        self.labels = table["label"].to_pylist()
        self.images = table["image"].combine_chunks()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        value = self.images[index].as_py()
        raw = value["bytes"] if isinstance(value, dict) else value
        try:
            image = Image.open(io.BytesIO(raw)).convert("RGB")
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise ValueError(f"Row {index} of {self.files[0].parent} is not a readable image ({error}). "
                             "Remove the row or repair the file.") from error
        return (self.transform(image) if self.transform else image), self.labels[index]


def photographs(size: int = 64) -> dict[str, np.ndarray]:
    """Five real photographs that scikit-image and scikit-learn bring along, square: name -> (3, size, size) uint8.

    No file of theirs is copied into this project. Sources and licences: see data/README.md.
    """
    from skimage import data as skimage_data
    from sklearn.datasets import load_sample_image

    found = {"cat": skimage_data.chelsea(), "coffee": skimage_data.coffee(), "astronaut": skimage_data.astronaut(),
             "temple": load_sample_image("china.jpg"), "flower": load_sample_image("flower.jpg")}
    return {name: square(Image.fromarray(np.asarray(pixels)), size) for name, pixels in found.items()}


def read_image(path: Path, size: int = 64) -> np.ndarray:
    """An image file as (3, size, size) uint8, centre-cropped to a square."""
    try:
        with Image.open(path) as image:
            return square(image.convert("RGB"), size)
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at {path}.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not an image that can be read ({error}). Use PNG, JPEG, WebP or BMP.") from error


def square(image: Image.Image, size: int) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
