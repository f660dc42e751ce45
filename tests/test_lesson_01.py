"""Notebook 01: the counts against loops, torch's counter and timm's models; exercises; explorer."""

import itertools

import pytest
import timm
import torch
from lessons import check_exercise, state_words

import tokenpool as tp
from tokenpool.core.schedule import geometric
from tokenpool.lab.lessons import lesson_01_compute as costs

# ---- exercises ----

def test_block_macs():
    check_exercise("01", "a", [
        (lambda n, c, mlp=4: (4 + 2 * mlp) * n * c**2, "attention products are missing"),
        (lambda n, c, mlp=4: (4 + 2 * mlp) * n * c**2 + n**2 * c, "*two* attention products"),
        (lambda n, c, mlp=4: (4 + 2 * mlp) * c**2 + 2 * n**2 * c, "each of the N tokens"),
        (lambda n, c, mlp=4: (2 + 2 * mlp) * n * c**2 + 2 * n**2 * c, "a matrix each"),
        (lambda n, c, mlp=4: (3 + 2 * mlp) * n * c**2 + 2 * n**2 * c, "projection after the attention"),
        (lambda n, c, mlp=4: (4 + mlp) * n * c**2 + 2 * n**2 * c, "two layers"),
        (lambda n, c, mlp=4: 6 * n * c**2 + 2 * n**2 * c, "makes both of its layers dearer"),
        (lambda n, c, mlp=4: 12 * n * c**2 + 2 * n**2 * c, "With mlp = 4 that is right"),
        (lambda n, c, mlp=4: 2 * ((4 + 2 * mlp) * n * c**2 + 2 * n**2 * c), "a multiplication and its addition apart"),
        (lambda n, c, mlp=4: (4 + 2 * mlp) * n**2 * c + 2 * n * c**2, "swapped"),
        (lambda n, c, mlp=4: n * c, "the toy above counted 180"),
        (lambda n, c, mlp=4: [1, 2], "Return one number"),
    ])


def test_crossing_point():
    check_exercise("01", "b", [
        (lambda c: 12 * c, "One factor two"),
        (lambda c: 6, "Six times *what*?"),
        (lambda c: 6 * c * c, "one C is left"),
        (lambda c: 4 * c, "attention meets the MLP alone"),
        (lambda c: 3 * c, "put your N into"),
        (lambda c: (c, c), "Return one number"),
    ])


def test_schedule_42():
    fair = list(geometric(196, 12, 0.882))
    check_exercise("01", "c", [
        (lambda: fair[:11], "12 numbers are needed; 11 came"),
        (lambda: [*fair[:5], fair[5] + 60, *fair[6:]], "rises from"),
        (lambda: [0] * 12, "Keep at least 1"),
        (lambda: [197] * 12, "more than the 196"),
        (lambda: [196] * 11 + [1], "before the last block has run"),
        (lambda: [196] * 12, "before the last block has run"),
        (lambda: geometric(196, 12, 0.9), "Not counting the clustering that saves 41.8%"),
        (lambda: geometric(196, 12, 0.96), "too little"),
        (lambda: geometric(196, 12, 0.8), "too much"),
        (lambda: [k - 0.5 for k in fair], "no number of tokens"),
        (lambda: 49, "Return a list of 12"),
    ])


@pytest.mark.parametrize("ks", [
    tp.PooledViT(timm.create_model("deit_tiny_patch16_224"), saving=0.42).schedule,
    [196, 196, 196, 120, 120, 120, 70, 70, 70, 24, 24, 24],           # stages, as DynamicViT has them
], ids=["geometric", "stages"])
def test_any_schedule_that_saves_42_percent_is_right(ks):
    vit = timm.create_model("deit_tiny_patch16_224")
    saved = 1 - tp.macs(tp.PooledViT(vit, list(ks))).total / tp.macs(vit).total
    found = costs.schedule_42.check(lambda: torch.tensor(ks))
    assert (found.state == "right") == (0.41 <= saved <= 0.43), (saved, found)


# ---- counts ----

def test_the_loops_multiply_and_count():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    out, count = costs.counted_product(a, b)
    assert torch.allclose(out, a @ b, atol=1e-5)
    assert count == 3 * 4 * 5


def test_what_is_written_out_is_true():
    lines = costs.written_out(costs.TINY_X, costs.TINY_W)
    assert "".join(lines).count("*") == 12
    values = [[eval(entry.split("=")[0]) == int(entry.split("=")[1]) for entry in line.split("   ")] for line in lines]
    assert all(itertools.chain(*values))
    results = [[int(entry.split("=")[1]) for entry in line.split("   ")] for line in lines]
    assert results == (costs.TINY_X @ costs.TINY_W).int().tolist()


