"""Published methods that reduce tokens: ToMe, PiToMe, EViT, ATS, DPC-KNN, agglomerative clustering.

Each is written from its paper's description, for whole batches, without gradient, with shapes that depend on N and K
only. Marks: P the paper or its official code, I ours, ? not known. The originals remove a share of the tokens inside
a block, in several blocks; here each solves the same task: K tokens of N.

Letters: B images, N tokens in, K out, D features in which tokens are compared (the tokens themselves, or keys).
A merging returns labels (B, N), where each token goes, and indices (B, K), the input token at each one's place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenpool.core import clustering

Merge = tuple[Tensor, Tensor]               # labels (B, N), indices (B, K)
NEIGHBOURS = 5                              # DPC-KNN's k (P, TCFormer)
MARGIN = 0.5                                # PiToMe's, where the depth is not known (P, default of its code)


# ---- matching in two halves: ToMe and PiToMe ----

def tome(f: Tensor, k: int, mass: Tensor) -> Merge:
    """Bipartite soft matching (Bolya et al. 2023, "Token Merging: Your ViT But Faster"; P).

    Tokens are assigned alternately to A and B; every token of A points at the most similar one of B (cosine), and
    the N - K most similar pairs are merged. That removes at most half of the tokens. More are removed in
    rounds of at most half each, the features of merged tokens averaged by size in between (I: ToMe itself does not,
    its code cuts r down silently).

    Args:
        f: (B, N, D) features, as they are: a cosine depends on the origin. mass: (B, N) size of each token.
    """
    def match(f: Tensor, r: int) -> Merge:
        unit = F.normalize(f, dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].mT).max(2)             # (B, |A|)
        go = clustering.top_k(best, r)
        return _join(f, 2 * go, 2 * partner.gather(1, go) + 1)

    return _in_rounds(f, k, mass, match)


def tome_macs(n: int, k: int, d: int) -> int:
    return _rounds_macs(n, k, d, lambda n: (n - n // 2) * (n // 2) * d)


def pitome(f: Tensor, k: int, mass: Tensor, depth: float | None = None) -> Merge:
    """Energy-ordered matching (Tran et al. 2024, "Accelerating Transformers with Spectrum-Preserving Token Merging").

    A token's energy is the mean over all tokens of ELU(cosine - margin): high where many are similar (P, code). The
    2 (N - K) tokens of highest energy are merged, the others are protected. In order of energy they are assigned
    alternately to A and B, and every token of A joins the most similar one of B (P). Rounds as in `tome` (I).

    Args:
        depth: share of the blocks passed, in [0, 1): the margin falls from 0.9 to 0 with it (P, code; the paper may
            differ: ?). None: 0.5.
    """
    margin = MARGIN if depth is None else 0.9 * (1 - depth)

    def match(f: Tensor, r: int) -> Merge:
        unit = F.normalize(f, dim=-1)
        cosine = unit @ unit.mT
        energy = F.elu(cosine - margin).mean(2)
        order = energy.argsort(dim=1, descending=True, stable=True)[:, :2 * r]
        a, b = order[:, ::2], order[:, 1::2]
        between = clustering.take(cosine, a).gather(2, b[:, None].expand(-1, r, -1))           # (B, r, r)
        return _join(f, a, b.gather(1, between.argmax(2)))

    return _in_rounds(f, k, mass, match)


def pitome_macs(n: int, k: int, d: int) -> int:
    return _rounds_macs(n, k, d, lambda n: n * n * d)


def _join(f: Tensor, go: Tensor, into: Tensor) -> Merge:
    """Tokens `go` (B, r) join tokens `into` (B, r), which stay; the order of those that stay is kept."""
    B, N, _ = f.shape
    everyone = torch.arange(N, device=f.device).expand(B, -1)
    stays = torch.ones_like(everyone).scatter(1, go, 0)
    return _numbered(everyone.scatter(1, go, into), stays, N - go.shape[1])


def _numbered(head: Tensor, stays: Tensor, k: int) -> Merge:
    """Each token's head (a token that stays), and 1 for tokens that stay, k per row -> labels 0..k-1, the k tokens."""
    return (stays.cumsum(1) - 1).gather(1, head), stays.argsort(dim=1, descending=True, stable=True)[:, :k]


