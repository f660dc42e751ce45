"""`tokenpool`: the command line. Every mistake is answered in one sentence and an exit code, never with a traceback."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenpool.cli import probe, weights
from tokenpool.train import Stop

_EPILOG = """examples:
  tokenpool reproduce                              every method at six budgets, a few minutes on two cores
  tokenpool reproduce --figure 6 --seeds 10        only the start study, more seeds
  tokenpool reproduce --method top_k wk_medoids --budget 0.42
  tokenpool reproduce --peers                      ToMe, ATC, EViT, ... and ours, at equal cost and equal time
  tokenpool macs deit_small_patch16_224 --saving 0.42
  tokenpool dense                                  pooled tokens back on the grid: mean IoU against computations
  tokenpool train --preset pebbles                 make the shipped weights again
  tokenpool protocol                               search K and finetune every method on pebbles, then the board
  tokenpool plan fig3 --preset imagenet50          the runs of a figure, one command a line
  tokenpool report                                 the board of everything measured so far
  tokenpool bench                                  is the saving in computations a saving in time? four minutes
  tokenpool weights vits14                         a ViT-S/14 for 224 px photographs, without a model hub
  tokenpool probe --model vits14 --data FOLDER --out mine      a classifier for your own images
  tokenpool export pebbles_vit --saving 0.42 --out model.onnx
  tokenpool explore                                the course's explorers in the browser, without code

