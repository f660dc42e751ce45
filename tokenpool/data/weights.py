"""Models with their weights: the shipped one, timm's public ones, or those of a file, which are checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

import tokenpool.models  # noqa: F401  timm then knows pebbles_vit
from tokenpool.core.checks import one_of

SHIPPED = "pebbles_vit"


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


def load_model(name: str = SHIPPED, checkpoint: Path | None = None, pretrained: bool = False) -> nn.Module:
    """A timm model by name, in evaluation mode, with its weights.

    Args:
        name: any timm model name, pebbles_vit, deit_e252_patch16_224, deit_e318_patch16_224, or timm's
            "local-dir:FOLDER" and "hf-hub:USER/NAME", which bring their weights.
        checkpoint: .safetensors or .pth file. None: the shipped weights for pebbles_vit, else random ones.
        pretrained: timm's public weights, from its cache or the network.

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
        model = timm.create_model(name, pretrained=fetch)
    except Exception as error:      # the hub's client, its HTTP library and timm each raise their own
        if not fetch:
            raise
        if source == "local-dir":
            raise OSError(f"{name} cannot be loaded ({type(error).__name__}: {_first_line(error)}). A local-dir folder "
                          "holds config.json and model.safetensors, as timm's save_for_hf writes them.") from error
        raise OSError(f"The public weights of {name} are not in the cache and could not be fetched "
                      f"({type(error).__name__}). Connect to the network once (HF_ENDPOINT names another hub), or pass "
                      "--checkpoint FILE.") from error
    if checkpoint is None and name == SHIPPED and not pretrained:
        checkpoint = shipped_weights()
    if checkpoint is not None:
        load_into(model, name, Path(checkpoint))
    return model.eval()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def load_into(model: nn.Module, name: str, path: Path) -> None:
    """Weights from a .safetensors or .pth file into a model; `name` is for the error messages."""
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}. Give the path of a .safetensors or .pth file.")
    try:
        state: Any = (load_file(path) if path.suffix == ".safetensors" else
                      torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:         # safetensors and pickle raise errors of many kinds
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: {_first_line(error)}). "
                         "Copy or download it again.") from error
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict.")
    own = model.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    extra = [k for k in state if k not in own]
    if wrong or extra:
        raise ValueError(f"{path} does not fit {name}: {len(wrong)} tensors missing or of another shape, "
                         f"{len(extra)} too many (first: {(wrong + extra)[0]}). Use the --model it was trained as.")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Twelve hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
