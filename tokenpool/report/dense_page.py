"""The page of `tokenpool dense`: what pooled tokens still know about what lies where, in sentences, curves and masks."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import nn

from tokenpool.data.datasets import TEST_SEED
from tokenpool.data.pebbles import CLASSES, Pebbles
from tokenpool.measure.accuracy import Setting
from tokenpool.measure.dense import PROBES, TRUTHS, Data, build, confusion, dense, fit, mean_iou, to_pixels
from tokenpool.report.figures import LOOKS, PEER_LOOKS, Line, curves, percent, png
from tokenpool.report.pages import Listing, render
from tokenpool.report.stats import mean_interval, pooled_noise

_BY = ["method", "init", "counts", "saving", "probe"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over runs, a line per (method, init, counts, saving, probe); the interval widened by the noise of runs."""
    noise = pooled_noise(g["pixel_miou"] for _, g in rows.groupby(_BY))

    def one(group: pd.DataFrame) -> pd.Series:
        mean, low, high = mean_interval(group, noise if group["pixel_miou"].nunique() > 1 else 0.0, "pixel_miou", "pixel_low", "pixel_high")
        return pd.Series({
            "share": group["gmacs"].mean() / group["gmacs_plain"].iloc[0], "gmacs": group["gmacs"].mean(),
            "miou": mean, "low": low, "high": high, "patch": group["patch_miou"].mean(),
            "best": group["pixel_best"].mean(), "patch_best": group["patch_best"].mean(), "seeds": len(group)})
    return rows.groupby(_BY, sort=False)[list(rows.columns)].apply(one).reset_index()


def label(method: str, init: str, counts: bool) -> str:
    return method + (f", {init} init" if init else "") + (", carried counts" if counts else "")


def told(rows: pd.DataFrame) -> list[str]:
    """What the numbers say, in sentences, at the largest budget that all methods reached."""
    points = summary(rows)
    plain, pooled = points[points["method"] == "plain"], points[points["method"] != "plain"]
    said = []
    if len(plain):
        each = ", ".join(f"{n} {100 * float(v):.0f}" for n, v in zip(
            TRUTHS[rows["truth"].iloc[0]], rows[rows["method"] == "plain"]["ious"].iloc[0].split(), strict=True))
        said.append(f"The plain model: a mean IoU of {_percent(plain, 'miou')} % in pixels ({each}); one class per patch "
                    f"could reach {_percent(plain, 'best')} %. In patches: {_percent(plain, 'patch')} %.")
    for probe, words in PROBES.items() if len(pooled) else ():
        saving = pooled["saving"].max()
        here = pooled[(pooled["saving"] == saving) & (pooled["probe"] == probe)].sort_values("miou", ascending=False)
        best, worst = here.iloc[0], here.iloc[-1]
        named = {tuple(best[:3])}
        text = (f"With {saving:.0%} of the computations saved and the probe {words}: {label(*best[:3])} is best, "
                f"{100 * best.miou:.1f} % ({100 * best.low:.1f} to {100 * best.high:.1f})")
        for way, name in ((("wk_medoids", "top_k", False), "the paper's default"), (("grid_average", "", False), "grid_average"),
                          (("top_k", "", False), "top_k")):
            one = here[[tuple(line) == way for line in here[_BY[:3]].itertuples(index=False)]]
            if len(one) and way not in named:
                named.add(way)
                text += f"; {name} {_percent(one, 'miou')} %"
        if tuple(worst[:3]) not in named:
            text += f"; last is {label(*worst[:3])}, {100 * worst.miou:.1f} %"
        said.append(f"{text}.")
    return said


def _percent(points: pd.DataFrame, column: str) -> str:
    return f"{100 * points[column].iloc[0]:.1f}"


def shown(rows: pd.DataFrame) -> list[tuple[str, str, bool]]:
    """The curves of the figures: selections as they are; of each clustering the default and the best by its own probe."""
    points = summary(rows)
    points = points[(points["method"] != "plain") & (points["probe"] == "plain")]
    wanted = []
    for method in dict.fromkeys(points["method"]):
        means = points[points["method"] == method].groupby(["init", "counts"], sort=False)["miou"].mean()
        first = ("top_k", False) if ("top_k", False) in means.index else means.index[0]
        wanted += [(method, *pair) for pair in dict.fromkeys((first, means.idxmax()) if first[0] else (first,))]
    return wanted


def trade_off(rows: pd.DataFrame, probe: str, title: str) -> go.Figure:
    """Mean IoU in pixels against computations, a curve per way to pool."""
    points = summary(rows[rows["probe"] == probe])
    lines = []
    for method, init, counts in shown(rows):
        p = points[(points["method"] == method) & (points["init"] == init) & (points["counts"] == counts)].sort_values("share")
        colour, symbol, *_ = LOOKS.get(method) or PEER_LOOKS.get(method) or ("#000000", "circle")
        lines.append(_line(p, label(method, init, counts), (colour, symbol, "solid" if counts else "dot")))
    plain = points[points["method"] == "plain"]
    if len(plain):
        lines.append(_line(plain, "plain model", ("#000000", "star", "solid"), "markers"))
    figure = curves({title: lines}, "computations, % of the plain model (clustering included)", "mean IoU in pixels", title,
                    level=100 * plain["miou"].iloc[0] if len(plain) else None)
    if len(plain):
        figure.add_hline(y=100 * plain["best"].iloc[0], line=dict(color="#888888", width=1, dash="dash"),
                         annotation=dict(text="a perfect answer per patch", font_size=13), annotation_position="top left")
    return figure.update_xaxes(range=[25, 103]).update_yaxes(rangemode="tozero")


