"""Notebook 05: costs against formulas, greedy against all schedules, counts against copies, the explorer's promises."""

import itertools

import numpy as np
import pytest
import torch
from lessons import check_exercise, lesson

import tokenpool as tp
from tokenpool.core.schedule import from_soft_masks
from tokenpool.lab.kit.session import pebbles, shipped_vit

L = lesson("05")


# ---- exercises ----

def monotone(ks):
    return [min(ks[:i + 1]) for i in range(len(ks))]


def test_integers():
    def rounded(masks):
        return monotone([max(1, round(float(m.sum()))) for m in masks])

    def large_entries(masks):
        return monotone([max(1, int((m > 0.5).sum())) for m in masks])

    def none_left(masks):
        return monotone([int(m.sum()) for m in masks])

    def rising(masks):
        return [max(1, int(m.sum())) for m in masks]

    def own_mass(masks):
        ks = [max(1, int(m.sum())) for m in masks]
        return [min(k, before) for k, before in zip(ks, [ks[0], *ks], strict=False)]

    check_exercise("05", "a", [(rounded, "floor, not round"), (large_entries, "*sum* of the mask"),
                               (none_left, "at least 1 must stay"), (rising, "a schedule never rises"),
                               (own_mass, "K *given* to the block before")])
    masks = torch.rand(7, 20, generator=torch.Generator().manual_seed(0))
    assert tuple(L.integers.solution(masks)) == from_soft_masks(masks.tolist())


def shorter(schedule, pull=True):
    return [schedule[:l] + tuple(min(k, schedule[l] - 1) if pull or i == 0 else k for i, k in enumerate(schedule[l:]))
            for l in range(len(schedule)) if schedule[l] > 1]


def test_greedy_schedule():
    def by_error(s, error, macs, budget):
        while macs(s) > budget:
            s = min((c for c in shorter(s) if macs(c) < macs(s)), key=error)
        return s

    def by_macs(s, error, macs, budget):
        while macs(s) > budget:
            s = min(shorter(s), key=macs)
        return s

    def rises(s, error, macs, budget):
        while macs(s) > budget:
            s = min((c for c in shorter(s, pull=False) if macs(c) < macs(s)),
                    key=lambda c: (error(c) - error(s)) / (macs(s) - macs(c)))
        return s

    def one_too_many(s, error, macs, budget):
        while macs(s) >= budget:
            s = min((c for c in shorter(s) if macs(c) < macs(s)),
                    key=lambda c: (error(c) - error(s)) / (macs(s) - macs(c)))
        return s

    def divides_by_zero(s, error, macs, budget):
        while macs(s) > budget:
            s = min(shorter(s), key=lambda c: (error(c) - error(s)) / (macs(s) - macs(c)))
        return s

    def one_step(s, error, macs, budget):
        return min((c for c in shorter(s) if macs(c) < macs(s)), key=error) if macs(s) > budget else s

    def for_ever(s, error, macs, budget):
        while macs(s) > budget:
            min(shorter(s), key=error)
        return s

    def keeps_none(s, error, macs, budget):
        while macs(s) > budget:
            s = (*s[:-1], s[-1] - 1)
        return s

    check_exercise("05", "b", [(by_error, "Divide the rise of the error"), (by_macs, "look at the MACs alone"),
                               (rises, "schedule rises from"), (one_too_many, "stop as soon as"),
                               (divides_by_zero, "ZeroDivisionError"), (one_step, "Divide the rise"),
                               (for_ever, "does not end"), (keeps_none, "keeps no token"),
                               (lambda *a: 3, "Return a schedule")])


def test_attention_with_counts():
    def scaled(q, k):
        return q @ k.T / q.shape[-1] ** 0.5

    check_exercise("05", "c", [
        (lambda q, k, v, n: scaled(q, k).softmax(-1) @ v, "change nothing in your answer"),
        (lambda q, k, v, n: (scaled(q, k) + n - 1).softmax(-1) @ v, "add its *logarithm*"),
        (lambda q, k, v, n: (scaled(q, k) * n).softmax(-1) @ v, "a power, not a factor"),
        (lambda q, k, v, n: (scaled(q, k).softmax(-1) * n) @ v, "still sum to 1"),
        (lambda q, k, v, n: (q @ k.T + n.log()).softmax(-1) @ v, "With all counts 1"),
        (lambda q, k, v, n: n, "the answer is (3, 4)")])


# ---- costs and schedules ----

def test_the_toy_by_hand():
    assert {name: L.toy_macs(kept) for name, kept in L.TOY_SCHEDULES.items()} == \
        {"early": 7168 + 2 * 3328, "between": 7168 + 4240 + 2448, "late": 7168 + 5184 + 1600}
    assert L.toy_error((8, 8, 8)) == 0
    assert L.toy_error((6, 2, 2)) == 5 * 4 + (36 - 4)
    with pytest.raises(ValueError, match="rises"):
        L.toy_macs((4, 5, 5))


