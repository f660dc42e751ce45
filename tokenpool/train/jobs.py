"""Run a job: build the system, train it, measure it, and keep everything about it in one folder.

    results/imagenet50_cpu/finetune-ti-wk_medoids-top_k-save42-s0/
        rows.csv             the measurements without and with finetuning, for the board
        card.json            command, recipe, commit, device, versions, time, a short log
        metrics.csv          loss, rate and speed by step     model.safetensors   weights in half precision
"""

from __future__ import annotations

import csv
import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tokenpool.data.datasets import Images, open_data
from tokenpool.data.files import replace_file
from tokenpool.data.weights import load_into, load_model, shipped_weights
from tokenpool.measure.accuracy import score, subject
from tokenpool.measure.rows import Row, key_of, provenance, read, write
from tokenpool.models.attention import normalise_qk
from tokenpool.models.baselines import ConvolutionViT, DynamicViT, PatchMergerViT
from tokenpool.models.model_cost import macs
from tokenpool.models.published import options_of
from tokenpool.models.vit import PooledViT
from tokenpool.train.loader import Feed, StreamFeed, open_train
from tokenpool.train.loop import CHECKPOINT, Tell, fit, seconds_spent
from tokenpool.train.recipe import PRESETS, Job, Preset, Recipe, load_preset, stored_identity
from tokenpool.train.schedules import load_schedule, save_schedule
from tokenpool.train.soft_masks import SoftMaskViT


def build_base(preset: Preset, job: Job) -> nn.Module:
    """The timm ViT of a job with random weights."""
    if job.model not in preset.models:
        raise ValueError(f"Preset {preset.name} has no model {job.model!r}. Use --model {' or '.join(preset.models)}.")
    name, options = preset.models[job.model]
    torch.manual_seed(job.seed)
    vit = timm.create_model(name, **options, drop_path_rate=preset.recipe(job.step).drop_path)
    return normalise_qk(vit, job.qk, job.alpha == "learned") if job.qk else vit


def open_model(name: str, checkpoint: Path | None = None, pretrained: bool = False,
               results: Path = Path("results"), image_size: int | None = None) -> nn.Module:
    """`load_model`; "PRESET/MODEL" is the base model of a preset with its trained or shipped weights."""
    preset_name, slash, model = name.partition("/")
    if not slash or preset_name not in PRESETS:
        return load_model(name, checkpoint, pretrained, image_size)
    if image_size:
        raise ValueError(f"{name} is the base model of a preset, which has one image size. Leave --image-size out.")
    preset, job = load_preset(preset_name), Job(preset_name, "base", model)
    vit = build_base(preset, job)
    load_base(vit, preset, job, checkpoint, results)
    return vit.eval()


def build_system(vit: nn.Module, job: Job, results: Path | None = None) -> Any:
    """The module to train: the ViT with its way of removing tokens."""
    if job.step == "search":
        return SoftMaskViT(vit, penalty=job.penalty)
    if job.step == "base" or job.system == "plain":
        return PooledViT(vit)
    if job.system == "convolution":
        return ConvolutionViT(vit, saving=job.saving)
    if job.system == "dynamic_vit":
        return DynamicViT(vit, saving=job.saving, distill=job.distill)
    if job.system == "patch_merger":
        return PatchMergerViT(vit, saving=job.saving)
    schedule = list(load_schedule(job.schedule, results)) if job.schedule else None
    return PooledViT(vit, schedule, saving=None if schedule else job.saving, seed=job.seed,
                     **options_of(job.system, job.init, job.counts))


def load_base(vit: nn.Module, preset: Preset, job: Job, checkpoint: Path | None, results: Path) -> None:
    """Give a base model its weights: from a file, from where its pretrained model has them, or from its own run."""
    if preset.pretrained and not job.qk and checkpoint is None:
        vit.load_state_dict(load_model(preset.models[job.model][0]).state_dict())
    else:
        load_into(vit, f"{preset.name}/{job.model}", checkpoint or base_weights(preset, job, results))


def base_weights(preset: Preset, job: Job, results: Path) -> Path:
    """The weights of the base model: from the results or, failing that, the shipped ones."""
    own = results / preset.name / job.base.name / "model.safetensors"
    if own.exists():
        return own
    if job.base.name in preset.shipped:
        return shipped_weights(preset.shipped[job.base.name])
    raise FileNotFoundError(f"There is no base model {own}. Train it first: {job.base.command()}")


