"""What `tokenpool bench` times, in groups of items with one baseline: `plan(options)`.

    operators   score and pooling, against one block of the model: "share of a block's time"
    forward     whole pooled models, against the plain model (fused attention): "speed-up", next to the promised one
    training    forward, loss and backward, against the plain model's
    growth      operators and block at other numbers of tokens, images and kept tokens
    memory      a block that pools, against the plain block, at 4,096 tokens
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenpool.core import cost
from tokenpool.core.methods import METHODS
from tokenpool.core.pooling import Pooling
from tokenpool.core.schedule import OutOfReach
from tokenpool.core.selection import grid_positions
from tokenpool.data.weights import load_model
from tokenpool.measure.accuracy import inits_of
from tokenpool.measure.bench import DTYPES, Built, Group, Item, Options, Run
from tokenpool.models import attention as scored
from tokenpool.models.model_cost import macs, model_shape
from tokenpool.models.published import NAMED, options_of
from tokenpool.models.vit import PooledViT, State

#: whole models: (method or name of NAMED_METHODS, init, carried counts)
SYSTEMS = (("wk_medoids", "top_k", False), ("wk_medoids", "farthest_first", True), ("wk_means", "top_k", False),
           ("tokenpool", "", True), ("ToMe", "", True), ("top_k", "", False), ("random", "", False))
_KEPT = (0.5, 0.75)       # of 196 tokens: 98 and 147


def plan(options: Options) -> list[Group]:
    """Groups, the most important first."""
    quick, full = options.extent == "quick", options.extent == "full"
    models = options.models[:1] if quick and options.models == Options.models else options.models
    trained = models if full or options.train else () if quick else models[:1]
    largest = max(options.batches)
    batches = options.batches if full else (largest,)
    groups: list[Group] = []
    for dtype in options.dtypes:
        groups += [_operators(models[-1], batch, dtype, options) for batch in batches]
        for model, batch in itertools.product(models, options.batches):
            curve = full or (model == models[0] and batch == largest and not quick)
            savings = options.savings or ((0.2, 0.42, 0.6) if curve else (0.42,))
            groups.append(_whole("forward", model, batch, dtype, savings, options))
        groups += [_whole("training", model, batch, dtype, options.savings or (0.42,), options)
                   for model in trained for batch in batches]
    if not quick or options.growth:
        groups += _growth(models[-1], options)
    return groups


def _operators(model: str, batch: int, dtype: str, options: Options) -> Group:
    """Score and every method, of a block's own number of tokens."""
    n = load(model, options.device, dtype).patch_embed.num_patches
    kept = [max(1, round(n * share)) for share in _KEPT[:1 if options.extent == "quick" else None]]
    methods = [m for m in options.methods if m in METHODS] or METHODS          # without named ones: those are models
    items = [Item("score"), *(Item(m, init, kept=k) for k in kept for m in methods for init in inits_of(m))]
    return _steps("operators", model, batch, dtype, n, items, options)


