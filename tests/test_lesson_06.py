"""Notebook 06: exercises tell typical mistakes apart; bounds, measurements and intervals against independent work."""

import itertools
import math

import lessons
import numpy as np
import pandas as pd
import pytest
import torch
from lessons import state_words
from torch.nn.functional import normalize, scaled_dot_product_attention

from tokenpool.lab.kit.session import Lab, photograph_vit, shipped_vit
from tokenpool.measure.rows import pack
from tokenpool.models.attention import attention_half, normalise_qk
from tokenpool.report.claims import Table
from tokenpool.report.stats import gap
from tokenpool.train.plan import plan
from tokenpool.train.recipe import load_preset

toys = lessons.lesson("06")


# ---- exercises ----

def scores(r1=lambda c, a, d: a * c, r2=lambda c, a, d: a * a * c / d ** 0.5, axis=-1, queries=True, keys=True):
    def normalised_scores(q, k, alpha, reading):
        d = q.shape[-1]
        q, k = (normalize(t, dim=axis) if on else t for t, on in ((q, queries), (k, keys)))
        return (r1 if reading == "r1" else r2)(q @ k.mT, alpha, d)
    return normalised_scores


def test_exercise_a_the_scores():
    lessons.check_exercise("06", "a", [
        (scores(r2=lambda c, a, d: a * c / d ** 0.5), "alpha comes in twice"),
        (scores(r1=lambda c, a, d: a * c / d ** 0.5), "no division by sqrt(d)"),
        (scores(axis=-2), "taken over the tokens"),
        (scores(axis=0), "taken over the heads"),
        (scores(r2=lambda c, a, d: a * a * c), "keeps the usual division"),
        (scores(r2=lambda c, a, d: a * a * c / d), "divides by its root"),
        (scores(r2=lambda c, a, d: a * c), "Your R2 is R1"),
        (scores(queries=False), "queries still have their own"),
        (scores(keys=False), "keys still have their own"),
        (scores(queries=False, keys=False), "can leave -1 to 1"),
        (scores(r1=lambda c, a, d: (a * c).softmax(-1)), "before the softmax"),
        (lambda q, k, alpha, reading: normalize(k, dim=-1) @ normalize(q, dim=-1).mT, "turns the last two axes over"),
        (lambda q, k, alpha, reading: normalize(q, dim=-1) @ normalize(k, dim=-1).mT, "three times the cosine"),
    ])


def test_exercise_b_the_ratio():
    def slope(alpha, reading, d):
        return alpha if reading == "r1" else alpha ** 2 / d ** 0.5

    lessons.check_exercise("06", "b", [
        (lambda *a: math.exp(slope(*a)), "*against* the query"),
        (lambda *a: 2 * slope(*a), "difference of the logits"),
        (lambda alpha, reading, d: math.exp(2 * alpha / (1 if reading == "r1" else d ** 0.5)), "alpha counts twice"),
        (lambda alpha, reading, d: math.exp(2 * alpha / (1 if reading == "r1" else d)), "divides by its root, 8"),
        (lambda alpha, reading, d: math.exp(2 * alpha ** 2 / d ** 0.5), "divide in both readings"),
        (lambda alpha, reading, d: math.exp(2 * alpha), "R1 does without"),
    ])


def interval(z=1.96, images=True, combine=math.hypot, unpaired=False, scale=1, sign=1, root=True,
             runs=lambda noise, r, s: noise * (1 / r + 1 / s) ** 0.5,
             verdict=lambda d, h: "undecided" if abs(d) <= h else "above" if d > 0 else "below"):
    def beyond_noise(ours, theirs, run_noise):
        a, b = ours.mean(0), theirs.mean(0)
        n = len(a) ** 0.5 if root else 1
        spread = math.hypot(a.std(), b.std()) / n if unpaired else (a - b).std().item() / n
        half = z * combine(spread if images else 0.0, runs(run_noise, len(ours), len(theirs)))
        difference = sign * scale * (a - b).mean().item()
        return difference, half, verdict(difference, half)
    return beyond_noise


