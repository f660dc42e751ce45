"""Models by name: the widths of the paper and the small model that ships, as entries of timm's own registry.

`import timm, tokenpool`, in this order, is enough to write `timm.create_model("deit_e252_patch16_224")`.
"""

from __future__ import annotations

from typing import Any

from timm.models import VisionTransformer, register_model


@register_model
def deit_e252_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT with embedding width 252, between DeiT-Ti (192) and DeiT-S (384): 2.074 GMACs (paper Fig. 4; P, count C).

    Six heads of 42 channels are our reading (I): the paper's text does not give the number of heads.
    """
    return _deit(pretrained, kwargs, embed_dim=252, num_heads=6)


@register_model
def deit_e318_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT with embedding width 318: 3.213 GMACs (paper Fig. 4; P, count C). Six heads of 53 channels (I)."""
    return _deit(pretrained, kwargs, embed_dim=318, num_heads=6)


@register_model
def pebbles_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The model that ships: 64 x 64 pixels in 8 x 8 patches (64 tokens), 6 blocks, width 96, 30 classes."""
    _no_public_weights("pebbles_vit", pretrained)
    shape: dict[str, Any] = dict(img_size=64, patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=30)
    vit: Any = VisionTransformer(**(shape | _clean(kwargs)))
    # what timm's resolve_data_config reads: it was trained on pixels in -1..1, not on ImageNet's mean and deviation
    vit.pretrained_cfg = vit.default_cfg = dict(
        input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0, num_classes=30)
    return vit


def _deit(pretrained: bool, kwargs: dict[str, Any], **width: int) -> VisionTransformer:
    _no_public_weights(f"deit_e{width['embed_dim']}", pretrained)
    shape: dict[str, Any] = dict(patch_size=16, depth=12, **width)
    return VisionTransformer(**(shape | _clean(kwargs)))


def _clean(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without the entries that timm's factory adds for its own bookkeeping."""
    return {k: v for k, v in kwargs.items() if not k.startswith("pretrained_cfg") and k != "cache_dir"}


def _no_public_weights(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ValueError(f"{name} has no public pretrained weights. Create it with pretrained=False and load a "
                         f"checkpoint: timm.create_model({name!r}, checkpoint_path='file.safetensors').")
