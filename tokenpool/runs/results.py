"""One row per measurement, one format for all of them, kept in one CSV that a stopped run goes on with."""

from __future__ import annotations

import base64
import csv
import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenpool.runs.files import replace_file


@dataclass(frozen=True)
class Row:
    """A measurement and everything that is needed to repeat it."""

    key: str                      # what was measured, as a hash: a finished key is never measured again
    method: str
    start: str                    # of a clustering; empty for others
    output: str
    counts: bool                  # carried counts
    saving: float                 # asked for; 0 is the plain model
    seed: int                     # of the random methods and starts
    schedule: str                 # patch tokens kept after each block
    gmacs: float                  # of one picture, clustering included
    gmacs_without_clustering: float
    gmacs_plain: float            # of the model that is pooled
    top1: float                   # share, 0 to 1
    top1_low: float               # 95 % interval over the pictures (Wilson)
    top1_high: float
    pictures: int
    reconstruction_error: float   # share of the tokens' variance lost per pooling; mean over layers and 100 pictures
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
    right: str = ""               # which pictures were right, as bits: pairs of runs can be compared picture by picture


COLUMNS = tuple(f.name for f in fields(Row))
_FIRST_COLUMNS = COLUMNS.index("date") + 1       # the shortest header that was ever written


class Results:
    """The rows of one CSV file. A row is on disk as soon as it is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._older = False
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)
        self.keys = {row.key for row in self.rows}

    def _read(self) -> None:
        text = self.path.read_text()
        if not text.endswith("\n"):                      # stopped in the middle of a line: that row was not finished
            text = text[:text.rfind("\n") + 1]
            self.path.write_text(text)
        lines = list(csv.reader(text.splitlines()))
        old = tuple(lines[0]) if lines else ()
        if old != COLUMNS[:len(old)] or len(old) < _FIRST_COLUMNS:
            raise ValueError(f"{self.path} was written by another version of tokenpool: its columns differ. "
                             "Move it away, or give another folder with --out.")
        try:
            self.rows = [_parse(line, old) for line in lines[1:]]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} holds a line that is not a result ({error}). "
                             "Mend or remove the line, or give another folder with --out.") from error
        self._older = old != COLUMNS

    def _write_anew(self) -> None:
        """With all columns, before a row is added to a file of an older version."""
        with replace_file(self.path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *([getattr(row, c) for c in COLUMNS] for row in self.rows)])
        self._older = False

    def add(self, row: Row) -> None:
        if self._older:
            self._write_anew()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([getattr(row, c) for c in COLUMNS])
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self.keys.add(row.key)


def _parse(line: list[str], columns: tuple[str, ...]) -> Row:
    if len(line) != len(columns):
        raise ValueError(f"{len(line)} values where {len(columns)} belong")
    read: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float,
                                             "bool": lambda v: {"True": True, "False": False}[v]}
    return Row(**{f.name: read[str(f.type)](v) for f, v in zip(fields(Row), line, strict=False)})


def frame(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))


def pack(right: np.ndarray) -> str:
    """(pictures,) bool -> text."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, pictures: int) -> np.ndarray:
    """The inverse of `pack`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=pictures).astype(bool)


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
