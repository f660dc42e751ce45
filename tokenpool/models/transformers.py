"""ViT, DeiT and DINOv2 of Hugging Face's `transformers`, as the timm model that `PooledViT` knows how to run.

A model of transformers computes what a timm ViT computes; only its parts have other names. So nothing is ported: an
empty timm `VisionTransformer` is set up (on the meta device, without memory) and every place in it is filled with the
module or parameter of the model that was handed in. The parts are shared, not copied: training one trains the other,
and a part that was exchanged before (a LoRA layer, say) comes along. Three things that timm does otherwise are written
out below: transformers' position embedding, DeiT's second token, and the head of DINOv2.

transformers is not imported here and need not be installed; a model brings its library with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from timm.layers import AttentionRope, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

#: classes that can be pooled; the class decides what the head looks at
MODELS = ("ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification",
          "DeiTForImageClassificationWithTeacher", "Dinov2Model", "Dinov2ForImageClassification",
          "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")

#: part of a timm block -> where transformers keeps it; its modules were renamed in the course of release 5
_PARTS = {
    "norm1": ("layernorm_before", "norm1"),
    "attn.q_proj": ("attention.q_proj", "attention.attention.query"),
    "attn.k_proj": ("attention.k_proj", "attention.attention.key"),
    "attn.v_proj": ("attention.v_proj", "attention.attention.value"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "norm2"),
}
_OPTIONAL = {
    "attn.proj_drop": ("dropout", "attention.output.dropout"),
    "ls1": ("layer_scale1",),
    "ls2": ("layer_scale2", "dropout", "output.dropout"),      # ViT and DeiT have no scale, but a dropout there
    "drop_path1": ("drop_path",),
    "drop_path2": ("drop_path",),
}
_MLP = {"fc1": ("intermediate.dense",), "act": ("intermediate.intermediate_act_fn",), "fc2": ("output.dense",)}

#: model_type of transformers -> why not, or what to use
_ELSEWHERE = {
    "swin": "its windows need the full grid of tokens", "swinv2": "its windows need the full grid of tokens",
    "beit": "its relative position bias needs the full grid of tokens",
    "data2vec-vision": "its relative position bias needs the full grid of tokens",
    "clip": "timm has this family: timm.create_model('vit_base_patch16_clip_224', pretrained=True)",
    "clip_vision_model": "timm has this family: timm.create_model('vit_base_patch16_clip_224', pretrained=True)",
    "siglip": "timm has this family: timm.create_model('vit_base_patch16_siglip_224', pretrained=True)",
    "siglip_vision_model": "timm has this family: timm.create_model('vit_base_patch16_siglip_224', pretrained=True)",
    "dinov3_vit": "timm has this family: timm.create_model('vit_base_patch16_dinov3', pretrained=True)",
}


def as_timm(model: Any) -> Any:
    """The model itself, or a `TransformersViT` around it where it comes from transformers.

    Raises:
        ValueError: a model of transformers that cannot be pooled; the sentence says why and what can.
    """
    kind = next((k for k in type(model).__mro__ if k.__module__.partition(".")[0] == "transformers"), None)
    return model if kind is None else TransformersViT(model, kind)


class TransformersViT(VisionTransformer):
    """A timm ViT whose modules and parameters are those of a model of transformers.

    Called, it gives what that model gives: `logits`; without a classification head its `pooler_output` (DINOv2: the
    class token; ViT and DeiT: their pooler, or the class token without one). `forward_features` is its
    `last_hidden_state`. Images of other sizes are taken, with the positions interpolated as transformers does it
    (ViT and DeiT: with `interpolate_pos_encoding=True`).

    A state dict has transformers' names, so checkpoints load with and without pooling; a mask token, and a pooler that
    a classification model brings along, are not in it and are passed over when it loads.
    """

    head: Any                       # whatever module stands there, not only timm's kinds
    pos_embed: Any

    def __init__(self, model: Any, kind: Any) -> None:
        _refuse(model, kind)
        config, base = model.config, model.base_model
        embeddings = base.embeddings
        dist, registers = (getattr(embeddings, name, None) for name in ("distillation_token", "register_tokens"))
        layers = base.layers if hasattr(base, "layers") else base.encoder.layer
        super().__init__(
            img_size=_pair(config.image_size), patch_size=_pair(config.patch_size), in_chans=config.num_channels,
            num_classes=0, embed_dim=config.hidden_size, depth=0, num_heads=config.num_attention_heads,
            reg_tokens=0 if registers is None else registers.shape[1], dynamic_img_size=True,
            embed_layer=_PatchEmbed, weight_init="skip", device="meta")
        self.patch_embed.proj = embeddings.patch_embeddings.projection
        self.cls_token, self.reg_token, self.dist_token = embeddings.cls_token, registers, dist
        self.num_prefix_tokens += dist is not None
        self.pos_embed = embeddings.position_embeddings
        self.pos_drop = embeddings.dropout
        self.blocks = nn.Sequential(*(_block(layer, config) for layer in layers))
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [dict(module=f"blocks.{i}", num_chs=self.embed_dim, reduction=reduction)
                             for i in range(len(self.blocks))]
        self.norm = base.layernorm
        self.antialias = registers is not None                 # transformers' one difference between the two DINOv2
        # ---- the head ----
        self.head_dist = getattr(model, "distillation_classifier", None)
        self.head_sees_patches = kind.__name__.startswith("Dinov2") and hasattr(model, "classifier")
        self.head = _head(model)
        self.num_classes = config.num_labels if model is not base else 0

        self.grad_checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
        self.training = model.training                         # the parts keep the mode they are in
        left = [name for name, p in self.named_parameters() if p.is_meta]
        if left and not any(p.is_meta for p in model.parameters()):
            raise RuntimeError(f"{kind.__name__} has no part for {left[0]}: this release of transformers keeps its "
                               "modules elsewhere. Please report it.")
        theirs = {id(p): name for name, p in model.named_parameters()}
        self.names = {name: theirs[id(p)] for name, p in self.named_parameters()}
        self.passed_over = tuple(set(theirs.values()) - set(self.names.values()))
        self.register_state_dict_post_hook(_to_their_names)
        self.register_load_state_dict_pre_hook(_to_timms_names)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, rows, columns, C) -> tokens with positions (B, prefix + N, C); registers have no position."""
        rows, cols = x.shape[1:3]
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token) if t is not None]
        x = torch.cat([*prefix, x.flatten(1, 2)], dim=1) + self._positions(rows, cols, len(prefix))
        if self.reg_token is not None:
            x = torch.cat((x[:, :1], self.reg_token.expand(len(x), -1, -1), x[:, 1:]), dim=1)
        return self.pos_drop(x)

    def _positions(self, rows: int, cols: int, prefix: int) -> Tensor:
        if (rows, cols) == tuple(self.patch_embed.grid_size):
            return self.pos_embed
        patches = self.pos_embed[:, prefix:].reshape(1, *self.patch_embed.grid_size, -1).permute(0, 3, 1, 2)
        patches = nn.functional.interpolate(patches.float(), size=(rows, cols), mode="bicubic", align_corners=False,
                                            antialias=self.antialias).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :prefix], patches.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False, counts: Tensor | None = None) -> Tensor:
        """Normalised tokens -> logits.

        Args:
            counts: (B, K) where they are carried: DINOv2's mean over patches then counts every original patch once.
        """
        seen = x[:, 0]
        if self.head_sees_patches:
            patches = x[:, self.num_prefix_tokens:]
            if counts is None:
                mean = patches.mean(dim=1)
            else:
                mean = ((counts / counts.sum(1, keepdim=True)).to(x.dtype)[..., None] * patches).sum(1)
            seen = torch.cat((seen, mean), dim=1)
        if pre_logits:
            return seen if self.head_dist is None else (seen + x[:, 1]) / 2
        logits = self.head(seen)
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 1])) / 2

    def get_classifier(self) -> Any:
        return self.head if self.head_dist is None else (self.head, self.head_dist)


