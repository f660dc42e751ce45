"""Rows on pages: files that merge, documents that cannot drift from the rows, and every page in a browser."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browsing import CHROMIUM, launch, watched
from rows_for_reports import frame, row

from tokenpool.cli import main
from tokenpool.measure import compare
from tokenpool.measure import rows as measured
from tokenpool.measure.compare import Entry
from tokenpool.measure.rows import Results, pack
from tokenpool.models.published import NAMED_METHODS
from tokenpool.report import accuracy_page, board, claims, compare_page
from tokenpool.report.pages import Listing, claim_views
from tokenpool.train.plan import FIGURES

ROOT = Path(__file__).resolve().parents[1]
def test_bits_survive_the_file():
    right = np.random.default_rng(0).random(2503) < 0.4
    assert np.array_equal(measured.unpack(pack(right), 2503), right)


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


# ---- what a page is made of ----

def test_a_view_of_a_claim_has_verdicts_a_forest_words_and_numbers():
    rows = frame(row(), row("dynamic_vit", 0.7), row(saving=0.6), row("dynamic_vit", 0.7, 0.6))
    views = {v.claim.id: v for v in claim_views({"photographs": claims.verdicts(rows, "imagenet50_cpu")})}
    view = views["dynamic_vit"]
    assert view.see == "2 of 2 differences clearly above 0, 0 clearly below. "
    assert view.numbers.head == ("difference in top-1, points", "budget", "photographs", "the paper")
    assert view.numbers.lines[0] == ("WK-Medoids − DynamicViT", "-42%", "+10.0 ± 1.9", "")
    assert views["grid"].figure is None
    assert "two budgets or more" in views["grid"].see


def test_a_listing_is_a_table_in_markdown():
    assert Listing("", ("a", "b"), [("1", "2 "), ("3", "4")]).markdown() == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


def test_words_of_a_page_are_escaped_and_percent_signs_stay_with_their_numbers(tmp_path):
    rows = frame(*(row(m, p, s, stage="untouched", preset="", model="<b>model</b>", data="</script>x")
                   for m, p, s in (("plain", 0.9, 0.0), ("top_k", 0.7, 0.42), ("random", 0.6, 0.42))))
    accuracy_page.write_page(tmp_path / "deep" / "page.html", rows, claims.verdicts(rows))
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "&lt;b&gt;model&lt;/b&gt;" in page
    assert "<b>model" not in page
    assert "right on 90.0\u00a0% of 1000 images" in page
    assert page.count("<script") == page.count("</script>")


# ---- in a browser ----

@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright
    if CHROMIUM is None:
        assert not os.environ.get("TOKENPOOL_REQUIRE_BROWSER"), "a browser is required here and none is installed"
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as play:
        browser = launch(play)
        yield browser
        browser.close()


def test_the_board_in_a_browser(tmp_path, chromium):
    page_file = tmp_path / "board.html"
    assert main(["report", str(ROOT / "data" / "runs"), "--page", str(page_file)]) == 0
    page = watched(chromium)
    page.goto(page_file.as_uri())
    for figure in ("1b", "3a", "3b", "4", "5a", "5b", "6", "7", "8", "9", "10", "11", "12"):
        assert page.locator(f"h2[id='fig{figure}']").count() == 1, figure
        assert page.locator(f"nav a[href='#fig{figure}']").count() == 1, figure
    chart = page.locator("[id='f5b-imagenet50_cpu']")
    for place in ("peers-0-top1", "peers-1-top1", "fpeers-pebbles"):
        assert "ToMe" in page.locator(f"[id='{place}'] .legend").first.text_content()
    assert page.locator("table.comparison", has_text="equal measured time").count() == 2
    assert chart.locator(".scatterlayer .trace").count() >= 8              # four clusterings, before and after
    assert "finetuned" in chart.text_content()
    assert "without finetuning" in chart.text_content()
    # a row and a forest plot per claim that rows can answer, the paper's effect beside ours
    finetuned = [c for c in claims.CLAIMS if claims.FINETUNED in c.stages]
    assert page.locator(".claim").count() == len(finetuned) == 9
    for claim in finetuned:
        assert page.locator(f"#forest-{claim.id} .scatterlayer .trace").count() >= 1
    assert "the paper" in page.locator("#forest-above_scores .legend").text_content()
    assert page.locator("#forest-above_scores .scatterlayer .trace").nth(2).locator(".point").count() >= 10
    # a run card on click
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
    page.keyboard.press("Escape")
    # narrow, and in the dark: nothing sticks out, figures take the page's colours
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_function("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ground = "getComputedStyle(document.querySelector('#forest-robust .main-svg')).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ground} === getComputedStyle(document.body).backgroundColor")
    assert page.evaluate(ground) == "rgb(22, 24, 27)"
    assert page.errors == []
    assert [url for url in page.outside if not url.startswith("file:")] == []
