"""`tokenpool reproduce --peers`: every method without finetuning, compared at equal cost in two senses.

    entries = measure(model, "pebbles_vit", images, few, Results(path, Entry))

**Equal multiply-adds**: every method gets the schedule that saves the same share of the plain model's, clustering
included. **Equal measured time**: every method gets the schedule that takes the same share of the plain model's time
on this machine. A method may be cheap on paper and slow, or the reverse; the best in both senses has won.

The methods are those of `models.published`, each with its authors' options or ours. To find equal time, each is timed
in turns with the plain model at a few savings, the saving that takes the wanted time is interpolated, and it is timed
again: that is the recorded time. On a CPU it is the time that one thread works, which other programs change little;
elsewhere it is wall time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import Images
from tokenpool.measure.accuracy import check_wanted, cost_of, right_of, subject
from tokenpool.measure.bench import Stopwatch, in_turns, quartiles
from tokenpool.measure.rows import Entry, Results, answers, device_name, key_of
from tokenpool.measure.sweep import Task, Tell, sweep
from tokenpool.models.published import NAMED_METHODS, NamedMethod
from tokenpool.models.vit import PooledViT

BUDGETS = (0.3, 0.42, 0.5, 0.6, 0.7, 0.8)
FAIR = {"macs": "equal multiply-adds", "time": "equal measured time"}
_TIMED_AT = (0.15, 0.3, 0.42, 0.5, 0.6, 0.7, 0.8, 0.88)        # savings between which equal time is interpolated
_ROUNDS = 5
_MISSED = 0.03                # of the wanted time: a method farther off is given another saving
_TRIES = 5
_TOO_FAR = 0.1                # of the wanted time: methods that miss it by more have no entry


def measure(model: nn.Module, model_name: str, images: Images, few: Tensor, results: Results[Entry],
            budgets: Sequence[float] = BUDGETS, methods: Sequence[NamedMethod] = NAMED_METHODS, device: str = "cpu",
            rounds: int = _ROUNDS, batch_size: int = 100, tell: Tell | None = None, watch: Stopwatch | None = None
            ) -> list[Entry]:
    """Measure what is missing; returns the rows of every method at every budget in both senses.

    Args:
        few: (n, 3, H, W) images to fit schedules on.
        batch_size: images at a time while timing, at most.

    A budget that a method cannot meet has no row: its clustering costs more than is saved, or it is too slow.
    """
    check_wanted((), budgets, 1)
    model = model.to(device).eval()
    about = subject(model, model_name, images)
    about["clock"] = "cpu" if torch.device(device).type == "cpu" else "wall"
    batch_size = min(batch_size, images.batch_size)
    start = functools.cache(lambda: _Comparison(model, images.on(device), few.to(device), batch_size, watch, rounds))

    def measure_one(fair: str, budget: float, missing: Mapping[str, NamedMethod]) -> Iterator[tuple[str, dict]]:
        here = start()
        methods = list(missing.values())
        ready = here.at_macs(methods, budget) if fair == "macs" else here.at_time(methods, 1 - budget)
        for key, method in missing.items():
            if method in ready:
                yield key, dict(**about, name=method.name, fitted=method.fitted, fair=fair, budget=budget,
                                batch_size=batch_size, fitted_on=len(few) if method.fitted else 0,
                                **here.columns(ready[method]))

    decides = about | dict(source=images.name, size=model.patch_embed.img_size, device=device_name(device),
                           fitted_on=len(few), rounds=rounds, batch=batch_size)
    tasks = [Task(f"saving {budget:.0%}, {FAIR[fair]}",
                  {key_of(**decides, fair=fair, budget=budget, name=method.name, fitted=method.fitted,
                          options=sorted(method.options.items())): method for method in methods},
                  functools.partial(measure_one, fair, budget)) for budget, fair in product(budgets, FAIR)]
    return sweep(tasks, results, device, tell)


def comparisons(entries: Iterable[Entry]) -> tuple[list[Entry], ...]:
    """Entries that may be compared: of one model, its images and one device. Photographs first."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for e in entries:
        found.setdefault((e.model, e.weights, e.data, e.images, e.device, e.clock, e.batch_size), []).append(e)
    return tuple(found[place] for place in sorted(found, key=lambda place: (place[2] == "pebbles", str(place))))


class Ready(NamedTuple):
    """A method with its schedule, and its time over the plain model's."""

    saving: float
    pooled: PooledViT
    time: float                   # median over rounds
    time_low: float               # quartiles
    time_high: float
    rounds: int


