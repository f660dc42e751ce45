"""The page of `tokenpool dense`: what pooled tokens still know about what lies where, in sentences, curves and masks."""

# ruff: noqa: E501  (sentences and the style sheet of the page)

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.offline import get_plotlyjs
from torch import nn

from tokenpool.data.datasets import TEST_SEED
from tokenpool.data.files import replace_file
from tokenpool.data.pebbles import CLASSES, Pebbles
from tokenpool.measure.accuracy import Setting
from tokenpool.measure.dense import PROBES, TRUTHS, Data, build, confusion, dense, fit, mean_iou, to_pixels
from tokenpool.report import figures
from tokenpool.report.accuracy_page import PAGE, plot


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a line per (method, start, counts, saving, probe); the interval widened by the seeds' spread."""
    def one(group: pd.DataFrame) -> pd.Series:
        spread = 1.96 * group["pixel_miou"].std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else 0.0
        mean = group["pixel_miou"].mean()
        return pd.Series({
            "share": group["gmacs"].mean() / group["gmacs_plain"].iloc[0], "gmacs": group["gmacs"].mean(),
            "miou": mean, "low": mean - np.hypot(spread, mean - group["pixel_low"].mean()),
            "high": mean + np.hypot(spread, group["pixel_high"].mean() - mean), "patch": group["patch_miou"].mean(),
            "best": group["pixel_best"].mean(), "patch_best": group["patch_best"].mean(), "seeds": len(group)})

    by = ["method", "init", "counts", "saving", "probe"]
    return rows.groupby(by, sort=False)[list(rows.columns)].apply(one).reset_index()


def label(method: str, init: str, counts: bool) -> str:
    return method + (f", {init} start" if init else "") + (", carried counts" if counts else "")


def told(rows: pd.DataFrame) -> list[str]:
    """What the numbers say, in sentences, at the largest budget that all methods reached."""
    points = summary(rows)
    plain, pooled = points[points["method"] == "plain"], points[points["method"] != "plain"]
    classes = TRUTHS[rows["truth"].iloc[0]]
    said = []
    if len(plain):
        each = ", ".join(f"{n} {100 * float(v):.0f}" for n, v in
                         zip(classes, rows[rows["method"] == "plain"]["ious"].iloc[0].split(), strict=True))
        said.append(f"The plain model: a mean IoU of {_percent(plain, 'miou')} % in pixels ({each}); one class per patch "
                    f"could reach {_percent(plain, 'best')} %. In patches: {_percent(plain, 'patch')} %.")
    if not len(pooled):
        return said
    saving = pooled["saving"].max()
    for probe, words in PROBES.items():
        here = pooled[(pooled["saving"] == saving) & (pooled["probe"] == probe)].sort_values("miou", ascending=False)
        best, worst = here.iloc[0], here.iloc[-1]
        named = {tuple(best[:3])}
        text = (f"With {saving:.0%} of the computations saved and the probe {words}: {label(*best[:3])} is best, "
                f"{100 * best.miou:.1f} % ({100 * best.low:.1f} to {100 * best.high:.1f})")
        for method, init, counts, name in (("wk_medoids", "top_k", False, "the paper's default"),
                                            ("grid_average", "", False, ""), ("top_k", "", False, "")):
            one = here[(here["method"] == method) & (here["init"] == init) & (here["counts"] == counts)]
            if len(one) and (method, init, counts) not in named:
                named.add((method, init, counts))
                text += f"; {name or method} {_percent(one, 'miou')} %"
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
    figure = go.Figure(layout=dict(
        template=figures.TEMPLATE, title=dict(text=title, x=0.01, font_size=16), height=560, hovermode="closest",
        legend=dict(orientation="h", y=-0.2, yanchor="top", x=0, font_size=13), margin=dict(l=80, r=16, t=56, b=190),
        xaxis=dict(title=dict(text="computations, % of the plain model (clustering included)", standoff=10,
                              font_size=14), range=[25, 103], ticksuffix=" %"),
        yaxis=dict(title=dict(text="mean IoU in pixels", standoff=12, font_size=14), ticksuffix=" %",
                   rangemode="tozero")))
    plain = points[points["method"] == "plain"]
    if len(plain):
        for y, dash, words in ((plain["miou"].iloc[0], "dot", ""), (plain["best"].iloc[0], "dash",
                                                                    "a perfect answer per patch")):
            figure.add_hline(y=100 * y, line=dict(color="#888", width=1, dash=dash), annotation_text=words,
                             annotation_position="top left", annotation_font_size=13)
        figure.add_trace(go.Scatter(
            x=[100], y=[round(100 * plain["miou"].iloc[0], 2)], mode="markers", name="plain model",
            marker=dict(color="#000", symbol="star", size=12), hovertemplate="plain model: %{y:.1f} %<extra></extra>"))
    for method, init, counts in shown(rows):
        mine = points[(points["method"] == method) & (points["init"] == init) & (points["counts"] == counts)]
        mine = mine.sort_values("share")
        colour, symbol, *_ = figures.LOOKS.get(method) or figures.PEER_LOOKS.get(method) or ("#000000", "circle")
        figure.add_trace(go.Scatter(
            x=(100 * mine["share"]).round(2).tolist(), y=(100 * mine["miou"]).round(2).tolist(),
            name=label(method, init, counts), mode="lines+markers",
            line=dict(color=colour, dash="solid" if counts else "dot", width=2), marker=dict(symbol=symbol, size=9),
            error_y=dict(type="data", symmetric=False, thickness=1, width=3,
                         array=(100 * (mine["high"] - mine["miou"])).round(2).tolist(),
                         arrayminus=(100 * (mine["miou"] - mine["low"])).round(2).tolist()),
            customdata=np.stack([mine["patch"] * 100, mine["best"] * 100, mine["seeds"]], 1).round(2),
            hovertemplate=f"<b>{label(method, init, counts)}</b><br>mean IoU %{{y:.1f}} % in pixels, "
                          "%{customdata[0]:.1f} % in patches<br>its groups allow %{customdata[1]:.1f} %<br>%{x:.1f} % of "
                          "the computations<br>%{customdata[2]:.0f} seed(s)<extra></extra>"))
    return figure