def test_exercise_c_the_interval():
    lessons.check_exercise("06", "c", [
        (interval(runs=lambda noise, r, s: 0.0), "run_noise is missing"),
        (interval(images=False), "knows the finetunings only"),
        (interval(combine=lambda a, b: a + b), "You add the two parts"),
        (interval(combine=lambda a, b: (a + b) ** 0.5), "Squares are missing"),
        (interval(z=1.645), "*one* side"),
        (interval(z=1.0), "one standard error"),
        (interval(runs=lambda noise, r, s: noise), "root of 1/1 + 1/2"),
        (interval(unpaired=True), "image by image"),
        (interval(root=False), "divide by the root of n"),
        (interval(sign=-1), "The sign"),
        (interval(scale=100), "not percent"),
        (interval(runs=lambda noise, r, s: noise * 0.3), "Two parts"),
        (interval(verdict=lambda d, h: "above" if d > 0 else "below"), "The interval holds 0"),
        (interval(verdict=lambda d, h: "above" if d > h else "undecided"), "lies below 0"),
        (interval(verdict=lambda d, h: "better"), "one of above, below, undecided"),
        (lambda ours, theirs, run_noise: 0.5, "three things"),
    ])


def test_exercise_c_is_what_the_claims_are_judged_by():
    """The solution and `claims.gap` agree on rows of random systems."""
    draw = np.random.default_rng(0)
    for runs in ((1, 1), (1, 2), (3, 2)):
        ours, theirs = (draw.random((r, 300)) < p for r, p in zip(runs, (0.6, 0.5), strict=True))
        a, b = (pd.DataFrame({"right": [pack(row) for row in rows], "images": 300, "data": "x", "stage": "finetuned"})
                for rows in (ours, theirs))
        wanted = gap(a, b, 0.01)
        value, half, _ = toys.beyond_noise.solution(torch.tensor(ours).float(), torch.tensor(theirs).float(), 0.01)
        assert value == pytest.approx(wanted.value, abs=1e-6)
        assert half == pytest.approx(1.96 * wanted.error, rel=1e-5)       # claims use t, a little wider than 1.96
        assert 0 < wanted.half / half - 1 < 0.01


# ---- bounds ----

def test_slopes_meet_at_the_root_of_d():
    assert toys.slope(1.0, "r1", 64) == 1
    assert toys.slope(1.0, "r2", 64) == 0.125
    assert toys.slope(8.0, "r1", 64) == toys.slope(8.0, "r2", 64) == 8


@pytest.mark.parametrize("reading", ["r1", "r2"])
def test_package_scores_are_slope_times_cosine(reading):
    draw = torch.Generator().manual_seed(1)
    q, k = torch.randn(3, 16, generator=draw), 5 * torch.randn(4, 16, generator=draw)
    cos = torch.nn.functional.cosine_similarity(q[:, None], k[None], dim=-1)
    got = toys.package_scores(q, k, 3.0, reading)
    assert torch.allclose(got, toys.slope(3.0, reading, 16) * cos, atol=1e-5)


@pytest.mark.parametrize("reading", ["r1", "r2"])
def test_the_bound_on_the_ratio_is_reached_and_never_passed(reading):
    bound = math.exp(2 * toys.slope(1.0, reading, 64))
    assert toys.reached_ratio(reading) == pytest.approx(bound, rel=1e-4)
    assert toys.largest_ratio.solution(1.0, reading, 64) == pytest.approx(bound)
    draw = torch.Generator().manual_seed(2)
    weights = toys.package_scores(torch.randn(50, 64, generator=draw), torch.randn(40, 64, generator=draw), 1.0,
                                  reading).softmax(-1)
    assert (weights.amax(-1) / weights.amin(-1)).max() <= bound


def test_numbers_of_the_paper_sheet():
    assert f"{toys.reached_ratio('r1'):.2f}" == "7.39"
    assert f"{toys.reached_ratio('r2'):.2f}" == "1.28"


@pytest.mark.parametrize("slope", [0.1, 1.0, 2.5])
def test_consequences_for_n_keys_against_brute_force(slope):
    """All weights with cosines from a grid: none is larger, none farther from uniform, none of fewer keys."""
    n, r = 5, math.exp(2 * slope)
    grid = np.array(list(itertools.product(np.linspace(-1, 1, 7), repeat=n)))
    weights = np.exp(slope * grid)
    weights /= weights.sum(1, keepdims=True)
    assert weights.max() <= r / (r + n - 1) + 1e-12
    assert weights.max() == pytest.approx(r / (r + n - 1))
    moved = np.abs(weights - 1 / n).sum(1) / 2
    assert moved.max() <= math.tanh(slope / 2) + 1e-12
    values = np.random.default_rng(0).standard_normal((n, 3))
    widest = max(np.linalg.norm(a - b) for a in values for b in values)
    assert np.linalg.norm(weights @ values - values.mean(0), axis=1).max() <= math.tanh(slope / 2) * widest
    keys = np.exp(-(weights * np.log(weights)).sum(1))
    assert toys.fewest_keys(n, slope) == pytest.approx(keys.min())


