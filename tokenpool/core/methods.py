"""Every way to make K tokens of N, in one visible table, behind one call: `pool_tokens`.

A new method is one function and one row of `METHODS`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenpool.core import clustering, kernels, merging, selection
from tokenpool.core.clustering import Pooled


class Choice(NamedTuple):
    """What a method decides, without gradient: who stands in for whom, or who stays, or both."""

    labels: Tensor | None = None      # (B, N); None for a selection whose stand-ins nobody has asked for yet
    indices: Tensor | None = None     # (B, K) input tokens chosen as centres (for K-Means: the members nearest to them)


@dataclass(frozen=True)
class Request:
    """One call's tensors, as every method sees them."""

    x: Tensor                         # (B, N, D) features to compare, float32, no gradient; centred where compared
    k: int
    weights: Tensor | None            # (B, N) significance score
    counts: Tensor | None             # (B, N) how many original tokens each stands for already
    noise: Tensor                     # (N,) uniform in [0, 1): the only randomness there is
    positions: Tensor                 # (B or 1, N, 2) row and column in [0, 1)
    aspect: float                     # height over width of the image
    start: Callable[[Request, Tensor | None, Tensor], Tensor]
    n_iter: int
    ops: ModuleType                   # clustering.py, or a kernel with the same functions
    raw: Tensor                       # x before it was centred: an angle depends on the origin
    depth: float | None               # share of the model's blocks passed, where there is a model


class Method(NamedTuple):
    choose: Callable[[Request, Tensor], Choice]
    kind: str                         # "selection", "grid", "clustering" (from a start), "merging" (without)
    scored: bool                      # ranks or draws by the weights: an error without them
    weighted: bool                    # also weights the tokens by them
    macs: Callable[[int, int, int, int], int]     # (n, k, channels, n_iter) -> multiply-adds of the choice, one image
    story: str                        # the sentence a learner reads in the drop-down
    score: str = "received"           # what a model ranks by unless told otherwise, see models/attention.py


def _k_medoids(r: Request, mass: Tensor) -> Choice:
    d = r.ops.pairwise(r.x)
    labels, medoids = r.ops.k_medoids(d, r.start(r, d, mass), mass, r.n_iter)
    return Choice(labels, medoids)


def _k_means(r: Request, mass: Tensor) -> Choice:
    by_distances = getattr(r.ops, "k_means_by_distances", None)
    if by_distances is None:
        return Choice(*r.ops.k_means(r.x, r.start(r, None, mass), mass, r.n_iter))
    d = r.ops.pairwise(r.x)
    return Choice(*by_distances(d, r.start(r, d, mass), mass, r.n_iter))


def _scores(r: Request) -> Tensor:
    assert r.weights is not None      # Pooling.choose has checked
    return r.weights


def _free(n: int, k: int, c: int, t: int) -> int:
    return 0


def _gram_macs(n: int, k: int, c: int, t: int) -> int:
    return n * n * c                                   # all distances, once


def _k_means_macs(n: int, k: int, c: int, t: int) -> int:
    return (2 * t - 1) * n * k * c                     # t assignments and t - 1 means; `combine` takes the last mean


