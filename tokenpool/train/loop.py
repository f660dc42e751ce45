"""The one training loop: base models, the search for K, finetuning with any system. On Hugging Face Accelerate.

    fit(system, feed, recipe, folder)           # one process, or as many as torchrun or accelerate launch started

Every step is a function of the weights, the optimiser's state and (seed, step): the images, their augmentation and
the drop path are drawn from that alone. So a checkpoint holds tensors and a step number, and a run that was killed goes
on to the same result, bit for bit on a CPU.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tokenpool.data.files import replace_file
from tokenpool.train import Stop
from tokenpool.train.loader import Feed, StreamFeed, seed_of
from tokenpool.train.recipe import Recipe

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_second", "seconds")
LOG_EVERY = 20                       # steps between two lines of metrics; a GPU is waited for only then

Tell = Callable[[str, int, int], None]


class Objective(nn.Module):
    """A system and its loss in one module, so that data-parallel wrappers see one forward.

    A system that adds terms of its own (search, DynamicViT) has `forward_with_terms(x) -> logits, terms`.
    """

    def __init__(self, system: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.system, self.criterion = system, criterion

    def forward(self, x: Tensor, target: Tensor, seed: int) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if hasattr(self.system, "forward_with_terms"):
            logits, terms = self.system.forward_with_terms(x)
        elif getattr(self.system, "draws", False):          # methods of chance draw anew at each step
            logits = self.system(x, generator=torch.Generator().manual_seed(seed))
        else:
            logits = self.system(x)
        task = self.criterion(logits.float(), target)
        return {"loss": task + sum(terms.values()), "task": task.detach()} | {k: v.detach() for k, v in terms.items()}


def fit(system: nn.Module, feed: Callable[[int, int], Feed | StreamFeed], recipe: Recipe, folder: Path,
        identity: dict[str, Any], *, tell: Tell | None = None, checkpoint_seconds: float = 60.0,
        checkpoint_steps: int = 0, tensorboard: bool = True, cpu: bool = False, max_steps: int | None = None
        ) -> nn.Module:
    """Train `system` in place and return it with its final weights (the moving average, where the recipe keeps one).

    Args:
        feed: (rank, world) -> the images of that process.
        folder: metrics.csv, the checkpoint and TensorBoard's file go here; a checkpoint found here is gone on from.
        identity: what the run is (job, recipe); a checkpoint of another run is refused.
        tell: called with (what is going on, steps done, steps in all) on the main process.
        checkpoint_seconds, checkpoint_steps: how often to save; steps, where given, in place of seconds.
        max_steps: stop early, for dry runs.

    Raises:
        Stop: the loss became NaN or infinite, or another process of the job ended.
        ValueError: the folder holds another run, or a batch that cannot be split.
    """
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(True)        # else a second call in one process could not change its precision
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu,
                              gradient_accumulation_steps=1)     # parts of a batch are counted here, not there
    rank, world = accelerator.process_index, accelerator.num_processes
    images = feed(rank, world)
    total = max(1, round(recipe.epochs * images.steps_per_epoch))
    last = total if max_steps is None else min(total, max_steps)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)

    mixes = recipe.mixup > 0 or recipe.cutmix > 0
    mixer = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing,
                  num_classes=int(system.num_classes)) if mixes else None
    criterion = SoftTargetCrossEntropy() if mixes else LabelSmoothingCrossEntropy(recipe.smoothing)
    objective = Objective(system, criterion)
    optimizer = torch.optim.AdamW(_parameter_groups(system, recipe), lr=recipe.lr)
    warm = round(recipe.warmup_epochs * images.steps_per_epoch)
    rate = CosineLRScheduler(optimizer, t_initial=max(1, total - warm), lr_min=recipe.min_lr, warmup_t=warm,
                             warmup_lr_init=recipe.warmup_lr, warmup_prefix=True, t_in_epochs=False)
    system.to(accelerator.device)
    ema = ModelEmaV3(system, recipe.ema, use_warmup=True) if recipe.ema else None
    saver = _Checkpoint(folder / CHECKPOINT, system, ema, optimizer, identity)
    first, spent = saver.load()
    found = accelerator.gather(torch.tensor([first], device=accelerator.device))
    if (found != first).any():
        raise ValueError(f"The processes found checkpoints at steps {sorted(set(found.tolist()))} in {folder}. "
                         "All machines need the same folder: put --out on a shared disk.")
    if first:
        log.info("going on after step %d of %d", first, total)
    wrapped = accelerator.prepare_model(objective)
    optimizer = accelerator.prepare_optimizer(optimizer)

    every = checkpoint_steps
    if world > 1 and not every:                                # clocks differ between machines; step numbers do not
        every = max(1, images.steps_per_epoch // 4)
    started = saved = time.perf_counter()
    bad = torch.zeros((), device=accelerator.device)
    sums: dict[str, Tensor] = {}
    with _Metrics(folder, first, tensorboard and accelerator.is_main_process, accelerator.is_main_process) as metrics, \
            _other_process_ended(world, folder):
        parts = images.micro_batches(first)
        window, since = time.perf_counter(), first
        for step in range(first, last):
            system.train()
            rate.step_update(step)
            for piece in range(recipe.accumulate):
                x, target = next(parts)
                x, target = (t.to(accelerator.device, non_blocking=True) for t in (x, target))
                _seed(recipe.seed, step, piece, rank)
                if mixer is not None:
                    x, target = mixer(x, target)
                hold = piece + 1 < recipe.accumulate
                with accelerator.no_sync(wrapped) if hold else nullcontext():
                    out = wrapped(x, target, seed_of(recipe.seed, step, piece))
                    accelerator.backward(out["loss"] / recipe.accumulate)
                for name, value in out.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() / recipe.accumulate
            norm = accelerator.clip_grad_norm_(system.parameters(), recipe.clip_grad or math.inf)
            bad = bad + (~torch.isfinite(out["loss"].detach() + norm)).float()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if hasattr(system, "after_step"):
                system.after_step()
            if ema is not None:
                ema.update(system, step=step + 1)

            done = step + 1
            due = done % every == 0 if every else time.perf_counter() - saved > checkpoint_seconds
            if done % LOG_EVERY == 0 or due or done == last or done == first + 1:
                if float(accelerator.reduce(bad, reduction="sum")):
                    raise Stop(_nan_message(folder, recipe, done, saver.step))
                now = time.perf_counter()
                means = {k: float(accelerator.reduce(v / (done - since), reduction="mean")) for k, v in sums.items()}
                row = {"step": done, "epoch": round(done / images.steps_per_epoch, 4), "loss": means["loss"],
                       "lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm),
                       "images_per_second": (done - since) * recipe.batch_size / (now - window),
                       "seconds": spent + now - started}
                metrics.add(row, means)
                if tell and accelerator.is_main_process:
                    tell(f"epoch {row['epoch']:.1f}/{recipe.epochs:g}  loss {row['loss']:.3f}  "
                         f"{row['images_per_second']:.0f} img/s", done, total)
                window, since, sums = now, done, {}
            if due and done < last:
                accelerator.wait_for_everyone()
                if accelerator.is_main_process:
                    saver.save(done, spent + time.perf_counter() - started)
                saved = time.perf_counter()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            saver.save(last, spent + time.perf_counter() - started)
        accelerator.wait_for_everyone()
    if ema is not None:
        system.load_state_dict(ema.module.state_dict())
    return system.eval()


def seconds_spent(folder: Path) -> float:
    """Training time of a run so far, read from its checkpoint."""
    with safe_open(folder / CHECKPOINT, "pt") as file:
        return float(file.metadata()["seconds"])


def _seed(seed: int, step: int, piece: int, rank: int) -> None:
    """Drop path, mixup and the like draw from these; processes must not draw alike."""
    number = seed_of(seed, step, piece, rank)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)


def _parameter_groups(system: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Biases, norms and what timm exempts do not decay; soft masks have a rate of their own and do not decay."""
    exempt = system.no_weight_decay() if hasattr(system, "no_weight_decay") else ()
    groups = param_groups_weight_decay(system, recipe.weight_decay, no_weight_decay_list=exempt)
    masks = {id(p) for p in system.mask_parameters()} if hasattr(system, "mask_parameters") else set()
    if masks:
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in masks]
        groups.append({"params": list(system.mask_parameters()), "weight_decay": 0.0, "lr": recipe.mask_lr})
    return groups


