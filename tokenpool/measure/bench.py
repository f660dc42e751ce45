"""`tokenpool bench`: is a saving in computations a saving in time? Things are timed in turns with what they replace.

    options = Options(models=("deit_small_patch16_224",))
    timings = run(options, workloads.plan(options), Path("results/bench"))

A machine changes its speed while it is measured, by more than the differences of interest. So every item is timed
between two runs of its baseline, in rounds of random order, and only the ratio is kept: median and quartiles over
rounds. `workloads.py` has the items; this file times them.
"""

from __future__ import annotations

import functools
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch

from tokenpool.core import kernels
from tokenpool.core.checks import one_of
from tokenpool.core.methods import METHODS
from tokenpool.measure import memory
from tokenpool.measure.accuracy import check_wanted
from tokenpool.measure.options import option
from tokenpool.measure.rows import Results, Timing, device_name, key_of, read, write
from tokenpool.measure.sweep import Task, Tell, sweep
from tokenpool.models.published import NAMED

Run = Callable[[], object]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNFINISHED = "unfinished.csv"
K = TypeVar("K", bound=Hashable)
_SHORTEST = 0.01          # seconds: a call that takes less is repeated until a sample takes about as long
_MOST_CALLS = 50


@dataclass(frozen=True)
class Options:
    """What to time."""

    models: tuple[str, ...] = option(("deit_tiny_patch16_224", "deit_small_patch16_224"),
                                     "timm ViTs, with random weights", flag="--model")
    methods: tuple[str, ...] = option((), "only these methods, or published ones such as tokenpool; default: all as "
                                      "operators, some as whole models", flag="--method")
    savings: tuple[float, ...] = option((), "of the computations; default: 0.42, and for a curve 0.2 and 0.6 of the "
                                        "first model", "SHARE", flag="--saving", share=True)
    batches: tuple[int, ...] = (1, 16)
    dtypes: tuple[str, ...] = option(("float32",), f"of weights, images and tokens: {', '.join(DTYPES)}",
                                     flag="--dtype")
    device: str = option("cpu", "cpu, cuda or mps", device=True)
    compiled: bool = option(False, "whole models through torch.compile, the plain one too", flag="--compile")
    train: bool = option(False, "training steps of all models; default: of the first")
    growth: bool = option(False, "up to 4,096 tokens, and the memory there (minutes more)")
    extent: str = "default"                       # "quick", "default" or "full"
    rounds: int = option(7, "of the timing", "N")
    seconds: float | None = 240.0                 # ends in time on two cores; None: as long as it takes
    kernel: str = option("", f"{', '.join(kernels.KERNELS)}; default: PooledViT's own choice")
    cpu_time: bool = False                        # for a busy machine: counts this process only; wants one thread
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            one_of("method", method, (*METHODS, *NAMED), "See tokenpool.method_names() and tokenpool.models.published.")
        for dtype in self.dtypes:
            one_of("dtype", dtype, DTYPES, "")
        if self.kernel:
            one_of("kernel", self.kernel, kernels.KERNELS, "")
            kernels.pick(self.kernel, torch.device(self.device))
        for batch in self.batches:
            if batch < 1:
                raise ValueError(f"A batch of {batch} images cannot be timed. Use whole numbers from 1, such as 16.")
        check_wanted((), self.savings, 1)
        if self.cpu_time and (torch.device(self.device).type != "cpu" or torch.get_num_threads() > 1):
            raise ValueError("CPU time is the time that one thread works, which says little with several threads or a "
                             "GPU. Add --threads 1 --device cpu, or leave out --cpu-time.")
        if self.rounds < 1:
            raise ValueError(f"{self.rounds} rounds measure nothing. Use 1 or more; quartiles need 5.")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"{self.seconds:g} seconds measure nothing. Use --seconds 240, or --full for no limit.")

    @property
    def chosen_kernel(self) -> dict[str, str]:
        """As options of Pooling and PooledViT."""
        return {"kernel": self.kernel} if self.kernel else {}


@dataclass(frozen=True)
class Item:
    """What one row is about, within its group."""

    name: str
    init: str = ""
    counts: bool = False
    saving: float = 0.0
    kept: int = 0