#: paint of a class: ground, large, small, and more for materials
_PAINT = np.array([[238, 238, 238], [0, 114, 178], [213, 94, 0], [0, 122, 94], [170, 68, 153], [86, 180, 233],
                   [240, 228, 66]], np.float64)


def painted(image: np.ndarray, answer: np.ndarray, scale_by: int = 3) -> np.ndarray:
    """An image in grey under the colours of its classes: (3, H, W) uint8, (H, W) -> (H', W', 3) uint8."""
    grey = image.mean(0)[..., None]
    mixed = np.rint(0.3 * grey + 0.7 * _PAINT[answer]).astype(np.uint8)
    return mixed.repeat(scale_by, 0).repeat(scale_by, 1)


@torch.no_grad()
def gallery(model: nn.Module, rows: pd.DataFrame, data: Data, count: int = 4) -> str:
    """Answers beside the truth for the first test scenes, each way with a probe of its own; HTML."""
    classes = TRUTHS[data.truth]
    saving = rows["saving"].max()
    ways = [Setting("plain", "", False, 0.0, 0)] + [Setting(*way, saving, 0) for way in shown(rows)]
    images, labels, _ = Pebbles(seed=TEST_SEED, size=data.test.x.shape[-1]).batch(range(count))
    truth = data.test.pixels[:count]
    cells: list[list[tuple[str, np.ndarray]]] = [
        [("the image", image.transpose(1, 2, 0).repeat(3, 0).repeat(3, 1)), ("the truth", painted(image, mask.numpy()))]
        for image, mask in zip(images, truth, strict=True)]
    for way in ways:
        pooled = build(model.eval(), way)
        features, _ = dense(pooled, data.test.x[:count])
        answer = to_pixels(fit(pooled, data, way)(features), data.grid, (truth.shape[1], truth.shape[2]))
        right = mean_iou(confusion(truth, answer, len(classes)))
        for cell, image, mask, value in zip(cells, images, answer, right, strict=True):
            cell.append((f"{100 * float(value):.0f}\u00a0% {label(way.method, way.init, way.counts)}",
                         painted(image, mask.numpy())))
    key = " ".join(f'<span class=key><i style="background:rgb({r:.0f},{g:.0f},{b:.0f})"></i>{html.escape(name)}</span>'
                   for name, (r, g, b) in zip(classes, _PAINT, strict=False))
    strips = "".join(
        f"<h3>Scene {i + 1} (large pebble: {CLASSES[labels[i]][0]}, small pebble: {CLASSES[labels[i]][1]})</h3>"
        "<div class=strip>" + "".join(
            f'<div><img alt="scene {i + 1}, {html.escape(words)}" src="{figures.png(pixels)}">'
            f"<span>{html.escape(words)}</span></div>" for words, pixels in cell) + "</div>"
        for i, cell in enumerate(cells))
    return (f"<h2>What the probe sees</h2><p>{saving:.0%} of the computations saved; probes fitted on the pooled features. "
            f"Below each its mean IoU on this one image. {key}</p>{strips}")


