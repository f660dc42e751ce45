"""Token Pooling in Vision Transformers (Marin et al., 2021/2023): put any token downsampler into any timm ViT.

    import timm, tokenpool as tp

    vit = timm.create_model("deit_small_patch16_224")
    pooled = tp.PooledViT(vit, saving=0.42)         # shares vit's parameters
    logits = pooled(images)
    pooled.save("folder")                           # and tp.load("folder") gives it back
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenpool.core.cost import Cost
    from tokenpool.core.methods import init_names, method_names
    from tokenpool.core.pooling import Pooled, pool_tokens
    from tokenpool.models.attention import significance
    from tokenpool.models.model_cost import macs
    from tokenpool.models.trace import Trace
    from tokenpool.models.vit import OFF_THE_SHELF, PooledViT, load

__version__ = "0.1.0"
__all__ = ["OFF_THE_SHELF", "Cost", "Pooled", "PooledViT", "Trace", "init_names", "load", "macs", "method_names",
           "pool_tokens", "significance"]

#: imported when they are first used: `tokenpool --help` need not wait for torch
_HOMES = {"Pooled": "core.pooling", "Cost": "core.cost", "init_names": "core.methods",
          "method_names": "core.methods", "pool_tokens": "core.pooling", "significance": "models.attention",
          "OFF_THE_SHELF": "models.vit", "PooledViT": "models.vit", "load": "models.vit", "Trace": "models.trace",
          "macs": "models.model_cost"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenpool' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokenpool.{_HOMES[name]}"), name)


if "timm" in sys.modules:                   # timm.create_model("pebbles_vit") may come next
    importlib.import_module("tokenpool.models")