def test_the_best_toy_schedule_is_the_best_of_all_that_exist():
    for budget in (9000, 11000, 13952, 15000, 21504):
        every = [s for s in itertools.product(range(1, 9), repeat=3) if s[0] >= s[1] >= s[2]
                 and L.toy_macs(s) <= budget]
        schedule, error = L.toy_best(budget)
        assert error == min(map(L.toy_error, every)) == L.toy_error(schedule)
        assert L.toy_macs(schedule) <= budget
        kept = L.greedy_schedule.solution((8, 8, 8), L.toy_error, L.toy_macs, budget)
        assert L.toy_macs(kept) <= budget
        assert L.toy_error(kept) >= error
    assert L.toy_geometric(13952) == (5, 3, 3)


@pytest.mark.parametrize("method", ["wk_medoids", "top_k"])
def test_schedules_of_equal_cost(method):
    plain = tp.macs(shipped_vit()).total
    for ks in L.equal_cost(method=method).values():
        counted = tp.macs(tp.PooledViT(shipped_vit(), ks, method=method))
        assert L.macs_of(ks, method) == counted.total
        assert L.macs_of(ks, method, clustering=False) == counted.without_clustering
        assert counted.total / plain == pytest.approx(0.58, abs=0.005)
    early, late = (L.equal_cost(method=method)[name] for name in ("early", "late"))
    assert len(set(early)) == 1
    steps = -np.diff((64, *late))
    assert steps[:5].max() - steps[:5].min() <= 1
    assert steps[5] == 0


def test_the_prediction_names_the_schedules_that_are_measured():
    question = next(p for p in L.PREDICTIONS if p.id == "a").question
    family = L.equal_cost()
    assert f"{family['early'][0]} tokens after block 1" in question
    *first, last = family["late"][:5]
    assert f"{', '.join(map(str, first))} and {last} tokens" in question


# ---- measuring ----

def test_measure_against_the_model_itself():
    x, y = L._images("tune", 20)
    m = L.measure(L.once(1, 8), "top_k", count=20, series="tune")
    with torch.no_grad():
        logits = tp.PooledViT(shipped_vit(), (64, 8, 8, 8, 8, 8), method="top_k").eval()(x)
    assert m.right.tolist() == (logits.argmax(1) == y).tolist()
    assert m.belief == pytest.approx(logits.softmax(1)[range(20), y].numpy(), abs=1e-5)
    assert (m.error[[0, 2, 3, 4, 5]] == 0).all()
    assert (m.error[1] > 0).all()
    assert not torch.equal(x, L._images("test", 20)[0])        # chosen by others than measured on


def test_paired_interval_by_hand():
    a, b = np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 0], bool)
    difference, half = L.paired(a, b)
    assert difference == 25
    assert half == pytest.approx(1.96 * np.std([0, 100, 0, 0], ddof=1) / 2)


def test_a_price_list_adds_up():
    """With one error at all depths only the tokens in the end matter; with errors by depth every cut counts."""
    row = np.linspace(1, 0, 65)
    same = L.total(np.stack([row] * 5))
    assert same((60, 50, 40, 30, 20)) == pytest.approx(same((20,) * 5)) == pytest.approx(row[20])
    first = L.total(np.stack([row, *[0 * row] * 4]))
    assert first((60, 50, 40, 30, 20)) == pytest.approx(row[60])
    greedy = L.greedy_schedule.solution((64,) * 5, same, lambda s: sum(s), 64 * 5 - 200)
    assert len(set(greedy)) == 1                                 # an early cut saves most for the same error


def test_replacing_all_tokens_by_themselves_changes_nothing():
    x = pebbles(24)[0][:4]
    with torch.no_grad():
        tokens = tp.PooledViT(shipped_vit()).trace(x).steps[2].tokens
        assert torch.allclose(L.replaced(shipped_vit(), x, 2, tokens), shipped_vit()(x), atol=1e-4)


def test_counts_make_pooling_the_same_as_replacing_for_several_cuts_too():
    """The notebook cuts once. Here twice, against blocks that run on all 64 tokens."""
    vit, x = shipped_vit(), pebbles(24)[0][:4]
    model = tp.PooledViT(vit, [64, 30, 30, 9, 9, 9], init="farthest_first", carry_counts=True).eval()
    with torch.no_grad():
        trace = model.trace(x)
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        for index, block in enumerate(vit.blocks):
            tokens = block(tokens)
            step = trace.steps[index]
            whole = step.tokens.gather(1, step.labels[..., None].expand(-1, -1, 96))
            if index in (1, 3):
                tokens = torch.cat([tokens[:, :1], whole], 1)
            assert torch.allclose(tokens[:, 1:], whole, atol=1e-3), index
        assert torch.allclose(vit.forward_head(vit.norm(tokens)), trace.logits, atol=1e-3)


def test_found_schedules_follow_from_their_masks():
    assert [f.penalty for f in L.found()] == [1e-4, 3e-4, 1e-3]
    for search in L.found():
        assert from_soft_masks(search.masks.tolist())[:5] == search.schedule[:5]
        assert search.schedule[5] == search.schedule[4]
    assert L.found()[1].masks[0, :32].sum() / L.found()[1].masks[0].sum() == pytest.approx(0.5, abs=0.03)


