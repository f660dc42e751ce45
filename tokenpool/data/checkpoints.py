"""Checkpoint files into a timm model: find the state dict in the file, let timm convert it, name what does not fit.

Image sizes, patch sizes and the layouts of other repositories are converted by timm's own filters. Only the wrappers
and prefixes that timm does not know are removed here.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import VisionTransformer, clean_state_dict, load_state_dict
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn


def load_into(model: nn.Module, name: str, path: Path, any_classes: bool = False) -> None:
    """Load a .safetensors or .pth file into a timm model; `name` is for the error messages.

    Args:
        any_classes: give the model the classifier of the file, of another size or none at all.

    Raises:
        FileNotFoundError, ValueError: no file, a file that cannot be read, or tensors that do not fit.
    """
    state = _convert(read_checkpoint(path), model)
    if any_classes and model.num_classes:
        classifier = state.get("head.weight")
        classes = 0 if classifier is None else len(classifier)
        if classes != model.num_classes:
            model.reset_classifier(classes)
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} has shape {list(state[k].shape)}, expected {list(v.shape)}" for k, v in own.items()
              if k in state and state[k].shape != v.shape]
    wrong += [f"{k} has no place" for k in state if k not in own]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        advice = "Use the --model it was trained as."
        if any(".encoder.layer." in f".{k}" for k in state):
            advice = "It is a file of transformers: load it with that library, and give tokenpool.PooledViT its model."
        raise ValueError(f"{path} does not fit {name}: {'; '.join(wrong[:3])}{more}. {advice}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without wrappers and prefixes. Nothing in the file is executed."""
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}. Give the path of a .safetensors or .pth file.")
    try:
        state: Any = load_state_dict(str(path))        # timm's: unwraps model_ema, state_dict, model; strips module.
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}: "
                         f"{str(error).splitlines()[0]}). Copy or download it again.") from error
    except Exception as error:         # torch.load: pickle errors of many kinds
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__}). "
                         "Copy or download it again.") from error
    for wrapper in ("teacher", "model", "module", "state_dict"):      # DINO saves teacher and student; EVA a module
        if isinstance(state.get(wrapper), dict):
            state = clean_state_dict(state[wrapper])
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return backbone or {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _convert(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """By the filter that timm applies to the public weights of such a model."""
    if isinstance(model, VisionTransformer):
        convert: Any = partial(checkpoint_filter_fn, adapt_layer_scale=True)      # DeiT III's names too
    else:
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
    try:
        return convert(dict(state), model)
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"timm could not convert this checkpoint to {type(model).__name__} ({reason}). "
                         "Use the --model it was trained as.") from error
