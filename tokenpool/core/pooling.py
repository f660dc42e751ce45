"""`pool_tokens`: N tokens in, K tokens out, by any method of the table in methods.py.

A pooling is two steps. `Pooling.choose` decides, without gradient, which token represents which; `Pooling.combine`
makes the K tokens, with gradient. `Pooled` is the result, and computes what is read of it. `PooledViT` does the same
between the blocks of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tokenpool.core import clustering, kernels, selection
from tokenpool.core.checks import check_request, one_of
from tokenpool.core.methods import INITS, METHODS, Choice, Method, Request

OUTPUTS = ("medoid", "mean", "weighted_mean")
T = TypeVar("T")


def pool_tokens(x: Tensor, k: int, *, method: str | None = None, weights: Tensor | None = None,
                counts: Tensor | None = None, init: str | Tensor | None = None, n_iter: int = 5,
                output: str | None = None, kernel: str = "auto", grid: tuple[int, int] | None = None,
                metric: Tensor | None = None, generator: torch.Generator | None = None) -> Pooled:
    """Replace N tokens by K that represent them (paper, Algorithm 1).

    Args:
        x: (batch, tokens, channels), any float type. Decisions are taken in float32 or wider, without gradient;
            gradients flow through the kept or averaged tokens.
        k: tokens to keep, 1 <= k <= tokens.
        method: a name of `method_names()`. None: "wk_medoids" (the paper's) where weights are given, else "k_medoids".
        weights: (batch, tokens) >= 0, the significance score. Score methods rank by it, the w-methods also weight
            by it, the init "top_k" uses it.
        counts: (batch, tokens), how many original tokens each represents already; clusters weight by it.
        init: a name of `init_names()`, or (batch, k) int64 token indices to start a clustering from.
            None: "top_k" (Algorithm 1) where weights are given, else "farthest_first".
        n_iter: iterations of a clustering. output, kernel: see `Pooling`.
        grid: (rows, columns) of the tokens for "grid_average"; None: a square, where N is one.
        metric: (batch, tokens, D), features in which tokens are compared, such as attention keys. None: the tokens.
            What is kept or averaged is always x, and inertia is measured in x.
        generator: for the random methods and inits. None is a fixed seed: the same input gives the same answer.
            One draw of N numbers serves the whole batch, so an image's answer does not depend on the other images.

    Returns:
        Pooled. Its inertia uses w_i = weights for the w-methods and 1 for all others, times counts where given.

    Raises:
        ValueError: k out of range, unknown names, wrong shapes, NaN or infinite tokens, negative or all-zero
            weights, a method that needs weights without them.

    Example:
        Four tokens on a line, two of them equal; three tokens represent all four without loss.

        >>> import torch, tokenpool as tp
        >>> x = torch.tensor([[[0.0], [0.0], [5.0], [9.0]]])
        >>> out = tp.pool_tokens(x, k=3)
        >>> out.counts.tolist(), out.inertia.tolist()
        ([[1, 2, 1]], [0.0])
        >>> out.unpool().flatten().tolist()
        [0.0, 0.0, 5.0, 9.0]
    """
    if method is None:
        method = "k_medoids" if weights is None else "wk_medoids"
    given = init if isinstance(init, Tensor) else None
    pooling = Pooling(method, None if isinstance(init, Tensor) else init, n_iter, output, kernel)
    check_request(x, k, method, output, init, weights, counts, grid, metric)
    N = x.shape[1]
    noise = _fixed_noise(N) if generator is None else \
        torch.rand(N, generator=generator, device=generator.device, dtype=torch.float64)
    rows, cols = grid or (math.isqrt(N), math.isqrt(N))
    if rows * cols == N:
        positions = selection.grid_positions(rows, cols, x.device)
    else:                                             # not a grid: only "grid_average" needs one, and it has checked
        positions = x.new_zeros(1, N, 2)
    return pooling(x, k, weights, counts, noise=noise, positions=positions, aspect=rows / cols, init=given,
                   metric=metric)


@torch.compiler.assume_constant_result              # torch.compile cannot trace a generator
def _fixed_noise(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Pooling:
    """A method with its options, checked once. `pool_tokens` and `PooledViT` both work through it.

    Args:
        method: a name of `method_names()`.
        init: how a clustering starts, a name of `init_names()`. None: "top_k" (Algorithm 1) where there are
            weights, else "farthest_first".
        n_iter: iterations of assignment and update, >= 1. Five is the paper's number (S).
        output: what a clustering returns. "weighted_mean" (weights times counts), "mean" (counts only) or "medoid"
            (the input token itself; for K-Means the member nearest the centre). None: "weighted_mean" for the
            w-methods, "mean" for the others. The sources on the paper disagree here, see docs/choices.md (S vs S).
        kernel: what computes a clustering: "auto", "plain", "numba" or "triton", see `tokenpool.core.kernels`.
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
            raise ValueError(f"n_iter={self.n_iter!r} is not a number of iterations. "
                             "Use an int >= 1; the paper uses 5.")

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    def init_name(self, have_weights: bool = True) -> str | None:
        """The init that will be used; None for methods that have none."""
        if self.spec.kind != "clustering":
            return None
        return self.init or ("top_k" if have_weights else "farthest_first")

    @property
    def needs_score(self) -> bool:
        """Whether the result depends on the weights, where there are any."""
        init = self.init_name()
        return self.spec.scored or self.output == "weighted_mean" or (init is not None and INITS[init].scored)

    @property
    def draws(self) -> bool:
        """Whether the result depends on random numbers."""
        init = self.init_name()
        return self.spec.draws or (init is not None and INITS[init].draws)

    @property
    def output_name(self) -> str:
        if self.spec.kind == "selection":
            return "medoid"
        return self.output or ("weighted_mean" if self.spec.weighted else "mean")

    def __call__(self, x: Tensor, k: int, weights: Tensor | None = None, counts: Tensor | None = None, *,
                 metric: Tensor | None = None, **options: Any) -> Pooled:
        """Choose, then combine. Arguments as for `choose`."""
        choice = self.choose(x, k, weights, counts, metric=metric, **options)
        return Pooled(self.combine(x, k, choice, weights, counts),
                      choice.indices if self.output_name == "medoid" or self.spec.centres_are_tokens else None,
                      choice, x.detach(), (x if metric is None else metric).detach(),
                      weights if self.spec.weighted else None, counts)

    @torch.no_grad()
    def choose(self, x: Tensor, k: int, weights: Tensor | None = None, counts: Tensor | None = None, *,
               noise: Tensor, positions: Tensor, aspect: float = 1.0, init: Tensor | None = None,
               metric: Tensor | None = None, depth: float | None = None) -> Choice:
        """Decide, without gradient and without looking at values (so without waiting for a GPU).

        Args:
            metric: (B, N, D) features to compare in place of x. depth: share of the blocks passed, for PiToMe.
        """
        def decide(x: Tensor, weights: Tensor | None, counts: Tensor | None, positions: Tensor, init: Tensor | None
                   ) -> Choice:
            raw = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            # a selection looks at the score only, a grid at positions
            x = raw if self.spec.kind in ("selection", "grid") else clustering.centred(raw)
            weights = None if weights is None else weights.detach().to(x.dtype)
            mass = _mass(x, weights if self.spec.weighted else None, counts)
            return self.spec.choose(Request(
                x, raw, k, weights, mass, noise.to(x), positions, aspect,
                self.init_name(weights is not None) if init is None else init, self.n_iter,
                kernels.pick(self.kernel, x.device), depth))

        with torch.autocast(x.device.type, enabled=False):     # float32: autocast would lose the argmin
            parts = _in_pieces(decide, x if metric is None else metric, weights, counts,
                               positions.expand(x.shape[0], -1, -1), init)
            return Choice(*(None if part[0] is None else _joined(part) for part in zip(*parts, strict=True)))

    def combine(self, x: Tensor, k: int, choice: Choice, weights: Tensor | None = None,
                counts: Tensor | None = None) -> Tensor:
        """The K tokens of a choice, (B, K, C), with gradient."""
        if self.output_name == "medoid" and choice.indices is not None:
            return clustering.take(x, choice.indices)
        assert choice.labels is not None
        weighted = self.output_name == "weighted_mean" and self.spec.kind != "grid" and weights is not None
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mass = _mass(wide, weights.detach() if weighted and weights is not None else None, counts)
            average = kernels.pick(self.kernel, x.device).cluster_means
            return _joined(_in_pieces(lambda x, labels, mass: average(x, labels, k, mass),
                                      wide, choice.labels, mass)).to(x.dtype)

    def macs(self, n: int, k: int, c: int, labels: bool = False, d: int | None = None) -> int:
        """Multiply-adds of one pooling of n tokens into k, of one image: those of its matrix products.

        Args:
            c: channels of the tokens. d: of the features they are compared by; None: c.
            labels: whether the labels are read, which a selection computes only then.
        """
        d = c if d is None else d
        total = self.spec.macs(n, k, d, self.n_iter)
        init = self.init_name()
        if init and INITS[init].grows and not self.spec.needs_distances:
            total += n * n * d
        if self.output_name != "medoid":
            total += n * k * c
        if labels and self.spec.kind == "selection":
            total += n * k * d
        return total


class lazy(Generic[T]):
    """An attribute that is computed when it is first read. (functools.cached_property holds a lock while it computes,
    which torch.compile cannot trace.)"""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, owner: Any, kind: Any = None) -> T:
        if owner is None:
            return self                                        # type: ignore[return-value]
        value = owner.__dict__[self.name] = self.compute(owner)
        return value