def test_the_mean_distance_bound_is_reached_by_the_right_split():
    """With a share 1 / (1 + sqrt(r)) of the keys along the query: sqrt(r) = 3, one key of four."""
    slope = math.log(3)
    weights = torch.tensor([slope, -slope, -slope, -slope]).softmax(0)
    assert (weights - 0.25).abs().sum().item() / 2 == pytest.approx(math.tanh(slope / 2)) == pytest.approx(0.5)


def test_effective_number_of_equal_weights():
    assert toys.effective(np.array([0.25, 0.25, 0.25, 0.25, 0.0])) == pytest.approx(4)


# ---- toys and figures ----

def test_circle_by_hand():
    q, keys = toys.circle()
    assert torch.allclose(keys @ q, torch.tensor([1.0, 0.5, -0.5, -1.0]), atol=1e-6)
    got = toys.package_scores(q[None], keys, 1.0, "r1")[0].softmax(0)
    wanted = np.exp([1, 0.5, -0.5, -1])
    assert np.allclose(got, wanted / wanted.sum(), atol=1e-5)
    fig = toys.circle_figure({("r1", 1.0): got.tolist(), ("r2", 4.0): [0.25] * 4})
    assert [t.name for t in fig.data if t.showlegend is None] == ["R1, alpha = 1", "R2, alpha = 4"]
    assert fig.data[-1].y == (25, 25, 25, 25)


def test_fewest_figure_has_a_curve_a_reading():
    fig, table = toys.fewest_figure()
    assert len(fig.data) == 2
    row = table[table["alpha"] == 1].iloc[0]
    assert (round(row["r1"]), row["r2"]) == (40, 63.5)
    assert (table["r1"].diff().dropna() <= 0).all()
    assert len(table) <= 40


# ---- heads ----

def random_qk(equal=False):
    draw = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 3, 7, 8, generator=draw), torch.randn(2, 3, 7, 8, generator=draw)
    return q, normalize(k, dim=-1) * 2.5 if equal else k


def test_caught_queries_and_keys_give_the_models_own_attention():
    vit, x = shipped_vit(), Lab("06").images(4)[0]
    caught = toys.head_vectors(vit, x)
    assert len(caught) == 6
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        for block, (q, k) in zip(vit.blocks, caught, strict=True):
            assert q.shape == k.shape == (4, 3, 65, 32)
            attention = attention_half(block, tokens, None, None)[1].attention
            assert torch.allclose((q @ k.mT / 32 ** 0.5).softmax(-1), attention, atol=1e-5)
            tokens = block(tokens)
    assert not vit.blocks[0].attn.q_norm._forward_hooks


def test_keys_of_one_length_are_the_plain_gaussian():
    """The assumption's own case: nothing moves, and attention is the Gaussian of q - k."""
    q, k = random_qk(equal=True)
    for change in ("keys of one length", "plain Gaussian of q - k"):
        assert toys.attention_change(q, k, change).max() < 1e-5
    assert toys.length_spread(k).max() < 1e-6


@pytest.mark.parametrize("change", list(toys.CHANGES))
def test_attention_change_by_loops(change):
    q, k = random_qk()
    got = toys.attention_change(q, k, change)
    for h in range(3):
        moved = []
        for b in range(2):
            lengths = k[b, h].norm(dim=1)
            for i in range(7):
                a = (k[b, h] @ q[b, h, i] / 8 ** 0.5).softmax(0)
                if change == "queries of one length":
                    own = q[b, h].norm(dim=1)
                    p = (k[b, h] @ q[b, h, i] / own[i] * own.mean() / 8 ** 0.5).softmax(0)
                elif change == "keys of one length":
                    p = (k[b, h] @ q[b, h, i] / lengths * lengths.mean() / 8 ** 0.5).softmax(0)
                elif change == "plain Gaussian of q - k":
                    g = torch.exp(-(q[b, h, i] - k[b, h]).square().sum(1) / (2 * 8 ** 0.5))
                    p = g / g.sum()
                else:
                    p = torch.full((7,), 1 / 7)
                moved.append((a - p).clamp(min=0).sum().item())         # total variation, by its positive part
        assert got[h].item() == pytest.approx(np.mean(moved), abs=1e-5)


