"""`tokenpool reproduce`: the accuracy of every method at every budget without finetuning.

    rows = measure(model, "pebbles_vit", images, settings(), Results(path))

What is measured is a list of `Setting`s made in advance; each becomes one row.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tokenpool.core.checks import one_of
from tokenpool.core.methods import METHODS, init_names, method_names
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import Images
from tokenpool.data.weights import fingerprint
from tokenpool.measure.rows import Results, Row, answers, key_of
from tokenpool.measure.sweep import Task, Tell, sweep
from tokenpool.models.model_cost import macs
from tokenpool.models.published import options_of
from tokenpool.models.vit import PooledViT

BUDGETS = (0.2, 0.3, 0.42, 0.5, 0.6, 0.7)
#: the paper's own methods, and those it compares with
PAPERS = ("random", "importance", "importance_with_replacement", "top_k", "grid_average", "k_means", "wk_means",
          "k_medoids", "wk_medoids")
#: figure of the paper -> methods it compares; "6" compares the inits of one method, "peers" are later methods
FIGURES = {
    "5a": ("random", "importance", "importance_with_replacement", "top_k", "wk_medoids", "grid_average"),
    "5b": ("k_means", "wk_means", "k_medoids", "wk_medoids"),
    "6": ("wk_medoids",),
    "9": PAPERS,
    "peers": tuple(name for name in method_names() if name not in PAPERS),
}
#: what is measured by default
PAPERS_FIGURES = tuple(name for name in FIGURES if name != "peers")


@dataclass(frozen=True)
class Setting:
    """One way to pool a model; `method` may be a name of NAMED_METHODS, which brings its own options."""

    method: str = "plain"
    init: str = ""
    counts: bool = False
    saving: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.init}".strip() + f", saving {self.saving:.0%}{', counts' if self.counts else ''}"


def settings(figures: Iterable[str] = PAPERS_FIGURES, methods: Sequence[str] | None = None,
             budgets: Sequence[float] = BUDGETS, seeds: int = 5) -> list[Setting]:
    """What the figures need, each setting once. Only what draws at random is repeated over seeds."""
    for figure in figures:
        one_of("figure", figure, FIGURES, "These can be measured without finetuning.")
    check_wanted(methods or (), budgets, seeds)
    wanted = [Setting()]
    for counts, figure in product((False, True), figures):
        for method in FIGURES[figure]:
            if not methods or method in methods:
                every = init_names() if method == "wk_medoids" else ("top_k", "farthest_first")
                wanted += [Setting(method, init, counts, budget, seed) for init in inits_of(method, every)
                           for budget in budgets for seed in seeds_of(method, init, seeds)]
    return list(dict.fromkeys(wanted))


def inits_of(method: str, inits: Sequence[str] = ("top_k", "farthest_first")) -> Sequence[str]:
    """Those inits for a clustering; none for other methods."""
    return inits if METHODS[method].kind == "clustering" else ("",)


def seeds_of(method: str, init: str, seeds: int) -> range:
    """All seeds for what draws at random, one for the rest."""
    return range(seeds if method in METHODS and Pooling(method, init or None).draws else 1)


def check_wanted(methods: Iterable[str], savings: Iterable[float], seeds: int) -> None:
    """Raises a ValueError where one of them cannot be measured."""
    for method in methods:
        one_of("method", method, METHODS, "See tokenpool.method_names().")
    for saving in savings:
        if not 0 < saving < 1:
            raise ValueError(f"A saving of {saving} is not a share of the computations. "
                             "Use numbers between 0 and 1, such as 0.42.")
    if seeds < 1:
        raise ValueError(f"{seeds} seeds measure nothing. Use 1 or more; Figure 6 needs 5.")


def measure(model: nn.Module, model_name: str, images: Images, wanted: Sequence[Setting], results: Results[Row],
            device: str = "cpu", tell: Tell | None = None) -> list[Row]:
    """Measure what is missing; returns the rows of all settings, in their order.

    A budget that a method cannot meet (its clustering costs more than it saves) has no row.
    """
    model = model.to(device).eval()
    about = subject(model, model_name, images)
    read = functools.cache(lambda: images.on(device))

    def measure_one(missing: Mapping[str, Setting]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, setting in missing.items():
            try:
                pooled = build(model, setting)
            except OutOfReach:
                continue
            yield key, {**vars(setting), **about, **score(pooled, read(), setting.seed)}

    decides = about | dict(source=images.name, size=model.patch_embed.img_size, device=torch.device(device).type)
    return sweep([Task(str(setting), {key_of(**vars(setting), **decides): setting}, measure_one)
                  for setting in wanted], results, device, tell)


def subject(model: nn.Module, model_name: str, images: Images) -> dict[str, Any]:
    """What is measured, the model and its images, as columns of a row."""
    return dict(model=model_name, weights=fingerprint(model), data=Path(images.name).name, split=images.split,
                images=images.count)


def build(model: nn.Module, setting: Setting) -> PooledViT:
    if setting.method == "plain":
        return PooledViT(model).eval()
    return PooledViT(model, saving=setting.saving, seed=setting.seed,
                     **options_of(setting.method, setting.init, setting.counts)
                     ).eval().to(next(model.parameters()).device)


@torch.inference_mode()
def score(system: Any, images: Images, seed: int = 0) -> dict[str, Any]:
    """What is measured of a pooled model or a trained baseline, as columns of a `Row`."""
    right, speeds = right_of(system, images, seed)
    pooling = getattr(system, "pooling", None) if system.schedule else None
    errors = []
    if isinstance(system, PooledViT):
        x = next(iter(images))[0][:100].to(next(system.parameters()).device)
        errors = [step.error for step in system.trace(x, _generator(system, seed)).steps if step.pooled]
    return dict(**cost_of(system), gmacs_without_clustering=macs(system).without_clustering / 1e9, **answers(right),
                output=pooling.output_name if pooling else "", batch_size=images.batch_size,
                reconstruction_error=float(torch.stack(errors).mean()) if errors else 0.0,
                images_per_second=sorted(speeds)[len(speeds) // 2])


@torch.inference_mode()
def right_of(system: Any, images: Images, seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """Which images a system gets right, (images,) bool, and images per second of every batch.

    Args:
        seed: for systems that draw at random: drawn again for every batch, from one generator.
    """
    device, generator = next(system.parameters()).device, _generator(system, seed)
    options = {} if generator is None else {"generator": generator}
    found, speeds = [], []
    for x, y in images:
        x, y = x.to(device), y.to(device)
        started = time.perf_counter()
        logits = system(x, **options)
        found.append((logits.argmax(1) == y).cpu())                # waits for a GPU too
        speeds.append(len(x) / (time.perf_counter() - started))
    if not torch.isfinite(logits).all():
        raise ValueError(f"The model answers NaN or infinity on {images.name}. Check its weights.")
    return torch.cat(found).numpy(), speeds


def _generator(system: Any, seed: int) -> torch.Generator | None:
    return torch.Generator().manual_seed(seed) if getattr(system, "draws", False) else None


def cost_of(system: Any) -> dict[str, Any]:
    """The schedule and what it costs, as columns of a row."""
    return dict(schedule=" ".join(map(str, system.schedule or ())), gmacs=macs(system).total / 1e9,
                gmacs_plain=macs(system.vit).total / 1e9)
