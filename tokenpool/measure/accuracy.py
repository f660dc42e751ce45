"""`tokenpool reproduce`: every method at every budget without finetuning, as rows.

What is measured is a list of `Setting`s made in advance; each becomes one row. Settings whose row exists are skipped,
so a stopped run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.core.checks import one_of
from tokenpool.core.methods import INITS, METHODS
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import Images
from tokenpool.data.weights import fingerprint
from tokenpool.measure.rows import Results, Row, key_of, pack, provenance, wilson
from tokenpool.models.model_cost import macs
from tokenpool.models.vit import PooledViT

_CACHED = 10_000             # images kept in memory between settings
BUDGETS = (0.2, 0.3, 0.42, 0.5, 0.6, 0.7)
#: the paper's own methods, and those it compares with
PAPERS = ("random", "importance", "importance_with_replacement", "top_k", "grid_average", "k_means", "wk_means",
          "k_medoids", "wk_medoids")
#: figure of the paper -> methods it compares; "6" compares the starts of one method, "peers" is what came later
FIGURES = {
    "5a": ("random", "importance", "importance_with_replacement", "top_k", "wk_medoids", "grid_average"),
    "5b": ("k_means", "wk_means", "k_medoids", "wk_medoids"),
    "6": ("wk_medoids",),
    "9": PAPERS,
    "peers": tuple(name for name in METHODS if name not in PAPERS),
}


Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Setting:
    method: str
    init: str
    counts: bool
    saving: float
    seed: int


#: what is measured unless something else is asked for
PAPERS_FIGURES = tuple(name for name in FIGURES if name != "peers")


def settings(figures: Iterable[str] = PAPERS_FIGURES, methods: Sequence[str] | None = None,
             budgets: Sequence[float] = BUDGETS, seeds: int = 5) -> list[Setting]:
    """What the figures need, each setting once. Only what draws at random is repeated over seeds."""
    for figure in figures:
        one_of("figure", figure, FIGURES, "These can be measured without finetuning.")
    check_wanted(methods or (), budgets, seeds)
    wanted: dict[Setting, None] = {Setting("plain", "", False, 0.0, 0): None}
    for counts in (False, True):
        for figure in figures:
            for method in FIGURES[figure]:
                if methods and method not in methods:
                    continue
                starts = (tuple(INITS) if figure == "6" or method == "wk_medoids" else ("top_k", "farthest_first")) \
                    if METHODS[method].kind == "clustering" else ("",)
                for init in starts:
                    draws = Pooling(method, init or None).draws
                    for budget in budgets:
                        for seed in range(seeds if draws else 1):
                            wanted[Setting(method, init, counts, budget, seed)] = None
    return list(wanted)


def check_wanted(methods: Iterable[str], budgets: Iterable[float], seeds: int) -> None:
    """A ValueError in words where one of them cannot be measured."""
    for method in methods:
        one_of("method", method, METHODS, "See tokenpool.method_names().")
    for budget in budgets:
        if not 0 < budget < 1:
            raise ValueError(f"A budget of {budget} is not a share of computations to save. "
                             "Use numbers between 0 and 1, such as 0.42.")
    if seeds < 1:
        raise ValueError(f"{seeds} seeds measure nothing. Use 1 or more; the start study wants 5.")


def measure(model: nn.Module, model_name: str, images: Images, wanted: Sequence[Setting], results: Results,
            device: str = "cpu", tell: Callable[[str, int, int], None] | None = None) -> list[Row]:
    """Measure what is missing and return the rows of all settings, in their order.

    Args:
        tell: called with (what is going on, done, total).

    A budget that a method cannot meet (its clustering costs more than it saves) gives no row.
    """
    model = model.to(device).eval()
    weights, origin = fingerprint(model), provenance()
    batches = read_once(images, device)
    rows: dict[str, Row] = {row.key: row for row in results.rows}
    keys = []
    for done, setting in enumerate(wanted):
        if tell:
            name = f"{setting.method} {setting.init}".strip()
            tell(f"{name}, saving {setting.saving:.0%}{', counts' if setting.counts else ''}", done, len(wanted))
        key = key_of(**vars(setting), model=model_name, weights=weights, data=images.name, images=images.count,
                     device=torch.device(device).type, tokenpool=origin["tokenpool"])
        if key not in rows:
            try:
                pooled = _pooled(model, setting)
            except OutOfReach:
                continue
            rows[key] = _row(key, pooled, model_name, weights, images, batches, setting, device, origin)
            results.add(rows[key])
        keys.append(key)
    if tell:
        tell("done", len(wanted), len(wanted))
    return [rows[key] for key in keys]


def read_once(images: Images, device: str) -> Batches:
    """On the device, read once for all that is measured, where they fit the memory."""
    return [(x.to(device), y.to(device)) for x, y in images] if images.count <= _CACHED else images


def _pooled(model: nn.Module, setting: Setting) -> PooledViT:
    if setting.method == "plain":
        return PooledViT(model).eval()
    return PooledViT(model, saving=setting.saving, method=setting.method, init=setting.init or None,
                     carry_counts=setting.counts, seed=setting.seed).eval().to(next(model.parameters()).device)


@torch.inference_mode()
def _row(key: str, pooled: PooledViT, model_name: str, weights: str, images: Images, batches: Batches,
         setting: Setting, device: str, origin: dict[str, str]) -> Row:
    measured = score(pooled, images, batches, model_name, setting.seed if pooled.draws else None)
    return Row(
        key=key, method=setting.method, init=setting.init,
        output=pooled.pooling.output_name if setting.method != "plain" else "",
        counts=setting.counts, saving=setting.saving, seed=setting.seed,
        schedule=" ".join(map(str, pooled.schedule or ())), **measured,
        batch_size=images.batch_size, model=model_name, weights=weights, data=images.name,
        device=device_name(device), threads=torch.get_num_threads(), **origin)


@torch.inference_mode()
def score(system: Any, images: Images, batches: Batches, model_name: str, seed: int | None) -> dict[str, Any]:
    """What is measured of a system that can be pooled, as columns of a `Row`.

    Args:
        seed: of methods that draw: anew for every batch of the fixed size, from one generator.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    options = {} if generator is None else {"generator": generator}
    found, speeds = [], []
    first: Tensor | None = None
    device = next(system.parameters()).device
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        first = x if first is None else first
        started = time.perf_counter()
        logits = system(x, **options)
        found.append((logits.argmax(1) == y).cpu())                # waits for a GPU too
        speeds.append(len(x) / (time.perf_counter() - started))
    if not torch.isfinite(logits).all():
        raise ValueError(f"{model_name} answers NaN or infinity on {images.name}. Check the weights.")
    steps = system.trace(first[:100], **options).steps if isinstance(system, PooledViT) else ()
    errors = [step.error for step in steps if step.pooled]
    right = torch.cat(found)
    cost, plain = macs(system), macs(system.vit)
    low, high = wilson(int(right.sum()), images.count)
    return dict(
        gmacs=cost.total / 1e9, gmacs_without_clustering=cost.without_clustering / 1e9,
        gmacs_plain=plain.total / 1e9, top1=float(right.double().mean()), top1_low=low, top1_high=high,
        images=images.count, reconstruction_error=float(torch.stack(errors).mean()) if errors else 0.0,
        images_per_second=sorted(speeds)[len(speeds) // 2], right=pack(right.numpy()))


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type != "cpu":
        return device
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform
        return platform.processor() or "CPU"
