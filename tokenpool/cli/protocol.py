"""tokenpool protocol"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenpool.cli.common import _settings
from tokenpool.cli.plan import _plan_options, _planned
from tokenpool.cli.report import _write_board
from tokenpool.cli.show import _progress


def _options(one: argparse.ArgumentParser) -> None:
    _plan_options(one)
    one.add_argument("--jobs", type=int, metavar="N", help="at a time; default: one per core, or one on a GPU")
    one.add_argument("--data", metavar="NAME", help="another place of the preset's data")
    one.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    one.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")


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
