"""Runs all jobs of a plan that are not finished yet, then writes the board: for pebbles, search K and finetune every
method from the weights that ship. A job that fails does not stop the others.
"""

from dataclasses import dataclass

from tokenpool.cli import show
from tokenpool.cli.groups import PresetOptions
from tokenpool.cli.plan import PlanOptions
from tokenpool.cli.report import write_board
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options(PresetOptions):
    jobs: int | None = option(None, "at a time; default: one per core, or one on a GPU", "N")


def run(planned: PlanOptions, options: Options) -> None:
    from tokenpool.train.protocol import run_all
    jobs = planned.jobs()
    print(f"{len(jobs)} runs of preset {planned.preset} into {options.out}; finished ones are skipped")
    with show.progress(len(jobs)) as tell:
        failed = run_all(jobs, options.out, options.jobs, data=options.data, settings=options.changes, tell=tell)
    for job, why in failed:
        print(f"failed: {job.command()}\n        {why}   (log: {options.out / job.preset / job.name / 'log.txt'})")
    write_board([options.out / planned.preset], options.out / "board.html")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} runs failed, see above. The same command tries them again.")
