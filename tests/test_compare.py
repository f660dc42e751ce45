"""The comparison: equal in multiply-adds, equal by a clock that is known, told as the entries say."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from browsing import CHROMIUM, launch, watched
from scipy import stats as oracle
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.cli import main
from tokenpool.data.datasets import open_data, open_unlabelled
from tokenpool.data.weights import load_model
from tokenpool.measure import compare
from tokenpool.measure.bench import Stopwatch
from tokenpool.measure.compare import Entry, measure, read_off
from tokenpool.measure.rows import Results, pack, unpack, wilson
from tokenpool.models import published
from tokenpool.models.published import NAMED_METHODS, OURS, NamedMethod
from tokenpool.report import compare_page

TOP_K = NamedMethod("top-K (PoWER-BERT)", dict(method="top_k", position="before_mlp"))
MEANS = NamedMethod("WK-Means", dict(method="wk_means"))


class CountsWork(Stopwatch):
    """A clock that says how many multiply-adds a call did, by PyTorch's own counter."""

    def time(self, run, calls=1):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    model = load_model()
    images = open_data("pebbles", model, 60)
    few, where = open_unlabelled("pebbles", model)
    assert where == "other pebbles"
    results = Results(tmp_path_factory.mktemp("comparison") / "peers.csv", Entry)
    entries = measure(model, "pebbles_vit", images, few, results, (0.42, 0.6), (OURS, TOP_K, MEANS), rounds=1,
                      batch_size=4, watch=CountsWork())
    return model, images, few, results, entries


def at(entries, label, fair, budget):
    return next(e for e in entries if (e.label, e.fair, e.budget) == (label, fair, budget))


def test_equal_multiply_adds_are_equal(field):
    for e in field[4]:
        if e.fair == "macs":
            assert e.gmacs / e.gmacs_plain == pytest.approx(1 - e.budget, abs=0.012)
            assert e.saving == e.budget
            pooled = tp.PooledViT(field[0], list(map(int, e.schedule.split())), method=e.method, metric=e.metric,
                                  init=e.init or None, position=e.position, carry_counts=e.counts)
            assert tp.macs(pooled).total / 1e9 == pytest.approx(e.gmacs)


def test_equal_time_is_equal_by_a_clock_that_counts_work(field):
    """Where time is work, top-K gets the same schedule both ways. K-Means' compiled loops do less work than its
    multiply-adds say (they need no product but the first), so by the clock it may keep more tokens."""
    entries = field[4]
    for e in entries:
        if e.fair == "time":
            assert e.time == pytest.approx(1 - e.budget, rel=0.04)
    for budget in (0.42, 0.6):
        same, timed = (at(entries, TOP_K.label, fair, budget) for fair in compare.FAIR)
        assert timed.saving == pytest.approx(same.saving, abs=0.02)
        cheap, clocked = (at(entries, MEANS.label, fair, budget) for fair in compare.FAIR)
        assert clocked.saving < cheap.saving - 0.03
        assert sum(map(int, clocked.schedule.split())) > sum(map(int, cheap.schedule.split()))


def test_a_machine_that_became_slower_is_timed_again():
    """Curves say time = 1 - saving; from then on everything takes a fifth longer."""
    class Slower(compare._Comparison):
        def __init__(self):
            self._curves, self.calls = {}, 0

        def timed(self, wanted):
            self.calls += 1
            longer = 1.0 if self.calls == 1 else 1.2
            return {(m, s): compare.Ready(s, None, longer * (1 - s), 0, 0, 1) for m, s in wanted}

    machine = Slower()
    ready = machine.at_time([TOP_K, MEANS], 0.5)
    assert set(ready) == {TOP_K, MEANS}
    assert all(r.time == pytest.approx(0.5, rel=0.03) for r in ready.values())
    assert all(r.saving == pytest.approx(1 - 0.5 / 1.2, abs=0.02) for r in ready.values())
    assert machine.calls == 3                                       # the curves, a try that misses, one that does not


