"""clustering.py on CUDA (Triton): one program an image, no host in between, shapes known in advance.

A K-Medoids pooling is three launches: distances, then init and all iterations, then the means, which have a gradient.
The distance matrix of an image is read by one program only, so it stays in its cache. An iteration reads tiles of it:
the K rows of the medoids to assign, all rows to find the best member of each cluster.

Bottom-up clustering is one launch for all its steps, which look at rows of N distances each, and one for the medoids.
K-Means stays plain: its iterations are matrix products already. Also here: the attention that tokens receive, summed
over queries without ever storing the matrix.

With TRITON_INTERPRET=1 all of it runs on the CPU, which is how it is tested where there is no GPU.
Letters as in clustering.py: B sets, N tokens, K clusters, C channels; H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenpool.core.clustering import _FAR, take
from tokenpool.core.clustering import k_means as k_means  # a kernel has all six functions, see kernels/__init__.py

ROWS, COLUMNS = 32, 128                                  # a tile of distances
FAR = tl.constexpr(_FAR)


# ---- programs ----

@triton.jit
def _distances(x, norms, d, N, C, TILE: tl.constexpr, STEP: tl.constexpr):
    """d[b, i, j] for one tile on or below the diagonal, and its mirror image: symmetric, as clustering.pairwise."""
    b, i, j = tl.program_id(2).to(tl.int64), tl.program_id(0), tl.program_id(1)
    if j > i:
        return
    x += b * N * C
    d += b * N * N
    norms += b * N
    rows, columns = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    products = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, C, STEP):
        c = first + tl.arange(0, STEP)
        left = tl.load(x + rows[:, None] * C + c[None, :], (rows[:, None] < N) & (c[None, :] < C), 0.0)
        right = tl.load(x + columns[None, :] * C + c[:, None], (columns[None, :] < N) & (c[:, None] < C), 0.0)
        products += tl.dot(left, right, input_precision="tf32x3")        # single tf32 would lose the argmin
    own, other = tl.load(norms + rows, rows < N, 0.0), tl.load(norms + columns, columns < N, 0.0)
    tile = tl.maximum(own[:, None] + other[None, :] - 2 * products, 0.0)
    if i == j:
        tile = tl.maximum(tile, tl.trans(tile))
    inside = (rows[:, None] < N) & (columns[None, :] < N)
    tl.store(d + rows[:, None] * N + columns[None, :], tile, inside)
    tl.store(d + columns[None, :] * N + rows[:, None], tile, inside)


@triton.jit
def _assign(d, medoids, labels, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The nearest medoid of every token; a medoid represents itself."""
    for n0 in range(0, N, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        best = tl.full((COLUMNS,), float("inf"), tl.float32)
        label = tl.zeros((COLUMNS,), tl.int64)
        for k0 in range(0, K, ROWS):
            k = k0 + tl.arange(0, ROWS)
            m = tl.load(medoids + k, k < K, 0)
            tile = tl.load(d + m[:, None] * N + n[None, :], (k[:, None] < K) & (n[None, :] < N), float("inf"))
            least, which = tl.min(tile, 0, return_indices=True, return_indices_tie_break_left=True)
            label = tl.where(least < best, k0 + which, label)
            best = tl.minimum(least, best)
        tl.store(labels + n, label, n < N)
    tl.debug_barrier()
    for k0 in range(0, K, COLUMNS):
        k = k0 + tl.arange(0, COLUMNS)
        m = tl.load(medoids + k, k < K, 0)
        tl.store(labels + m, k.to(tl.int64), k < K)
    tl.debug_barrier()


@triton.jit
def _improve(d, mass, medoids, labels, cost, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Moves every medoid to the best of its cluster's members; on a tie it stays, else the first of the best."""
    for n0 in range(0, N, ROWS):
        n = n0 + tl.arange(0, ROWS)
        own = tl.load(labels + n, n < N, -1)
        total = tl.zeros((ROWS,), tl.float32)
        for m0 in range(0, N, COLUMNS):
            m = m0 + tl.arange(0, COLUMNS)
            same = own[:, None] == tl.load(labels + m, m < N, -2)[None, :]
            tile = tl.load(d + n[:, None] * N + m[None, :], same & (n[:, None] < N), 0.0)     # others are not read
            total += tl.sum(tile * tl.load(mass + m, m < N, 0.0)[None, :], 1)
        tl.store(cost + n, total, n < N)
    tl.debug_barrier()
    for k0 in range(0, K, ROWS):
        k = k0 + tl.arange(0, ROWS)
        medoid = tl.load(medoids + k, k < K, 0)
        best = tl.load(cost + medoid)
        for n0 in range(0, N, COLUMNS):
            n = n0 + tl.arange(0, COLUMNS)
            inside = tl.load(labels + n, n < N, -1)[None, :] == k[:, None]
            tile = tl.where(inside, tl.load(cost + n, n < N, float("inf"))[None, :], float("inf"))
            least, which = tl.min(tile, 1, return_indices=True, return_indices_tie_break_left=True)
            medoid = tl.where(least < best, (n0 + which).to(tl.int64), medoid)
            best = tl.minimum(least, best)
        tl.store(medoids + k, medoid, k < K)
    tl.debug_barrier()


@triton.jit
def _cluster(d, mass, first, medoids, labels, cost, N, K, n_iter, GROW: tl.constexpr, WHOLE: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One image: a farthest-first init if GROW (from token `first`), then n_iter iterations."""
    b = tl.program_id(0).to(tl.int64)
    d += b * N * N
    mass += b * N
    medoids += b * K
    labels += b * N
    cost += b * N
    if GROW:
        n = tl.arange(0, WHOLE)
        gap = tl.where(n < N, float("inf"), -2.0)
        new = tl.load(first + b)
        for step in range(0, K):
            tl.store(medoids + step, new)
            gap = tl.minimum(gap, tl.load(d + new * N + n, n < N, float("inf")))
            gap = tl.where(n == new, -1.0, gap)
            new = tl.argmax(gap, 0).to(tl.int64)
        tl.debug_barrier()
    for _ in range(0, n_iter):
        _assign(d, medoids, labels, N, K, ROWS, COLUMNS)
        _improve(d, mass, medoids, labels, cost, N, K, ROWS, COLUMNS)
    if n_iter >= 0:                                      # -1: the init alone
        _assign(d, medoids, labels, N, K, ROWS, COLUMNS)


@triton.jit
def _join_up(d, mass, gap, low_of, near_of, head_of, N, K, LINKAGE: tl.constexpr, WHOLE: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One image, bottom up. Every cluster knows its nearest (near, low), which a join changes for few of them.

    Writes gap, what lies between two clusters (inf for those that are gone), and the first token of each cluster."""
    b = tl.program_id(0).to(tl.int64)
    d += b * N * N
    gap += b * N * N
    mass += b * N
    for n0 in range(0, N, ROWS):
        n = n0 + tl.arange(0, ROWS)
        own = tl.maximum(tl.load(mass + n, n < N, 1.0), 1e-9)
        low, near = tl.full((ROWS,), float("inf"), tl.float32), tl.zeros((ROWS,), tl.int64)
        for m0 in range(0, N, COLUMNS):
            m = m0 + tl.arange(0, COLUMNS)
            inside = (n[:, None] < N) & (m[None, :] < N)
            tile = tl.load(d + n[:, None] * N + m[None, :], inside, 0.0)
            if LINKAGE == "ward":
                other = tl.maximum(tl.load(mass + m, m < N, 1.0), 1e-9)
                tile *= own[:, None] * other[None, :] / (own[:, None] + other[None, :])
            tile = tl.where(tile < FAR, tile, FAR)                           # NaN too
            tile = tl.where(inside & (n[:, None] != m[None, :]), tile, float("inf"))
            tl.store(gap + n[:, None] * N + m[None, :], tile, inside)
            least, which = tl.min(tile, 1, return_indices=True, return_indices_tie_break_left=True)
            near = tl.where(least < low, m0 + which, near)
            low = tl.minimum(least, low)
        tl.store(low_of + b * N + n, low, n < N)
        tl.store(near_of + b * N + n, near, n < N)
    tl.debug_barrier()
    n = tl.arange(0, WHOLE)
    head = n.to(tl.int64)
    size = tl.maximum(tl.load(mass + n, n < N, 1.0), 1e-9)
    low, near = tl.load(low_of + b * N + n, n < N, float("inf")), tl.load(near_of + b * N + n, n < N, 0)
    for _ in range(0, N - K):
        between, i = tl.min(low, 0, return_indices=True, return_indices_tie_break_left=True)
        j = tl.sum(tl.where(n == i, near, 0), 0)                             # j joins i
        si, sj = tl.sum(tl.where(n == i, size, 0.0), 0), tl.sum(tl.where(n == j, size, 0.0), 0)
        to_i = tl.load(gap + i * N + n, n < N, float("inf"))
        to_j = tl.load(gap + j * N + n, n < N, float("inf"))
        if LINKAGE == "ward":
            new = ((si + size) * to_i + (sj + size) * to_j - size * between) / (si + sj + size)
        elif LINKAGE == "average":
            new = (si * to_i + sj * to_j) / (si + sj)
        else:
            new = tl.maximum(to_i, to_j)
        new = tl.where((n == i) | (n == j), float("inf"), new)
        tl.debug_barrier()                                                   # both rows are read
        tl.store(gap + i * N + n, new, n < N)
        tl.store(gap + n * N + i, new, n < N)
        tl.store(gap + n * N + j, float("inf"), n < N)
        tl.debug_barrier()
        size = tl.where(n == i, si + sj, size)
        head = tl.where(head == j, i.to(tl.int64), head)
        low = tl.where(n == j, float("inf"), low)
        stale = (low < float("inf")) & ((near == i) | (near == j) | (n == i))
        closer = (low < float("inf")) & ((new < low) | ((new == low) & (i < near)))
        near, low = tl.where(closer, i.to(tl.int64), near), tl.where(closer, new, low)
        left = tl.sum(stale.to(tl.int32), 0)
        while left > 0:
            t = tl.min(tl.where(stale, n, WHOLE), 0)
            row = tl.load(gap + t * N + n, n < N, float("inf"))
            least, which = tl.min(row, 0, return_indices=True, return_indices_tie_break_left=True)
            low, near = tl.where(n == t, least, low), tl.where(n == t, which.to(tl.int64), near)
            stale = stale & (n != t)
            left -= 1
    tl.store(head_of + b * N + n, head, n < N)


@triton.jit
def _best_members(d, mass, medoids, labels, cost, N, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    _improve(d + b * N * N, mass + b * N, medoids + b * K, labels + b * N, cost + b * N, N, K, ROWS, COLUMNS)


@triton.jit
def _average(x, labels, mass, means, totals, N, K, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """ROWS means of one image, WIDE channels of them. A cluster without mass gets its plain mean."""
    b, k, c = tl.program_id(2).to(tl.int64), tl.program_id(0) * ROWS, tl.program_id(1) * WIDE
    k, c = k + tl.arange(0, ROWS), c + tl.arange(0, WIDE)
    labels += b * N
    mass += b * N
    total, size = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for n0 in range(0, N, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        inside = (tl.load(labels + n, n < N, -1)[None, :] == k[:, None]).to(tl.float32)
        total += tl.sum(inside * tl.load(mass + n, n < N, 0.0)[None, :], 1)
        size += tl.sum(inside, 1)
    if tl.program_id(1) == 0:
        tl.store(totals + b * K + k, total, k < K)
    mean = tl.zeros((ROWS, WIDE), tl.float32)
    for n0 in range(0, N, COLUMNS):
        n = n0 + tl.arange(0, COLUMNS)
        inside = (tl.load(labels + n, n < N, -1)[None, :] == k[:, None]).to(tl.float32)
        share = tl.where(total[:, None] > 0, inside * tl.load(mass + n, n < N, 0.0)[None, :], inside)
        tokens = tl.load(x + b * N * C + n[:, None] * C + c[None, :], (n[:, None] < N) & (c[None, :] < C), 0.0)
        mean += tl.dot(share, tokens, input_precision="ieee")
    mean /= tl.where(total > 0, total, tl.maximum(size, 1.0))[:, None]
    tl.store(means + b * K * C + k[:, None] * C + c[None, :], mean, (k[:, None] < K) & (c[None, :] < C))


@triton.jit
def _logits(q, k, bias, rows, columns, scale, N, D, qn, qd, kn, kd, BIAS: tl.constexpr, WIDE: tl.constexpr):
    c = tl.arange(0, WIDE)
    left = tl.load(q + rows[:, None] * qn + c[None, :] * qd, (rows[:, None] < N) & (c[None, :] < D), 0.0)
    right = tl.load(k + columns[None, :] * kn + c[:, None] * kd, (columns[None, :] < N) & (c[:, None] < D), 0.0)
    tile = tl.dot(left, right, input_precision="tf32x3") * scale
    if BIAS:
        tile += tl.load(bias + columns, columns < N, 0.0).to(tl.float32)[None, :]
    return tl.where(columns[None, :] < N, tile, float("-inf"))


@triton.jit
def _row_sums(q, k, bias, sums, scale, H, N, D, qb, qh, qn, qd, kb, kh, kn, kd, BIAS: tl.constexpr,
              WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """log sum exp over the keys, for ROWS queries of one head."""
    b, h = tl.program_id(1).to(tl.int64) // H, tl.program_id(1) % H
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, N, COLUMNS):
        tile = _logits(q + b * qb + h * qh, k + b * kb + h * kh, bias + b * N, rows, first + tl.arange(0, COLUMNS),
                       scale, N, D, qn, qd, kn, kd, BIAS, WIDE)
        higher = tl.maximum(top, tl.max(tile, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(tile - higher[:, None]), 1)
        top = higher
    tl.store(sums + (b * H + h) * N + rows, top + tl.log(total), rows < N)


@triton.jit
def _column_sums(q, k, bias, sums, received, scale, H, N, D, qb, qh, qn, qd, kb, kh, kn, kd, BIAS: tl.constexpr,
                 SELF: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The attention that COLUMNS keys of one head receive from all queries, with or without a token's own."""
    b, h = tl.program_id(1).to(tl.int64) // H, tl.program_id(1) % H
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, N, ROWS):
        rows = first + tl.arange(0, ROWS)
        tile = _logits(q + b * qb + h * qh, k + b * kb + h * kh, bias + b * N, rows, columns,
                       scale, N, D, qn, qd, kn, kd, BIAS, WIDE)
        attention = tl.exp(tile - tl.load(sums + (b * H + h) * N + rows, rows < N, float("inf"))[:, None])
        if not SELF:
            attention = tl.where(rows[:, None] == columns[None, :], 0.0, attention)
        total += tl.sum(attention, 0)
    tl.store(received + (b * H + h) * N + columns, total, columns < N)


# ---- the functions of clustering.py, and the score; operators, so that torch.compile does not trace into them ----

@torch.library.custom_op("tokenpool::distances_cuda", mutates_args=())
def pairwise(x: Tensor) -> Tensor:
    """clustering.pairwise, to rounding; exactly symmetric."""
    B, N, C = x.shape
    d = x.new_empty(B, N, N)
    tiles = triton.cdiv(N, 64)
    _distances[tiles, tiles, B](x.contiguous(), (x * x).sum(-1), d, N, C, TILE=64, STEP=32)
    return d


@pairwise.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])


def farthest_first(d: Tensor, k: int) -> Tensor:
    """clustering.farthest_first."""
    return _cluster_op(d, d[:, 0], d.sum(2).argmin(1), k, -1, True)[1]


def k_medoids(d: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """clustering.k_medoids. Equal except where two totals differ by rounding only."""
    return _cluster_op(d, mass, init, init.shape[1], n_iter, False)


@torch.library.custom_op("tokenpool::cluster_cuda", mutates_args=())
def _cluster_op(d: Tensor, mass: Tensor, init: Tensor, k: int, n_iter: int, grow: bool) -> tuple[Tensor, Tensor]:
    B, N, _ = d.shape
    medoids = torch.empty(B, k, dtype=torch.int64, device=d.device)
    if not grow:
        medoids.copy_(init)
    labels, cost = torch.empty(B, N, dtype=torch.int64, device=d.device), torch.empty_like(mass)
    _cluster[(B,)](d.contiguous(), mass.contiguous(), init.contiguous(), medoids, labels, cost, N, k, n_iter,
                   GROW=grow, WHOLE=triton.next_power_of_2(N), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=8)
    return labels, medoids


@_cluster_op.register_fake
def _(d: Tensor, mass: Tensor, init: Tensor, k: int, n_iter: int, grow: bool) -> tuple[Tensor, Tensor]:
    return init.new_empty(mass.shape), init.new_empty(mass.shape[0], k)


@torch.library.custom_op("tokenpool::join_up_cuda", mutates_args=())
def agglomerative(d: Tensor, k: int, mass: Tensor, linkage: str = "ward") -> tuple[Tensor, Tensor]:
    """clustering.agglomerative. Equal except where two distances differ by rounding only."""
    B, N, _ = d.shape
    d, mass = d.contiguous(), mass.contiguous()
    gap, low = torch.empty_like(d), torch.empty_like(mass)
    near, head = (torch.empty(B, N, dtype=torch.int64, device=d.device) for _ in range(2))
    _join_up[(B,)](d, mass, gap, low, near, head, N, k, LINKAGE=linkage, WHOLE=triton.next_power_of_2(N), ROWS=ROWS,
                   COLUMNS=COLUMNS, num_warps=4)
    stays = (head == torch.arange(N, device=d.device)).long()
    labels = (stays.cumsum(1) - 1).gather(1, head)
    medoids = stays.argsort(dim=1, descending=True, stable=True)[:, :k].contiguous()      # first members, to begin with
    _best_members[(B,)](d, mass, medoids, labels, low, N, k, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=8)
    return labels, medoids


@agglomerative.register_fake
def _(d: Tensor, k: int, mass: Tensor, linkage: str = "ward") -> tuple[Tensor, Tensor]:
    return mass.new_empty(mass.shape, dtype=torch.int64), mass.new_empty((mass.shape[0], k), dtype=torch.int64)


@torch.library.custom_op("tokenpool::average_cuda", mutates_args=())
def _average_op(x: Tensor, labels: Tensor, mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    B, N, C = x.shape
    means, totals = x.new_empty(B, k, C), x.new_empty(B, k)
    grid = (triton.cdiv(k, ROWS), triton.cdiv(C, 64), B)
    _average[grid](x.contiguous(), labels.contiguous(), mass.contiguous(), means, totals, N, k, C,
                   ROWS=ROWS, COLUMNS=32, WIDE=64)
    return means, totals


@_average_op.register_fake
def _(x: Tensor, labels: Tensor, mass: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k, x.shape[2]), x.new_empty(x.shape[0], k)


def cluster_means(x: Tensor, labels: Tensor, k: int, mass: Tensor) -> Tensor:
    """clustering.cluster_means, with its gradient to x; without additions in an order that changes from run to run."""
    return _ClusterMeans.apply(x, labels, k, mass)


class _ClusterMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, k: int, mass: Tensor) -> Tensor:
        means, totals = _average_op(x, labels, mass.to(x.dtype), k)
        ctx.save_for_backward(labels, mass, totals)
        return means

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        labels, mass, totals = ctx.saved_tensors
        whole = totals.gather(1, labels)
        size = torch.zeros_like(totals).scatter_add_(1, labels, torch.ones_like(whole)).gather(1, labels)
        share = torch.where(whole > 0, mass / whole, 1 / size)
        return take(grads[0], labels) * share[..., None], None, None, None


@torch.library.custom_op("tokenpool::received_cuda", mutates_args=())
def received(q: Tensor, k: Tensor, scale: float, bias: Tensor | None, with_self: bool) -> Tensor:
    """Attention received per head, (B, H, N) float32, from q and k of (B, H, N, D); the matrix is never stored.

    Args:
        bias: (B, 1, 1, N) added to the logits, or None. with_self: whether a token's attention to itself counts.
    """
    B, H, N, D = q.shape
    sums = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    out = torch.empty_like(sums)
    rest = (scale, H, N, D, *q.stride(), *k.stride())
    flat = q if bias is None else bias.reshape(B, N).contiguous()
    sizes = dict(BIAS=bias is not None, WIDE=max(16, triton.next_power_of_2(D)), ROWS=64, COLUMNS=64)
    _row_sums[triton.cdiv(N, 64), B * H](q, k, flat, sums, *rest, **sizes)
    _column_sums[triton.cdiv(N, 64), B * H](q, k, flat, sums, out, *rest, SELF=with_self, **sizes)
    return out


@received.register_fake
def _(q: Tensor, k: Tensor, scale: float, bias: Tensor | None, with_self: bool) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)
