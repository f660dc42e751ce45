"""Run a plan on this machine: several jobs at a time, each on its share of the cores. Finished jobs are skipped."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from tokenpool.data.files import replace_file
from tokenpool.train import jobs
from tokenpool.train.loader import open_train
from tokenpool.train.recipe import Job, load_preset


def run_all(plan: Sequence[Job], results: Path, processes: int | None = None, *, data: str | None = None,
            settings: dict[str, str] | None = None, tell: Callable[[str, int, int], None] | None = None
            ) -> list[tuple[Job, str]]:
    """Run jobs, one step after the other; returns the jobs that failed, and why.

    Args:
        processes: jobs at a time; None: one per core, or one on a GPU.

    A job that fails does not stop the others. A worker that is killed from outside does; finished jobs are kept, and
    the same call continues from there.
    """
    cores = os.cpu_count() or 1
    processes = processes or (1 if torch.cuda.is_available() else cores)
    if processes < 1:
        raise ValueError(f"Got --jobs {processes}. Use 1 or more.")
    failed: list[tuple[Job, str]] = []
    done = 0
    if plan and load_preset(plan[0].preset).data == "pebbles":
        _draw_once(plan, results)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _init_worker, (max(1, cores // processes),))
    try:
        for _, group in itertools.groupby(plan, key=lambda job: job.step):
            running: dict[Future[str], Job] = {pool.submit(_one, job, results, data, settings): job for job in group}
            while running:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    job = running.pop(future)
                    wrong = future.result()
                    done += 1
                    if wrong:
                        failed.append((job, wrong))
                    if tell:
                        tell(f"{'FAILED ' if wrong else ''}{job.name}", done, len(plan))
    except BrokenProcessPool:
        raise OSError("A worker process was killed from outside, often because memory ran out. Finished jobs are kept. "
                      "Type the same command again; if it fails again, add --jobs 1.") from None
    except BaseException:                                   # Ctrl-C, for example: the workers have checkpoints
        for worker in list(pool._processes.values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _init_worker(threads: int) -> None:
    """Set the share of the cores; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _one(job: Job, results: Path, data: str | None, settings: dict[str, str] | None) -> str:
    """Run a job in a worker; returns the error, or ""."""
    folder = results / job.preset / job.name
    said: list[str] = []
    try:
        jobs.run(job, results, data=data, settings=settings, say=said.append, tensorboard=False)
        return ""
    except Exception as error:           # reported at the end; the other jobs continue
        said.append(traceback.format_exc())
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        if folder.is_dir() and said:
            with replace_file(folder / "log.txt") as temporary:
                temporary.write_text("\n".join(said) + "\n")


def _draw_once(plan: Sequence[Job], results: Path) -> None:
    """Draw the pebbles into the cache, or every worker would draw them."""
    preset = load_preset(plan[0].preset)
    for step in sorted({job.step for job in plan}):
        count = preset.train_images if step == "base" else preset.finetune_images
        open_train(preset.data, jobs.build_base(preset, plan[0]), preset.recipe(step), count=count,
                   cache=results / "cache")
