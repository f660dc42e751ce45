"""Writes one page that opens without Python: move a slider from all patches of a photograph to one, and see which
patches share a token after each block. Without IMAGE: six photographs, as a real ViT-S/14 saw them.

    tokenpool clusters
    tokenpool clusters holiday.jpg --model vits14 --image-size 448 --block 6 --k 6
"""

from dataclasses import dataclass
from pathlib import Path

from tokenpool.cli import show
from tokenpool.cli.groups import ModelOptions
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    images: tuple[Path, ...] = option((), "image files, cut to squares", "IMAGE", flag="")
    block: int = option(6, "shown first; the page can switch to the others", "N")
    k: int = option(6, "tokens shown first", "K")
    out: Path = option(Path("results/clusters.html"), "the page", "FILE")


def run(options: Options, model: ModelOptions) -> None:
    from tokenpool.data.photographs import read_image
    from tokenpool.report import clusters

    photos = clusters.shipped()
    if options.images:
        vit = model.open()
        size, blocks = vit.patch_embed.img_size[0], sorted({*clusters.BLOCKS, options.block})
        blocks = [b for b in blocks if b <= len(vit.blocks) or b == options.block]
        photos = [clusters.photograph(path.stem, read_image(path, size), vit, blocks) for path in options.images]
    elif options.block not in clusters.BLOCKS:
        shipped = ", ".join(map(str, clusters.BLOCKS))
        raise ValueError(f"--block {options.block}: the shipped photographs have {shipped}. Give an IMAGE for others.")
    show.written(clusters.write_page(options.out, photos, options.block, options.k))
