"""The clusterings of clustering.py as compiled loops on the CPU (numba).

After the one matrix product of `pairwise`, nothing here multiplies matrices:

- An assignment compares K rows of the distance matrix, N numbers each, which lie in the cache: N K comparisons.
- A medoid is sought among the members of its cluster only: the sum of the squares of the cluster sizes, not N².
- Joining two clusters changes N distances; all others keep their nearest: about N steps per join, not N².
- K-Means needs no means on the way. With masses w and W their sum, the squared distance of token i to the mean of a
  cluster is   sum_m w_m d_im / W  -  sum_ml w_m w_l d_ml / (2 W²),   m and l its members (expand the squares; C).

One thread: for 16 images of 196 tokens the loops take about a millisecond, the matrix product six. A second thread
cost more than it saved, because PyTorch's own threads keep spinning for a while after every product.
Letters as in clustering.py: B sets, N tokens, K clusters, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from tokenpool.core.clustering import _FAR


def _compiled(function: Any) -> Any:
    """Compile on the first call for a type and cache the result on disk; where that fails, only in memory."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:                                     # no folder that can be written to
        return numba.njit(nogil=True)(function)


# ---- loops over arrays ----

@_compiled
def _finish_distances(gram):
    """Gram matrices -> squared distances, in place; the same sums in the same order as in clustering.pairwise."""
    n = np.empty(gram.shape[1], gram.dtype)
    for b in range(gram.shape[0]):
        g = gram[b]
        for i in range(len(n)):
            n[i] = g[i, i]
        for i in range(len(n)):
            for j in range(len(n)):
                g[i, j] = max((n[i] + n[j]) - (g[i, j] + g[i, j]), g.dtype.type(0))
        for i in range(len(n)):
            for j in range(i):
                g[i, j] = g[j, i] = max(g[i, j], g[j, i])


@_compiled
def _grow_farthest(d, first, chosen):
    B, N, _ = d.shape
    gap = np.empty(N, d.dtype)
    for b in range(B):
        new = first[b]
        gap[:] = np.inf
        for step in range(chosen.shape[1]):
            chosen[b, step] = new
            row = d[b, new]
            for i in range(N):
                gap[i] = min(gap[i], row[i])
            gap[new] = -1
            for i in range(N):                               # never again: a minimum does not rise
                if gap[i] > gap[new]:
                    new = i


@_compiled
def _assign_to_rows(d, medoids, best, labels):
    """The nearest medoid of every token of one set; a medoid represents itself."""
    best[:] = d[medoids[0]]
    labels[:] = 0
    for j in range(1, len(medoids)):
        row = d[medoids[j]]
        for i in range(len(best)):                           # no branch: the compiler does 16 at a time
            closer = row[i] < best[i]
            best[i] = row[i] if closer else best[i]
            labels[i] = j if closer else labels[i]
    for j in range(len(medoids)):
        labels[medoids[j]] = j


@_compiled
def _sort_members(labels, begin, order):
    """Tokens in the order of their clusters: those of cluster j are order[begin[j]:begin[j + 1]], ascending."""
    begin[:] = 0
    for i in range(len(labels)):
        begin[labels[i] + 1] += 1
    for j in range(1, len(begin)):
        begin[j] += begin[j - 1]
    at = begin[:-1].copy()
    for i in range(len(labels)):
        order[at[labels[i]]] = i
        at[labels[i]] += 1


@_compiled
def _total(d, mass, token, inside):
    """The loss of a cluster with `token` as its medoid."""
    total = mass.dtype.type(0)
    for m in inside:
        total += d[token, m] * mass[m]
    return total


@_compiled
def _best_member(d, mass, medoid, inside):
    """The member with the least loss as medoid: the present one on a tie, else the first of the best."""
    if len(inside) == 1:
        return medoid
    least = _total(d, mass, medoid, inside)
    for token in inside:
        total = _total(d, mass, token, inside)
        if total < least:
            least, medoid = total, token
    return medoid


@_compiled
def _k_medoids(d, mass, n_iter, medoids, labels):
    """Moves `medoids`, which hold the init, and writes `labels`."""
    B, N, _ = d.shape
    K = medoids.shape[1]
    best, label = np.empty(N, d.dtype), np.empty(N, np.int32)
    begin, order = np.empty(K + 1, np.int64), np.empty(N, np.int64)
    for b in range(B):
        for _ in range(n_iter):
            _assign_to_rows(d[b], medoids[b], best, label)
            _sort_members(label, begin, order)
            for j in range(K):
                medoids[b, j] = _best_member(d[b], mass[b], medoids[b, j], order[begin[j]:begin[j + 1]])
        _assign_to_rows(d[b], medoids[b], best, label)
        labels[b] = label