def test_entries_are_what_the_model_answers(field):
    model, images, _, _, entries = field
    e = at(entries, OURS.label, "macs", 0.6)
    pooled = tp.PooledViT(model, list(map(int, e.schedule.split())), **tp.OFF_THE_SHELF).eval()
    with torch.inference_mode():
        x, y = (torch.cat(t) for t in zip(*images, strict=True))
        right = (pooled(x).argmax(1) == y).numpy()
        one, two = (m.forward_features(x)[:, 0] for m in (pooled, model))
        plain = (model(x).argmax(1) == y).double().mean().item()
    assert np.array_equal(unpack(e.right, e.images), right)
    assert e.top1 == pytest.approx(right.mean())
    assert (e.top1_low, e.top1_high) == pytest.approx(wilson(int(right.sum()), 60))
    assert e.cosine == pytest.approx(torch.cosine_similarity(one, two).mean().item(), abs=1e-5)
    assert e.top1_plain == pytest.approx(plain)
    assert e.fitted_on == 32
    assert at(entries, TOP_K.label, "macs", 0.6).fitted_on == 0


def test_what_is_there_is_not_measured_again(field):
    model, images, few, results, entries = field

    class Broken(Stopwatch):
        def time(self, run, calls=1):
            raise AssertionError("timed again")

    again = measure(model, "pebbles_vit", images, few, Results(results.path, Entry), (0.42, 0.6),
                    (OURS, TOP_K, MEANS), rounds=1, batch_size=4, watch=Broken())
    assert again == entries


def test_who_cannot_meet_a_budget_has_no_entry(field, tmp_path):
    """The first block alone is a sixth of this net, and who pools behind it pays all of that."""
    model, images, few, _, _ = field
    found = measure(model, "pebbles_vit", images, few, Results(tmp_path / "p.csv", Entry), (0.3, 0.86),
                    (TOP_K, MEANS), rounds=1, batch_size=4, watch=CountsWork())
    for fair in compare.FAIR:
        assert {e.label for e in found if (e.fair, e.budget) == (fair, 0.86)} == {TOP_K.label}
    assert sorted(line[2] == "-" for line in compare_page.cells(found, "macs")) == [False, True]


def test_read_off():
    times = {0.2: 0.9, 0.4: 0.7, 0.6: 0.5}
    assert read_off(times, 0.8) == pytest.approx(0.3)
    assert read_off(times, 0.95) == pytest.approx(0.1)              # towards the plain model
    assert read_off(times, 0.45) is None
    assert read_off({0.2: 1.2, 0.4: 1.1, 0.6: 0.5}, 0.75) == pytest.approx(0.5)     # slower than plain: as if equal
    assert read_off({0.2: 0.8, 0.4: 0.85, 0.6: 0.5}, 0.8) == pytest.approx(0.2)     # noise: time must not rise


def test_who_takes_part():
    assert len({c.label for c in NAMED_METHODS}) == len(NAMED_METHODS)
    assert {c.options["method"] for c in NAMED_METHODS} >= {"ward", "tome", "pitome", "agglomerative", "dpc_knn",
                                                         "evit", "ats", "top_k_class", "top_k", "wk_medoids", "random"}
    names = [c.label for c in published.chosen(["ToMe", "evit"])]
    assert names == [OURS.label, "ToMe", "ToMe, fitted K", "ToMe on tokens", "ToMe on tokens, fitted K", "EViT"]
    assert published.chosen(["importance"])[-1].options == dict(method="importance")
    with pytest.raises(ValueError, match="Did you mean 'tome'"):
        published.chosen(["tom"])


# ---- what is told ----

def entry(field, name, fair, budget, right, fitted=False):
    right = np.array(right, bool)
    low, high = wilson(int(right.sum()), len(right))
    return replace(field[4][0], name=name, fitted=fitted, fair=fair, budget=budget, right=pack(right),
                   images=len(right), top1=float(right.mean()), top1_low=low, top1_high=high)