METHODS: dict[str, Method] = {
    "random": Method(
        lambda r, mass: Choice(indices=selection.keep_random(r.k, r.x.shape[0], r.noise)),
        "selection", False, False, _free, "keep K tokens by chance"),
    "importance": Method(
        lambda r, mass: Choice(indices=selection.keep_importance(r.k, _scores(r), r.noise)),
        "selection", True, False, _free, "keep K different tokens by chance, a high score makes it likelier"),
    "importance_with_replacement": Method(
        lambda r, mass: Choice(indices=selection.keep_importance_with_replacement(r.k, _scores(r), r.noise)),
        "selection", True, False, _free, "draw K times in proportion to the score; a token may be drawn twice"),
    "top_k": Method(
        lambda r, mass: Choice(indices=selection.keep_top_k(r.k, _scores(r))),
        "selection", True, False, _free, "keep the K tokens with the highest score (PoWER-BERT)"),
    "grid_average": Method(
        lambda r, mass: Choice(labels=selection.grid_cells(r.positions.expand(r.x.shape[0], -1, -1), r.k, r.aspect)),
        "grid", False, False, _free, "cut the image into K cells and average each"),
    "k_means": Method(
        _k_means, "clustering", False, False, _k_means_macs, "cluster; each new token is the mean of its cluster"),
    "wk_means": Method(
        _k_means, "clustering", True, True, _k_means_macs,
        "cluster, weighting tokens by score; each new token is a weighted mean"),
    "k_medoids": Method(
        _k_medoids, "clustering", False, False, _gram_macs, "cluster around K of the tokens themselves"),
    "wk_medoids": Method(
        _k_medoids, "clustering", True, True, _gram_macs,
        "cluster around K of the tokens, weighting by score (Token Pooling)"),
    # not in the paper: its loss, but from all tokens on instead of from a start (I)
    "ward": Method(
        lambda r, mass: Choice(*r.ops.agglomerative(r.ops.pairwise(r.x), r.k, mass, "ward")),
        "merging", False, False, _gram_macs,
        "join the two clusters whose joining loses least, again and again, until K are left (Ward)"),
    # what others do; see merging.py for sources and for what is ours in them
    "top_k_class": Method(
        lambda r, mass: Choice(indices=selection.keep_top_k(r.k, _scores(r))),
        "selection", True, False, _free, "keep the K tokens the class token attends to most", "class_token"),
    "evit": Method(
        lambda r, mass: Choice(*merging.evit(_scores(r), r.k)),
        "merging", True, True, _free, "keep K - 1 by the class token's attention, fuse the rest into one (EViT)",
        "class_token"),
    "ats": Method(
        lambda r, mass: Choice(indices=merging.ats(_scores(r), r.k)),
        "selection", True, False, _free, "sample tokens at even steps of the summed score (ATS)", "class_token_values"),
    "tome": Method(
        lambda r, mass: Choice(*merging.tome(r.raw, r.k, mass)),
        "merging", False, False, lambda n, k, c, t: merging.tome_macs(n, k, c),
        "split tokens in two halves, merge the most similar pairs between them (ToMe)"),
    "pitome": Method(
        lambda r, mass: Choice(*merging.pitome(r.raw, r.k, mass, r.depth)),
        "merging", False, False, lambda n, k, c, t: merging.pitome_macs(n, k, c),
        "merge pairs among the tokens that have many alike, protect the others (PiToMe)"),
    "dpc_knn": Method(
        lambda r, mass: Choice(*merging.dpc_knn(r.ops.pairwise(r.x), r.k, r.x.shape[2])),
        "merging", False, False, _gram_macs,
        "centres are dense and far from denser ones, the rest goes to the nearest (DPC-KNN)"),
    "agglomerative": Method(
        lambda r, mass: Choice(*r.ops.agglomerative(merging.cosine_distances(r.raw), r.k, mass, "average")),
        "merging", False, False, _gram_macs, "join the two nearest clusters, again and again, until K are left (ATC)"),
}


class Init(NamedTuple):
    choose: Callable[[Request, Tensor | None, Tensor], Tensor]
    scored: bool
    grows: bool                       # looks at all distances, which K-Medoids has anyway
    story: str


def _growing(grow: Callable[[Request, Tensor, Tensor], Tensor]) -> Callable[[Request, Tensor | None, Tensor], Tensor]:
    """A start that needs all distances: those of K-Medoids where they exist, else its own."""
    return lambda r, d, mass: grow(r, r.ops.pairwise(r.x) if d is None else d, mass)


INITS: dict[str, Init] = {
    "top_k": Init(lambda r, d, mass: clustering.top_k(_scores(r), r.k), True, False,
                   "the K tokens with the highest score (the paper's Algorithm 1)"),
    "random": Init(lambda r, d, mass: clustering.random_k(r.noise, r.k, r.x.shape[0]), False, False,
                    "K tokens by chance"),
    "farthest_first": Init(_growing(lambda r, d, mass: r.ops.farthest_first(d, r.k)), False, True,
                            "always add the token farthest from all chosen so far"),
    "k_means_plus_plus": Init(_growing(lambda r, d, mass: clustering.k_means_plus_plus(d, r.k, mass, r.noise)), False,
                               True,
                               "add tokens by chance, far ones likelier"),
}

