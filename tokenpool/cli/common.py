"""What several commands share."""

from __future__ import annotations

import argparse


def _check_device(device: str) -> None:
    import torch
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device {device}: PyTorch finds no such device here. Use cpu, cuda or mps.")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"--device {device}: PyTorch finds no such device here. Use --device cpu.")


def _to_measure(args: argparse.Namespace) -> tuple:
    """The model and the images, or why they cannot be measured."""
    from tokenpool.data.datasets import open_data
    from tokenpool.data.weights import SHIPPED
    from tokenpool.models.vit import PooledViT
    from tokenpool.train.jobs import open_model
    from tokenpool.train.recipe import PRESETS
    model = open_model(args.model, args.checkpoint, args.pretrained)
    PooledViT(model)                       # refuses what cannot be pooled, before anything is read
    comes_with_weights = args.model == SHIPPED or ":" in args.model or args.model.split("/")[0] in PRESETS
    if not comes_with_weights and args.checkpoint is None and not args.pretrained:
        raise ValueError(f"{args.model} would have random weights, and every accuracy would be chance. "
                         "Add --pretrained or --checkpoint FILE.")
    return model, open_data(args.data, model, args.images, args.split, download=args.download)


def _settings(args: argparse.Namespace) -> dict[str, str]:
    settings = {}
    for item in args.settings:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: write it as FIELD=VALUE, such as epochs=3.")
        settings[name] = value
    return settings
