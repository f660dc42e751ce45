"""Schedules and counted costs, against numbers of the paper's tables and torch's own counter."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.schedule import check_schedule, for_saving, from_soft_masks, geometric

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
    with pytest.raises(ValueError, match=r"keep=0.9 and saving=0.42 say twice"):
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
