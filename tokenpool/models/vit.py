"""`PooledViT`: any timm ViT with fewer and fewer tokens.

The model that is passed in is not changed and not copied: `PooledViT` holds it, shares its parameters, and runs its
blocks one by one (`start`, `step` for each block, `finish`). Between two blocks it may replace N patch tokens by K.
Blocks that need no score are timm's own forward, fused attention included; class and register tokens are never pooled.

Beside this file: attention.py runs timm's blocks and reports their scores, supported.py says which models can be
pooled, model_cost.py what they cost, calibrate.py chooses K from a few images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.eva import Eva
from torch import Tensor, nn

from tokenpool.core import clustering
from tokenpool.core.checks import one_of
from tokenpool.core.cost import Cost
from tokenpool.core.pooling import Pooled, Pooling
from tokenpool.core.schedule import check_schedule, geometric
from tokenpool.core.selection import grid_positions
from tokenpool.models import calibrate
from tokenpool.models.attention import SCORES, Wanted, attention_half, attentions, mlp_half, run_block
from tokenpool.models.model_cost import PooledShape, model_shape, patches, schedule_for_saving
from tokenpool.models.saving import Saving
from tokenpool.models.supported import refuse_unsupported
from tokenpool.models.trace import Trace, TraceStep
from tokenpool.models.transformers import TransformersViT, as_timm

POSITIONS = ("after_block", "before_mlp")
METRICS = ("tokens", "directions", "keys")
#: the options that lost the least accuracy without training in our tests on two small models (I; docs/choices.md has
#: the comparison): `PooledViT(vit, saving=0.6, **OFF_THE_SHELF)`, then `fit_schedule`. They need no score and no init
OFF_THE_SHELF: dict[str, Any] = dict(method="ward", metric="directions", position="before_mlp", carry_counts=True)
_NOISE_BITS = 24                    # integers, so that .half() does not round the noise; 24 bits are exact in float32


@dataclass
class State:
    """A batch between two blocks."""

    x: Tensor                               # (B, prefix + n, C)
    grid: tuple[int, int]                   # rows and columns of the original patches
    schedule: tuple[int, ...]               # patch tokens after each block
    noise: Tensor | None = None             # (blocks, N) for the random methods; None where nothing is pooled
    rope: Tensor | None = None
    block: int = 0                          # the next one
    counts: Tensor | None = None            # (B, n), where counts are carried
    origin: Tensor | None = None            # (B, n) original patch of each token, for rotary positions
    place: Tensor | None = None             # (B, n, 2) mean row and column of each token, for the grid
    pooled: Pooled | None = None            # the pooling of the last block that ran
    score: Tensor | None = None             # (B, N) and the significance of its tokens, where it needed one


class PooledViT(nn.Module, Saving):
    """A timm ViT that pools its patch tokens (paper, Fig. 1).

    Args:
        vit: a model of timm's `VisionTransformer` or `Eva` family, or transformers' ViT, DeiT or DINOv2. Its
            parameters are shared, not copied.
        schedule: patch tokens to keep after each block, one int per block, never rising. None with no `keep` and no
            `saving`: nothing is pooled and the logits are timm's own.
        keep: share of the tokens to keep after each block but the last, such as 0.9.
        saving: share of the multiply-adds to save, the cost of clustering included, such as 0.42.
        method, init, n_iter, output, kernel: see `tokenpool.pool_tokens`.
        carry_counts: proportional attention: add log(count) to the attention logits of later blocks, so that a token
            that represents many gets as much attention as they would, and weight by counts in later poolings and in
            an average-pooling head. Not in the paper (I); after ToMe.
        position: "after_block" (the paper's; S) or "before_mlp", between attention and MLP.
        score: "received" (the paper's; S), "received_with_self", "class_token" or "class_token_values". None: the
            method's own, "received" unless its authors use another.
        metric: the features in which methods compare tokens: "tokens"; "directions", the tokens scaled to length
            one, since the next LayerNorm removes their length (I); or "keys" of the attention just executed, averaged
            over heads (ToMe's; P). Kept and averaged are the tokens in all cases. ToMe as published is
            method="tome", metric="keys", position="before_mlp", carry_counts=True.
        seed: of the random methods and inits. The same model gives the same answer twice; pass `generator=` to
            forward for a new draw.

    Raises:
        ValueError: the model or an option is not supported; the message says which and why.

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
        if isinstance(vit, PooledViT):
            raise ValueError("This model is a PooledViT already. Change pooled.schedule, or wrap pooled.vit.")
        self.vit = vit = as_timm(vit)
        self.position = one_of("position", position, POSITIONS, "")
        self.metric = one_of("metric", metric, METRICS, "")
        refuse_unsupported(vit, position)
        self.pooling = Pooling(method, init, n_iter, output, kernel)
        self.score = self.pooling.spec.score if score is None else score
        if self.pooling.needs_score:
            one_of("score", self.score, SCORES, "See tokenpool.models.attention.SCORES.")
            if SCORES[self.score].queries and self.vit.cls_token is None:
                raise ValueError(f"score={self.score!r} needs a class token, which this model does not have. "
                                 "Use score='received'.")
        self.carry_counts = carry_counts
        self.seed = seed
        bits = torch.randint(1 << _NOISE_BITS, (len(self.vit.blocks), patches(vit)),
                             generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        self.register_buffer("_noise_bits", bits, persistent=False)
        self.set_schedule(schedule, keep=keep, saving=saving)
        # Names in a state dict are timm's own: a checkpoint loads with and without pooling.
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    # ---- how many tokens, at what cost ----

    @property
    def schedule(self) -> tuple[int, ...] | None:
        """Patch tokens kept after each block, or None where nothing is pooled. Assign a list, or None to un-pool."""
        return self._schedule

    @schedule.setter
    def schedule(self, value: Sequence[int] | None) -> None:
        self.set_schedule(value)

    def set_schedule(self, schedule: Sequence[int] | None = None, *, keep: float | None = None,
                     saving: float | None = None) -> None:
        """Set K per block, in one of three ways; with none of them nothing is pooled."""
        given = {n: v for n, v in (("schedule", schedule), ("keep", keep), ("saving", saving)) if v is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(f'{n}={v!r}' for n, v in given.items())} both say how many tokens to "
                             "keep. Pass one of them.")
        n = patches(self.vit)
        self._schedule = self._resolve(n, keep, saving) if schedule is None else \
            check_schedule(schedule, len(self.vit.blocks), n, self.vit.num_prefix_tokens)
        self._keep, self._saving = keep, saving

    def _resolve(self, n: int, keep: float | None, saving: float | None) -> tuple[int, ...] | None:
        if keep is not None:
            return geometric(n, len(self.vit.blocks), keep)
        return None if saving is None else schedule_for_saving(saving, self.shape(n))

    def _schedule_for(self, n: int) -> tuple[int, ...] | None:
        """The schedule for an image of another size (`dynamic_img_size`): keep and saving are resolved again, a list
        stays, and an entry that asks for more tokens than such an image has changes nothing there."""
        if n == patches(self.vit) or (self._keep is None and self._saving is None):
            return self._schedule
        return self._resolve(n, self._keep, self._saving)

    def shape(self, n: int) -> PooledShape:
        """All that the cost depends on, but for the schedule, for images of n patches."""
        width = attentions(self.vit.blocks[0])[0].head_dim if self.metric == "keys" else None
        return PooledShape(model_shape(self.vit, n), self.pooling, width, self.carry_counts,
                           self.position == "before_mlp")

    def cost(self, image_size: tuple[int, int] | None = None) -> Cost:
        """Multiply-accumulates of one image, see `tokenpool.macs`."""
        n = patches(self.vit, image_size)
        return self.shape(n).cost(self._schedule_for(n))

    def fit_schedule(self, images: Tensor | Sequence[Mapping[int, float]], saving: float,
                     by: str = "features") -> tuple[int, ...]:
        """Choose K per block from a few images without labels, set it and return it. Nothing is trained.

        For each block alone, and a dozen K, this measures what is lost if tokens are pooled there and nowhere else;
        then it finds the schedule within the budget with the smallest sum of losses, exactly (`schedule.by_error`).
        That losses of several blocks add up is an assumption (I). The method's options are those of this model.

        Args:
            images: (batch, channels, height, width) of the model's own size, prepared as for forward; 16 to 64 are
                enough. Or the result of `losses`, so that several savings need one measurement.
            saving: share of the multiply-adds to save at least, the cost of clustering included, such as 0.42.
            by: the loss. "features": squared distance of the final answer (the logits, or the features of a model
                without a classifier) to the unpooled model's. "reconstruction": the error of the pooled tokens, as a
                share of their variance; it ignores how much a block matters, and is worse than a geometric schedule
                at small savings.

        Takes about depth x 12 forward passes of the shortened model: on one CPU core some seconds for pebbles_vit and
        32 images, minutes for DeiT-S.

        Raises:
            ValueError: images of another size or not finite, a saving out of reach.
        """
        return calibrate.fit_schedule(self, images, saving, by)

    def losses(self, images: Tensor, by: str = "features") -> list[dict[int, float]]:
        """What is lost where one block pools and no other: for each block but the last, tokens kept -> loss.

        Args:
            images, by: see `fit_schedule`. A loss is a share: of the answers' spread over the images, or of the
                variance of the tokens.
        """
        return calibrate.losses(self, images, by)

    # ---- forward ----

    def forward(self, x: Tensor | None = None, generator: torch.Generator | None = None, *,
                pixel_values: Tensor | None = None) -> Tensor:
        """Images (batch, channels, height, width) -> logits (batch, classes).

        Args:
            pixel_values: x by the name that transformers' processors use: `pooled(**processor(images))`.
        """
        images = pixel_values if x is None else x
        if images is None or (x is not None and pixel_values is not None):
            got = "no images" if images is None else "both x and pixel_values, which are the same thing"
            raise ValueError(f"Got {got}. Pass the images once: pooled(images), or pooled(**processor(images)).")
        return self.finish(self._run(images, generator))

    def forward_features(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised tokens after the last block: (batch, prefix + K, channels)."""
        return self.vit.norm(self._run(x, generator).x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's head on any number of tokens."""
        return self.vit.forward_head(x, pre_logits=pre_logits)

    def trace(self, x: Tensor, generator: torch.Generator | None = None) -> Trace:
        """A forward pass that also reports, per block, which token represents which original patch. Logits equal
        forward's."""
        state = self.start(x, generator)
        steps: list[TraceStep] = []
        for _ in self.vit.blocks:
            steps.append(self._traced(state, steps[-1] if steps else None))
        return Trace(self.finish(state), state.grid, tuple(steps))

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None,
                              return_prefix_tokens: bool = False, norm: bool = False, stop_early: bool = False,
                              output_fmt: str = "NCHW", intermediates_only: bool = False) -> Any:
        """timm's call, with timm's shapes: every patch gets its representative's features, so maps stay dense."""
        one_of("output_fmt", output_fmt, ("NCHW", "NLC"), "")
        wanted, last = feature_take_indices(len(self.vit.blocks), indices)
        prefix = self.vit.num_prefix_tokens
        maps: list[Any] = []
        state, step = self.start(x), None
        for block in range(last + 1 if stop_early else len(self.vit.blocks)):
            step = self._traced(state, step)
            if block not in wanted:
                continue
            tokens = self.vit.norm(state.x) if norm else state.x
            dense = clustering.take(tokens[:, prefix:], step.labels)
            if output_fmt == "NCHW":
                dense = dense.mT.reshape(len(dense), -1, *state.grid).contiguous()
            maps.append((dense, tokens[:, :prefix]) if return_prefix_tokens and prefix else dense)
        return maps if intermediates_only else (self.vit.norm(state.x), maps)

    def _run(self, images: Tensor, generator: torch.Generator | None) -> State:
        state = self.start(images, generator)
        for _ in self.vit.blocks:
            self.step(state)
        return state

    def _traced(self, state: State, before: TraceStep | None) -> TraceStep:
        self.step(state)
        tokens = state.x[:, self.vit.num_prefix_tokens:]
        pooled = Pooled.unchanged(tokens) if state.pooled is None else state.pooled
        return TraceStep(tokens, state.score, state.pooled is not None, pooled, before)

    def start(self, images: Tensor, generator: torch.Generator | None = None,
              schedule: tuple[int, ...] | None = None) -> State:
        """Images -> tokens in front of the first block.

        Args:
            schedule: in place of the model's.
        """
        vit = self.vit
        x = vit.patch_embed(images)
        grid = tuple(x.shape[1:3]) if x.ndim == 4 else tuple(vit.patch_embed.grid_size)
        x, rope = vit._pos_embed(x) if isinstance(vit, Eva) else (vit._pos_embed(x), None)
        n = grid[0] * grid[1]
        schedule = schedule or self._schedule_for(n) or (n,) * len(vit.blocks)
        return State(vit.norm_pre(x), grid, schedule, self._noise(n, generator) if schedule[-1] < n else None, rope)

    def step(self, state: State) -> None:
        """Run the next block and pool where the schedule says so."""
        vit, prefix = self.vit, self.vit.num_prefix_tokens
        index, state.block = state.block, state.block + 1
        block, k, n = vit.blocks[index], state.schedule[index], state.x.shape[1] - prefix
        bias = None if state.counts is None else self._bias(state.x, state.counts)
        rope = state.rope[index] if state.rope is not None and getattr(vit, "rope_mixed", False) else state.rope
        if rope is not None:
            rope = _rope_of(rope, state.origin)
        state.pooled = state.score = None
        if k >= n:
            state.x = self._plain(block, state.x, rope, bias)
            return
        inside, keys = self.position == "before_mlp", None
        if self.pooling.needs_score or inside or self.metric == "keys":
            wanted = Wanted(self.score if self.pooling.needs_score else None, prefix, self.pooling.kernel,
                            self.metric == "keys")
            state.x, seen = (attention_half if inside else run_block)(block, state.x, rope, bias, wanted=wanted)
            state.score = seen.score
            if seen.score is not None and state.counts is not None:
                state.score = seen.score / state.counts.clamp(min=1)            # per original token
            if seen.keys is not None:
                keys = seen.keys.detach().float().mean(1)[:, prefix:]
        else:
            state.x = self._plain(block, state.x, rope, bias)
        assert state.noise is not None
        self._pool(state, k, keys, state.noise[index, :n], index / len(vit.blocks))
        if inside:
            state.x = mlp_half(block, state.x)

    def _plain(self, block: Any, x: Tensor, rope: Tensor | None, bias: Tensor | None) -> Tensor:
        """timm's own block."""
        options: dict[str, Any] = {name: t for name, t in (("rope", rope), ("attn_mask", bias)) if t is not None}
        if self.vit.grad_checkpointing and self.training:
            return checkpoint(block, x, **options)
        return block(x, **options)

    def _pool(self, state: State, k: int, keys: Tensor | None, noise: Tensor, depth: float) -> None:
        prefix = self.vit.num_prefix_tokens
        tokens = state.x[:, prefix:]
        if self.metric == "directions":
            keys = nn.functional.normalize(tokens.detach().float(), dim=-1)
        rows, cols = state.grid
        if state.place is None:
            state.place = grid_positions(rows, cols, tokens.device)
        out = state.pooled = self.pooling(tokens, k, state.score, state.counts, metric=keys, noise=noise,
                                          positions=state.place, aspect=rows / cols, depth=depth)
        if self.pooling.spec.kind == "grid":
            inside = clustering.members(out.labels, k)[..., None]                       # (B, n, K, 1)
            state.place = (inside * state.place[:, :, None]).sum(1) / inside.sum(1)
        if self.carry_counts:
            state.counts = out.counts
        if state.rope is not None:
            state.origin = out.origin if state.origin is None else state.origin.gather(1, out.origin)
        state.x = torch.cat((state.x[:, :prefix], out.tokens), dim=1)

    def _bias(self, x: Tensor, counts: Tensor) -> Tensor:
        """log(count) of every key, (B, 1, 1, prefix + n). A token that represents no patch gets no attention."""
        bias = nn.functional.pad(counts.to(torch.float32).log(), (self.vit.num_prefix_tokens, 0))
        return bias[:, None, None, :].to(x.dtype)

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        depth = len(self.vit.blocks)
        if generator is not None:
            return torch.rand(depth, n, generator=generator, device=generator.device)
        if n > self._noise_bits.shape[1]:              # a larger image than the model was made for
            return torch.rand(depth, n, generator=torch.Generator().manual_seed(self.seed))
        return self._noise_bits.float() / (1 << _NOISE_BITS)

    def finish(self, state: State) -> Tensor:
        """Tokens after the last block -> logits."""
        vit, counts = self.vit, state.counts
        x = vit.norm(state.x)
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
        schedule = None if self.schedule is None else list(self.schedule)
        plan: dict[str, Any] = {n: v for n, v in (("keep", self._keep), ("saving", self._saving)) if v is not None} or \
            {"schedule": schedule}
        options = {n: getattr(self.pooling, n) for n in ("method", "init", "n_iter", "output")}
        options |= {"carry_counts": self.carry_counts, "position": self.position}
        options |= {} if self.metric == "tokens" else {"metric": self.metric}
        return ", ".join(f"{n}={v!r}" for n, v in (plan | options).items())


# ---- names in a state dict, rotary positions ----

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


load = PooledViT.load
