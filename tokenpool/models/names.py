"""Models by name: the widths of the paper and the small model that ships, as entries of timm's own registry.

Importing `tokenpool` is enough to write `timm.create_model("deit_e252_patch16_224")`.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer, register_model
from timm.models.vision_transformer import vit_small_patch14_dinov2


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
    return VisionTransformer(**(shape | _clean(kwargs)))


@register_model
def vits14(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S/14 in DINOv2's layout: 224 x 224 pixels, 256 tokens, 12 blocks, width 384; a head for ten dog breeds.

    `tokenpool.data.weights.load_model("vits14")` gives it its weights; data/README.md says where they are from.
    """
    _no_public_weights("vits14", pretrained)
    images = dict(input_size=(3, 224, 224), crop_pct=1.0, interpolation="bicubic", num_classes=10,
                  mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    shape: dict[str, Any] = dict(img_size=224, num_classes=10)
    return vit_small_patch14_dinov2(pretrained_cfg=images, **(shape | _clean(kwargs)))


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