@dataclass(frozen=True)
class Built:
    """A group, ready to run: functions to time, and each one's multiply-adds over the baseline's."""

    baseline: Run
    items: Mapping[Item, Run]
    shares: Mapping[Item, float]
    notes: Mapping[Item, str]                     # items that cannot be made, and why


@dataclass(frozen=True)
class Group:
    """Items that share a baseline."""

    part: str
    model: str
    batch_size: int
    dtype: str
    tokens: int                                   # N
    baseline: str
    items: tuple[Item, ...]
    build: Callable[[Group, Options], Built]
    weight: float                                 # multiply-adds of a round, by which the time is shared out

    def __str__(self) -> str:
        return f"{self.part}, {self.model}, {self.tokens} tokens, batch {self.batch_size}, {self.dtype}"


# ---- timing in turns ----

@dataclass(frozen=True)
class Sample:
    """One turn, in seconds per call."""

    item: float
    baseline: float                               # mean of the runs just before and just after

    @property
    def ratio(self) -> float:
        return self.item / self.baseline


@dataclass(frozen=True)
class Stopwatch:
    """Seconds a call takes by `clock`; `wait` empties the device's queue. `wall` is for time budgets."""

    wait: Callable[[], object] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    wall: Callable[[], float] = time.perf_counter

    @classmethod
    def on(cls, device: str, cpu_time: bool = False) -> Stopwatch:
        """For a device; `cpu_time` counts only while this process works."""
        kind = torch.device(device).type
        wait = {"cuda": lambda: torch.cuda.synchronize(device), "mps": torch.mps.synchronize}.get(kind, cls.wait)
        return cls(wait, time.process_time if cpu_time else time.perf_counter)

    def time(self, run: Run, calls: int = 1) -> float:
        self.wait()
        started = self.clock()
        for _ in range(calls):
            run()
        self.wait()
        return (self.clock() - started) / calls


def in_turns(watch: Stopwatch, baseline: tuple[Run, int], items: Mapping[K, tuple[Run, int]], rounds: int,
             seconds: float = math.inf, seed: int = 0, lost: Callable[[K, Exception], None] | None = None
             ) -> dict[K, list[Sample]]:
    """Samples of every item, at most one a round: baseline, item, baseline, item, ..., baseline.

    Args:
        baseline, items: what to run, and how many calls make a sample.
        seconds: no round starts that would not end in time if it took as long as the longest so far. There is always
            one round.
        lost: called with an item's error, which ends its turns; None: the error is raised.
    """
    order = random.Random(seed)
    samples: dict[K, list[Sample]] = {item: [] for item in items}
    started, longest = watch.wall(), 0.0
    for index in range(rounds):
        begun = watch.wall()
        if index and begun - started + longest > seconds:
            break
        before = watch.time(*baseline)
        for item in order.sample(list(samples), len(samples)):
            try:
                took = watch.time(*items[item])
            except Exception as error:
                if lost is None:
                    raise
                lost(item, error)
                del samples[item]
                continue
            after = watch.time(*baseline)
            samples[item].append(Sample(took, (before + after) / 2))
            before = after
        longest = max(longest, watch.wall() - begun)
    return samples


