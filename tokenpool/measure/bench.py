"""`tokenpool bench`: is a saving in computations a saving in time? Things are timed in turns with what they replace.

    options = Options(models=("deit_small_patch16_224",))
    timings = run(options, timed.plan(options), Path("results/bench"))

A machine slows down and speeds up while it is measured, by more than what is to be seen. So every item is timed between
two runs of its baseline, in rounds of random order, and only the ratio is kept: median and quartiles over rounds. What
the items are is in `workloads.py`; here is how they are timed, and how a stopped run goes on.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenpool.core import kernels
from tokenpool.core.checks import one_of
from tokenpool.core.methods import METHODS
from tokenpool.data.files import replace_file
from tokenpool.measure import memory
from tokenpool.measure.accuracy import device_name
from tokenpool.measure.options import option
from tokenpool.measure.rows import Results, Timing, key_of, provenance
from tokenpool.models.published import NAMED

Run = Callable[[], object]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNFINISHED = "unfinished.csv"
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
        for saving in self.savings:
            if not 0 < saving < 1:
                raise ValueError(f"A saving of {saving} is not a share of the computations. "
                                 "Use numbers between 0 and 1, such as 0.42.")
        if self.cpu_time and (torch.device(self.device).type != "cpu" or torch.get_num_threads() > 1):
            raise ValueError("CPU time says how long one thread worked; with several, or a GPU, it is not the time one "
                             "waits. Add --threads 1 --device cpu, or leave out --cpu-time.")
        if self.rounds < 1:
            raise ValueError(f"{self.rounds} rounds measure nothing. Use 1 or more; quartiles want 5.")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"{self.seconds:g} seconds measure nothing. Use --seconds 240, or --full for no limit.")

    @property
    def chosen_kernel(self) -> dict[str, str]:
        """As options of Pooling and PooledViT."""
        return {"kernel": self.kernel} if self.kernel else {}


@dataclass(frozen=True)
class Item:
    """What one row is about, beside its group."""

    name: str
    init: str = ""
    counts: bool = False
    saving: float = 0.0
    kept: int = 0


@dataclass(frozen=True)
class Built:
    """A group made ready: functions to time, and each one's multiply-adds over the baseline's."""

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
    weight: float                                 # multiply-adds of a round: its part of the time there is

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
    """Seconds a call takes by `clock`, the device's queue emptied before and after; `wall` is for time budgets."""

    wait: Callable[[], object] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    wall: Callable[[], float] = time.perf_counter

    def time(self, run: Run, calls: int = 1) -> float:
        self.wait()
        started = self.clock()
        for _ in range(calls):
            run()
        self.wait()
        return (self.clock() - started) / calls


def in_turns(watch: Stopwatch, baseline: tuple[Run, int], items: Mapping[Item, tuple[Run, int]], rounds: int,
             seconds: float = math.inf, seed: int = 0, lost: Callable[[Item, BaseException], None] | None = None
             ) -> dict[Item, list[Sample]]:
    """Samples of every item, at most one a round: baseline, item, baseline, item, ..., baseline.

    Args:
        baseline, items: what to run, and how many calls make a sample.
        seconds: a round is not begun when the longest one so far would not end within them. One is always made.
        lost: called when an item runs out of memory, which ends its turns. None: the error is raised.
    """
    order = random.Random(seed)
    samples: dict[Item, list[Sample]] = {item: [] for item in items}
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
                if lost is None or not memory.ran_out(error):
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

def run(options: Options, groups: Sequence[Group], folder: Path,
        tell: Callable[[str, int, int], None] | None = None) -> list[Timing]:
    """Time everything into `folder`, which holds one run.

    While it goes on, rows are in unfinished.csv, and a stopped run goes on from there. When it ends they become
    bench.csv, in place of an earlier run's, and the next call times everything anew.
    """
    store = Results(folder / UNFINISHED, Timing)
    rows = measure(options, groups, store, tell)
    with replace_file(folder / "bench.csv") as temporary:
        finished = Results(temporary, Timing)
        for row in rows:
            finished.add(row)
    store.path.unlink()
    return rows


def unfinished(folder: Path) -> int:
    """Rows that a stopped run has left in a folder."""
    path = folder / UNFINISHED
    return len(Results(path, Timing).rows) if path.exists() else 0


