"""What a forward pass costs, in multiply-accumulates (MACs), counted and not guessed. Pure Python.

One MAC is one multiplication and one addition; what papers on vision transformers call "FLOPs" are MACs. Counted are
matrix products and convolutions, as torch's own counter does; sums, norms and comparisons are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PARTS = ("patch_embed", "qkv", "attention", "proj", "mlp", "clustering", "head")


@dataclass(frozen=True)
class BlockShape:
    """MACs of one transformer block: per token, and per pair of tokens."""

    qkv: int                # per token
    proj: int               # per token
    mlp: int                # per token
    pair: int               # per query-key pair: q.k and the weighted sum of values, over all heads


@dataclass(frozen=True)
class ModelShape:
    """All that the cost of a ViT depends on."""

    patches: int            # N, patch tokens
    prefix: int             # class and register tokens
    channels: int           # C
    patch_embed: int        # MACs of one image
    blocks: tuple[BlockShape, ...]
    head: int               # MACs of the head that do not depend on the number of tokens
    head_token: int = 0     # per token the head looks at (attention pooling)
    head_prefix: bool = True    # whether the head looks at the prefix tokens too


@dataclass(frozen=True)
class Cost:
    """MACs of one image. `blocks[l]` is block l's share by part; `stem` and `head` are what lies around them."""

    stem: int
    blocks: tuple[dict[str, int], ...]
    head: int

    @property
    def total(self) -> int:
        """Everything, clustering included."""
        return self.stem + self.head + sum(sum(block.values()) for block in self.blocks)

    @property
    def clustering(self) -> int:
        return sum(block["clustering"] for block in self.blocks)

    @property
    def without_clustering(self) -> int:
        return self.total - self.clustering

    @property
    def parts(self) -> dict[str, int]:
        """MACs by part, over all blocks; sums to `total`."""
        sums = {part: sum(block.get(part, 0) for block in self.blocks) for part in PARTS}
        return sums | {"patch_embed": self.stem, "head": self.head}

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share of the total. "fully_connected" is qkv + proj + mlp: what the paper means by >80 %."""
        parts = {part: macs / self.total for part, macs in self.parts.items()}
        return parts | {"fully_connected": parts["qkv"] + parts["proj"] + parts["mlp"]}

    def __str__(self) -> str:
        return (f"{self.total / 1e9:.3f} GMACs, {self.without_clustering / 1e9:.3f} without clustering; "
                f"{self.shares['fully_connected']:.1%} fully connected, {self.shares['attention']:.1%} attention")


def count_macs(shape: ModelShape, schedule: Sequence[int] | None = None,
               clustering: Callable[[int, int], int] | None = None, inside: bool = False) -> Cost:
    """MACs of a ViT with `schedule[l]` patch tokens kept after block l.

    Args:
        clustering: (tokens in, tokens out) -> MACs of the pooling itself.
        inside: pool between attention and MLP instead of after the block.
    """
    n = shape.patches
    blocks = []
    for index, block in enumerate(shape.blocks):
        k = n if schedule is None else min(n, schedule[index])
        t = n + shape.prefix
        mlp_tokens = k + shape.prefix if inside else t
        blocks.append({"qkv": block.qkv * t, "attention": block.pair * t * t, "proj": block.proj * t,
                       "mlp": block.mlp * mlp_tokens,
                       "clustering": clustering(n, k) if clustering and k < n else 0})
        n = k
    head = shape.head + shape.head_token * (n + (shape.prefix if shape.head_prefix else 0))
    return Cost(shape.patch_embed, tuple(blocks), head)