def _line(p: pd.DataFrame, name: str, look, mode: str = "lines+markers") -> Line:
    return Line(name, look, percent(p["share"]), percent(p["miou"]), percent(p["low"]), percent(p["high"]), [
        f"mean IoU {100 * r.miou:.1f} % in pixels, {100 * r.patch:.1f} % in patches<br>its groups allow {100 * r.best:.1f} %<br>"
        f"{r.share:.0%} of the computations<br>{r.seeds:.0f} run(s)" for r in p.itertuples()], mode=mode)


#: paint of a class: ground, large, small, and more for materials
_PAINT = np.array([[238, 238, 238], [0, 114, 178], [213, 94, 0], [0, 122, 94], [170, 68, 153], [86, 180, 233],
                   [240, 228, 66]], np.float64)


def painted(image: np.ndarray, answer: np.ndarray, scale_by: int = 3) -> np.ndarray:
    """An image in grey under the colours of its classes: (3, H, W) uint8, (H, W) -> (H', W', 3) uint8."""
    grey = image.mean(0)[..., None]
    mixed = np.rint(0.3 * grey + 0.7 * _PAINT[answer]).astype(np.uint8)
    return mixed.repeat(scale_by, 0).repeat(scale_by, 1)


@torch.no_grad()
def gallery(model: nn.Module, rows: pd.DataFrame, data: Data, count: int = 4) -> list[tuple[str, list[tuple[str, str]]]]:
    """Answers beside the truth for the first test scenes, each with a probe of its own: title, [(words, image)]."""
    saving = rows["saving"].max()
    ways = [Setting("plain", "", False, 0.0, 0)] + [Setting(*way, saving, 0) for way in shown(rows)]
    images, labels, _ = Pebbles(seed=TEST_SEED, size=data.test.x.shape[-1]).batch(range(count))
    truth = data.test.pixels[:count]
    cells = [[("the image", png(image.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1))),
              ("the truth", png(painted(image, mask.numpy())))] for image, mask in zip(images, truth, strict=True)]
    for way in ways:
        pooled = build(model.eval(), way)
        features, _ = dense(pooled, data.test.x[:count])
        answer = to_pixels(fit(pooled, data, way)(features), data.grid, (truth.shape[1], truth.shape[2]))
        right = mean_iou(confusion(truth, answer, len(TRUTHS[data.truth])))
        for cell, image, mask, value in zip(cells, images, answer, right, strict=True):
            cell.append((f"{100 * float(value):.0f}\u00a0% {label(way.method, way.init, way.counts)}",
                         png(painted(image, mask.numpy()))))
    return [(f"Scene {i + 1} (large pebble: {CLASSES[labels[i]][0]}, small pebble: {CLASSES[labels[i]][1]})", cell)
            for i, cell in enumerate(cells)]


def write_page(path: Path, rows: pd.DataFrame, model: nn.Module, data: Data) -> None:
    """Sentences, two figures, masks, all numbers."""
    charts: Sequence = (
        ("plain", trade_off(rows, "plain", "A probe that knows only the plain model"),
         "Does an existing decoder keep working? Solid: counts carried; dotted: not."),
        ("own", trade_off(rows, "own", "A probe fitted on the pooled features"),
         "Is the information still there? The difference from the figure above is what refitting gives back."))
    key = [(name, "rgb({:.0f},{:.0f},{:.0f})".format(*colour)) for name, colour in
           zip(TRUTHS[data.truth], _PAINT, strict=False)]
    render(path, "dense", "Dense use of pooled tokens", first=rows.iloc[0], classes=TRUTHS[data.truth],
           said=told(rows), charts=charts, key=key,
           saving=f"{rows['saving'].max():.0%}", gallery=gallery(model, rows, data), numbers=_table(rows))


def _table(rows: pd.DataFrame) -> Listing:
    return Listing("All numbers", ("Method", "Init", "Counts", "Saving", "MMACs", "Probe", "mIoU, pixels, %", "95 % interval",
                                   "Best", "mIoU, patches, %", "Best", "Runs"), [
        (r.method, r.init, "yes" if r.counts else "no", f"{r.saving:.0%}", f"{1e3 * r.gmacs:.1f}", r.probe,
         f"{100 * r.miou:.1f}", f"{100 * r.low:.1f} to {100 * r.high:.1f}", f"{100 * r.best:.1f}", f"{100 * r.patch:.1f}",
         f"{100 * r.patch_best:.1f}", f"{r.seeds:.0f}") for r in summary(rows).itertuples()])
