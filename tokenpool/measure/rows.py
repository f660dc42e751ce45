"""Rows: one measurement each, with all that is needed to repeat it, in CSV files that a stopped run continues.

    rows = read(Path("data/runs/pebbles.csv"))            # a list of Row; reading never writes
    results = Results(path, Timing)                       # to add rows: each is on disk when `add` returns

The four kinds of rows (`Row`: accuracy, `Timing`, `Entry`: comparison, `DenseRow`) have their `Provenance` in common.
Files are read by the names of their columns, in any order.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
import timm
import torch

from tokenpool.data.files import replace_file


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What every row records: which measurement it is, where it was made, and with which versions."""

    key: str                      # a hash of the settings that decide the result
    device: str
    threads: int = 0              # 0: not recorded
    tokenpool: str
    code: str = ""                # of `code_version`; empty in files of before
    torch: str
    timm: str
    python: str
    commit: str
    date: str


@dataclass(frozen=True, kw_only=True)
class PooledModel(Provenance):
    """A model, how it was pooled, and the images it was measured on."""

    model: str
    weights: str                  # fingerprint
    method: str                   # "plain": not pooled
    init: str                     # of a clustering; empty for others
    counts: bool                  # carried counts
    saving: float                 # share of the multiply-adds that was asked for
    seed: int = 0                 # of methods and inits that draw at random
    schedule: str                 # patch tokens kept after each block
    gmacs: float                  # of one image, clustering included
    gmacs_plain: float            # of the model that is pooled
    data: str                     # of a folder its last name
    split: str = ""               # empty: not recorded, or the data has only one
    images: int


@dataclass(frozen=True, kw_only=True)
class Answers(PooledModel):
    """How many images it gets right."""

    top1: float                   # share, 0 to 1
    top1_low: float               # 95 % interval over the images (Wilson)
    top1_high: float
    right: str = ""               # which images, as bits (`unpack`): two rows can be compared image by image


@dataclass(frozen=True, kw_only=True)
class Row(Answers):
    """The accuracy of a pooled model, off the shelf or trained."""

    output: str
    gmacs_without_clustering: float
    reconstruction_error: float   # share of the tokens' variance lost per pooling; mean over layers and 100 images
    images_per_second: float
    batch_size: int
    stage: str = "untouched"      # "untouched": without finetuning; "finetuned": trained with the pooling in; "base"
    preset: str = ""
    run: str = ""                 # folder of the run that trained it, which holds its card
    schedule_name: str = ""       # of a schedule found by a search; empty: geometric, for `saving`
    qk: str = ""                  # normalised keys and queries: "r1-one", "r2-learned", ...
    train_seed: int = 0
    base_seed: int = 0
    epochs: float = 0.0           # of finetuning


@dataclass(frozen=True, kw_only=True)
class Entry(Answers):
    """One method at one budget of a comparison, which is fair in one of two senses."""

    name: str                     # of a NamedMethod
    fitted: bool                  # K per block fitted to a few images; else geometric
    fair: str                     # "macs" or "time": what is equal for all methods at this budget
    budget: float                 # share of it that is saved
    metric: str
    position: str
    time: float                   # time over the plain model's, measured in turns: median
    time_low: float               # quartiles over rounds
    time_high: float
    rounds: int
    batch_size: int               # while timing
    clock: str                    # "cpu": time that one thread worked; "wall"
    cosine: float                 # between the features the classifier reads and the plain model's; mean over images
    fitted_on: int                # images without labels
    top1_plain: float = 0.0       # of the model with all its tokens

    @property
    def label(self) -> str:
        return self.name + (", fitted K" if self.fitted else "")


@dataclass(frozen=True, kw_only=True)
class DenseRow(PooledModel):
    """The segmentation that a linear probe reads out of a pooled model's features."""

    probe: str                    # "plain": fitted on the plain model; "own": on the pooled features
    pixel_miou: float
    pixel_low: float              # 95 % interval over images
    pixel_high: float
    patch_miou: float
    pixel_best: float             # with the best class for every group of patches: an upper bound for these groups
    patch_best: float
    ious: str                     # per class, in pixels
    truth: str
    train_images: int
    data: str = "pebbles"


@dataclass(frozen=True, kw_only=True)
class Timing(Provenance):
    """How long something takes compared with its baseline, timed in turns.

    `ratio` is the result: the median over rounds of (time of this) / (time of the baseline just before and after).
    Where nothing could be measured, `rounds` is 0, the numbers are 0, and `note` says why.
    """

    part: str                     # "operators", "forward", "training", "growth" or "memory"
    name: str                     # what was timed; of a method its name
    baseline: str                 # what it was timed against
    model: str
    init: str = ""                # of a clustering; empty for others
    counts: bool = False          # carried counts
    saving: float = 0.0           # asked for; 0 where a single step was timed
    tokens: int                   # N, patch tokens in
    kept: int = 0                 # K of a single step; 0 for whole models
    batch_size: int
    dtype: str
    compiled: bool                # by torch.compile, the baseline too
    kernel: str                   # "auto", or the one that was asked for
    clock: str                    # "wall", or "cpu": time this process worked, for a busy machine
    share: float = 0.0            # multiply-adds of this over those of the baseline, clustering included
    ratio: float = 0.0
    ratio_low: float = 0.0        # quartiles over rounds
    ratio_high: float = 0.0
    seconds: float = 0.0          # median, one call
    baseline_seconds: float = 0.0
    rounds: int = 0
    peak_mib: float = 0.0         # memory on top of what was there before the call, at the worst moment
    baseline_peak_mib: float = 0.0
    note: str = ""                # empty, or why there is no number

    @property
    def promised(self) -> float:
        """The speed-up if time were proportional to multiply-adds."""
        return 1 / self.share if self.share else math.nan

    @property
    def obtained(self) -> float:
        """The speed-up that was measured."""
        return 1 / self.ratio if self.ratio else math.nan

    @property
    def efficiency(self) -> float:
        """Speed-up obtained over promised. 1: every multiply-add saved became time."""
        return self.obtained / self.promised


