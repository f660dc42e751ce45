"""Notebook 05: costs against formulas, greedy against all schedules, counts against copies, the explorer's promises."""

import itertools

import numpy as np
import pytest
import torch
from lessons import check_exercise, lesson
from torch import nn

import tokenpool as tp
from tokenpool.lab.session import pebbles, shipped_vit
from tokenpool.schedule import from_soft_masks

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
    x, y = L._pictures("tune", 20)
    m = L.measure(L.once(1, 8), "top_k", count=20, series="tune")
    with torch.no_grad():
        logits = tp.PooledViT(shipped_vit(), (64, 8, 8, 8, 8, 8), method="top_k").eval()(x)
    assert m.right.tolist() == (logits.argmax(1) == y).tolist()
    assert m.belief == pytest.approx(logits.softmax(1)[range(20), y].numpy(), abs=1e-5)
    assert (m.error[[0, 2, 3, 4, 5]] == 0).all()
    assert (m.error[1] > 0).all()
    assert not torch.equal(x, L._pictures("test", 20)[0])        # chosen by others than measured on


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


# ---- the explorer ----

@pytest.fixture(scope="module")
def explorer():
    return L.explore()


DEFAULTS = dict(preset="geometric, 42 % saved", k1=48, k2=36, k3=27, k4=21, k5=15, method="wk_medoids", start="top_k",
                counts=False)


def view(**changed):
    return L.view(**(DEFAULTS | dict(picture=L.picture_names()[0]) | changed))


def test_compute_against_the_model():
    v = view(picture=L.picture_names()[0])
    x = pebbles(24)[0][[4]]
    model = tp.PooledViT(shipped_vit(), v.schedule, init="top_k").eval()
    with torch.no_grad():
        assert v.after == pytest.approx(model(x).softmax(1)[0].numpy(), abs=1e-5)
        assert v.before == pytest.approx(shipped_vit()(x).softmax(1)[0].numpy(), abs=1e-5)
    assert v.share == tp.macs(model).total / tp.macs(shipped_vit()).total
    assert v.share_without < v.share
    assert v.left.sum(1).tolist() == [64, *v.schedule[:5]]
    assert v.patches == tuple(np.bincount(pebbles(24)[3][4], minlength=3))


def test_kept_tokens_keep_their_region():
    v = view(method="top_k")
    steps = tp.PooledViT(shipped_vit(), v.schedule, method="top_k").eval().trace(pebbles(24)[0][[4]]).steps
    for place, step in enumerate(steps[:5], start=1):
        assert v.left[place].tolist() == np.bincount(pebbles(24)[3][4][step.origin[0]], minlength=3).tolist()


def test_a_cluster_belongs_to_most_of_its_patches():
    regions = np.array([2, 2, 0, 1, 1, 0])
    step = type("Step", (), dict(kept=2, labels=torch.tensor([[0, 0, 0, 1, 1, 1]]), origin=torch.tensor([[2, 5]])))
    assert L._regions(regions, step, chooses=False).tolist() == [2, 1]
    assert L._regions(regions, step, chooses=True).tolist() == [0, 0]


def test_a_rising_slider_is_answered_in_words():
    assert L.allowed((48, 36, 27, 21, 15)) == ((48, 36, 27, 21, 15, 15), "")
    schedule, told = L.allowed((40, 50, 20, 20, 20))
    assert schedule == (40, 40, 20, 20, 20, 20)
    assert told.startswith("Block 2 asks for 50 of 40 tokens")
    schedule, told = L.allowed((5, 64, 3, 64, 4))
    assert schedule == (5, 5, 3, 3, 3, 3)
    assert "2 (64 of 5), 4 (64 of 3), 5 (4 of 3)" in told
    v = view(preset=L.HAND, k3=60)
    assert "Block 3 asks for 60 of 36" in L.view_words(v)
    assert v.error[2] == 0


def test_sliders_wait_for_their_preset(explorer):
    explorer.set(preset="geometric, 42 % saved", k1=10)
    assert "K = 48 36" in explorer.words
    assert 'until Schedule says "by hand"' in explorer.words
    explorer.set(preset=L.HAND)
    assert "K = 10 10 10 10 10 10" in explorer.words
    assert "asks for" not in explorer.words
    assert "These blocks ask for more tokens than there are left" in explorer.words
    explorer.set(k1=48, preset="geometric, 42 % saved")


