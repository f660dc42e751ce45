"""How large a difference in top-1 is, and how sure: one way for every page, table, sentence and notebook.

Two systems see the same images, so they are compared image by image, which is far sharper than comparing two
intervals. Each row carries one bit per image for that; rows without these bits are compared as if the images were
different ones, which errs on the careful side.

Training, or a method that draws at random, gives a different result each time. That noise is estimated from all
settings that were run more than once, pooled. Where few repeats estimate it, the interval takes Student's t with their
degrees of freedom (combined with those of the images by Welch and Satterthwaite) in place of 1.96.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from tokenpool.measure.rows import unpack

_SETTING = ["preset", "model", "qk", "base_seed", "method", "init", "counts", "saving", "schedule_name"]
_Z = 1.959964


def quantile(freedom: float = math.inf, among: int = 1) -> float:
    """Half a 95 % interval in standard errors; for one of `among` comparisons, widened by Bonferroni's rule.

    >>> [round(quantile(4), 3), round(quantile(), 3), round(quantile(among=8), 3)]
    [2.776, 1.96, 2.734]
    """
    return float(stdtrit(freedom, 1 - 0.025 / among))


class Noise(float):
    """Standard deviation of top-1 from one run to the next, and the degrees of freedom that estimate it."""

    freedom: float

    def __new__(cls, value: float, freedom: float = math.inf) -> Noise:
        self = super().__new__(cls, value)
        self.freedom = freedom
        return self


@dataclass(frozen=True)
class Effect:
    """A difference in top-1 (shares, not points), its standard error, and what it was estimated from."""

    value: float
    error: float
    freedom: float = math.inf       # degrees of freedom of the standard error
    seeds: int = 1                  # runs on the side that has fewer
    label: str = ""                 # what was compared, "A − B"
    saving: float | None = None     # the budget; None: mean over budgets
    paper: float | None = None      # the same difference in the paper, where it is known
    paired: bool = True             # image by image

    @property
    def half(self) -> float:
        """Half of the 95 % interval."""
        return quantile(self.freedom) * self.error

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    def clearly_below(self, level: float = 0.0, among: int = 1) -> bool:
        """Below `level`, beyond an interval widened for so many comparisons."""
        return self.value + quantile(self.freedom, among) * self.error < level

    def clearly_not(self, level: float = 0.0, among: int = 1) -> bool:
        return abs(self.value - level) > quantile(self.freedom, among) * self.error

    @property
    def budget(self) -> str:
        return "mean" if self.saving is None else f"-{self.saving:.0%}" if self.saving else "all tokens"

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.half:.1f}"


def gap(a: pd.DataFrame, b: pd.DataFrame, noise: float = 0.0, **about: Any) -> Effect:
    """Top-1 of `a` minus that of `b`: rows of one setting each, one per run, measured on the same images."""
    return mean_gap([(a, b)], noise, **about)


def mean_gap(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], noise: float = 0.0, **about: Any) -> Effect:
    """The same, averaged over several pairs of settings (budgets). `about`: other fields of the effect."""
    sides = [side for pair in pairs for side in pair]
    first = sides[0].iloc[0]
    n = int(first["images"])
    if any((side["data"] != first["data"]).any() or (side["images"] != n).any() for side in sides):
        raise ValueError("These systems were measured on different images, so they cannot be compared image by image.")
    paired = all((side["right"] != "").all() for side in sides)
    if paired:
        apart = np.mean([_mean_right(a, n) - _mean_right(b, n) for a, b in pairs], axis=0)
        value, images = apart.mean(), apart.var(ddof=1) / n if n > 1 else 0.0
    else:
        value = np.mean([a["top1"].mean() - b["top1"].mean() for a, b in pairs])
        images = np.mean([math.hypot(_wilson_error(a), _wilson_error(b)) for a, b in pairs]) ** 2
    runs = noise and noise**2 / len(pairs)**2 * sum(1 / len(s) for s in sides if _repeats(s))
    error = math.sqrt(images + runs)
    doubt = images**2 / (n - 1 or 1) + runs**2 / getattr(noise, "freedom", math.inf)
    return Effect(float(value), error, error**4 / doubt if doubt else math.inf, min(map(len, sides)),
                  **{"paired": paired, **about})


def _repeats(rows: pd.DataFrame) -> bool:
    """Would another run give another result? Not where nothing is trained and nothing is drawn at random."""
    return rows["stage"].iloc[0] == "finetuned" or rows["top1"].nunique() > 1


def _mean_right(rows: pd.DataFrame, images: int) -> np.ndarray:
    return np.mean([unpack(bits, images) for bits in rows["right"]], axis=0)


def _wilson_error(rows: pd.DataFrame) -> float:
    return float((rows["top1_high"] - rows["top1_low"]).mean()) / (2 * _Z)


def run_noise(rows: pd.DataFrame, stage: str = "finetuned", by: Sequence[str] = _SETTING) -> Noise:
    """Standard deviation of top-1 from one run to the next, pooled over settings; 0 where none was repeated."""
    return pooled_noise(g["top1"] for _, g in rows[rows["stage"] == stage].groupby(list(by)))


def pooled_noise(groups: Iterable[Any]) -> Noise:
    arrays = [np.asarray(g, float) for g in groups]
    freedom = sum(len(g) - 1 for g in arrays)
    squares = sum(((g - g.mean()) ** 2).sum() for g in arrays if len(g) > 1)
    return Noise(math.sqrt(squares / freedom), freedom) if freedom else Noise(0.0)


def mean_interval(group: pd.DataFrame, noise: float, top1: str = "top1", low: str = "top1_low",
                  high: str = "top1_high") -> tuple[float, float, float]:
    """Mean over runs with its 95 % interval: over the images (as the rows have it), widened by the noise of runs."""
    mean = group[top1].mean()
    spread = quantile(getattr(noise, "freedom", math.inf)) * noise / math.sqrt(len(group)) if noise else 0.0
    return (mean, max(0.0, mean - math.hypot(spread, mean - group[low].mean())),
            min(1.0, mean + math.hypot(spread, group[high].mean() - mean)))


def summary(rows: pd.DataFrame, by: Sequence[str], noise: float | None = None) -> pd.DataFrame:
    """One line per setting and budget: mean over runs with a 95 % interval (`low`, `high`), cost, speed, runs.

    Args:
        noise: of runs; None: pooled over the settings in `rows` that were run more than once.
    """
    keys = [*by, "saving"]
    if noise is None:
        noise = pooled_noise(g["top1"] for _, g in rows.groupby(keys))

    def one(group: pd.DataFrame) -> pd.Series:
        mean, low, high = mean_interval(group, noise if _repeats(group) else 0.0)
        return pd.Series({
            "gmacs": group["gmacs"].mean(), "gmacs_without_clustering": group["gmacs_without_clustering"].mean(),
            "share": group["gmacs"].mean() / group["gmacs_plain"].iloc[0], "top1": mean, "low": low, "high": high,
            "half": (high - low) / 2, "error": group["reconstruction_error"].mean(),
            "speed": group["images_per_second"].median(), "seeds": len(group), "runs": "|".join(group["run"])})
    return rows.groupby(keys, sort=False)[list(rows.columns)].apply(one).reset_index()