@pytest.mark.parametrize(("n", "c"), [(3, 2), (5, 4), (2, 3)])
def test_a_block_counted_in_loops_is_the_formula_and_torchs_count(n, c):
    done = costs.tiny_block(torch.ones(n, c) if c != 2 else costs.TINY_X)
    n = len(done[0].left)
    assert sum(p.macs for p in done) == 12 * n * c * c + 2 * n * n * c == sum(costs.block_parts(n, c))
    assert costs.block_macs.solution(n, c) == sum(costs.block_parts(n, c))
    for p in done:
        assert p.out.shape == (p.left.shape[0], p.right.shape[1])
        assert torch.allclose(p.out, p.left @ p.right, atol=1e-4)
    module = timm.create_model("deit_tiny_patch16_224", embed_dim=c, num_heads=1, depth=1).blocks[0]
    assert costs.counted_by_torch(module, 1, n, c) == sum(p.macs for p in done)


def test_the_tiny_block_attends():
    done = {p.name: p for p in costs.tiny_block()}
    weights = done["weights x values"].left
    assert torch.allclose(weights.sum(1), torch.ones(3))
    scores = done["queries"].out @ done["keys"].out.T / 2**0.5
    assert torch.allclose(weights, scores.softmax(1))
    assert torch.allclose(done["projection"].left, weights @ done["values"].out, atol=1e-5)


@pytest.mark.parametrize(("name", "gmacs", "dense", "attention"), [
    ("DeiT-Ti", 1.254, 0.834, 0.143), ("e252", 2.074, 0.868, 0.113), ("e318", 3.213, 0.893, 0.092),
    ("DeiT-S", 4.599, 0.910, 0.078), ("ViT-B", 17.56, 0.953, 0.041), ("ViT-B/384", 55.5, 0.883, 0.111)])
