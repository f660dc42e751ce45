"""Differences and their intervals, against scipy, formulas worked by hand, and simulation."""

import math

import numpy as np
import pytest
from rows_for_reports import IMAGES, frame, row
from scipy import stats as oracle

from tokenpool.measure.rows import pack
from tokenpool.report import stats
from tokenpool.report.stats import Effect, Noise, gap, mean_gap, run_noise, summary


def test_the_gap_is_mcnemars():
    """One run each: 30 images only A gets right, 10 only B: difference 2 points, by hand and by scipy's paired test."""
    a, b = np.zeros(IMAGES, bool), np.zeros(IMAGES, bool)
    a[:530], b[:500], b[530:540] = True, True, True
    g = gap(frame(row(right=pack(a))), frame(row(right=pack(b))))
    assert g.value == pytest.approx(0.02)
    by_hand = np.sqrt((30 + 10) / IMAGES - 0.02**2) / np.sqrt(IMAGES)
    assert g.half == pytest.approx(1.96 * by_hand, rel=2e-3)
    interval = oracle.ttest_rel(a.astype(float), b.astype(float)).confidence_interval()
    assert (g.low, g.high) == pytest.approx((interval.low, interval.high))
    wider = gap(frame(row(right=pack(a))), frame(row(right=pack(b))), noise=0.01)
    assert wider.half == pytest.approx(1.96 * np.hypot(by_hand, 0.01 * np.sqrt(2)), rel=2e-3)


def test_few_repeats_widen_the_interval_by_students_t():
    """Where the images say nothing, the interval is scipy's t; with both, Welch's degrees of freedom lie between."""
    same = frame(row()), frame(row())
    alone = gap(*same, Noise(0.01, 4))
    assert alone.half == pytest.approx(oracle.t(4).ppf(0.975) * 0.01 * math.sqrt(2))
    both = gap(frame(row(shuffle=1)), frame(row(shuffle=2)), Noise(0.01, 4))
    images = gap(frame(row(shuffle=1)), frame(row(shuffle=2)))
    runs = 2 * 0.01**2
    welch = (images.error**2 + runs) ** 2 / (images.error**4 / (IMAGES - 1) + runs**2 / 4)
    assert both.freedom == pytest.approx(welch)
    assert 4 < both.freedom < IMAGES
    assert both.half == pytest.approx(oracle.t(welch).ppf(0.975) * math.hypot(images.error, math.sqrt(runs)))


def test_intervals_miss_one_time_in_twenty_with_noise_from_few_repeats():
    """Simulated: two settings, equally good, three runs each, noise pooled from these six runs alone."""
    draw, missed, normal = np.random.default_rng(0), 0, 0
    for _ in range(300):
        runs = [[0.5 + 0.02 * draw.standard_normal() for _ in range(3)] for _ in range(2)]
        noise = stats.pooled_noise(runs)
        apart, error = np.mean(runs[0]) - np.mean(runs[1]), noise * math.sqrt(2 / 3)
        missed += Effect(apart, error, noise.freedom).clearly_not()
        normal += Effect(apart, error).clearly_not()
    assert 0.025 < missed / 300 < 0.08
    assert normal / 300 > 0.085                                     # what 1.96 would have done


def test_the_mean_over_budgets_is_sharper_than_one_and_among_many_a_gap_must_be_wider():
    pairs = [(frame(row(saving=s, shuffle=i)), frame(row("top_k", 0.78, s, shuffle=i + 10)))
             for i, s in enumerate((0.3, 0.42, 0.6, 0.75), 1)]
    whole, parts = mean_gap(pairs, 0.01), [gap(a, b, 0.01) for a, b in pairs]
    assert whole.value == pytest.approx(np.mean([g.value for g in parts]))
    assert whole.half == pytest.approx(np.sqrt(np.mean([g.half**2 for g in parts]) / 4), rel=0.06)   # independent ones
    just_below = Effect(-0.02, 0.018 / 1.96)
    assert just_below.clearly_below()
    assert not just_below.clearly_below(among=8)                    # 0.018 x 2.734 / 1.96 = 0.025
    assert Effect(-0.02, 0.014 / 1.96).clearly_below(among=8)       # 0.0195
    assert not Effect(-0.02, 0.0145 / 1.96).clearly_below(among=8)
    with pytest.raises(ValueError, match="different images"):
        gap(frame(row()), frame(row(data="others")))


def test_rows_without_bits_are_compared_as_independent_images():
    a, b = (frame(row(m, p, stage="untouched", right="", top1_low=p - 0.03, top1_high=p + 0.03))
            for m, p in (("wk_medoids", 0.8), ("top_k", 0.7)))
    g = gap(a, b)
    assert not g.paired
    assert (g.value, g.half) == (pytest.approx(0.1), pytest.approx(0.03 * math.sqrt(2), rel=2e-3))
    # budgets are measured on the same images, so their mean is not surer than one of them
    assert mean_gap([(a, b), (a, b)]).half == pytest.approx(g.half)


def test_run_noise_is_the_pooled_deviation():
    rows = frame(row(top1=0.50, seed=0), row(top1=0.52, seed=1), row(saving=0.6, top1=0.3, seed=0),
                 row(saving=0.6, top1=0.3, seed=1), row(saving=0.7, top1=0.1),
                 row(top1=0.1, seed=0, stage="untouched"), row(top1=0.9, seed=1, stage="untouched"))
    noise = run_noise(rows)
    assert noise == pytest.approx(np.sqrt((2 * 0.01**2) / 2))
    assert noise.freedom == 2
    assert run_noise(frame(row())) == 0


def test_noise_of_runs_only_where_a_run_would_differ():
    """An off-the-shelf system that draws nothing gives the same answers again; a finetuned one does not."""
    noise = Noise(0.01, 5)
    fixed = frame(row(stage="untouched", seed=0), row(stage="untouched", seed=1))
    drawn = frame(row("random", 0.70, stage="untouched"), row("random", 0.72, stage="untouched", seed=1))
    assert gap(fixed, fixed, noise).error == 0
    assert gap(fixed, drawn, noise).error > gap(fixed, drawn).error
    assert gap(frame(row()), frame(row()), noise).error == pytest.approx(0.01 * math.sqrt(2))


def test_the_summary_has_a_line_per_setting_with_wilsons_interval_or_a_wider_one():
    rows = frame(row(top1=0.5), row(top1=0.6, seed=1), row("top_k", 0.4, stage="untouched"))
    table = summary(rows, ["method"], Noise(0.01, 3)).set_index("method")
    ours, theirs = table.loc["wk_medoids"], table.loc["top_k"]
    assert (ours["top1"], ours["seeds"], ours["gmacs"]) == (pytest.approx(0.55), 2, pytest.approx(0.0116))
    spread = oracle.t(3).ppf(0.975) * 0.01 / math.sqrt(2)
    assert ours["half"] == pytest.approx(math.hypot(0.02, spread))
    assert (theirs["low"], theirs["high"]) == pytest.approx((0.38, 0.42))
    assert ours["runs"].count("|") == 1


def test_an_effect_says_itself_in_points():
    g = Effect(-0.0123, 0.01, saving=0.42)
    assert str(g) == "-1.2 ± 2.0"
    assert g.budget == "-42%"
    assert Effect(0, 0).budget == "mean"