class _Comparison:
    """Builds, times and measures methods on one model; what takes long is done once for each method."""

    def __init__(self, model: nn.Module, images: Images, few: Tensor, batch_size: int, watch: Stopwatch | None,
                 rounds: int) -> None:
        self.model, self.images, self.few, self.rounds = model, images, few, rounds
        self.x = next(iter(images))[0][:batch_size].to(few.device)
        # on a CPU one thread, and only while it works: what other programs do then changes little
        self.cpu = few.device.type == "cpu"
        self.watch = watch or Stopwatch.on(str(few.device), cpu_time=self.cpu)
        self.plain = PooledViT(model).eval()
        with torch.inference_mode(), _read_by_the_classifier(model) as self.features:
            self.top1_plain = float(right_of(self.plain, images)[0].mean())
        self._losses: dict[NamedMethod, list[dict[int, float]]] = {}
        self._curves: dict[NamedMethod, dict[float, float]] = {}              # saving -> time

    def build(self, method: NamedMethod, saving: float) -> PooledViT | None:
        """The method with this share of the multiply-adds saved; None where it cannot save as much."""
        pooled = PooledViT(self.model, **method.options).eval().to(self.x.device)
        try:
            if method.fitted:
                if method not in self._losses:
                    self._losses[method] = pooled.losses(self.few)
                pooled.fit_schedule(self._losses[method], saving)
            else:
                pooled.set_schedule(saving=saving)
        except OutOfReach:
            return None
        return pooled

    def at_macs(self, methods: Iterable[NamedMethod], saving: float) -> dict[NamedMethod, Ready]:
        """Those that can save this share of the multiply-adds, timed together."""
        return {method: ready for (method, _), ready in self.timed((m, saving) for m in methods).items()}

    def at_time(self, methods: Sequence[NamedMethod], share: float) -> dict[NamedMethod, Ready]:
        """Those that can take `share` of the plain model's time, within a tenth, timed in turns.

        A machine is not the same a minute later, and its other work affects short calls more than long ones. So the
        curve of a method that misses the wanted time is scaled to what it takes now, and the method is timed again, a
        few times; the try that got nearest counts.
        """
        unknown = [m for m in methods if m not in self._curves]
        for (method, saving), ready in self.timed((m, s) for m in unknown for s in _TIMED_AT).items():
            self._curves.setdefault(method, {})[saving] = ready.time
        wanted = dict.fromkeys(methods, share)
        nearest: dict[NamedMethod, Ready] = {}
        for _ in range(_TRIES):
            savings = {m: read_off(self._curves.get(m, {}), time) for m, time in wanted.items()}
            missed = {}
            for (method, _), ready in self.timed((m, s) for m, s in savings.items() if s is not None).items():
                if method not in nearest or abs(ready.time - share) < abs(nearest[method].time - share):
                    nearest[method] = ready
                if abs(ready.time / share - 1) > _MISSED:
                    missed[method] = min(0.99, wanted[method] * share / ready.time)
            wanted = missed
            if not wanted:
                break
        return {m: ready for m, ready in nearest.items() if abs(ready.time / share - 1) <= _TOO_FAR}

    @torch.inference_mode()
    def timed(self, wanted: Iterable[tuple[NamedMethod, float]]) -> dict[tuple[NamedMethod, float], Ready]:
        """Those of (method, saving) that can be built, timed in turns."""
        built = {each: pooled for each in wanted if (pooled := self.build(*each)) is not None}
        runs = {each: (functools.partial(pooled, self.x), 1) for each, pooled in built.items()}
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.cpu else threads)
        try:
            for run, _ in runs.values():
                run()                                                        # warm up: compilers, caches
            samples = in_turns(self.watch, (functools.partial(self.plain, self.x), 1), runs, self.rounds)
        finally:
            torch.set_num_threads(threads)
        ready = {}
        for each, pooled in built.items():
            low, middle, high = quartiles(samples[each])
            ready[each] = Ready(each[1], pooled, middle, low, high, len(samples[each]))
        return ready

    @torch.inference_mode()
    def columns(self, ready: Ready) -> dict[str, Any]:
        """What is measured of a method, as columns of an Entry."""
        pooled = ready.pooled
        with _read_by_the_classifier(pooled) as features:
            right, _ = right_of(pooled, self.images)
        cosine = torch.cat([nn.functional.cosine_similarity(a.float(), b.float()).cpu()
                            for a, b in zip(features, self.features, strict=True)])
        return dict(method=pooled.pooling.method, init=pooled.pooling.init_name() or "", metric=pooled.metric,
                    position=pooled.position, counts=pooled.carry_counts, **cost_of(pooled), **answers(right),
                    cosine=float(cosine.mean()), top1_plain=self.top1_plain, saving=round(ready.saving, 4),
                    time=ready.time, time_low=ready.time_low, time_high=ready.time_high, rounds=ready.rounds)


def read_off(times: Mapping[float, float], share: float) -> float | None:
    """The saving whose time is `share`, interpolated linearly; None where no time is as short.

    Times are noisy and should fall with the saving: a time above an earlier one counts as equal to it. The curve starts
    at (0, 1), the plain model.

    Args:
        times: saving -> time, as a share of the plain model's.

    >>> read_off({0.2: 0.9, 0.4: 0.7, 0.6: 0.5}, 0.6)
    0.5
    """
    savings = [0.0, *sorted(times)]
    falling = np.minimum.accumulate([1.0, *(times[s] for s in savings[1:])])
    if share < falling[-1]:
        return None
    i = int((falling <= share).argmax())                     # the first that is as short; the one before is longer
    part = (falling[i - 1] - share) / (falling[i - 1] - falling[i])
    return round(float(savings[i - 1] + part * (savings[i] - savings[i - 1])), 4)


@contextmanager
def _read_by_the_classifier(model: Any) -> Iterator[list[Tensor]]:
    """Collects the features that the classifier reads, (B, C) for each batch."""
    head = model.get_classifier()
    found: list[Tensor] = []
    hook = (head[0] if isinstance(head, tuple) else head).register_forward_pre_hook(lambda _, x: found.append(x[0]))
    try:
        yield found
    finally:
        hook.remove()
