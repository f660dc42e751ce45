"""Training images. A stopped run can resume in the middle of an epoch, and several processes can share one.

The images of a step, their order and their augmentation depend on (seed, step) alone. So the loader has no state to
save, and two processes together see what one process with twice the batch would. Streams (WebDataset, Hugging Face) are
different: timm's readers distribute them, and a resumed epoch skips what it has already read.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tokenpool.data import datasets
from tokenpool.data.files import replace_file
from tokenpool.data.pebbles import Pebbles
from tokenpool.train.recipe import Recipe

TRAIN_SEED = 1                      # of the pebbles; 2 is for validation, 3 for measurements, 4 for figures


def seed_of(*parts: object) -> int:
    """A 63-bit number from anything with a repr, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Seed the three global generators, and restore their states afterwards.

    torchvision and timm draw from them, so only this makes their augmentation repeatable.
    """
    number = seed_of(*parts)
    before, before_numpy, before_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.random.default_generator.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)
        torch.set_rng_state(before_torch)


class TrainImages(Dataset):
    """Items by key (epoch, index, copy): the same key gives the same augmented image in every process."""

    def __init__(self, source: Any, transform: Any, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:
        epoch, index, copy = key
        image, label = self.source[index]
        with seeded(self.seed, epoch, index, copy):
            return self.transform(image), int(label)


class Feed:
    """Batches of a data set with random access, starting at any step."""

    def __init__(self, data: TrainImages, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self.data, self.recipe, self.rank, self.world = data, recipe, rank, world
        self.part = _part(recipe, world)
        if len(data) < recipe.batch_size:
            raise ValueError(f"{len(data)} images do not fill a batch of {recipe.batch_size}. "
                             f"Type --set batch_size={max(1, len(data) // 4)}, or use more images.")
        self.steps_per_epoch = len(data) // recipe.batch_size

    def _keys(self, epoch: int) -> list[tuple[int, int, int]]:
        rng = np.random.Generator(np.random.Philox(key=[seed_of(self.recipe.seed, "order"), epoch]))
        order = rng.permutation(len(self.data))
        repeats = self.recipe.repeats
        if repeats > 1:                                    # DeiT: copies side by side, in epochs of the same length
            order = order.repeat(repeats)[:len(self.data)]
        return [(epoch, int(index), place % repeats) for place, index in enumerate(order)]

    def micro_batches(self, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The share of this process in `accumulate` parts for every step, without end."""
        accumulate, batch = self.recipe.accumulate, self.recipe.batch_size

        def plan() -> Iterator[list[tuple[int, int, int]]]:
            step, keys, epoch_of_keys = first_step, [], -1
            while True:
                epoch, within = divmod(step, self.steps_per_epoch)
                if epoch != epoch_of_keys:
                    keys, epoch_of_keys = self._keys(epoch), epoch
                whole = keys[within * batch:(within + 1) * batch]
                for piece in range(accumulate):
                    at = (piece * self.world + self.rank) * self.part
                    yield whole[at:at + self.part]
                step += 1

        workers = self.recipe.workers
        loader: Any = DataLoader(self.data, batch_sampler=plan(), num_workers=workers,   # type: ignore[arg-type]
                                 pin_memory=torch.cuda.is_available(), prefetch_factor=4 if workers else None)
        return iter(loader)


