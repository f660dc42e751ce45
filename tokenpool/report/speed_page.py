"""Timings -> tables, figures and one page. Pure: the same rows give the same page, nothing is measured here."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tokenpool.measure.rows import Timing
from tokenpool.report.figures import BLACK, INIT_LOOKS, LOOKS, TEMPLATE, Line, Look, curves
from tokenpool.report.pages import Listing, render

EFFICIENCY = ("Efficiency is the speed-up obtained over the speed-up promised, and promised is plain / pooled multiply-adds, "
              "clustering included: 1.00 means that every multiply-add saved became time. Memory is the peak over that of "
              "what is replaced.")
_LEGEND = dict(orientation="h", yref="container", y=0.01, yanchor="bottom", x=0, font_size=13)      # below the axis title


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

def model_table(rows: Sequence[Timing], part: str) -> Listing:
    """Whole models ("forward" or "training"): what was promised, what was obtained."""
    head = ("method", "model", "batch", "MACs", "promised", "obtained (quartiles)", "efficiency", "images/s", "memory",
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
    return Listing(title, head, lines)


def operator_table(rows: Sequence[Timing]) -> Listing:
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
    return Listing(f"Operators against one block{of}", head, lines)


def growth_table(rows: Sequence[Timing]) -> Listing:
    """Fitted exponents: time goes as (what is varied) to the power of this."""
    lines = []
    for vary, word in (("tokens", "tokens N (K = N / 2)"), ("batch_size", "images B"), ("kept", "kept tokens K")):
        for name, (sizes, seconds) in series(rows, vary).items():
            if len(sizes) > 1:
                power, error = exponent(sizes, seconds)
                lines.append((name, word, " ".join(map(str, sizes)), f"{power:.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}"),
                              f"{1e3 * seconds[0]:.2f} to {1e3 * seconds[-1]:.2f}"))
    return Listing("How cost grows", ("operator", "with", "sizes", "exponent ± standard error", "ms"), lines)


def memory_table(rows: Sequence[Timing]) -> Listing:
    """A block that pools beside the plain block, where tokens are many."""
    lines = []
    for row in (r for r in rows if r.part == "memory"):
        there = f"{row.baseline_peak_mib:.0f}" if row.baseline_peak_mib else "-"
        lines.append((f"{row.name} ({row.init})", str(row.tokens), str(row.kept), str(row.batch_size),
                      f"{row.peak_mib:.0f}" if row.rounds else row.note, there, f"{row.ratio:.2f}" if row.rounds else "-"))
    return Listing("Memory of a block that pools", ("step", "N", "K", "batch", "peak, MiB", "plain block, MiB", "time / plain"), lines)


def tables(rows: Sequence[Timing]) -> list[Listing]:
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
    low = min(r.share for r in rows) - 0.04
    promise = np.linspace(low, 1, 40)
    panels: dict[str, list[Line]] = {}
    for model in dict.fromkeys(r.model for r in rows):
        mine = panels[model.replace("_patch16_224", "")] = [
            Line("promised: time falls as multiply-adds do", ("#767676", "circle", "dot"), 100 * promise, 1 / promise, mode="lines"),
            Line("plain model", ("#000000", "star", "solid"), [100], [1], hover=["1.00x"], mode="markers")]
        for name in dict.fromkeys(label(r) for r in rows if r.model == model):
            one = sorted((r for r in rows if r.model == model and label(r) == name), key=lambda r: r.share)
            mine.append(Line(name, _look(one[0]), [100 * r.share for r in one], [r.obtained for r in one],
                             [1 / r.ratio_high for r in one], [1 / r.ratio_low for r in one], [
                                 f"{r.obtained:.2f}x obtained, {r.promised:.2f}x promised<br>efficiency {r.efficiency:.2f}<br>"
                                 f"{r.batch_size / r.seconds:.0f} images/s<br>{r.rounds} rounds" for r in one]))
    figure = curves(panels, "multiply-adds, % of the plain model", "speed-up over the plain model", title, percent="x")
    return figure.update_xaxes(range=[100 * low, 102]).update_yaxes(ticksuffix="x")


def efficiencies(rows: Sequence[Timing], title: str) -> go.Figure:
    """Obtained over promised at one saving, a panel per model, a marker per batch size."""
    rows = [r for r in rows if r.rounds]
    models = list(dict.fromkeys(r.model for r in rows))
    figure = make_subplots(1, len(models), subplot_titles=[m.replace("_patch16_224", "") for m in models], shared_yaxes=True,
                           horizontal_spacing=0.05)
    looks = list(zip(("#0072B2", "#D55E00", "#007A5E", "#AA4499", "#000000", "#555555"),
                     ("circle", "square", "diamond", "triangle-up", "x", "cross"), strict=True))
    for column, model in enumerate(models, 1):
        for index, batch in enumerate(sorted({r.batch_size for r in rows})):
            mine = [r for r in rows if r.model == model and r.batch_size == batch][::-1]
            colour, symbol = looks[index % len(looks)]
            figure.add_scatter(
                x=[r.efficiency for r in mine], y=[_two_lines(r) for r in mine], mode="markers", name=f"batch {batch}",
                legendgroup=str(batch), showlegend=column == 1, marker=dict(symbol=symbol, size=11, color=colour),
                error_x=_bars([r.efficiency * r.ratio / r.ratio_low for r in mine], [r.efficiency for r in mine],
                              [r.efficiency * r.ratio / r.ratio_high for r in mine]),
                text=[f"efficiency {r.efficiency:.2f}<br>{r.obtained:.2f}x of {r.promised:.2f}x<br>"
                      f"{r.batch_size / r.seconds:.0f} images/s" for r in mine],
                hovertemplate="<b>%{y}</b><br>%{text}<extra></extra>", row=1, col=column)
        figure.add_vline(x=1, line=dict(color="#767676", width=2, dash="dot"), row=1, col=column)
    figure.update_xaxes(title=dict(text="efficiency: obtained / promised", standoff=8, font_size=14), rangemode="tozero")
    figure.update_yaxes(showgrid=False)
    return figure.update_layout(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), hovermode="closest", legend=_LEGEND,
        height=max(480, 200 + 44 * len({_two_lines(r) for r in rows})), margin=dict(l=180, t=84, b=104))


def operators(rows: Sequence[Timing], title: str) -> go.Figure:
    """Share of a block's time, a bar per operator and K. For the score, what it adds to the block."""
    rows = [r for r in rows if r.part == "operators" and r.rounds]
    score = [r for r in rows if r.name == "score"][:1]
    names = list(dict.fromkeys(label(r) for r in rows if r.kept))[::-1]
    figure = go.Figure()
    fills = (("#0072B2", ""), ("#D55E00", "/"), ("#007A5E", "x"))
    groups = [(f"K = {k}", fills[i % 3], 0.0, [r for n in names for r in rows if r.kept == k and label(r) == n])
              for i, k in enumerate(sorted({r.kept for r in rows if r.kept}, reverse=True))]
    for name, (colour, pattern), less, mine in [*groups, *([("any K", ("#555555", ""), 1.0, score)] if score else [])]:
        figure.add_bar(
            x=[r.ratio - less for r in mine], y=["score (what it adds)" if less else label(r) for r in mine], orientation="h",
            name=name, marker=dict(color=colour, pattern=dict(shape=pattern, fgcolor="white", fillmode="overlay", size=6)),
            error_x=_bars([r.ratio_high for r in mine], [r.ratio for r in mine], [r.ratio_low for r in mine]),
            text=[f"{r.ratio - less:.3f} of a block<br>{1e3 * (r.seconds - less * r.baseline_seconds):.2f} ms<br>{r.rounds} rounds"
                  for r in mine], textposition="none", hovertemplate="<b>%{y}</b>, " + name + "<br>%{text}<extra></extra>")
    figure.update_xaxes(title=dict(text="share of the time of one block", font_size=14))
    return figure.update_layout(
        template=TEMPLATE, title=dict(text=title, x=0.01, font_size=16), barmode="group", bargap=0.25, showlegend=True,
        height=190 + 40 * (len(names) + 1), margin=dict(l=230, r=24, b=110), legend=_LEGEND | dict(traceorder="reversed"))


