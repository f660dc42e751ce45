"""Save a pooled model and load it again: one folder, two files, no pickle.

    pooled.save("folder")                    model.safetensors and config.json, as timm writes them
    pooled = tp.load("folder")               or "USER/NAME" on the Hugging Face hub
    pooled.push_to_hub("USER/NAME")          huggingface_hub's

config.json has timm's entries for the ViT and one of ours, `tokenpool`: the options and the schedule of the pooling.
So timm and every command read the same folder too, as the ViT without pooling: `local-dir:folder`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from timm.layers import DropPath
from timm.models import get_model_args, save_for_hf
from torch import nn

FILES = ("config.json", "model.safetensors")
OPTIONS = ("carry_counts", "position", "score", "metric", "seed")     # beside those of the pooling itself


class Saving(ModelHubMixin, library_name="tokenpool", tags=["token-pooling"]):
    """What `PooledViT` can do with folders and the hub. Also has the hub's save_pretrained and from_pretrained."""

    def save(self, folder: str | Path) -> None:
        """Write weights, options and schedule into a folder; `tokenpool.load` gives the same model back.

        Raises:
            ValueError: a ViT that timm could not build again from its name and options.
        """
        self._save_pretrained(Path(folder))

    @classmethod
    def load(cls, name: str | Path) -> Any:
        """The pooled model in a folder that `save` wrote, or on the hub as "USER/NAME", in evaluation mode.

        Raises:
            FileNotFoundError, OSError, ValueError: no such folder, no network, or a folder of something else.
        """
        return cls._from_pretrained(model_id=str(name))

    def _save_pretrained(self, save_directory: Path) -> None:
        pooled: Any = self
        _refuse_changed(pooled.vit)
        options = asdict(pooled.pooling) | {name: getattr(pooled, name) for name in OPTIONS}
        options["schedule"] = pooled.schedule and list(pooled.schedule)
        save_for_hf(pooled.vit, str(save_directory), model_config={"tokenpool": options}, safe_serialization=True)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Any:
        folder = Path(model_id)
        if not folder.is_dir():
            if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
                raise FileNotFoundError(f"No folder {model_id}. Give a folder that pooled.save(folder) wrote, or "
                                        "USER/NAME on the Hugging Face hub.")
            wanted = {k: v for k, v in options.items() if k in ("revision", "cache_dir", "force_download", "token",
                                                                "local_files_only")}
            folder = Path(snapshot_download(model_id, allow_patterns=list(FILES), **wanted))
        missing = [name for name in FILES if not (folder / name).is_file()]
        config = {} if missing else json.loads((folder / "config.json").read_text())
        if "tokenpool" not in config:
            raise ValueError(f"{folder} is not a saved PooledViT: "
                             f"{' and '.join(missing) or 'the entry tokenpool of config.json'} is missing. "
                             "Wrap a ViT in tokenpool.PooledViT and save that.")
        vit = timm.create_model(f"local-dir:{folder}", pretrained=True)
        pooled: Any = cls(vit, **config["tokenpool"])
        return pooled.eval()


def _refuse_changed(vit: Any) -> None:
    """A folder holds a name and options: a model whose modules were exchanged would come back as another one."""
    name = (getattr(vit, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not timm.is_model(name):
        raise ValueError(f"{type(vit).__name__} was not built by timm.create_model, so a folder cannot say how to "
                         "build it again. Save it with its own library, and write down pooled.schedule.")
    with torch.device("meta"):
        built, own = _parts(timm.create_model(name, **get_model_args(vit))), _parts(vit)
    changed = [place for place in built | own if built.get(place) != own.get(place)]
    if changed:
        raise ValueError(f"{changed[0]} is not what timm builds for {name}, so a folder cannot say how to build it "
                         "again. Save pooled.state_dict() instead, and write down pooled.schedule.")


def _parts(vit: nn.Module) -> dict[str, type]:
    """The module types by place; dropouts, which save_for_hf leaves out, count as nothing."""
    return {place: nn.Identity if isinstance(module, DropPath | nn.Dropout) else type(module)
            for place, module in vit.named_modules()}
