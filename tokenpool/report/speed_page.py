"""Timings -> tables, figures and one page. Pure: the same rows give the same page, nothing is measured here."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from tokenpool.data.files import replace_file
from tokenpool.measure.rows import Timing
from tokenpool.report.accuracy_page import PAGE, plot
from tokenpool.report.figures import INIT_LOOKS, LOOKS, TEMPLATE

EFFICIENCY = ("Yield is speed-up obtained / promised, and promised is plain / pooled multiply-adds, clustering counted in: "
         "1.00 means that every multiply-add saved became time. Memory is the peak "
         "over that of what is replaced.")
_OTHER = ("#000000", "circle", "solid")
_LEGEND = dict(orientation="h", yref="container", y=0.01, yanchor="bottom", x=0, font_size=13)      # below the axis title


class Table(NamedTuple):
    """Lines of text under a header; the first column is words, all others are numbers."""

    title: str
    head: tuple[str, ...]
    lines: list[tuple[str, ...]]


def label(row: Timing) -> str:
    """A method as it is written beside its numbers."""
    return " ".join([row.name, *([row.init] if row.init else []), *(["+counts"] if row.counts else [])])


def line_of(row: Timing) -> str:
    """Device, threads, clock and versions of a run."""
    clock = "CPU time" if row.clock == "cpu" else "wall-clock time"
    return (f"{row.device}, {row.threads} thread{'s' if row.threads != 1 else ''}, {clock}, kernel {row.kernel}"
            f"{', compiled' if row.compiled else ''}; tokenpool {row.tokenpool} ({row.commit}), torch {row.torch}, "
            f"timm {row.timm}, python {row.python}; {row.date[:10]}")


# ---- tables ----

def model_table(rows: Sequence[Timing], part: str) -> Table:
    """Whole models ("forward" or "training"): what was promised, what was obtained."""
    head = ("method", "model", "batch", "MACs", "promised", "obtained (quartiles)", "yield", "images/s", "memory",
            "rounds")
    lines = []
    for row in (r for r in rows if r.part == part):
        init = (label(row), _setting(row), str(row.batch_size))
        if not row.rounds:
            lines.append((*init, f"{row.share:.0%}" if row.share else "-", "-", row.note, "-", "-", "-", "0"))
            continue
        lines.append((*init, f"{row.share:.0%}", f"{row.promised:.2f}x",
                      f"{row.obtained:.2f}x ({1 / row.ratio_high:.2f} to {1 / row.ratio_low:.2f})", f"{row.efficiency:.2f}",
                      f"{row.batch_size / row.seconds:.0f}", _memory(row), str(row.rounds)))
    title = {"forward": "Whole models against the plain model, forward",
             "training": "Whole models against the plain model, a training step"}[part]
    return Table(title, head, lines)


def operator_table(rows: Sequence[Timing]) -> Table:
    """Single steps, as a share of a block's time. For the score, what it adds to the block."""
    head = ("operator", "K", "batch", "MACs", "share of a block (quartiles)", "ms", "memory", "rounds")
    lines = []
    for row in (r for r in rows if r.part == "operators"):
        score = row.name == "score"
        name = ("score (what it adds)" if score else label(row)) + ("" if row.dtype == "float32" else f" {row.dtype}")
        low, middle, high = (v - score for v in (row.ratio_low, row.ratio, row.ratio_high))
        init = (name, str(row.kept or "-"), str(row.batch_size), "-" if score else f"{row.share:.3f}")
        if not row.rounds:
            lines.append((*init, row.note, "-", "-", "0"))
            continue
        milliseconds = 1e3 * (row.seconds - score * row.baseline_seconds)
        lines.append((*init, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{milliseconds:.2f}", _memory(row),
                      str(row.rounds)))
    first = next((r for r in rows if r.part == "operators"), None)
    of = f": {first.model}, {first.tokens} tokens" if first else ""
    return Table(f"Operators against one block{of}", head, lines)


def growth_table(rows: Sequence[Timing]) -> Table:
    """Fitted exponents: time goes as (what is varied) to the power of this."""
    lines = []
    for vary, word in (("tokens", "tokens N (K = N / 2)"), ("batch_size", "images B"), ("kept", "kept tokens K")):
        for name, (sizes, seconds) in series(rows, vary).items():
            if len(sizes) > 1:
                power, error = exponent(sizes, seconds)
                lines.append((name, word, " ".join(map(str, sizes)), f"{power:.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}"),
                              f"{1e3 * seconds[0]:.2f} to {1e3 * seconds[-1]:.2f}"))
    return Table("How cost grows", ("operator", "with", "sizes", "exponent ± standard error", "ms"), lines)


