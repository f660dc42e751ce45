"""Labelled images to measure on: pebbles, folders of Parquet or of images, and all that timm can read.

    open_data("pebbles", model, count=600)                    drawn, no file needed
    open_data("some/folder", model)                           Parquet with `image` and `label`, or one folder a class
    open_data("hfds/uoft-cs/cifar10", model)                  any name that timm.data.create_dataset knows
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
_IN_MEMORY = 10_000          # images


@dataclass(frozen=True)
class Images:
    """Batches of (images ready for the model, labels), always the same and in the same order."""

    name: str
    count: int
    loader: Any                         # iterable of (B, 3, H, W) float, (B,) int64
    batch_size: int
    split: str = ""                     # empty where there is only one

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)

    def on(self, device: str) -> Images:
        """The same images, read once onto the device, if there are no more than 10,000."""
        if self.count > _IN_MEMORY:
            return self
        return replace(self, loader=[(x.to(device), y.to(device)) for x, y in self])


def scale(images: np.ndarray) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 in -1..1, as the shipped model was trained."""
    return torch.from_numpy(images).float() / 127.5 - 1


def open_data(name: str, model: nn.Module, count: int | None = None, split: str = "validation",
              batch_size: int = 100, download: bool = False) -> Images:
    """Images by name, prepared the way the model expects them.

    Args:
        name: "pebbles"; a folder with .parquet files (columns `image`, `label`) or with one folder of images per
            class; or one of timm's names: "torch/cifar10", "hfds/...", "wds/...".
        model: a timm model; its configuration gives size, mean and std.
        count: the largest number of images; None: all (600 for pebbles).
        split: which split, for data sets that have several.
    """
    if count is not None and count < 1:
        raise ValueError(f"{count} images are too few to measure on. Use at least 1.")
    if name == "pebbles":
        if model.num_classes != 30:
            raise ValueError(f"Pebbles have 30 classes, this model {model.num_classes}. "
                             "Use --model pebbles_vit, or --data with images of the model's own classes.")
        images, labels, _ = Pebbles(seed=TEST_SEED, size=model.patch_embed.img_size[0]).batch(range(count or 600))
        batches = list(zip(scale(images).split(batch_size), torch.from_numpy(labels).split(batch_size), strict=True))
        return Images(name, len(labels), batches, min(batch_size, len(labels)))
    data = find(name, split, transform_of(model), download)
    if count is not None and count < len(data):
        data = torch.utils.data.Subset(data, spread(len(data), count))
    loader: Any = DataLoader(data, batch_size=batch_size, shuffle=False, num_workers=0)
    return Images(name, len(data), loader, min(batch_size, len(data)), split=split)


def open_unlabelled(name: str, model: nn.Module, split: str = "validation", count: int = 32,
                    download: bool = False) -> tuple[Tensor, str]:
    """A few images to choose K by, (count, 3, H, W), and where they are from; no labels.

    Where possible not those that results are measured on: pebbles of another seed, or the training split. Without a
    training split they come from `split`.
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
    """`count` numbers spread evenly over range(total), so that every class of a sorted data set has its share."""
    return [i * total // count for i in range(count)]


def transform_of(model: nn.Module) -> Any:
    """From a PIL image to what the model expects."""
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({"input_size": (3, *model.patch_embed.img_size)}, model=model)
    return create_transform(**config, is_training=False)


def find(name: str, split: str, transform: Any, download: bool = False, batch_size: int = 1, training: bool = False,
         seed: int = 0) -> Any:
    """The data set of a name: Parquet, a folder per class, or whatever timm's factory opens.

    Args:
        batch_size, training, seed: for timm's streaming readers, which shuffle and distribute shards by them.
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
        raise FileNotFoundError(f"No data called {name!r}: there is no such folder. Use pebbles, a folder, or a timm "
                                "name such as torch/cifar10, hfds/uoft-cs/cifar10, wds/...")
    from timm.data import create_dataset

    # of WebDataset shards timm wants the reader's name and the place apart
    root = name if folder.is_dir() else name[4:] if name.startswith("wds/") else "data_cache"
    try:
        data = create_dataset("" if folder.is_dir() else name, root=root, split=split, download=download,
                              batch_size=batch_size, is_training=training, seed=seed)
    except Exception as error:       # timm's readers raise whatever their libraries raise, the network's included
        raise OSError(f"timm could not open {name!r} (split {split!r}): {type(error).__name__}: "
                      f"{str(error).splitlines()[0] if str(error) else 'no reason given'}. Check the name and the "
                      "network, add --download for torch/ names, or use a folder on this machine.") from error
    data.transform = transform
    return data


def _of_split(files: list[Path], split: str) -> list[Path]:
    """Files named after the split (train-00000-of-..., validation-...); all, where no name says any."""
    def split_of(file: Path) -> str | None:
        return next((n for n in ("train", "validation", "val", "test") if file.name.startswith(n)), None)

    splits = {split_of(f) for f in files} - {None}
    same = {"val", "validation"} if split in ("val", "validation") else {split}
    wanted = [f for f in files if split_of(f) in same] if splits else files
    if not wanted:
        raise ValueError(f"No Parquet file of the split {split!r} in {files[0].parent}. "
                         f"Use --split {' or '.join(sorted(map(str, splits)))}.")
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
                             "Delete the row or repair the file.") from error
        return (self.transform(image) if self.transform else image), self.labels[index]
