"""tokenpool plan"""

from __future__ import annotations

import argparse


def _options(one: argparse.ArgumentParser) -> None:
    _plan_options(one)
    one.add_argument("--step", choices=("base", "search", "finetune"), help="only this step")


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
