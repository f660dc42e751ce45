"""Fits a linear classifier on the frozen features of any ViT and saves both as a folder. Every command then takes
--model local-dir:FOLDER. Minutes on a CPU.

    tokenpool probe --model vits14 --data FOLDER --out mine
    tokenpool reproduce --model local-dir:mine --data FOLDER
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from tokenpool.cli import show
from tokenpool.cli.groups import ModelOptions
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    data: str = option(MISSING, "labelled images: a folder of Parquet files, or of one folder a class", "FOLDER")
    out: Path = option(MISSING, "for the model, and its cached features", "FOLDER")
    split: str = option("train", "of the data, to fit on")


def run(options: Options, model: ModelOptions) -> None:
    from tokenpool.measure.probe import fit_probe
    vit = model.open()
    with show.progress() as tell:
        probe = fit_probe(vit, options.data, options.out, options.split,
                          tell=lambda done, total: tell("features", done, total))
    print(f"{probe.classes} classes, {probe.images} images, C = {probe.strength:.3g}: "
          f"top-1 {100 * probe.top1:.1f} % (cross-validated on the images it was fitted on)\n"
          f"Now: tokenpool reproduce --model local-dir:{options.out} --data {options.data}")
