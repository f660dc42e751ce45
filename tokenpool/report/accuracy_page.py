"""Rows -> one page that needs nothing else: curves, cluster images, and a sentence per claim of the paper."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.io as pio
import torch
from plotly.offline import get_plotlyjs
from torch import nn

from tokenpool.data.datasets import scale
from tokenpool.data.files import replace_file
from tokenpool.data.pebbles import CLASSES, Pebbles
from tokenpool.data.photographs import photographs
from tokenpool.measure.accuracy import FIGURES
from tokenpool.models.vit import PooledViT
from tokenpool.report import figures
from tokenpool.report.verdicts import FAILS, HOLDS, UNTESTED, Verdict

#: rows of the cluster images: what is written beside them, options of PooledViT
PANELS: tuple[tuple[str, dict], ...] = (
    ("top_k: the patches that stay", dict(method="top_k")),
    ("grid_average: the cells", dict(method="grid_average")),
    ("wk_medoids, top_k start (the paper's default): the clusters", dict(method="wk_medoids", init="top_k")),
    ("wk_medoids, farthest_first start, carried counts: the clusters",
     dict(method="wk_medoids", init="farthest_first", carry_counts=True)),
)
PANEL_SAVING = 0.6


def write_page(path: Path, rows: pd.DataFrame, verdicts: list[Verdict], model: nn.Module | None = None) -> None:
    """Write the page; with a model of the shipped kind, the cluster images are drawn with it."""
    best = figures.best_clustering(rows)
    parts = [_lead(rows, best), plot("glance", figures.glance(rows), _see_glance(rows, best)), _claims(verdicts)]
    measured = set(rows["method"])
    if measured & set(FIGURES["5a"]):
        parts.append("<h2>Fig. 5a: ways to use the significance score</h2>" + plot(
            "fig5a", figures.trade_off(rows, FIGURES["5a"], False, "top_k", "Selections, and clustering from their score"),
            "Bars are 95 % intervals over images and seeds. Hover over a point for its cost, error and speed."))
    if measured & set(FIGURES["5b"]):
        parts.append("<h2>Fig. 5b: clustering algorithms</h2>" + plot(
            "fig5b", figures.trade_off(rows, FIGURES["5b"], False, "top_k", "Four clusterings, the paper's top-K start"),
            "The cost of the clustering is counted, which moves K-Means to fewer tokens at the same budget. "
            "Without finetuning the weights that favour high scores also favour their duplicates."))
    if (rows["init"] == "random").any():
        parts.append("<h2>Fig. 6: the start</h2>" + "".join(
            plot(f"fig6{int(counts)}", figures.starts(rows, counts, f"wk_medoids, {title}"), see)
            for counts, title, see in (
                (False, "counts not carried", "If the start did not matter, the curves would lie on each other."),
                (True, "counts carried", "log(count) added to later attention logits: a token that stands for ten is "
                                         "attended to as ten would be. This is not in the paper."))))
    if model is not None:
        parts.append(_clusters(model))
    parts.append(_table(rows))
    body = "\n".join(parts)
    page = PAGE.replace("{{title}}", "Token pooling without finetuning").replace("{{plotly}}", get_plotlyjs()).replace("{{body}}", body)
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _lead(rows: pd.DataFrame, best: tuple[str, str, bool] | None) -> str:
    first = rows.iloc[0]
    plain = rows[rows["method"] == "plain"]
    told = f"The plain model is right on {100 * plain['top1'].iloc[0]:.1f} % of {first['images']} images." \
        if len(plain) else ""
    return (f"<h1>Token pooling without finetuning</h1><p>Model <b>{html.escape(first['model'])}</b> on "
            f"<b>{html.escape(first['data'])}</b>; nothing was trained after tokens were taken away. {told}</p>"
            f"<p class=small>{html.escape(first['device'])}, {first['threads']} threads; tokenpool {first['tokenpool']}, "
            f"torch {first['torch']}, timm {first['timm']}, python {first['python']}; commit {first['commit']}, "
            f"{first['date']}.</p>")


def _see_glance(rows: pd.DataFrame, best: tuple[str, str, bool] | None) -> str:
    if best is None or not (rows["method"] == "top_k").any():
        return ""
    method, init, counts = best
    ours = rows[(rows["method"] == method) & (rows["init"] == init) & (rows["counts"] == counts)]
    top = rows[(rows["method"] == "top_k") & ~rows["counts"]]
    a, b = ours.groupby("saving")["top1"].mean(), top.groupby("saving")["top1"].mean()
    gap = (a - b).dropna()
    if not len(gap):
        return ""
    at = gap.idxmax()
    output = ours["output"].iloc[0].replace("_", " ")
    return (f"With {at:.0%} of the computations saved, {method} from a {init} start, each new token the {output} of "
            f"its cluster{', counts carried' if counts else ''}, is right on {100 * a[at]:.1f} %; "
            f"top-K on {100 * b[at]:.1f} %.")


def plot(name: str, figure, see: str, label: str = "") -> str:
    """A figure with the sentence that says what to see, and its words for those who do not see it."""
    label = label or figure.layout.title.text
    spec = pio.to_json(figure, validate=False).replace("</", "<\\/")
    return (f'<figure><div id="{name}" class=plot role=img aria-label="{html.escape(label)}"></div>'
            f"<figcaption>{html.escape(see)}</figcaption></figure>"
            f"<script>{{const s={spec};Plotly.newPlot('{name}',s.data,s.layout,"
            "{responsive:true,displaylogo:false,displayModeBar:false});}</script>")


def verdict_mark(verdict: str) -> str:
    """A verdict with a sign and a colour that say the same."""
    marks = {HOLDS: ("yes", "&#10003;"), FAILS: ("no", "&#10007;"), UNTESTED: ("none", "&ndash;")}
    kind, sign = marks.get(verdict, ("mixed", "~"))
    return f"<span class={kind}>{sign} {html.escape(verdict)}</span>"


def _claims(verdicts: list[Verdict]) -> str:
    lines = "".join(f"<tr><td>{html.escape(v.claim)}</td><td>{verdict_mark(v.verdict)}</td>"
                    f"<td>{html.escape(v.evidence)}</td></tr>" for v in verdicts)
    return ("<h2>The paper's claims, one by one</h2><p class=small>P: from the paper's abstract or captions. "
            "S: from summaries of it; its full text was not at hand.</p>"
            f"<table><tr><th>Claim<th>Verdict<th>What was seen</tr>{lines}</table>")


def _table(rows: pd.DataFrame) -> str:
    table = figures.summary(rows, ["method", "init", "counts"])
    lines = "".join(
        f"<tr><td>{r.method}<td>{r.init}<td>{'yes' if r.counts else 'no'}<td>{r.saving:.0%}<td>{1e3 * r.gmacs:.1f}"
        f"<td>{1e3 * r.gmacs_without_clustering:.1f}<td>{100 * r.top1:.1f}<td>{100 * r.low:.1f} to {100 * r.high:.1f}"
        f"<td>{r.error:.3f}<td>{r.speed:.0f}<td>{r.seeds:.0f}</tr>" for r in table.itertuples())
    return ("<h2>All numbers</h2><details><summary>Show the table</summary><table class=numbers><tr><th>Method<th>Start"
            "<th>Counts<th>Saving<th>MMACs<th>without clustering<th>Top-1, %<th>95 % interval<th>Variance lost"
            f"<th>Images/s<th>Seeds</tr>{lines}</table></details>")


# ---- cluster images ----

@torch.inference_mode()
def _clusters(model: nn.Module) -> str:
    size = model.patch_embed.img_size[0]
    scenes, labels, _ = Pebbles(seed=4, size=size).batch(range(4))
    images = {f"pebbles {i + 1} ({CLASSES[c][0]} and {CLASSES[c][1]})": scenes[i] for i, c in enumerate(labels)}
    images |= {f"photograph: {name}": pixels for name, pixels in photographs(size).items()}
    x = scale(np.stack(list(images.values())))
    cells: dict[str, list[list[str]]] = {name: [] for name in images}
    kept: list[list[int]] = []
    for _, options in PANELS:
        pooled = PooledViT(model, saving=PANEL_SAVING, **options).eval()
        trace = pooled.trace(x)
        kept.append([step.kept for step in trace.steps])
        for index, (name, pixels) in enumerate(images.items()):
            strip = []
            patches = np.arange(trace.grid[0] * trace.grid[1])
            for step in trace.steps:
                if options["method"] == "top_k":
                    stays = np.isin(patches, patches if step.origin is None else step.origin[index].numpy())
                    strip.append(figures.png(figures.cluster_image(pixels, patches, trace.grid, stays)))
                else:
                    strip.append(figures.png(figures.cluster_image(pixels, step.labels[index].numpy(), trace.grid)))
            cells[name].append(strip)
    data = {"original": {n: figures.png(p.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)) for n, p in images.items()},
            "cells": cells, "rows": [name for name, _ in PANELS], "kept": kept}
    options_html = "".join(f"<option>{html.escape(n)}</option>" for n in images)
    return (f"<h2>Fig. 1c: which patches share a token</h2><p>At {PANEL_SAVING:.0%} fewer computations. Each group of "
            "patches is painted in its mean colour; a score keeps patches and forgets the rest. The photographs only "
            "show how the clusters lie: the model has never seen one.</p>"
            f'<p><label for=pick>Image</label> <select id=pick>{options_html}</select></p><div id=grid></div>'
            f"<script>const C={json.dumps(data)};{_GRID_JS}</script>")


_GRID_JS = """
const pick=document.getElementById('pick'),grid=document.getElementById('grid');
function show(){const n=pick.value;let h='<table class=clusters><tr><th>the image<th>method';
C.kept[0].forEach((k,b)=>h+='<th>after block '+(b+1));h+='</tr>';
C.rows.forEach((r,i)=>{h+='<tr>'+(i?'':'<td rowspan='+C.rows.length+'><img alt="'+n+'" src="'+C.original[n]+'">')+'<th>'+r;
C.cells[n][i].forEach((s,b)=>h+='<td><img alt="'+n+', '+r+' after block '+(b+1)+'" src="'+s+'">'+C.kept[i][b]+' tokens');h+='</tr>';});
grid.innerHTML=h+'</table>';}
pick.addEventListener('change',show);show();"""

# ruff: noqa: E501  (the page's style sheet)
PAGE = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{{title}}</title><link rel=icon href="data:,">
<style>
body{font:16px/1.5 system-ui,-apple-system,Segoe UI,sans-serif;color:#1b1b1b;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.9rem;margin:0 0 .5rem}h2{font-size:1.3rem;margin:2.2rem 0 .6rem}.small{font-size:.87rem;color:#555}
figure{margin:0 0 1rem}figcaption{color:#333;margin-left:64px}.plot{min-height:480px}
table{border-collapse:collapse;font-size:.92rem}td,th{text-align:left;vertical-align:top;padding:.4rem .7rem;border-bottom:1px solid #ddd}
span.yes{color:#006b4f;font-weight:600}span.no{color:#a33f00;font-weight:600}span.mixed{color:#333;font-weight:600}span.none{color:#666}
.clusters{display:block;overflow-x:auto}.clusters img{width:128px;height:128px;image-rendering:pixelated;border-radius:4px;display:block}
.clusters td,.clusters th{border:0;padding:.25rem;font-weight:400;font-size:.83rem;max-width:132px}
.numbers{font-variant-numeric:tabular-nums;display:block;overflow-x:auto}select{font:inherit;padding:.2rem}
.comparison td:nth-child(n+3),.comparison th:nth-child(n+3){white-space:nowrap;text-align:right}
h3{font-size:1.02rem;margin:1.2rem 0 .2rem}pre{overflow-x:auto;font-size:.8rem;background:#f6f6f6;padding:.6rem}button{font:inherit}
.claims th{font-weight:400;width:22%}.claims tr:first-child th{font-weight:600}
#cardtext{white-space:pre-wrap;overflow-wrap:anywhere}
#card{position:fixed;right:0;top:0;bottom:0;width:min(560px,92vw);background:#fff;border-left:2px solid #888;overflow:auto;padding:1rem;z-index:9}
</style><script>{{plotly}}</script><body><main>{{body}}</main></body></html>"""