def memory_table(rows: Sequence[Timing]) -> Table:
    """A block that pools beside the plain block, where tokens are many."""
    lines = []
    for row in (r for r in rows if r.part == "memory"):
        there = f"{row.baseline_peak_mib:.0f}" if row.baseline_peak_mib else "-"
        lines.append((f"{row.name} ({row.init})", str(row.tokens), str(row.kept), str(row.batch_size),
                      f"{row.peak_mib:.0f}" if row.rounds else row.note, there, f"{row.ratio:.2f}" if row.rounds else "-"))
    return Table("Memory of a block that pools", ("step", "N", "K", "batch", "peak, MiB", "plain block, MiB", "time / plain"), lines)


def tables(rows: Sequence[Timing]) -> list[Table]:
    """All that have lines."""
    found = [model_table(rows, "forward"), model_table(rows, "training"), operator_table(rows), growth_table(rows),
             memory_table(rows)]
    return [table for table in found if table.lines]


def _setting(row: Timing) -> str:
    return row.model.replace("_patch16_224", "") + ("" if row.dtype == "float32" else f" {row.dtype}")


def _memory(row: Timing) -> str:
    """Peak memory beside the baseline's; "-" where this machine does not say."""
    if not row.peak_mib > 0 or not row.baseline_peak_mib > 0:
        return "-"
    return f"{row.peak_mib / row.baseline_peak_mib:.2f}x"


# ---- growth ----