def run(job: Job, results: Path = Path("results"), *, settings: dict[str, str] | None = None,
        data: str | None = None, images: int | None = None, checkpoint: Path | None = None, device: str | None = None,
        tell: Tell | None = None, say: Callable[[str], None] = print, checkpoint_seconds: float = 60.0,
        checkpoint_steps: int = 0, tensorboard: bool = True, max_steps: int | None = None) -> list[Row]:
    """Run or resume one job and return its rows (none for a search).

    Args:
        settings: changed fields of the recipe, as text. data: where the images are. images: train on fewer.
        checkpoint: a file with base weights.
        max_steps: a dry run of so many steps; nothing is measured or kept.
    """
    preset = load_preset(job.preset)
    recipe = replace(preset.recipe(job.step), seed=job.seed).changed(settings or {})
    folder = results / preset.name / job.name
    identity = json.loads(json.dumps({"job": asdict(job), "recipe": asdict(recipe), "images": images}))
    card_file = folder / "card.json"
    if card_file.exists():
        if stored_identity(json.loads(card_file.read_text())["identity"]) != identity:
            raise ValueError(f"{folder} holds a finished run with another recipe. Give another --out, or delete it.")
        say(f"finished already: {folder}")
        return read(folder / "rows.csv") if (folder / "rows.csv").exists() else []

    main = is_main()
    say = say if main else _silent
    vit = build_base(preset, job)
    if job.step != "base" or checkpoint is not None:
        load_base(vit, preset, job, checkpoint, results)
    system = build_system(vit, job, results)
    where = data or preset.data
    if data is None and where.startswith(".") and not Path(where).is_dir():
        raise FileNotFoundError(f"The images of preset {preset.name} are not at {where}. Say where they are with "
                                "--data FOLDER; the README says what they are.")
    cpu = device == "cpu"
    target = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    check = open_data(where, vit, preset.val_images, preset.val_split) if job.step != "search" and main else None
    rows: list[Row] = []
    # not for the predictors of DynamicViT and convolutions, which are random before training
    measurable = job.pools or (job.system == "plain" and preset.pretrained)
    if check is not None and job.step == "finetune" and measurable and max_steps is None:
        rows.append(_measure(system.to(target), job, preset, recipe, check, "untouched", target))
    cost = macs(system)
    say(f"{job.name}: {cost}")

    def feed(count: int | None, cache: Path | None = None) -> Callable[[int, int], Feed | StreamFeed]:
        return lambda rank, world: open_train(where, vit, recipe, preset.train_split, count, rank, world, cache)

    if max_steps is not None:
        _dry_run(system, feed(images), recipe, cpu, max_steps, say)
        return []
    count = images or (preset.train_images if job.step == "base" else preset.finetune_images)
    system = fit(system, feed(count, results / "cache"), recipe, folder, identity, tell=tell,
                 checkpoint_seconds=checkpoint_seconds, checkpoint_steps=checkpoint_steps, tensorboard=tensorboard,
                 cpu=cpu)
    if not main:
        return rows
    state = {k: v.detach().half().cpu().contiguous() for k, v in system.state_dict().items()}
    system.load_state_dict({k: v.float() for k, v in state.items()})          # measure what a user will load
    with replace_file(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    card = {"run": job.name, "command": job.command(), "identity": identity, "macs": str(cost),
            "seconds": round(seconds_spent(folder)), "processes": int(os.environ.get("WORLD_SIZE", "1")),
            **provenance(str(target)),
            "platform": platform.platform(), "log": _short_log(folder / "metrics.csv")}
    if check is None:
        card["schedule"] = save_schedule(folder, job, system)
        say(f"K after each block: {' '.join(map(str, card['schedule']['tokens']))}   saved as {job.name}")
    else:
        stage = "finetuned" if job.step == "finetune" else "base"
        rows.append(_measure(system, job, preset, recipe, check, stage, target))
        card["top1"] = rows[-1].top1
        write(folder / "rows.csv", rows)
        for row in rows:
            say(f"{row.stage}: top-1 {100 * row.top1:.1f} % ({100 * row.top1_low:.1f} to {100 * row.top1_high:.1f})")
    with replace_file(card_file) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")
    # and a part of a checkpoint that a kill may have left
    for done in (folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*.part")):
        done.unlink(missing_ok=True)
    return rows


def _dry_run(system: Any, feed: Callable[[int, int], Feed | StreamFeed], recipe: Recipe, cpu: bool, steps: int,
             say: Callable[[str], None]) -> None:
    """Read images and train as the real run would, so that errors show now and not after a day."""
    shapes: list[str] = []
    system.register_forward_pre_hook(lambda module, args: shapes.append(f" on images {tuple(args[0].shape)}"))
    with tempfile.TemporaryDirectory() as folder:
        fit(system, feed, recipe, Path(folder), {}, tensorboard=False, cpu=cpu, max_steps=steps)
        if is_main():
            with (Path(folder) / "metrics.csv").open(newline="") as file:
                loss = float(list(csv.DictReader(file))[-1]["loss"])
            say(f"dry run: {steps} step{''.join(shapes[:1])}, loss {loss:.3f}; nothing was kept")


def _measure(system: Any, job: Job, preset: Preset, recipe: Recipe, check: Images, stage: str,
             device: torch.device) -> Row:
    system.eval()
    pooled = stage != "base" and job.pools
    about = subject(system, f"{preset.name}/{job.model}", check) | dict(data=Path(preset.data).name)    # wherever it is
    return Row(
        key=key_of(job=job.name, preset=preset.name, stage=stage), method=job.system,
        init=job.init or (system.pooling.init_name() or "" if pooled else ""), counts=pooled and system.carry_counts,
        saving=job.saving, seed=job.seed, **about, **score(system, check, job.seed), stage=stage, preset=preset.name,
        run=job.name, schedule_name=job.schedule, qk=f"{job.qk}-{job.alpha}" if job.qk else "", train_seed=job.seed,
        base_seed=job.seed if job.step == "base" else job.base_seed,
        epochs=recipe.epochs if stage == "finetuned" else 0.0, **provenance(str(device)))


def _short_log(metrics: Path, lines: int = 12) -> list[str]:
    """The header of metrics.csv and at most a dozen of its lines, including the last."""
    head, *rest = metrics.read_text().splitlines()
    step = -(-len(rest) // lines)
    return [head, *rest[::-1][::step][::-1]]


def _silent(text: str) -> None:
    """What all processes but the first one say."""


def is_main() -> bool:
    """Whether this is the first of several processes, or the only one; known before they connect."""
    return int(os.environ.get("RANK", "0")) == 0
