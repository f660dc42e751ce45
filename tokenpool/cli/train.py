"""The paper's protocol has three steps: train a base model, search how many tokens each block needs, finetune with the
pooling in. Each run leaves a folder with rows, weights, a log and a card; a stopped run resumes from its checkpoint.

    tokenpool train    --preset imagenet50_cpu
    tokenpool search   --preset imagenet50_cpu --penalty 3e-4
    tokenpool finetune --preset imagenet50_cpu --system wk_medoids --saving 0.42
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenpool.cli import show
from tokenpool.cli.groups import PresetOptions
from tokenpool.measure.options import option
from tokenpool.train import jobs
from tokenpool.train.recipe import Job, load_preset

#: what the three commands have different
DEFAULTS = {"train": dict(step="base"), "search": dict(step="search"),
            "finetune": dict(step="finetune", system="wk_medoids")}


@dataclass(frozen=True)
class Options(PresetOptions):
    checkpoint: Path | None = option(None, "weights to begin with, .safetensors or .pth", "FILE")
    images: int | None = option(None, "train on this many only", "N")
    device: str | None = option(None, "cpu or cuda; default: a GPU where there is one", device=True)
    checkpoint_seconds: float = option(60, "between checkpoints", "S")
    checkpoint_steps: int = option(0, "a checkpoint every N steps instead", "N", least=0)
    no_tensorboard: bool = option(False, "write no file for TensorBoard")
    dry_run: bool = option(False, "build, count, read one batch, take one step; keep nothing")


def run(job: Job, options: Options) -> None:
    job = replace(job, model=job.model or next(iter(load_preset(job.preset).models)))
    with show.progress(visible=jobs.is_main()) as tell:
        jobs.run(job, options.out, settings=options.changes, data=options.data, images=options.images,
                 checkpoint=options.checkpoint, device=options.device, tell=tell,
                 checkpoint_seconds=options.checkpoint_seconds, checkpoint_steps=options.checkpoint_steps,
                 tensorboard=not options.no_tensorboard, max_steps=1 if options.dry_run else None)