class _PatchEmbed(PatchEmbed):
    """As transformers does it: pixels take the weights' type, and a remainder at the edge is left out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.to(self.proj.weight.dtype)).permute(0, 2, 3, 1)


def _block(layer: Any, config: Any) -> nn.Module:
    """timm's block with the parts of one of transformers' layers."""
    width, heads = config.hidden_size, config.num_attention_heads
    block = Block(width, heads, mlp_ratio=0.0, device="meta")
    # q, k and v are three layers there; of timm's plain attentions this one keeps them apart (and has no RoPE to add)
    block.attn = AttentionRope(width, heads, attn_head_dim=getattr(config, "head_dim", None), qkv_fused=False,
                               attn_drop=config.attention_probs_dropout_prob, device="meta")
    if hasattr(layer, "mlp"):
        block.mlp = layer.mlp
    else:
        block.mlp = Mlp(width, 1, device="meta")
        _fill(block.mlp, layer, _MLP)
    _fill(block, layer, _PARTS)
    _fill(block, layer, {part: places for part, places in _OPTIONAL.items() if _find(layer, places) is not None})
    return block


def _fill(target: nn.Module, layer: Any, parts: Mapping[str, tuple[str, ...]]) -> None:
    for part, places in parts.items():
        found = _find(layer, places)
        if found is None:
            raise RuntimeError(f"{type(layer).__name__} has none of {', '.join(places)}: this release of transformers "
                               "keeps its modules elsewhere. Please report it.")
        owner, _, name = part.rpartition(".")
        setattr(target.get_submodule(owner), name, found)


def _find(layer: Any, places: tuple[str, ...]) -> Any:
    for place in places:
        try:
            return attrgetter(place)(layer)
        except AttributeError:
            continue
    return None


def _head(model: Any) -> nn.Module:
    for name in ("classifier", "cls_classifier"):
        if hasattr(model, name):
            return getattr(model, name)
    pooler = getattr(model, "pooler", None)
    return nn.Identity() if pooler is None else nn.Sequential(pooler.dense, pooler.activation)


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


# ---- state dicts: timm's names inside, transformers' outside ----

def _to_their_names(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, theirs in module.names.items():
        state[prefix + theirs] = state.pop(prefix + name)


def _to_timms_names(module: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
    for theirs in module.passed_over:
        state.pop(prefix + theirs, None)
    for name, theirs in module.names.items():
        if prefix + theirs in state:
            state[prefix + name] = state.pop(prefix + theirs)


# ---- what can be pooled ----

def _refuse(model: Any, kind: Any) -> None:
    name = type(model).__name__
    if kind.__name__ not in MODELS:
        base = type(getattr(model, "base_model", None)).__name__
        why = _ELSEWHERE.get(getattr(getattr(model, "config", None), "model_type", ""), "")
        if base in MODELS:
            why = f"its head needs what only it knows how to compute. Pool its model.base_model, a {base}"
        raise ValueError(f"{name} cannot be pooled{': ' + why if why else ''}. Of transformers' models these can: "
                         f"{', '.join(MODELS)}.")
    if type(model).forward is not kind.forward:
        raise ValueError(f"{name} cannot be pooled: its forward is its own and would be bypassed. Pool the "
                         f"{kind.__name__} that it extends.")
    rows, cols = _pair(model.config.image_size)
    if kind.__name__.startswith("Dinov2") and rows != cols:
        raise ValueError(f"{name} cannot be pooled: transformers reads the positions of DINOv2 as a square, and "
                         f"config.image_size is {rows} x {cols}. Create it for a square; images may be of any size.")
