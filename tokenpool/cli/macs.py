"""tokenpool macs"""

from __future__ import annotations

import argparse


def _options(one: argparse.ArgumentParser) -> None:
    one.add_argument("model", help="a timm ViT, such as deit_small_patch16_224")
    one.add_argument("--saving", type=float, metavar="SHARE", help="share of the computations to save")
    one.add_argument("--method", default="wk_medoids")


def _macs(args: argparse.Namespace) -> None:
    import tokenpool as tp
    from tokenpool.data.weights import load_model
    model = load_model(args.model)
    print(f"plain   {tp.macs(model)}")
    if args.saving is not None:
        pooled = tp.PooledViT(model, saving=args.saving, method=args.method)
        print(f"pooled  {tp.macs(pooled)}\nK after each block: {' '.join(map(str, pooled.schedule))}")
