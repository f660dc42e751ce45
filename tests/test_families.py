"""Every model of timm's VisionTransformer and Eva families: timm's own logits when nothing is dropped, and a schedule.

Each name is built with its own entry function (so with its own norms, heads, registers, rotary positions, ...), only
shallower, narrower and for smaller pictures. The oracle is timm's own forward.
"""

import timm
import torch
from timm.models import Eva, VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool import attention
import pytest

MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")
NAMES = [n for m in MODULES for n in timm.list_models(module=m)] + ["deit_e252_patch16_224", "pebbles_vit"]
#: nothing else about these is changed than what makes them small
SMALL = dict(depth=3, embed_dim=192, num_heads=3, num_classes=7)


def small(name):
    patch = 8 if name == "pebbles_vit" else None
    options = dict(SMALL)
    if "sapiens2" in name:
        options["num_kv_heads"] = 3
    if name.startswith("flexivit") or patch is None:
        size = timm.get_pretrained_cfg(name)
    torch.manual_seed(0)
    return timm.create_model(name, **options, img_size=96 if "resnet" in name or "r26" in name or "r50" in name else 64)