METHODS_THAT_DRAW = ("random", "importance", "importance_with_replacement")
INITS_THAT_DRAW = ("random", "k_means_plus_plus")


def _given(indices: Tensor | None) -> Callable[[Request, Tensor | None, Tensor], Tensor]:
    """A start from indices handed in; never called by methods that do not start anywhere."""
    def choose(r: Request, d: Tensor | None, mass: Tensor) -> Tensor:
        assert indices is not None
        return indices
    return choose


OUTPUTS = ("medoid", "mean", "weighted_mean")


def method_names() -> tuple[str, ...]:
    """Names that `method=` takes."""
    return tuple(METHODS)


def init_names() -> tuple[str, ...]:
    """Names that `init=` takes."""
    return tuple(INITS)


def one_of(kind: str, name: object, names: Iterable[str], see: str) -> str:
    """`name` if it is one of `names`; else a ValueError with the near matches and where to look."""
    names = tuple(names)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Use one of {', '.join(map(repr, names))}."
    raise ValueError(f"Unknown {kind} {name!r}. {hint} {see}".strip())


@dataclass(frozen=True)
class Pooling:
    """A method with its options, checked once. `pool_tokens` and `PooledViT` both work through it.

    Args:
        method: a name of `method_names()`.
        init: where a clustering starts, a name of `init_names()`. None: "top_k" (Algorithm 1) where there are
            weights, else "farthest_first".
        n_iter: rounds of assign and update, >= 1. Five is the paper's number (S).
        output: what a clustering returns. "weighted_mean" (weights times counts), "mean" (counts only) or "medoid"
            (the input token itself; for K-Means the member nearest the centre). None: "weighted_mean" for the
            w-methods, "mean" for the others. The sources on the paper disagree here, see docs/choices.md (S vs S).
        kernel: who computes a clustering: "auto", "plain", "numba" or "triton", see `tokenpool.core.kernels`.
    """

    method: str = "wk_medoids"
    init: str | None = None
    n_iter: int = 5
    output: str | None = None
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS, "See tokenpool.method_names().")
        one_of("kernel", self.kernel, kernels.KERNELS, "")
        if self.init is not None:
            one_of("init", self.init, INITS, "See tokenpool.init_names().")
        if self.output is not None:
            one_of("output", self.output, OUTPUTS, "")
        if isinstance(self.n_iter, bool) or not isinstance(self.n_iter, int) or self.n_iter < 1:
            raise ValueError(f"n_iter={self.n_iter!r} is not a number of rounds. Use an int >= 1; the paper uses 5.")

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    def init_name(self, have_weights: bool = True) -> str | None:
        """The start that will be used; None for methods that do not start anywhere."""
        if self.spec.kind != "clustering":
            return None
        return self.init or ("top_k" if have_weights else "farthest_first")

    @property
    def needs_score(self) -> bool:
        """Whether the result depends on the weights, given that they can be had."""
        start = self.init_name()
        return self.spec.scored or self.output == "weighted_mean" or (start is not None and INITS[start].scored)

    @property
    def draws(self) -> bool:
        """Whether chance decides anything."""
        return self.method in METHODS_THAT_DRAW or self.init_name() in INITS_THAT_DRAW

    @property
    def output_name(self) -> str:
        if self.spec.kind == "selection":
            return "medoid"
        return self.output or ("weighted_mean" if self.spec.weighted else "mean")

    @torch.no_grad()
    def choose(self, x: Tensor, k: int, weights: Tensor | None = None, counts: Tensor | None = None, *,
               noise: Tensor, positions: Tensor, aspect: float = 1.0, start: Tensor | None = None,
               metric: Tensor | None = None, depth: float | None = None) -> Choice:
        """Decide, without gradient and without looking at values (so without waiting for a GPU).

        Args:
            metric: (B, N, D) features to compare in place of x. depth: share of the blocks passed, for PiToMe.
        """
        parts = [self._choose(*part, k=k, noise=noise, aspect=aspect, depth=depth)
                 for part in _in_parts(x if metric is None else metric, weights, counts,
                                       positions.expand(x.shape[0], -1, -1), start)]
        return Choice(*(None if part[0] is None else _joined(part) for part in zip(*parts, strict=True)))

    def _choose(self, x: Tensor, weights: Tensor | None, counts: Tensor | None, positions: Tensor,
                start: Tensor | None, *, k: int, noise: Tensor, aspect: float, depth: float | None) -> Choice:
        with torch.autocast(x.device.type, enabled=False):     # float32: autocast would lose the argmin
            raw = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            # a selection looks at the score only, a grid at positions
            x = raw if self.spec.kind in ("selection", "grid") else clustering.centred(raw)
            weights = None if weights is None else weights.detach().to(x.dtype)
            counts = None if counts is None else counts.to(x.dtype)
            name = self.init_name(weights is not None)
            begin = INITS[name].choose if start is None and name else _given(start)
            request = Request(x, k, weights, counts, noise.to(x), positions, aspect, begin, self.n_iter,
                              kernels.pick(self.kernel, x.device), raw, depth)
            return self.spec.choose(request, self._mass(x, weights if self.spec.weighted else None, counts))

    def stand_ins(self, x: Tensor, choice: Choice) -> Tensor:
        """Labels (B, N) of a choice; worked out here for selections, which do not need them themselves.

        Args:
            x: (B, N, D) tokens, or the features they are compared by.
        """
        if choice.labels is not None:
            return choice.labels
        assert choice.indices is not None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return selection.stand_ins(clustering.centred(x), choice.indices)

    def combine(self, x: Tensor, k: int, choice: Choice, weights: Tensor | None = None,
                counts: Tensor | None = None) -> Tensor:
        """The K tokens of a choice, (B, K, C), with gradient."""
        if self.output_name == "medoid" and choice.indices is not None:
            return clustering.take(x, choice.indices)
        assert choice.labels is not None
        weighted = self.output_name == "weighted_mean" and self.spec.kind in ("clustering", "merging")
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mass = self._mass(wide, weights.detach() if weighted and weights is not None else None, counts)
            average = kernels.pick(self.kernel, x.device).cluster_means
            means = [average(*part[:2], k, part[2]) for part in _in_parts(wide, choice.labels, mass)]
            return _joined(means).to(x.dtype)

    def macs(self, n: int, k: int, c: int, stand_ins: bool = False, d: int | None = None) -> int:
        """Multiply-adds of one pooling of n tokens into k, of one image: what the matrix products do.

        Args:
            c: channels of the tokens. d: of the features they are compared by; None: c.
            stand_ins: whether somebody asks a selection for its labels.
        """
        d = c if d is None else d
        total = self.spec.macs(n, k, d, self.n_iter)
        start = self.init_name()
        if start and INITS[start].grows and "medoids" not in self.method:
            total += n * n * d
        if self.output_name != "medoid":
            total += n * k * c
        if stand_ins and self.spec.kind == "selection":
            total += n * k * d
        return total

    @staticmethod
    def _mass(x: Tensor, weights: Tensor | None, counts: Tensor | None) -> Tensor:
        mass = x.new_ones(x.shape[:2])
        for part in (weights, counts):
            mass = mass if part is None else mass * part.to(x.dtype)
        return mass


