"""Claims judged by rows, the board in a browser, and documents that cannot drift from the rows."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenpool.cli import main
from tokenpool.measure import compare
from tokenpool.measure import rows as measured
from tokenpool.measure.compare import Entry
from tokenpool.measure.rows import Results, Row, pack
from tokenpool.models.published import NAMED_METHODS
from tokenpool.report import board, claims, compare_page, verdicts
from tokenpool.train.plan import FIGURES

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 1000


def row(method="wk_medoids", top1=0.8, saving=0.42, seed=0, stage="finetuned", init=None, shuffle=0, **more):
    """A row whose first `top1` share of images is right, or another set of the same size."""
    init = ("top_k" if "_me" in method else "") if init is None else init
    right = np.arange(IMAGES) < round(top1 * IMAGES)
    if shuffle:
        right = np.random.default_rng(shuffle).permutation(right)
    given = dict(
        key=f"{method}{saving}{seed}{stage}{init}{shuffle}", method=method, init=init, output="", counts=False,
        saving=saving, seed=seed, schedule="", gmacs=0.02 * (1 - saving), gmacs_without_clustering=0.02 * (1 - saving),
        gmacs_plain=0.02, top1=top1, top1_low=top1 - 0.02, top1_high=top1 + 0.02, images=IMAGES,
        reconstruction_error=0.1, images_per_second=100.0, batch_size=100, model="imagenet50_cpu/ti", weights="x",
        data="tiny-imagenet-50", device="CPU", threads=1, tokenpool="0", torch="2", timm="1", python="3", commit="c",
        date="2026-01-01T00:00:00+00:00", stage=stage, preset="imagenet50_cpu",
        run=f"finetune-ti-{method}-{init}-{saving}-{seed}", train_seed=seed, epochs=1.0, right=pack(right))
    return Row(**(given | more))


def frame(*rows):
    return measured.frame(list(rows))


def test_bits_survive_the_file():
    right = np.random.default_rng(0).random(2503) < 0.4
    assert np.array_equal(measured.unpack(pack(right), 2503), right)


def test_the_gap_is_mcnemars():
    """One run each: 30 images only A gets right, 10 only B: difference 2 points, by hand."""
    a, b = np.zeros(IMAGES, bool), np.zeros(IMAGES, bool)
    a[:530], b[:500], b[530:540] = True, True, True
    g = claims.gap(frame(row(right=pack(a))), frame(row(right=pack(b))), noise=0.0)
    assert g.value == pytest.approx(0.02)
    by_hand = np.sqrt((30 + 10) / IMAGES - 0.02**2) / np.sqrt(IMAGES)
    assert g.half == pytest.approx(1.96 * by_hand, rel=1e-3)
    wider = claims.gap(frame(row(right=pack(a))), frame(row(right=pack(b))), noise=0.01)
    assert wider.half == pytest.approx(1.96 * np.hypot(by_hand, 0.01 * np.sqrt(2)), rel=1e-3)


def test_the_mean_over_budgets_is_sharper_than_one_and_among_many_a_gap_must_be_wider():
    pairs = [(frame(row(saving=s, shuffle=i)), frame(row("top_k", 0.78, s, shuffle=i + 10)))
             for i, s in enumerate((0.3, 0.42, 0.6, 0.75), 1)]
    whole, parts = claims.mean_gap(pairs, 0.01), [claims.gap(a, b, 0.01) for a, b in pairs]
    assert whole.value == pytest.approx(np.mean([g.value for g in parts]))
    assert whole.half == pytest.approx(np.sqrt(np.mean([g.half**2 for g in parts]) / 4), rel=0.06)   # independent ones
    just_below = claims.Gap(-0.02, 0.018, 1)
    assert just_below.clearly_below()
    assert not just_below.clearly_below(among=8)                    # 0.018 x 2.734 / 1.96 = 0.025
    assert claims.Gap(-0.02, 0.014, 1).clearly_below(among=8)       # 0.0195
    assert not claims.Gap(-0.02, 0.0145, 1).clearly_below(among=8)
    with pytest.raises(ValueError, match="different images"):
        claims.gap(frame(row()), frame(row(data="others")), 0.0)


def test_run_noise_is_the_pooled_deviation():
    rows = frame(row(top1=0.50, seed=0), row(top1=0.52, seed=1), row(saving=0.6, top1=0.3, seed=0),
                 row(saving=0.6, top1=0.3, seed=1), row(saving=0.7, top1=0.1))
    assert claims.run_noise(rows) == pytest.approx(np.sqrt((2 * 0.01**2) / 2))
    assert claims.run_noise(frame(row())) == 0


def said(rows, words):
    return next(v for v in claims.claims(rows, "imagenet50_cpu") if words in v.claim)


@pytest.mark.parametrize(("others", "verdict"), [
    (0.70, verdicts.HOLDS), (0.90, verdicts.FAILS), (0.798, claims.UNDECIDED)])
def test_above_every_rival_at_every_budget(others, verdict):
    rows = frame(*(row(saving=s) for s in (0.42, 0.6)),
                 *(row(m, others, s, shuffle=i + 1) for i, m in enumerate(("top_k", "importance", "random"))
                   for s in (0.42, 0.6)))
    assert said(rows, "PoWER-BERT, importance and random").verdict == verdict
    one_bad = frame(*(row(saving=s) for s in (0.42, 0.6)), *(row(m, 0.7, s) for m in ("importance", "random", "top_k")
                                                            for s in (0.42,)),
                    *(row(m, 0.95 if m == "random" else 0.7, 0.6) for m in ("importance", "random", "top_k")))
    assert said(one_bad, "PoWER-BERT, importance and random").verdict == verdicts.FAILS


@pytest.mark.parametrize(("ours", "verdict"), [
    (0.80, verdicts.HOLDS), (0.85, verdicts.HOLDS), (0.74, verdicts.FAILS), (0.785, claims.UNDECIDED)])
def test_the_same_with_less(ours, verdict):
    rows = frame(row("plain", 0.80, 0.0), row(top1=ours, shuffle=3 if ours == 0.785 else 0))
    assert said(rows, "42 % fewer").verdict == verdict


@pytest.mark.parametrize(("random", "verdict"), [
    (0.80, verdicts.HOLDS), (0.86, verdicts.FAILS), (0.74, verdicts.FAILS), (0.795, claims.UNDECIDED)])
def test_robust_to_the_start(random, verdict):
    rows = frame(row(), row(top1=random, init="random", shuffle=4 if random == 0.795 else 0))
    assert said(rows, "robust to the start").verdict == verdict


def test_wider_at_the_narrow_ones_cost():
    wide = dict(model="imagenet50_cpu/e252", gmacs_plain=0.034)
    rows = frame(row("plain", 0.80, 0.0), row(top1=0.86, saving=0.42, gmacs=0.0197, **wide),
                 row(top1=0.99, saving=0.3, gmacs=0.0238, **wide))                    # dearer: may not count
    verdict = said(rows, "wider net")
    assert verdict.verdict == verdicts.HOLDS
    assert "+6.0" in verdict.evidence
    assert said(frame(row("plain", 0.80, 0.0)), "wider net").verdict == verdicts.UNTESTED


def test_normalised_and_weighted_and_convolution():
    r1 = dict(qk="r1-learned")
    same = frame(row("plain", 0.8, 0.0), row(), row("plain", 0.8, 0.0, **r1), row(**r1))
    other = frame(row("plain", 0.8, 0.0), row(), row("plain", 0.7, 0.0, **r1), row(top1=0.7, **r1))
    assert said(same, "normalised keys").verdict == verdicts.HOLDS
    assert said(other, "normalised keys").verdict == verdicts.FAILS
    assert said(frame(row(), row("k_medoids", 0.7), row("wk_means", 0.8), row("k_means", 0.7)),
                "weighted clustering").verdict == verdicts.HOLDS
    pair = [row(saving=s) for s in (0.3, 0.7)]
    assert said(frame(*pair, row("convolution", 0.7, 0.3), row("convolution", 0.8, 0.7)),
                "convolution").verdict == verdicts.HOLDS
    assert said(frame(*pair, row("convolution", 0.9, 0.3), row("convolution", 0.9, 0.7)),
                "convolution").verdict == verdicts.FAILS


def test_nothing_measured_is_said_to_be_untested():
    assert {v.verdict for v in claims.claims(frame(row("plain", 0.8, 0.0)), "imagenet50_cpu")} == {verdicts.UNTESTED}


# ---- files ----

def save(folder, *rows):
    for r in rows:
        store = Results(folder / r.preset / r.run / "rows.csv")
        store.add(r)
        (store.path.parent / "card.json").write_text(json.dumps(
            {"run": r.run, "identity": {"job": {"preset": r.preset}, "recipe": {"epochs": 1}}, "seconds": 3}))


def test_rows_merge_without_conflict_and_come_back_the_same(tmp_path):
    a, b = row(), row("top_k", 0.7)
    save(tmp_path / "one", a)
    save(tmp_path / "two", b, replace(a, top1=0.9, date="2026-02-01T00:00:00+00:00"))
    evidence = board.read([tmp_path / "one", tmp_path / "two"])
    assert sorted(evidence.rows["top1"]) == [0.7, 0.9]                      # met twice: the newer one
    files = board.collect(evidence, tmp_path / "shipped")
    assert [f.name for f in files] == ["imagenet50_cpu-runs.csv"]
    again = board.read([tmp_path / "shipped"])
    columns = ["run", "stage", "top1", "right", "gmacs", "counts", "epochs"]
    assert again.rows[columns].sort_values("run").values.tolist() == \
        evidence.rows[columns].sort_values("run").values.tolist()
    assert set(again.cards) == set(evidence.cards)


def test_what_ships_is_what_the_documents_say():
    """docs/reproduction.md is written from the rows; after a change of either, write it again."""
    done = subprocess.run([sys.executable, "tools/write_reproduction.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "reproduction.md").read_text()


def test_the_recommendation_quotes_the_recorded_contests():
    text = (ROOT / "docs" / "choices.md").read_text()
    for entries in board.read([ROOT / "data" / "runs"]).comparisons:
        for sentence in compare_page.told(entries):
            assert f"- {sentence}\n" in text


def test_shipped_evidence_has_cards_and_no_paths_of_a_machine():
    evidence = board.read([ROOT / "data" / "runs"])
    assert "imagenet50_cpu" in evidence.presets
    assert "pebbles" in evidence.presets
    for r in evidence.rows.itertuples():
        assert (r.preset, r.run) in evidence.cards, r.run
        assert measured.unpack(r.right, r.images).mean() == pytest.approx(r.top1)
    comparisons = measured.frame([e for entries in evidence.comparisons for e in entries], Entry)
    text = json.dumps(list(evidence.cards.values())) + evidence.rows.drop(columns="right").to_csv() \
        + comparisons.drop(columns="right").to_csv()
    assert not re.search(r"""["', ]/\w+/""", text)                       # an absolute path
    assert "dirty" not in text


