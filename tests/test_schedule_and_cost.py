"""Schedules and counted costs, against numbers of the paper's tables, torch's own counter and brute force."""

import itertools

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.core.schedule import between, by_error, check_schedule, for_saving, from_soft_masks, geometric, levels
from tokenpool.data import weights
from tokenpool.data.datasets import scale
from tokenpool.data.pebbles import Pebbles

#: paper.md section 4 (P and C): GMACs, share of fully connected layers, share of attention
DEIT = [("deit_tiny_patch16_224", 1.254, 0.834, 0.143), ("deit_e252_patch16_224", 2.074, 0.868, 0.113),
        ("deit_e318_patch16_224", 3.213, 0.893, 0.092), ("deit_small_patch16_224", 4.599, 0.910, 0.078)]


@pytest.mark.parametrize(("name", "gmacs", "dense", "attention"), DEIT)
def test_the_papers_models(name, gmacs, dense, attention):
    model = timm.create_model(name).eval()
    cost = tp.macs(model)
    assert round(cost.total / 1e9, 3) == gmacs
    assert round(cost.shares["fully_connected"], 3) == dense
    assert round(cost.shares["attention"], 3) == attention
    assert sum(cost.parts.values()) == cost.total
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    assert counter.get_total_flops() == 2 * cost.total


@pytest.mark.parametrize("method", tp.method_names())
@pytest.mark.parametrize("position", ["after_block", "before_mlp"])
@pytest.mark.parametrize("counts", [False, True])
def test_macs_equal_what_torch_counts(method, position, counts):
    """Plain PyTorch does exactly what is counted; a compiled loop does without some of the clustering's products."""
    vit = timm.create_model("pebbles_vit").eval()
    for init in (None, "farthest_first"):
        for kernel in ("plain", "auto"):
            pooled = tp.PooledViT(vit, [50, 40, 40, 10, 5, 1], method=method, init=init, position=position,
                                  carry_counts=counts, kernel=kernel)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                pooled(torch.rand(2, 3, 64, 64))
            cost = tp.macs(pooled)
            done = counter.get_total_flops() / (2 * 2)
            assert done == cost.total or (kernel == "auto" and cost.without_clustering <= done < cost.total)
            assert cost.total - cost.clustering == cost.without_clustering


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_small_patch16_224", "pebbles_vit"])
@pytest.mark.parametrize("method", tp.method_names())
@pytest.mark.parametrize("saving", [0.2, 0.42, 0.6])
def test_a_saving_is_met_within_one_percent(name, method, saving):
    vit = timm.create_model(name)
    cost = tp.macs(tp.PooledViT(vit, saving=saving, method=method))
    assert abs(cost.total / tp.macs(vit).total - (1 - saving)) <= 0.01


def test_the_58_percent_schedule_of_paper_md():
    """paper.md section 5 (C): DeiT-Ti at 58 %, class token included, without the cost of clustering."""
    vit = timm.create_model("deit_tiny_patch16_224")
    ours = tp.PooledViT(vit, saving=0.42, method="top_k").schedule
    theirs = [178, 160, 144, 130, 117, 105, 94, 84, 75, 67, 60]
    assert all(abs(k + 1 - t) <= 2 for k, t in zip(ours, theirs, strict=False))


def test_edges_of_a_saving():
    vit = timm.create_model("pebbles_vit")
    assert tp.PooledViT(vit, saving=0).schedule == (64,) * 6
    with pytest.raises(ValueError, match="cannot be reached: one token after the first block still costs"):
        tp.PooledViT(vit, saving=0.95)
    for bad in (1, -0.1, True):
        with pytest.raises(ValueError, match="is not a share of the computations"):
            tp.PooledViT(vit, saving=bad)
    with pytest.raises(ValueError, match="No geometric schedule saves"):
        for_saving(0.05, 64, 6, lambda ks: 1000 if min(ks) == 64 else 900 - (64 - ks[-1]))


