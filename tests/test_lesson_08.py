"""Notebook 08: its exercises say what is wrong, its intervals are right, its ledger says what the package judged."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from lessons import check_exercise, lesson, state_words
from scipy import stats as oracle

from tokenpool.lab.kit.session import LESSONS
from tokenpool.measure.rows import unpack
from tokenpool.report.claims import CLAIMS, FAILS, HOLDS, UNDECIDED, UNTESTED, verdicts
from tokenpool.report.stats import gap

ev = lesson("08")
FIRST, LAST = (list(ev.SHORT.values())[place] for place in (0, -1))


# ---- exercises ----

def test_verdict():
    def of(gaps, within, holds, fails):
        return HOLDS if holds else FAILS if fails else UNDECIDED

    def by_middle(gaps, within=None):
        middles = [(a + b) / 2 for a, b in gaps]
        return HOLDS if all(m > 0 for m in middles) else FAILS

    def any_is_enough(gaps, within=None):
        return HOLDS if any(a > 0 for a, _ in gaps) else FAILS if any(b < 0 for _, b in gaps) else UNDECIDED

    def nothing_undecided(gaps, within=None):
        return HOLDS if all(a > 0 for a, _ in gaps) else FAILS

    def same_if_zero_inside(gaps, within=None):
        if within is None:
            return ev.verdict.solution(gaps)
        return HOLDS if all(a < 0 < b for a, b in gaps) else FAILS

    def zero_outside_differs(gaps, within=None):
        if within is None or all(a < 0 < b for a, b in gaps):
            return ev.verdict.solution(gaps, within)
        return FAILS

    def one_sided(gaps, within=None):
        if within is None:
            return ev.verdict.solution(gaps)
        return HOLDS if all(-within < a and b < within for a, b in gaps) else \
            FAILS if any(a > within for a, _ in gaps) else UNDECIDED

    check_exercise("08", "a", wrong=[
        (by_middle, "Zero is among the likely values"),
        (any_is_enough, "not *every* budget"),
        (nothing_undecided, "Nor was it shown to be false"),
        (same_if_zero_inside, "is not \"they are the same\""),
        (zero_outside_differs, "smaller than the margin"),
        (one_sided, "two sides"),
        (lambda gaps, within=None: "yes", "Return HOLDS"),
        (lambda gaps, within=None: HOLDS, "Zero is among")])


def test_flaws():
    right = ev.flaws.solution()
    wrong = [(lambda name=name: right | {name}, phrase) for name, phrase in (
        ("different base models", "same public DeiT-S weights"), ("different images", "same 50,000"),
        ("unpaired intervals", "image by image"), ("many comparisons", "We make one claim"),
        ("too few images", "a fifth of a point"))]
    missed = [(lambda name=name: right - {name}, f"sentence {number}") for number, name in (
        (2, "unequal training"), (3, "clustering not counted"), (5, "chosen on the test images"), (7, "one seed"),
        (8, "different machines"))]
    check_exercise("08", "b", wrong=[*wrong, *missed, (lambda: {"one sed"}, "Did you mean 'one seed'"),
                                     (lambda: "one seed", "A set of names")])
    assert right == {has for _, has, _ in ev.REVIEW if has}
    assert set(ev.FLAWS) == right | {r for _, _, r in ev.REVIEW if r} | {"too few images"}
    assert len(ev.FLAWS) == 10
    assert ev.flaws.check(lambda: {...}).state == "open"


def test_next_experiment():
    def plan(noise, effect, **changes):
        return ev.next_experiment.solution(noise, effect) | changes

    def seeds(formula):
        return lambda noise, effect: plan(noise, effect, seeds=formula(noise, effect))

    check_exercise("08", "c", wrong=[
        (lambda n, e: plan(n, e, variable=["init", "recipe"]), "two possible causes"),
        (lambda n, e: plan(n, e, variable="method"), "The question is about the initialisation"),
        (lambda n, e: plan(n, e, variable="inits"), "Did you mean 'init'"),
        (lambda n, e: plan(n, e, levels=["random"]), "control"),
        (lambda n, e: plan(n, e, fixed=list(ev.FACTORS)), "cannot be fixed as well"),
        (lambda n, e: plan(n, e, fixed=["method", "saving", "recipe", "images"]), "base model"),
        (seeds(lambda n, e: 5), "would often be missed"),
        (seeds(lambda n, e: math.ceil((1.96 + 0.84) ** 2 * (n / e) ** 2)), "the 2 is missing"),
        (seeds(lambda n, e: math.floor(2 * (1.96 + 0.84) ** 2 * (n / e) ** 2)), "round up, not down"),
        (seeds(lambda n, e: 2 * (1.96 + 0.84) ** 2 * (n / e) ** 2), "whole numbers"),
        (seeds(lambda n, e: 1000), "computing time for nothing"),
        (lambda n, e: plan(n, e, stop=""), "Without a stop rule"),
        (lambda n, e: plan(n, e, stop="when the gap is significant"), "looks at the result"),
        (lambda n, e: {"variable": "init"}, "does not say"),
        (lambda n, e: ["init"], "A dictionary")])
    assert ev.next_experiment.check(lambda n, e: dict(variable=..., levels=[...], seeds=..., fixed=[...],
                                                      stop=...)).state == "open"


@pytest.mark.parametrize(("noise", "effect"), [(0.55, 1.0), (0.55, 0.5)])
def test_so_many_seeds_find_the_effect_in_four_of_five_experiments(noise, effect):
    n, draw = ev.seeds_needed(noise, effect), np.random.default_rng(0)
    sides = noise * draw.standard_normal((2, 20_000, n))
    found = (sides[0].mean(1) + effect - sides[1].mean(1)) / (noise * math.sqrt(2 / n)) > 1.96
    assert 0.79 < found.mean() < 0.88
    fewer = max(1, n // 2)
    less = (sides[0, :, :fewer].mean(1) + effect - sides[1, :, :fewer].mean(1)) / (noise * math.sqrt(2 / fewer)) > 1.96
    assert less.mean() < 0.7


# ---- intervals ----

def test_the_paired_interval_is_the_standard_error_of_the_differences():
    draw = np.random.default_rng(0)
    a, b = draw.random((2, 400)) < np.array([[0.7], [0.6]])
    counts = ev.four_counts(a, b)
    assert sum(counts.values()) == 400
    apart = a.astype(float) - b
    assert ev.paired_half(counts) == pytest.approx(1.96 * apart.std(ddof=0) / 20)
    wanted = 1.96 * math.sqrt(a.mean() * (1 - a.mean()) / 400 + b.mean() * (1 - b.mean()) / 400)
    assert ev.unpaired_half(counts) == pytest.approx(wanted)
    assert ev.paired_half({"both": 300, "only A": 0, "only B": 0, "neither": 100}) == 0


def test_the_formula_of_the_notebook_is_the_packages():
    table = ev.table_of(ev.PHOTOGRAPHS)
    a, b = table.setting("random", 0.3), table.setting("wk_medoids", 0.3)            # one run each
    counts = ev.four_counts(*(unpack(p["right"].item(), p["images"].item()) for p in (a, b)))
    runs = 1.96 * table.noise * math.sqrt(1 / len(a) + 1 / len(b))
    by_hand = math.hypot(ev.paired_half(counts), runs)
    assert gap(a, b, float(table.noise)).half == pytest.approx(by_hand, rel=2e-3)
    # the noise is an estimate from eleven repeats, so the package takes Student's t in place of 1.96
    found = gap(a, b, table.noise)
    assert table.noise.freedom == 11
    assert found.half == pytest.approx(by_hand * oracle.t(found.freedom).ppf(0.975) / 1.96, rel=2e-3)
    assert 1.96 < oracle.t(found.freedom).ppf(0.975) < 2.2


def test_interval_rows():
    found = ev.interval_rows()
    assert (found["paired"] < found["unpaired"]).all()
    assert (found["with run noise"] > 0).all()
    table = ev.table_of(ev.PHOTOGRAPHS)
    wanted = table.gaps(ev.PAPER, dict(method="top_k"))[0.42]
    row = found.set_index("comparison").loc["above top-K"]
    assert row["all runs"] == pytest.approx(100 * wanted.value, abs=0.01)
    assert row["with run noise"] == pytest.approx(100 * wanted.half, abs=0.01)
    medoids = found.set_index("comparison").loc["above K-Medoids"]                   # what the caption says of it
    assert medoids["one run"] + medoids["paired"] < 0 < medoids["all runs"] + medoids["with run noise"]


def test_false_alarms_against_closed_forms():
    assert ev.false_alarms(1)["alone"] == pytest.approx(0.025, abs=0.004)
    for n in (2, 8):
        assert ev.false_alarms(n)["alone"] == pytest.approx(1 - 0.975 ** n, abs=0.008)
        z = torch.linspace(-6, 6, 2001, dtype=torch.float64)                         # shared: integrate over ours
        normal = torch.distributions.Normal(0, 1)
        for name, level in (("shared", 1.96), ("widened", NormalDist().inv_cdf(1 - 0.025 / n))):
            none = normal.cdf(math.sqrt(2) * level + z) ** n
            wanted = 1 - torch.trapezoid(none * normal.log_prob(z).exp(), z).item()
            assert ev.false_alarms(n)[name] == pytest.approx(wanted, abs=0.008)


# ---- comparisons that flip ----

def test_flips_are_the_rows():
    rows, found = ev.recorded().rows, ev.flips()
    mine = rows[(rows["preset"] == "pebbles") & np.isclose(rows["saving"], 0.42) & ~rows["counts"]]
    ours = mine[(mine["method"] == "wk_medoids") & (mine["init"] == "top_k") & (mine["stage"] == "finetuned")]
    raw = mine[(mine["method"] == "grid_average") & (mine["stage"] == "untouched")]["top1"].item()
    assert found["unfair"].iloc[0] == pytest.approx(100 * (ours["top1"].item() - raw))
    for (a, b, preset), row in zip((("wk_medoids", "grid_average", ev.PEBBLES), ("k_means", "k_medoids", ev.PEBBLES),
                                    ("wk_medoids", "random", ev.PHOTOGRAPHS)), found.itertuples(), strict=True):
        wanted = ev.table_of(preset).gaps(dict(method=a), dict(method=b))[0.42]
        assert row.fair == pytest.approx(100 * wanted.value)
        assert row.half == pytest.approx(100 * wanted.half)


def test_above_counts_points_over_a_line():
    curves = pd.DataFrame([("k_means", 10, 5, 60), ("k_means", 20, 12, 80), ("k_medoids", 10, 9, 70),
                           ("k_medoids", 20, 19, 90)], columns=["method", "counted", "left_out", "top1"])
    assert ev.above(curves, "counted") == (0, 2)
    assert ev.above(curves, "left_out") == (1, 1)       # 12 costs: the line is at 76; 5 is outside the range
    real = ev.cost_curves()
    assert len(real) == 12
    assert (real["left_out"] < real["counted"]).all()


def test_choosing_among_equals_is_all_luck_and_among_one_is_none(monkeypatch):
    found = ev.selection(60)
    assert found["recorded"].iloc[0] == pytest.approx(0, abs=1e-9)
    assert found["equal"].iloc[0] == pytest.approx(0, abs=1e-9)
    assert found["equal"].iloc[-1] > found["equal"].iloc[1] > 0
    # one system far above the others wins on either half: nothing is lost
    draw = np.random.default_rng(0)
    bits = (draw.random((10, 1000)) < np.array([0.9, *[0.5] * 9])[:, None]).astype(np.float32)
    monkeypatch.setattr(ev, "right_bits", lambda saving=0.42: bits)
    ev.selection.cache_clear()
    clear = ev.selection(61)
    ev.selection.cache_clear()
    assert clear["recorded"].iloc[-1] == pytest.approx(0, abs=1e-6)


# ---- latency ----

def test_interleaved_counts_equal_macs_and_takes_every_round():
    from tokenpool.lab.kit.session import pebbles, shipped_vit
    found = ev.interleaved(shipped_vit(), pebbles(4)[0], rounds=2).set_index("system")
    assert found.loc["plain", "time"] == found.loc["plain", "macs"] == 100
    pooled = found.drop("plain")
    assert pooled["macs"].between(56, 59).all()
    assert (pooled["low"] <= pooled["time"]).all()
    assert (pooled["time"] <= pooled["high"]).all()
    assert len(ev.latency_figure(found.reset_index()).data) == 2


# ---- the ledger ----

def test_every_verdict_of_the_package_is_in_the_ledger_once():
    for name, said in ((ev.LEDGERS[0], verdicts(ev.recorded().rows, ev.PHOTOGRAPHS)),
                       (ev.LEDGERS[1], verdicts(ev.recorded().rows, ev.PEBBLES)),
                       (ev.LEDGERS[2], verdicts(ev.untouched_rows()))):
        assert [e.verdict for e in ev.ledger(name)] == said
        assert {e.kind for e in ev.ledger(name)} <= set(ev.KINDS)
    assert set(ev.TAUGHT) == set(ev.SHORT) == {claim.id for claim in CLAIMS}
    assert set(ev.TAUGHT.values()) <= set(LESSONS)


def test_the_ledger_shows_the_packages_numbers():
    entry = ev.ledger(ev.LEDGERS[0])[0]
    wanted = ev.table_of(ev.PHOTOGRAPHS).gaps(ev.PAPER, dict(method="random"))
    mine = {(e.label, e.saving): (e.value, e.half) for e in entry.effects}
    for saving, g in wanted.items():
        assert mine["WK-Medoids − random", saving] == (g.value, g.half)
    table = ev.look_up_table(ev.look_up(ev.LEDGERS[0], "any", entry.short))
    assert table["ours, points of top-1"][0].startswith(f"{entry.effects[0]} (WK-Medoids − PoWER-BERT, -30%); ")


@pytest.mark.parametrize(("status", "kind"), [(HOLDS, 0), (FAILS, 1), (UNDECIDED, 2), (UNTESTED, 3)])
def test_kinds(status, kind):
    assert ev.Entry(ev.Verdict(CLAIMS[0], status)).kind == ev.KINDS[kind]


def test_the_explorer_follows_every_control_to_its_corners():
    explorer = ev.explore()
    traces, spoken = len(explorer.figure.data), {state_words(explorer)}
    for values in ({"name": ev.LEDGERS[1]}, {"kind": ev.KINDS[1]}, {"claim": FIRST}, {"kind": "any"},
                   {"name": ev.LEDGERS[2]}, {"claim": LAST}, {"kind": ev.KINDS[0]}):
        explorer.set(**values)
        assert explorer.error is None, explorer.words
        assert len(explorer.figure.data) == traces
        spoken.add(state_words(explorer))
    assert len(spoken) == 8
    assert "hidden" in explorer.words
    for name, kind, claim in itertools.product(ev.LEDGERS, ("any", *ev.KINDS), (ev.ALL, FIRST)):
        page = ev.look_up(name, kind, claim)
        assert ev.look_up_words(page)
        assert len(ev.look_up_table(page)) == len(page.shown)
    fin = ev.look_up(ev.LEDGERS[0], "any", LAST)
    assert "not judged on this evidence" in ev.look_up_words(fin)


def test_the_forest_draws_every_comparison():
    for name in ev.LEDGERS:
        page = ev.look_up(name, "any", ev.ALL)
        drawn = sum(len(t.x) for t in ev.look_up_figure(page).data)
        assert drawn == sum(len(e.effects) for e in page.all)
    one = ev.look_up(ev.LEDGERS[0], "any", FIRST)
    fig = ev.look_up_figure(one)
    assert len(fig.layout.yaxis.ticktext) == len(one.shown[0].effects)
    words = ev.look_up_words(ev.look_up(ev.LEDGERS[0], "any", ev.ALL))
    assert "of 9 claims 1 holds, 3 do not hold, 5 undecided" in words


def test_other_figures():
    assert len(ev.flips_figure(ev.flips()).data) == 2
    assert len(ev.cost_figure(ev.cost_curves()).data) == 4
    assert len(ev.selection_figure(ev.selection(60)).data) == 2
    assert len(ev.interval_figure(ev.interval_rows()).data) == 3
    assert len(ev.alarms_figure((1, 8)).data) == 4


# ---- predictions ----

def test_predictions_follow_the_evidence():
    a, b, c = ev.PREDICTIONS
    times = {"top-K": 70.0, "WK-Medoids": 110.0, "WK-Means": 130.0}
    assert a.answer(times) == 0
    assert a.answer(times | {"WK-Medoids": 50.0}) == 1
    assert a.answer(times | {"WK-Means": 50.0}) == 2
    assert a.answer(dict.fromkeys(times, 60.0)) == 3
    assert [b.answer([HOLDS] * n + [FAILS] * (9 - n)) for n in (0, 1, 2, 3, 6, 7, 9)] == [0, 1, 1, 2, 2, 3, 3]
    assert "1 holds here" in b.reveal([HOLDS, *[UNDECIDED] * 8], None).words
    assert [c.answer(share) for share in (0.025, 0.126, 0.5)] == [0, 1, 2]


# ---- our own recommendation ----

@pytest.mark.parametrize(("rival", "fair"), [("ToMe", "macs"), ("ATC", "time"), ("K-Medoids, fitted K", "macs")])
def test_the_recommendation_is_checked_image_by_image(rival, fair):
    found = ev.check_recommendation(rival, fair)
    wider = NormalDist().inv_cdf(1 - 0.025 / len(found))
    for line in found.itertuples():
        preset = next(p for p, name in ev.NAMES.items() if name == line.images)
        ours, theirs = (next(e for e in ev.comparison_of(preset) if (e.label, e.fair, f"-{e.budget:.0%}")
                             == (name, fair, line.budget)) for name in ("tokenpool, fitted K", rival))
        d = unpack(ours.right, ours.images).astype(float) - unpack(theirs.right, theirs.images)
        assert line.gap == pytest.approx(100 * d.mean(), abs=1e-9)
        assert line.half == pytest.approx(100 * wider * d.std() / math.sqrt(len(d)), rel=1e-3, abs=1e-9)
        assert line.verdict == (HOLDS if line.gap > line.half else FAILS if line.gap < -line.half else UNDECIDED)
    said = ev.say_recommendation(found, rival, fair)
    for name, part in found.groupby("images"):
        above, below = (part["gap"] > part["half"]).sum(), (part["gap"] < -part["half"]).sum()
        assert f"{name}: above at {above}, below at {below}," in said
    figure = ev.recommendation_figure(found, rival)
    assert sum(len(t.x) for t in figure.data) == len(found)


def test_wrong_rivals_are_told():
    with pytest.raises(ValueError, match="Did you mean 'ToMe'"):
        ev.check_recommendation("Tome")
    with pytest.raises(ValueError, match="Unknown fair 'money'"):
        ev.check_recommendation("ToMe", "money")