# ---- files ----

R = TypeVar("R", bound=Provenance)
#: what a column was called in files of before
_FORMERLY = {"start": "init", "pictures": "images", "pictures_per_second": "images_per_second"}


def columns_of(kind: type[Provenance]) -> tuple[str, ...]:
    """The header of a new file: the key, what was measured, and where."""
    key, *own = (f.name for f in fields(kind))
    shared = [f.name for f in fields(Provenance)][1:]
    return (key, *(name for name in own if name not in shared), *shared)


def read(path: Path, kind: type[R] = Row) -> list[R]:                 # type: ignore[assignment]
    """The rows of a file. Its last line is left out where a run was stopped in the middle of it."""
    return _parse(path, path.read_text(encoding="utf-8"), kind)


def write(path: Path, rows: Iterable[R], kind: type[R] = Row) -> None:            # type: ignore[assignment]
    """A file of these rows, in place of the one that may be there; in one step."""
    columns = columns_of(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *(_line(row, columns) for row in rows)])


class Results(Generic[R]):
    """The rows of one file, to add more. Nothing is written before the first one is added."""

    def __init__(self, path: Path, kind: type[R] = Row) -> None:      # type: ignore[assignment]
        self.path, self.kind = path, kind
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.rows: list[R] = _parse(path, text, kind) if text else []
        # else a row cannot be appended: there is no file, its columns are others, or its last line is not whole
        self._appendable = text.partition("\n")[0] == ",".join(columns_of(kind)) and text.endswith("\n")

    def add(self, row: R) -> None:
        self.rows.append(row)
        if not self._appendable:
            write(self.path, self.rows, self.kind)
            self._appendable = True
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(_line(row, columns_of(self.kind)))
            file.flush()
            os.fsync(file.fileno())


def _line(row: Provenance, columns: Iterable[str]) -> list[Any]:
    return [getattr(row, name) for name in columns]


def _parse(path: Path, text: str, kind: type[R]) -> list[R]:
    header, *lines = csv.reader(io.StringIO(text[:text.rfind("\n") + 1])) if "\n" in text else [[text]]
    names = [_FORMERLY.get(name, name) for name in header]
    known = {f.name: f for f in fields(kind)}
    unknown = [name for name in names if name not in known or names.count(name) > 1]
    missing = [name for name, f in known.items() if name not in names and f.default is MISSING]
    if unknown or missing:
        differ = [f"{words} {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
                  for words, found in (("unknown", unknown), ("missing", missing)) if found]
        raise ValueError(f"{path} was written by another version of tokenpool, or holds something else: its columns "
                         f"differ ({'; '.join(differ)}). Move it away, or give another folder with --out.")
    values = [_READ[str(known[name].type)] for name in names]
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(kind(**{name: value(text) for name, value, text in zip(names, values, line, strict=True)}))
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not a result ({error}). Fix or delete the line, or give "
                             "another folder with --out.") from error
    return rows


def _bool(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} where True or False is expected")
    return text == "True"


_READ: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": _bool}


COLUMNS = columns_of(Row)


def frame(rows: Sequence[Provenance], kind: type[Provenance] = Row) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(columns_of(kind)))


# ---- columns ----

def answers(right: np.ndarray) -> dict[str, Any]:
    """The columns of `Answers`: (images,) bool."""
    low, high = wilson(int(right.sum()), len(right))
    return dict(top1=float(right.mean()), top1_low=low, top1_high=high, right=pack(right))


def pack(right: np.ndarray) -> str:
    """(images,) bool -> text."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, images: int) -> np.ndarray:
    """The inverse of `pack`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=images).astype(bool)


def key_of(**settings: object) -> str:
    """Sixteen hex digits of the settings that decide a measurement."""
    text = "\n".join(f"{k}={settings[k]!r}" for k in sorted(settings))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which covers as promised near 0 and 1 too.

    >>> [round(v, 3) for v in wilson(8, 10)]
    [0.49, 0.943]
    """
    p = right / total
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def provenance(device: str = "cpu") -> dict[str, Any]:
    """The columns of `Provenance` but the key; the same for all rows of a run."""
    from tokenpool import __version__
    return {"device": device_name(device), "threads": torch.get_num_threads(), "tokenpool": __version__,
            "code": code_version(), "torch": torch.__version__, "timm": timm.__version__,
            "python": platform.python_version(), "commit": _commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type != "cpu":
        return device
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


_PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def code_version(package: Path = _PACKAGE) -> str:
    """Twelve hex digits that change with the sources a result depends on: all between an image and its row.

    The version of the package where it was installed without sources.
    """
    sources = sorted(p for room in ("core", "models", "data", "measure") for p in (package / room).rglob("*.py"))
    if not sources:
        from tokenpool import __version__
        return __version__
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _commit(package: Path = _PACKAGE) -> str:
    """Of tokenpool's own checkout; not of another repository that an installed package happens to lie in."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()
    try:
        own = Path(git("rev-parse", "--show-toplevel")).resolve() / package.name == package
        return git("describe", "--always", "--dirty", "--abbrev=12") if own else "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"
