"""What `PooledViT.trace` reports of a forward pass. Apart from the tokens, everything is computed when first read."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokenpool.core.pooling import Pooled, count, lazy


@dataclass(frozen=True, eq=False)
class TraceStep:
    """What one block left behind. N0 original patches, K patch tokens after the block, B images."""

    tokens: Tensor                  # (B, K, C)
    score: Tensor | None            # (B, N)  significance of the tokens before pooling, where it was needed
    pooled: bool                    # whether tokens were pooled here
    _pooled: Pooled = field(repr=False)
    _before: TraceStep | None = field(repr=False)

    @property
    def kept(self) -> int:
        """K."""
        return self.tokens.shape[1]

    @lazy
    def labels(self) -> Tensor:
        """(B, N0) which of the K tokens represents each original patch."""
        labels = self._pooled.labels
        return labels if self._before is None else labels.gather(1, self._before.labels)

    @lazy
    def counts(self) -> Tensor:
        """(B, K) how many original patches each token represents."""
        return count(self.labels, self.kept)

    @lazy
    def origin(self) -> Tensor:
        """(B, K) original patch of each token: itself, the one kept, or its cluster's centre."""
        origin = self._pooled.origin
        return origin if self._before is None else self._before.origin.gather(1, origin)

    @property
    def inertia(self) -> Tensor:
        """(B,) reconstruction error of this pooling; 0 where nothing was pooled."""
        return self._pooled.inertia

    @property
    def error(self) -> Tensor:
        """(B,) the same unweighted, as a share of the tokens' variance: 0 is lossless."""
        return self._pooled.error


@dataclass(frozen=True)
class Trace:
    """Everything a figure needs of one forward pass."""

    logits: Tensor                  # (B, classes)
    grid: tuple[int, int]           # rows and columns of the original patches
    steps: tuple[TraceStep, ...]    # one per block