def write_page(path: Path, rows: pd.DataFrame, model: nn.Module, data: Data) -> None:
    """One page that needs nothing else: sentences, two figures, masks, all numbers."""
    first, sentences = rows.iloc[0], told(rows)
    lead = (f"<h1>Dense use: what lies where, from fewer tokens</h1><p>Every patch gets the features of the token that "
            f"stands in for it, after each of the last four blocks of <b>{html.escape(str(first['model']))}</b>; a linear probe turns "
            f"them into {len(TRUTHS[data.truth])} classes ({', '.join(TRUTHS[data.truth])}). The probe was fitted on "
            f"{first['train_images']} scenes of pebbles and measured on {first['images']} others; the model was not "
            "trained further.</p>" + "".join(f"<p>{html.escape(s)}</p>".replace(" %", "&nbsp;%") for s in sentences) +
            f"<p class=small>Truth of a patch: what most of its pixels are. Mean IoU over all images together; bars are "
            f"95 % intervals over images, widened by seeds. {html.escape(str(first['device']))}, {first['threads']} "
            f"threads; tokenpool {first['tokenpool']}, torch {first['torch']}, timm {first['timm']}; commit "
            f"{first['commit']}, {first['date']}.</p>")
    body = lead + plot("plain", trade_off(rows, "plain", "A probe that knows only the plain model"),
                       "Does a decoder that exists go on working? Solid: counts carried; dotted: not.")
    body += plot("own", trade_off(rows, "own", "A probe fitted on the pooled features"),
                 "Is the knowledge still there? The gap to the figure above is what fitting anew gives back.")
    body += gallery(model, rows, data) + _table(rows)
    page = PAGE.replace("{{title}}", "Dense use of pooled tokens").replace("</style>", _STYLE + "</style>", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(page.replace("{{plotly}}", get_plotlyjs()).replace("{{body}}", body), encoding="utf-8")


_STYLE = """.strip{display:flex;flex-wrap:wrap;gap:.55rem}.strip div{width:96px}
.strip img{width:96px;height:96px;border-radius:4px;display:block}
.strip span{font-size:.8rem;line-height:1.25;display:block;margin-top:.2rem}
.key{white-space:nowrap;margin-right:.8rem}.key i{display:inline-block;width:.9em;height:.9em;border:1px solid #888;margin-right:.35em;vertical-align:-.1em}
"""


def _table(rows: pd.DataFrame) -> str:
    lines = "".join(
        f"<tr><td>{r.method}<td>{r.init}<td>{'yes' if r.counts else 'no'}<td>{r.saving:.0%}<td>{1e3 * r.gmacs:.1f}"
        f"<td>{r.probe}<td>{100 * r.miou:.1f}<td>{100 * r.low:.1f} to {100 * r.high:.1f}<td>{100 * r.best:.1f}"
        f"<td>{100 * r.patch:.1f}<td>{100 * r.patch_best:.1f}<td>{r.seeds:.0f}</tr>" for r in summary(rows).itertuples())
    return ("<h2>All numbers</h2><p class=small>Best: every group of patches says what most of them are, which no probe can "
            "know.</p><details><summary>Show the table</summary><table class=numbers><tr><th>Method<th>Start<th>Counts"
            "<th>Saving<th>MMACs<th>Probe<th>mIoU, pixels, %<th>95 % interval<th>Best<th>mIoU, patches, %<th>Best"
            f"<th>Seeds</tr>{lines}</table></details>")
