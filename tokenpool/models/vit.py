"""`PooledViT`: any timm ViT with fewer and fewer tokens. All contact with timm's models is here and in attention.py.

The model that is handed in is not changed and not copied: `PooledViT` holds it, shares its parameters, and runs its
blocks one by one. Between two blocks it may replace N patch tokens by K. Blocks that need no score are timm's own
forward, fused attention included; class and register tokens pass by untouched.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, DiffAttention, HybridEmbed
from timm.models import vision_transformer as timm_vit
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokenpool.core import clustering
from tokenpool.core.clustering import take
from tokenpool.core.cost import BlockShape, Cost, ModelShape, count_macs
from tokenpool.core.methods import Pooling, count, inertia, one_of
from tokenpool.core.schedule import between, by_error, check_schedule, for_saving, geometric, levels
from tokenpool.core.selection import grid_positions
from tokenpool.models import attention as scored
from tokenpool.models.saving import Saving
from tokenpool.models.transformers import TransformersViT, as_timm

POSITIONS = ("after_block", "before_mlp")
METRICS = ("tokens", "directions", "keys")
LOSSES = ("features", "reconstruction")
#: what lost least without training, of all options tried on two small models (I; docs/choices.md has the comparison):
#: `PooledViT(vit, saving=0.6, **OFF_THE_SHELF)`, then `fit_schedule`. Needs no score, no start and no rounds
OFF_THE_SHELF: dict[str, Any] = dict(method="ward", metric="directions", position="before_mlp", carry_counts=True)
_NOISE_BITS = 24                    # integers, so that .half() does not round the noise; 24 bits are exact in float32


@dataclass(frozen=True)
class TraceStep:
    """What one block left behind. N0 original patches, K patch tokens after the block, B images."""

    kept: int                       # K
    pooled: bool                    # whether tokens were pooled here
    labels: Tensor                  # (B, N0) which of the K tokens stands in for each original patch
    counts: Tensor                  # (B, K)  how many original patches each token stands for
    inertia: Tensor                 # (B,)    reconstruction error of this pooling; 0 where nothing was pooled
    error: Tensor                   # (B,)    the same unweighted, as a share of the tokens' variance: 0 = lossless
    score: Tensor | None            # (B, N)  significance of the tokens before pooling, where it was needed
    tokens: Tensor                  # (B, K, C)
    origin: Tensor | None           # (B, K)  original patch of each token: the one kept, or its cluster's centre


@dataclass(frozen=True)
class Trace:
    """Everything a figure needs of one forward pass."""

    logits: Tensor                  # (B, classes)
    grid: tuple[int, int]           # rows and columns of the original patches
    steps: tuple[TraceStep, ...]    # one per block


@dataclass
class _State:
    """The patch tokens' companions on their way through the blocks."""

    grid: tuple[int, int]
    depth: float = 0.0                      # share of the blocks passed
    counts: Tensor | None = None            # (B, n), where counts are carried
    origin: Tensor | None = None            # (B, n) original patch of each token, for rotary positions and watchers
    place: Tensor | None = None             # (B, n, 2) mean row and column of each token, where the grid needs it
    labels: Tensor | None = None            # (B, N0), where somebody watches
    score: Tensor | None = None
    inertia: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True)
class _Plan:
    """How to choose K: one of three, or nothing."""

    schedule: tuple[int, ...] | None = None
    keep: float | None = None
    saving: float | None = None


