"""The training loop for base models, the search for K and finetuning, on Hugging Face Accelerate.

    fit(system, feed, recipe, folder, identity)     # one process, or all that torchrun or accelerate launch started

A step depends only on the weights, the state of the optimiser and (seed, step), which decide the images, their
augmentation and the drop path. So a checkpoint holds tensors and a step number, and a run that was killed resumes and
ends with the same result, bit for bit on a CPU.
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
from tokenpool.train.recipe import Recipe, stored_identity

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = ("step", "epoch", "loss", "lr", "grad_norm", "images_per_second", "seconds")
LOG_EVERY = 20                       # steps between two lines of metrics: the only time that the loop waits for a GPU

Tell = Callable[[str, int, int], None]


class Objective(nn.Module):
    """A system and its loss in one module, because data-parallel wrappers need one forward.

    Systems with further terms of the loss (search, DynamicViT) have `forward_with_terms(x) -> logits, terms`.
    """

    def __init__(self, system: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.system, self.criterion = system, criterion

    def forward(self, x: Tensor, target: Tensor, seed: int) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if hasattr(self.system, "forward_with_terms"):
            logits, terms = self.system.forward_with_terms(x)
        elif getattr(self.system, "draws", False):          # random methods draw again at each step
            logits = self.system(x, generator=torch.Generator().manual_seed(seed))
        else:
            logits = self.system(x)
        task = self.criterion(logits.float(), target)
        return {"loss": task + sum(terms.values()), "task": task.detach()} | {k: v.detach() for k, v in terms.items()}


def fit(system: nn.Module, feed: Callable[[int, int], Feed | StreamFeed], recipe: Recipe, folder: Path,
        identity: dict[str, Any], *, tell: Tell | None = None, checkpoint_seconds: float = 60.0,
        checkpoint_steps: int = 0, tensorboard: bool = True, cpu: bool = False, max_steps: int | None = None
        ) -> nn.Module:
    """Train `system` in place and return it with its final weights (the moving average, if the recipe has one).

    Args:
        feed: (rank, world) -> the images of that process.
        folder: for metrics.csv, the checkpoint and TensorBoard's file. Resumes from a checkpoint found here.
        identity: job and recipe of the run; a checkpoint of another run is an error.
        tell: called in the main process with (status, steps done, all steps).
        checkpoint_seconds, checkpoint_steps: how often to save; steps, if given, replace seconds.
        max_steps: stop early, for dry runs.

    Raises:
        Stop: the loss became NaN or infinite, or another process of the job ended.
        ValueError: the folder holds another run, or the batch cannot be split.
    """
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(True)        # else a second call could not change the precision
    accelerator = Accelerator(mixed_precision=recipe.precision, cpu=cpu)
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    images = feed(rank, world)
    total = max(1, round(recipe.epochs * images.steps_per_epoch))
    last = total if max_steps is None else min(total, max_steps)
    if main:
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
                         "All machines need the same folder. Give --out a folder on a shared disk.")
    if first:
        log.info("resuming after step %d of %d", first, total)
    wrapped = accelerator.prepare_model(objective)
    optimizer = accelerator.prepare_optimizer(optimizer)

    every = checkpoint_steps
    if world > 1 and not every:                                # processes agree on steps, not on clocks
        every = max(1, images.steps_per_epoch // 4)
    started = saved = time.perf_counter()
    bad = torch.zeros((), device=accelerator.device)
    sums: dict[str, Tensor] = {}

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            saver.save(step, spent + time.perf_counter() - started)

    metrics = _metrics(folder, first, tensorboard) if main else nullcontext()
    with metrics as write, _other_process_ended(world, folder):
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
                if write:
                    write(row, means)
                if tell and main:
                    tell(f"epoch {row['epoch']:.1f}/{recipe.epochs:g}  loss {row['loss']:.3f}  "
                         f"{row['images_per_second']:.0f} img/s", done, total)
                window, since, sums = now, done, {}
            if due and done < last:
                save(done)
                saved = time.perf_counter()
        save(last)
        accelerator.wait_for_everyone()
    if ema is not None:
        system.load_state_dict(ema.module.state_dict())
    return system.eval()


def seconds_spent(folder: Path) -> float:
    """Training time of a run, from its checkpoint."""
    with safe_open(folder / CHECKPOINT, "pt") as file:
        return float(file.metadata()["seconds"])


def _seed(seed: int, step: int, piece: int, rank: int) -> None:
    """Seed drop path and mixup, differently in every process."""
    number = seed_of(seed, step, piece, rank)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)


def _parameter_groups(system: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Biases, norms and what timm exempts do not decay; soft masks do not decay and have their own rate."""
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
                os.fsync(file.fileno())                    # else a power cut could leave an empty file
        self.step = step

    def load(self) -> tuple[int, float]:
        """Restore everything from the file, if there is one; returns (steps done, seconds spent)."""
        if not self.path.exists():
            return 0, 0.0
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
            differs = _difference(stored_identity(json.loads(about["identity"])), self.identity)
            if differs:
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
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting in which two runs differ, in words; "" for the same run."""
    for key in {**new, **old}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if differs := _difference(a, b):
                return differs
        elif a != b:
            return f"{key} is {a!r} there, and {b!r} here"
    return ""


def _nan_message(folder: Path, recipe: Recipe, step: int, saved: int) -> str:
    kept = f"The last good checkpoint, step {saved}, is {folder / CHECKPOINT}" if saved else \
        "No checkpoint had been written yet"
    return (f"The loss became NaN or infinite at or shortly before step {step}. {kept}. "
            f"Lower the rate (--set lr={recipe.lr / 3:.1g}) or clip gradients (--set clip_grad=1) in a new --out.")


# ---- what is written while it runs ----

@contextmanager
def _metrics(folder: Path, first: int, tensorboard: bool) -> Iterator[Callable[..., None]]:
    """A function that writes to metrics.csv and TensorBoard. What was written after the checkpoint is dropped."""
    path = folder / "metrics.csv"
    kept: list[dict[str, str]] = []
    if first and path.exists():
        with path.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if None not in r.values() and r["step"].isdigit()
                    and int(r["step"]) <= first]
    with replace_file(path) as temporary, temporary.open("w", newline="") as file:
        lines = csv.DictWriter(file, METRICS)
        lines.writeheader()
        lines.writerows(kept)
    board: Any = None
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter
        board = SummaryWriter(str(folder), purge_step=first)

    with path.open("a", newline="") as file:
        def write(row: dict[str, Any], means: dict[str, float]) -> None:
            csv.DictWriter(file, METRICS).writerow({k: f"{v:.6g}" for k, v in row.items()})
            file.flush()
            for name, value in (means | {k: row[k] for k in ("lr", "images_per_second")}).items():
                if board:
                    board.add_scalar(name, value, row["step"])

        try:
            yield write
        finally:
            if board:
                board.close()


@contextmanager
def _other_process_ended(world: int, folder: Path) -> Iterator[None]:
    """If another process of the job ends, say so in one sentence; torchrun then ends this one."""
    text = (f"Another process of this job ended, so this one stops. The last checkpoint is in {folder}. "
            "Type the same command again to resume.")
    if world == 1:
        yield
        return

    def told(*_: object) -> None:
        raise Stop(text)

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    except RuntimeError as error:                          # gloo and NCCL have their own messages
        if any(word in str(error).lower() for word in ("closed by peer", "connection", "gloo", "nccl", "timed out")):
            raise Stop(text) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
