"""Baselines with weights of their own: convolution on the grid, DynamicViT, and the patch merger.

All hold a timm ViT and share its parameters, as `PooledViT` does, and all compute with fewer tokens at test time. The
methods without weights (random, importance, top-K, clustering, ToMe, ...) are in core/methods.py.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenpool.core.clustering import take, top_k
from tokenpool.core.cost import Cost, count_macs
from tokenpool.models.attention import TWO_HALVES, attention_half, mlp_half
from tokenpool.models.model_cost import model_shape
from tokenpool.models.supported import refuse_unsupported

T = TypeVar("T")


class _Staged(nn.Module):
    """A ViT that reduces its tokens after or before a few blocks."""

    vit: Any

    def __init__(self, vit: Any) -> None:
        super().__init__()
        refuse_unsupported(vit)
        if not isinstance(vit, VisionTransformer) or type(vit.blocks[0]) not in TWO_HALVES:
            raise ValueError(f"{type(self).__name__} needs a ViT with absolute positions and attention followed by an "
                             f"MLP. Got {type(vit).__name__} with {type(vit.blocks[0]).__name__}.")
        self.vit = vit

    @property
    def schedule(self) -> tuple[int, ...]:
        """Patch tokens after each block at test time."""
        raise NotImplementedError

    def _step_macs(self, n: int, k: int) -> int:
        """Multiply-adds of one step from n tokens to k."""
        raise NotImplementedError

    def cost(self) -> Cost:
        """As `tokenpool.macs`; the downsampler's own share is called clustering there."""
        return count_macs(model_shape(self.vit), self.schedule, self._step_macs)

    def _nearest(self, saving: float, candidates: Iterable[T], tokens: Callable[[T], Sequence[int]]) -> tuple[T, float]:
        """The candidate whose cost is nearest to (1 - saving) of the plain model's, and its actual saving."""
        if not 0 < saving < 1:
            raise ValueError(f"saving={saving} is not a share of the computations. Use a number such as 0.42.")
        shape = model_shape(self.vit)
        plain = count_macs(shape).total

        def share(candidate: T) -> float:
            return count_macs(shape, tokens(candidate), self._step_macs).total / plain

        best = min(candidates, key=lambda candidate: abs(share(candidate) - (1 - saving)))
        return best, 1 - share(best)

    def _embed(self, x: Tensor) -> Tensor:
        return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(x)))

    def _head(self, x: Tensor) -> Tensor:
        return self.vit.forward_head(self.vit.norm(x))

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    def no_weight_decay(self) -> set[str]:
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}