Stopped runs go on where they were: type the same command again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to mend, 130 stopped by Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("timm", "httpx", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        print("\ntokenpool: stopped. What was finished is saved; the same command goes on from there.", file=sys.stderr)
        return 130
    except (Stop, ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        if args.traceback:
            raise
        print(f"tokenpool: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space and type the same command again; what was finished is saved."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}. Check the path, or give another folder with --out."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, RuntimeError):
        return f"{lines[0]} (add --traceback to see where)"
    return " ".join(lines)


def _parser() -> argparse.ArgumentParser:
    from tokenpool import __version__
    parser = argparse.ArgumentParser(
        prog="tokenpool", description="Token Pooling in Vision Transformers: fewer tokens, measured.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"tokenpool {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error happened")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("reproduce", help="measure every method without finetuning; table, CSV and page",
                              description="Measure the paper's methods without finetuning (Fig. 5a, 5b, 6, 9).")
    run.add_argument("--figure", nargs="+", metavar="FIG",
                     help="5a, 5b, 6, 9, or peers for what came later; default: the paper's")
    run.add_argument("--peers", action="store_true",
                     help="all methods side by side, at equal computations and at equal measured time")
    run.add_argument("--method", nargs="+", metavar="NAME", help="only these methods; default: all of the figures")
    run.add_argument("--budget", nargs="+", type=float, metavar="SHARE",
                     help="shares of the computations to save; default: 0.2 0.3 0.42 0.5 0.6 0.7, "
                          "with --peers 0.3 to 0.8")
    run.add_argument("--model", default="pebbles_vit",
                     help="any timm ViT, or PRESET/MODEL, such as imagenet50_cpu/ti; default: the model that ships")
    run.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, .safetensors or .pth")
    run.add_argument("--pretrained", action="store_true", help="timm's public weights")
    run.add_argument("--image-size", type=int, metavar="PX", help="positions are resampled; default: the model's own")
    run.add_argument("--data", default="pebbles", metavar="NAME",
                     help="pebbles, a folder (Parquet, or one folder a class), or a timm name; default: pebbles")
    run.add_argument("--split", default="validation", help="of the data; default: validation")
    run.add_argument("--download", action="store_true", help="let torch/ data sets download themselves")
    run.add_argument("--images", "--pictures", type=int, metavar="N", 
                     help="how many; default: 600 of pebbles, all of others")
    run.add_argument("--seeds", type=int, default=5, metavar="N", help="for what draws at random; default: 5")
    run.add_argument("--device", default="cpu", help="cpu, cuda, mps; default: cpu")
    run.add_argument("--out", type=Path, default=Path("results/reproduce"), metavar="FOLDER",
                     help="default: results/reproduce")
    run.set_defaults(run=_reproduce)

    cost = commands.add_parser("macs", help="count a model's multiply-accumulates, plain and pooled")
    cost.add_argument("model", help="a timm ViT, such as deit_small_patch16_224")
    cost.add_argument("--saving", type=float, metavar="SHARE", help="share of the computations to save")
    cost.add_argument("--method", default="wk_medoids")
    cost.add_argument("--image-size", type=int, metavar="PX", help="default: the model's own")
    cost.set_defaults(run=_macs)

    maps = commands.add_parser("dense", help="what lies where, from pooled tokens: mean IoU against computations",
                               description="Put pooled tokens back on the grid and segment pebbles with a linear "
                                           "probe; table, CSV and page.")
    maps.add_argument("--method", nargs="+", metavar="NAME",
                      help="default: chance, a score, the grid, K-Medoids; and tokenpool, ToMe, ATC, EViT")
    maps.add_argument("--budget", nargs="+", type=float, metavar="SHARE",
                      help="shares of the computations to save; default: 0.2 0.42 0.6")
    maps.add_argument("--truth", default="regions", metavar="KIND",
                      help="regions (ground, large and small pebble) or materials; default: regions")
    maps.add_argument("--checkpoint", type=Path, metavar="FILE", help="other weights of pebbles_vit, such as finetuned")
    maps.add_argument("--train-images", "--train-pictures", type=int, default=300, metavar="N", help="to fit the probe on; default: 300")
    maps.add_argument("--images", "--pictures", type=int, default=300, metavar="N", help="to measure on; default: 300")
    maps.add_argument("--seeds", type=int, default=3, metavar="N", help="for what draws at random; default: 3")
    maps.add_argument("--out", type=Path, default=Path("results/dense"), metavar="FOLDER",
                      help="default: results/dense")
    maps.set_defaults(run=_dense)

    for step, story in (("train", "step 1: train a base model"),
                        ("search", "step 2: learn how many tokens to keep after each block"),
                        ("finetune", "step 3: train on with the pooling in")):
        one = commands.add_parser(step, help=story, description=f"The paper's {story}.")
        _job_options(one, step)
        one.set_defaults(run=_job, step={"train": "base"}.get(step, step))

    grid = commands.add_parser("plan", help="the runs of a figure, one command a line, for any scheduler",
                               description="Print the commands of one or more figures, in an order that works.")
    _plan_options(grid)
    grid.add_argument("--step", choices=("base", "search", "finetune"), help="only this step")
    grid.set_defaults(run=_plan)

    whole = commands.add_parser("protocol", help="run a plan on this machine, then write the board",
                                description="Run all runs of a plan that are not finished yet; then the board.")
    _plan_options(whole)
    whole.add_argument("--jobs", type=int, metavar="N", help="at a time; default: one per core, or one on a GPU")
    whole.add_argument("--data", metavar="NAME", help="another place of the preset's data")
    whole.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    whole.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")
    whole.set_defaults(run=_protocol)

    board = commands.add_parser("report", help="all rows -> the board: one page, a panel per figure, verdicts",
                                description="Read rows from files and folders and write one self-contained page.")
    board.add_argument("sources", nargs="*", type=Path, metavar="PATH",
                       help="CSV files, or folders of runs; default: what ships and results/")
    board.add_argument("--page", type=Path, default=Path("results/board.html"), help="default: results/board.html")
    board.add_argument("--collect", type=Path, metavar="FOLDER",
                       help="also write all rows and run cards there, one pair of files a preset")
    board.set_defaults(run=_report)

    speed = commands.add_parser("bench", help="time score, pooling and whole models beside the plain model",
                                description="Is the saving in computations a saving in time? Everything is timed in "
                                            "turns with what it replaces; a stopped run goes on where it was, a "
                                            "finished one is done anew.")
    _bench_options(speed)
    speed.set_defaults(run=_bench)

    file = commands.add_parser("export", help="write a pooled model as ONNX or torch.export, compared with PyTorch",
                               description="Write a pooled model as one file and compare it with PyTorch: answers on "
                                           "several batch sizes, and time in turns.")
    _export_options(file)
    file.set_defaults(run=_export)

    weights.add(commands)
    probe.add(commands)

    page = commands.add_parser("explore", help="the explorers of the course as a page without code, in the browser",
                               description="Serve the explorers of the course as a page without code, to this machine "
                                           "only. Ctrl-C ends it.")
    page.add_argument("which", nargs="?", default="all", metavar="NOTEBOOK",
                      help="00 to 08 shows one (05: K per layer); default: all, to choose from")
    page.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    page.add_argument("--address", default="127.0.0.1", metavar="IP",
                      help="0.0.0.0 lets other machines in, with a token; default: 127.0.0.1, this machine only")
    page.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    page.set_defaults(run=_explore)
    return parser


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


def _print_lines(table) -> None:
    from rich.console import Console
    from rich.table import Table
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for index, name in enumerate(table.head):
        wraps = not index or "quartiles" in name          # words: a method's, or why there is no number
        shown.add_column(name, justify="right" if index else "left", no_wrap=not wraps)
    for line in table.lines:
        shown.add_row(*line)
    print(f"\n{table.title}\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown)


def _export_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("model", help="pebbles_vit, any timm ViT, local-dir:FOLDER")
    one.add_argument("--out", type=Path, required=True, metavar="FILE",
                     help="model.onnx (ONNX) or model.pt2 (torch.export)")
    one.add_argument("--saving", type=float, metavar="SHARE", help="of the computations, such as 0.42")
    one.add_argument("--schedule", nargs="+", type=int, metavar="K", help="tokens kept after each block, instead")
    one.add_argument("--method", default="wk_medoids", metavar="NAME",
                     help="or tokenpool, what we recommend without training; default: wk_medoids")
    one.add_argument("--init", "--start", metavar="NAME", help="of a clustering; default: top_k")
    one.add_argument("--output", metavar="NAME", help="what a clustering returns: medoid, mean or weighted_mean")
    one.add_argument("--counts", action="store_true", help="carry counts into later attention")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, .safetensors or .pth")
    one.add_argument("--pretrained", action="store_true", help="timm's public weights")
    one.add_argument("--image-size", type=int, metavar="PX", help="positions are resampled; default: the model's own")
    one.add_argument("--rounds", type=int, default=7, metavar="N", help="of the timing; default: 7")


def _export(args: argparse.Namespace) -> None:
    import torch

    import tokenpool as tp
    from tokenpool.data.datasets import open_data
    from tokenpool.data.weights import SHIPPED, WITH_WEIGHTS, load_model
    from tokenpool.measure import export
    from tokenpool.models.published import NAMED
    export.check_path(args.out)
    model = load_model(args.model, args.checkpoint, args.pretrained, args.image_size)
    way = dict(method=args.method, init=args.init, output=args.output, carry_counts=args.counts)
    if args.method in NAMED:
        if args.init or args.output or args.counts:
            raise ValueError(f"{args.method} has its own options. Leave out --start, --output and --counts.")
        way = NAMED[args.method]
    pooled = tp.PooledViT(model, args.schedule, saving=args.saving, **way).eval()
    if args.model == SHIPPED:
        images, said = next(iter(open_data("pebbles", model, count=96)))[0], "pebbles"
    else:
        embed = pooled.vit.patch_embed
        images = torch.randn(16, embed.proj.in_channels, *embed.img_size, generator=torch.Generator().manual_seed(0))
        said = "random images"
        if args.checkpoint is None and not args.pretrained and ":" not in args.model and args.model not in WITH_WEIGHTS:
            print(f"{args.model} has random weights: add --pretrained or --checkpoint FILE for a model of use.")
    about = {"tokenpool": tp.__version__, "model": args.model, "pooling": pooled.extra_repr()}
    export.save(export.trace(pooled), args.out, about)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {tp.macs(pooled)}")
    print(f"Compared on {len(images)} {said}.")
    report = export.compare(args.out, pooled, images, rounds=args.rounds)
    for sentence in export.say(report, args.out):
        print(sentence)
    if not report.equal:
        raise ValueError(f"{args.out} does not answer as PyTorch does, see above. It is kept for a look; "
                         "do not use it.")


def _check_device(device: str) -> None:
    import torch
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {device}: PyTorch finds no such device here. Use cpu, cuda or mps.")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"--device {device}: PyTorch finds no such device here. Use --device cpu.")


def _plan_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("figures", nargs="*", metavar="FIG", help="fig3, 5b, 6, search, counts, ... or all; default: all "
                     "that need no new base model")
    one.add_argument("--preset", default="pebbles", metavar="NAME", help="default: pebbles")
    one.add_argument("--seeds", type=int, default=1, metavar="N", help="finetunings per setting; default: 1")


def _planned(args: argparse.Namespace) -> list:
    from tokenpool.train.plan import ONE_BASE, plan
    from tokenpool.train.recipe import load_preset
    return plan(args.figures or ONE_BASE, load_preset(args.preset), args.seeds)


def _plan(args: argparse.Namespace) -> None:
    step = None
    for job in _planned(args):
        if args.step in (None, job.step):
            if args.step is None and job.step != step:
                print(f"# {job.step}: needs all runs above it to be finished" if step else f"# {job.step}")
            step = job.step
            print(job.command())


def _protocol(args: argparse.Namespace) -> None:
    from tokenpool.train.protocol import run_all
    plan = _planned(args)
    print(f"{len(plan)} runs of preset {args.preset} into {args.out}; finished ones are skipped")
    with _progress() as bar:
        task = bar.add_task("", total=len(plan))
        failed = run_all(plan, args.out, args.jobs, data=args.data, settings=_settings(args),
                         tell=lambda what, done, total: bar.update(task, completed=done, description=what))
    for job, why in failed:
        print(f"failed: {job.command()}\n        {why}   (log: {args.out / job.preset / job.name / 'log.txt'})")
    _write_board([args.out / args.preset], args.out / "board.html", None)
    if failed:
        raise ValueError(f"{len(failed)} of {len(plan)} runs failed, see above. The same command tries them again.")


def _report(args: argparse.Namespace) -> None:
    from tokenpool.data.weights import data_folder
    sources = args.sources or [p for p in (data_folder() / "runs", Path("results")) if p.exists()]
    _write_board(sources, args.page, args.collect)


def _write_board(sources: list[Path], page: Path, collect: Path | None) -> None:
    from tokenpool.report import board
    evidence = board.read(sources)
    said = board.write_page(page, evidence)
    for verdict in said:
        print(f"- {verdict.verdict.upper()}: {verdict.claim}. {verdict.evidence}")
    if collect:
        for path in board.collect(evidence, collect):
            print(f"rows   {path}")
    print(f"\npage   {page}   (open it in a browser)")


def _explore(args: argparse.Namespace) -> None:
    try:
        from tokenpool.lab.app.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"The page is served by Voila, and {error.name} is not installed here. Type: pip install "
                         "voila") from None
    serve(args.which, args.port, args.address, not args.no_browser, lambda words: print(words, flush=True))


def _settings(args: argparse.Namespace) -> dict[str, str]:
    settings = {}
    for item in args.settings:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: write it as FIELD=VALUE, such as epochs=3.")
        settings[name] = value
    return settings


def _job_options(one: argparse.ArgumentParser, step: str) -> None:
    from tokenpool.train.recipe import PRESETS
    one.add_argument("--preset", default="pebbles", metavar="NAME", help=f"{', '.join(PRESETS)}; default: pebbles")
    one.add_argument("--model", metavar="NAME", help="a model of the preset; default: its first")
    if step == "finetune":
        one.add_argument("--system", default="wk_medoids", metavar="NAME",
                         help="a pooling method, plain, convolution, dynamic_vit, patch_merger; tokenpool, ToMe, ATC "
                              "and others with their own options; default: wk_medoids")
        one.add_argument("--init", "--start", default="", metavar="NAME", help="of a clustering; default: top_k (Algorithm 1)")
        one.add_argument("--counts", action="store_true", help="carry counts into later attention (not in the paper)")
        one.add_argument("--saving", type=float, default=0.0, metavar="SHARE", help="of the computations, such as 0.42")
        one.add_argument("--schedule", default="", metavar="NAME", help="found by a search, in place of --saving")
        one.add_argument("--distill", action="store_true", help="dynamic_vit: learn from the plain model too")
    if step == "search":
        one.add_argument("--penalty", type=float, required=True, metavar="LAMBDA", help="larger: fewer tokens")
    one.add_argument("--qk", default="", metavar="READING", help="normalise keys and queries: r1 or r2 (eq. 6)")
    one.add_argument("--alpha", default="", metavar="KIND", help="with --qk: one or learned")
    one.add_argument("--seed", type=int, default=0)
    if step != "train":
        one.add_argument("--base-seed", type=int, default=0, metavar="N", help="which base model to go on from")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to begin with, .safetensors or .pth")
    one.add_argument("--data", metavar="NAME", help="another place of the preset's data: a folder or a timm name")
    one.add_argument("--images", "--pictures", type=int, metavar="N", help="train on so many only")
    one.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings",
                     help="change the preset's recipe, such as epochs=3 lr=1e-4")
    one.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    one.add_argument("--checkpoint-seconds", type=float, default=60.0, metavar="S", help="default: 60")
    one.add_argument("--checkpoint-steps", type=int, default=0, metavar="N", help="every N steps instead")
    one.add_argument("--no-tensorboard", action="store_true")
    one.add_argument("--dry-run", action="store_true", help="build, count, read one batch, take one step; keep nothing")
    one.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")


def _job(args: argparse.Namespace) -> None:
    from tokenpool.train import jobs
    from tokenpool.train.recipe import Job, load_preset
    preset = load_preset(args.preset)
    own = ("system", "init", "counts", "saving", "schedule", "distill", "penalty", "base_seed")
    job = Job(args.preset, args.step, args.model or next(iter(preset.models)), qk=args.qk, alpha=args.alpha,
              seed=args.seed, **{k: getattr(args, k) for k in own if hasattr(args, k)})
    with _progress() as bar:
        task = bar.add_task("", total=None, visible=jobs.is_main())
        jobs.run(job, args.out, settings=_settings(args), data=args.data, images=args.images,
                 checkpoint=args.checkpoint, device=args.device, say=bar.console.print,
                 checkpoint_seconds=args.checkpoint_seconds,
                 checkpoint_steps=args.checkpoint_steps, tensorboard=not args.no_tensorboard,
                 max_steps=1 if args.dry_run else None,
                 tell=lambda what, done, total: bar.update(task, completed=done, total=total, description=what))


def _progress():
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    return Progress(BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                    TimeRemainingColumn(), TextColumn("{task.description}"))


def _to_measure(args: argparse.Namespace) -> tuple:
    """The model and the images, or why they cannot be measured."""
    from tokenpool.data.datasets import open_data
    from tokenpool.data.weights import WITH_WEIGHTS
    from tokenpool.models.vit import PooledViT
    from tokenpool.train.jobs import open_model
    from tokenpool.train.recipe import PRESETS
    model = open_model(args.model, args.checkpoint, args.pretrained, image_size=args.image_size)
    PooledViT(model)                       # refuses what cannot be pooled, before anything is read
    comes_with_weights = args.model in WITH_WEIGHTS or ":" in args.model or args.model.split("/")[0] in PRESETS
    if not comes_with_weights and args.checkpoint is None and not args.pretrained:
        raise ValueError(f"{args.model} would have random weights, and every accuracy would be chance. "
                         "Add --pretrained or --checkpoint FILE.")
    if not model.num_classes:
        raise ValueError(f"{args.model} has no classifier. Fit one for your images first: tokenpool probe --model "
                         f"{args.model} --data {args.data} --out FOLDER")
    return model, open_data(args.data, model, args.images, args.split, download=args.download)


def _peers(args: argparse.Namespace) -> None:
    from tokenpool.data.datasets import open_unlabelled
    from tokenpool.measure import compare
    from tokenpool.measure.rows import Results
    from tokenpool.models import published
    from tokenpool.report import compare_page
    if args.figure:
        raise ValueError("--peers is a comparison of its own. Leave out --figure, or leave out --peers.")
    chosen, budgets = published.chosen(args.method), args.budget or compare.BUDGETS
    _check_device(args.device)
    results = Results(args.out / "peers.csv", compare.Entry)
    model, images = _to_measure(args)
    few, where = open_unlabelled(args.data, model, args.split, download=args.download)
    print(f"{args.model} on {images.count} images of {args.data}; {len(chosen)} contenders, {len(budgets)} "
          f"budgets, twice; fitted K from {len(few)} images of {where}")
    with _progress() as bar:
        task = bar.add_task("", total=2 * len(budgets))
        entries = compare.measure(model, args.model, images, few, results, budgets, chosen, args.device,
                                  tell=lambda what, done, total: bar.update(task, completed=done, description=what))
    if not entries:
        raise ValueError(f"No contender can save {' or '.join(f'{b:.0%}' for b in budgets)} of this model. "
                         "Use a smaller --budget, such as 0.6.")
    page = args.out / "peers.html"
    compare_page.write_page(page, entries)
    _print_peers(entries)
    print(f"\nrows   {results.path}\npage   {page}   (open it in a browser)")


def _print_peers(entries) -> None:
    from rich.console import Console
    from rich.table import Table

    from tokenpool.measure import compare
    from tokenpool.models import published
    from tokenpool.report import compare_page
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown.add_column("contender", no_wrap=True)
    for budget in sorted({e.budget for e in entries}):
        shown.add_column(f"-{budget:.0%} ", justify="right", no_wrap=True)
    for fair, words in compare.FAIR.items():
        shown.add_row(f"[bold]{words}[/bold]")
        for line in compare_page.cells(entries, fair):
            shown.add_row(*line)
        shown.add_row("")
    print(f"\nTop-1 in % without finetuning, with half of its 95 % interval. On the same images: ↓ below, ↑ above\n"
          f"{published.OURS.label}, beyond the pairs' 95 % interval; no mark: no telling apart; -: cannot be met.\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown)
    _print_sentences(compare_page.told(entries))


def _reproduce(args: argparse.Namespace) -> None:
    if args.peers:
        _peers(args)
        return
    from tokenpool.data.weights import SHIPPED
    from tokenpool.measure import accuracy
    from tokenpool.measure.rows import Results, frame
    from tokenpool.report import accuracy_page
    from tokenpool.report.figures import summary
    from tokenpool.report.verdicts import verdicts

    default = tuple(accuracy.FIGURES) if args.method else accuracy.PAPERS_FIGURES
    wanted = accuracy.settings(args.figure or default, args.method, args.budget or accuracy.BUDGETS, args.seeds)
    _check_device(args.device)
    results = Results(args.out / "results.csv")
    model, images = _to_measure(args)
    print(f"{args.model} on {images.count} images of {args.data}; {len(wanted)} measurements")
    with _progress() as bar:
        task = bar.add_task("", total=len(wanted))
        rows = accuracy.measure(model, args.model, images, wanted, results, args.device,
                                lambda what, done, total: bar.update(task, completed=done, description=what))
    table = frame(rows)
    said = verdicts(table)
    page = args.out / "index.html"
    accuracy_page.write_page(page, table, said, model if args.model == SHIPPED else None)
    _print_table(summary(table[table["method"] != "plain"], ["method", "init", "counts"]), table)
    _print_verdicts(said)
    print(f"\nrows   {results.path}\npage   {page}   (open it in a browser)")


def _dense(args: argparse.Namespace) -> None:
    from tokenpool.core.methods import one_of
    from tokenpool.data.weights import load_model
    from tokenpool.measure import dense
    from tokenpool.report import dense_page

    one_of("truth", args.truth, dense.TRUTHS, "")
    wanted = dense.settings(args.method or dense.COMPARED, args.budget or dense.BUDGETS, args.seeds)
    model = load_model(checkpoint=args.checkpoint)
    data = dense.Data.make(args.train_images, args.images, args.truth)
    path, page = args.out / "dense.csv", args.out / "index.html"
    print(f"{len(wanted)} measurements on {args.images} scenes of pebbles; {', '.join(dense.TRUTHS[args.truth])}")
    with _progress() as bar:
        task = bar.add_task("", total=len(wanted))
        rows = dense.measure(model, wanted, data, path,
                             tell=lambda what, done, total: bar.update(task, completed=done, description=what))
    dense_page.write_page(page, rows, model, data)
    _print_dense(dense_page.summary(rows))
    for sentence in dense_page.told(rows):
        print(f"- {sentence}")
    print(f"\nrows   {path}\npage   {page}   (open it in a browser)")


def _print_dense(points) -> None:
    from rich.console import Console
    from rich.table import Table
    pooled = points[points["saving"] > 0]
    if not len(pooled):
        return
    print("\nMean IoU in pixels, %, by computations saved; probe fitted on the plain model / on the pooled features:\n")
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name in ("method", "init", "counts"):
        shown.add_column(name, no_wrap=True)
    for saving in sorted(pooled["saving"].unique()):
        shown.add_column(f"-{saving:.0%}", justify="right", no_wrap=True)
    wide = pooled.pivot_table(index=["method", "init", "counts"], columns=["saving", "probe"], values="miou",
                              sort=False)
    for (method, init, counts), line in wide.iterrows():
        pairs = [(line[s, "plain"], line[s, "own"]) for s in sorted(pooled["saving"].unique())]
        shown.add_row(method, init or "-", "carried" if counts else "-",
                      *("-" if a != a else f"{100 * a:.1f} / {100 * b:.1f}" for a, b in pairs))
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(shown)
    print()


def _print_table(points, table) -> None:
    from rich.console import Console
    from rich.table import Table
    savings = sorted(points["saving"].unique())
    plain = table[table["method"] == "plain"].iloc[0]
    print(f"\nTop-1 in % without finetuning (plain: {100 * plain['top1']:.1f}), by computations saved:\n")
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown.add_column("method", overflow="fold", min_width=11)          # the one that may wrap on a narrow terminal
    shown.add_column("init", no_wrap=True, min_width=17)
    shown.add_column("counts", no_wrap=True, min_width=7)
    for saving in savings:
        shown.add_column(f"-{saving:.0%} ", justify="right", no_wrap=True, min_width=5)
    wide = points.pivot_table(index=["method", "init", "counts"], columns="saving", values="top1", sort=False)
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    best = wide.max()
    for (method, init, counts), line in wide.iterrows():
        cells = ["-" if v != v else f"[bold]{100 * v:.1f}*[/bold]" if v == best[s] else f"{100 * v:.1f} "
                 for s, v in line.items()]
        shown.add_row(method, init or "-", "carried" if counts else "-", *cells)
    width = None if sys.stdout.isatty() else 110
    Console(width=width, highlight=False).print(shown)
    print("* best at that budget; '-' where the clustering costs more than is saved.")


def _print_verdicts(said) -> None:
    print("\nThe paper's claims (P: its abstract or captions, S: summaries of it):")
    _print_sentences(f"{v.verdict.upper()}: {v.claim}. {v.evidence}" for v in said)


def _print_sentences(sentences) -> None:
    import textwrap
    width = min(110, os.get_terminal_size().columns if sys.stdout.isatty() else 110)
    for sentence in sentences:
        print(textwrap.fill(sentence, width, initial_indent="- ", subsequent_indent="  "))


def _macs(args: argparse.Namespace) -> None:
    import tokenpool as tp
    from tokenpool.data.weights import load_model
    model = load_model(args.model, image_size=args.image_size)
    print(f"plain   {tp.macs(model)}")
    if args.saving is not None:
        pooled = tp.PooledViT(model, saving=args.saving, method=args.method)
        print(f"pooled  {tp.macs(pooled)}\nK after each block: {' '.join(map(str, pooled.schedule))}")