def quartiles(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios.

    >>> quartiles([Sample(r, 1.0) for r in (1.0, 2.0, 3.0, 4.0, 5.0)])
    (2.0, 3.0, 4.0)
    """
    ratios = [s.ratio for s in samples]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


# ---- measuring groups ----

def run(options: Options, groups: Sequence[Group], folder: Path, tell: Tell | None = None) -> list[Timing]:
    """Time everything into `folder`, which holds one run.

    Until it is finished its rows are in unfinished.csv, where a stopped run resumes. Then they replace bench.csv, and
    the next call times everything again.
    """
    results = Results(folder / UNFINISHED, Timing)
    rows = measure(options, groups, results, tell)
    write(folder / "bench.csv", rows, Timing)
    results.path.unlink(missing_ok=True)
    return rows


def unfinished(folder: Path) -> int:
    """Number of rows that a stopped run has left in a folder."""
    path = folder / UNFINISHED
    return len(read(path, Timing)) if path.exists() else 0


def measure(options: Options, groups: Sequence[Group], results: Results[Timing], tell: Tell | None = None,
            watch: Stopwatch | None = None) -> list[Timing]:
    """Time what is missing; returns the rows of all items, in the order of the plan.

    The rows of a group are added after its last round, so a stopped run loses one group at most. With a time budget
    every group gets its part of what is left, by the multiply-adds of a round.
    """
    clock = watch or Stopwatch.on(options.device, options.cpu_time)
    started = clock.wall()

    def measure_one(index: int, columns: dict[str, Any], missing: Mapping[str, Item]
                    ) -> Iterator[tuple[str, dict[str, Any]]]:
        left = math.inf if options.seconds is None else options.seconds - (clock.wall() - started)
        allowance = left * groups[index].weight / sum(g.weight for g in groups[index:])
        group = replace(groups[index], items=tuple(missing.values()))
        found = measure_group(group, options, allowance, clock)
        for key, item in missing.items():
            yield key, columns | vars(item) | found[item]

    tasks = []
    for index, group in enumerate(groups):
        columns = dict(part=group.part, baseline=group.baseline, model=group.model, tokens=group.tokens,
                       batch_size=group.batch_size, dtype=group.dtype, compiled=options.compiled,
                       kernel=options.kernel or "auto", clock="cpu" if options.cpu_time else "wall")
        decides = columns | dict(device=device_name(options.device), threads=torch.get_num_threads(),
                                 torch=torch.__version__, timm=timm.__version__, rounds=options.rounds)
        tasks.append(Task(str(group), {key_of(**decides, **vars(item)): item for item in group.items},
                          functools.partial(measure_one, index, columns)))
    return sweep(tasks, results, options.device, tell)


def measure_group(group: Group, options: Options, seconds: float, watch: Stopwatch) -> dict[Item, dict[str, Any]]:
    """What was measured of each item, as columns of a Timing."""
    too_late = f"not reached in {options.seconds:g} s" if options.seconds else ""
    notes = dict.fromkeys(group.items, too_late)

    def lost(item: Item, error: Exception) -> None:
        notes[item] = f"out of memory ({_no_memory(error, options.device)})"

    if seconds <= 0:
        return {item: dict(note=too_late) for item in group.items}
    started = watch.wall()
    with memory.bounded(options.device):
        try:
            built = group.build(group, options)
            plain, plain_peak = _ready(built.baseline, options.device, watch)
        except Exception as error:
            why = f"the {group.baseline} ran out of memory ({_no_memory(error, options.device)})"
            return {item: dict(note=why) for item in group.items}
        notes |= built.notes
        ready: dict[Item, tuple[Run, int]] = {}
        peaks: dict[Item, float] = {}
        for item in (item for item in group.items if item in built.items):
            if ready and watch.wall() - started > seconds / 2:      # the rest of the time is for the rounds
                break
            try:
                calls, peaks[item] = _ready(built.items[item], options.device, watch)
                ready[item] = built.items[item], calls
            except Exception as error:
                lost(item, error)
        samples = in_turns(watch, (built.baseline, plain), ready, options.rounds,
                           seconds - (watch.wall() - started), options.seed, lost)
    _tidy(options.device)
    found = {}
    for item in group.items:
        found[item] = dict(share=built.shares.get(item, 0.0), baseline_peak_mib=plain_peak)
        mine = samples.get(item)
        if not mine:
            found[item]["note"] = notes[item]
            continue
        low, middle, high = quartiles(mine)
        found[item] |= dict(ratio=middle, ratio_low=low, ratio_high=high, rounds=len(mine), peak_mib=peaks[item],
                            seconds=statistics.median(s.item for s in mine),
                            baseline_seconds=statistics.median(s.baseline for s in mine))
    return found


def _ready(run: Run, device: str, watch: Stopwatch) -> tuple[int, float]:
    """Warms up (compilers, caches); returns how many calls make a sample, and the peak memory of one in MiB."""
    watch.time(run)
    peaks: list[float] = []
    took = watch.time(lambda: peaks.append(memory.peak(run, device)))
    if took < 10 * _SHORTEST:                     # measuring the peak would count
        took = watch.time(run)
    return min(_MOST_CALLS, max(1, math.ceil(_SHORTEST / max(took, 1e-6)))), peaks[0]


def _no_memory(error: Exception, device: str) -> str:
    """What an error says about memory, after freeing some; any other error is raised."""
    if not memory.ran_out(error):
        raise error
    _tidy(device)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _tidy(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