def test_the_gaussian_with_a_weight_per_key_is_attention():
    q, k = random_qk()
    weight = torch.exp(k.square().sum(-1) / (2 * 8 ** 0.5))
    g = torch.exp(-torch.cdist(q, k).square() / (2 * 8 ** 0.5)) * weight[..., None, :]
    assert torch.allclose(g / g.sum(-1, keepdim=True), (q @ k.mT / 8 ** 0.5).softmax(-1), atol=1e-5)


def test_length_spread_by_hand():
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0, :, 0] = torch.tensor([1.0, 3.0])
    assert toys.length_spread(x).item() == pytest.approx(2 ** 0.5 / 2)
    assert torch.allclose(toys.one_length(x)[0, 0, :, 0], torch.tensor([2.0, 2.0]))


@pytest.fixture(scope="module")
def heads():
    return toys.head_table({"pebbles": (shipped_vit(), Lab("06").images(8)[0]),
                            "photographs": (photograph_vit(), toys.photo_images())})


def test_heads_of_two_models(heads):
    assert heads.groupby("model").size().to_dict() == {"pebbles": 18, "photographs": 12}
    assert (heads["keys"] > 0.1).all()
    assert (heads["queries of one length"] < heads["keys of one length"]).all()
    assert toys.photo_images().shape == (25, 3, 64, 64)
    assert len(toys.spread_figure(heads).data) == 4
    fig = toys.change_figure(heads)
    assert [len(t.y) for t in fig.data] == [4 * 18, 4 * 12]
    assert max(max(t.y) for t in fig.data) < 78
    assert heads[["keys", "queries"]].max().max() < 0.46


# ---- lengths away ----

def test_lengths_away_is_what_it_says():
    lab = Lab("06")
    vit, (x, _, labels, _) = lab.vit, lab.images(8)
    before = vit(x)
    table = toys.lengths_away(vit, x, labels)
    assert torch.equal(before, vit(x))
    assert table["what"].is_unique
    assert ((table["low"] <= table["top1"]) & (table["top1"] <= table["high"])).all()
    fig = toys.away_figure(table, 8)
    assert list(fig.data[0].y) == table["what"].tolist()
    with torch.no_grad():
        r1, r2 = (normalise_qk(toys.with_change(vit), reading)(x) for reading in ("r1", "r2"))
        assert torch.allclose(r1, r2, atol=1e-3)                        # alpha = sqrt(d): one figure for both
        equal = toys.with_change(vit, keys=torch.zeros_like)
        q, k = toys.head_vectors(equal, x)[0]
        v = torch.randn_like(q)
        mean = v.mean(2, keepdim=True).expand_as(v)
        assert torch.allclose(scaled_dot_product_attention(q, k, v), mean, atol=1e-5)
        lengths = toys.head_vectors(toys.with_change(vit, queries=toys.one_length), x)[0]
        assert toys.length_spread(lengths[0]).max() < 1e-5 < toys.length_spread(lengths[1]).min()


# ---- recorded runs ----

def test_ablation_is_the_ledgers():
    t = toys.recorded()
    assert isinstance(t, Table)
    table = toys.ablation()
    assert list(table["what"]) == ["base models", "plain, finetuned", "pooled, -42 %"]
    told = toys.verdict().evidence
    for i in (1, 2):
        assert f"{table['difference'][i]:+.1f} ± {table['half'][i]:.1f}" in told
    assert math.isnan(table["half"][0])
    assert (table["half"][1:] > table["images"][1:]).all()
    for ours, theirs in toys.recorded_pairs().values():
        assert set(ours["qk"]) == {"r1-learned"}
        assert set(theirs["qk"]) == {""}
        assert set(ours["images"]) == set(theirs["images"]) == {2500}       # prediction d says so
    fig = toys.ablation_figure(table)
    assert [len(trace.x) for trace in fig.data] == [3, 2]


def test_half_width_of_more_runs():
    assert toys.half_width(1.4, 0.5, 10 ** 9) == pytest.approx(1.4, abs=1e-3)
    assert toys.half_width(0.0, 0.5, 2) == pytest.approx(1.96 * 0.5)


def test_the_plan_knows_the_recorded_runs():
    names = {job.name for job in plan(["fig10"], load_preset(toys.PRESET))}
    assert len(names & set(toys.recorded().all["run"])) == 3


# ---- explorer ----

def test_kernel_with_equal_lengths_at_the_root_of_d_is_usual_attention():
    for reading in ("r1", "r2"):
        c = toys.kernel(8.0, reading, 20, 64, 0.0, toys.LAYOUTS[1])
        assert np.allclose(c.weights, c.usual)
    c = toys.kernel(8.0, "r1", 20, 64, 0.3, toys.LAYOUTS[1])
    assert not np.allclose(c.weights, c.usual)
    assert c.lengths.mean() == pytest.approx(1)
    assert c.lengths.std() == pytest.approx(0.3, rel=0.25)