# ---- checkpoints: one file of tensors, replaced in one step ----

class _Checkpoint:
    def __init__(self, path: Path, system: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer,
                 identity: dict[str, Any]) -> None:
        self.path, self.system, self.ema, self.optimizer, self.identity = path, system, ema, optimizer, identity
        self.step = 0
        names = {id(p): n for n, p in system.named_parameters()}
        self.trained = [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]

    def save(self, step: int, seconds: float) -> None:
        tensors = {f"model.{k}": v for k, v in self.system.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for name, parameter in self.trained:
            tensors |= {f"optimizer.{k}.{name}": v for k, v in self.optimizer.state[parameter].items()}
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}   # clone: tied weights
        about = {"step": str(step), "seconds": f"{seconds:.1f}", "identity": json.dumps(self.identity, sort_keys=True)}
        with replace_file(self.path) as temporary:
            save_file(tensors, temporary, about)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())                    # else a power cut could leave the new name on no data
        self.step = step

    def load(self) -> tuple[int, float]:
        """Take up what is saved; returns (steps done, seconds spent), zeros where nothing is."""
        if not self.path.exists():
            return 0, 0.0
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
            if json.loads(about["identity"]) != json.loads(json.dumps(self.identity)):
                differs = _difference(about["identity"], self.identity)
                raise ValueError(f"{self.path.parent} holds another run: {differs}. "
                                 "Give another folder with --out, or delete that one.")
            tensors = {k: file.get_tensor(k) for k in file.keys()}       # noqa: SIM118  (not a dict)
        self.system.load_state_dict(_part_of(tensors, "model."))
        if self.ema is not None:
            self.ema.module.load_state_dict(_part_of(tensors, "ema."))
        for name, parameter in self.trained:
            self.optimizer.state[parameter] = {
                k: tensors[f"optimizer.{k}.{name}"].to("cpu" if k == "step" else parameter.device)
                for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in tensors}
        self.step = int(about["step"])
        return self.step, float(about["seconds"])