def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Least squares of log(seconds) on log(size): the slope and its standard error (NaN for two points).

    >>> exponent([1, 2, 4], [3, 12, 48])[0]
    2.0
    """
    x, y = np.log2(np.asarray(sizes, float)), np.log2(np.asarray(seconds, float))
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    rest = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum()
    return slope, float(np.sqrt(rest / (len(x) - 2) / spread)) if len(x) > 2 else float("nan")


def series(rows: Sequence[Timing], vary: str) -> dict[str, tuple[list[int], list[float]]]:
    """Growth with `vary` ("tokens", "batch_size" or "kept"): name -> sizes and seconds, everything else held.

    With tokens K = N / 2 goes along, as it does in a model. The plain block is a series of its own; of the score, what it
    adds to the block.
    """
    growth = [r for r in rows if r.part == "growth" and r.rounds]
    if not growth:
        return {}
    if vary == "kept":
        counts = {n: len({r.kept for r in growth if r.tokens == n}) for n in {r.tokens for r in growth}}
        n = max(counts, key=lambda n: (counts[n], -n))
        chosen = [r for r in growth if r.tokens == n and r.batch_size == min(g.batch_size for g in growth) and r.name != "score"]
        chosen = chosen if len({r.kept for r in chosen}) > 1 else []
    elif vary == "batch_size":
        fewest = min(r.tokens for r in growth)
        chosen = [r for r in growth if r.tokens == fewest and 2 * r.kept in (fewest, fewest - 1)]
    else:
        chosen = [r for r in growth if r.batch_size == min(g.batch_size for g in growth) and 2 * r.kept in (r.tokens, r.tokens - 1)]
    found: dict[str, dict[int, float]] = {}
    for row in chosen:
        size = getattr(row, vary)
        took = row.seconds - row.baseline_seconds if row.name == "score" else row.seconds
        if took > 0:
            found.setdefault("score (what it adds)" if row.name == "score" else label(row), {})[size] = took
        if vary != "kept":
            found.setdefault("plain block", {})[size] = row.baseline_seconds
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in found.items() if len(points) > 1}


# ---- figures ----

def speed_up(rows: Sequence[Timing], title: str) -> go.Figure:
    """Fig. 12: speed-up against multiply-adds, a panel per model, and the curve that was promised."""
    rows = [r for r in rows if r.rounds]
    models = list(dict.fromkeys(r.model for r in rows))
    figure = _panels(title, [m.replace("_patch16_224", "") for m in models])
    low, high = min(r.share for r in rows) - 0.04, 1.02
    promise = np.linspace(low, 1, 40)
    for column, model in enumerate(models, 1):
        figure.add_trace(go.Scatter(
            x=(100 * promise).tolist(), y=(1 / promise).tolist(), name="promised: time goes with multiply-adds",
            mode="lines", line=dict(color="#767676", dash="dot", width=2), hoverinfo="skip", legendgroup="promised",
            showlegend=column == 1), row=1, col=column)
        figure.add_trace(go.Scatter(
            x=[100], y=[1], mode="markers", name="plain model", marker=dict(color="#000", symbol="star", size=12),
            legendgroup="plain", showlegend=column == 1,
            hovertemplate="plain model<extra></extra>"), row=1, col=column)
        named: dict[str, list[Timing]] = {}
        for row in (r for r in rows if r.model == model):
            named.setdefault(label(row), []).append(row)
        for name, mine in named.items():
            mine = sorted(mine, key=lambda r: r.share)
            colour, symbol, dash = _look(mine[0])
            figure.add_trace(go.Scatter(
                x=[100 * r.share for r in mine], y=[r.obtained for r in mine], name=name, legendgroup=name,
                showlegend=column == 1, mode="lines+markers", line=dict(color=colour, dash=dash, width=2),
                marker=dict(symbol=symbol, size=10),
                error_y=dict(type="data", symmetric=False, thickness=1, width=3,
                             array=[1 / r.ratio_low - r.obtained for r in mine],
                             arrayminus=[r.obtained - 1 / r.ratio_high for r in mine]),
                customdata=[[r.promised, r.efficiency, r.batch_size / r.seconds, r.rounds] for r in mine],
                hovertemplate=f"<b>{name}</b><br>%{{y:.2f}}x obtained, %{{customdata[0]:.2f}}x promised<br>yield "
                              "%{customdata[1]:.2f}<br>%{customdata[2]:.0f} images/s<br>%{customdata[3]} rounds"
                              "<extra></extra>"), row=1, col=column)
    figure.update_xaxes(range=[100 * low, 100 * high], ticksuffix=" %",
                        title=dict(text="multiply-adds, % of the plain model", standoff=8, font_size=14))
    figure.update_yaxes(title=dict(text="speed-up over the plain model", font_size=14), ticksuffix="x", col=1)
    figure.update_layout(height=560)
    return figure


def yields(rows: Sequence[Timing], title: str) -> go.Figure:
    """Obtained over promised at one saving, a panel per model, a marker per batch size."""
    rows = [r for r in rows if r.rounds]
    models = list(dict.fromkeys(r.model for r in rows))
    figure = _panels(title, [m.replace("_patch16_224", "") for m in models])
    batches = sorted({r.batch_size for r in rows})
    signs = ("circle", "square", "diamond", "triangle-up", "x", "cross")
    for column, model in enumerate(models, 1):
        for index, batch in enumerate(batches):
            mine = [r for r in rows if r.model == model and r.batch_size == batch][::-1]
            figure.add_trace(go.Scatter(
                x=[r.efficiency for r in mine], y=[_two_lines(r) for r in mine], mode="markers",
                name=f"batch {batch}", legendgroup=str(batch), showlegend=column == 1,
                marker=dict(symbol=signs[index % len(signs)], size=11,
                            color=("#0072B2", "#D55E00", "#007A5E", "#AA4499", "#000000", "#555555")[index % 6]),
                error_x=dict(type="data", symmetric=False, thickness=1, width=3,
                             array=[r.efficiency * (r.ratio / r.ratio_low - 1) for r in mine],
                             arrayminus=[r.efficiency * (1 - r.ratio / r.ratio_high) for r in mine]),
                customdata=[[r.obtained, r.promised, r.batch_size / r.seconds] for r in mine],
                hovertemplate="<b>%{y}</b><br>yield %{x:.2f}<br>%{customdata[0]:.2f}x of %{customdata[1]:.2f}x<br>"
                              "%{customdata[2]:.0f} images/s<extra></extra>"), row=1, col=column)
        figure.add_vline(x=1, line=dict(color="#767676", width=2, dash="dot"), row=1, col=column)
    figure.update_xaxes(title=dict(text="yield: obtained / promised", standoff=8, font_size=14), rangemode="tozero")
    figure.update_yaxes(showgrid=False)
    figure.update_layout(height=max(480, 200 + 44 * len({_two_lines(r) for r in rows})), margin=dict(l=180, b=104))
    return figure


def operators(rows: Sequence[Timing], title: str) -> go.Figure:
    """Share of a block's time, a bar per operator and K."""
    rows = [r for r in rows if r.part == "operators" and r.rounds]
    kept = sorted({r.kept for r in rows if r.kept}, reverse=True)
    score = next((r for r in rows if r.name == "score"), None)
    names = list(dict.fromkeys(label(r) for r in rows if r.kept))[::-1]
    figure = go.Figure(layout=dict(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), barmode="group", bargap=0.25,
        height=190 + 40 * (len(names) + 1), margin=dict(l=230, r=24, b=110),
        legend=_LEGEND | dict(traceorder="reversed"),
        xaxis=dict(title=dict(text="share of the time of one block", font_size=14))))
    fills = (("#0072B2", ""), ("#D55E00", "/"), ("#007A5E", "x"))
    for index, k in enumerate(kept):
        mine = {label(r): r for r in rows if r.kept == k}
        shown = [mine[n] for n in names if n in mine]
        colour, pattern = fills[index % len(fills)]
        figure.add_trace(_bars([label(r) for r in shown], shown, f"K = {k}", colour, pattern, 0.0))
    if score is not None:
        figure.add_trace(_bars(["score (what it adds)"], [score], "any K", "#555555", "", 1.0))
    return figure