@pytest.mark.parametrize(("schedule", "says"), [
    ([64] * 5, "The schedule has 5 entries, the model 6 blocks"),
    ([64, 60, 62, 50, 50, 50], r"rises from 60 to 62 at schedule\[2\]"),
    ([64, 60, 0, 0, 0, 0], r"schedule\[2\] = 0 keeps no token"),
    ([65] * 6, r"schedule\[0\] = 65 asks for more tokens than the 65 - 1 that can be pooled \(1 prefix"),
    ([64, 1.5, 1, 1, 1, 1], "1.5, which is not a number of tokens"),
    ("0.42", "A schedule is a list"), (0.42, "or saving=0.42"),
])
def test_bad_schedules_are_refused(schedule, says):
    with pytest.raises(ValueError, match=says):
        tp.PooledViT(timm.create_model("pebbles_vit"), schedule)


def test_two_ways_at_once_are_refused():
    with pytest.raises(ValueError, match=r"keep=0.9 and saving=0.42 both say how many"):
        tp.PooledViT(timm.create_model("pebbles_vit"), keep=0.9, saving=0.42)
    with pytest.raises(ValueError, match=r"keep=1.1 is not a share of tokens"):
        tp.PooledViT(timm.create_model("pebbles_vit"), keep=1.1)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 300), depth=st.integers(1, 24), keep=st.floats(0.01, 1))
def test_geometric_schedules_are_schedules(n, depth, keep):
    ks = geometric(n, depth, keep)
    assert check_schedule(ks, depth, n) == ks
    assert depth == 1 or ks[-1] == ks[-2]


def test_soft_masks_as_power_bert_reads_them():
    """PoWER-BERT: floor of the sum, at least one, forced to be non-increasing (P)."""
    assert from_soft_masks([[1.0] * 5, [0.9] * 5, [1.0] * 5, [0.1] * 5]) == (5, 4, 4, 1)
    assert from_soft_masks([[0.1] * 10]) == (1,)             # a sum of 0.9999999999999999 is 1
    with pytest.raises(ValueError, match="clip them"):
        from_soft_masks([[1.2, 0.3]])


# ---- the schedule that loses least ----

def brute_force(errors, cost, budget):
    """All schedules that never rise, the last block's K repeating the one before."""
    ks, depth = sorted(errors[0], reverse=True), len(errors) + 1
    best = None
    for head in itertools.product(ks, repeat=depth - 1):
        plan, before = (*head, head[-1]), (ks[0], *head)
        if any(b > a for a, b in itertools.pairwise(before)):
            continue
        if sum(cost(block, n, k) for block, (n, k) in enumerate(zip(before, plan, strict=True))) > budget:
            continue
        loss = sum(errors[block][k] - errors[block][n]
                   for block, (n, k) in enumerate(zip(before[:-1], head, strict=True)))
        best = min(best or (loss, plan), (loss, plan))
    return best


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), depth=st.integers(2, 5), share=st.floats(0.2, 1))
def test_by_error_is_the_best_of_all_schedules(seed, depth, share):
    rng = np.random.default_rng(seed)
    ks = (9, 6, 4, 2, 1)
    errors = [dict(zip(ks, np.concatenate(([0.0], rng.random(4).cumsum())), strict=True)) for _ in range(depth - 1)]
    price = rng.integers(1, 20, depth)

    def cost(block, n, k):
        return int(price[block] * n + (n * k if k < n else 0))          # a block, and a pooling that costs too

    budget = int(share * sum(cost(b, 9, 9) for b in range(depth)))
    best = brute_force(errors, cost, budget)
    if best is None:
        with pytest.raises(ValueError, match="cannot be met"):
            by_error(errors, cost, budget)
        return
    found = by_error(errors, cost, budget)
    before = (9, *found)
    assert sum(cost(b, before[b], found[b]) for b in range(depth)) <= budget
    loss = sum(errors[b][found[b]] - errors[b][before[b]] for b in range(depth - 1))
    assert loss == pytest.approx(best[0], abs=1e-9)
    assert check_schedule(found, depth, 9) == found


def test_a_large_budget_is_rounded_but_never_exceeded():
    rng = np.random.default_rng(0)
    ks = levels(64, 0.8)
    errors = [dict(zip(ks, np.linspace(0, 1, len(ks)) ** 2 * rng.random(), strict=True)) for _ in range(5)]
    found = by_error(errors, lambda block, n, k: n * 10**7 + 3, 200 * 10**7)
    before = (64, *found[:-1])
    assert 0.97 * 200 <= sum(before) <= 200
    assert found[-1] == found[-2]


