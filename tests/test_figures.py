"""Verdicts and figures without finetuning, from rows made by hand."""

import numpy as np
import pytest

from tokenpool.measure.rows import Row, frame
from tokenpool.report import figures, verdicts


def row(**changes):
    base = dict(key="k", method="plain", init="", output="", counts=False, saving=0.0, seed=0, schedule="",
                gmacs=1.0, gmacs_without_clustering=1.0, gmacs_plain=1.0, top1=0.9, top1_low=0.88, top1_high=0.92,
                images=1000, reconstruction_error=0.0, images_per_second=10.0, batch_size=100, model="m",
                weights="w", data="d", device="c", threads=2, tokenpool="0", torch="2", timm="1", python="3",
                commit="c", date="today")
    return Row(**(base | changes))


def table(gap, start_gap=0.0):
    rows = [row(key="p", top1=0.99, top1_low=0.98, top1_high=1.0)]
    for saving in (0.2, 0.42, 0.6):
        for counts in (False, True):
            for method, init, top1 in (("wk_medoids", "top_k", 0.7), ("wk_medoids", "random", 0.7 + start_gap),
                                        ("wk_medoids", "farthest_first", 0.7 + start_gap), ("top_k", "", 0.7 - gap)):
                rows.append(row(key=f"{method}{init}{saving}{counts}", method=method, init=init, counts=counts,
                                saving=saving, gmacs=1 - saving, top1=top1, top1_low=top1 - 0.02,
                                top1_high=top1 + 0.02))
    return frame(rows)


@pytest.mark.parametrize(("gap", "verdict"), [(0.2, verdicts.HOLDS), (-0.2, verdicts.FAILS), (0.01, verdicts.MIXED)])
def test_an_order_needs_more_than_noise(gap, verdict):
    said = {v.claim: v.verdict for v in verdicts.verdicts(table(gap))}
    assert next(v for c, v in said.items() if "PoWER-BERT's top-K at every" in c) == verdict


@pytest.mark.parametrize(("gap", "verdict"), [(0.01, verdicts.HOLDS), (0.2, verdicts.FAILS)])
def test_robustness_is_a_difference_of_starts(gap, verdict):
    said = {v.claim: v.verdict for v in verdicts.verdicts(table(0.1, gap))}
    assert next(v for c, v in said.items() if "Fig. 6" in c) == verdict


def test_what_was_not_measured_is_said_to_be_untested():
    said = verdicts.verdicts(frame([row()]))
    assert sum(v.verdict == verdicts.UNTESTED for v in said) == len(said) - 1          # the counted one holds
    assert next(v for v in said if v.verdict == verdicts.HOLDS).claim.startswith("over 80 %")


def test_curves_show_the_rows():
    figure = figures.trade_off(table(0.2), ("top_k", "wk_medoids"), False, None, "t")
    curves = {t.name: t for t in figure.data}
    assert list(curves["top_k"].y) == [50.0, 50.0, 50.0]
    assert list(curves["top_k"].x) == [40.0, 58.0, 80.0]
    best = table(0.0, start_gap=0.1)
    assert figures.best_clustering(best)[1] in ("random", "farthest_first")


def test_cluster_images_by_hand():
    image = np.zeros((3, 4, 4), np.uint8)
    image[0, :, 2:] = 200
    joined = figures.cluster_image(image, np.array([0, 0, 1, 1]), (2, 2), scale=1)
    assert joined[0, 3].tolist() == [100, 0, 0]                  # upper half: mean of black and red
    assert joined[2, 0].tolist() == [20, 20, 20]                 # the outline between the halves
    kept = figures.cluster_image(image, np.arange(4), (2, 2), np.array([False, True, False, False]), scale=1)
    assert kept[1, 3].tolist() == [200, 0, 0]
    assert kept[3, 3].tolist() == [244, 244, 244]