def test_shipped_contests_are_complete_and_come_back_the_same(tmp_path):
    """Two sets of images, photographs first; every contender, both senses, as the command would measure them."""
    evidence = board.read([ROOT / "data" / "runs"])
    assert [(entries[0].model, entries[0].images) for entries in evidence.comparisons] == [("imagenet50_cpu/ti", 2500),
                                                                                        ("pebbles_vit", 600)]
    for entries in evidence.comparisons:
        place = compare_page.by_place(entries)
        assert len(place) == len(entries)
        assert len({(e.weights, e.device, e.batch_size, e.top1_plain) for e in entries}) == 1
        for c in NAMED_METHODS:
            for fair in compare.FAIR:
                assert (c.label, fair, 0.42) in place
        for e in entries:
            assert measured.unpack(e.right, e.images).mean() == pytest.approx(e.top1)
            cost = e.gmacs / e.gmacs_plain if e.fair == "macs" else e.time
            assert cost == pytest.approx(1 - e.budget, rel=0.03 if e.fair == "macs" else 0.12)
    board.collect(evidence, tmp_path)
    assert board.read([tmp_path]).comparisons == evidence.comparisons
    first = evidence.comparisons[0][0]
    store = Results(tmp_path / "later-peers.csv", Entry)
    store.add(replace(first, top1=0.5, date="2099-01-01T00:00:00+00:00"))
    assert board.read([tmp_path]).comparisons[0][0].top1 == 0.5                 # met twice: the newer one
    store.add(replace(first, key="other", device="another machine"))
    board.collect(board.read([tmp_path]), tmp_path / "both")
    assert {e[0].device for e in board.read([tmp_path / "both"]).comparisons} == {first.device, "another machine"}


