"""Step 2 of the paper: how many tokens to keep after each block, learned with PoWER-BERT's soft masks.

Every block has a vector r with one entry per rank: the token with the p-th highest significance is multiplied by r[p].
An L1 term pulls the entries down, more strongly in deeper blocks; the task loss pulls up those it needs. sum(r) is then
the number of tokens that the block needs. A larger weight of the L1 term, lambda, keeps fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.core.cost import Cost, count_macs
from tokenpool.core.schedule import from_soft_masks
from tokenpool.models.attention import ONE_PIECE, attention_half, mlp_half, significance
from tokenpool.models.vit import PooledViT, model_shape


class SoftMaskViT(nn.Module):
    """A ViT with soft masks (PoWER-BERT's soft-extract layer; P, from its code).

    Between attention and MLP of every block, tokens are ranked by the attention they receive and scaled by the mask.
    The class token is neither ranked nor scaled, because it is never pooled. PoWER-BERT includes it (P); leaving it out
    is our choice (I).

    Args:
        penalty: lambda; the loss gets lambda * sum over blocks l = 1..L of l * sum(r_l).
    """

    vit: Any

    def __init__(self, vit: nn.Module, penalty: float) -> None:
        super().__init__()
        PooledViT(vit)                                     # raises for a model that cannot be pooled
        self.vit = vit
        if isinstance(self.vit.blocks[0], ONE_PIECE) or getattr(vit, "rope", None) is not None:
            raise ValueError("The search needs blocks with attention followed by an MLP, and absolute positions. Got "
                             f"{type(vit).__name__} with {type(self.vit.blocks[0]).__name__}.")
        self.penalty = penalty
        self.masks = nn.Parameter(torch.ones(len(self.vit.blocks), self.vit.patch_embed.num_patches))

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> logits (batch, classes); tokens are scaled, not removed."""
        vit, prefix = self.vit, self.vit.num_prefix_tokens
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        for block, mask in zip(vit.blocks, self.masks, strict=True):
            x, attention = attention_half(block, x, None, None)
            score = significance(attention.detach().float(), prefix)
            rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            x = torch.cat((x[:, :prefix], x[:, prefix:] * mask[rank][..., None].to(x.dtype)), 1)
            x = mlp_half(block, x)
        return vit.forward_head(vit.norm(x))

    def forward_with_terms(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the L1 term, weighted by depth."""
        depth = torch.arange(1, len(self.masks) + 1, device=self.masks.device)
        return self(x), {"mask": self.penalty * (depth * self.masks.sum(1)).sum()}

    def after_step(self) -> None:
        """Clip to [0, 1] after each step of the optimiser (P)."""
        with torch.no_grad():
            self.masks.clamp_(0, 1)

    def found_schedule(self) -> tuple[int, ...]:
        """K after each block: floor of the sum of the mask, at least 1, never rising (P). The last entry repeats the
        one before, because pooling after the last block would save nothing (I)."""
        found = from_soft_masks(self.masks.detach().tolist())
        return (*found[:-1], found[-2]) if len(found) > 1 else found

    @property
    def schedule(self) -> tuple[int, ...]:
        return self.found_schedule()

    def cost(self) -> Cost:
        """Of the ViT with the schedule found so far; without clustering, because no method is chosen yet."""
        return count_macs(model_shape(self.vit), self.found_schedule())

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        yield self.masks

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    def no_weight_decay(self) -> set[str]:
        return {"masks"} | {f"vit.{name}" for name in self.vit.no_weight_decay()}