_PAIRS = {"cpu": 1 << 24, "cuda": 1 << 28}       # distances held at a time: 64 MB, 1 GB; a DeiT's whole batch fits


def _in_parts(x: Tensor, *others: Tensor | None) -> Iterator[list[Any]]:
    """A batch of sets in pieces whose matrices of N x N distances fit the memory. A graph has all of it in one."""
    if torch.compiler.is_compiling():
        yield [x, *others]
        return
    step = max(1, _PAIRS.get(x.device.type, 1 << 24) // x.shape[1] ** 2)
    for first in range(0, len(x), step):
        yield [None if t is None else t[first:first + step] for t in (x, *others)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def pool_tokens(x: Tensor, k: int, *, method: str = "wk_medoids", weights: Tensor | None = None,
                counts: Tensor | None = None, init: str | Tensor | None = None, n_iter: int = 5,
                output: str | None = None, kernel: str = "auto", grid: tuple[int, int] | None = None,
                metric: Tensor | None = None,
                generator: torch.Generator | None = None) -> Pooled:
    """Replace N tokens by K that stand in for them (paper, Algorithm 1).

    Args:
        x: (batch, tokens, channels), any float type. Decisions are taken in float32 or wider, without gradient;
            gradients flow through the kept or averaged tokens.
        k: tokens to keep, 1 <= k <= tokens.
        method: a name of `method_names()`.
        weights: (batch, tokens) >= 0, the significance score. Score methods rank by it, the w-methods also weight
            by it, the "top_k" start uses it.
        counts: (batch, tokens), how many original tokens each stands for already; clusters weight by it.
        init: a name of `init_names()`, or (batch, k) int64 token indices to start a clustering from.
            None: "top_k" (Algorithm 1) where weights are given, else "farthest_first".
        n_iter: rounds of a clustering. output, kernel: see `Pooling`.
        grid: (rows, columns) of the tokens for "grid_average"; None: a square, where N is one.
        metric: (batch, tokens, D), features in which tokens are compared, such as attention keys. None: the tokens.
            What is kept or averaged is always x, and so is what inertia is about.
        generator: for the random methods and starts. None is a fixed seed: the same input gives the same answer.
            One draw of N numbers serves the whole batch, so an answer does not depend on an image's companions.

    Returns:
        Pooled. Its inertia uses w_i = weights for the w-methods and 1 for all others, times counts where given.

    Raises:
        ValueError: k out of range, unknown names, wrong shapes, NaN or infinite tokens, negative or all-zero
            weights, a method that needs weights without them.

    Example:
        Four tokens on a line, two of them alike; three tokens can stand in for all four without loss.

        >>> import torch, tokenpool as tp
        >>> x = torch.tensor([[[0.0], [0.0], [5.0], [9.0]]])
        >>> out = tp.pool_tokens(x, k=3, method="k_medoids")
        >>> out.counts.tolist(), out.inertia.tolist()
        ([[1, 2, 1]], [0.0])
        >>> out.unpool().flatten().tolist()
        [0.0, 0.0, 5.0, 9.0]
    """
    start = init if isinstance(init, Tensor) else None
    pooling = Pooling(method, None if isinstance(init, Tensor) else init, n_iter, output, kernel)
    _check(x, k, pooling, weights, counts, start, grid, metric)
    N = x.shape[1]
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    noise = torch.rand(N, generator=generator, device=generator.device, dtype=torch.float64)
    rows, cols = grid or (math.isqrt(N), math.isqrt(N))
    if rows * cols == N:
        positions = selection.grid_positions(rows, cols, x.device)
    else:                                             # not a grid: only "grid_average" would mind, and it has checked
        positions = x.new_zeros(1, N, 2)
    choice = pooling.choose(x, k, weights, counts, noise=noise, positions=positions, aspect=rows / cols, start=start,
                            metric=metric)
    labels = pooling.stand_ins(x if metric is None else metric, choice)
    tokens = pooling.combine(x, k, choice, weights, counts)
    return Pooled(tokens, labels, count(labels, k, counts),
                  choice.indices if pooling.output_name == "medoid" or "medoids" in method else None,
                  inertia(x, tokens, labels, weights if pooling.spec.weighted else None, counts))


def count(labels: Tensor, k: int, counts: Tensor | None = None) -> Tensor:
    """How many (original) tokens each of the K stands in for: (B, K)."""
    inside = clustering.members(labels, k)
    return inside.sum(1) if counts is None else (inside * counts[..., None]).sum(1)


@torch.no_grad()
def inertia(x: Tensor, tokens: Tensor, labels: Tensor, weights: Tensor | None = None,
            counts: Tensor | None = None) -> Tensor:
    """Reconstruction error (B,): sum over tokens of w_i * count_i * ‖x_i - stand-in‖², in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    lost = (x.to(wide) - clustering.take(tokens.to(wide), labels)).square().sum(-1)
    return (lost * Pooling._mass(lost[..., None], weights, counts)).sum(1)


# ---- what can be wrong with a request: what came, what is allowed, what to type ----

def _check(x: Tensor, k: int, pooling: Pooling, weights: Tensor | None, counts: Tensor | None,
           start: Tensor | None, grid: tuple[int, int] | None, metric: Tensor | None = None) -> None:
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        came = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"Tokens must be a float tensor of shape (batch, tokens, channels); {came} came. "
                         f"For one set of tokens (tokens, channels) use x[None].")
    B, N = x.shape[:2]
    if 0 in x.shape:
        raise ValueError(f"There is nothing to pool in tokens of shape {tuple(x.shape)}. "
                         "Use at least one image, one token and one channel.")
    check_k(k, N)
    name = pooling.method
    if pooling.spec.scored and weights is None:
        raise ValueError(f"Method {name!r} needs weights, a score per token; none came. "
                         f"Pass weights= of shape {(B, N)}, or use 'k_medoids'.")
    if weights is None and (pooling.init == "top_k" or pooling.output == "weighted_mean"):
        what = "init='top_k'" if pooling.init == "top_k" else "output='weighted_mean'"
        other = "init='farthest_first'" if pooling.init == "top_k" else "output='mean'"
        raise ValueError(f"{what} needs weights, a score per token; none came. "
                         f"Pass weights= of shape {(B, N)}, or use {other}.")
    for what, values in (("weights", weights), ("counts", counts)):
        if values is not None and values.shape != (B, N):
            raise ValueError(f"{what} of shape {tuple(values.shape)} came for tokens of shape {tuple(x.shape)}. "
                             f"Pass one number per token: shape {(B, N)}.")
    if metric is not None and (metric.ndim != 3 or metric.shape[:2] != (B, N) or not metric.is_floating_point()):
        raise ValueError(f"metric came as {metric.dtype} of shape {tuple(metric.shape)} for tokens of shape "
                         f"{tuple(x.shape)}. Pass float features per token: shape {(B, N)} + (D,).")
    if start is not None:
        _check_start(start, B, N, k)
    if name == "grid_average":
        side = math.isqrt(N)
        if grid is None and side * side != N:
            raise ValueError(f"{N} tokens are not a square grid. Pass grid=(rows, columns) with rows * columns = {N}.")
        if grid is not None and grid[0] * grid[1] != N:
            raise ValueError(f"grid={grid} has {grid[0] * grid[1]} places, {N} tokens came. "
                             f"Pass grid=(rows, columns) with rows * columns = {N}.")
    if torch.compiler.is_compiling():
        return                                        # a look at values would break the graph
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(-1).sum())
        raise ValueError(f"{bad} of {B * N} tokens hold NaN or infinity, which have no distance to anything. "
                         "Find where they come from (torch.isfinite(x)) before pooling.")
    if metric is not None and not torch.isfinite(metric).all():
        raise ValueError("metric holds NaN or infinity, which have no distance to anything. "
                         "Find where they come from (torch.isfinite(metric)) before pooling.")
    for what, values in (("weights", weights), ("counts", counts)):
        if values is None:
            continue
        if not torch.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{what} must be finite and not negative; the range that came is "
                             f"{float(values.min()):g} to {float(values.max()):g}. Clamp or exponentiate the score.")
        if not (values > 0).any(1).all():
            raise ValueError(f"All {what} of at least one set are zero: nothing can be ranked or averaged by them. "
                             f"Use {what}=None for equal {what}.")


def check_k(k: int, n: int) -> None:
    """1 <= k <= n, an int; else a ValueError that says what to type."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"k={k!r} is not a number of tokens. Use an int from 1 to {n}.")
    if k < 1:
        raise ValueError(f"k={k} keeps no token. Use k from 1 to {n}.")
    if k > n:
        raise ValueError(f"k={k} asks for more tokens than the {n} that came. Use k <= {n}.")


def _check_start(start: Tensor, B: int, N: int, k: int) -> None:
    if start.shape != (B, k) or start.dtype != torch.int64:
        raise ValueError(f"init came as {start.dtype} of shape {tuple(start.shape)}. "
                         f"Pass int64 token indices of shape {(B, k)}.")
    if torch.compiler.is_compiling():
        return
    if start.min() < 0 or start.max() >= N:
        raise ValueError(f"init holds token indices from {int(start.min())} to {int(start.max())}; "
                         f"there are tokens 0 to {N - 1}.")
    if (start.sort(1).values.diff(dim=1) == 0).any():
        raise ValueError("init names the same token twice. Pass k different token indices for each set.")
