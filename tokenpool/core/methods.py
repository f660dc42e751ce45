"""Every way to make K tokens of N, and every way to initialise a clustering: two tables.

A new method is one function and one row of `METHODS`. Its properties are fields of its row: no other code asks for a
method by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from tokenpool.core import clustering, merging, selection


class Choice(NamedTuple):
    """What a method decides, without gradient: which token represents which, or which tokens stay, or both."""

    labels: Tensor | None = None      # (B, N) which of the K represents each token; None: the nearest one that stays
    indices: Tensor | None = None     # (B, K) input tokens chosen as centres (for K-Means: the members nearest to them)


@dataclass(frozen=True)
class Request:
    """The input of a method: the tensors of one call."""

    x: Tensor                         # (B, N, D) features to compare, float32, no gradient; centred where compared
    raw: Tensor                       # the same before centring: angles depend on the origin
    k: int
    weights: Tensor | None            # (B, N) significance score
    mass: Tensor                      # (B, N) counts, times the weights where the method weights by them
    noise: Tensor                     # (N,) uniform in [0, 1): the only source of randomness
    positions: Tensor                 # (B, N, 2) row and column in [0, 1)
    aspect: float                     # height over width of the image
    init: str | Tensor | None         # a name of INITS, or (B, K) token indices
    n_iter: int
    ops: ModuleType                   # clustering.py, or a kernel with the same functions
    depth: float | None               # share of the model's blocks passed, where there is a model

    @property
    def score(self) -> Tensor:
        """The weights of a method that needs them; the request has been checked."""
        assert self.weights is not None
        return self.weights


# ---- inits ----

@dataclass(frozen=True, kw_only=True)
class Init:
    description: str
    choose: Callable[[Request, Any], Tensor]        # (request, distances) -> (B, K) token indices
    scored: bool = False              # needs weights
    draws: bool = False               # depends on the noise
    grows: bool = False               # looks at all distances, which K-Medoids has anyway


INITS: dict[str, Init] = {
    "top_k": Init(
        description="the K tokens with the highest score (the paper's Algorithm 1)",
        choose=lambda r, d: clustering.top_k(r.score, r.k), scored=True),
    "random": Init(
        description="K random tokens",
        choose=lambda r, d: clustering.random_k(r.noise, r.k, r.x.shape[0]), draws=True),
    "farthest_first": Init(
        description="always add the token farthest from all chosen so far",
        choose=lambda r, d: r.ops.farthest_first(d, r.k), grows=True),
    "k_means_plus_plus": Init(
        description="add random tokens, distant ones with a higher probability",
        choose=lambda r, d: clustering.k_means_plus_plus(d, r.k, r.mass, r.noise), draws=True, grows=True),
}


def _initial(r: Request, d: Tensor | None = None) -> Tensor:
    """The initial centres of a clustering, (B, K) token indices.

    Args:
        d: all distances, where they are known already.
    """
    if isinstance(r.init, Tensor):
        return r.init
    assert r.init is not None
    init = INITS[r.init]
    return init.choose(r, r.ops.pairwise(r.x) if d is None and init.grows else d)


# ---- methods ----

@dataclass(frozen=True, kw_only=True)
class Method:
    description: str                  # the sentence a learner reads in the drop-down
    choose: Callable[[Request], Choice]
    kind: str                         # "selection", "grid", "clustering" (has an init), "merging" (has none)
    macs: Callable[[int, int, int, int], int] = lambda n, k, c, n_iter: 0   # multiply-adds of the choice, one image
    scored: bool = False              # ranks or draws by the weights: an error without them
    weighted: bool = False            # weights the tokens by them, too
    draws: bool = False               # depends on the noise, whatever the init
    needs_distances: bool = False     # computes all distances, so an init that needs them costs nothing more
    centres_are_tokens: bool = False  # reports its centres as `indices`, whatever it returns as tokens
    score: str = "received"           # what a model ranks by unless told otherwise, see models/attention.py


def _k_medoids(r: Request) -> Choice:
    d = r.ops.pairwise(r.x)
    return Choice(*r.ops.k_medoids(d, _initial(r, d), r.mass, r.n_iter))


def _k_means(r: Request) -> Choice:
    by_distances = getattr(r.ops, "k_means_by_distances", None)
    if by_distances is None:
        return Choice(*r.ops.k_means(r.x, _initial(r), r.mass, r.n_iter))
    d = r.ops.pairwise(r.x)
    return Choice(*by_distances(d, _initial(r, d), r.mass, r.n_iter))


def _top_k(r: Request) -> Choice:
    return Choice(indices=selection.keep_top_k(r.k, r.score))


def _gram_macs(n: int, k: int, c: int, n_iter: int) -> int:
    return n * n * c                                   # all distances, once


def _k_means_macs(n: int, k: int, c: int, n_iter: int) -> int:
    return (2 * n_iter - 1) * n * k * c                # one mean fewer than assignments; `combine` takes the last


METHODS: dict[str, Method] = {
    "random": Method(
        description="keep K random tokens",
        choose=lambda r: Choice(indices=selection.keep_random(r.k, r.x.shape[0], r.noise)),
        kind="selection", draws=True),
    "importance": Method(
        description="keep K different random tokens, those with a high score with a higher probability",
        choose=lambda r: Choice(indices=selection.keep_importance(r.k, r.score, r.noise)),
        kind="selection", scored=True, draws=True),
    "importance_with_replacement": Method(
        description="draw K times in proportion to the score; a token may be drawn twice",
        choose=lambda r: Choice(indices=selection.keep_importance_with_replacement(r.k, r.score, r.noise)),
        kind="selection", scored=True, draws=True),
    "top_k": Method(
        description="keep the K tokens with the highest score (PoWER-BERT)",
        choose=_top_k, kind="selection", scored=True),
    "grid_average": Method(
        description="cut the image into K cells and average each",
        choose=lambda r: Choice(labels=selection.grid_cells(r.positions, r.k, r.aspect)), kind="grid"),
    "k_means": Method(
        description="cluster; each new token is the mean of its cluster",
        choose=_k_means, kind="clustering", macs=_k_means_macs),
    "wk_means": Method(
        description="cluster, weighting tokens by score; each new token is a weighted mean",
        choose=_k_means, kind="clustering", macs=_k_means_macs, scored=True, weighted=True),
    "k_medoids": Method(
        description="cluster around K of the tokens themselves",
        choose=_k_medoids, kind="clustering", macs=_gram_macs, needs_distances=True, centres_are_tokens=True),
    "wk_medoids": Method(
        description="cluster around K of the tokens, weighting by score (Token Pooling)",
        choose=_k_medoids, kind="clustering", macs=_gram_macs, scored=True, weighted=True, needs_distances=True,
        centres_are_tokens=True),
    # not in the paper: minimises the paper's loss bottom up, from all tokens, so it needs no init (I)
    "ward": Method(
        description="join the two clusters whose union loses least, again and again, until K are left (Ward)",
        choose=lambda r: Choice(*r.ops.agglomerative(r.ops.pairwise(r.x), r.k, r.mass, "ward")),
        kind="merging", macs=_gram_macs),
    # published by others; see merging.py for sources and for what is ours in them
    "top_k_class": Method(
        description="keep the K tokens the class token attends to most",
        choose=_top_k, kind="selection", scored=True, score="class_token"),
    "evit": Method(
        description="keep K - 1 by the class token's attention, fuse the rest into one (EViT)",
        choose=lambda r: Choice(*merging.evit(r.score, r.k)),
        kind="merging", scored=True, weighted=True, score="class_token"),
    "ats": Method(
        description="sample tokens at even steps of the summed score (ATS)",
        choose=lambda r: Choice(indices=merging.ats(r.score, r.k)),
        kind="selection", scored=True, score="class_token_values"),
    "tome": Method(
        description="split tokens in two halves, merge the most similar pairs between them (ToMe)",
        choose=lambda r: Choice(*merging.tome(r.raw, r.k, r.mass)),
        kind="merging", macs=lambda n, k, c, n_iter: merging.tome_macs(n, k, c)),
    "pitome": Method(
        description="merge pairs among the tokens that have many similar ones, protect the others (PiToMe)",
        choose=lambda r: Choice(*merging.pitome(r.raw, r.k, r.mass, r.depth)),
        kind="merging", macs=lambda n, k, c, n_iter: merging.pitome_macs(n, k, c)),
    "dpc_knn": Method(
        description="centres are dense and far from denser tokens; all others join the nearest (DPC-KNN)",
        choose=lambda r: Choice(*merging.dpc_knn(r.ops.pairwise(r.x), r.k, r.x.shape[2])),
        kind="merging", macs=_gram_macs),
    "agglomerative": Method(
        description="join the two nearest clusters, again and again, until K are left (ATC)",
        choose=lambda r: Choice(*r.ops.agglomerative(merging.cosine_distances(r.raw), r.k, r.mass, "average")),
        kind="merging", macs=_gram_macs),
}


def method_names() -> tuple[str, ...]:
    """Names that `method=` takes."""
    return tuple(METHODS)


def init_names() -> tuple[str, ...]:
    """Names that `init=` takes."""
    return tuple(INITS)
