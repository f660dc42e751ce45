"""Models by name: the widths of the paper, the small model that ships, and vits14, as entries of timm's own registry.

`import timm, tokenpool`, in this order, is enough to write `timm.create_model("deit_e252_patch16_224")`.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer, build_model_with_cfg, register_model
from timm.models.vision_transformer import checkpoint_filter_fn


@register_model
def deit_e252_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT with embedding width 252, between DeiT-Ti (192) and DeiT-S (384): 2.074 GMACs (paper Fig. 4; P, count C).

    Six heads of 42 channels are our reading (I): the paper's text does not give the number of heads.
    """
    return _build("deit_e252_patch16_224", pretrained, kwargs, patch_size=16, depth=12, embed_dim=252, num_heads=6)


@register_model
def deit_e318_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT with embedding width 318: 3.213 GMACs (paper Fig. 4; P, count C). Six heads of 53 channels (I)."""
    return _build("deit_e318_patch16_224", pretrained, kwargs, patch_size=16, depth=12, embed_dim=318, num_heads=6)


@register_model
def pebbles_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The model that ships: 64 x 64 pixels in 8 x 8 patches (64 tokens), 6 blocks, width 96, 30 classes."""
    return _build("pebbles_vit", pretrained, kwargs, img_size=64, patch_size=8, embed_dim=96, depth=6, num_heads=3,
                  num_classes=30)


@register_model
def vits14(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S/14 in DINOv2's layout: 224 x 224 pixels, 256 tokens, 12 blocks, width 384; a head for ten dog breeds.

    `tokenpool.data.weights.load_model("vits14")` gives it its weights; data/README.md says where they are from.
    """
    return _build("vits14", pretrained, kwargs, img_size=224, patch_size=14, embed_dim=384, depth=12, num_heads=6,
                  init_values=1e-5, num_classes=10)


def _build(name: str, pretrained: bool, kwargs: dict[str, Any], **shape: Any) -> VisionTransformer:
    """By timm's builder, so that a folder with weights of one of these models loads as timm's own do."""
    # what timm's resolve_data_config reads; pebbles_vit was trained on pixels in -1..1
    mean, std = ((0.5,) * 3,) * 2 if name == "pebbles_vit" else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    images = kwargs.pop("pretrained_cfg", None) or dict(
        crop_pct=0.875 if name.startswith("deit") else 1.0, mean=mean, std=std, interpolation="bicubic",
        input_size=(3, *2 * (shape.get("img_size", 224),)), num_classes=shape.get("num_classes", 1000))
    if pretrained and not ("hf_hub_id" in images or "file" in images):
        raise ValueError(f"{name} has no public pretrained weights. Create it with pretrained=False and load a "
                         f"checkpoint: timm.create_model({name!r}, checkpoint_path='file.safetensors').")
    return build_model_with_cfg(VisionTransformer, name, pretrained, pretrained_cfg=images,
                                pretrained_filter_fn=checkpoint_filter_fn, **(shape | kwargs))
