"""Figures show their rows: every point, interval and mark is compared with the numbers it stands for."""

import numpy as np
import pytest
from rows_for_reports import frame, row

from tokenpool.report import figures
from tokenpool.report.claims import CLAIMS, HOLDS, Verdict
from tokenpool.report.figures import BLACK, Line, curves, forest
from tokenpool.report.stats import Effect


def shelf(method, top1, saving, init=None, counts=False):
    return row(method, top1, saving, stage="untouched", init=init, counts=counts)


def test_a_trade_off_shows_the_rows():
    rows = frame(shelf("plain", 0.99, 0.0), shelf("random", 0.4, 0.2),
                 *(shelf("top_k", 0.5, s) for s in (0.6, 0.2, 0.42)))
    figure = figures.trade_off(rows, {"top-K": ("top_k", "", False, BLACK), "none": ("ward", "", False, BLACK)}, "t")
    drawn = {t.name: t for t in figure.data}
    assert list(drawn) == ["top-K", "plain model"]
    assert list(drawn["top-K"].x) == [40.0, 58.0, 80.0]
    assert list(drawn["top-K"].y) == [50.0, 50.0, 50.0]
    assert list(drawn["top-K"].error_y.array) == pytest.approx([2, 2, 2])
    assert "top-1 50.0 % (48.0 to 52.0)" in drawn["top-K"].text[0]
    assert figure.layout.shapes[0].y0 == pytest.approx(99)


def test_panels_share_a_legend_and_intervals_may_be_lopsided():
    lines = [Line("a", BLACK, [1, 2], [10, 20], [9, 18], [13, 21], ["x", "y"], ["run"]),
             Line("b", BLACK, [1], [5], hidden=True)]
    figure = curves({"left": lines, "right": lines}, "across", "up", level=15)
    assert [t.showlegend for t in figure.data] == [True, True, False, False]
    assert [t.visible for t in figure.data][:2] == [True, "legendonly"]
    assert list(figure.data[0].error_y.array) == [3, 1]
    assert list(figure.data[0].error_y.arrayminus) == [1, 2]
    assert figure.data[2].xaxis == "x2"
    assert figure.layout.xaxis2.matches == "x"
    assert [a.text for a in figure.layout.annotations] == ["left", "right"]
    apart = curves({"left": lines, "right": lines}, ("one", "two"), "up")
    assert apart.layout.xaxis2.title.text == "two"
    assert apart.layout.xaxis2.matches is None


def test_the_legend_gets_the_room_it_needs():
    few, many = (curves({"": [Line("a long name of a method " + str(i), BLACK, [1], [1]) for i in range(n)]}, "x", "y")
                 for n in (2, 12))
    assert many.layout.height - few.layout.height == many.layout.margin.b - few.layout.margin.b >= 80


def test_the_forest_has_a_line_per_comparison_and_budget():
    """Two data sets that share one budget; the mean comes last; the paper's mark where it is known."""
    one = Verdict(CLAIMS[0], HOLDS, (Effect(0.02, 0.005, label="A − B", saving=0.6, paper=0.013),
                                     Effect(0.01, 0.005, label="A − B", saving=0.3, paper=0.001),
                                     Effect(0.015, 0.004, label="A − B")),
                  (Effect(-0.03, 0.01, label="C − B", saving=0.3),))
    two = Verdict(CLAIMS[0], HOLDS, (Effect(0.05, 0.01, label="A − B", saving=0.6, paper=0.013),))
    figure = forest({"photographs": one, "nothing": Verdict(CLAIMS[0], HOLDS), "pebbles": two}, 0.01)
    first, second, paper = figure.data
    assert figure.layout.yaxis.ticktext == ("A − B  <b>-30%</b>", "<b>-60%</b>", "<b>mean</b>", "C − B  <b>-30%</b>")
    place = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert list(first.x) == [2.0, 1.0, 1.5, -3.0]
    assert list(first.error_x.array) == pytest.approx([0.98, 0.98, 0.78, 1.96], abs=0.01)
    assert first.y[0] - second.y[0] == pytest.approx(0.26)                # side by side on the line they share
    assert np.mean([first.y[0], second.y[0]]) == pytest.approx(place["<b>-60%</b>"])
    assert first.y[3] == pytest.approx(place["C − B  <b>-30%</b>"], abs=0.2)
    assert dict(zip(paper.y, paper.x, strict=True)) == {place["<b>-60%</b>"]: 1.3, place["A − B  <b>-30%</b>"]: 0.1}
    assert second.marker.color == figures._DATA_LOOKS[2][0]        # a data set keeps its colour everywhere
    assert any(s.type == "rect" and (s.x0, s.x1) == (-1, 1) for s in figure.layout.shapes)
    assert forest({"photographs": Verdict(CLAIMS[0], HOLDS)}) is None


def test_the_best_clustering_has_the_highest_mean():
    rows = frame(*(shelf("wk_medoids", p, s, init) for init, both in (("top_k", (0.9, 0.1)), ("random", (0.6, 0.6)))
                   for p, s in zip(both, (0.2, 0.6), strict=True)),
                 shelf("top_k", 0.99, 0.2), shelf("k_means", 0.7, 0.2))
    assert figures.best_clustering(rows) == ("k_means", "top_k", False)
    assert figures.best_clustering(rows, "wk_medoids") == ("wk_medoids", "random", False)
    assert figures.best_clustering(frame(shelf("top_k", 0.9, 0.2))) is None


def test_cluster_images_by_hand():
    image = np.zeros((3, 4, 4), np.uint8)
    image[0, :, 2:] = 200
    joined = figures.cluster_image(image, np.array([0, 0, 1, 1]), (2, 2), scale=1)
    assert joined[0, 3].tolist() == [100, 0, 0]                  # upper half: mean of black and red
    assert joined[2, 0].tolist() == [20, 20, 20]                 # the outline between the halves
    kept = figures.cluster_image(image, np.arange(4), (2, 2), np.array([False, True, False, False]), scale=1)
    assert kept[1, 3].tolist() == [200, 0, 0]
    assert kept[3, 3].tolist() == [244, 244, 244]
