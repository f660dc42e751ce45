"""Token Pooling in Vision Transformers (Marin et al., 2021/2023): put any token downsampler into any timm ViT.

    import timm, tokenpool as tp

    vit = timm.create_model("deit_small_patch16_224", pretrained=True)
    pooled = tp.PooledViT(vit, saving=0.42)         # shares vit's parameters
    logits = pooled(images)
    pooled.save("folder")                           # and tp.load("folder") gives it back
"""

import tokenpool.models.names  # noqa: F401  registers deit_e252, deit_e318, pebbles_vit, vits14
from tokenpool.core.clustering import Pooled
from tokenpool.core.cost import Cost
from tokenpool.core.methods import init_names, method_names, pool_tokens
from tokenpool.models.attention import significance
from tokenpool.models.vit import OFF_THE_SHELF, PooledViT, Trace, macs

__version__ = "0.1.0"
__all__ = ["OFF_THE_SHELF", "Cost", "Pooled", "PooledViT", "Trace", "init_names", "load", "macs", "method_names",
           "pool_tokens", "significance"]

load = PooledViT.load
