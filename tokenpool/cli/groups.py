"""Groups of options that several commands share, and what is opened with them."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from tokenpool.measure.options import option


@dataclass(frozen=True)
class ModelOptions:
    model: str = option("pebbles_vit", "any timm ViT, vits14, or PRESET/MODEL such as imagenet50_cpu/ti")
    checkpoint: Path | None = option(None, "weights, .safetensors or .pth", "FILE")
    pretrained: bool = option(False, "timm's public weights")
    image_size: int | None = option(None, "side of the images in pixels, positions are resampled; default: the model's",
                                    "PX")

    @property
    def trained(self) -> bool:
        """Whether the weights are anything but random."""
        from tokenpool.data.weights import WITH_WEIGHTS
        from tokenpool.train.recipe import PRESETS
        brings_weights = self.model in WITH_WEIGHTS or ":" in self.model or self.model.split("/")[0] in PRESETS
        return brings_weights or self.checkpoint is not None or self.pretrained

    def open(self) -> Any:
        from tokenpool.train.jobs import open_model
        return open_model(self.model, self.checkpoint, self.pretrained, image_size=self.image_size)


@dataclass(frozen=True)
class OneModel(ModelOptions):
    model: str = option(MISSING, "pebbles_vit, vits14, any timm ViT such as deit_small_patch16_224, PRESET/MODEL or "
                        "local-dir:FOLDER", "MODEL", flag="")


@dataclass(frozen=True)
class PoolingOptions:
    saving: float | None = option(None, "share of the computations to save, such as 0.42", "SHARE", share=True)
    schedule: tuple[int, ...] = option((), "tokens kept after each block, in place of --saving", "K")
    method: str = option("wk_medoids", "or tokenpool, what we recommend without finetuning")
    init: str = option("", "of a clustering; default: top_k")
    output: str = option("", "of a clustering: medoid, mean or weighted_mean")
    counts: bool = option(False, "carry counts into later attention (proportional attention)")

    def pool(self, model: Any) -> Any:
        """A PooledViT."""
        import tokenpool as tp
        from tokenpool.models.published import NAMED
        if self.method in NAMED and (self.init or self.output or self.counts):
            raise ValueError(f"{self.method} has its own options. Leave out --init, --output and --counts.")
        own = dict(method=self.method, init=self.init or None, output=self.output or None, carry_counts=self.counts)
        return tp.PooledViT(model, self.schedule or None, saving=self.saving, **NAMED.get(self.method, own)).eval()


@dataclass(frozen=True)
class DataOptions:
    data: str = option("pebbles", "pebbles; a folder of Parquet files, or of one folder a class; or a timm name")
    split: str = option("validation", "of the data")
    images: int | None = option(None, "how many; default: 600 of pebbles, all of others", "N")
    download: bool = option(False, "let torch/ data sets download themselves")


@dataclass(frozen=True)
class PresetOptions:
    data: str | None = option(None, "another place of the preset's data: a folder or a timm name")
    settings: tuple[str, ...] = option((), "change the preset's recipe, such as epochs=3 lr=1e-4", "FIELD=VALUE",
                                       flag="--set")
    out: Path = option(Path("results"), "where the runs' folders are", "FOLDER")

    @property
    def changes(self) -> dict[str, str]:
        for item in self.settings:
            if "=" not in item:
                raise ValueError(f"--set {item}: write it as FIELD=VALUE, such as epochs=3.")
        return dict(item.split("=", 1) for item in self.settings)


def to_measure(model: ModelOptions, data: DataOptions) -> tuple[Any, Any]:
    """The model and the images, or why they cannot be measured."""
    from tokenpool.data.datasets import open_data
    from tokenpool.models.vit import PooledViT
    opened = model.open()
    PooledViT(opened)                       # refuses what cannot be pooled, before any image is read
    if not model.trained:
        raise ValueError(f"{model.model} has random weights, so every accuracy would be a random guess. "
                         "Add --pretrained or --checkpoint FILE.")
    if not opened.num_classes:
        raise ValueError(f"{model.model} has no classifier. Fit one for your images first: tokenpool probe --model "
                         f"{model.model} --data {data.data} --out FOLDER")
    return opened, open_data(data.data, opened, data.images, data.split, download=data.download)