class StreamFeed:
    """Batches of a stream that timm's reader distributes to processes and workers."""

    def __init__(self, data: Any, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self.data, self.recipe, self.rank = data, recipe, rank
        self.part = _part(recipe, world)
        self.steps_per_epoch = len(data) // recipe.batch_size
        if self.steps_per_epoch < 1:
            raise ValueError(f"The {len(data)} images of the stream do not fill a batch of {recipe.batch_size}. "
                             "Use a smaller --set batch_size.")

    def micro_batches(self, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, within = divmod(first_step, self.steps_per_epoch)
        while True:
            self.data.set_epoch(epoch)
            with seeded(self.recipe.seed, "stream", epoch, self.rank):     # for shuffling, in workers too
                loader = DataLoader(_Epoch(self.data, self.recipe.seed, epoch, self.rank), batch_size=self.part,
                                    num_workers=self.recipe.workers, drop_last=True)
                batches = iter(loader)
            wanted = self.steps_per_epoch * self.recipe.accumulate
            for number in range(wanted):
                batch = next(batches, None)
                if batch is None:
                    raise ValueError(f"The stream ended after {number} of {wanted} batches of epoch {epoch + 1}. "
                                     "Its stated number of images is too large, or it has fewer shards than reading "
                                     "processes.")
                if number >= within * self.recipe.accumulate:
                    yield batch
            epoch, within = epoch + 1, 0


class _Epoch(IterableDataset):
    """One epoch of a stream. The augmentation of an image depends on its position."""

    def __init__(self, data: Any, seed: int, epoch: int, rank: int) -> None:
        self.data, self.key = data, (seed, epoch, rank)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = torch.utils.data.get_worker_info()
        key = (*self.key, worker.id if worker else 0)
        with seeded(*key):
            source = iter(self.data)
        place = 0
        while True:
            with seeded(*key, place):
                item = next(source, None)
            if item is None:
                return
            yield item[0], int(item[1])
            place += 1


def _part(recipe: Recipe, world: int) -> int:
    part, rest = divmod(recipe.batch_size, world * recipe.accumulate)
    if rest:
        raise ValueError(f"A batch of {recipe.batch_size} cannot be split evenly over {world} processes and "
                         f"{recipe.accumulate} parts. Type --set batch_size={world * recipe.accumulate * (part + 1)}.")
    return part


def open_train(name: str, model: nn.Module, recipe: Recipe, split: str = "train", count: int | None = None,
               rank: int = 0, world: int = 1, cache: Path | None = None) -> Feed | StreamFeed:
    """Images by the names of `open_data`, augmented as the recipe says.

    Args:
        model: a timm model; its configuration gives size, mean and std.
        count: use only so many, spread over the data.
        cache: a folder for the pebbles, which take longer to draw than to read.
    """
    transform = _augment_pebbles if recipe.augment == "pebbles" else _timm_transform(model, recipe)
    if name == "pebbles":
        source: Any = _Drawn(count or 40_000, model.patch_embed.img_size[0], cache)
    else:
        source = datasets.find(name, split, None, batch_size=recipe.batch_size // world, training=True,
                               seed=recipe.seed)
    if isinstance(source, IterableDataset):
        if count is not None:
            raise ValueError("A stream cannot be limited to a number of images. Name fewer shards.")
        source.transform = transform
        return StreamFeed(source, recipe, rank, world)
    if count is not None and count < len(source):
        source = torch.utils.data.Subset(source, datasets.spread(len(source), count))
    return Feed(TrainImages(source, transform, recipe.seed), recipe, rank, world)


def _timm_transform(model: nn.Module, recipe: Recipe) -> Any:
    from timm.data import create_transform, resolve_data_config
    size = (3, *model.patch_embed.img_size)
    config = resolve_data_config({"input_size": size}, model=model)
    return create_transform(size, is_training=True, scale=(recipe.crop, 1.0), color_jitter=recipe.color_jitter,
                            auto_augment=recipe.rand_augment or None, re_prob=recipe.erasing, re_mode="pixel",
                            interpolation="bicubic", mean=config["mean"], std=config["std"])


# ---- pebbles: drawn once, kept in two files that all runs share ----

class _Drawn(Dataset):
    def __init__(self, count: int, size: int, cache: Path | None) -> None:
        path = (cache or Path()) / f"pebbles-{TRAIN_SEED}-{size}-{count}.npy"
        labels = path.with_suffix(".labels.npy")
        if cache is not None and path.exists() and labels.exists():
            self.images, self.labels = np.load(path, mmap_mode="r"), np.load(labels)
            return
        self.images, self.labels, _ = Pebbles(seed=TRAIN_SEED, size=size).batch(range(count))
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for file, array in ((labels, self.labels), (path, self.images)):
                with replace_file(file) as temporary, temporary.open("wb") as out:
                    np.save(out, array)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


def _augment_pebbles(image: np.ndarray, shift: int = 4) -> Tensor:
    """Colour channels in random order, inverted half of the time, moved by up to `shift` pixels; scaled to +-1.

    None of these changes a material, so none changes the label. A mirror image would: it turns diagonal stripes.
    """
    order, negative = np.random.permutation(3), np.random.randint(2)
    dy, dx = np.random.randint(-shift, shift + 1, 2)
    moved = np.pad(image[order], ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
    height, width = image.shape[1:]
    moved = moved[:, shift + dy:shift + dy + height, shift + dx:shift + dx + width]
    x = datasets.scale(np.ascontiguousarray(moved))
    return -x if negative else x
