"""`tokenpool export`: a pooled model as one file that needs neither timm nor this package, compared with PyTorch.

    program = trace(pooled)                   a torch.export program for any number of images
    save(program, Path("model.onnx"))         ONNX; a name that ends in .pt2 keeps the program
    report = compare(Path("model.onnx"), pooled, images)

All shapes in a pooled model are fixed, so nothing in the program depends on values. Two operators that torch does not
translate to ONNX are translated at the end of this file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenpool.data.files import replace_file
from tokenpool.measure.bench import Stopwatch, in_turns, quartiles
from tokenpool.models.vit import PooledViT

SIZES = (1, 3, 16)          # images at a time; the program is traced with another number
CLOSE = 1e-4                # largest difference of a logit
ENDINGS = (".onnx", ".pt2")
_TRACED_WITH = 2


@dataclass(frozen=True)
class Comparison:
    """The file and the model it was made from, on the same images."""

    images: int
    sizes: tuple[int, ...]
    difference: float                 # largest absolute difference of a logit
    same_top1: int                    # images with the same first class
    ratio: float                      # time of the file / time of PyTorch, median over rounds
    ratio_low: float
    ratio_high: float
    milliseconds: float               # of the file, with the largest batch

    @property
    def equal(self) -> bool:
        return self.same_top1 == self.images and self.difference <= CLOSE


def check_path(path: Path) -> None:
    """Checks that the name ends in a known format, and for ONNX that the packages are installed."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"--out {path}: the ending decides the format. Use .onnx (ONNX) or .pt2 (torch.export).")
    if path.suffix == ".onnx":
        need("onnx", "onnxscript", "onnxruntime")


def need(*packages: str) -> None:
    """Raises a ValueError that says what to type if an optional package is missing."""
    import importlib
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f"Writing ONNX takes the package {name}, which is not installed. "
                             "Type: pip install 'tokenpool[export]'") from None


def trace(pooled: PooledViT) -> torch.export.ExportedProgram:
    """The model as a program of images (batch, channels, height, width), for any batch."""
    parameter = next(pooled.parameters())
    embed = pooled.vit.patch_embed
    example = torch.zeros(_TRACED_WITH, embed.proj.in_channels, *embed.img_size).to(parameter)
    return _one_sentence("traced", lambda: torch.export.export(
        pooled.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)))


def save(program: torch.export.ExportedProgram, path: Path, about: dict[str, str] | None = None) -> None:
    """Write a program as .onnx or .pt2, in one step.

    Args:
        about: kept in the file's metadata.
    """
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        if path.suffix == ".pt2":
            with temporary.open("wb") as file:
                torch.export.save(program, file)
            return
        made = _one_sentence("translated to ONNX", lambda: torch.onnx.export(
            program, dynamo=True, verbose=False, optimize=False, input_names=["images"], output_names=["logits"],
            custom_translation_table=_translations()))
        made.model.metadata_props.update(about or {})
        made.save(temporary)


def compare(path: Path, pooled: PooledViT, images: Tensor, sizes: Sequence[int] = SIZES, rounds: int = 7,
            watch: Stopwatch | None = None) -> Comparison:
    """Run the file and the model on the same images, in batches of several sizes; then time them in turns.

    Args:
        images: (n, channels, height, width) float32; the largest of `sizes` is cut to n.
    """
    run = opened(path)
    sizes = tuple(dict.fromkeys(min(s, len(images)) for s in sizes))
    difference, same = 0.0, len(images)
    with torch.inference_mode():
        for size in sizes:
            equal = 0
            for x in images.split(size):
                found, wanted = run(x), pooled(x)
                if found.shape != wanted.shape:
                    raise ValueError(f"{path} answers {tuple(found.shape)} where PyTorch answers "
                                     f"{tuple(wanted.shape)}. Write it again with this model.")
                gap = (found - wanted).abs().max()
                difference = max(difference, float(gap) if torch.isfinite(gap) else math.inf)
                equal += int((found.argmax(1) == wanted.argmax(1)).sum())
            same = min(same, equal)
        x = images[:max(sizes)]
        samples = in_turns(watch or Stopwatch(), (lambda: pooled(x), 1), {"file": (lambda: run(x), 1)}, rounds)["file"]
    low, middle, high = quartiles(samples)
    return Comparison(len(images), sizes, difference, same, middle, low, high,
                      1e3 * statistics.median(s.item for s in samples))


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """A file as a function of images."""
    if path.suffix == ".pt2":
        with path.open("rb") as file:
            return torch.export.load(file).module()
    need("onnxruntime")
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()       # as many as PyTorch, for a fair time
    options.log_severity_level = 3                               # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def say(report: Comparison, path: Path) -> list[str]:
    """A comparison in sentences."""
    runtime = "ONNX Runtime" if path.suffix == ".onnx" else "the torch.export program"
    *others, largest = map(str, report.sizes)
    sizes = f"{', '.join(others)} and {largest}" if others else largest
    faster = report.ratio < 1
    factor = 1 / report.ratio if faster else report.ratio
    return [f"{'Same' if report.equal else 'NOT THE SAME'} answer as PyTorch in {runtime}: {report.same_top1} of "
            f"{report.images} images have the same first class, in batches of {sizes}; the largest difference of a "
            f"logit is {report.difference:.1e}.",
            f"Time: {report.milliseconds:.1f} ms for {largest} images, {factor:.2f} times as "
            f"{'fast' if faster else 'long'} as PyTorch (time ratio {report.ratio:.2f}, quartiles "
            f"{report.ratio_low:.2f} to {report.ratio_high:.2f}, timed in turns)."]


# ---- errors of torch's exporter, which have a hundred lines ----

def _one_sentence(done: str, work: Callable[[], Any]) -> Any:
    """The result of `work`, without its noise; an error, such as an operator that is not supported, in one sentence."""
    with _quiet():
        try:
            return work()
        except Exception as error:           # torch.export and torch.onnx each raise their own, several deep
            lines: list[str] = []            # those of the first cause at the front
            cause: BaseException | None = error
            while cause is not None:
                lines[:0] = filter(None, map(str.strip, str(cause).splitlines()))
                cause = cause.__cause__
            words = next((line for line in lines if "No ONNX function found" in line), (*lines, "no reason")[0])
            raise ValueError(f"This model cannot be {done}: {words[:240]} Use another method or init, such as "
                             "--method wk_medoids --init top_k.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's progress and warnings."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    before = [log.level for log in noisy]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for log in noisy:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(noisy, before, strict=True):
                log.setLevel(level)


# ---- operators that torch does not translate to ONNX ----

def _translations() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def sort_stable(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # a stable sort: in ONNX's TopK the lower index comes first among equal values
        size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]), axis=0)
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(boundaries: Any, x: Any, out_int32: bool = False, right: bool = False, side: str | None = None,
                     sorter: Any = None) -> Any:
        # count the boundaries below: (..., n) and (..., k) -> (..., k, n) -> (..., k)
        less = op.LessOrEqual if right or side == "right" else op.Less
        last, before = op.Constant(value_ints=[-1]), op.Constant(value_ints=[-2])
        below = less(op.Unsqueeze(boundaries, before), op.Unsqueeze(x, last))
        return op.ReduceSum(op.Cast(below, to=6 if out_int32 else 7), last, keepdims=0)

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten.searchsorted.Tensor: searchsorted}
