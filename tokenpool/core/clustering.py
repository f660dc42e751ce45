"""Token pooling: from N tokens to K that reconstruct them best. This file is the idea; it needs torch only.

A small set F^ of K tokens should preserve as much as possible of the N tokens F it represents. Replace every token by
its nearest member of F^; the loss is

    loss(F, F^) = sum_i  w_i  min_j ‖f_i - f^_j‖²                      (paper, section 3; S)

which is the objective of K-Means, or of K-Medoids where F^ must be a subset of F. So pooling is clustering:
`k_means` and `k_medoids` below are Lloyd's two steps, on whole batches, without a loop over images, clusters or
tokens; only the inits take K steps. `agglomerative` works bottom up: it starts with all tokens and N - K times joins
the two clusters whose union adds least to the loss (Ward). It needs no init and no iterations.

Letters: B sets of tokens (images), N tokens in, K tokens out, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FAR = 1e30                    # in place of a distance that is infinite or NaN: two clusters can always be joined


# ---- small steps ----

def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of a batch of sets: x (B, N, C), indices (B, K) -> (B, K, C)."""
    if x.device.type == "cpu" and not x.requires_grad:      # whole rows at a time: a quarter of gather's time there
        return x[torch.arange(x.shape[0])[:, None], indices]
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def members(labels: Tensor, k: int) -> Tensor:
    """(B, N) labels -> (B, N, K) bool: is token n in cluster k?"""
    return labels[..., None] == torch.arange(k, device=labels.device)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """All pairs, (B, N, C) and (B, K, C) -> (B, N, K), by one matrix product: ‖x‖² + ‖y‖² - 2 x.y."""
    d = (x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None, :] - 2 * (x @ y.mT)
    return d.clamp_(min=0)                                  # rounding may leave -1e-6 where the answer is 0


def pairwise(x: Tensor) -> Tensor:
    """Squared distances among the tokens of each set, (B, N, N): exactly symmetric, so that no tie is broken by
    rounding, and exactly 0 from a token to itself."""
    gram = x @ x.mT
    norms = gram.diagonal(dim1=1, dim2=2)
    d = ((norms[:, :, None] + norms[:, None, :]) - 2 * gram).clamp_(min=0)
    return torch.maximum(d, d.mT)


def centred(x: Tensor) -> Tensor:
    """Tokens about their mean, without gradient, float32 or wider.

    float32: bfloat16 would lose the argmin. Centred: distances stay the same and ‖x‖² - 2x.y + ‖y‖² keeps its digits.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    x = x - x[:, :1]                                        # first to the neighbourhood of 0, where a mean is precise
    return x.sub_(x.mean(1, keepdim=True))


def cluster_means(x: Tensor, labels: Tensor, k: int, mass: Tensor) -> Tensor:
    """Weighted mean of each cluster, (B, K, C). A cluster without mass gets its plain mean; none may be empty.

    A product with a one-hot matrix rather than a scatter: the same sum in the same order on every device.
    """
    onehot = members(labels, k).mT.to(x.dtype)                                # (B, K, N)
    share = onehot * mass[:, None, :].to(x.dtype)
    total = share.sum(-1, keepdim=True)
    share = torch.where(total > 0, share / total.clamp(min=torch.finfo(x.dtype).tiny),
                        onehot / onehot.sum(-1, keepdim=True).clamp(min=1))
    return share @ x


# ---- three clusterings ----

def k_medoids(d: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """Weighted K-Medoids: assign every token to the nearest medoid, move each medoid to the best of its members.

    Args:
        d: (B, N, N) distances, symmetric. init: (B, K) distinct token indices. mass: (B, N) >= 0.

    Returns:
        labels (B, N) and medoids (B, K), token indices. Every cluster holds at least its own medoid.

    Cost: N² + N K cheap steps per iteration, after N² C multiply-adds for d (paper: O(T K N + N² M); S).
    """
    medoids = init
    for _ in range(n_iter):
        labels = _nearest_medoid(d, medoids)
        cost, candidate = _best_members(d, labels, medoids.shape[1], mass)
        medoids = torch.where(cost.gather(1, candidate) < cost.gather(1, medoids), candidate, medoids)  # a tie: stay
    return _nearest_medoid(d, medoids), medoids


def _best_members(d: Tensor, labels: Tensor, k: int, mass: Tensor) -> tuple[Tensor, Tensor]:
    """What each token's cluster loses with it as its medoid, (B, N), and the best token of each cluster, (B, K)."""
    same = labels[:, :, None] == labels[:, None, :]
    cost = (d * same * mass[:, None, :]).sum(-1)
    return cost, torch.where(members(labels, k), cost[..., None], torch.inf).argmin(1)


