"""`tokenpool probe`: give a model without classes a linear classifier for your own images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    one = commands.add_parser(
        "probe", help="fit a linear classifier on a model's frozen features, for your own images",
        description="Fit a linear classifier on the frozen features of any ViT and save both as a folder. Every "
                    "command then takes --model local-dir:FOLDER. Minutes on a CPU.")
    one.add_argument("--model", required=True, metavar="NAME", help="any timm ViT, vits14, local-dir:FOLDER")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, .safetensors or .pth")
    one.add_argument("--pretrained", action="store_true", help="timm's public weights")
    one.add_argument("--image-size", type=int, metavar="PX", help="default: the model's own")
    one.add_argument("--data", required=True, metavar="FOLDER", help="labelled images, as in reproduce")
    one.add_argument("--split", default="train", help="to fit on; default: train")
    one.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the model, and its cached features")
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from rich.progress import Progress

    from tokenpool.data.weights import load_model
    from tokenpool.measure.probe import fit_probe
    model = load_model(args.model, args.checkpoint, args.pretrained, args.image_size)
    with Progress() as bar:
        task = bar.add_task("features")
        probe = fit_probe(model, args.data, args.out, args.split,
                          tell=lambda done, total: bar.update(task, completed=done, total=total))
    print(f"{probe.classes} classes, {probe.images} images, C = {probe.strength:.3g}: "
          f"top-1 {100 * probe.top1:.1f} % (cross-validated on the images it was fitted on)\n"
          f"Now: tokenpool reproduce --model local-dir:{args.out} --data {args.data}")
