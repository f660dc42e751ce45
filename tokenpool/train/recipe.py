"""A training run in three frozen records: a `Recipe` says how to train, a `Job` what to train, and a `Preset` holds a
data set, its models and the recipes of the three steps. They determine a run completely and are stored with it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tokenpool.core.checks import one_of
from tokenpool.core.methods import INITS, METHODS
from tokenpool.measure.options import option
from tokenpool.models.published import TRAINABLE

STEPS = ("base", "search", "finetune")
#: systems in addition to the methods of tokenpool.method_names(): name -> description
SYSTEMS = {
    "plain": "no pooling: the base model, finetuned as long as the others for a fair comparison",
    "convolution": "strided convolution on the grid of patches, without the class token (Fig. 8)",
    "dynamic_vit": "DynamicViT: small networks learn which tokens to drop (Fig. 3b)",
    "patch_merger": "patch merger: learned queries gather the tokens (Renggli 2022; not in the paper)",
}
#: fields that had another name in cards and checkpoints of earlier versions
_FORMERLY = {"start": "init", "pictures": "images"}


def stored_identity(stored: dict[str, Any]) -> dict[str, Any]:
    """What a card or checkpoint says about its run, in the present names."""
    return {_FORMERLY.get(name, name): stored_identity(value) if isinstance(value, dict) else value
            for name, value in stored.items()}


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are DeiT's (Touvron et al. 2021; P)."""

    epochs: float                       # passes over the training images
    batch_size: int                     # of one optimiser step: all processes and accumulated parts together
    lr: float                           # peak; DeiT: 5e-4 x batch / 512
    warmup_epochs: float = 5.0          # linear, from warmup_lr: AdamW's second moments are noise at first
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5                # at the end of the cosine
    weight_decay: float = 0.05          # not on biases and norms
    clip_grad: float = 0.0              # largest gradient norm; 0: none (DeiT). 1 keeps short runs at high rates stable
    smoothing: float = 0.1              # label smoothing
    mixup: float = 0.8                  # alpha of mixup; 0: none
    cutmix: float = 1.0                 # alpha of cutmix; 0: none
    drop_path: float = 0.1              # share of residual branches dropped, rising with depth
    augment: str = "timm"               # "timm": the four lines below; "pebbles": only what keeps the materials
    crop: float = 0.08                  # smallest share of the image's area that a random crop keeps
    color_jitter: float = 0.4           # only without rand_augment, as in timm
    # DeiT's m9-mstd0.5-inc1 capped at 9: above, timm asks Pillow to posterise to 0 bits, which Pillow refuses
    rand_augment: str = "rand-m9-mstd0.5-mmax9-inc1"
    erasing: float = 0.25               # probability of erasing a rectangle
    repeats: int = 1                    # repeated augmentation: copies of an image in one epoch (DeiT: 3)
    ema: float = 0.0                    # decay of the moving average of the weights that is the result; 0: none
    precision: str = "no"               # "no" (float32) or "bf16"; bf16 has float32's range, so no loss scaling
    accumulate: int = 1                 # parts of a batch that does not fit into memory
    workers: int = 0                    # processes that read images, per training process
    seed: int = 0                       # weights, order, augmentation, drop path
    mask_lr: float = 0.0                # search only: the larger rate of the soft masks (PoWER-BERT; P)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "accumulate", "repeats"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Got {name}={getattr(self, name)}. Use a number above 0.")
        for name in ("smoothing", "drop_path", "ema", "erasing", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Got {name}={getattr(self, name)}. Use 0 to 1.")
        one_of("precision", self.precision, ("no", "bf16"), "")
        one_of("augment", self.augment, ("timm", "pebbles"), "")

    def changed(self, settings: Mapping[str, str]) -> Recipe:
        """A copy with fields set from text, as in `--set epochs=3 lr=1e-3`."""
        kinds: dict[str, tuple[Callable[[str], Any], str]] = {
            "int": (int, "a whole number"), "float": (float, "a number"), "str": (str, "text")}
        kind_of = {f.name: kinds[str(f.type)] for f in fields(self)}
        values = {}
        for name, text in settings.items():
            read, kind = kind_of[one_of("setting", name, kind_of, "")]
            try:
                values[name] = read(text)
            except ValueError:
                raise ValueError(f"{name}={text!r} is not {kind}. Type {name}={getattr(self, name)}, for example."
                                 ) from None
        return dataclasses.replace(self, **values)


@dataclass(frozen=True)
class Job:
    """What to train: one run in one folder, one line of `tokenpool plan`."""

    preset: str = option("pebbles", "pebbles, imagenet50_cpu, imagenet50 or imagenet1k")
    step: str = option("base", "base, search or finetune", commands=())          # the command says it
    model: str = option("", "a model of the preset; default: its first")
    system: str = option("plain", "a pooling method, plain, convolution, dynamic_vit, patch_merger; tokenpool, ToMe, "
                         "ATC and others with their own options", commands=("finetune",))
    init: str = option("", "of a clustering; default: top_k (Algorithm 1)", commands=("finetune",))
    counts: bool = option(False, "carry counts into later attention (not in the paper)", commands=("finetune",))
    saving: float = option(0.0, "share of the computations to save, clustering counted in, such as 0.42", "SHARE",
                           share=True, commands=("finetune",))
    schedule: str = option("", "found by a search, in place of --saving", commands=("finetune",))
    qk: str = option("", "normalise keys and queries: r1 or r2 (readings of eq. 6)", "READING")
    alpha: str = option("", "with --qk: one or learned", "KIND")
    penalty: float = option(0.0, "needed; a larger one keeps fewer tokens", "LAMBDA", commands=("search",))
    distill: bool = option(False, "dynamic_vit: learn from the plain model too", commands=("finetune",))
    seed: int = option(0, "of all that is random", "N", least=0)
    base_seed: int = option(0, "which base model to continue from", "N", least=0, commands=("search", "finetune"))

    def __post_init__(self) -> None:
        one_of("step", self.step, STEPS, "")
        one_of("system", self.system, (*METHODS, *SYSTEMS, *TRAINABLE), "See tokenpool.method_names().")
        if self.init:
            one_of("init", self.init, INITS, "See tokenpool.init_names().")
        clustering = self.system in METHODS and METHODS[self.system].kind == "clustering"
        if self.init and not clustering:
            raise ValueError(f"{self.system} has no initialisation. Leave --init out.")
        if self.counts and self.system not in METHODS:
            raise ValueError(f"{self.system} does not carry counts, or sets its own options. Leave --counts out.")
        if self.step == "finetune" and self.system != "plain" and bool(self.saving) == bool(self.schedule):
            raise ValueError(f"How many tokens should {self.system} keep? Type either --saving 0.42 or "
                             "--schedule NAME.")
        if self.schedule and self.system in SYSTEMS:
            raise ValueError(f"{self.system} chooses its own schedule. Use --saving.")
        if not 0 <= self.saving < 1:
            raise ValueError(f"--saving {self.saving} is not a share of the multiply-adds. Use a number such as 0.42.")
        if self.qk:
            one_of("reading", self.qk, ("r1", "r2"), "These are the two readings of eq. (6) of the paper.")
            one_of("alpha", self.alpha, ("one", "learned"), "")
        if self.step == "search" and self.penalty <= 0:
            raise ValueError(f"A search with penalty {self.penalty} shortens nothing. Add --penalty 1e-3, or another "
                             "number above 0.")

    @property
    def pools(self) -> bool:
        """Whether the system is a PooledViT that pools: it can be measured without finetuning."""
        return self.system in METHODS or self.system in TRAINABLE

    @property
    def base(self) -> Job:
        """The job that trains the base model."""
        return Job(self.preset, "base", self.model, qk=self.qk, alpha=self.alpha, seed=self.base_seed)

    @property
    def name(self) -> str:
        """The folder of the run: readable, and unique within a preset. Never changes for the same job."""
        if self.step == "base":
            return "-".join(filter(None, ("base", self.model, self.qk, self.alpha, f"s{self.seed}")))
        size = f"lambda{self.penalty:g}" if self.step == "search" else self.schedule or (
            f"save{100 * self.saving:g}" if self.saving else "")
        parts = (self.step, self.model, self.qk, self.alpha, "" if self.step == "search" else self.system, self.init,
                 "counts" if self.counts else "", "distill" if self.distill else "", size,
                 f"b{self.base_seed}" if self.base_seed else "", f"s{self.seed}")
        return "-".join(filter(None, parts))

    def command(self) -> str:
        """The command line that runs it."""
        words = ["tokenpool", {"base": "train"}.get(self.step, self.step), "--preset", self.preset,
                 "--model", self.model]
        for f in fields(self):
            value, default = getattr(self, f.name), f.default
            if f.name in ("preset", "step", "model"):
                continue
            if value == default and (f.name, self.step) != ("system", "finetune"):
                continue
            flag = "--" + f.name.replace("_", "-")
            words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
        return " ".join(words)


@dataclass(frozen=True)
class Preset:
    """A data set, its models and the three recipes. `expects` says the result, the time it takes and the machine."""

    name: str
    data: str                           # for tokenpool.data.datasets.open_data
    train_split: str
    val_split: str
    classes: int
    models: Mapping[str, tuple[str, Mapping[str, Any]]]   # short name -> timm's name and its options
    base: Recipe
    search: Recipe
    finetune: Recipe
    penalties: tuple[float, ...]        # lambda of the search: larger keeps fewer tokens
    budgets: tuple[float, ...]          # shares of the multiply-adds to save
    expects: str
    train_images: int | None = None     # None: the whole split
    finetune_images: int | None = None
    val_images: int | None = None
    shipped: Mapping[str, str] = field(default_factory=dict)   # base run -> its weights under data/
    pretrained: bool = False            # the base model is load_model's, with the weights that it comes with

    def has_base(self, base: Job) -> bool:
        """Whether a base model exists without training."""
        return base.name in self.shipped or (self.pretrained and not base.qk)

    def recipe(self, step: str) -> Recipe:
        return {"base": self.base, "search": self.search, "finetune": self.finetune}[step]


PRESETS = ("pebbles", "imagenet50_cpu", "imagenet50", "imagenet1k", "imagewoof")


def load_preset(name: str) -> Preset:
    """A preset by name. Each is one file in `presets/`."""
    one_of("preset", name, PRESETS, "")
    return importlib.import_module(f"tokenpool.train.presets.{name}").PRESET
