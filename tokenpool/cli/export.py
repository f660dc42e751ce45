"""Writes a pooled model as one file, ONNX or torch.export, for any number of images, and compares it with PyTorch:
answers on several batch sizes, and time in turns.

    tokenpool export pebbles_vit --saving 0.42 --out model.onnx
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from tokenpool.cli.groups import OneModel, PoolingOptions
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    out: Path = option(MISSING, "model.onnx (ONNX) or model.pt2 (torch.export)", "FILE")
    rounds: int = option(7, "of the timing", "N")


def run(options: Options, model: OneModel, pooling: PoolingOptions) -> None:
    import torch

    import tokenpool as tp
    from tokenpool.data.datasets import open_data
    from tokenpool.data.weights import SHIPPED
    from tokenpool.measure import export

    export.check_path(options.out)
    pooled = pooling.pool(model.open())
    if model.model == SHIPPED:
        images, said = next(iter(open_data("pebbles", pooled.vit, count=96)))[0], "pebbles"
    else:
        embed = pooled.vit.patch_embed
        images = torch.randn(16, embed.proj.in_channels, *embed.img_size, generator=torch.Generator().manual_seed(0))
        said = "random images"
    if not model.trained:
        print(f"{model.model} has random weights: add --pretrained or --checkpoint FILE for a useful model.")
    about = {"tokenpool": tp.__version__, "model": model.model, "pooling": pooled.extra_repr()}
    export.save(export.trace(pooled), options.out, about)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {tp.macs(pooled)}\n"
          f"Compared on {len(images)} {said}.")
    report = export.compare(options.out, pooled, images, rounds=options.rounds)
    for sentence in export.say(report, options.out):
        print(sentence)
    if not report.equal:
        raise ValueError(f"{options.out} does not answer as PyTorch does, see above. It is kept for a look; "
                         "do not use it.")