def _part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}


def _difference(stored: str, wanted: dict[str, Any]) -> str:
    """The first setting in which two runs differ, in words."""
    def flat(tree: Any, path: str = "") -> dict[str, Any]:
        if isinstance(tree, dict):
            return {k: v for key, sub in tree.items() for k, v in flat(sub, key).items()}
        return {path: tree}

    old, new = flat(json.loads(stored)), flat(json.loads(json.dumps(wanted)))
    key = next(k for k in [*new, *old] if old.get(k) != new.get(k))
    return f"{key} is {old.get(key)!r} there, {new.get(key)!r} was asked for"


def _nan_message(folder: Path, recipe: Recipe, step: int, saved: int) -> str:
    kept = f"The last good checkpoint, step {saved}, is {folder / CHECKPOINT}" if saved else \
        "No checkpoint had been written yet"
    return (f"The loss became NaN or infinite at or shortly before step {step}. {kept}. "
            f"Lower the rate (--set lr={recipe.lr / 3:.1g}) or clip gradients (--set clip_grad=1) in a new --out.")


# ---- what is written while it runs ----

class _Metrics:
    """metrics.csv and TensorBoard. A resumed run drops what was written after its checkpoint."""

    def __init__(self, folder: Path, first: int, tensorboard: bool, main: bool) -> None:
        self.folder, self.first, self.tensorboard, self.main = folder, first, tensorboard, main
        self.file: Any = None
        self.writer: Any = None

    def __enter__(self) -> _Metrics:
        if not self.main:
            return self
        path = self.folder / "metrics.csv"
        kept: list[dict[str, str]] = []
        if self.first and path.exists():
            with path.open(newline="") as file:
                kept = [r for r in csv.DictReader(file) if None not in r.values() and r["step"].isdigit()
                        and int(r["step"]) <= self.first]
        with replace_file(path) as temporary, temporary.open("w", newline="") as out:
            writer = csv.DictWriter(out, METRICS)
            writer.writeheader()
            writer.writerows(kept)
        self.file = path.open("a", newline="")
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.folder), purge_step=self.first)
        return self

    def add(self, row: dict[str, Any], means: dict[str, float]) -> None:
        if not self.main:
            return
        csv.DictWriter(self.file, METRICS).writerow({k: f"{v:.6g}" for k, v in row.items()})
        self.file.flush()
        if self.writer is not None:
            for name, value in (means | {"lr": row["lr"], "images_per_second": row["images_per_second"]}).items():
                self.writer.add_scalar(name, value, row["step"])

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


@contextmanager
def _other_process_ended(world: int, folder: Path) -> Iterator[None]:
    """In a job of several processes, say in one sentence that another one ended; torchrun then ends this one."""
    text = (f"Another process of this job ended, so this one stops. What was saved is in {folder}; "
            "start the same command again and it goes on from there.")
    if world == 1:
        yield
        return

    def told(*_: object) -> None:
        raise Stop(text)

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    except RuntimeError as error:                          # gloo and NCCL say it in their own ways
        if any(word in str(error).lower() for word in ("closed by peer", "connection", "gloo", "nccl", "timed out")):
            raise Stop(text) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
