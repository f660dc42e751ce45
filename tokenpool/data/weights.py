"""Models with their weights: the shipped one, timm's public ones, or those of a file, which are checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
from safetensors.torch import load_file
from torch import nn

import tokenpool.models  # noqa: F401  timm then knows pebbles_vit
from tokenpool.core.checks import one_of
from tokenpool.data import vits14
from tokenpool.data.checkpoints import load_into

SHIPPED = "pebbles_vit"
#: models that `load_model` gives trained weights without being asked
WITH_WEIGHTS = (SHIPPED, "vits14")


def data_folder() -> Path:
    """`data/` of the checkout, or its copy in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "data", package / "_data"):
        if (folder / "checksums.txt").exists():
            return folder
    raise FileNotFoundError(f"The shipped data is missing: no checksums.txt in {package.parent / 'data'}. "
                            "Clone the repository again, or install the package again.")


def shipped_weights(name: str = f"{SHIPPED}/model.safetensors") -> Path:
    """Path of shipped weights, after checking their checksum."""
    folder = data_folder()
    path = folder / name
    wanted = dict(reversed(line.split()) for line in (folder / "checksums.txt").read_text().splitlines() if line)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. Restore it with `git checkout data`.")
    if sha256(path) != wanted[name]:
        raise ValueError(f"{path} is damaged: its checksum is not the one in {folder / 'checksums.txt'}. "
                         "Restore it with `git checkout data`.")
    return path


def load_model(name: str = SHIPPED, checkpoint: Path | None = None, pretrained: bool = False,
               image_size: int | None = None) -> nn.Module:
    """A timm model by name, in evaluation mode, with its weights.

    Args:
        name: any timm model name, pebbles_vit, vits14, deit_e252_patch16_224, deit_e318_patch16_224, or timm's
            "local-dir:FOLDER" and "hf-hub:USER/NAME", which bring their weights.
        checkpoint: .safetensors or .pth file of any image size; the model gets the file's classifier, or none if the
            file has none. None: the shipped weights for pebbles_vit, those that
            `tokenpool weights vits14` fetched for vits14, else random ones.
        pretrained: timm's public weights, from its cache or the network.
        image_size: side of the images in pixels; None: the model's own. Position embeddings are resampled.

    Raises:
        ValueError: an unknown name, or a checkpoint that is damaged or of another model.
        OSError: weights that are neither found nor fetched.
    """
    source, colon, _ = name.partition(":")
    if not colon:
        one_of("model", name.split(".")[0], timm.list_models(), "See timm.list_models().")
    elif source not in ("local-dir", "hf-hub"):
        raise ValueError(f"Model {name!r}: {source}: is not a place timm knows. "
                         "Use local-dir:FOLDER or hf-hub:USER/NAME.")
    fetch = checkpoint is None and (pretrained or bool(colon))
    try:
        model = timm.create_model(name, pretrained=fetch, **({"img_size": image_size} if image_size else {}))
    except Exception as error:      # the hub's client, its HTTP library and timm each raise their own
        if not fetch:
            raise
        if source == "local-dir":
            raise OSError(f"{name} cannot be loaded ({type(error).__name__}: {_first_line(error)}). A local-dir folder "
                          "holds config.json and model.safetensors, as timm's save_for_hf writes them.") from error
        raise OSError(f"The public weights of {name} are not in the cache and could not be fetched "
                      f"({type(error).__name__}). Connect to the network once (HF_ENDPOINT names another hub), or pass "
                      "--checkpoint FILE.") from error
    patch = model.patch_embed.patch_size[0] if image_size else 1
    if image_size and image_size % patch:
        raise ValueError(f"Got image size {image_size} for {name}, whose patches are {patch} pixels wide. "
                         f"Use {image_size // patch * patch or patch} or {(image_size // patch + 1) * patch}.")
    if checkpoint is None and name == SHIPPED and not pretrained:
        checkpoint = shipped_weights()
    if checkpoint is not None:
        load_into(model, name, Path(checkpoint), any_classes=True)
    elif name == "vits14":
        head = {f"head.{k}": v for k, v in load_file(shipped_weights("vits14/head.safetensors")).items()}
        model.load_state_dict(vits14.backbone(model.patch_embed.img_size[0]) | head)
    return model.eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