class ConvolutionViT(_Staged):
    """Strided convolution on the grid of patches after some blocks; the class token is left out (paper, Fig. 8).

    Kernel, stride and places are not known (?). Here (I, after PiT): 3 x 3, stride 2, one filter per channel,
    initialised as the average of 2 x 2 patches, so that finetuning starts from a model that works.

    Args:
        stages: blocks (from 0) after which to halve the grid's sides.
        saving: in place of `stages`: the places whose cost is nearest. A grid can only be quartered, so few costs
            are possible; `tokenpool.macs` says the true one.
    """

    def __init__(self, vit: nn.Module, stages: Sequence[int] | None = None, *, saving: float | None = None) -> None:
        super().__init__(vit)
        if (stages is None) == (saving is None):
            raise ValueError("Give stages=[...] or saving=0.42, one of the two.")
        depth = len(self.vit.blocks)
        self.grid = tuple(self.vit.patch_embed.grid_size)
        if stages is None:
            assert saving is not None
            self.stages = self._stages_for(saving)
        else:
            self.stages = tuple(stages)
            if list(self.stages) != sorted(set(self.stages)) or not all(0 <= s < depth - 1 for s in self.stages):
                raise ValueError(f"stages={list(stages)} are not rising block numbers from 0 to {depth - 2}.")
        C = self.vit.embed_dim
        self.convolutions = nn.ModuleList(nn.Conv2d(C, C, 3, 2, 1, groups=C) for _ in self.stages)
        for module in self.convolutions:
            assert isinstance(module, nn.Conv2d)
            assert module.bias is not None
            with torch.no_grad():
                module.weight.zero_()[:, :, 1:, 1:] = 0.25
                module.bias.zero_()

    def _stages_for(self, saving: float) -> tuple[int, ...]:
        most = max(1, int(math.log2(min(self.grid))))
        places = range(len(self.vit.blocks) - 1)
        sets = [c for r in range(1, most + 1) for c in itertools.combinations(places, r)]
        best, got = self._nearest(saving, sets, self._tokens)
        if abs(got - saving) > 0.1:
            raise ValueError(f"saving={saving}: the nearest that halving the grid can save is {got:.2f}.")
        return best

    def _tokens(self, stages: Sequence[int]) -> tuple[int, ...]:
        rows, cols = self.grid
        out = []
        for block in range(len(self.vit.blocks)):
            if block in stages:
                rows, cols = (rows + 1) // 2, (cols + 1) // 2
            out.append(rows * cols)
        return tuple(out)

    @property
    def schedule(self) -> tuple[int, ...]:
        return self._tokens(self.stages)

    def _step_macs(self, n: int, k: int) -> int:
        return 9 * k * self.vit.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> logits (batch, classes)."""
        x = self._embed(x)
        prefix, (rows, cols) = self.vit.num_prefix_tokens, self.grid
        convolutions = dict(zip(self.stages, self.convolutions, strict=True))
        for index, block in enumerate(self.vit.blocks):
            x = block(x)
            if index in convolutions:
                grid = x[:, prefix:].mT.unflatten(2, (rows, cols))
                grid = convolutions[index](grid)
                rows, cols = grid.shape[2:]
                x = torch.cat((x[:, :prefix], grid.flatten(2).mT), 1)
        return self._head(x)


class Predictor(nn.Module):
    """DynamicViT's: log-probabilities (B, N, 2) that a token stays or goes, from itself and the mean of those left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())
        self.out = nn.Sequential(nn.Linear(channels, channels // 2), nn.GELU(),
                                 nn.Linear(channels // 2, channels // 4), nn.GELU(), nn.Linear(channels // 4, 2))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        local, everywhere = self.local(x).chunk(2, dim=-1)
        mean = (everywhere * keep[..., None]).sum(1, keepdim=True) / keep.sum(1)[:, None, None].clamp(min=1)
        return self.out(torch.cat((local, mean.expand_as(everywhere)), -1)).log_softmax(-1)

    @staticmethod
    def macs(channels: int) -> int:
        """Of one token."""
        half, quarter = channels // 2, channels // 4
        return channels * channels + channels * half + half * quarter + quarter * 2


class _ByShare(_Staged):
    """Before each of a few blocks the share rho of the tokens is kept: K = int(N rho^s) after the s-th.

    Args:
        keep: rho. saving: in its place, share of the cost.
        stages: blocks (from 0) before which tokens are dropped; None: at a quarter, half and three quarters of the
            depth (DynamicViT: 3, 6, 9 of 12; P).
    """

    def __init__(self, vit: nn.Module, keep: float | None, saving: float | None, stages: Sequence[int] | None) -> None:
        super().__init__(vit)
        if (keep is None) == (saving is None):
            raise ValueError("Give keep=0.7 or saving=0.42, one of the two.")
        depth = len(self.vit.blocks)
        quarters = sorted({max(1, depth * q // 4) for q in (1, 2, 3)})
        self.stages = tuple(quarters if stages is None else stages)
        if list(self.stages) != sorted(set(self.stages)) or not all(0 < s < depth for s in self.stages):
            raise ValueError(f"stages={list(self.stages)} are not rising block numbers from 1 to {depth - 1}.")
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is not a share of tokens. Use a number above 0 and up to 1, such as 0.7.")
        self.rho = keep if keep is not None else self._rho_for(saving or 0.0)

    def _kept(self, rho: float) -> list[int]:
        """Tokens after each stage."""
        N = self.vit.patch_embed.num_patches
        return [max(1, int(N * rho ** (s + 1))) for s in range(len(self.stages))]

    def _tokens(self, rho: float) -> tuple[int, ...]:
        kept = [self.vit.patch_embed.num_patches, *self._kept(rho)]
        return tuple(kept[sum(stage <= block + 1 for stage in self.stages)] for block in range(len(self.vit.blocks)))

    def _rho_for(self, saving: float) -> float:
        rho, got = self._nearest(saving, (r / 1000 for r in range(1, 1001)), self._tokens)
        if abs(got - saving) > 0.03:
            raise ValueError(f"saving={saving} cannot be reached by dropping before blocks {self.stages}: the nearest "
                             f"is {got:.2f}. Use that, or earlier stages.")
        return rho

    @property
    def schedule(self) -> tuple[int, ...]:
        return self._tokens(self.rho)


class DynamicViT(_ByShare):
    """DynamicViT (Rao et al. 2021; design P, from its code): small networks learn which tokens to drop.

    In training no token is removed: a hard Gumbel mask hides dropped tokens from all others, so that shapes stay and
    gradients flow. At test time only the K = int(N rho^s) tokens of highest probability are kept.

    Args:
        keep: rho, the share of tokens that stays at each of three stages. saving: in its place, share of the cost.
        stages: blocks (from 0) before which to drop; None: at a quarter, half and three quarters of the depth, as in
            the original (3, 6, 9 of 12).
        distill: also learn from the unpruned model (0.5 KL of logits, 0.5 squared distance of kept tokens; P). The
            paper's own systems do not, so mind this when comparing.
        ratio_weight: of the term that holds the share of kept tokens at its target (2.0; P).
    """

    def __init__(self, vit: nn.Module, keep: float | None = None, *, saving: float | None = None,
                 stages: Sequence[int] | None = None, distill: bool = False, ratio_weight: float = 2.0) -> None:
        super().__init__(vit, keep, saving, stages)
        self.ratio_weight, self.distill = ratio_weight, distill
        self.predictors = nn.ModuleList(Predictor(self.vit.embed_dim) for _ in self.stages)
        self.teacher: Any = copy.deepcopy(vit).requires_grad_(False).eval() if distill else None

    def train(self, mode: bool = True) -> DynamicViT:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _step_macs(self, n: int, k: int) -> int:
        return n * Predictor.macs(self.vit.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; dropped tokens are removed, in training mode too. The loop trains `forward_with_terms`."""
        x = self._embed(x)
        prefix = self.vit.num_prefix_tokens
        N = x.shape[1] - prefix
        for index, block in enumerate(self.vit.blocks):
            if index in self.stages:
                stage = self.stages.index(index)
                patches = x[:, prefix:]
                stays = self.predictors[stage](patches, patches.new_ones(patches.shape[:2]))[..., 0]
                k = min(max(1, int(N * self.rho ** (stage + 1))), patches.shape[1])
                x = torch.cat((x[:, :prefix], take(patches, top_k(stays, k).sort(1).values)), 1)
            x = block(x)
        return self._head(x)

    def forward_with_terms(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """For training: logits and the terms to add to the loss."""
        x = self._embed(images)
        prefix = self.vit.num_prefix_tokens
        keep = x.new_ones(len(x), x.shape[1] - prefix)
        off_target = []
        for index, block in enumerate(self.vit.blocks):
            if index in self.stages:
                stage = self.stages.index(index)
                chances = self.predictors[stage](x[:, prefix:], keep)
                keep = keep * F.gumbel_softmax(chances, hard=True)[..., 0]
                off_target.append((keep.mean(1) - self.rho ** (stage + 1)).square().mean())
            visible = F.pad(keep, (prefix, 0), value=1.0)
            x = mlp_half(block, attention_half(block, x, None, None, visible)[0])
        x = self.vit.norm(x)
        logits = self.vit.forward_head(x)
        terms = {"ratio": self.ratio_weight * torch.stack(off_target).mean()}
        if self.teacher is not None:
            with torch.no_grad():
                target = self.teacher.forward_features(images)
                goal = self.teacher.forward_head(target).float().log_softmax(-1)
            terms["teacher_logits"] = 0.5 * F.kl_div(logits.float().log_softmax(-1), goal, reduction="batchmean",
                                                     log_target=True)
            apart = (x - target)[:, prefix:].float().square().mean(-1)
            kept = keep.detach()
            terms["teacher_tokens"] = 0.5 * (apart * kept).sum() / kept.sum().clamp(min=1)
        return logits, terms


class PatchMergerViT(_ByShare):
    """Patch merger (Renggli et al. 2022, "Learning to Merge Tokens in Vision Transformers"): K learned queries attend
    to all tokens, and the result of each is a new token: softmax(Q LN(x)^T / sqrt(C)) LN(x).

    The paper has one merger in the middle of the network with K = 8 (S: stages=[depth // 2]); here, by default, three
    as in the other baselines, so that the same budgets can be met (I). The class token is left out (I), the scale of
    the logits and the queries' initial values are ours (?). Tokens of the output have no position in the image.

    Args:
        keep, saving, stages: as in `DynamicViT`.
    """

    def __init__(self, vit: nn.Module, keep: float | None = None, *, saving: float | None = None,
                 stages: Sequence[int] | None = None) -> None:
        super().__init__(vit, keep, saving, stages)
        C = self.vit.embed_dim
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in self.stages)
        # normalised tokens have length sqrt(C): logits start with a spread of one
        self.queries = nn.ParameterList(nn.Parameter(torch.randn(k, C)) for k in self._kept(self.rho))

    def _step_macs(self, n: int, k: int) -> int:
        return 2 * n * k * self.vit.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) -> logits (batch, classes)."""
        x = self._embed(x)
        prefix = self.vit.num_prefix_tokens
        for index, block in enumerate(self.vit.blocks):
            if index in self.stages:
                stage = self.stages.index(index)
                patches = self.norms[stage](x[:, prefix:])
                share = (self.queries[stage] @ patches.mT / math.sqrt(patches.shape[2])).softmax(-1)
                x = torch.cat((x[:, :prefix], share @ patches), 1)
            x = block(x)
        return self._head(x)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.startswith("queries.")}