@dataclass(frozen=True, eq=False, repr=False)
class Pooled:
    """N tokens and the K that represent them.

    `labels`, `counts` and `inertia` are computed, without gradient, when they are first read, so tokens alone
    cost nothing more. Until then the input is kept, and must not be changed in place.
    """

    tokens: Tensor             # (B, K, C)  what the next block sees
    indices: Tensor | None     # (B, K)     the input tokens chosen as centres (int64), or None for means
    _choice: Choice
    _x: Tensor                 # (B, N, C)  the input
    _features: Tensor          # (B, N, D)  what was compared
    _weights: Tensor | None    # (B, N)     of a method that weights tokens by their score
    _counts: Tensor | None     # (B, N)     the counts handed in

    @classmethod
    def unchanged(cls, x: Tensor) -> Pooled:
        """N tokens represented by themselves."""
        everyone = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return cls(x, everyone, Choice(everyone, everyone), x.detach(), x.detach(), None, None)

    @lazy
    def labels(self) -> Tensor:
        """(B, N) which of the K represents each token (int64)."""
        if self._choice.labels is not None:
            return self._choice.labels
        assert self._choice.indices is not None
        with torch.no_grad(), torch.autocast(self._x.device.type, enabled=False):
            return selection.nearest_labels(clustering.centred(self._features), self._choice.indices)

    @lazy
    def counts(self) -> Tensor:
        """(B, K) how many tokens each of the K represents; sums to N, or to the counts handed in."""
        return count(self.labels, self.tokens.shape[1], self._counts)

    @lazy
    def inertia(self) -> Tensor:
        """(B,) reconstruction error: sum of w_i * squared distance to the representative."""
        return inertia(self._x, self.tokens, self.labels, self._weights, self._counts)

    @lazy
    def error(self) -> Tensor:
        """(B,) unweighted reconstruction error as a share of the tokens' variance: 0 is lossless."""
        return inertia(self._x, self.tokens, self.labels) / clustering.centred(self._x).square().sum((1, 2))

    @lazy
    def origin(self) -> Tensor:
        """(B, K) the input token at whose place each new token stands: itself, the centre of its cluster, or the first
        token of its grid cell."""
        if self._choice.indices is not None:
            return self._choice.indices
        return clustering.members(self.labels, self.tokens.shape[1]).int().argmax(1)

    def unpool(self) -> Tensor:
        """Nearest-neighbour reconstruction u(f; F^): every token replaced by its representative, (B, N, C)."""
        return clustering.take(self.tokens, self.labels)

    def __repr__(self) -> str:
        names = ("tokens", "labels", "counts", "indices", "inertia")
        return f"Pooled({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def count(labels: Tensor, k: int, counts: Tensor | None = None) -> Tensor:
    """How many (original) tokens each of the K represents: (B, K)."""
    inside = clustering.members(labels, k)
    return inside.sum(1) if counts is None else (inside * counts[..., None]).sum(1)


@torch.no_grad()
def inertia(x: Tensor, tokens: Tensor, labels: Tensor, weights: Tensor | None = None,
            counts: Tensor | None = None) -> Tensor:
    """Reconstruction error (B,): sum over tokens of w_i * count_i * ‖x_i - representative‖², in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    lost = (x.to(wide) - clustering.take(tokens.to(wide), labels)).square().sum(-1)
    return (lost * _mass(lost[..., None], weights, counts)).sum(1)


def _mass(x: Tensor, weights: Tensor | None, counts: Tensor | None) -> Tensor:
    mass = x.new_ones(x.shape[:2])
    for part in (weights, counts):
        mass = mass if part is None else mass * part.to(x.dtype)
    return mass


def _in_pieces(function: Callable[..., T], x: Tensor, *others: Tensor | None) -> list[T]:
    """`function` of some sets at a time, so that their matrices of N x N distances fit the memory."""
    return [function(*(None if t is None else t[piece] for t in (x, *others)))
            for piece in kernels.pieces(x.shape[0], x.shape[1] ** 2, x.device)]


def _joined(parts: Any) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
