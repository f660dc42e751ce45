"""`tokenpool reproduce --peers`: every method side by side without finetuning, at equal cost in two senses.

    entries = measure(model, "pebbles_vit", images, few, Results(path, Entry))

**Equal multiply-adds**: every contender gets the schedule that saves the same share of the plain model's, clustering
counted in. **Equal measured time**: every contender gets the schedule that takes the same share of the plain model's
time on this machine. A method may be cheap on paper and slow, or the reverse; whoever wins both ways has won.

A contender is a method with the options its authors published it with, or ours (published.py). To find equal time,
each is timed in turns with the plain model at a few savings, the saving that takes the wanted time is read off between
them, and what it takes is timed again: that time is the entry's. On a CPU it is the time one thread works, which other
programs change little; elsewhere it is the time one waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenpool.core.schedule import OutOfReach
from tokenpool.data.datasets import Images
from tokenpool.data.weights import fingerprint
from tokenpool.measure.accuracy import Batches, check_wanted, device_name, read_once
from tokenpool.measure.bench import Item, Stopwatch, in_turns, quartiles, waiter
from tokenpool.measure.rows import Results, key_of, pack, provenance, wilson
from tokenpool.models.model_cost import macs
from tokenpool.models.published import NAMED_METHODS, NamedMethod
from tokenpool.models.vit import PooledViT

BUDGETS = (0.3, 0.42, 0.5, 0.6, 0.7, 0.8)
FAIR = {"macs": "equal multiply-adds", "time": "equal measured time"}
_TIMED_AT = (0.15, 0.3, 0.42, 0.5, 0.6, 0.7, 0.8, 0.88)        # savings between which equal time is read off
_ROUNDS = 5
_MISSED = 0.03                # of the wanted time: a contender farther off is given another saving
_TRIES = 5
_TOO_FAR = 0.1                # of the wanted time: who never came nearer has no entry


@dataclass(frozen=True)
class Entry:
    """One contender at one budget, fair in one of two senses, and everything that is needed to repeat it."""

    key: str
    name: str                     # of the contender
    fitted: bool                  # K per block fitted to a few images; else geometric
    fair: str                     # "macs" or "time": what is equal for all at this budget
    budget: float                 # share of it that is saved
    method: str
    init: str
    metric: str
    position: str
    counts: bool
    saving: float                 # share of the multiply-adds that was asked for
    schedule: str
    gmacs: float                  # of one image, clustering included
    gmacs_plain: float
    time: float                   # time over the plain model's, timed in turns: median
    time_low: float               # quartiles over rounds
    time_high: float
    rounds: int
    batch_size: int               # while timing
    top1: float
    top1_low: float               # 95 %, Wilson
    top1_high: float
    cosine: float                 # between the features the classifier reads and the plain model's; mean over images
    images: int
    fitted_on: int                # images without labels
    model: str
    weights: str
    data: str                     # of a folder its last name
    device: str
    clock: str                    # "cpu": time that one thread worked; "wall"
    tokenpool: str
    torch: str
    timm: str
    python: str
    commit: str
    date: str
    right: str                    # which images were right, as bits
    top1_plain: float = 0.0       # of the model with all its tokens

    @property
    def label(self) -> str:
        return NamedMethod(self.name, {}, self.fitted).label


def measure(model: nn.Module, model_name: str, images: Images, few: Tensor, results: Results[Entry],
            budgets: Sequence[float] = BUDGETS, contenders: Sequence[NamedMethod] = NAMED_METHODS, device: str = "cpu",
            rounds: int = _ROUNDS, batch_size: int = 100, tell: Callable[[str, int, int], None] | None = None,
            watch: Stopwatch | None = None) -> list[Entry]:
    """Every contender at every budget in both senses; what `results` holds already is not measured again.

    Args:
        few: (n, 3, H, W) images to fit schedules on. tell: called with (what is going on, done, total).
        batch_size: images at a time while timing, at most.

    A budget that a contender cannot meet gives no entry: its clustering costs more than is saved, or it is too slow.
    """
    check_wanted((), budgets, 1)
    model = model.to(device).eval()
    batches = read_once(images, device)
    lane = _Lane(model, few.to(device), next(iter(batches))[0][:batch_size].to(device), watch, rounds)
    origin = provenance()
    about = dict(model=model_name, weights=fingerprint(model), data=Path(images.name).name, images=images.count,
                 device=device_name(device), clock="cpu" if lane.cpu else "wall", tokenpool=origin["tokenpool"])
    rows = {row.key: row for row in results.rows}
    wanted = [(fair, budget, contender, key_of(**about, fair=fair, budget=budget, name=contender.name,
                                               options=sorted(contender.options.items()), fitted=contender.fitted,
                                               fitted_on=len(few), rounds=rounds, batch=len(lane.x)))
              for budget in budgets for fair in FAIR for contender in contenders]
    truth: list[Tensor] = []
    plain = 0.0
    for index, (fair, budget) in enumerate((f, b) for b in budgets for f in FAIR):
        missing = {c: key for f, b, c, key in wanted if (f, b) == (fair, budget) and key not in rows}
        if tell:
            tell(f"{len(missing)} contenders, saving {budget:.0%}, {FAIR[fair]}", index, len(budgets) * len(FAIR))
        if not missing:
            continue
        if not truth:
            with torch.inference_mode(), _read_by_the_classifier(model) as truth:
                right = [(model(x.to(device)).argmax(1).cpu() == y.cpu()).double() for x, y in batches]
            plain = float(torch.cat(right).mean())
        ready = lane.at_macs(list(missing), budget) if fair == "macs" else lane.at_time(list(missing), 1 - budget)
        for contender, (saving, pooled, (low, middle, high, made)) in ready.items():
            key = missing[contender]
            rows[key] = Entry(
                key=key, name=contender.name, fitted=contender.fitted, fair=fair, budget=budget,
                method=pooled.pooling.method, init=pooled.pooling.init_name() or "", metric=pooled.metric,
                position=pooled.position, counts=pooled.carry_counts, saving=round(saving, 4),
                schedule=" ".join(map(str, pooled.schedule or ())), gmacs=macs(pooled).total / 1e9,
                gmacs_plain=lane.plain_macs / 1e9, time=middle, time_low=low, time_high=high, rounds=made,
                batch_size=len(lane.x), **_answers(pooled, batches, truth),
                fitted_on=len(few) if contender.fitted else 0, top1_plain=plain, **about | origin)
            results.add(rows[key])
    if tell:
        tell("done", len(budgets) * len(FAIR), len(budgets) * len(FAIR))
    return [rows[key] for *_, key in wanted if key in rows]


def comparisons(entries: Iterable[Entry]) -> tuple[list[Entry], ...]:
    """Entries that may stand side by side: of one model, its images and one device. Photographs first."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for e in entries:
        found.setdefault((e.model, e.weights, e.data, e.images, e.device, e.clock, e.batch_size), []).append(e)
    return tuple(found[place] for place in sorted(found, key=lambda place: (place[2] == "pebbles", str(place))))


