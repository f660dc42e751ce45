"""Prints the runs of one or more figures, one command a line, in an order that works; for any scheduler.

    tokenpool plan fig3 --preset imagenet50 --step finetune > runs.txt
    parallel -j 4 < runs.txt
"""

from dataclasses import dataclass
from typing import Any

from tokenpool.measure.options import option


@dataclass(frozen=True)
class PlanOptions:
    figures: tuple[str, ...] = option((), "fig3, 5b, 6, search, counts, ... or all; default: those that need no new "
                                      "base model", "FIG", flag="")
    preset: str = option("pebbles", "pebbles, imagenet50_cpu, imagenet50 or imagenet1k")
    seeds: int = option(1, "finetunings per setting", "N")

    def jobs(self) -> list[Any]:
        from tokenpool.train.plan import ONE_BASE, plan
        from tokenpool.train.recipe import load_preset
        return plan(self.figures or ONE_BASE, load_preset(self.preset), self.seeds)


@dataclass(frozen=True)
class Options(PlanOptions):
    step: str | None = option(None, "only base, search or finetune", choices=("base", "search", "finetune"))


def run(options: Options) -> None:
    step = None
    for job in options.jobs():
        if options.step in (None, job.step):
            if options.step is None and job.step != step:
                print(f"# {job.step}: needs all runs above it to be finished" if step else f"# {job.step}")
            step = job.step
            print(job.command())
