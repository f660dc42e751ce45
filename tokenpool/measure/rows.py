"""One row per measurement, one format for all of them, kept in one CSV that a stopped run goes on with."""

from __future__ import annotations

import base64
import csv
import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from tokenpool.data.files import replace_file


@dataclass(frozen=True)
class Row:
    """A measurement and everything that is needed to repeat it."""

    key: str                      # what was measured, as a hash: a finished key is never measured again
    method: str
    init: str                    # of a clustering; empty for others
    output: str
    counts: bool                  # carried counts
    saving: float                 # asked for; 0 is the plain model
    seed: int                     # of the random methods and starts
    schedule: str                 # patch tokens kept after each block
    gmacs: float                  # of one image, clustering included
    gmacs_without_clustering: float
    gmacs_plain: float            # of the model that is pooled
    top1: float                   # share, 0 to 1
    top1_low: float               # 95 % interval over the images (Wilson)
    top1_high: float
    images: int
    reconstruction_error: float   # share of the tokens' variance lost per pooling; mean over layers and 100 images
    images_per_second: float
    batch_size: int
    model: str
    weights: str                  # fingerprint
    data: str
    device: str
    threads: int
    tokenpool: str
    torch: str
    timm: str
    python: str
    commit: str
    date: str
    # since training came in; files without these columns are read with the defaults
    stage: str = "untouched"      # "untouched": pooled as it is; "finetuned": trained with the pooling in; "base"
    preset: str = ""
    run: str = ""                 # folder of the run that trained it: its card is there
    schedule_name: str = ""       # a found schedule's; empty: geometric, for `saving`
    qk: str = ""                  # normalised keys and queries: "r1-one", "r2-learned", ...
    train_seed: int = 0
    base_seed: int = 0
    epochs: float = 0.0           # of finetuning
    right: str = ""               # which images were right, as bits: pairs of runs can be compared image by image


@dataclass(frozen=True)
class Timing:
    """How long something took beside its baseline, timed in turns, and everything that is needed to repeat it.

    `ratio` is the finding: the median over rounds of (time of this) / (time of the baseline just before and after).
    Where nothing could be measured, `rounds` is 0, the numbers are 0, and `note` says why.
    """

    key: str                      # what was timed, as a hash
    part: str                     # "operators", "forward", "training", "growth" or "memory"
    name: str                     # what was timed; of a method its name
    baseline: str                 # what it was timed against
    model: str
    init: str                    # of a clustering; empty for others
    counts: bool                  # carried counts
    saving: float                 # asked for; 0 where a single step was timed
    tokens: int                   # N, patch tokens in
    kept: int                     # K of a single step; 0 for whole models
    batch_size: int
    dtype: str
    compiled: bool                # by torch.compile, the baseline too
    kernel: str                   # "auto", or the one that was asked for
    share: float                  # multiply-adds of this over those of the baseline, clustering included
    ratio: float
    ratio_low: float              # quartiles over rounds
    ratio_high: float
    seconds: float                # median, one call
    baseline_seconds: float
    rounds: int
    peak_mib: float               # memory on top of what was there before the call, at the worst moment
    baseline_peak_mib: float
    note: str                     # empty, or why there is no number
    clock: str                    # "wall", or "cpu": time this process worked, for a busy machine
    device: str
    threads: int
    tokenpool: str
    torch: str
    timm: str
    python: str
    commit: str
    date: str

    @property
    def promised(self) -> float:
        """Speed-up if time went with multiply-adds."""
        return 1 / self.share if self.share else math.nan

    @property
    def obtained(self) -> float:
        """Speed-up that was seen."""
        return 1 / self.ratio if self.ratio else math.nan

    @property
    def efficiency(self) -> float:
        """Yield: speed-up obtained / promised. 1: every multiply-add saved became time."""
        return self.obtained / self.promised


COLUMNS = tuple(f.name for f in fields(Row))
#: what a column was called in files of earlier versions
_FORMERLY = {"start": "init", "pictures": "images", "pictures_per_second": "images_per_second"}


class Keyed(Protocol):
    """A row of any kind: a dataclass with a key."""

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Keyed)


def columns_of(kind: type) -> tuple[str, ...]:
    """The header of a file with rows of this kind."""
    return tuple(f.name for f in fields(kind))


def _first_columns(kind: type) -> int:
    """Length of the shortest header that was ever written: columns that came later have a default."""
    return sum(f.default is MISSING for f in fields(kind))


class Results(Generic[R]):
    """The rows of one CSV file, all of one kind. A row is on disk as soon as it is added."""

    def __init__(self, path: Path, kind: type[R] = Row) -> None:      # type: ignore[assignment]
        self.path = path
        self.kind: type[R] = kind
        self.columns = columns_of(kind)
        self.rows: list[R] = []
        self._older = False
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)
        self.keys = {row.key for row in self.rows}

    def _read(self) -> None:
        text = self.path.read_text()
        if not text.endswith("\n"):                      # stopped in the middle of a line: that row was not finished
            text = text[:text.rfind("\n") + 1]
            self.path.write_text(text)
        lines = list(csv.reader(text.splitlines()))
        header = tuple(lines[0]) if lines else ()
        old = tuple(_FORMERLY.get(name, name) for name in header)
        if old != self.columns[:len(old)] or len(old) < _first_columns(self.kind):
            raise ValueError(f"{self.path} was written by another version of tokenpool: its columns differ. "
                             "Move it away, or give another folder with --out.")
        try:
            self.rows = [_parse(self.kind, line, old) for line in lines[1:]]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} holds a line that is not a result ({error}). "
                             "Mend or remove the line, or give another folder with --out.") from error
        self._older = header != self.columns

    def _write_anew(self) -> None:
        """With all columns, before a row is added to a file of an older version."""
        with replace_file(self.path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([self.columns, *map(self._line, self.rows)])
        self._older = False

    def _line(self, row: R) -> list[Any]:
        return [getattr(row, c) for c in self.columns]

    def add(self, row: R) -> None:
        if self._older:
            self._write_anew()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(self._line(row))
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self.keys.add(row.key)


def _parse(kind: type[R], line: list[str], columns: tuple[str, ...]) -> R:
    if len(line) != len(columns):
        raise ValueError(f"{len(line)} values where {len(columns)} belong")
    read: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float,
                                             "bool": lambda v: {"True": True, "False": False}[v]}
    types: tuple[Any, ...] = fields(kind)                # type: ignore[arg-type]    # a Keyed is a dataclass
    return kind(**{f.name: read[str(f.type)](v) for f, v in zip(types, line, strict=False)})


def frame(rows: Sequence[Keyed], kind: type = Row) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(columns_of(kind)))


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
    """95 % interval of a share, Wilson's: holds its promise near 0 and 1 too.

    >>> [round(v, 3) for v in wilson(8, 10)]
    [0.49, 0.943]
    """
    p = right / total
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def provenance() -> dict[str, str]:
    """Versions, commit and date, the same for all rows of a run."""
    import timm
    import torch

    import tokenpool
    return {"tokenpool": tokenpool.__version__, "torch": torch.__version__, "timm": timm.__version__,
            "python": platform.python_version(), "commit": _commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _commit() -> str:
    here = Path(__file__).resolve().parents[2]
    try:
        said = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
                              capture_output=True, text=True, timeout=10, check=True)
        return said.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