def _nearest_medoid(d: Tensor, medoids: Tensor) -> Tensor:
    B, N, _ = d.shape
    K = medoids.shape[1]
    labels = d.gather(2, medoids[:, None, :].expand(-1, N, -1)).argmin(2)
    # A medoid represents itself, also where a copy of it is a medoid: so no cluster is ever empty.
    return labels.scatter(1, medoids, torch.arange(K, device=d.device).expand(B, -1))


def k_means(x: Tensor, init: Tensor, mass: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    """Weighted K-Means (Lloyd): assign every token to the nearest centre, move each centre to its members' mean.

    Args:
        x: (B, N, C) centred tokens. init: (B, K) token indices. mass: (B, N) >= 0. n_iter: iterations, >= 1.

    Returns:
        labels (B, N) of the last iteration, whose `cluster_means` are the answer, and nearest (B, K): the member of
        each cluster closest to the centre that it was assigned to. A cluster without members takes over the token that
        is reconstructed worst (as in scikit-learn), so every cluster holds at least one token.

    Cost: 2 N K C multiply-adds per iteration, the final means included (paper: O(T K N M); S).
    """
    centers = take(x, init)
    for _ in range(n_iter - 1):
        labels, _ = _nearest_center(x, centers, mass)
        centers = cluster_means(x, labels, centers.shape[1], mass)
    return _nearest_center(x, centers, mass)


def _nearest_center(x: Tensor, centers: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and nearest members, after every empty cluster has been given a token."""
    K = centers.shape[1]
    d = squared_distances(x, centers)
    own, labels = d.min(2)
    inside = members(labels, K)
    empty = ~inside.any(1)                                                          # (B, K)
    nearest = torch.where(inside, d, torch.inf).argmin(1)                           # (B, K)
    # Tokens that may leave: all but the nearest member of each cluster, else the donor would be empty in its turn.
    nearest = torch.where(empty, nearest.gather(1, labels[:, :1]), nearest)         # any cluster that has members
    loss = (own * mass).scatter(1, nearest, -1.0)
    worst = loss.argsort(dim=1, descending=True, stable=True)
    mover = worst.gather(1, (empty.cumsum(1) - 1).clamp(min=0))                     # the m-th empty: the m-th worst
    moved = members(mover, x.shape[1]).mT & empty[:, None, :]                       # (B, N, K)
    labels = torch.where(moved.any(2), moved.to(torch.uint8).argmax(2), labels)
    return labels, torch.where(empty, mover, nearest)


def agglomerative(d: Tensor, k: int, mass: Tensor, linkage: str = "ward") -> tuple[Tensor, Tensor]:
    """Bottom up: every token a cluster, then N - K times the two nearest clusters become one. No init, no iterations.

    Args:
        d: (B, N, N) distances, symmetric. mass: (B, N) how many tokens each is: a cluster's size is their sum.
        linkage: how far apart two clusters are. "ward": what joining them adds to the loss, d being squared (Ward
            1963). "average": mean distance over all pairs. "complete": the largest. Of equals the first is joined.

    Returns labels (B, N), clusters in the order of their first tokens, and medoids (B, K), the best member of each.
    Cost: N - K steps, over N² distances here, over N in the kernels; no multiply-adds after d.
    """
    B, N, _ = d.shape
    head = everyone = torch.arange(N, device=d.device).expand(B, -1)
    size = mass.clamp(min=1e-9)                             # tokens with zero mass still merge
    one, other = size[:, :, None], size[:, None, :]
    gap = (d * (one * other / (one + other)) if linkage == "ward" else d).nan_to_num(_FAR, _FAR)
    gap = gap.masked_fill(torch.eye(N, dtype=torch.bool, device=d.device), torch.inf)
    for _ in range(N - k):
        nearest, flat = gap.flatten(1).min(1, keepdim=True)
        i, j = flat // N, flat % N                          # (B, 1), j > i: the first of equals; j joins i
        to_i, to_j = (take(gap, t)[:, 0] for t in (i, j))
        si, sj = size.gather(1, i), size.gather(1, j)
        new = _linked(linkage, to_i, to_j, si, sj, size, nearest).scatter(1, torch.cat((i, j), 1), torch.inf)
        for t, value in ((i, new), (j, torch.full_like(new, torch.inf))):    # in place: it is ours, and N x N
            gap.scatter_(1, t[:, :, None].expand(-1, 1, N), value[:, None, :])
            gap.scatter_(2, t[:, None, :].expand(-1, N, 1), value[:, :, None])
        size = size.scatter(1, i, si + sj)
        head = torch.where(head == j, i, head)
    labels = ((head == everyone).cumsum(1) - 1).gather(1, head)
    return labels, _best_members(d, labels, k, mass)[1]


def _linked(linkage: str, to_i: Tensor, to_j: Tensor, si: Tensor, sj: Tensor, size: Tensor, between: Tensor) -> Tensor:
    """How far the union of clusters i and j is from all others (Lance and Williams 1967)."""
    if linkage == "complete":
        return torch.maximum(to_i, to_j)
    if linkage == "average":
        return (si * to_i + sj * to_j) / (si + sj)
    return ((si + size) * to_i + (sj + size) * to_j - size * between) / (si + sj + size)


# ---- inits ----

def top_k(weights: Tensor, k: int) -> Tensor:
    """The k tokens of highest score, (B, N) -> (B, k); the first of equals wins, on every device."""
    return weights.argsort(dim=1, descending=True, stable=True)[:, :k]


def random_k(noise: Tensor, k: int, batch: int) -> Tensor:
    """k distinct tokens, each as likely as any other: the order of N random numbers, one draw for the whole batch,
    so that an image's answer does not depend on the other images."""
    return noise.argsort(stable=True)[:k].expand(batch, -1)


def farthest_first(d: Tensor, k: int) -> Tensor:
    """From the token nearest the mean, always add the token farthest from all chosen ones (Gonzalez 1985)."""
    first = d.sum(2).argmin(1)                       # sum_j ‖x_i - x_j‖² = N ‖x_i - mean‖² + constant
    return _grow(d, k, first, lambda gap, step: gap.argmax(1))


def k_means_plus_plus(d: Tensor, k: int, mass: Tensor, noise: Tensor) -> Tensor:
    """Add tokens at random, in proportion to mass times squared distance to the chosen ones (Arthur 2007)."""
    def draw(share: Tensor, u: Tensor) -> Tensor:
        total = share.cumsum(1)                      # the inverse of the cumulative distribution at u
        return (total <= u * total[:, -1:]).sum(1).clamp(max=share.shape[1] - 1)

    def choose(gap: Tensor, step: int) -> Tensor:
        # 1e-30: where nothing but copies is left, any token not chosen yet
        return draw(gap.clamp(min=0) * mass + (gap >= 0) * 1e-30, noise[step])

    return _grow(d, k, draw(mass, noise[0]), choose)


def _grow(d: Tensor, k: int, first: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """k distinct tokens, one after the other. `choose` sees each token's squared distance to the nearest chosen one,
    -1 where it is chosen itself."""
    chosen = [first]
    gap = torch.full_like(d[:, 0], torch.inf)
    for step in range(1, k):
        new = chosen[-1][:, None]
        gap = torch.minimum(gap, take(d, new)[:, 0]).scatter(1, new, -1.0)
        chosen.append(choose(gap, step))
    return torch.stack(chosen, 1)
