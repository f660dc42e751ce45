"""What can be pooled, and why all else cannot.

A pooled model runs timm's blocks one by one, so everything that happens between the images and the head must be known:
the kind of model, its embedding of positions, its blocks and their attention.
"""

from __future__ import annotations

from typing import Any

from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models import vision_transformer as timm_vit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from torch import nn

from tokenpool.models.attention import ONE_PIECE, TWO_HALVES, attentions
from tokenpool.models.transformers import TransformersViT

ATTENTIONS = (Attention, AttentionRope, EvaAttention, DiffAttention)


def refuse_unsupported(vit: Any, position: str = "after_block") -> None:
    """A ValueError that says why, where a model cannot be pooled at this position."""
    why = _why_not_model(vit) or next((why for why in map(why_not, vit.blocks) if why), None)
    if why is None and position == "before_mlp" and isinstance(vit.blocks[0], ONE_PIECE):
        why = "its blocks compute attention and MLP side by side, with nothing in between; use position='after_block'"
    if why:
        raise ValueError(f"{type(vit).__name__} cannot be pooled: {why}.")


def _why_not_model(vit: Any) -> str | None:
    if not isinstance(vit, (timm_vit.VisionTransformer, Eva)):
        return ("only models of timm's VisionTransformer and Eva families can: a stack of blocks over one set of "
                "tokens with absolute or rotary positions. Relative position bias, windows, stages and convolutions "
                "need the full grid of tokens")
    if type(vit).forward_features not in (timm_vit.VisionTransformer.forward_features, Eva.forward_features):
        return "its forward_features is its own and would be bypassed"
    if type(vit)._pos_embed not in (timm_vit.VisionTransformer._pos_embed, Eva._pos_embed,
                                    VisionTransformerDistilled._pos_embed, TransformersViT._pos_embed):
        return "its position embedding is its own"
    if not isinstance(getattr(vit, "patch_drop", None), (nn.Identity, type(None))):
        return "it drops patches in training; create it with patch_drop_rate=0"
    return None


def why_not(block: Any) -> str | None:
    """Why a block cannot be pooled, or None. Exact types: a subclass may compute something else."""
    if type(block) not in TWO_HALVES + ONE_PIECE:
        return f"its blocks are of type {type(block).__name__}"
    for attn in attentions(block):
        if type(attn) not in ATTENTIONS + ONE_PIECE:
            return f"its attention is of type {type(attn).__name__}"
    return None