def _bars(names: list[str], rows: list[Timing], name: str, colour: str, pattern: str, less: float) -> go.Bar:
    return go.Bar(
        x=[r.ratio - less for r in rows], y=names, orientation="h", name=name,
        marker=dict(color=colour, pattern=dict(shape=pattern, fgcolor="white", fillmode="overlay", size=6)),
        error_x=dict(type="data", symmetric=False, thickness=1, width=3, array=[r.ratio_high - r.ratio for r in rows],
                     arrayminus=[r.ratio - r.ratio_low for r in rows]),
        customdata=[[1e3 * (r.seconds - less * r.baseline_seconds), r.share, r.rounds] for r in rows],
        hovertemplate="<b>%{y}</b>, " + name + "<br>%{x:.3f} of a block<br>%{customdata[0]:.2f} ms<br>%{customdata[2]} rounds"
                      "<extra></extra>")


def growth(rows: Sequence[Timing], vary: str, title: str, across: str) -> go.Figure:
    """Seconds against size on two logarithmic axes; the legend says the fitted exponents."""
    figure = go.Figure(layout=dict(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), height=500,
        legend=_LEGEND,
        xaxis=dict(title=dict(text=across, standoff=10, font_size=14), type="log"),
        yaxis=dict(title=dict(text="milliseconds", standoff=12, font_size=14), type="log")))
    ticks: set[int] = set()
    for name, (sizes, seconds) in series(rows, vary).items():
        power, error = exponent(sizes, seconds)
        colour, symbol, dash = {"plain block": ("#000000", "star", "dot"), "score (what it adds)": ("#AA4499", "diamond", "dash"),
                                "wk_medoids farthest_first": ("#0072B2", "circle", "solid"), "wk_medoids top_k": LOOKS["wk_medoids"],
                                "wk_means top_k": ("#D55E00", "square", "dashdot")}.get(name, _OTHER)
        ticks |= set(sizes)
        figure.add_trace(go.Scatter(
            x=sizes, y=[1e3 * s for s in seconds], mode="lines+markers",
            name=f"{name}: exponent {power:.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}"),
            line=dict(color=colour, dash=dash, width=2), marker=dict(symbol=symbol, size=9),
            hovertemplate=f"<b>{name}</b><br>%{{x}}: %{{y:.2f}} ms<extra></extra>"))
    took = [y for trace in figure.data for y in trace.y]
    if took:
        figure.update_yaxes(dtick=1 if max(took) > 300 * min(took) else "D2")        # powers of ten, or 1, 2 and 5
    figure.update_xaxes(tickvals=sorted(ticks), ticktext=[f"{t:,}" for t in sorted(ticks)])
    return figure


def _panels(title: str, names: list[str]) -> go.Figure:
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.05)
    figure.update_layout(template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), hovermode="closest",
                         legend=_LEGEND, margin=dict(t=84))
    figure.update_annotations(font_size=14)
    return figure


def _look(row: Timing) -> tuple[str, str, str]:
    """A method's own look; a clustering from another start than top-K takes the start's colour and mark."""
    if row.init and row.init != "top_k":
        return ("#0072B2", "circle", "solid") if row.counts else INIT_LOOKS.get(row.init, _OTHER)
    if row.name == "wk_means":
        return "#AA4499", "diamond", "dash"            # LOOKS has it in the blue of the start above
    return LOOKS.get(row.name, _OTHER)


def _two_lines(row: Timing) -> str:
    return "<br>".join([row.name, *([f"{row.init}{' +counts' if row.counts else ''}"] if row.init else [])])


# ---- the page ----

