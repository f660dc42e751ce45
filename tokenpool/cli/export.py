"""tokenpool export"""

from __future__ import annotations

import argparse
from pathlib import Path


def _export_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("model", help="pebbles_vit, any timm ViT, local-dir:FOLDER")
    one.add_argument("--out", type=Path, required=True, metavar="FILE",
                     help="model.onnx (ONNX) or model.pt2 (torch.export)")
    one.add_argument("--saving", type=float, metavar="SHARE", help="of the computations, such as 0.42")
    one.add_argument("--schedule", nargs="+", type=int, metavar="K", help="tokens kept after each block, instead")
    one.add_argument("--method", default="wk_medoids", metavar="NAME",
                     help="or tokenpool, what we recommend without training; default: wk_medoids")
    one.add_argument("--init", "--start", metavar="NAME", help="of a clustering; default: top_k")
    one.add_argument("--output", metavar="NAME", help="what a clustering returns: medoid, mean or weighted_mean")
    one.add_argument("--counts", action="store_true", help="carry counts into later attention")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, .safetensors or .pth")
    one.add_argument("--pretrained", action="store_true", help="timm's public weights")
    one.add_argument("--rounds", type=int, default=7, metavar="N", help="of the timing; default: 7")


def _export(args: argparse.Namespace) -> None:
    import torch

    import tokenpool as tp
    from tokenpool.data.datasets import open_data
    from tokenpool.data.weights import SHIPPED, load_model
    from tokenpool.measure import export
    from tokenpool.models.published import NAMED
    export.check_path(args.out)
    model = load_model(args.model, args.checkpoint, args.pretrained)
    way = dict(method=args.method, init=args.init, output=args.output, carry_counts=args.counts)
    if args.method in NAMED:
        if args.init or args.output or args.counts:
            raise ValueError(f"{args.method} has its own options. Leave out --start, --output and --counts.")
        way = NAMED[args.method]
    pooled = tp.PooledViT(model, args.schedule, saving=args.saving, **way).eval()
    if args.model == SHIPPED:
        images, said = next(iter(open_data("pebbles", model, count=96)))[0], "pebbles"
    else:
        embed = pooled.vit.patch_embed
        images = torch.randn(16, embed.proj.in_channels, *embed.img_size, generator=torch.Generator().manual_seed(0))
        said = "random images"
        if args.checkpoint is None and not args.pretrained and ":" not in args.model:
            print(f"{args.model} has random weights: add --pretrained or --checkpoint FILE for a model of use.")
    about = {"tokenpool": tp.__version__, "model": args.model, "pooling": pooled.extra_repr()}
    export.save(export.trace(pooled), args.out, about)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {tp.macs(pooled)}")
    print(f"Compared on {len(images)} {said}.")
    report = export.compare(args.out, pooled, images, rounds=args.rounds)
    for sentence in export.say(report, args.out):
        print(sentence)
    if not report.equal:
        raise ValueError(f"{args.out} does not answer as PyTorch does, see above. It is kept for a look; "
                         "do not use it.")