def test_every_figure_has_a_panel():
    shown = {p.figure for p in board.PANELS} | {"7"}
    assert {"1b", "3a", "3b", "4", "5a", "5b", "6", "7", "8", "9", "10", "11", "12"} <= shown
    assert set(FIGURES) - {"counts"} <= shown


# ---- in a browser ----

def test_the_board_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    page_file = tmp_path / "board.html"
    assert main(["report", str(ROOT / "data" / "runs"), "--out", str(page_file)]) == 0
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("TOKENPOOL_REQUIRE_BROWSER"):
            pytest.fail("chromium is missing")
        pytest.skip("no chromium here")
    problems, requests = [], []
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu",
                                                                   "--disable-background-networking"])
        page = chrome.new_page(viewport={"width": 1100, "height": 900})
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: requests.append(r.url))
        page.goto(page_file.as_uri())
        for figure in ("1b", "3a", "3b", "4", "5a", "5b", "6", "7", "8", "9", "10", "11", "12"):
            assert page.locator(f"[id='fig{figure}']").count() == 1, figure
        chart = page.locator("[id='f5b-imagenet50_cpu']")
        for place in ("peers-0-top1", "peers-1-top1", "fpeers-pebbles"):
            assert "ToMe" in page.locator(f"[id='{place}'] .legend").first.text_content()
        assert page.locator("table.numbers", has_text="equal measured time").count() == 2
        assert chart.locator(".scatterlayer .trace").count() >= 8              # four clusterings, before and after
        assert "finetuned" in chart.text_content()
        assert "without finetuning" in chart.text_content()
        assert page.locator("ul.verdicts li").count() >= 7
        chart.scroll_into_view_if_needed()
        assert page.locator("#card").is_hidden()
        point = chart.locator(".scatterlayer .trace").last.locator(".points path").first.bounding_box()
        page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        page.locator("#card").wait_for(state="visible", timeout=5000)
        card = page.locator("#cardtext").text_content()
        assert '"command": "tokenpool finetune' in card
        assert '"commit"' in card
        page.keyboard.press("Escape")
        assert page.locator("#card").is_hidden()
        page.get_by_text("Show the table").click()
        page.locator("button[data-run]").first.click()
        assert '"seconds"' in page.locator("#cardtext").text_content()
        assert page.locator("table.claims tr").count() == 10
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        assert not problems
        assert not [u for u in requests if not u.startswith(("file:", "data:"))]
        chrome.close()