def measure(options: Options, groups: Sequence[Group], store: Results[Timing],
            tell: Callable[[str, int, int], None] | None = None, watch: Stopwatch | None = None) -> list[Timing]:
    """Time what is not in the store yet; returns the rows of all items, in the order of the plan.

    Args:
        tell: called with (what is going on, groups done, groups in all).

    The rows of a group are stored when its last round is over, so a stopped run loses one group at most. With a time
    budget every group gets its part of what is left, by the multiply-adds of a round.
    """
    watch = watch or Stopwatch(waiter(options.device), time.process_time if options.cpu_time else time.perf_counter)
    started = watch.wall()
    origin = provenance()
    rows = {row.key: row for row in store.rows}
    keys: list[str] = []
    for index, group in enumerate(groups):
        if tell:
            tell(str(group), index, len(groups))
        fixed = dict(part=group.part, baseline=group.baseline, model=group.model, tokens=group.tokens,
                     batch_size=group.batch_size, dtype=group.dtype, compiled=options.compiled,
                     kernel=options.kernel or "auto", device=device_name(options.device),
                     threads=torch.get_num_threads(), clock="cpu" if options.cpu_time else "wall")
        same_code = {k: origin[k] for k in ("tokenpool", "torch", "timm", "commit")}
        key = {item: key_of(**fixed, **vars(item), **same_code, rounds=options.rounds) for item in group.items}
        keys += key.values()
        if all(k in rows for k in key.values()):
            continue
        left = math.inf if options.seconds is None else options.seconds - (watch.wall() - started)
        allowance = left * group.weight / sum(g.weight for g in groups[index:])
        for item, found in measure_group(group, options, allowance, watch).items():
            row = Timing(key=key[item], **fixed, **vars(item), **found, **origin)
            rows[row.key] = row
            store.add(row)
    if tell:
        tell("done", len(groups), len(groups))
    return [rows[k] for k in keys]


def measure_group(group: Group, options: Options, seconds: float, watch: Stopwatch) -> dict[Item, dict[str, Any]]:
    """What was found out about each item, as columns of a Timing."""
    empty = dict(share=0.0, ratio=0.0, ratio_low=0.0, ratio_high=0.0, seconds=0.0, baseline_seconds=0.0, rounds=0,
                 peak_mib=0.0, baseline_peak_mib=0.0)
    too_late = f"not reached in {options.seconds:g} s" if options.seconds else ""
    if seconds <= 0:
        return {item: empty | {"note": too_late} for item in group.items}
    notes: dict[Item, str] = {}

    def lost(item: Item, error: BaseException) -> None:
        notes[item] = f"out of memory ({_first_line(error)})"
        _tidy(options.device)

    started = watch.wall()
    with memory.bounded(options.device):
        try:
            built = group.build(group, options)
            plain, plain_peak = _ready(built.baseline, options.device, watch)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            _tidy(options.device)
            return {item: empty | {"note": f"the {group.baseline} ran out of memory ({_first_line(error)})"}
                    for item in group.items}
        ready: dict[Item, tuple[Run, int]] = {}
        peaks: dict[Item, float] = {}
        for item, run in built.items.items():
            if watch.wall() - started > seconds / 2 and ready:      # the rest of the time is for the rounds
                notes[item] = too_late
                continue
            try:
                calls, peaks[item] = _ready(run, options.device, watch)
                ready[item] = run, calls
            except Exception as error:
                if not memory.ran_out(error):
                    raise
                lost(item, error)
        samples = in_turns(watch, (built.baseline, plain), ready, options.rounds,
                           seconds - (watch.wall() - started), options.seed, lost)
    found = {}
    for item in group.items:
        share = built.shares.get(item, 0.0)
        mine = samples.get(item, [])
        if not mine:
            note = notes.get(item) or built.notes.get(item) or too_late
            found[item] = empty | dict(share=share, baseline_peak_mib=plain_peak, note=note)
            continue
        low, middle, high = quartiles(mine)
        found[item] = dict(
            share=share, ratio=middle, ratio_low=low, ratio_high=high,
            seconds=statistics.median(s.item for s in mine),
            baseline_seconds=statistics.median(s.baseline for s in mine), rounds=len(mine), peak_mib=peaks[item],
            baseline_peak_mib=plain_peak, note="")
    _tidy(options.device)
    return found


def _ready(run: Run, device: str, watch: Stopwatch) -> tuple[int, float]:
    """Warm up (compilers, caches), then: how many calls make a sample, and the peak memory of one in MiB."""
    watch.time(run)
    peaks: list[float] = []
    took = watch.time(lambda: peaks.append(memory.peak(run, device)))
    if took < 10 * _SHORTEST:                     # the peak's bookkeeping would count
        took = watch.time(run)
    return min(_MOST_CALLS, max(1, math.ceil(_SHORTEST / max(took, 1e-6)))), peaks[0]


def _tidy(device: str) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def waiter(device: str) -> Callable[[], object]:
    """What empties the device's queue, so that a clock sees the end of the work."""
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if kind == "mps" else lambda: None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