def test_kernel_numbers():
    c = toys.kernel(1.0, "r1", 64, 64, 0.3, toys.LAYOUTS[1])
    assert c.weights.sum() == pytest.approx(1)
    assert c.usual.sum() == pytest.approx(1)
    assert c.weights[0] / c.weights[-1] == pytest.approx(math.exp(2))
    logits = 8 * c.lengths * c.cos
    assert np.allclose(c.usual, np.exp(logits) / np.exp(logits).sum())
    assert toys.effective(c.weights) >= toys.fewest_keys(64, 1.0)
    wide = [np.abs(toys.kernel(1.0, "r1", 128, d, 0.3, toys.LAYOUTS[0]).cos).mean() for d in (4, 32, 128)]
    assert wide == sorted(wide, reverse=True)


def test_kernel_figure_draws_the_numbers():
    c = toys.kernel(2.0, "r1", 16, 64, 0.3, toys.LAYOUTS[1])
    fig = toys.kernel_figure(c)
    assert len(fig.data) == 6
    curve, _, dots = fig.data[:3]
    on_curve = np.interp(dots.x, curve.x, np.log(curve.y))
    assert np.allclose(on_curve, np.log(dots.y), atol=0.02)                 # circles lie on the kernel
    assert sum(fig.data[4].y) == pytest.approx(100, abs=0.05)
    table = toys.kernel_table(c)
    assert table["ratio"][0] == table["bound"][0] == "54.6"                 # e^4


def test_words_follow_every_control():
    box = toys.explore()
    first = state_words(box)
    assert "ratio reaches 7.39" in first
    assert "No angle costs a factor of ten" in first
    seen = {first}
    for change in (dict(reading="r2"), dict(alpha=4.0), dict(layout=toys.LAYOUTS[0]), dict(keys=20), dict(d=16),
                   dict(spread=0.5), dict(spread=0.0)):
        box.set(**change)
        assert box.error is None
        assert state_words(box) not in seen, change
        seen.add(state_words(box))
    assert "same kind of kernel" in box.words
    assert "falls to a tenth within" in toys.explore().set(alpha=4.0).words
    assert "near 90 degrees" in toys.explore().set(layout=toys.LAYOUTS[0]).words


def test_no_corner_of_the_explorer_fails():
    box = toys.explore()
    for alpha, reading, layout, keys, d, spread in itertools.product(
            (0.25, 16.0), ("r1", "r2"), toys.LAYOUTS, (4, 128), (4, 128), (0.0, 0.6)):
        found = toys.kernel(alpha, reading, keys, d, spread, layout)
        assert not any(bad in toys.kernel_words(found) for bad in ("nan", "inf"))
        assert "nan" not in toys.kernel_table(found).to_string()
        if spread:
            continue                                # building a figure is slow; lengths do not change its traces
        fig = toys.kernel_figure(found)
        assert len(fig.data) == 6
        assert all(np.isfinite(v) for t in fig.data for v in t.y)
    for values in (dict(alpha=16.0, reading="r2", d=4), dict(keys=4), dict(layout=toys.LAYOUTS[0]), dict(spread=0.6)):
        box.set(**values)
        assert box.error is None
        assert len(box.figure.data) == 6


# ---- predictions ----

@pytest.mark.parametrize(("letter", "evidence", "place"), [
    ("a", {"r1": 7.39, "r2": 1.28}, 1), ("a", {"r1": 400.0, "r2": 1.2}, 0), ("a", {"r1": 1.9, "r2": 1.28}, 2),
    ("b", 39.8, 2), ("b", 12.0, 1), ("b", 1.2, 0),
    ("c", {"m": 0.34, "n": 0.29}, 2), ("c", {"m": 0.34, "n": 0.1}, 1), ("c", {"m": 0.04, "n": 0.01}, 0),
    ("d", 1.9, 2), ("d", 0.5, 1), ("d", 0.1, 0)])
def test_predictions_follow_the_evidence(letter, evidence, place):
    prediction = next(p for p in toys.PREDICTIONS if p.id == letter)
    assert prediction.answer(evidence) == place
    assert prediction.options[place] in prediction.reveal(evidence, None).words
    for committed in range(len(prediction.options)):
        card = prediction.reveal(evidence, committed)
        assert card.state == ("right" if committed == place else "wrong")