Times = tuple[float, float, float, int]           # lower quartile, median, upper quartile, rounds
Ready = tuple[float, PooledViT, Times]            # saving, the contender with its schedule, its time


class _Lane:
    """Builds and times the contenders of one model; what takes long is done once a contender."""

    def __init__(self, model: nn.Module, few: Tensor, x: Tensor, watch: Stopwatch | None, rounds: int) -> None:
        self.model, self.few, self.x, self.rounds = model, few, x, rounds
        # on a CPU one thread, and only while it works: what other programs do then changes little
        self.cpu = x.device.type == "cpu"
        self.watch = watch or Stopwatch(waiter(str(x.device)), time.process_time if self.cpu else time.perf_counter)
        self.plain = PooledViT(model).eval()
        self.plain_macs = macs(model).total
        self._losses: dict[NamedMethod, list[dict[int, float]]] = {}
        self._curves: dict[NamedMethod, dict[float, float]] = {}              # saving -> time

    def build(self, contender: NamedMethod, saving: float) -> PooledViT | None:
        """The contender with so many of the multiply-adds saved; None where it cannot save them."""
        pooled = PooledViT(self.model, **contender.options).eval().to(self.x.device)
        try:
            if contender.fitted:
                if contender not in self._losses:
                    self._losses[contender] = pooled.losses(self.few)
                pooled.fit_schedule(self._losses[contender], saving)
            else:
                pooled.set_schedule(saving=saving)
        except OutOfReach:
            return None
        return pooled

    def at_macs(self, contenders: Sequence[NamedMethod], saving: float) -> dict[NamedMethod, Ready]:
        """Those that can save so many of the multiply-adds, timed together."""
        return self._together({c: saving for c in contenders})

    def at_time(self, contenders: Sequence[NamedMethod], share: float) -> dict[NamedMethod, Ready]:
        """Those that can take `share` of the plain model's time, within a tenth, timed in turns.

        A machine is not the same a minute later, and what it does beside weighs on short calls more than on long ones.
        So whoever misses the wanted time has its curve scaled to what it takes now and is timed again, some times over;
        the try that came nearest counts.
        """
        self._measure_curves(contenders)
        wanted = dict.fromkeys(contenders, share)
        nearest: dict[NamedMethod, Ready] = {}
        for _ in range(_TRIES):
            found = {c: read_off(self._curves[c], wanted[c]) for c in wanted}
            ready = self._together({c: saving for c, saving in found.items() if saving is not None})
            miss = {c: times[1] / share for c, (_, _, times) in ready.items()}
            nearest |= {c: r for c, r in ready.items()
                        if c not in nearest or abs(miss[c] - 1) < abs(nearest[c][2][1] / share - 1)}
            wanted = {c: min(0.99, wanted[c] / miss[c]) for c in ready if abs(miss[c] - 1) > _MISSED}
            if not wanted:
                break
        return {c: r for c, r in nearest.items() if abs(r[2][1] / share - 1) <= _TOO_FAR}

    def _measure_curves(self, contenders: Sequence[NamedMethod]) -> None:
        """Time by saving, of all that have no curve yet, in the same rounds."""
        tried = {(c, s): p for c in contenders if c not in self._curves
                 for s in _TIMED_AT if (p := self.build(c, s)) is not None}
        for (contender, saving), (_, middle, _, _) in zip(tried, self.times(list(tried.values())), strict=True):
            self._curves.setdefault(contender, {})[saving] = middle

    def _together(self, savings: Mapping[NamedMethod, float]) -> dict[NamedMethod, Ready]:
        built = {c: (s, p) for c, s in savings.items() if (p := self.build(c, s)) is not None}
        times = self.times([p for _, p in built.values()])
        return {c: (s, p, t) for (c, (s, p)), t in zip(built.items(), times, strict=True)}

    @torch.inference_mode()
    def times(self, systems: Sequence[PooledViT]) -> list[Times]:
        """Time over the plain model's, of each, in turns."""
        runs = {Item(str(i)): (lambda p=p: p(self.x), 1) for i, p in enumerate(systems)}
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.cpu else threads)
        try:
            for run, _ in runs.values():
                run()                                                        # warm up: compilers, caches
            samples = in_turns(self.watch, (lambda: self.plain(self.x), 1), runs, self.rounds)
        finally:
            torch.set_num_threads(threads)
        return [(*quartiles(samples[item]), len(samples[item])) for item in runs]