def _in_rounds(f: Tensor, k: int, mass: Tensor, match: Callable[[Tensor, int], Merge]) -> Merge:
    """Match until k are left, at most half going in a round."""
    n = f.shape[1]
    labels = indices = torch.arange(n, device=f.device).expand(f.shape[0], -1)
    while n > k:
        left = max(k, n - n // 2)
        new, kept = match(f, n - left)
        labels, indices = new.gather(1, labels), indices.gather(1, kept)
        if left > k:                         # another round looks at the merged tokens
            f = clustering.cluster_means(f, new, left, mass)
            mass = (clustering.members(new, left) * mass[..., None]).sum(1)
        n = left
    return labels, indices


def _rounds_macs(n: int, k: int, d: int, one: Callable[[int], int]) -> int:
    total = 0
    while n > k:
        left = max(k, n - n // 2)
        total += one(n) + (n * left * d if left > k else 0)
        n = left
    return total


# ---- by the class token's attention: EViT and ATS ----

def evit(weights: Tensor, k: int) -> Merge:
    """Keep the k - 1 tokens of highest score and fuse all others into one (Liang et al. 2022, "Not All Patches Are
    What You Need", EViT; P).

    The fused token comes last. It is the others' mean weighted by the score; in the paper the weights are not scaled
    to sum to one, so their sum is a short vector (P). Here they are (I): the result then does not depend on the
    score's scale. A token with zero score does not contribute.
    """
    kept = clustering.top_k(weights, k)
    first = kept[:, :k - 1].sort(1).values
    indices = torch.cat((first, kept[:, k - 1:]), 1)                         # fused: in the place of the best
    labels = torch.full_like(weights, k - 1, dtype=torch.int64)
    return labels.scatter(1, first, torch.arange(k - 1, device=weights.device).expand(weights.shape[0], -1)), indices


def ats(weights: Tensor, k: int) -> Tensor:
    """Adaptive token sampling with a fixed number (Fayyaz et al. 2022; P for the idea, I for the fixed K).

    Tokens in order of rising score share the interval from 0 to 1 in proportion to it; k evenly spaced points,
    (2i - 1) / 2k, pick the tokens they fall on (P: rising order and fixed points; the code's points run from the first
    token's share to 1, these are from memory of the paper: ?). A token picked twice is kept once. ATS then continues
    with fewer tokens; here the free places go to the highest scores not picked, so that shapes are the same for all
    images.

    Returns:
        indices (B, k) in their original order, all different.
    """
    rising = weights.argsort(dim=1, stable=True)
    total = weights.gather(1, rising).cumsum(1)
    points = (torch.arange(k, device=weights.device, dtype=total.dtype) + 0.5) / k
    hit = torch.searchsorted(total, points * total[:, -1:], right=True).clamp(max=weights.shape[1] - 1)
    picked = torch.zeros_like(rising).scatter(1, rising.gather(1, hit), 1)
    falling = clustering.top_k(weights, weights.shape[1])
    seats = picked.gather(1, falling).argsort(dim=1, descending=True, stable=True)[:, :k]
    return falling.gather(1, seats).sort(1).values


# ---- clustering in one step ----

def dpc_knn(d: Tensor, k: int, channels: int) -> Merge:
    """Density peaks (TCFormer, Zeng et al. 2022; P, its code): a centre is dense and far from anything denser.

    density = exp(-mean squared distance to the 5 nearest, itself among them); score = density x distance to the
    nearest denser token, for the densest: to the farthest of all. The k highest are centres, every other token joins
    the nearest. The mean is plain: TCFormer's learned score per token needs training. Of equally dense tokens the
    first counts as denser, where the original adds unseeded noise (I). Computed in logarithms, so that nothing
    underflows where tokens are far apart.

    Args:
        d: (B, N, N) squared distances. channels: D; distances are divided by sqrt(D) (P).
    """
    B, N, _ = d.shape
    d = d / channels
    near = d.sort(2).values[:, :, :min(NEIGHBOURS, N)].mean(2)               # -log density
    rank = near.argsort(dim=1, stable=True).argsort(dim=1)                   # 0 is the densest
    denser = rank[:, None, :] < rank[:, :, None]
    gap = torch.where(denser, d, d.flatten(1).max(1).values[:, None, None]).min(2).values
    centers = clustering.top_k(0.5 * gap.log() - near, k)
    labels = d.gather(2, centers[:, None].expand(-1, N, -1)).argmin(2)
    return labels.scatter(1, centers, torch.arange(k, device=d.device).expand(B, -1)), centers


# ---- for agglomerative clustering (Haurum et al. 2024, "Agglomerative Token Clustering", ATC) ----

def cosine_distances(f: Tensor) -> Tensor:
    """1 - cosine of all pairs, (B, N, D) -> (B, N, N), exactly symmetric: no tie is broken by rounding.

    ATC compares tokens by it and joins them bottom up (P): `clustering.agglomerative`. Which linkage its authors
    recommend is not certain here (?); `pool_tokens` uses the average.
    """
    unit = F.normalize(f, dim=-1)
    cosine = unit @ unit.mT
    return 1 - torch.minimum(cosine, cosine.mT)
