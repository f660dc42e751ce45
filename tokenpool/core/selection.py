"""The paper's baselines: keep K tokens by score or at random, or average over a grid.

None of them looks for redundancy. The selections return which tokens stay; `nearest_labels` then assigns every other
token to the nearest kept one, so that a selection is measured by the same reconstruction error as a clustering.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenpool.core.clustering import members, random_k, squared_distances, take, top_k


def keep_top_k(k: int, weights: Tensor) -> Tensor:
    """PoWER-BERT's hard layer: the K tokens of highest score, in their original order (P). Returns (B, K) indices."""
    return top_k(weights, k).sort(1).values


def keep_random(k: int, batch: int, noise: Tensor) -> Tensor:
    """K random tokens, without replacement (the paper does not say; I). Returns (B, K) indices."""
    return random_k(noise, k, batch).sort(1).values


def keep_importance(k: int, weights: Tensor, noise: Tensor) -> Tensor:
    """K different random tokens, in proportion to their score (the paper does not say with or without; I).

    Drawing one after the other without replacement equals taking the K largest of log w + Gumbel noise.
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7)))
    return top_k(weights.log() + gumbel, k).sort(1).values


def keep_importance_with_replacement(k: int, weights: Tensor, noise: Tensor) -> Tensor:
    """K independent draws in proportion to the score; a token drawn twice is returned twice.

    The second copy represents no token (count 0): where counts are carried it drops out of all later attention, which
    removes duplicates without a change of shape.
    """
    total = weights.cumsum(1)
    aim = noise[:k].sort().values * total[:, -1:]                         # (B, K)
    return torch.searchsorted(total, aim, right=True).clamp(max=weights.shape[1] - 1)


def nearest_labels(x: Tensor, indices: Tensor) -> Tensor:
    """The nearest kept token of every token: x (B, N, C) centred, indices (B, K) -> labels (B, N).

    A kept token represents itself, also where a copy of it is kept. Cost: N K C multiply-adds.
    """
    d = squared_distances(x, take(x, indices))
    return d.masked_fill(members(indices, x.shape[1]).mT, -1.0).argmin(2)


def grid_cells(positions: Tensor, k: int, aspect: float = 1.0) -> Tensor:
    """Cut the image into K cells of (almost) equally many tokens and say in which cell each token lies.

    Args:
        positions: (B, N, 2), row and column of every token, each in [0, 1).
        k: any number from 1 to N: bands of rows first, each band then cut into columns. Where the grid can be cut
            into equal rectangles (14 x 14 into 49), these are exactly the windows of average pooling.
        aspect: height of the image over its width.

    Returns:
        labels (B, N). No cell is empty.
    """
    B, N, _ = positions.shape
    bands = min(k, max(1, round(math.sqrt(k * aspect))))
    cells = [k // bands + (b < k % bands) for b in range(bands)]          # cells in each band, top to bottom
    cell_of_rank = [j * k // N for j in range(N)]                         # balanced: N/K tokens each, up to one
    band_of_cell = [b for b, c in enumerate(cells) for _ in range(c)]
    rank_to_cell = torch.tensor(cell_of_rank, device=positions.device)
    rank_to_band = torch.tensor([band_of_cell[c] for c in cell_of_rank], device=positions.device)

    by_row = positions[..., 0].argsort(dim=1, stable=True)
    band = torch.empty_like(by_row).scatter(1, by_row, rank_to_band.expand(B, -1))
    by_cell = (band + positions[..., 1]).argsort(dim=1, stable=True)
    return torch.empty_like(by_row).scatter(1, by_cell, rank_to_cell.expand(B, -1))


def grid_positions(rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """Row and column of the tokens of a grid, read line by line, each in [0, 1): (1, rows * cols, 2)."""
    y = torch.arange(rows, device=device) / rows
    x = torch.arange(cols, device=device) / cols
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(1, rows * cols, 2)