def test_curves_are_made_monotone_and_read_off_between():
    assert levels(5, 0.99) == (5, 4, 3, 2, 1)
    curve = between({16: 0.0, 4: 0.5, 2: 0.4, 1: 2.0}, [16, 8, 4, 3, 2, 1])
    assert [curve[k] for k in (16, 8, 4, 3, 2, 1)] == pytest.approx([0, 0.25, 0.5, 0.5, 0.5, 2.0])
    power = between({16: 0.0, 8: 1 / 64, 2: 1 / 4, 1: 1.0}, [4])          # error = K^-2 where it is above 0
    assert power[4] == pytest.approx(1 / 16)
    assert set(between({4: 0.0, 1: 0.0}, [4, 2, 1]).values()) == {0.0}
    with pytest.raises(ValueError, match="same numbers of tokens"):
        by_error([{4: 0.0, 1: 1.0}, {4: 0.0, 2: 1.0}], lambda block, n, k: n, 100)


def pebbles_model():
    return weights.load_model("pebbles_vit"), scale(Pebbles(seed=11, size=64).batch(range(16))[0])


@pytest.mark.parametrize("by", ["features", "reconstruction"])
def test_a_fitted_schedule_meets_its_budget_and_is_the_models(by):
    vit, images = pebbles_model()
    pooled = tp.PooledViT(vit, init="farthest_first", carry_counts=True)
    found = pooled.fit_schedule(images, 0.5, by)
    assert pooled.schedule == found == pooled.fit_schedule(images, 0.5, by)
    assert 0 <= 0.5 - tp.macs(pooled).total / tp.macs(vit).total <= 0.015
    assert not vit.training
    before_mlp = tp.PooledViT(vit, method="tome", metric="keys", position="before_mlp", carry_counts=True).train()
    before_mlp.fit_schedule(images, 0.5, by)
    assert 0 <= 0.5 - tp.macs(before_mlp).total / tp.macs(vit).total <= 0.015
    assert vit.training


def test_the_losses_are_those_of_pooling_in_one_block_alone():
    vit, images = pebbles_model()
    pooled = tp.PooledViT(vit, method="k_medoids", init="farthest_first", carry_counts=True)
    features, errors = (pooled.losses(images, by) for by in ("features", "reconstruction"))
    with torch.no_grad():
        truth = vit(images)
        for block in range(5):
            pooled.schedule = [64] * block + [8] * (6 - block)
            expected = (pooled(images) - truth).square().sum() / (truth - truth.mean(0)).square().sum()
            assert features[block][8] == pytest.approx(expected.item(), rel=1e-3)
            assert errors[block][8] == pytest.approx(pooled.trace(images).steps[block].error.mean().item(), rel=1e-4)
    assert features[0][8] > 10 * features[4][8]               # what is lost early is lost for more blocks
    assert errors[0][8] < 3 * errors[4][8]                    # which the reconstruction error does not know
    found = pooled.fit_schedule(images, 0.5)
    assert pooled.fit_schedule(features, 0.5) == found        # measured once, for any number of savings
    with pytest.raises(ValueError, match="not of this model, which has 6 blocks and 64 patch tokens"):
        pooled.fit_schedule(features[1:], 0.5)


@pytest.mark.parametrize(("change", "says"), [
    (dict(saving=0.99), "cannot be met: one token after the first block"), (dict(saving=1.5), "is not a share"),
    (dict(by="feature"), "Did you mean 'features'"), (dict(images=torch.zeros(2, 3, 32, 32)), "channels, 64, 64"),
    (dict(images=torch.full((2, 3, 64, 64), float("nan"))), "NaN or infinity")])
def test_wrong_fits(change, says):
    vit, images = pebbles_model()
    request = dict(images=images, saving=0.5, by="features") | change
    with pytest.raises(ValueError, match=says):
        tp.PooledViT(vit, method="random").fit_schedule(**request)