def write_page(path: Path, rows: Sequence[Timing]) -> None:
    """Figures, sentences and tables of one run, in one file that needs nothing else."""
    parts = ["<h1>Is a saving in computations a saving in time?</h1>"
             "<p>Everything is timed in turns with what it replaces, in rounds of random order; shown are medians of the "
             "ratios, with quartiles. The plain model runs timm's fused attention. Weights are random: they change no time.</p>"
             f"<p>{EFFICIENCY}</p><p class=small>{html.escape(line_of(rows[0]))}.</p>"]
    for part, words in (("forward", "Fig. 12: speed-up against multiply-adds"), ("training", "A training step")):
        mine = [r for r in rows if r.part == part and r.rounds]
        if mine:
            parts.append(f"<h2>{words}</h2>" + _whole_models(part, mine))
    if any(r.part == "operators" and r.rounds for r in rows):
        parts.append("<h2>Operators</h2>" + _operators(rows))
    parts += _growth(rows)
    parts += [_html(table) for table in tables(rows)]
    left = [r for r in rows if not r.rounds]
    if left:
        parts.append(f"<p class=small>{len(left)} of {len(rows)} items have no number; the tables say why.</p>")
    page = PAGE.replace("{{title}}", "Token pooling: speed").replace("{{plotly}}", get_plotlyjs())
    with replace_file(path) as temporary:
        temporary.write_text(page.replace("{{body}}", "\n".join(parts)), encoding="utf-8")


def _whole_models(part: str, rows: list[Timing]) -> str:
    shown = []
    for dtype in dict.fromkeys(r.dtype for r in rows):
        said = "" if dtype == "float32" else f", {dtype}"
        for batch in sorted({r.batch_size for r in rows}, reverse=True):
            mine = [r for r in rows if r.dtype == dtype and r.batch_size == batch]
            curves = [r for r in mine if len({o.saving for o in mine if o.model == r.model}) > 1]
            if curves:
                shown.append(plot(f"{part}{dtype}{batch}", speed_up(curves, f"Speed-up, batch {batch}{said}"), _see_speed(curves)))
        for saving in sorted({r.saving for r in rows if r.dtype == dtype}, key=lambda s: abs(s - 0.42))[:1]:
            mine = [r for r in rows if r.dtype == dtype and r.saving == saving]
            shown.append(plot(f"yield{part}{dtype}", yields(mine, f"Yield at a saving of {saving:.0%}{said}"),
                              "The dotted line is the promise kept: time fell exactly as the multiply-adds did. Left of it a part was lost."))
    return "".join(shown)


def _see_speed(rows: list[Timing]) -> str:
    best, worst = max(rows, key=lambda r: r.efficiency), min(rows, key=lambda r: r.efficiency)
    return (f"On the dotted curve every multiply-add saved would be time saved. Nearest to it or above: {label(best)} at "
            f"{best.share:.0%} of the multiply-adds, {best.obtained:.2f}x of {best.promised:.2f}x. Farthest: {label(worst)} at "
            f"{worst.share:.0%}, {worst.obtained:.2f}x of {worst.promised:.2f}x. Bars are quartiles over rounds.")


def _operators(rows: Sequence[Timing]) -> str:
    mine = [r for r in rows if r.part == "operators" and r.rounds]
    shown = []
    for dtype, batch in dict.fromkeys((r.dtype, r.batch_size) for r in mine):
        here = [r for r in mine if r.dtype == dtype and r.batch_size == batch]
        first = here[0]
        dearest = max((r for r in here if r.kept), key=lambda r: r.ratio, default=first)
        shown.append(plot(f"operators{dtype}{batch}", operators(
            here, f"What pooling costs: {first.tokens} tokens, batch {batch}" + ("" if dtype == "float32" else f", {dtype}")),
            f"One block of {first.model} is 1. Dearest: {label(dearest)} at K = {dearest.kept}, {dearest.ratio:.2f} of a block."))
    return "".join(shown)


def _growth(rows: Sequence[Timing]) -> list[str]:
    parts = []
    for vary, title, across in (("tokens", "Time against tokens, K = N / 2", "tokens N"),
                                ("batch_size", "Time against images", "images B"),
                                ("kept", "Time against kept tokens", "kept tokens K")):
        if series(rows, vary):
            see = ("An exponent of 1 doubles the time when the size doubles, 2 makes it four times as long. "
                   "The dotted line is the plain block, which a pooling must not outgrow." if vary == "tokens" else "")
            parts.append(("<h2>Growth</h2>" if not parts else "") + plot(f"growth{vary}", growth(rows, vary, title, across), see))
    return parts


def _html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(h)}" for h in table.head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in line) + "</tr>" for line in table.lines)
    return (f"<h2>{html.escape(table.title)}</h2><details><summary>Show the table</summary>"
            f"<table class=numbers><tr>{head}</tr>{lines}</table></details>")
