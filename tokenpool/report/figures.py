"""Rows -> plotly figures. Pure: the same rows give the same figure; nothing is read or measured here.

Two kinds carry almost everything: `curves` (lines with intervals, one panel or several side by side) and `forest`
(differences with intervals, one line per comparison and budget).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from tokenpool.report.stats import summary

if TYPE_CHECKING:
    from tokenpool.report.claims import Verdict

# Okabe-Ito colours that reach 3:1 on white, in a fixed order; shape and dash repeat what colour says.
LOOKS = {
    "top_k": ("#D55E00", "square", "solid"), "random": ("#000000", "x", "dot"),
    "importance": ("#AA4499", "diamond", "dash"), "importance_with_replacement": ("#AA4499", "diamond-open", "dot"),
    "grid_average": ("#555555", "triangle-down", "dashdot"),
    "k_means": ("#0072B2", "circle-open", "dash"), "wk_means": ("#0072B2", "circle", "solid"),
    "k_medoids": ("#007A5E", "triangle-up-open", "dash"), "wk_medoids": ("#007A5E", "triangle-up", "solid"),
}
#: of the comparison's names; what is ours is blue
PEER_LOOKS = {
    "tokenpool": ("#0072B2", "circle"), "K-Medoids": ("#0072B2", "circle-open"), "ToMe": ("#D55E00", "square"),
    "ToMe on tokens": ("#D55E00", "square-open"), "ATC": ("#AA4499", "diamond"),
    "ATC on tokens": ("#AA4499", "diamond-open"), "PiToMe": ("#007A5E", "star"),
    "WK-Medoids": ("#007A5E", "triangle-up"), "WK-Means": ("#007A5E", "triangle-up-open"),
    "DPC-KNN": ("#000000", "cross"), "EViT": ("#000000", "triangle-down"), "ATS": ("#555555", "triangle-down-open"),
    "top-K (PoWER-BERT)": ("#555555", "x"), "top-K, class token": ("#555555", "x-open"),
    "grid average": ("#888888", "hexagon-open"), "random": ("#888888", "hexagon"),
}
INIT_LOOKS = {
    "top_k": ("#D55E00", "square", "solid"), "random": ("#000000", "x", "dot"),
    "farthest_first": ("#007A5E", "triangle-up", "solid"), "k_means_plus_plus": ("#0072B2", "circle", "dash"),
}
TEMPLATE = go.layout.Template(layout=dict(
    font=dict(family="system-ui, -apple-system, Segoe UI, sans-serif", size=14, color="#1b1b1b"),
    paper_bgcolor="white", plot_bgcolor="white", hoverlabel=dict(font_size=13),
    xaxis=dict(gridcolor="#e6e6e6", linecolor="#888", ticks="outside", zeroline=False),
    yaxis=dict(gridcolor="#e6e6e6", linecolor="#888", ticks="outside", zeroline=False),
    margin=dict(l=80, r=16, t=56, b=130)))

Look = tuple[str, str, str]             # colour, symbol, dash
BLACK: Look = ("#000000", "circle", "solid")
_LEGEND = dict(orientation="h", yref="container", y=0, yanchor="bottom", x=0, font_size=13)     # below everything else


# ---- curves with intervals ----

@dataclass(frozen=True)
class Line:
    """One curve: what is drawn, and what is said about each point."""

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None      # of the interval; None: no bars
    high: Sequence[float] | None = None
    hover: Sequence[str] = ()               # a text per point
    keys: Sequence[str] = ()                # per point: the runs that a click shows
    mode: str = "lines+markers"
    hidden: bool = False                    # a click in the legend away
    width: float = 2


def curves(panels: Mapping[str, Sequence[Line]], x: str | Sequence[str], y: str, title: str = "", *,
           percent: str = "xy", level: float | None = None, log: bool = False, height: int = 440) -> go.Figure:
    """Curves with intervals, one panel per entry, on one vertical scale; the legend stands below.

    Args:
        panels: title of a panel -> its lines. Lines of one name share a legend entry.
        x, y: titles of the axes, one `x` for all panels or one each.
        percent: axes with a percent sign.
        level: a dotted horizontal line, such as the plain model's top-1.
    """
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.04,
                           subplot_titles=list(panels) if len(panels) > 1 else None)
    rank: dict[str, int] = {}
    for column, lines in enumerate(panels.values(), 1):
        for line in lines:
            first = line.name not in rank
            colour, symbol, dash = line.look
            bars = None if line.low is None else dict(
                type="data", symmetric=False, thickness=1, width=3,
                array=np.subtract(line.high, line.y).round(4).tolist(),
                arrayminus=np.subtract(line.y, line.low).round(4).tolist())
            figure.add_scatter(
                x=np.round(line.x, 6).tolist(), y=np.round(line.y, 6).tolist(), name=line.name, legendgroup=line.name,
                legendrank=rank.setdefault(line.name, len(rank) + 1), showlegend=first, mode=line.mode,
                visible="legendonly" if line.hidden else True, line=dict(color=colour, dash=dash, width=line.width),
                marker=dict(symbol=symbol, size=9), error_y=bars, text=list(line.hover) or None,
                customdata=list(line.keys) or None,
                hovertemplate=f"<b>{html.escape(line.name)}</b><br>%{{text}}<extra></extra>" if line.hover else None,
                hoverinfo=None if line.hover else "skip", row=1, col=column)
    if level is not None:
        figure.add_hline(y=level, line=dict(color="#888888", width=1, dash="dot"))
    rows = 1
    free = width = 600                          # of a legend on the narrowest page
    for name in rank:
        needs = 48 + 7 * len(name)
        rows, free = (rows, free - needs) if needs <= free else (rows + 1, width - needs)
    figure.update_layout(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16) if title else None, hovermode="closest",
        height=height + 28 * rows, margin=dict(l=72, r=16, t=(34 if title else 0) + 34, b=58 + 28 * rows),
        legend=_LEGEND)
    for column, words in enumerate([x] * len(panels) if isinstance(x, str) else x, 1):
        figure.update_xaxes(title=dict(text=words, standoff=8, font_size=14), ticksuffix=" %" if "x" in percent else "",
                            type="log" if log else None, matches="x" if isinstance(x, str) else None, col=column)
    figure.update_yaxes(ticksuffix=" %" if "y" in percent else "", type="log" if log else None)
    figure.update_yaxes(title=dict(text=y, standoff=10, font_size=14), col=1)
    return figure


def percent(values) -> np.ndarray:
    return 100 * np.asarray(values, float)


def top1_line(points: pd.DataFrame, name: str, look: Look, **more) -> Line:
    """Top-1 against computations in % of the plain model, from lines of `stats.summary`."""
    points = points.sort_values("share")
    return Line(name, look, percent(points["share"]), percent(points["top1"]), percent(points["low"]),
                percent(points["high"]), [
                    f"top-1 {100 * p.top1:.1f} % ({100 * p.low:.1f} to {100 * p.high:.1f})<br>{100 * p.share:.1f} % of "
                    f"the computations ({1e3 * p.gmacs:.1f} MMACs)<br>variance lost per pooling {p.error:.3f}<br>"
                    f"{p.speed:.0f} images/s<br>{p.seeds:.0f} run(s)" for p in points.itertuples()], **more)


# ---- accuracy without finetuning ----

def best_clustering(rows: pd.DataFrame, method: str = "") -> tuple[str, str, bool] | None:
    """(method, init, counts) with the highest mean top-1 among all clusterings, or among those of one method."""
    means = rows[(rows["init"] != "") & ((rows["method"] == method) | (method == ""))].groupby(
        ["method", "init", "counts"])["top1"].mean()
    return means.idxmax() if len(means) else None


def trade_off(rows: pd.DataFrame, wanted: Mapping[str, tuple[str, str, bool, Look]], title: str) -> go.Figure:
    """Top-1 against computations without finetuning: name of a curve -> (method, init, counts, look)."""
    plain = rows[rows["method"] == "plain"]
    lines = []
    for name, (method, init, counts, look) in wanted.items():
        mine = rows[(rows["method"] == method) & (rows["init"] == init) & (rows["counts"] == counts)]
        if len(mine):
            lines.append(top1_line(summary(mine, ["method"]), name, look))
    if len(plain):
        lines.append(top1_line(summary(plain, ["method"]), "plain model", ("#000000", "star", "solid"), mode="markers"))
    figure = curves({title: lines}, "computations, % of the plain model (clustering included)",
                    "top-1 without finetuning", title, level=100 * plain["top1"].iloc[0] if len(plain) else None)
    return figure.update_xaxes(range=[25, 103]).update_yaxes(range=[-2, 103])


# ---- forest plots ----

_DATA_LOOKS = (("#0072B2", "circle"), ("#D55E00", "square"), ("#AA4499", "diamond"), ("#007A5E", "triangle-up"))


def forest(verdicts: Mapping[str, Verdict], margin: float = 0.0) -> go.Figure | None:
    """A line per comparison and budget; a dot with its 95 % interval per data set, and the paper's effect as a mark.

    Args:
        verdicts: data set -> what its rows say on one claim. margin: a band called "the same".
    """
    found = {name: {(e.label, e.saving): e for e in (*v.effects, *v.beside)} for name, v in verdicts.items()}
    places = _places(found)
    if not places:
        return None
    at = {place: -float(i) for i, place in enumerate(places)}
    figure = go.Figure()
    used = [name for name, effects in found.items() if effects]
    for rank, name in enumerate(used):
        effects = [(at[place] + 0.26 * ((len(used) - 1) / 2 - rank), e) for place, e in found[name].items()]
        colour, symbol = _DATA_LOOKS[list(verdicts).index(name) % len(_DATA_LOOKS)]
        figure.add_scatter(
            x=[round(100 * e.value, 2) for _, e in effects], y=[y for y, _ in effects], mode="markers", name=name,
            marker=dict(color=colour, symbol=symbol, size=9),
            error_x=dict(type="data", array=[round(100 * e.half, 2) for _, e in effects], thickness=1.6, width=4),
            text=[f"{e.label}, {e.budget}<br>{e} points, {e.seeds} run(s)" for _, e in effects],
            hovertemplate="<b>%{text}</b><extra></extra>")
    paper = {place: e.paper for effects in found.values() for place, e in effects.items() if e.paper is not None}
    if paper:
        figure.add_scatter(x=[round(100 * p, 2) for p in paper.values()], y=[at[place] for place in paper],
                           mode="markers", name="the paper (DeiT on ImageNet, finetuned)",
                           hovertemplate="the paper: %{x:+.1f} points<extra></extra>", marker=dict(
                               symbol="line-ns-open", size=17, color="#000000", line=dict(width=3)))
    figure.add_vline(x=0, line=dict(color="#888888", width=1.5))
    if margin:
        figure.add_vrect(x0=-100 * margin, x1=100 * margin, fillcolor="#888888", opacity=0.15, line_width=0)
    previous, ticks = None, []
    for label, saving in places:
        budget = "mean" if saving is None else f"-{saving:.0%}" if saving else "all tokens"
        ticks.append(f"{label}  <b>{budget}</b>" if label != previous else f"<b>{budget}</b>")
        if previous not in (None, label):
            figure.add_hline(y=at[label, saving] + 0.5, line=dict(color="#cccccc", width=1))
        previous = label
    figure.update_layout(template=TEMPLATE, hovermode="closest", height=132 + 30 * len(places), showlegend=True,
                         margin=dict(l=20, r=16, t=54, b=64), legend=_LEGEND)
    # the axis on top: below, a legend that wraps on a narrow page would run into its title
    figure.update_xaxes(title=dict(text="difference in top-1, points", standoff=8, font_size=14), zeroline=False,
                        side="top")
    figure.update_yaxes(tickvals=list(at.values()), ticktext=ticks, range=[0.6 - len(places), 0.6], automargin=True,
                        showgrid=False, tickfont_size=13, ticks="")
    return figure


def _places(found: Mapping[str, Mapping[tuple, object]]) -> list[tuple[str, float | None]]:
    """All (comparison, budget), comparisons in the order of the claim, budgets rising, the mean last."""
    every = {place for effects in found.values() for place in effects}
    labels = list(dict.fromkeys(label for effects in found.values() for label, _ in effects))
    return sorted(every, key=lambda p: (labels.index(p[0]), 2.0 if p[1] is None else p[1]))


# ---- images of clusters (the paper's Fig. 1c) ----

def cluster_image(image: np.ndarray, labels: np.ndarray, grid: tuple[int, int], kept: np.ndarray | None = None,
                  scale: int = 2, *, outlines: bool = True, grey: int | None = None, paper: int = 244) -> np.ndarray:
    """The image as its tokens see it: every group of patches in its mean colour, with outlines between groups.

    Args:
        image: (3, H, W) uint8. labels: (N,) group of every patch.
        kept: (N,) bool for selections: patches that stay are shown as they are, all others are blank.
        grey, paper: levels of the outlines (None: dark between groups, lighter around patches that stay) and of what is
            blank.

    Returns:
        (scale * H, scale * W, 3) uint8.
    """
    _, height, width = image.shape
    rows, cols = grid
    py, px = height // rows, width // cols
    patch_of = (np.arange(height) // py)[:, None] * cols + (np.arange(width) // px)[None, :]
    group = labels[patch_of]
    image = image.transpose(1, 2, 0).astype(np.float64)
    if kept is not None:
        stays = kept[patch_of]
        image = np.where(stays[..., None], image, float(paper))
    else:
        size = np.bincount(group.ravel())
        means = np.stack([np.bincount(group.ravel(), image[..., c].ravel()) for c in range(3)], 1)
        image = (means / np.maximum(size, 1)[:, None])[group]
    big = image.repeat(scale, 0).repeat(scale, 1)
    if not outlines:
        return np.rint(big).astype(np.uint8)
    line = (kept[patch_of] * (patch_of + 1) if kept is not None else group).repeat(scale, 0).repeat(scale, 1)
    edge = np.zeros(line.shape, bool)
    edge[1:] |= line[1:] != line[:-1]
    edge[:, 1:] |= line[:, 1:] != line[:, :-1]
    big[edge] = grey if grey is not None else 20 if kept is None else 120
    return np.rint(big).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a small PNG in a data URI: a hundredth of what the numbers would take in a page."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(128).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