def test_models_without_weights_cost_what_the_facts_say(name, gmacs, dense, attention):
    cost = costs.model_costs()[name]
    assert cost.total / 1e9 == pytest.approx(gmacs, abs=0.02 if gmacs > 10 else 0.0005)
    assert round(cost.shares["fully_connected"], 3) == dense
    assert round(cost.shares["attention"], 3) == attention
    _, width, side = costs.MODELS[name]
    assert costs.count_macs(costs.vit_shape(width, side)) == cost
    n = (side // 16) ** 2 + 1
    block = sum(cost.blocks[0].values())
    assert costs.attention_share(n, width) == pytest.approx(cost.blocks[0]["attention"] / block)


def test_attention_module_with_its_matrices():
    share = costs.model_costs()["DeiT-Ti"].shares
    assert round(share["attention"] + share["qkv"] + share["proj"], 2) == 0.42    # said in a prediction


def test_half_the_blocks_cost_at_the_crossing():
    for c in (192, 384, 768):
        linear, attention = costs.block_parts(6 * c, c)
        assert linear == attention
        assert costs.attention_share(6 * c, c) == 0.5


def test_the_clustering_bill():
    bill = costs.clustering_bill(("DeiT-Ti",)).set_index("method")["share"]
    vit = timm.create_model("deit_tiny_patch16_224")
    ks = tp.PooledViT(vit, saving=0.42, method="top_k").schedule
    before = [196, *ks[:-2]]
    pairs = list(zip(before, ks[:-1], strict=True))
    rest = tp.macs(tp.PooledViT(vit, ks, method="top_k")).total
    gram = sum(n * n * 192 for n, _ in pairs)
    means = sum(n * k * 192 for n, k in pairs)
    assert bill["k_medoids"] == pytest.approx(gram / (gram + rest))
    assert bill["wk_medoids"] == pytest.approx((gram + means) / (gram + means + rest))
    assert bill["wk_means"] == pytest.approx(10 * means / (10 * means + rest))


def test_the_clock_measures_every_part():
    clock = costs.clocked(batch=1, rounds=8, seconds=0.1)
    assert clock["tokens"].unique().tolist() == [197, 99]
    assert (clock[clock["part"] != "the rest"]["ms"] > 0).all()
    assert clock[clock["tokens"] == 197]["macs"].sum() == 102_049_152
    assert len(costs.clock_figure(clock).data) == 3


# ---- figures ----

def test_figures_hold_what_they_say():
    bills = costs.model_costs(("DeiT-Ti", "DeiT-S"))
    fig = costs.shares_figure(bills)
    assert [t.name for t in fig.data] == ["MLP", "queries, keys, values", "projection", "attention products",
                                          "patch embedding"]
    assert sum(t.x[-1] for t in fig.data) == pytest.approx(100, abs=0.2)     # the head is too small to draw
    fig = costs.resolution_figure()
    assert len(fig.data) == 9
    for curve, marks, cross in zip(fig.data[::3], fig.data[1::3], fig.data[2::3], strict=True):
        assert list(curve.y) == sorted(curve.y)
        assert marks.x == (197, 577, 1025)
        assert str(cross.x[0]) in curve.name
    vit = costs.model("DeiT-Ti")
    pooled = tp.PooledViT(vit, saving=0.42)
    fig = costs.blocks_figure(tp.macs(vit), tp.macs(pooled), pooled.schedule)
    stacked = [sum(t.y[b] for t in fig.data[:3]) for b in range(12)]
    assert stacked == pytest.approx([sum(b.values()) / 1e6 for b in tp.macs(pooled).blocks], abs=0.02)
    assert stacked[0] > fig.data[3].y[0]                                                # as the caption says
    assert [a.text for a in fig.layout.annotations] == [str(n) for n in (196, *pooled.schedule[:-1])]


# ---- explorer ----

@pytest.mark.parametrize("method", ["wk_medoids", "wk_means", "top_k"])
def test_the_explorers_bill_is_that_of_the_model(method):
    b = costs.bill(192, 224, 0.9, method)
    vit = costs.model("DeiT-Ti")
    pooled = tp.PooledViT(vit, keep=0.9, method=method)
    assert b.schedule == pooled.schedule
    assert b.plain == tp.macs(vit)
    assert b.pooled == tp.macs(pooled)


def test_words_follow_the_controls():
    words = costs.bill_words(costs.bill(192, 224, 0.9, "wk_medoids"))
    assert "197 tokens of width 192" in words
    assert "14.3%" in words
    assert "62 of 196 patches" in words
    assert "less than the linear layers" in words
    assert "more* than before" in costs.bill_words(costs.bill(192, 224, 0.95, "wk_means"))
    assert "adds nothing here" in costs.bill_words(costs.bill(192, 224, 0.9, "top_k"))
    assert "nothing is clustered" in costs.bill_words(costs.bill(192, 224, 1.0, "wk_means"))
    assert "more than the linear layers" in costs.bill_words(costs.bill(192, 640, 0.9, "top_k"))


def test_every_corner_of_the_explorer():
    explorer = costs.explore()
    seen = set()
    for width, side, keep, method in itertools.product((192, 768), (96, 640), (0.5, 1.0), ("wk_means", "top_k")):
        explorer.set(width=width, side=side, keep=keep, method=method)
        assert explorer.error is None, (width, side, keep, method, explorer.error)
        b = costs.bill(width, side, keep, method)
        assert f"{b.plain.total / 1e9:.3f} GMACs" in explorer.words
        seen.add(state_words(explorer))
    assert len(seen) == 12                        # with every token kept the method makes no difference
    assert [t.name.split(":")[0] for t in explorer.figure.data] == ["plain", "pooled"]
    assert sum(explorer.figure.data[0].y) == pytest.approx(b.plain.total / 1e9, abs=0.001)


def test_the_table_adds_up():
    b = costs.bill(384, 224, 0.85, "wk_medoids")
    table = costs.bill_table(b).set_index("part").astype(float)
    parts = table.iloc[:-2].sum()
    assert parts.tolist() == pytest.approx(table.loc["total"].tolist(), abs=5e-4)
    assert b.saved_without_clustering > b.saved > 0


# ---- predictions ----

def test_predictions_follow_the_evidence():
    share, width = costs.PREDICTIONS
    assert [share.answer(v) for v in (0.14, 0.45, 0.9)] == [0, 1, 2]
    assert [width.answer(v) for v in ([0.1, 0.2], [0.2, 0.1], [0.1, 0.1])] == [0, 1, 2]
    bills = costs.model_costs(("DeiT-Ti", "DeiT-S"))
    shares = [c.shares["attention"] for c in bills.values()]
    assert share.reveal(shares[0], 0).state == "right"
    assert share.reveal(shares[0], 2).state == "wrong"
    assert width.reveal(shares, 1).state == "right"
    assert "14.3%" in width.reveal(shares, None).words