def read_off(times: Mapping[float, float], share: float) -> float | None:
    """The saving whose time is `share`, straight between those around it; None where no time is as short.

    Times are noisy and should fall with the saving: a time above an earlier one is taken for as long as that one. More
    time than the first saving takes is read off on the line to (0, 1), the plain model.

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
    """Collects what the classifier is given, (B, C) a batch."""
    head = model.get_classifier()
    found: list[Tensor] = []
    hook = (head[0] if isinstance(head, tuple) else head).register_forward_pre_hook(lambda _, x: found.append(x[0]))
    try:
        yield found
    finally:
        hook.remove()


@torch.inference_mode()
def _answers(pooled: PooledViT, batches: Batches, truth: Sequence[Tensor]) -> dict[str, Any]:
    """How often it is right, and how near its features are to `truth`, the plain model's, as columns of an Entry."""
    # what draws, draws anew for every batch, from one generator
    generator = torch.Generator().manual_seed(0) if pooled.draws else None
    device = next(pooled.parameters()).device
    with _read_by_the_classifier(pooled) as features:
        right = torch.cat([pooled(x.to(device), generator).argmax(1).cpu() == y.cpu() for x, y in batches])
    near = torch.cat([nn.functional.cosine_similarity(a.float(), b.float()).cpu()
                      for a, b in zip(features, truth, strict=True)])
    low, high = wilson(int(right.sum()), len(right))
    return dict(top1=float(right.double().mean()), top1_low=low, top1_high=high, cosine=float(near.mean()),
                right=pack(right.numpy()))