@_compiled
def _assign_to_means(d, mass, begin, order, row, best, labels):
    """The nearest mean of every token of one set, by the identity at the top of this file."""
    best[:] = np.inf
    labels[:] = 0
    for j in range(len(begin) - 1):
        inside = order[begin[j]:begin[j + 1]]
        whole = mass.dtype.type(0)
        for m in inside:
            whole += mass[m]
        row[:] = 0
        for m in inside:                                     # a cluster without mass gets its plain mean
            share = mass[m] / whole if whole > 0 else mass.dtype.type(1) / len(inside)
            for i in range(len(row)):
                row[i] += share * d[m, i]
        inner = mass.dtype.type(0)
        for m in inside:
            inner += (mass[m] / whole if whole > 0 else mass.dtype.type(1) / len(inside)) * row[m]
        inner /= 2
        for i in range(len(row)):
            distance = row[i] - inner
            closer = distance < best[i]
            best[i] = distance if closer else best[i]
            labels[i] = j if closer else labels[i]


@_compiled
def _fill_empty(mass, best, labels, nearest):
    """As clustering._nearest_center: every empty cluster takes over the token that is reconstructed worst."""
    N, K = len(labels), len(nearest)
    nearest[:] = -1
    for i in range(N):
        j = labels[i]
        if nearest[j] < 0 or best[i] < best[nearest[j]]:
            nearest[j] = i
    loss = np.empty(N, best.dtype)
    for i in range(N):
        loss[i] = max(best[i], best.dtype.type(0)) * mass[i]
    for j in range(K):
        if nearest[j] >= 0:
            loss[nearest[j]] = -1                            # else the donor would be empty in its turn
    for j in range(K):
        if nearest[j] < 0:
            worst = 0
            for i in range(1, N):
                if loss[i] > loss[worst]:
                    worst = i
            loss[worst] = -1
            labels[worst], nearest[j] = j, worst


@_compiled
def _k_means(d, init, mass, n_iter, labels, nearest):
    B, N, _ = d.shape
    K = init.shape[1]
    row, best, label = np.empty(N, d.dtype), np.empty(N, d.dtype), np.empty(N, np.int32)
    begin, order = np.empty(K + 1, np.int64), np.empty(N, np.int64)
    for b in range(B):
        begin[:] = np.arange(K + 1)                          # the first means are those of one token each
        order[:K] = init[b]
        for step in range(n_iter):
            _assign_to_means(d[b], mass[b], begin, order, row, best, label)
            _fill_empty(mass[b], best, label, nearest[b])
            if step + 1 < n_iter:
                _sort_members(label, begin, order)
        labels[b] = label


@_compiled
def _linked(linkage, to_i, to_j, si, sj, size, between):
    """clustering._linked, for one distance; linkage is 0 for ward, 1 for average, 2 for complete."""
    if linkage == 2:
        return max(to_i, to_j)
    if linkage == 1:
        return (si * to_i + sj * to_j) / (si + sj)
    return ((si + size) * to_i + (sj + size) * to_j - size * between) / (si + sj + size)


@_compiled
def _first_least(row):
    """The index of the least value of a row, the first of equals, in two passes without branches."""
    least = row[0]
    for i in range(1, len(row)):
        least = min(least, row[i])
    for i in range(len(row)):
        if row[i] == least:
            return i
    return 0


@_compiled
def _join_up(d, mass, linkage, k, labels, medoids):
    """Every cluster knows its nearest: a step looks at N of them, and again where that changed."""
    B, N, _ = d.shape
    gap, low = np.empty((N, N), d.dtype), np.empty(N, d.dtype)
    near, head, size = np.empty(N, np.int64), np.empty(N, np.int64), np.empty(N, d.dtype)
    begin, order, label = np.empty(k + 1, np.int64), np.empty(N, np.int64), np.empty(N, np.int32)
    for b in range(B):
        for i in range(N):
            size[i] = max(mass[b, i], d.dtype.type(1e-9))
            head[i] = i
        for i in range(N):
            for j in range(N):
                value = d[b, i, j] * (size[i] * size[j] / (size[i] + size[j])) if linkage == 0 else d[b, i, j]
                gap[i, j] = value if value < _FAR else _FAR              # NaN too
            gap[i, i] = np.inf
            near[i] = _first_least(gap[i])
            low[i] = gap[i, near[i]]
        for _ in range(N - k):
            i = _first_least(low)
            j = near[i]                                      # j > i: gap is symmetric, row j would have come first
            between, si, sj = low[i], size[i], size[j]
            for t in range(N):
                gap[i, t] = _linked(linkage, gap[i, t], gap[j, t], si, sj, size[t], between)
            gap[i, i] = gap[i, j] = np.inf
            size[i] += sj
            head[j], low[j] = i, np.inf
            gap[j] = np.inf
            for t in range(N):
                gap[t, i], gap[t, j] = gap[i, t], np.inf
                if head[t] != t:
                    continue
                if near[t] == i or near[t] == j or t == i:
                    near[t] = _first_least(gap[t])
                    low[t] = gap[t, near[t]]
                elif gap[t, i] < low[t] or (gap[t, i] == low[t] and i < near[t]):
                    near[t], low[t] = i, gap[t, i]
        new = 0
        for i in range(N):                                   # a token comes after the one that it has joined
            if head[i] == i:
                label[i] = new
                new += 1
            else:
                label[i] = label[head[i]]
        labels[b] = label
        _sort_members(label, begin, order)
        for j in range(k):
            inside = order[begin[j]:begin[j + 1]]
            medoids[b, j] = _best_member(d[b], mass[b], inside[0], inside)