def _growth(model: str, options: Options) -> list[Group]:
    """Numbers of tokens, images and kept tokens, varied one at a time. Tokens form a square, so that the grid fits."""
    dtype = options.dtypes[0]
    sides = (14, 20, 28, 40, 64) if options.growth else (14, 20, 28)
    steps = [("score", ""), ("wk_medoids", "top_k"), ("wk_medoids", "farthest_first"), ("wk_means", "top_k")]
    steps = [step for step in steps if not options.methods or step[0] in (*options.methods, "score")]

    def group(batch: int, n: int, k: int) -> Group:
        return _steps("growth", model, batch, dtype, n, [Item(*step, kept=k) for step in steps], options)

    points = [group(1, side * side, side * side // 2) for side in sides]
    if options.growth:
        points += [group(batch, 196, 98) for batch in (2, 4, 8, 16)]
        points += [group(1, 784, k) for k in (49, 98, 196, 588)]
        points.append(_steps("memory", model, 8, dtype, 4096, [Item("pooling block", "top_k", kept=2048)], options))
    return points


def _steps(part: str, model: str, batch: int, dtype: str, n: int, items: Sequence[Item], options: Options) -> Group:
    vit = load(model, options.device, dtype)
    weight = _block_macs(vit, n) * (batch + 1) * (2 * len(items) + 1)
    return Group(part, model, batch, dtype, n, "plain block", tuple(items), _build_steps, weight)


def _whole(part: str, model: str, batch: int, dtype: str, savings: Sequence[float], options: Options) -> Group:
    vit = load(model, options.device, dtype)
    items = tuple(Item(method, init, counts, saving) for saving in savings
                  for method, init, counts in _systems(part, options))
    weight = macs(vit).total * (batch + 1) * (1 + sum(2 - i.saving for i in items)) * (3 if part == "training" else 1)
    return Group(part, model, batch, dtype, vit.patch_embed.num_patches, "plain model", items, _build_whole, weight)


def _systems(part: str, options: Options) -> tuple[tuple[str, str, bool], ...]:
    """(method, init, carried counts) of the whole models."""
    if options.extent == "full" or options.methods:
        methods = options.methods or tuple(METHODS)
        carried = SYSTEMS[1:2] if "wk_medoids" in methods else ()
        named = tuple((m, "", NAMED[m].get("carry_counts", False)) for m in options.methods or NAMED if m in NAMED)
        return carried + named + tuple((m, init, False) for m in methods if m in METHODS for init in inits_of(m))
    short = options.extent == "quick" or part == "training"
    return SYSTEMS[:2] + SYSTEMS[3:4] + SYSTEMS[5:6] if short else SYSTEMS


@functools.lru_cache(maxsize=4)
def load(model: str, device: str, dtype: str) -> Any:
    """A model to time. Its weights do not matter: they are random unless they ship."""
    with torch.random.fork_rng():                 # timm draws weights from the global generator
        torch.manual_seed(0)
        vit = load_model(model).to(device, DTYPES[dtype])
    PooledViT(vit)                                # refuses what cannot be pooled, before anything is timed
    return vit


def _block_macs(vit: Any, n: int) -> int:
    return sum(cost.count_macs(model_shape(vit, n)).blocks[0].values())


def tokens_like(batch: int, n: int, channels: int, seed: int = 0) -> Tensor:
    """(batch, n, channels): many near copies, as in an image, so that clusters differ in size."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(batch, 24, channels, generator=generator)
    which = (torch.rand(batch, n, generator=generator) ** 2 * 24).long()        # the first kinds are the most frequent
    noise = torch.randn(batch, n, channels, generator=generator)
    return kinds.gather(1, which[..., None].expand(-1, -1, channels)) + 0.5 * noise


def _build_steps(group: Group, options: Options) -> Built:
    """Single steps: what PooledViT does around one block, on any number of tokens."""
    vit = load(group.model, options.device, group.dtype).eval()
    block, prefix, n = vit.blocks[0], vit.num_prefix_tokens, group.tokens
    x = tokens_like(group.batch_size, prefix + n, vit.embed_dim).to(options.device, DTYPES[group.dtype])
    patches = x[:, prefix:]                                                     # a view, as in PooledViT
    generator = torch.Generator().manual_seed(options.seed)
    score = torch.rand(group.batch_size, n, generator=generator).to(options.device)
    noise = torch.rand(n, generator=generator).to(options.device)
    side = math.isqrt(n)
    grid = (side, side) if side * side == n else (1, n)
    places = grid_positions(*grid, x.device)

    def scoring() -> Tensor:
        wanted = scored.Wanted("received", prefix, options.kernel or "auto")
        return scored.run_block(block, x, None, None, wanted)[1].score

    def pooling(item: Item) -> Run:
        way = Pooling(item.name, item.init or None, **options.chosen_kernel)

        def run() -> Tensor:
            weights = score if way.needs_score else None
            choice = way.choose(patches, item.kept, weights, noise=noise, positions=places, aspect=grid[0] / grid[1])
            return way.combine(patches, item.kept, choice, weights)
        return run

    def pooling_block(item: Item) -> Run:
        # a schedule that pools after the first block; the step is given its own number of tokens
        k0 = min(item.kept, vit.patch_embed.num_patches - 1)
        pooled = PooledViT(vit, [k0] * len(vit.blocks), method="wk_medoids", init=item.init, **options.chosen_kernel)
        return lambda: pooled.step(State(x, grid, (item.kept,), noise[None]))

    whole = _block_macs(vit, n)
    runs, shares = {}, {}
    for item in group.items:
        if item.name == "score":
            runs[item], shares[item] = scoring, 1.0
        elif item.name == "pooling block":
            runs[item] = pooling_block(item)
            shares[item] = 1 + Pooling("wk_medoids", item.init).macs(n, item.kept, vit.embed_dim) / whole
        else:
            runs[item] = pooling(item)
            shares[item] = Pooling(item.name, item.init or None).macs(n, item.kept, vit.embed_dim) / whole
    return Built(_inference(lambda: block(x)), {item: _inference(run) for item, run in runs.items()}, shares, {})


def _build_whole(group: Group, options: Options) -> Built:
    """Plain and pooled models, one forward pass or one training step (without the optimiser, the same for both)."""
    vit = load(group.model, options.device, group.dtype)
    generator = torch.Generator().manual_seed(options.seed)
    size = vit.patch_embed.img_size
    x = torch.randn(group.batch_size, 3, *size, generator=generator).to(options.device, DTYPES[group.dtype])
    classes = max(1, vit.num_classes)
    y = torch.randint(classes, (group.batch_size,), generator=generator).to(options.device)
    training = group.part == "training"
    plain = macs(vit)
    runs, shares, notes = {}, {}, {}

    def ready(model: nn.Module) -> Run:
        model = model.to(options.device).train(training)
        called: Any = torch.compile(model) if options.compiled else model
        return _step(model, called, x, y) if training else _inference(lambda: called(x))

    for item in group.items:
        try:
            way = options_of(item.name, item.init, item.counts)
            pooled = PooledViT(vit, saving=item.saving, **way, **options.chosen_kernel)
        except OutOfReach:
            notes[item] = "saves less than it costs"
            continue
        own = macs(pooled)
        passes = 3 if training else 1              # a backward pass costs two forward ones; a choice has none
        shares[item] = (passes * own.without_clustering + own.clustering) / (passes * plain.total)
        runs[item] = ready(pooled)
    return Built(ready(vit), runs, shares, notes)


def _inference(run: Run) -> Run:
    def call() -> object:
        with torch.inference_mode():
            return run()
    return call


def _step(model: nn.Module, called: Any, x: Tensor, y: Tensor) -> Run:
    def call() -> None:
        loss = nn.functional.cross_entropy(called(x).float(), y)
        loss.backward()
        model.zero_grad(set_to_none=True)
    return call