def _bars(high: Sequence[float], middle: Sequence[float], low: Sequence[float]) -> dict[str, Any]:
    return dict(type="data", symmetric=False, thickness=1, width=3, array=np.subtract(high, middle).tolist(),
                arrayminus=np.subtract(middle, low).tolist())


def growth(rows: Sequence[Timing], vary: str, title: str, across: str) -> go.Figure:
    """Milliseconds against size on two logarithmic axes; the legend says the fitted exponents."""
    looks = {"plain block": ("#000000", "star", "dot"), "score (what it adds)": ("#AA4499", "diamond", "dash"),
             "wk_medoids farthest_first": ("#0072B2", "circle", "solid"), "wk_medoids top_k": LOOKS["wk_medoids"],
             "wk_means top_k": ("#D55E00", "square", "dashdot")}
    lines = []
    for name, (sizes, seconds) in series(rows, vary).items():
        power, error = exponent(sizes, seconds)
        lines.append(Line(f"{name}: exponent {power:.2f}" + ("" if np.isnan(error) else f" ± {error:.2f}"),
                          looks.get(name, BLACK), sizes, [1e3 * s for s in seconds],
                          hover=[f"{size}: {1e3 * s:.2f} ms" for size, s in zip(sizes, seconds, strict=True)]))
    figure = curves({title: lines}, across, "milliseconds", title, percent="", log=True)
    took = [v for line in lines for v in line.y]
    if took:
        figure.update_yaxes(dtick=1 if max(took) > 300 * min(took) else "D2")        # powers of ten, or 1, 2 and 5
    ticks = sorted({size for line in lines for size in line.x})
    return figure.update_xaxes(tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])


