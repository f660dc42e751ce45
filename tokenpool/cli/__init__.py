"""`tokenpool`: the command line. Every mistake is answered in one sentence and an exit code, never with a traceback."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Sequence
from functools import partial

from tokenpool.cli import bench, dense, explore, export, macs, plan, protocol, report, reproduce, train
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

    for name, (help, options, run, defaults) in _COMMANDS.items():
        one = commands.add_parser(name, help=help)
        options(one)
        one.set_defaults(run=run, **defaults)
    return parser


_COMMANDS = {
    "reproduce": ("measure every method without finetuning; table, CSV and page", reproduce._options, reproduce._reproduce, {}),
    "macs": ("count a model's multiply-accumulates, plain and pooled", macs._options, macs._macs, {}),
    "dense": ("what lies where, from pooled tokens: mean IoU against computations", dense._options, dense._dense, {}),
    "train": ("step 1: train a base model", partial(train._job_options, step="train"), train._job, {"step": "base"}),
    "search": ("step 2: learn how many tokens to keep after each block", partial(train._job_options, step="search"),
               train._job, {"step": "search"}),
    "finetune": ("step 3: train on with the pooling in", partial(train._job_options, step="finetune"), train._job,
                 {"step": "finetune"}),
    "plan": ("the runs of a figure, one command a line, for any scheduler", plan._options, plan._plan, {}),
    "protocol": ("run a plan on this machine, then write the board", protocol._options, protocol._protocol, {}),
    "report": ("all rows -> the board: one page, a panel per figure, verdicts", report._options, report._report, {}),
    "bench": ("time score, pooling and whole models beside the plain model", bench._bench_options, bench._bench, {}),
    "export": ("write a pooled model as ONNX or torch.export, compared with PyTorch", export._export_options,
               export._export, {}),
    "explore": ("the explorers of the course as a page without code, in the browser", explore._options,
                explore._explore, {}),
}