def test_gaps_are_paired(field):
    """Ten images more right of 100, none less: +10, and only the ten that differ count."""
    ours, other = (entry(field, n, "macs", 0.5, [True] * k + [False] * (100 - k)) for n, k in (("a", 60), ("b", 50)))
    found = compare_page.gap(ours, other)
    assert found.value == pytest.approx(0.1)
    assert found.half == pytest.approx(oracle.t(99).ppf(0.975) * np.sqrt(0.1 * 0.9 / 99))
    assert found.low > 0
    assert compare_page.gap(other, ours).high < 0
    assert compare_page.gap(ours, ours).half == 0
    mixed = entry(field, "c", "macs", 0.5, [False] * 8 + [True] * 50 + [False] * 42)
    assert compare_page.gap(ours, mixed).low > 0
    assert compare_page.gap(other, mixed).low < 0 < compare_page.gap(other, mixed).high


def test_the_table_and_the_sentences(field):
    best = [entry(field, "tokenpool", f, 0.5, [True] * 60 + [False] * 40, True) for f in compare.FAIR]
    tome = [entry(field, "ToMe", f, 0.5, [True] * n + [False] * (100 - n)) for f, n in (("macs", 40), ("time", 59))]
    ours_too = [entry(field, "ToMe on tokens", f, 0.5, [True] * 90 + [False] * 10) for f in compare.FAIR]
    entries = [*tome, *ours_too, *best]
    assert [line[0] for line in compare_page.cells(entries, "macs")] == [OURS.label, "ToMe on tokens", "ToMe"]
    assert [line[1].split()[0] for line in compare_page.cells(entries, "macs")] == ["60.0", "90.0", "40.0"]
    assert [line[1][-1] for line in compare_page.cells(entries, "macs")] == [" ", "↑", "↓"]
    by_cost, by_time = compare_page.told(entries)
    assert "-50%: +20.0 ± 8.0 over ToMe. Clearly above at 1 of 1 budgets" in by_cost
    assert "Clearly above at 0 of 1 budgets, not significantly different at 1" in by_time


# ---- as a person uses it ----

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("peers")
    words = ["reproduce", "--peers", "--images", "60", "--saving", "0.6", "--method", "top_k", "random",
             "--out", str(out)]
    assert main(words) == 0
    return words, out


def test_the_command(run, capsys):
    words, out = run
    before = (out / "peers.csv").read_bytes()
    assert main(words) == 0                                         # nothing is measured again
    assert (out / "peers.csv").read_bytes() == before
    said = capsys.readouterr().out
    assert "equal multiply-adds" in said
    assert "equal measured time" in said
    assert said.count("tokenpool, fitted K") >= 2
    assert "±" in said
    entries = Results(out / "peers.csv", Entry).rows
    for e in entries:
        assert 0 < e.time_low <= e.time <= e.time_high
        assert e.clock == "cpu"


def test_the_page_in_a_browser(run):
    from playwright.sync_api import sync_playwright
    if CHROMIUM is None:
        assert not os.environ.get("TOKENPOOL_REQUIRE_BROWSER"), "a browser is required here and none is installed"
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as play:
        browser = launch(play)
        page = watched(browser)
        page.goto((run[1] / "peers.html").as_uri())
        page.wait_for_selector("#comparison-top1 .main-svg")
        assert page.locator("table.numbers tr").count() == 3 + 2 * 3         # a head, two senses, three contenders
        assert "tokenpool, fitted K" in page.locator("#comparison-top1 .legend").first.text_content()
        assert page.errors == []
        assert [url for url in page.outside if not url.startswith("file:")] == []
        browser.close()


@pytest.mark.parametrize(("more", "says"), [
    (["--figure", "5a"], "Leave out --figure"), (["--method", "tomee"], "Did you mean 'tome'"),
    (["--saving", "1.2"], "--saving 1.2: use a share"),
    (["--saving", "0.99", "--images", "1", "--method", "random"], "No method can save 99%"),
    (["--model", "imagenet50_cpu/big"], "has no model 'big'"),
    (["--model", "deit_tiny_patch16_224"], "random weights")])
def test_mistakes_are_told_in_a_sentence(tmp_path, capsys, more, says):
    assert main(["reproduce", "--peers", *more, "--out", str(tmp_path / "x")]) == 2
    assert says in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path, capsys, run):
    shutil.copy(run[1] / "peers.html", tmp_path / "peers.csv")
    assert main(["reproduce", "--peers", "--out", str(tmp_path)]) == 2
    assert "peers.csv" in capsys.readouterr().err
