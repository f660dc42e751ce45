"""Train the model that ships: a small ViT on pebbles, from nothing, on a processor.

    tokenpool train-default --out results/pebbles_vit

Stopped at any moment it goes on from the last finished epoch when the command is typed again.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenpool.runs.files import replace_file
from tokenpool.runs.pebbles import Pebbles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of the shipped weights. On two CPU cores: about 25 minutes; top-1 on new pictures >= 95 %."""

    model: str = "pebbles_vit"
    pictures: int = 40_000        # drawn once, seed below; augmentation makes each epoch new
    epochs: int = 14
    batch_size: int = 128
    lr: float = 1.5e-3            # AdamW, cosine to zero, one epoch of warm-up
    weight_decay: float = 0.05    # as DeiT
    shift: int = 4                # random translation in pixels
    train_seed: int = 1           # pictures to learn from; other seeds are never looked at in training
    val_seed: int = 2             # pictures for the number printed after each epoch
    val_pictures: int = 2_000
    seed: int = 0                 # weights, order, augmentation


def train_default(config: TrainConfig, out: Path, threads: int | None = None,
                  progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Train and write `out/model.safetensors` (half precision) and `out/card.json`; returns the weights' path.

    Args:
        progress: called with (what is going on, done, total).
    """
    import timm

    import tokenpool  # noqa: F401  registers the model names

    if threads:
        torch.set_num_threads(threads)
    tell = progress or (lambda what, done, total: None)
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    torch.manual_seed(config.seed)
    model = timm.create_model(config.model)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": config.weight_decay},
                                   {"params": rest, "weight_decay": 0.0}], lr=config.lr, fused=True)
    steps = config.pictures // config.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: _warm_cosine(s, steps, steps * config.epochs))

    first, spent, state_file = 0, 0.0, out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["config"] != asdict(config):
            raise ValueError(f"{state_file} holds a run with another recipe. Give another --out or delete it.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, spent = state["epoch"], state["seconds"]
        log.info("going on after epoch %d of %d", first, config.epochs)

    images, labels = draw(Pebbles(seed=config.train_seed), config.pictures, tell, "drawing pictures")
    val = draw(Pebbles(seed=config.val_seed), config.val_pictures, tell, "drawing new pictures to check on")
    accuracy = 0.0
    for epoch in range(first, config.epochs):
        model.train()
        rng = torch.Generator().manual_seed(config.seed * 1000 + epoch)
        order = torch.randperm(config.pictures, generator=rng)
        loss_sum = 0.0
        for step in range(steps):
            pick = order[step * config.batch_size:(step + 1) * config.batch_size]
            loss = F.cross_entropy(model(augment(images[pick], config.shift, rng)), labels[pick])
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"The loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}. "
                                         f"The last good state is {state_file}; lower lr={config.lr} and go on.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
            if step % 10 == 0:
                tell(f"epoch {epoch + 1}/{config.epochs}  loss {loss_sum / (step + 1):.3f}  "
                     f"last top-1 {100 * accuracy:.1f} %", epoch * steps + step, steps * config.epochs)
        accuracy = top1(model, *val)
        log.info("epoch %2d  loss %.4f  top-1 on new pictures %.2f %%  %.0f s", epoch + 1, loss_sum / steps,
                 100 * accuracy, spent + time.time() - started)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                 "epoch": epoch + 1, "seconds": spent + time.time() - started, "config": asdict(config)}
        with replace_file(state_file) as temporary:
            torch.save(state, temporary)

    weights = out / "model.safetensors"
    model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})   # what a user will load
    accuracy = top1(model, *val)
    with replace_file(weights) as temporary:
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, temporary)
    card = {"command": "tokenpool train-default", "config": asdict(config), "top1_new_pictures": accuracy,
            "seconds": round(spent + time.time() - started), "device": f"CPU, {torch.get_num_threads()} threads",
            "torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    with replace_file(out / "card.json") as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")
    state_file.unlink(missing_ok=True)
    return weights


def draw(scenes: Pebbles, count: int, tell: Callable[[str, int, int], None], what: str,
         chunk: int = 400) -> tuple[Tensor, Tensor]:
    """The first `count` pictures: (count, 3, size, size) uint8 and (count,) int64."""
    images = torch.empty(count, 3, scenes.size, scenes.size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        pictures, truth, _ = scenes.batch(range(start, stop))
        images[start:stop], labels[start:stop] = torch.from_numpy(pictures), torch.from_numpy(truth)
        tell(what, stop, count)
    return images, labels


def augment(images: Tensor, shift: int, rng: torch.Generator) -> Tensor:
    """Colour channels in a random order, negatives half of the time, moved by up to `shift` pixels; scaled to +-1.

    None of these changes a material, so none changes the label. A mirror image would: diagonal stripes would turn.
    """
    B, C, H, W = images.shape
    channels = torch.argsort(torch.rand(B, C, generator=rng), 1)[:, :, None, None].expand(-1, -1, H, W)
    x = images.gather(1, channels).float() / 127.5 - 1
    x = x * (1 - 2 * torch.randint(0, 2, (B, 1, 1, 1), generator=rng))
    dy, dx = torch.randint(-shift, shift + 1, (2, B, 1), generator=rng)
    rows = (torch.arange(H) + dy).abs()
    cols = (torch.arange(W) + dx).abs()
    rows, cols = (H - 1) - ((H - 1) - rows).abs(), (W - 1) - ((W - 1) - cols).abs()       # mirrored at the border
    x = x.gather(2, rows[:, None, :, None].expand(-1, C, -1, W))
    return x.gather(3, cols[:, None, None, :].expand(-1, C, H, -1))


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """Share of pictures (uint8) whose most probable class is the true one, between 0 and 1."""
    model.eval()
    right = 0
    for start in range(0, len(images), batch_size):
        x = images[start:start + batch_size].float() / 127.5 - 1
        right += int((model(x).argmax(1) == labels[start:start + batch_size]).sum())
    return right / len(images)


def _warm_cosine(step: int, warm: int, total: int) -> float:
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))
