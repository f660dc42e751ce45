"""What can be wrong with a request. Every message says what was passed, what is allowed, and what to type instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tokenpool.core.methods import METHODS


def one_of(kind: str, name: object, names: Iterable[str], see: str) -> str:
    """`name` if it is one of `names`; else a ValueError with the near matches and where to look."""
    names = tuple(names)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Use one of {', '.join(map(repr, names))}."
    raise ValueError(f"Unknown {kind} {name!r}. {hint} {see}".strip())


def check_k(k: int, n: int) -> None:
    """k must be an int from 1 to n."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"k={k!r} is not a number of tokens. Use an int from 1 to {n}.")
    if k < 1:
        raise ValueError(f"k={k} keeps no token. Use k from 1 to {n}.")
    if k > n:
        raise ValueError(f"k={k} asks for more than the {n} tokens there are. Use k <= {n}.")


def check_request(x: Tensor, k: int, method: str, output: str | None, init: str | Tensor | None,
                  weights: Tensor | None, counts: Tensor | None, grid: tuple[int, int] | None,
                  metric: Tensor | None) -> None:
    """All arguments of `pool_tokens` whose validity depends on the tokens or on one another."""
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"Got tokens of type {got}. Expected a float tensor of shape (batch, tokens, channels). "
                         f"For one set of tokens (tokens, channels) use x[None].")
    B, N = x.shape[:2]
    if 0 in x.shape:
        raise ValueError(f"There is nothing to pool in tokens of shape {tuple(x.shape)}. "
                         "Use at least one image, one token and one channel.")
    check_k(k, N)
    if weights is None:
        for needed, what, instead in ((METHODS[method].scored, f"method={method!r}", "method='k_medoids'"),
                                      (isinstance(init, str) and init == "top_k", "init='top_k'",
                                       "init='farthest_first'"),
                                      (output == "weighted_mean", "output='weighted_mean'", "output='mean'")):
            if needed:
                raise ValueError(f"{what} needs weights, one score per token. "
                                 f"Pass weights= of shape {(B, N)}, or use {instead}.")
    per_token = [(what, values) for what, values in (("weights", weights), ("counts", counts)) if values is not None]
    for what, values in per_token:
        if values.shape != (B, N):
            raise ValueError(f"Got {what} of shape {tuple(values.shape)} for tokens of shape {tuple(x.shape)}. "
                             f"Pass one number per token: shape {(B, N)}.")
    if metric is not None and (metric.ndim != 3 or metric.shape[:2] != (B, N) or not metric.is_floating_point()):
        raise ValueError(f"Got metric as {metric.dtype} of shape {tuple(metric.shape)} for tokens of shape "
                         f"{tuple(x.shape)}. Pass float features per token: shape {(B, N)} + (D,).")
    if isinstance(init, Tensor) and (init.shape != (B, k) or init.dtype != torch.int64):
        raise ValueError(f"Got init as {init.dtype} of shape {tuple(init.shape)}. "
                         f"Pass int64 token indices of shape {(B, k)}.")
    if METHODS[method].kind == "grid":
        _check_grid(N, grid)
    if not torch.compiler.is_compiling():             # a look at values would break the graph
        _check_finite("x", x)
        if metric is not None:
            _check_finite("metric", metric)
        for what, values in per_token:
            _check_mass(what, values)
        if isinstance(init, Tensor):
            _check_indices(init, N)


def _check_grid(n: int, grid: tuple[int, int] | None) -> None:
    if grid is None and math.isqrt(n) ** 2 != n:
        raise ValueError(f"{n} tokens are not a square grid. Pass grid=(rows, columns) with rows * columns = {n}.")
    if grid is not None and grid[0] * grid[1] != n:
        raise ValueError(f"grid={grid} has {grid[0] * grid[1]} places for {n} tokens. "
                         f"Pass grid=(rows, columns) with rows * columns = {n}.")


def _check_finite(what: str, x: Tensor) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        bad = int((~finite).any(-1).sum())
        raise ValueError(f"{bad} of {x.shape[0] * x.shape[1]} tokens in {what} hold NaN or infinity, which have no "
                         f"distance to anything. Find where they come from (torch.isfinite({what})) before pooling.")


def _check_mass(what: str, values: Tensor) -> None:
    if not torch.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"Got {what} from {float(values.min()):g} to {float(values.max()):g}; they must be finite and "
                         "not negative. Clamp or exponentiate the score.")
    if not (values > 0).any(1).all():
        raise ValueError(f"All {what} of at least one set are zero, so they cannot rank or average its tokens. "
                         f"Use {what}=None for equal {what}.")


def _check_indices(init: Tensor, n: int) -> None:
    if init.min() < 0 or init.max() >= n:
        raise ValueError(f"init holds token indices from {int(init.min())} to {int(init.max())}; "
                         f"there are tokens 0 to {n - 1}.")
    if (init.sort(1).values.diff(dim=1) == 0).any():
        raise ValueError("init names the same token twice. Pass k different token indices for each set.")
