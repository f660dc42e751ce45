"""Choose K per block from a few images: measure what each block loses alone, then find the best schedule in the budget.

Nothing is trained and no labels are needed. That the losses of several blocks add up is an assumption (I).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenpool.core.checks import one_of
from tokenpool.core.schedule import between, by_error, levels

LOSSES = ("features", "reconstruction")


def fit_schedule(pooled: Any, images: Tensor | Sequence[Mapping[int, float]], saving: float, by: str = "features"
                 ) -> tuple[int, ...]:
    """Set and return the schedule with the least loss; see `PooledViT.fit_schedule`."""
    n, depth = pooled.vit.patch_embed.num_patches, len(pooled.vit.blocks)
    if isinstance(saving, bool) or not 0 < saving < 1:
        raise ValueError(f"saving={saving} is not a share of the computations. Use a number such as 0.42.")
    measured = losses(pooled, images, by) if isinstance(images, Tensor) else images
    if len(measured) != depth - 1 or any(n not in curve for curve in measured):
        raise ValueError(f"These losses are not of this model, which has {depth} blocks and {n} patch tokens. "
                         "Pass the result of its own losses(images), or the images.")
    curves = [between(curve, levels(n, 0.93)) for curve in measured]
    shape = pooled.shape(n)
    found = by_error(curves, shape.block, int((1 - saving) * shape.cost(None).total) - shape.model.patch_embed)
    pooled.set_schedule(found)
    return found


@torch.inference_mode()
def losses(pooled: Any, images: Tensor, by: str = "features") -> list[dict[int, float]]:
    """What is lost where one block pools and no other; see `PooledViT.losses`."""
    one_of("by", by, LOSSES, "")
    vit = pooled.vit
    n, depth = vit.patch_embed.num_patches, len(vit.blocks)
    height, width = vit.patch_embed.img_size
    if images.ndim != 4 or tuple(images.shape[2:]) != (height, width):
        raise ValueError(f"Got images of shape {tuple(images.shape)}. "
                         f"Expected (batch, channels, {height}, {width}), prepared as for forward.")
    if depth < 2:
        raise ValueError("There is nothing to choose in a model of one block: pooling after the last block saves "
                         "nothing.")
    ks = levels(n, 0.75)
    lost: list[dict[int, float]] = [{k: 0.0 for k in ks} for _ in range(depth - 1)]
    spread = 0.0                                  # of the answers, over the images
    training = vit.training                       # a model in evaluation mode, newly wrapped, stays in it
    vit.eval()
    for batch in images.split(32):
        first = pooled.start(batch, schedule=(1,) * depth)
        plain, entries = replace(first, schedule=(n,) * depth), []
        for _ in range(depth):
            entries.append(plain.x)
            pooled.step(plain)
        truth = pooled.finish(plain).double()
        spread += float((truth - truth.mean(0)).square().sum())
        for block, x in enumerate(entries[:-1]):
            for k in ks[1:]:
                state = replace(first, x=x, block=block, schedule=(k,) * depth)
                pooled.step(state)
                if by == "reconstruction":
                    lost[block][k] += float(state.pooled.error.sum())
                    continue
                for _ in range(block + 1, depth):
                    pooled.step(state)
                lost[block][k] += float((pooled.finish(state).double() - truth).square().sum())
    vit.train(training)
    if not all(math.isfinite(e) for curve in lost for e in curve.values()):
        raise ValueError("The model returns NaN or infinity on these images. Check them and the weights.")
    whole = len(images) if by == "reconstruction" else max(spread, 1e-30)
    return [{k: e / whole for k, e in curve.items()} for curve in lost]
