"""tokenpool bench"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenpool.cli.common import _check_device
from tokenpool.cli.show import _print_lines, _progress


def _bench_options(one: argparse.ArgumentParser) -> None:
    from tokenpool.core.kernels import KERNELS
    from tokenpool.measure.bench import DTYPES, Options
    extent = one.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="one model, few methods: about a minute")
    extent.add_argument("--full", action="store_true", help="every method, start, batch and budget; no time limit")
    one.add_argument("--growth", action="store_true", help="up to 4,096 tokens, and the memory there (minutes more)")
    one.add_argument("--train", action="store_true", help="training steps of all models; default: of the first")
    one.add_argument("--model", nargs="+", default=list(Options.models), metavar="NAME",
                     help=f"timm ViTs, with random weights; default: {' '.join(Options.models)}")
    one.add_argument("--method", nargs="+", default=[], metavar="NAME",
                     help="only these methods, or contenders of reproduce --peers, such as tokenpool")
    one.add_argument("--saving", nargs="+", type=float, default=[], metavar="SHARE",
                     help="of the computations; default: 0.42, and for a curve 0.2 and 0.6")
    one.add_argument("--batch", nargs="+", type=int, metavar="N",
                     help="images at a time; default: 1 8, with --full 1 16 64 256")
    one.add_argument("--dtype", nargs="+", default=["float32"], metavar="NAME",
                     help=f"{', '.join(DTYPES)}; default: float32")
    one.add_argument("--kernel", default="", metavar="NAME", help=f"{', '.join(KERNELS)}; default: PooledViT's choice")
    one.add_argument("--compile", action="store_true", help="whole models through torch.compile, the plain one too")
    one.add_argument("--device", default="cpu", help="cpu, cuda, mps; default: cpu")
    one.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: all cores")
    one.add_argument("--cpu-time", action="store_true", help="count this process only, on a busy machine; one thread")
    one.add_argument("--rounds", type=int, default=Options.rounds, metavar="N", help=f"default: {Options.rounds}")
    one.add_argument("--seconds", type=float, metavar="S",
                     help=f"a limit for all of it; default: {Options.seconds:g}, none with --full or --growth")
    one.add_argument("--out", type=Path, default=Path("results/bench"), metavar="FOLDER", help="default: results/bench")


def _bench(args: argparse.Namespace) -> None:
    import torch

    from tokenpool.measure import bench, workloads
    from tokenpool.report import speed_page
    _check_device(args.device)
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads {args.threads}: use 1 or more.")
        torch.set_num_threads(args.threads)
    extent = "full" if args.full else "quick" if args.quick else "default"
    unlimited = args.full or args.growth
    seconds = args.seconds if args.seconds is not None else None if unlimited else bench.Options.seconds
    options = bench.Options(
        tuple(args.model), tuple(args.method), tuple(args.saving),
        tuple(args.batch or ((1, 16, 64, 256) if args.full else bench.Options.batches)), tuple(args.dtype), args.device,
        args.compile, args.train, args.growth, extent, args.rounds, seconds, args.kernel, args.cpu_time)
    groups = workloads.plan(options)
    print(f"{sum(len(g.items) for g in groups)} timings in {len(groups)} groups"
          + (f", within {seconds / 60:.1f} minutes" if seconds else ""))
    kept = bench.unfinished(args.out)
    if kept:
        print(f"Going on with a stopped run; {kept} timings are there. To begin anew, remove "
              f"{args.out / bench.UNFINISHED}.")
    with _progress() as bar:
        task = bar.add_task("", total=len(groups))
        rows = bench.run(options, groups, args.out,
                         lambda what, done, total: bar.update(task, completed=done, description=what))
    page = args.out / "index.html"
    speed_page.write_page(page, rows)
    for table in speed_page.tables(rows):
        _print_lines(table)
    print(f"\n{speed_page.EFFICIENCY}\n{speed_page.line_of(rows[0])}.\n\nrows   {args.out / 'bench.csv'}\n"
          f"page   {page}   (open it in a browser)")