def _look(row: Timing) -> Look:
    """A method's own look; a clustering from another init than top-K takes the init's colour and mark."""
    if row.init and row.init != "top_k":
        return ("#0072B2", "circle", "solid") if row.counts else INIT_LOOKS.get(row.init, BLACK)
    if row.name == "wk_means":
        return "#AA4499", "diamond", "dash"            # LOOKS has it in the blue of the init above
    return LOOKS.get(row.name, BLACK)


def _two_lines(row: Timing) -> str:
    return "<br>".join([row.name, *([f"{row.init}{' +counts' if row.counts else ''}"] if row.init else [])])


# ---- the page ----

def write_page(path: Path, rows: Sequence[Timing]) -> None:
    """Figures, sentences and tables of one run."""
    render(path, "speed", "Token pooling: speed", efficiency=EFFICIENCY, line=line_of(rows[0]), charts=list(_charts(rows)),
           tables=tables(rows), left=sum(not r.rounds for r in rows), total=len(rows))


def _charts(rows: Sequence[Timing]) -> Iterator[tuple[str, str, go.Figure, str]]:
    """(heading, place, figure, what to see)"""
    timed = [r for r in rows if r.rounds]
    for part, heading in (("forward", "Fig. 12: speed-up against multiply-adds"), ("training", "A training step")):
        for dtype in dict.fromkeys(r.dtype for r in timed if r.part == part):
            here = [r for r in timed if r.part == part and r.dtype == dtype]
            said = "" if dtype == "float32" else f", {dtype}"
            for batch in sorted({r.batch_size for r in here}, reverse=True):
                mine = [r for r in here if r.batch_size == batch]
                mine = [r for r in mine if len({o.saving for o in mine if o.model == r.model}) > 1]
                if mine:
                    yield heading, f"{part}{dtype}{batch}", speed_up(mine, f"Speed-up, batch {batch}{said}"), _see_speed(mine)
            saving = min({r.saving for r in here}, key=lambda s: abs(s - 0.42))
            yield (heading, f"yield{part}{dtype}", efficiencies([r for r in here if r.saving == saving],
                                                                f"Efficiency at a saving of {saving:.0%}{said}"),
                   "On the dotted line time fell exactly as the multiply-adds did. Left of it, part of the saving was lost.")
    single = [r for r in timed if r.part == "operators"]
    for dtype, batch in dict.fromkeys((r.dtype, r.batch_size) for r in single):
        here = [r for r in single if r.dtype == dtype and r.batch_size == batch]
        slowest = max((r for r in here if r.kept), key=lambda r: r.ratio, default=here[0])
        said = "" if dtype == "float32" else f", {dtype}"
        yield ("Operators", f"operators{dtype}{batch}",
               operators(here, f"What pooling costs: {here[0].tokens} tokens, batch {batch}{said}"),
               f"One block of {here[0].model} is 1. Most expensive: {label(slowest)} at K = {slowest.kept}, "
               f"{slowest.ratio:.2f} of a block.")
    for vary, title, across in (("tokens", "Time against tokens, K = N / 2", "tokens N"),
                                ("batch_size", "Time against images", "images B"), ("kept", "Time against kept tokens", "kept tokens K")):
        if series(rows, vary):
            yield ("Growth", f"growth{vary}", growth(rows, vary, title, across),
                   "An exponent of 1 doubles the time when the size doubles, 2 makes it four times as long. The dotted line is "
                   "the plain block, which a pooling must not outgrow." if vary == "tokens" else "")


def _see_speed(rows: list[Timing]) -> str:
    best, worst = max(rows, key=lambda r: r.efficiency), min(rows, key=lambda r: r.efficiency)
    return (f"On the dotted curve every multiply-add saved would be time saved. Nearest to it or above: {label(best)} at "
            f"{best.share:.0%} of the multiply-adds, {best.obtained:.2f}x of {best.promised:.2f}x. Farthest: {label(worst)} at "
            f"{worst.share:.0%}, {worst.obtained:.2f}x of {worst.promised:.2f}x. Bars are quartiles over rounds.")
