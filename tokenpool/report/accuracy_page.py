"""The page of `tokenpool reproduce`: curves, cluster images, and a verdict per claim of the paper, without finetuning."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from markupsafe import Markup
from torch import nn

from tokenpool.data.datasets import scale
from tokenpool.data.pebbles import CLASSES, Pebbles
from tokenpool.data.photographs import photographs
from tokenpool.measure.accuracy import FIGURES
from tokenpool.models.vit import PooledViT
from tokenpool.report import figures
from tokenpool.report.claims import Verdict
from tokenpool.report.figures import BLACK, INIT_LOOKS, LOOKS
from tokenpool.report.pages import Listing, claim_views, render
from tokenpool.report.stats import summary

#: rows of the cluster images: what is written beside them, options of PooledViT
PANELS: tuple[tuple[str, dict], ...] = (
    ("top_k: the patches that stay", dict(method="top_k")),
    ("grid_average: the cells", dict(method="grid_average")),
    ("wk_medoids, top_k init (the paper's default): the clusters", dict(method="wk_medoids", init="top_k")),
    ("wk_medoids, farthest_first init, carried counts: the clusters",
     dict(method="wk_medoids", init="farthest_first", carry_counts=True)),
)
PANEL_SAVING = 0.6


def write_page(path: Path, rows: pd.DataFrame, verdicts: list[Verdict], model: nn.Module | None = None) -> None:
    """Write the page; with a model of the shipped kind, the cluster images are drawn with it."""
    plain = rows[rows["method"] == "plain"]["top1"]
    best = figures.best_clustering(rows)
    render(path, "accuracy", "Token pooling without finetuning", first=rows.iloc[0],
           plain=f"{100 * plain.iloc[0]:.1f} %" if len(plain) else "", trade_off=_glance(rows, best),
           see_trade_off=_see_glance(rows, best), views=claim_views({"without finetuning": verdicts}), charts=list(_charts(rows)),
           clusters=model and _clusters(model), numbers=_table(rows))


def _charts(rows: pd.DataFrame):
    """(place, heading, figure, what to see) of the paper's figures that these rows can draw."""
    measured = set(rows["method"])

    def methods(names: tuple[str, ...]) -> dict[str, tuple]:
        return {f"{n}, top_k init" if clusters else n: (n, "top_k" if clusters else "", False, LOOKS.get(n, BLACK))
                for n in names for clusters in [bool((rows[rows["method"] == n]["init"] != "").any())]}

    if measured & set(FIGURES["5a"]):
        yield ("fig5a", "Fig. 5a: ways to use the significance score", figures.trade_off(
            rows, methods(FIGURES["5a"]), "Selections, and clustering from their score"),
            "Bars are 95 % intervals over images and runs. Hover over a point for its cost, error and speed.")
    if measured & set(FIGURES["5b"]):
        yield ("fig5b", "Fig. 5b: clustering algorithms", figures.trade_off(
            rows, methods(FIGURES["5b"]), "Four clusterings, the paper's top-K init"),
            "The cost of the clustering is counted, so K-Means keeps fewer tokens at the same budget. Without finetuning, "
            "weights that favour high scores also favour their duplicates.")
    if (rows["init"] == "random").any():
        for counts, words, see in (
                (False, "counts not carried", "If the initialisation did not matter, the curves would coincide."),
                (True, "counts carried", "Proportional attention: log(count) is added to later attention logits, so a token "
                                         "that represents ten patches gets the attention of ten. This is not in the paper.")):
            yield (f"fig6{int(counts)}", f"Fig. 6: the initialisation, {words}", figures.trade_off(
                rows, {f"{init} init": ("wk_medoids", init, counts, look) for init, look in INIT_LOOKS.items()},
                f"wk_medoids, {words}"), see)