def test_what_the_figure_of_depths_says():
    fig, table = L.depth_figure()
    lines = {t.name: t.y for t in fig.data}
    ours, geo = lines["found here, λ = 0.0003"], lines["geometric, at the cost of λ = 0.0003"]
    assert all(a > b for a, b in zip(ours[1:4], geo[1:4], strict=True))
    assert all(a < b for a, b in zip(ours[4:], geo[4:], strict=True))
    assert lines["DiffRate, DeiT-Ti at 0.7 G"][3] > 97 > 85 > lines["DiffRate, DeiT-Ti at 0.7 G"][4]
    assert len(table) == len(fig.data) == 6


def test_the_recorded_gap_is_read_off_the_rows():
    rows = L.recorded()
    assert set(rows["stage"]) == {"untouched", "finetuned"}
    part = rows[(rows["method"] == "top_k") & (rows["stage"] == "finetuned")]
    star = part[part["schedule"] == "41 40 33 18 4 4"].iloc[0]
    low, high = part[part["schedule_name"] == ""].iloc[1:3].itertuples()
    assert low.share < star["share"] < high.share
    line = low.top1 + (high.top1 - low.top1) * (star["share"] - low.share) / (high.share - low.share)
    assert L.recorded_gap(rows, "top_k", "finetuned") == pytest.approx(100 * (star["top1"] - line))


def test_figures_have_the_traces_they_talk_of():
    assert [t.name for t in L.toy_figure().data] == ["early", "between", "late"]
    assert len(L.masks_figure(L.found()[1]).data) == 5
    assert [t.marker.symbol for t in L.recorded_figure(L.recorded()).data[:2]] == ["square", "star"]
    rows = L.one_cut(16, 20, ways=("top_k",))
    assert list(rows["block"]) == [1, 2, 3, 4, 5]
    fig = L.one_cut_figure(rows)
    assert fig.data[0].y == pytest.approx(rows["error"].round(3))
    assert fig.data[1].y == pytest.approx(rows["lost"].round(3))


# ---- predictions ----

def prediction(letter):
    return next(p for p in L.PREDICTIONS if p.id == letter)


@pytest.mark.parametrize(("evidence", "place"), [((8.0, 5.3), 1), ((-3.7, 2.5), 0), ((-0.7, 2.1), 2), ((0.0, 0.0), 2)])
def test_prediction_a(evidence, place):
    assert prediction("a").answer(evidence) == place
    assert f"{evidence[0]:+.1f}" in prediction("a").tell(evidence)


@pytest.mark.parametrize(("ratio", "lost_late", "place"), [(0.4, 0, 0), (2.5, 0, 1), (0.8, 38, 2), (0.8, 1, 3)])
def test_prediction_b(ratio, lost_late, place):
    evidence = dict(ratio=ratio, lost_early=40, lost_late=lost_late)
    assert prediction("b").answer(evidence) == place
    assert "40 points" in prediction("b").tell(evidence)


# ---- the explorer: what the notebook asks and says of it (its workings: test_k_explorer.py) ----

def seen(**moves):
    explorer = L.explore().set(**moves)
    assert explorer.error is None
    return explorer


def test_the_presets_are_the_schedules_of_the_lesson():
    named = L.presets()
    assert list(named)[:3] == ["geometric, 42 % saved", "early and hard, 42 % saved", "late and gently, 42 % saved"]
    assert [named[f"found by search, λ = {f.penalty:g}"] for f in L.found()[1:]] == [f.schedule for f in L.found()[1:]]
    for ks in named.values():
        assert ks[5] == ks[4]                            # five sliders say it all
    assert tuple(L.explore().setting.schedule) == L.equal_cost()["geometric"]


def test_what_the_notebook_says_of_the_first_image():
    """Early loses the class, to the ground's columns; geometric, late, and early with counts keep it."""
    geometric = L.explore()
    early, late = seen(preset="early and hard, 42 % saved"), seen(preset="late and gently, 42 % saved")
    counted = seen(preset="early and hard, 42 % saved", counts=True)
    assert "changes from *large diagonal, small plain* to *large columns, small plain*" in early.words
    assert "The class stays *large diagonal, small plain*" in late.words
    assert "to *large diagonal, small plain*" in counted.words
    assert "again, as in the plain model" in counted.words
    assert "The class stays *large diagonal, small plain*" in geometric.words
    assert "2 the small one's, which had 5." in geometric.words
    run = {name: e._view.runs[0] for name, e in (("early", early), ("late", late), ("counted", counted))}
    assert (run["counted"].strip == run["early"].strip).all()
    assert run["counted"].error == run["early"].error
    assert sum(run["late"].error) > sum(run["early"].error)
    assert "Of the large pebble's 19 tokens none is left after block 1, and it decides half of the class." in \
        seen(preset="early and hard, 42 % saved", method="top_k").words


def test_the_lock_answers_task_four():
    """With the budget kept, fewer tokens after block 1 leave more for no block: all others are at its number."""
    explorer = seen(lock=True, k1=56)
    assert explorer.values()["k5"] < 15
    assert "locked at 57.9%" in explorer.words
    assert "cannot be spent" in explorer.set(k1=25).words
