"""The first line of every notebook, `lab = start("03")`, and the seven verbs of `lab`."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

import tokenpool
from tokenpool.core.checks import one_of
from tokenpool.lab.kit import figure
from tokenpool.lab.kit.cards import Card, Code
from tokenpool.lab.kit.exercises import Exercise
from tokenpool.lab.kit.predictions import Prediction, PredictionCard
from tokenpool.lab.widgets.explorer import Explorer

#: notebook -> the module with its toys, figures, predictions, exercises and explorer
LESSONS = {name[7:9]: name for name in (
    "lesson_00_start_here", "lesson_01_compute", "lesson_02_smoothing", "lesson_03_reconstruction",
    "lesson_04_clustering", "lesson_05_layers", "lesson_06_normalised", "lesson_07_finetuning", "lesson_08_evidence")}
SEED = 0


def start(number: str) -> Lab:
    """Set up a notebook: seeds, the lesson's predictions and exercises, a line of versions.

    >>> lab = start("03")                                       # doctest: +ELLIPSIS
    Notebook 03, tokenpool ..., seed 0.
    """
    # torch.func and timm script small functions; newer releases of torch warn about that in the middle of a lesson
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    lab = Lab(number)
    print(lab)
    return lab


class Lab:
    """What a notebook needs. Everything is computed on this machine; nothing is downloaded."""

    def __init__(self, number: str) -> None:
        one_of("notebook", number, LESSONS, "")
        self.number = number
        self.lesson = lesson(number)
        self.seed = SEED
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        #: the small setting runs everywhere; a GPU or TOKENPOOL_FULL=1 selects the full one, where there is one
        self.small = self.device == "cpu" and os.environ.get("TOKENPOOL_FULL") != "1"
        self.answers: dict[str, int] = {}
        self.outcomes: dict[str, Card] = {}
        self._hints: dict[str, int] = {}
        self._explorer: Explorer | None = None
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)

    def __repr__(self) -> str:
        threads = torch.get_num_threads()
        where = f"cpu, {threads} thread{'s' if threads > 1 else ''}" if self.device == "cpu" else self.device
        return (f"Notebook {self.number}, tokenpool {tokenpool.__version__}, torch {torch.__version__.split('+')[0]}, "
                f"timm {timm.__version__}, {where}, {'small' if self.small else 'full'} setting, seed {self.seed}.")

    def predict(self, id: str) -> PredictionCard:
        """Commit to an answer before the evidence."""
        return PredictionCard(self._prediction(id), self.answers)

    def reveal(self, id: str, evidence: Any) -> Card:
        """Back to the prediction. `evidence`, measured in the notebook, decides which option is right."""
        return self._prediction(id).reveal(evidence, self.answers.get(id))

    def _prediction(self, id: str) -> Prediction:
        known = {p.id: p for p in self.lesson.PREDICTIONS}
        return known[one_of("prediction", id, known, f"These are the ones of notebook {self.number}.")]

    def check(self, id: str, answer: Any) -> Card:
        """Whether an exercise is right, and if not, why."""
        self.outcomes[id] = self._exercise(id).check(answer)
        return self.outcomes[id]

    def hint(self, id: str) -> Card:
        """A hint; a clearer one at every call."""
        hints = self._exercise(id).hints
        place = min(self._hints.get(id, 0), len(hints) - 1)
        self._hints[id] = place + 1
        return Card("note", f"Hint {place + 1} of {len(hints)}: {hints[place]}")

    def solution(self, id: str) -> Code:
        """One way to write it, as text. The tests run the same code."""
        return self._exercise(id).show_solution()

    def _exercise(self, id: str) -> Exercise:
        known = exercises(self.lesson)
        return known[one_of("exercise", id, known, f"These are the ones of notebook {self.number}.")]

    show = staticmethod(figure.show)

    def explore(self, **values: Any) -> Explorer:
        """The notebook's explorer with its controls set to `values`. Calling again replaces the one before."""
        if self._explorer is not None:
            self._explorer.close()
        self._explorer = self.lesson.explore().set(**values)
        return self._explorer

    @property
    def vit(self) -> nn.Module:
        """The shipped model for pebbles: 64 x 64 pixels, 64 tokens, 6 blocks, width 96."""
        return shipped_vit()

    @property
    def photograph_vit(self) -> nn.Module:
        """The shipped model for photographs, of the same shape but width 64."""
        return photograph_vit()

    def images(self, count: int = 4) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
        """Pebbles that were not used for any training or measurement.

        Returns:
            x (count, 3, 64, 64) ready for `vit`; pixels (count, 3, 64, 64) uint8; labels (count,);
            regions (count, 64): of every patch: 0 ground, 1 large pebble, 2 small pebble.
        """
        return pebbles(count)

    def tokens(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Patch tokens of `vit` after a block (0 is the first), and their significance scores there.

        Returns:
            tokens (images, 64, 96), score (images, 64).
        """
        n = self.vit.patch_embed.num_patches
        depth = len(self.vit.blocks)
        if not 0 <= block < depth:
            raise ValueError(f"Block {block} does not exist; the model has {depth}. Use 0 to {depth - 1}.")
        # scores are computed only in blocks that pool: so this one removes a token, after its score was taken
        watched = tokenpool.PooledViT(self.vit, [n] * block + [n - 1] * (depth - block), method="top_k")
        with torch.no_grad():
            score = watched.trace(x).steps[block].score
            return tokenpool.PooledViT(self.vit).trace(x).steps[block].tokens, score

    def photographs(self, size: int = 64) -> dict[str, np.ndarray]:
        """Five photographs from scikit-image and scikit-learn: name -> (3, size, size) uint8."""
        from tokenpool.data.photographs import photographs
        return photographs(size)

    def generator(self, seed: int = SEED) -> torch.Generator:
        """A seeded random number generator."""
        return torch.Generator().manual_seed(seed)


def lesson(number: str) -> ModuleType:
    return importlib.import_module(f"tokenpool.lab.lessons.{LESSONS[number]}")


def exercises(lesson: ModuleType) -> dict[str, Exercise]:
    """The exercises of a lesson by letter."""
    return {e.id: e for e in vars(lesson).values() if isinstance(e, Exercise)}


@functools.lru_cache(maxsize=1)
def shipped_vit() -> nn.Module:
    from tokenpool.data.weights import load_model
    return load_model()


@functools.lru_cache(maxsize=1)
def photograph_vit() -> nn.Module:
    from tokenpool.data.weights import load_into, shipped_weights
    from tokenpool.train.recipe import load_preset
    preset = load_preset("imagenet50_cpu")
    name, shape = preset.models["ti"]
    vit = timm.create_model(name, **shape)
    load_into(vit, "imagenet50_cpu/ti", shipped_weights(preset.shipped["base-ti-s0"]))
    return vit.eval()


@functools.lru_cache(maxsize=4)
def shipped_rows(name: str) -> pd.DataFrame:
    """Shipped rows: "pebbles" is the output of `make reproduce`, "<preset>-runs" are the finetunings of a preset."""
    from tokenpool.data.weights import data_folder
    from tokenpool.measure.rows import frame, read
    return frame(read(data_folder() / "runs" / f"{name}.csv"))


@functools.lru_cache(maxsize=8)
def pebbles(count: int) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    from tokenpool.data.datasets import scale
    from tokenpool.data.pebbles import Pebbles
    pixels, labels, masks = Pebbles(seed=4).batch(range(count))
    patches = masks.reshape(count, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4).reshape(count, 64, 64)
    regions = np.stack([(patches == r).mean(2) for r in range(3)], 2)
    # a patch belongs to a pebble that covers a third of it; the small one has priority, because few patches are all its
    regions = np.where(regions[..., 2] >= 1 / 3, 2, np.where(regions[..., 1] >= 1 / 3, 1, 0))
    return scale(pixels), pixels, labels, regions