class PooledViT(nn.Module, Saving):
    """A timm ViT that pools its patch tokens (paper, Fig. 1).

    Args:
        vit: a model of timm's `VisionTransformer` or `Eva` family, or transformers' ViT, DeiT or DINOv2. Its
            parameters are shared, not copied.
        schedule: patch tokens to keep after each block, one int per block, never rising. None with no `keep` and no
            `saving`: nothing is pooled and the logits are timm's own.
        keep: share of the tokens to keep after each block but the last, such as 0.9.
        saving: share of the multiply-adds to save, clustering counted in, such as 0.42.
        method, init, n_iter, output, kernel: see `tokenpool.pool_tokens`.
        carry_counts: add log(count) to the attention logits of later blocks, so that a token that stands for many is
            attended to as often as they would be, and weight by counts in later poolings and in an average-pooling
            head. Not in the paper (I); after ToMe.
        position: "after_block" (the paper's; S) or "before_mlp", between attention and MLP.
        score: "received" (the paper's; S), "received_with_self", "class_token" or "class_token_values". None: what the
            method itself ranks by, "received" unless its authors say otherwise.
        metric: what a method that looks at distances compares: "tokens"; "directions", the tokens scaled to length
            one, since the next LayerNorm undoes their length (I); or "keys" of the attention just executed, averaged
            over heads (ToMe's; P). Kept and averaged are the tokens in both cases. ToMe as published is
            method="tome", metric="keys", position="before_mlp", carry_counts=True.
        seed: of the random methods and starts. The same model gives the same answer twice; pass `generator=` to
            forward for a new draw.

    Raises:
        ValueError: the model or an option is not supported; the sentence says which and why.

    Example:
        >>> import timm, torch, tokenpool as tp
        >>> vit = timm.create_model("deit_tiny_patch16_224")
        >>> pooled = tp.PooledViT(vit, saving=0.42)
        >>> pooled.schedule[:3], pooled.schedule[-1]
        ((173, 152, 134), 49)
    """

    vit: Any                        # the timm model; nn.Module would hide its attributes from a type checker
    _noise_bits: Tensor

    def __init__(self, vit: nn.Module, schedule: Sequence[int] | None = None, *, keep: float | None = None,
                 saving: float | None = None, method: str = "wk_medoids", init: str | None = None, n_iter: int = 5,
                 output: str | None = None, carry_counts: bool = False, position: str = "after_block",
                 score: str | None = None, metric: str = "tokens", seed: int = 0, kernel: str = "auto") -> None:
        super().__init__()
        vit = as_timm(vit)
        _refuse_unsupported(vit, position)
        one_of("metric", metric, METRICS, "")
        self.pooling = Pooling(method, init, n_iter, output, kernel)
        score = self.pooling.spec.score if score is None else score
        if self.pooling.needs_score:
            one_of("score", score, scored.SCORES, "See tokenpool.models.attention.SCORES.")
            if score.startswith("class_token") and vit.cls_token is None:
                raise ValueError(f"score={score!r} needs a class token, which this model does not have. "
                                 "Use score='received'.")
        self.vit = vit
        self.carry_counts = carry_counts
        self.position = position
        self.score = score
        self.metric = metric
        self.seed = seed
        bits = torch.randint(1 << _NOISE_BITS, (len(self.vit.blocks), self.vit.patch_embed.num_patches),
                             generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        self.register_buffer("_noise_bits", bits, persistent=False)
        self._plan = _Plan()
        self.set_schedule(schedule, keep=keep, saving=saving)
        # Names in a state dict are timm's own: a checkpoint loads with and without pooling.
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    # ---- how many tokens ----

    @property
    def schedule(self) -> tuple[int, ...] | None:
        """Patch tokens kept after each block, or None where nothing is pooled. Assign a list, or None to un-pool."""
        return self._plan.schedule

    @schedule.setter
    def schedule(self, value: Sequence[int] | None) -> None:
        self.set_schedule(value)

    def set_schedule(self, schedule: Sequence[int] | None = None, *, keep: float | None = None,
                     saving: float | None = None) -> None:
        """Choose K per block anew, in one of three ways; with none of them nothing is pooled."""
        given = [f"{n}={v!r}" for n, v in (("schedule", schedule), ("keep", keep), ("saving", saving)) if v is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} say twice how many tokens to keep. Give one of them.")
        depth, n = len(self.vit.blocks), self.vit.patch_embed.num_patches
        if schedule is not None:
            self._plan = _Plan(check_schedule(schedule, depth, n, self.vit.num_prefix_tokens))
        else:
            plan = _Plan(keep=keep, saving=saving)
            self._plan = _Plan(self._resolve(plan, n), keep, saving)

    def _resolve(self, plan: _Plan, n: int) -> tuple[int, ...] | None:
        depth = len(self.vit.blocks)
        if plan.keep is not None:
            return geometric(n, depth, plan.keep)
        if plan.saving is not None:
            shape = model_shape(self.vit, n)
            return _for_saving(plan.saving, shape, self.pooling, self.carry_counts, self.position, self._width)
        return plan.schedule

    @property
    def _width(self) -> int | None:
        """Channels of what is compared; None: those of the tokens."""
        return scored.attentions(self.vit.blocks[0])[0].head_dim if self.metric == "keys" else None

    def _schedule_for(self, n: int) -> tuple[int, ...] | None:
        """The schedule for an image of another size (`dynamic_img_size`): keep and saving are worked out anew, a
        list stays, and an entry that asks for more tokens than such an image has changes nothing there."""
        return self._plan.schedule if n == self.vit.patch_embed.num_patches else self._resolve(self._plan, n)

    def fit_schedule(self, images: Tensor | Sequence[Mapping[int, float]], saving: float,
                     by: str = "features") -> tuple[int, ...]:
        """Choose K per block from a few images without labels, set it and return it. Nothing is trained.

        For every block by itself, and a dozen K, it is measured what is lost if tokens are pooled there and nowhere
        else; the schedule within the budget whose losses add up to the least is found exactly (`schedule.by_error`).
        That losses of several blocks add up is an assumption (I). The method's options are those of this model.

        Args:
            images: (batch, channels, height, width) of the model's own size, prepared as for forward; 16 to 64 will do.
                Or what `losses` said of them, so that several savings need one measurement.
            saving: share of the multiply-adds to save at least, clustering counted in, such as 0.42.
            by: what is lost. "features": squared distance of the final answer (the logits, or the features of a model
                without a classifier) to the unpooled model's. "reconstruction": the error of the tokens pooled, as a
                share of their variance; blind to how much a block matters, and worse than a geometric schedule at
                small savings.

        Takes about depth x 12 forward passes of the shortened model: on one CPU core some seconds for pebbles_vit and
        32 images, minutes for DeiT-S.

        Raises:
            ValueError: images of another size or not finite, a saving out of reach.
        """
        n, depth = self.vit.patch_embed.num_patches, len(self.vit.blocks)
        if isinstance(saving, bool) or not 0 < saving < 1:
            raise ValueError(f"saving={saving} is not a share of the computations. Use a number such as 0.42.")
        measured = self.losses(images, by) if isinstance(images, Tensor) else images
        if len(measured) != depth - 1 or any(n not in curve for curve in measured):
            raise ValueError(f"These losses are not of this model, which has {depth} blocks and {n} patch tokens. "
                             "Give what its own losses(images) returned, or the images.")
        curves = [between(curve, levels(n, 0.93)) for curve in measured]
        shape = model_shape(self.vit, n)
        clustering = _clustering(self.pooling, shape.channels, self.carry_counts, self._width)
        inside = self.position == "before_mlp"

        def cost(block: int, n: int, k: int) -> int:
            last = block == depth - 1
            part = replace(shape, patches=n, patch_embed=0, blocks=(shape.blocks[block],),
                           head=shape.head if last else 0, head_token=shape.head_token if last else 0)
            return count_macs(part, (k,), clustering, inside).total

        plain = count_macs(shape).total
        found = by_error(curves, cost, int((1 - saving) * plain) - shape.patch_embed)
        self.set_schedule(found)
        return found

    @torch.inference_mode()
    def losses(self, images: Tensor, by: str = "features") -> list[dict[int, float]]:
        """What is lost where one block pools and no other: for each block but the last, tokens kept -> loss.

        Args:
            images, by: see `fit_schedule`. A loss is a share: of the answers' spread over the images, or of the
                variance of the tokens.
        """
        one_of("by", by, LOSSES, "")
        n, depth = self.vit.patch_embed.num_patches, len(self.vit.blocks)
        if images.ndim != 4 or tuple(images.shape[2:]) != tuple(self.vit.patch_embed.img_size):
            height, width = self.vit.patch_embed.img_size
            raise ValueError(f"Images of shape {tuple(images.shape)} came. "
                             f"Give (batch, channels, {height}, {width}), prepared as for forward.")
        if depth < 2:
            raise ValueError("A model of one block has nothing to choose: behind the last block pooling saves nothing.")
        ks = levels(n, 0.75)
        training = self.vit.training              # a model in evaluation mode, newly wrapped, stays in it
        self.vit.eval()
        lost: list[dict[int, float]] = [{k: 0.0 for k in ks} for _ in range(depth - 1)]
        size = 0.0
        for batch in images.split(32):
            entries: list[Tensor] = []
            tokens, _ = self._run(batch, None, _noting(entries, lambda x, state: x), plan=(n,) * depth)
            truth = self._head(self.vit.norm(tokens), None).double()
            size += float((truth - truth.mean(0)).square().sum())
            for block in range(depth - 1):
                entry = (block, entries[block - 1]) if block else None
                for k in ks[1:]:
                    plan = (n,) * block + (k,) * (depth - block)
                    steps: list[Tensor] = []      # one entry a block that ran: the last is the one that pools
                    watch = _noting(steps, lambda x, state: state.error) if by == "reconstruction" else None
                    tokens, state = self._run(batch, None, watch, block + 1 if watch else None, plan, entry)
                    lost[block][k] += (float(steps[-1].sum()) if watch else float(
                        (self._head(self.vit.norm(tokens), state.counts).double() - truth).square().sum()))
        self.vit.train(training)
        if not all(math.isfinite(e) for curve in lost for e in curve.values()):
            raise ValueError("The model answers NaN or infinity on these images. Check them and the weights.")
        share = len(images) if by == "reconstruction" else max(size, 1e-30)
        return [{k: e / share for k, e in curve.items()} for curve in lost]

    # ---- forward ----

    def forward(self, x: Tensor | None = None, generator: torch.Generator | None = None, *,
                pixel_values: Tensor | None = None) -> Tensor:
        """Images (batch, channels, height, width) -> logits (batch, classes).

        Args:
            pixel_values: x by the name that transformers' processors use: `pooled(**processor(images))`.
        """
        images = pixel_values if x is None else x
        if images is None or (x is not None and pixel_values is not None):
            came = "Nothing came" if images is None else "x and pixel_values, which are the same thing, both came"
            raise ValueError(f"{came}. Give the images once: pooled(images), or pooled(**processor(images)).")
        tokens, state = self._run(images, generator)
        return self._head(self.vit.norm(tokens), state.counts)

    def forward_features(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised tokens after the last block: (batch, prefix + K, channels)."""
        return self.vit.norm(self._run(x, generator)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's head on any number of tokens."""
        return self.vit.forward_head(x, pre_logits=pre_logits)

    def trace(self, x: Tensor, generator: torch.Generator | None = None) -> Trace:
        """A forward pass that remembers, per block, who stands in for which original patch. Logits equal forward's."""
        steps: list[TraceStep] = []
        prefix = self.vit.num_prefix_tokens

        def watch(block: int, tokens: Tensor, state: _State) -> None:
            patches = tokens[:, prefix:]
            labels = state.labels
            assert labels is not None
            zero = patches.new_zeros(len(patches))
            steps.append(TraceStep(patches.shape[1], state.inertia is not None, labels,
                                   count(labels, patches.shape[1]), zero if state.inertia is None else state.inertia,
                                   zero if state.error is None else state.error, state.score, patches,
                                   state.origin))

        tokens, state = self._run(x, generator, watch)
        return Trace(self._head(self.vit.norm(tokens), state.counts), state.grid, tuple(steps))

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None,
                              return_prefix_tokens: bool = False, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = "NCHW", intermediates_only: bool = False) -> Any:
        """timm's call, with timm's shapes: every patch gets its stand-in's features, so maps stay dense."""
        one_of("output_fmt", output_fmt, ("NCHW", "NLC"), "")
        wanted, last = feature_take_indices(len(self.vit.blocks), indices)
        prefix = self.vit.num_prefix_tokens
        maps: list[Any] = []

        def watch(block: int, tokens: Tensor, state: _State) -> None:
            if block not in wanted:
                return
            tokens = self.vit.norm(tokens) if norm else tokens
            assert state.labels is not None
            dense = take(tokens[:, prefix:], state.labels)
            if output_fmt == "NCHW":
                dense = dense.mT.reshape(len(dense), -1, *state.grid).contiguous()
            maps.append((dense, tokens[:, :prefix]) if return_prefix_tokens and prefix else dense)

        tokens, _ = self._run(x, None, watch, last + 1 if stop_early else None)
        return maps if intermediates_only else (self.vit.norm(tokens), maps)

    def _run(self, images: Tensor, generator: torch.Generator | None,
             watch: Callable[[int, Tensor, _State], None] | None = None, blocks: int | None = None,
             plan: tuple[int, ...] | None = None, entry: tuple[int, Tensor] | None = None) -> tuple[Tensor, _State]:
        """Everything up to the final norm.

        Args:
            blocks: stop after so many. plan: a schedule in place of the model's. entry: a block and the tokens that
                reach it with nothing pooled before, to start there.
        """
        vit = self.vit
        x = vit.patch_embed(images)
        grid = tuple(x.shape[1:3]) if x.ndim == 4 else tuple(vit.patch_embed.grid_size)
        x, rope = vit._pos_embed(x) if isinstance(vit, Eva) else (vit._pos_embed(x), None)
        x = vit.norm_pre(x)
        state = _State(grid)
        n = grid[0] * grid[1]
        if watch is not None:
            state.labels = torch.arange(n, device=x.device).expand(x.shape[0], -1)
        schedule = plan or self._schedule_for(n) or (n,) * len(vit.blocks)
        first, x = (0, x) if entry is None else entry
        noise = self._noise(n, generator) if schedule[-1] < n else None
        mixed = getattr(vit, "rope_mixed", False)
        for index, block in enumerate(vit.blocks[:blocks]):
            if index < first:
                continue
            here = rope[index] if rope is not None and mixed else rope
            k = schedule[index]
            state.score = state.inertia = state.error = None
            state.depth = index / len(vit.blocks)
            if k >= n:
                x = self._plain(block, x, here, state)
            else:
                assert noise is not None
                x = self._block_and_pool(block, x, here, k, noise[index, :n], state, watch is not None)
                n = k
            if watch is not None:
                watch(index, x, state)
        return x, state

    def _plain(self, block: Any, x: Tensor, rope: Tensor | None, state: _State) -> Tensor:
        """timm's own block."""
        options: dict[str, Any] = {}
        if rope is not None:
            options["rope"] = _rope_of(rope, state.origin)
        if state.counts is not None:
            options["attn_mask"] = self._bias(x, state.counts)
        if self.vit.grad_checkpointing and self.training:
            return checkpoint(block, x, **options)
        return block(x, **options)

    def _block_and_pool(self, block: Any, x: Tensor, rope: Tensor | None, k: int, noise: Tensor,
                        state: _State, watched: bool) -> Tensor:
        inside = self.position == "before_mlp"
        weights = keys = None
        if self.pooling.needs_score or inside or self.metric == "keys":
            turned = None if rope is None else _rope_of(rope, state.origin)
            bias = None if state.counts is None else self._bias(x, state.counts)
            prefix = self.vit.num_prefix_tokens
            wanted = scored.Wanted(self.score if self.pooling.needs_score else None, prefix, self.pooling.kernel,
                                   self.metric == "keys")
            x, seen = (scored.half_seen if inside else scored.block_seen)(block, x, turned, bias, wanted=wanted)
            weights = seen.score
            if seen.keys is not None:
                keys = seen.keys.detach().float().mean(1)[:, prefix:]
            if weights is not None and state.counts is not None:
                weights = weights / state.counts.clamp(min=1)           # per original token
        else:
            x = self._plain(block, x, rope, state)
        x = self._pool(x, k, weights, keys, noise, state, watched)
        return scored.mlp_half(block, x) if inside else x

    def _pool(self, x: Tensor, k: int, weights: Tensor | None, features: Tensor | None, noise: Tensor, state: _State,
              watched: bool) -> Tensor:
        prefix = self.vit.num_prefix_tokens
        kept, patches = x[:, :prefix], x[:, prefix:]
        if self.metric == "directions":
            features = nn.functional.normalize(patches.detach().float(), dim=-1)
        rows, cols = state.grid
        grid = self.pooling.spec.kind == "grid"
        if state.place is None:
            state.place = grid_positions(rows, cols, x.device)
        choice = self.pooling.choose(patches, k, weights, state.counts, noise=noise, positions=state.place,
                                     aspect=rows / cols, metric=features, depth=state.depth)
        tokens = self.pooling.combine(patches, k, choice, weights, state.counts)
        rotary = getattr(self.vit, "rope", None) is not None
        if self.carry_counts or watched or grid:
            labels = self.pooling.stand_ins(patches if features is None else features, choice)
            if watched:
                assert state.labels is not None
                state.labels = labels.gather(1, state.labels)
                state.score = weights
                state.inertia = inertia(patches, tokens, labels, weights if self.pooling.spec.weighted else None,
                                        state.counts)
                state.error = inertia(patches, tokens, labels) / clustering.centred(patches).square().sum((1, 2))
            if grid:
                inside = clustering.members(labels, k)[..., None]                       # (B, n, K, 1)
                state.place = (inside * state.place[:, :, None]).sum(1) / inside.sum(1)
            if self.carry_counts:
                state.counts = count(labels, k, state.counts)
        if rotary or watched:
            indices = choice.indices
            if indices is None:                        # a grid cell rotates like the first of its tokens
                assert choice.labels is not None
                indices = clustering.members(choice.labels, k).int().argmax(1)
            state.origin = indices if state.origin is None else state.origin.gather(1, indices)
        return torch.cat((kept, tokens), dim=1)

    def _bias(self, x: Tensor, counts: Tensor) -> Tensor:
        """log(count) of every key, (B, 1, 1, prefix + n). A token that stands for nobody is not attended to."""
        bias = counts.to(torch.float32).log()
        bias = nn.functional.pad(bias, (self.vit.num_prefix_tokens, 0))
        return bias[:, None, None, :].to(x.dtype)

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        depth = len(self.vit.blocks)
        if generator is not None:
            return torch.rand(depth, n, generator=generator, device=generator.device)
        if n > self._noise_bits.shape[1]:              # a larger image than the model was made for
            return torch.rand(depth, n, generator=torch.Generator().manual_seed(self.seed))
        return self._noise_bits.float() / (1 << _NOISE_BITS)

    def _head(self, x: Tensor, counts: Tensor | None) -> Tensor:
        vit = self.vit
        if isinstance(vit, TransformersViT):
            return vit.forward_head(x, counts=counts)
        average = vit.global_pool == "avg" and getattr(vit, "attn_pool", None) is None
        if counts is None or not average or getattr(vit, "pool_include_prefix", False):
            return vit.forward_head(x)
        share = (counts / counts.sum(1, keepdim=True)).to(x.dtype)
        mean = (share[..., None] * x[:, vit.num_prefix_tokens:]).sum(1)       # every original patch counts once
        return vit.head(vit.head_drop(vit.fc_norm(mean)))

    # ---- what training scripts ask a timm model for ----

    @property
    def draws(self) -> bool:
        """Whether the result depends on `generator`."""
        return self.pooling.draws

    @property
    def num_prefix_tokens(self) -> int:
        return self.vit.num_prefix_tokens

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    @property
    def pretrained_cfg(self) -> Any:
        return getattr(self.vit, "pretrained_cfg", None)

    default_cfg = pretrained_cfg

    def get_classifier(self) -> nn.Module:
        return self.vit.get_classifier()

    def no_weight_decay(self) -> set[str]:
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def extra_repr(self) -> str:
        names = ("method", "init", "n_iter", "output")
        options = {n: getattr(self.pooling, n) for n in names} | {"carry_counts": self.carry_counts,
                                                                   "position": self.position}
        options |= {} if self.metric == "tokens" else {"metric": self.metric}
        plan = [f"{n}={v!r}" for n, v in (("keep", self._plan.keep), ("saving", self._plan.saving)) if v is not None]
        plan = plan or [f"schedule={None if self.schedule is None else list(self.schedule)}"]
        return ", ".join(plan + [f"{n}={v!r}" for n, v in options.items()])


def _noting(found: list[Tensor], what: Callable[[Tensor, _State], Any]) -> Callable[[int, Tensor, _State], None]:
    """A watcher that notes one thing of every block."""
    return lambda block, x, state: found.append(what(x, state))


def _strip_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for key in [k for k in state if k.startswith(prefix + "vit.")]:
        state[prefix + key[len(prefix) + 4:]] = state.pop(key)


def _add_prefix(module: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
    # transformers' own names may begin with "vit." too: there it never means that the prefix is on
    there = "." if isinstance(module.vit, TransformersViT) else "vit."
    for key in [k for k in state if k.startswith(prefix) and not k.startswith(prefix + there)]:
        state[prefix + "vit." + key[len(prefix):]] = state.pop(key)


def _rope_of(rope: Tensor, origin: Tensor | None) -> Tensor:
    """Rotary embedding of the tokens that are left: (N0, d) or (heads, N0, d) -> with a batch in front."""
    if origin is None:
        return rope
    if rope.ndim == 2:
        return rope[origin].unsqueeze(1)                  # (B, 1, n, d)
    return rope[:, origin].transpose(0, 1)                # (B, heads, n, d)


# ---- what can be pooled ----

def _refuse_unsupported(vit: Any, position: str) -> None:
    one_of("position", position, POSITIONS, "")
    kind = type(vit).__name__
    family = timm_vit.VisionTransformer, Eva
    if isinstance(vit, PooledViT):
        raise ValueError("This model is a PooledViT already. Change pooled.schedule, or wrap pooled.vit.")
    why = None
    if not isinstance(vit, family):
        why = ("only models of timm's VisionTransformer and Eva families are: a stack of blocks over one set of tokens "
               "with absolute or rotary positions. Relative position bias, windows, stages and convolutions need the "
               "full grid of tokens")
    elif type(vit).forward_features not in (timm_vit.VisionTransformer.forward_features, Eva.forward_features):
        why = "its forward_features is its own and would be bypassed"
    elif type(vit)._pos_embed not in (timm_vit.VisionTransformer._pos_embed, Eva._pos_embed,
                                      VisionTransformerDistilled._pos_embed, TransformersViT._pos_embed):
        why = "its position embedding is its own"
    else:
        why = next((w for w in map(scored.why_not, vit.blocks) if w), None)
        drop = getattr(vit, "patch_drop", None)
        if why is None and drop is not None and not isinstance(drop, nn.Identity):
            why = "it drops patches by itself in training; create it with patch_drop_rate=0"
        if why is None and position == "before_mlp" and isinstance(vit.blocks[0], scored.ONE_PIECE):
            why = ("its blocks compute attention and MLP side by side, so nothing lies between; "
                   "use position='after_block'")
    if why:
        raise ValueError(f"{kind} cannot be pooled: {why}.")


# ---- cost ----

def macs(model: nn.Module, image_size: tuple[int, int] | None = None) -> Cost:
    """Multiply-accumulates of one image: total, per block, per part, with and without clustering.

    Args:
        model: a PooledViT, a timm ViT that could become one, or a rival of baselines.py, which counts itself.
        image_size: (height, width); None: the size the model was made for.

    Returns:
        Cost. Equals what torch's FLOP counter finds on the running model, halved (a test compares them).

    >>> import timm
    >>> print(macs(timm.create_model("deit_tiny_patch16_224")))
    1.254 GMACs, 1.254 without clustering; 83.4% fully connected, 14.3% attention
    """
    count_itself: Callable[[], Cost] | None = getattr(model, "cost", None)
    if count_itself is not None:
        return count_itself()
    pooled = model if isinstance(model, PooledViT) else PooledViT(model)
    embed = pooled.vit.patch_embed
    n = embed.num_patches
    if image_size is not None:
        rows, cols = embed.dynamic_feat_size(image_size)
        n = rows * cols
    shape = model_shape(pooled.vit, n)
    return count_macs(shape, pooled._schedule_for(n), _clustering(pooled.pooling, shape.channels, pooled.carry_counts,
                                                                   pooled._width),
                      pooled.position == "before_mlp")


def _clustering(pooling: Pooling, channels: int, carry_counts: bool, width: int | None) -> Callable[[int, int], int]:
    return lambda n, k: pooling.macs(n, k, channels, stand_ins=carry_counts, d=width)


@functools.lru_cache(maxsize=256)
def _for_saving(saving: float, shape: ModelShape, pooling: Pooling, carry_counts: bool,
                position: str, width: int | None) -> tuple[int, ...]:
    clustering = _clustering(pooling, shape.channels, carry_counts, width)
    return for_saving(saving, shape.patches, len(shape.blocks),
                      lambda ks: count_macs(shape, ks, clustering, position == "before_mlp").total)


def model_shape(vit: Any, patches: int | None = None) -> ModelShape:
    """Read off a timm ViT what its cost depends on."""
    n = patches or vit.patch_embed.num_patches
    head = _linear(vit.head) + _linear(getattr(vit, "head_dist", None))
    head_token = 0
    attn = getattr(vit, "attn_pool", None)
    if isinstance(attn, AttentionPoolLatent):
        head += attn.latent_len * (_linear(attn.q) + _linear(attn.proj) + _linear(attn.mlp))
        head_token = _linear(attn.kv) + 2 * attn.latent_len * attn.num_heads * attn.head_dim
    elif attn is not None:
        raise ValueError(f"The cost of a {type(attn).__name__} head is not known. Count it with torch's FLOP counter.")
    elif not vit.global_pool and type(vit) is not VisionTransformerDistilled:
        head, head_token = 0, head
    prefix_seen = isinstance(vit, Eva) or bool(getattr(vit, "pool_include_prefix", False)) or attn is None
    return ModelShape(n, vit.num_prefix_tokens, vit.embed_dim, _stem(vit, n),
                      tuple(_block_shape(b) for b in vit.blocks), head, head_token, prefix_seen)


def _linear(module: nn.Module | None) -> int:
    """Multiply-adds per token of all linear layers inside."""
    if module is None:
        return 0
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _block_shape(block: Any) -> BlockShape:
    if isinstance(block, scored.ONE_PIECE):
        width = block.in_split[1]
        fan_in = block.in_proj.in_features
        out = _linear(block) - _linear(block.in_proj)
        qkv = 3 * width * fan_in
        proj = width * fan_in
        pair = 3 * width if isinstance(block, timm_vit.DiffParallelScalingBlock) else 2 * width
        return BlockShape(qkv, proj, _linear(block.in_proj) - qkv + out - proj, pair)
    attns = scored.attentions(block)
    mlp = block.ffns if isinstance(block, timm_vit.ParallelThingsBlock) else block.mlp
    proj = sum(_linear(a.proj) for a in attns)
    pair = sum(3 * a.proj.in_features if isinstance(a, DiffAttention) else 2 * a.num_heads * a.head_dim for a in attns)
    return BlockShape(sum(map(_linear, attns)) - proj, proj, _linear(mlp), pair)


def _stem(vit: Any, n: int) -> int:
    embed = vit.patch_embed
    if isinstance(embed, HybridEmbed):
        return _hybrid_stem(embed)
    return embed.proj.weight.numel() * n


def _hybrid_stem(embed: Any) -> int:
    """A convolutional stem is measured rather than derived, at the size it was made for."""
    parameter = next(embed.parameters())
    training = embed.training
    image = torch.zeros(1, 3, *embed.img_size, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embed.eval()(image)
    embed.train(training)
    return counter.get_total_flops() // 2