def _glance(rows: pd.DataFrame, best: tuple[str, str, bool] | None) -> go.Figure:
    """The central trade-off: scores and random, the paper's default, and the best clustering measured."""
    wanted: dict[str, tuple] = {}
    if best is not None:
        method, init, counts = best
        wanted[f"{method}, {init} init{', carried counts' if counts else ''} (best here)"] = (
            *best, ("#0072B2", "circle", "solid"))
    wanted["wk_medoids, top_k init (the paper's default)"] = ("wk_medoids", "top_k", False, LOOKS["wk_medoids"])
    wanted |= {name: (method, "", False, LOOKS[method]) for name, method in (
        ("grid_average", "grid_average"), ("random", "random"), ("top_k (PoWER-BERT)", "top_k"))}
    return figures.trade_off(rows, wanted, "How much accuracy is left as tokens are removed?")


def _see_glance(rows: pd.DataFrame, best: tuple[str, str, bool] | None) -> str:
    if best is None:
        return ""
    method, init, counts = best
    ours = rows[(rows["method"] == method) & (rows["init"] == init) & (rows["counts"] == counts)]
    top = rows[(rows["method"] == "top_k") & ~rows["counts"]]
    a, b = (part.groupby("saving")["top1"].mean() for part in (ours, top))
    lead = (a - b).dropna()
    if not len(lead):
        return ""
    at, output = lead.idxmax(), ours["output"].iloc[0].replace("_", " ")
    return (f"With {at:.0%} of the computations saved, {method} from a {init} init (each new token is the {output} of its "
            f"cluster{', counts carried' if counts else ''}) is right on {100 * a[at]:.1f} % of the images, top-K on "
            f"{100 * b[at]:.1f} %.")


def _table(rows: pd.DataFrame) -> Listing:
    return Listing("All numbers", ("Method", "Init", "Counts", "Saving", "MMACs", "without clustering", "Top-1, %", "95 % interval",
                                   "Variance lost", "Images/s", "Runs"), [
        (r.method, r.init, "yes" if r.counts else "no", f"{r.saving:.0%}", f"{1e3 * r.gmacs:.1f}",
         f"{1e3 * r.gmacs_without_clustering:.1f}", f"{100 * r.top1:.1f}", f"{100 * r.low:.1f} to {100 * r.high:.1f}",
         f"{r.error:.3f}", f"{r.speed:.0f}", f"{r.seeds}") for r in summary(rows, ["method", "init", "counts"]).itertuples()])


@torch.inference_mode()
def _clusters(model: nn.Module) -> dict[str, Any]:
    """Which patches share a token, per image, method and block (after the paper's Fig. 1c)."""
    size = model.patch_embed.img_size[0]
    scenes, labels, _ = Pebbles(seed=4, size=size).batch(range(4))
    images = {f"pebbles {i + 1} ({CLASSES[c][0]} and {CLASSES[c][1]})": scenes[i] for i, c in enumerate(labels)}
    images |= {f"photograph: {name}": pixels for name, pixels in photographs(size).items()}
    x = scale(np.stack(list(images.values())))
    cells: dict[str, list[list[str]]] = {name: [] for name in images}
    kept: list[list[int]] = []
    for _, options in PANELS:
        trace = PooledViT(model, saving=PANEL_SAVING, **options).eval().trace(x)
        kept.append([step.kept for step in trace.steps])
        patches = np.arange(trace.grid[0] * trace.grid[1])
        for index, (name, pixels) in enumerate(images.items()):
            strip = []
            for step in trace.steps:
                if options["method"] == "top_k":
                    stays = np.isin(patches, patches if step.origin is None else step.origin[index].numpy())
                    strip.append(figures.png(figures.cluster_image(pixels, patches, trace.grid, stays)))
                else:
                    strip.append(figures.png(figures.cluster_image(pixels, step.labels[index].numpy(), trace.grid)))
            cells[name].append(strip)
    data = {"original": {n: figures.png(p.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)) for n, p in images.items()},
            "cells": cells, "rows": [name for name, _ in PANELS], "kept": kept}
    return dict(names=list(images), saving=f"{PANEL_SAVING:.0%}", data=Markup(json.dumps(data)))