def test_words_follow_every_control(explorer):
    for name, value in (("method", "top_k"), ("start", "farthest_first"), ("counts", True),
                        ("preset", "early and hard, 42 % saved"), ("picture", L.picture_names()[1])):
        start = DEFAULTS | dict(picture=L.picture_names()[0])
        explorer.set(**start)
        before = explorer.words
        explorer.set(**{name: value})
        assert explorer.error is None
        assert explorer.words != before, name
    explorer.set(picture="photograph: cat")
    assert "knows pebbles only" in explorer.words
    explorer.set(**DEFAULTS, picture=L.picture_names()[0])


def test_no_corner_breaks_the_explorer(explorer):
    """Every option and both ends of every control, each move from where the last one left things."""
    traces = len(explorer.figure.data)
    moves = [dict(preset=p) for p in L.presets()]
    moves += [{f"k{b}": k} for b in range(1, 6) for k in (1, 64)] + [dict(k1=9), dict(k5=1)]
    moves += [dict(method=m) for m in tp.method_names()]
    moves += [dict(counts=True), dict(method="importance_with_replacement")]
    moves += [dict(start=s) for s in tp.init_names()] + [dict(picture=p) for p in L.picture_names()[3:8]]
    for move in moves:
        explorer.set(**move)
        assert explorer.error is None, move
        assert len(explorer.figure.data) == traces == 7
        assert "nan" not in explorer.words
    explorer.set(**DEFAULTS, picture=L.picture_names()[0])


def test_copies_lose_nothing_of_no_variance():
    """Drawing with replacement leaves copies; a later cut among copies of one token divides 0 by 0."""
    v = view(preset=L.HAND, k1=9, k2=2, k3=2, k4=2, k5=1, method="importance_with_replacement", counts=True)
    assert np.isfinite(v.error).all()
    assert np.isfinite(v.after).all()


def test_the_figure_shows_what_was_computed():
    v = view(preset="late and gently, 42 % saved")
    fig = L.view_figure(v)
    assert [t.type for t in fig.data] == ["image"] + ["bar"] * 6
    assert list(fig.data[1].y) == [round(e, 3) for e in v.error]
    for region in range(3):
        assert list(fig.data[2 + region].y) == v.left[:, region].tolist()
        assert list(fig.data[2 + region].base) == v.left[:, :region].sum(1).tolist()
    pooled, plain = fig.data[5], fig.data[6]
    assert pooled.y == plain.y
    assert plain.y[list(plain.x).index(max(plain.x))] == L.spoken(int(v.before.argmax()))
    assert max(plain.x) == round(100 * float(v.before.max()), 1)
    assert fig.layout.xaxis.ticktext[-1] == "after block 5<br>6"


def test_the_strip_holds_six_pictures():
    sample = L.sample(L.picture_names()[0])
    picture = L._first(sample)
    frame = (picture == 255).all(2) & (sample.pixels.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1) != 255).any(2)
    inside = (sample.regions == 2).reshape(8, 8).repeat(16, 0).repeat(16, 1)
    assert frame.any()
    assert not (frame & ~inside).any()                   # the frame lies on the small pebble's own patches
    assert L._in_a_row([picture] * 6).shape == (128, 816, 3)
    assert L._first(L.sample("photograph: cat")).shape == (128, 128, 3)


def test_what_the_notebook_says_of_the_first_picture():
    """Early loses the class, to the ground's columns; geometric, late, and early with counts keep it."""
    early = view(preset="early and hard, 42 % saved")
    counted = view(preset="early and hard, 42 % saved", counts=True)
    assert "changes from *large diagonal, small plain*" in L.view_words(early)
    assert "*large columns, small plain*" in L.view_words(early)
    for kept in (view(), view(preset="late and gently, 42 % saved"), counted):
        assert "The class stays *large diagonal, small plain*" in L.view_words(kept)
    assert counted.strip == early.strip
    assert counted.error == early.error
    assert sum(view(preset="late and gently, 42 % saved").error) > sum(early.error)
    assert "Of the large pebble's 19 tokens none is left after block 1, and it decides half of the class." in \
        L.view_words(view(preset="early and hard, 42 % saved", method="top_k"))
    assert "2 the small one's, which had 5." in L.view_words(view())


def test_the_pictures_are_what_their_names_say():
    assert len(L.picture_names()) == 11
    for name in L.picture_names()[:6]:
        assert L.spoken(int(L._plain(name).argmax())) in name          # and the plain model knows them all
        assert (L.sample(name).regions == 2).sum() >= 4


def test_explorer_runs_the_model_once_a_setting(monkeypatch):
    v = view()
    monkeypatch.setattr(nn.Module, "__call__", lambda *a, **o: pytest.fail("not cached"))
    assert view(k1=3) is v
