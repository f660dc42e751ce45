"""Everything is timed in turns with what it replaces: the score, the pooling, whole models, the plain model with fused
attention. Prints tables and writes a CSV file and a page. A stopped run resumes; a finished one starts over.

    tokenpool bench --device cuda --dtype bfloat16 --batch 1 64 256 --full
    tokenpool bench --growth                 up to 4,096 tokens, fitted exponents, memory; no time limit
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tokenpool.cli import show
from tokenpool.measure import bench, workloads
from tokenpool.measure.options import option
from tokenpool.report import speed_page


@dataclass(frozen=True)
class Options:
    """What has no field in bench.Options, and what depends on the rest."""

    quick: bool = option(False, "one model, few methods: about a minute")
    full: bool = option(False, "every method, init, batch size and saving; no time limit")
    batch: tuple[int, ...] = option((), "images at a time; default: 1 16, with --full 1 16 64 256", "N")
    seconds: float | None = option(None, f"limit for all of it; default: {bench.Options.seconds:g}, none with --full "
                                   "or --growth", "S")
    threads: int | None = option(None, "of the CPU; default: all cores", "N")
    cpu_time: bool = option(False, "count this process only, for a busy machine; needs --threads 1")
    out: Path = option(Path("results/bench"), "where the results go", "FOLDER")


def run(own: Options, options: bench.Options) -> None:
    if own.quick and own.full:
        raise ValueError("--quick and --full exclude each other. Leave one of them out.")
    if own.threads:
        torch.set_num_threads(own.threads)
    limit = own.seconds or (None if own.full or options.growth else bench.Options.seconds)
    options = replace(options, extent="quick" if own.quick else "full" if own.full else "default", seconds=limit,
                      batches=own.batch or ((1, 16, 64, 256) if own.full else bench.Options.batches),
                      cpu_time=own.cpu_time)
    groups = workloads.plan(options)
    print(f"{sum(len(g.items) for g in groups)} timings in {len(groups)} groups"
          + (f", within {limit / 60:.1f} minutes" if limit else ""))
    if kept := bench.unfinished(own.out):
        print(f"Resuming a stopped run with {kept} timings. To start over, remove {own.out / bench.UNFINISHED}.")
    with show.progress(len(groups)) as tell:
        rows = bench.run(options, groups, own.out, tell)
    page = own.out / "index.html"
    speed_page.write_page(page, rows)
    for table in speed_page.tables(rows):
        print(f"\n{table.title}\n")
        show.table(table.head, table.lines)
    print(f"\n{speed_page.EFFICIENCY}\n{speed_page.line_of(rows[0])}.")
    show.written(page, own.out / "bench.csv")