@_compiled
def _cluster_means(x, labels, mass, share, means):
    """Writes each token's `share` of its cluster's mean, and the means, in the order of the tokens."""
    B, N, C = x.shape
    K = means.shape[1]
    whole, size = np.empty(K, mass.dtype), np.empty(K, mass.dtype)
    for b in range(B):
        whole[:] = 0
        size[:] = 0
        for i in range(N):
            whole[labels[b, i]] += mass[b, i]
            size[labels[b, i]] += 1
        means[b] = 0
        for i in range(N):
            j = labels[b, i]
            part = mass[b, i] / whole[j] if whole[j] > 0 else 1 / size[j]
            share[b, i] = part
            for c in range(C):
                means[b, j, c] += x.dtype.type(part) * x[b, i, c]


# ---- the functions of clustering.py; operators, so that torch.compile does not trace into the loops ----

def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _indices(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64)


def _op(fake: Any, mutates: tuple[str, ...] = ()) -> Any:
    """Register a function as torch.ops.tokenpool.NAME. Outside of torch.compile it is called directly: PyTorch's
    dispatcher would cost as much as the smaller loops."""
    def wrap(function: Any) -> Any:
        op = torch.library.custom_op(f"tokenpool::{function.__name__}", function, mutates_args=mutates,
                                     device_types="cpu")
        op.register_fake(fake)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return op(*args) if torch.compiler.is_compiling() else function(*args)
        return call
    return wrap


def pairwise(x: Tensor) -> Tensor:
    """clustering.pairwise, to the last bit."""
    gram = x @ x.mT
    finish_distances(gram)
    return gram


@_op(lambda gram: None, mutates=("gram",))
def finish_distances(gram: Tensor) -> None:
    """Gram matrices become distances, in place."""
    _finish_distances(gram.numpy())


@_op(lambda d, k: _indices(d.shape[0], k))
def farthest_first(d: Tensor, k: int) -> Tensor:
    """clustering.farthest_first."""
    chosen = _indices(len(d), k)
    _grow_farthest(_array(d), _array(d.sum(2).argmin(1)), chosen.numpy())
    return chosen


@_op(lambda d, init, mass, n_iter: (_indices(*mass.shape), _indices(*init.shape)))
def k_medoids(d: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """clustering.k_medoids. Equal except where two totals differ by rounding only."""
    labels, medoids = _indices(*mass.shape), init.clone(memory_format=torch.contiguous_format)
    _k_medoids(_array(d), _array(mass), n_iter, medoids.numpy(), labels.numpy())
    return labels, medoids


def k_means(x: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """clustering.k_means. Equal except where two distances differ by rounding only. Costs one N² C product instead of
    (2 n_iter - 1) N K C."""
    return k_means_by_distances(pairwise(x), init, mass, n_iter)


@_op(lambda d, init, mass, n_iter: (_indices(*mass.shape), _indices(*init.shape)))
def k_means_by_distances(d: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """The same from d = pairwise(x), which an init may have needed already."""
    labels, nearest = _indices(*mass.shape), _indices(*init.shape)
    _k_means(_array(d), _array(init), _array(mass), n_iter, labels.numpy(), nearest.numpy())
    return labels, nearest


@_op(lambda d, k, mass, linkage="ward": (_indices(*mass.shape), _indices(mass.shape[0], k)))
def agglomerative(d: Tensor, k: int, mass: Tensor, linkage: str = "ward") -> tuple[Tensor, Tensor]:
    """clustering.agglomerative. Equal except where two distances differ by rounding only."""
    labels, medoids = _indices(*mass.shape), _indices(len(mass), k)
    which = ("ward", "average", "complete").index(linkage)
    _join_up(_array(d), _array(mass), which, k, labels.numpy(), medoids.numpy())
    return labels, medoids


@_op(lambda x, labels, k, mass: (x.new_empty(x.shape[0], k, x.shape[2]), torch.empty_like(mass)))
def means_and_shares(x: Tensor, labels: Tensor, k: int, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the clusters, and each token's share of its cluster's mean."""
    means, share = x.new_empty(len(x), k, x.shape[2]), torch.empty(mass.shape, dtype=mass.dtype)
    _cluster_means(_array(x), _array(labels), _array(mass), share.numpy(), means.numpy())
    return means, share


def cluster_means(x: Tensor, labels: Tensor, k: int, mass: Tensor) -> Tensor:
    """clustering.cluster_means, with its gradient to x."""
    return _ClusterMeans.apply(x, labels, k, mass)


class _ClusterMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, k: int, mass: Tensor) -> Tensor:
        means, share = means_and_shares(x, labels, k, mass)
        ctx.save_for_backward(labels, share)
        return means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        labels, share = ctx.saved_tensors
        spread = grads[0].gather(1, labels[..., None].expand(-1, -1, grads[0].shape[2]))
        return spread * share[..., None].to(spread.dtype), None, None, None
