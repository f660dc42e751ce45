"""What a timm ViT costs, with and without pooling: the numbers that core/cost.py counts with, read off the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, DiffAttention, HybridEmbed
from timm.models import vision_transformer as timm_vit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokenpool.core.cost import BlockShape, Cost, ModelShape, count_macs
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import for_saving
from tokenpool.models.attention import ONE_PIECE, attentions
from tokenpool.models.supported import refuse_unsupported
from tokenpool.models.transformers import as_timm


def macs(model: nn.Module, image_size: tuple[int, int] | None = None) -> Cost:
    """Multiply-accumulates of one image: total, per block, per part, with and without clustering.

    Args:
        model: a PooledViT, a timm ViT that could become one, or a model with a `cost()` of its own, such as those of
            baselines.py.
        image_size: (height, width); None: the size the model was made for.

    Returns:
        Cost. Equals what torch's FLOP counter finds on the running model, halved (a test compares them).

    >>> import timm
    >>> print(macs(timm.create_model("deit_tiny_patch16_224")))
    1.254 GMACs, 1.254 without clustering; 83.4% fully connected, 14.3% attention
    """
    cost: Callable[..., Cost] | None = getattr(model, "cost", None)
    if cost is not None:
        return cost() if image_size is None else cost(image_size)
    vit = as_timm(model)
    refuse_unsupported(vit)
    return count_macs(model_shape(vit, patches(vit, image_size)))


def patches(vit: Any, image_size: tuple[int, int] | None = None) -> int:
    """Number of patch tokens of an image."""
    if image_size is None:
        return vit.patch_embed.num_patches
    rows, cols = vit.patch_embed.dynamic_feat_size(image_size)
    return rows * cols


@dataclass(frozen=True)
class PooledShape:
    """All that the cost of a pooled model depends on, but for the schedule."""

    model: ModelShape
    pooling: Pooling
    width: int | None               # channels of what is compared; None: those of the tokens
    labels: bool                    # whether labels are read, because counts are carried
    inside: bool                    # pool between attention and MLP

    def cost(self, schedule: Sequence[int] | None) -> Cost:
        return self._count(self.model, schedule)

    def block(self, block: int, n: int, k: int) -> int:
        """Multiply-adds of one block from n tokens to k, for the last one with all that follows."""
        last = block == len(self.model.blocks) - 1
        return self._count(replace(self.model, patches=n, patch_embed=0, blocks=(self.model.blocks[block],),
                                   head=self.model.head if last else 0,
                                   head_token=self.model.head_token if last else 0), (k,)).total

    def _count(self, model: ModelShape, schedule: Sequence[int] | None) -> Cost:
        return count_macs(model, schedule, lambda n, k: self.pooling.macs(
            n, k, model.channels, labels=self.labels, d=self.width), self.inside)


@functools.lru_cache(maxsize=256)
def schedule_for_saving(saving: float, shape: PooledShape) -> tuple[int, ...]:
    """The geometric schedule that saves this share; remembered, because other image sizes ask in every forward."""
    return for_saving(saving, shape.model.patches, len(shape.model.blocks), lambda ks: shape.cost(ks).total)


def model_shape(vit: Any, patches: int | None = None) -> ModelShape:
    """Everything that the cost of a timm ViT depends on."""
    n = patches or vit.patch_embed.num_patches
    head = _linear(vit.head) + _linear(getattr(vit, "head_dist", None))
    head_token = 0
    attn = getattr(vit, "attn_pool", None)
    if isinstance(attn, AttentionPoolLatent):
        head += attn.latent_len * (_linear(attn.q) + _linear(attn.proj) + _linear(attn.mlp))
        head_token = _linear(attn.kv) + 2 * attn.latent_len * attn.num_heads * attn.head_dim
    elif attn is not None:
        raise ValueError(f"The cost of a {type(attn).__name__} head is not known. Count it with torch's FLOP counter.")
    elif not vit.global_pool and type(vit) is not VisionTransformerDistilled:
        head, head_token = 0, head
    prefix_seen = isinstance(vit, Eva) or bool(getattr(vit, "pool_include_prefix", False)) or attn is None
    return ModelShape(n, vit.num_prefix_tokens, vit.embed_dim, _stem(vit.patch_embed, n),
                      tuple(_block_shape(b) for b in vit.blocks), head, head_token, prefix_seen)


def _linear(module: nn.Module | None) -> int:
    """Multiply-adds per token of all linear layers inside."""
    if module is None:
        return 0
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _block_shape(block: Any) -> BlockShape:
    if isinstance(block, ONE_PIECE):
        width = block.in_split[1]
        qkv, proj = 3 * width * block.in_proj.in_features, width * block.in_proj.in_features
        pair = 3 * width if isinstance(block, timm_vit.DiffParallelScalingBlock) else 2 * width
        return BlockShape(qkv, proj, _linear(block) - qkv - proj, pair)
    attns = attentions(block)
    mlp = block.ffns if isinstance(block, timm_vit.ParallelThingsBlock) else block.mlp
    proj = sum(_linear(a.proj) for a in attns)
    pair = sum(3 * a.proj.in_features if isinstance(a, DiffAttention) else 2 * a.num_heads * a.head_dim for a in attns)
    return BlockShape(sum(map(_linear, attns)) - proj, proj, _linear(mlp), pair)


def _stem(embed: Any, n: int) -> int:
    if not isinstance(embed, HybridEmbed):
        return embed.proj.weight.numel() * n
    # a convolutional stem is measured, not derived, at the size it was made for
    parameter = next(embed.parameters())
    training = embed.training
    image = torch.zeros(1, 3, *embed.img_size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embed.eval()(image)
    embed.train(training)
    return counter.get_total_flops() // 2
