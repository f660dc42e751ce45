"""Rows -> plotly figures. Pure: the same rows give the same figure, nothing is read or measured here."""

from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

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


def summary(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over seeds with a 95 % interval: over images (Wilson) for one seed, widened by the spread over several."""
    def one(group: pd.DataFrame) -> pd.Series:
        spread = 1.96 * group["top1"].std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else 0.0
        mean = group["top1"].mean()
        return pd.Series({
            "gmacs": group["gmacs"].mean(), "gmacs_without_clustering": group["gmacs_without_clustering"].mean(),
            "share": group["gmacs"].mean() / group["gmacs_plain"].iloc[0], "top1": mean,
            "low": max(0.0, mean - np.hypot(spread, mean - group["top1_low"].mean())),
            "high": min(1.0, mean + np.hypot(spread, group["top1_high"].mean() - mean)),
            "error": group["reconstruction_error"].mean(), "speed": group["images_per_second"].median(),
            "seeds": len(group)})
    return rows.groupby([*by, "saving"], sort=False)[list(rows.columns)].apply(one).reset_index()


def best_init(rows: pd.DataFrame, method: str) -> str:
    """The start with the highest mean top-1 of a method's rows; empty for methods without one."""
    means = rows[rows["method"] == method].groupby("init")["top1"].mean()
    return str(means.idxmax()) if len(means) else ""


def trade_off(rows: pd.DataFrame, methods: tuple[str, ...], counts: bool, init: str | None, title: str) -> go.Figure:
    """Top-1 against computations, a curve per method. `start`: of the clusterings; None: each one's best."""
    plain = rows[rows["method"] == "plain"]
    figure = _empty(title, plain)
    for method in methods:
        mine = rows[(rows["method"] == method) & (rows["counts"] == counts)]
        if (mine["init"] != "").any():
            mine = mine[mine["init"] == (init or best_init(mine, method))]
        if len(mine):
            name = method if not mine["init"].iloc[0] else f"{method}, {mine['init'].iloc[0]} start"
            _curve(figure, summary(mine, ["method"]), name, LOOKS.get(method, ("#000000", "circle", "solid")))
    return figure


def starts(rows: pd.DataFrame, counts: bool, title: str, method: str = "wk_medoids") -> go.Figure:
    """The paper's Fig. 6: one method from several starts."""
    figure = _empty(title, rows[rows["method"] == "plain"])
    mine = rows[(rows["method"] == method) & (rows["counts"] == counts)]
    for init, look in INIT_LOOKS.items():
        part = mine[mine["init"] == init]
        if len(part):
            _curve(figure, summary(part, ["method"]), f"{init} start", look)
    return figure


def _empty(title: str, plain: pd.DataFrame) -> go.Figure:
    across, up = "computations, % of the plain model (clustering included)", "top-1 without finetuning"
    figure = go.Figure(layout=dict(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), height=480, hovermode="closest",
        legend=dict(orientation="h", y=-0.24, yanchor="top", x=0, font_size=13),
        xaxis=dict(title=dict(text=across, standoff=10, font_size=14),
                   range=[25, 103], ticksuffix=" %"),
        yaxis=dict(title=dict(text=up, standoff=12, font_size=14), range=[-2, 103], ticksuffix=" %")))
    if len(plain):
        top1 = 100 * plain["top1"].iloc[0]
        figure.add_hline(y=top1, line=dict(color="#888", width=1, dash="dot"))
        figure.add_trace(go.Scatter(
            x=[100], y=[top1], mode="markers", name="plain model", marker=dict(color="#000", symbol="star", size=12),
            hovertemplate=f"plain model: {top1:.1f} %<extra></extra>"))
    return figure


def _curve(figure: go.Figure, points: pd.DataFrame, name: str, look: tuple[str, str, str]) -> None:
    colour, symbol, dash = look
    points = points.sort_values("share")
    figure.add_trace(go.Scatter(
        x=(100 * points["share"]).round(2).tolist(), y=(100 * points["top1"]).round(2).tolist(), name=name,
        mode="lines+markers", line=dict(color=colour, dash=dash, width=2), marker=dict(symbol=symbol, size=9),
        error_y=dict(type="data", symmetric=False, thickness=1, width=3,
                     array=(100 * (points["high"] - points["top1"])).round(2).tolist(),
                     arrayminus=(100 * (points["top1"] - points["low"])).round(2).tolist()),
        customdata=np.stack([points["gmacs"] * 1e3, points["error"], points["speed"], points["seeds"]], 1).round(4),
        hovertemplate=f"<b>{name}</b><br>top-1 %{{y:.1f}} %<br>%{{x:.1f}} % of the computations "
                      "(%{customdata[0]:.1f} MMACs)<br>variance lost per pooling %{customdata[1]:.3f}<br>"
                      "%{customdata[2]:.0f} images/s<br>%{customdata[3]:.0f} seed(s)<extra></extra>"))


# ---- images of clusters (the paper's Fig. 1c) ----

def cluster_image(image: np.ndarray, labels: np.ndarray, grid: tuple[int, int], kept: np.ndarray | None = None,
                    scale: int = 2) -> np.ndarray:
    """The image as its tokens see it: every group of patches in its mean colour, with outlines between groups.

    Args:
        image: (3, H, W) uint8. labels: (N,) group of every patch.
        kept: (N,) bool for selections: patches that stay are shown as they are, all others are blank.

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
        image = np.where(stays[..., None], image, 244.0)
    else:
        size = np.bincount(group.ravel())
        means = np.stack([np.bincount(group.ravel(), image[..., c].ravel()) for c in range(3)], 1)
        image = (means / np.maximum(size, 1)[:, None])[group]
    big = image.repeat(scale, 0).repeat(scale, 1)
    line = (kept[patch_of] * (patch_of + 1) if kept is not None else group).repeat(scale, 0).repeat(scale, 1)
    edge = np.zeros(line.shape, bool)
    edge[1:] |= line[1:] != line[:-1]
    edge[:, 1:] |= line[:, 1:] != line[:, :-1]
    big[edge] = 20 if kept is None else 120
    return np.rint(big).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a small PNG in a data URI: a hundredth of what the numbers would take in a page."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(128).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def best_clustering(rows: pd.DataFrame) -> tuple[str, str, bool] | None:
    """(method, start, counts) with the highest mean top-1 among all that have a start."""
    means = rows[rows["init"] != ""].groupby(["method", "init", "counts"])["top1"].mean()
    return means.idxmax() if len(means) else None


def glance(rows: pd.DataFrame) -> go.Figure:
    """The central trade-off: scores and chance, the paper's default, and the best clustering measured."""
    figure = _empty("Who keeps the accuracy when tokens must go?", rows[rows["method"] == "plain"])

    def add(method: str, init: str, counts: bool, name: str, look: tuple[str, str, str]) -> None:
        mine = rows[(rows["method"] == method) & (rows["init"] == init) & (rows["counts"] == counts)]
        if len(mine):
            _curve(figure, summary(mine, ["method"]), name, look)

    best = best_clustering(rows)
    if best is not None:
        method, init, counts = best
        add(method, init, counts, f"{method}, {init} start{', carried counts' if counts else ''} (best here)",
            ("#0072B2", "circle", "solid"))
    add("wk_medoids", "top_k", False, "wk_medoids, top_k start (the paper's default)", LOOKS["wk_medoids"])
    for method in ("grid_average", "random", "top_k"):
        add(method, "", False, {"top_k": "top_k (PoWER-BERT)"}.get(method, method), LOOKS[method])
    return figure
