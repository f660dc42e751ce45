"""What a comparison says: one table, curves, sentences. Pure: the same entries give the same page."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from tokenpool.data.files import replace_file
from tokenpool.measure.compare import FAIR, Entry
from tokenpool.measure.rows import unpack
from tokenpool.models.published import NAMED_METHODS, OURS
from tokenpool.report import figures
from tokenpool.report.accuracy_page import PAGE, plot

_STORIES = {c.label: c.description for c in NAMED_METHODS}
_RIVALS = tuple(c.label for c in NAMED_METHODS if c.published)


@dataclass(frozen=True)
class Gap:
    """Ours minus another's top-1 on the same images, in points, with the 95 % interval of the pairs."""

    mean: float
    half: float

    @property
    def mark(self) -> str:
        """Where the other is: below ours, above ours, or not to be told apart."""
        return "↓" if self.mean > self.half else "↑" if -self.mean > self.half else " "

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.half:.1f}"


def gap(ours: Entry, other: Entry) -> Gap:
    """Paired, image by image."""
    a, b = (unpack(e.right, e.images).astype(float) for e in (ours, other))
    d = a - b
    return Gap(100 * float(d.mean()), 196 * float(d.std(ddof=1)) / float(np.sqrt(len(d))) if len(d) > 1 else 0.0)


def by_place(entries: Sequence[Entry]) -> dict[tuple[str, str, float], Entry]:
    """(contender, fair, budget) -> entry."""
    return {(e.label, e.fair, e.budget): e for e in entries}


def labels(entries: Sequence[Entry]) -> list[str]:
    """Contenders by their mean top-1 over everything they reached, ours first, best first."""
    means = {name: np.mean([e.top1 for e in entries if e.label == name]) for name in {e.label for e in entries}}
    return sorted(means, key=lambda name: (name != OURS.label, -means[name], name))


def cells(entries: Sequence[Entry], fair: str) -> list[list[str]]:
    """One line a contender: label, then top-1 with its half interval, and a mark, for every budget."""
    place = by_place(entries)
    budgets = sorted({e.budget for e in entries})
    lines = []
    for name in labels(entries):
        line = [name]
        for budget in budgets:
            entry, ours = place.get((name, fair, budget)), place.get((OURS.label, fair, budget))
            if entry is None:
                line.append("-")
                continue
            mark = gap(ours, entry).mark if ours is not None else " "
            line.append(f"{100 * entry.top1:.1f} ±{50 * (entry.top1_high - entry.top1_low):.1f}{mark}")
        lines.append(line)
    return lines


def told(entries: Sequence[Entry]) -> list[str]:
    """Against the best of the others as published, budget by budget, in both senses."""
    place = by_place(entries)
    said = []
    for fair, words in FAIR.items():
        parts, above, level = [], 0, 0
        budgets = sorted({e.budget for e in entries if e.fair == fair})
        for budget in budgets:
            ours = place.get((OURS.label, fair, budget))
            rivals = [e for e in entries if e.fair == fair and e.budget == budget and e.label in _RIVALS]
            if ours is None or not rivals:
                continue
            best = max(rivals, key=lambda e: e.top1)
            found = gap(ours, best)
            above += found.mark == "↓"
            level += found.mark == " "
            parts.append(f"-{budget:.0%}: {found} over {best.label}")
        if parts:
            said.append(f"At {words}, {OURS.label} against the best of the others as published, points of top-1: "
                        f"{'; '.join(parts)}. Clearly above at {above} of {len(parts)} budgets, not to be told apart at "
                        f"{level}.")
    return said


def curves(entries: Sequence[Entry], column: str = "top1") -> go.Figure:
    """Both senses side by side; variants with our metric or our K are there on a click in the legend."""
    chart = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(FAIR.values()))
    for number, fair in enumerate(FAIR, 1):
        for name in labels(entries):
            mine = sorted((e for e in entries if e.fair == fair and e.label == name), key=lambda e: e.budget)
            colour, symbol = figures.PEER_LOOKS.get(mine[0].name if mine else name, ("#000000", "circle"))
            first = number == 1
            half = [50 * (e.top1_high - e.top1_low) for e in mine] if column == "top1" else None
            chart.add_trace(go.Scatter(
                x=[round(100 * (e.gmacs / e.gmacs_plain if fair == "macs" else e.time), 2) for e in mine],
                y=[round(100 * e.top1, 2) if column == "top1" else round(e.cosine, 4) for e in mine],
                error_y=None if half is None else dict(type="data", array=half, thickness=1, width=3), name=name,
                legendgroup=name, showlegend=first, mode="lines+markers",
                visible=True if name == OURS.label or name in _RIVALS else "legendonly",
                line=dict(color=colour, width=3 if name == OURS.label else 1.6,
                          dash="solid" if name == OURS.label or name in _RIVALS else "dot"),
                marker=dict(symbol=symbol, size=9),
                customdata=[[f"-{e.budget:.0%}", f"{100 * e.gmacs / e.gmacs_plain:.0f} % of the multiply-adds, "
                             f"{100 * e.time:.0f} % of the time ({100 * e.time_low:.0f} to {100 * e.time_high:.0f})",
                             e.schedule] for e in mine],
                hovertemplate=f"<b>{html.escape(name)}</b>, %{{customdata[0]}}: %{{y}}<br>%{{customdata[1]}}<br>K after "
                              "each block: %{customdata[2]}<extra></extra>"), 1, number)
    chart.update_layout(template=figures.TEMPLATE, height=640, hovermode="closest", margin=dict(l=70, r=16, t=40, b=220),
                        legend=dict(orientation="h", y=-0.16, yanchor="top", x=0, font_size=13))
    chart.update_xaxes(title=dict(text="% of the plain model's multiply-adds", standoff=8, font_size=14), ticksuffix=" %", col=1)
    chart.update_xaxes(title=dict(text="% of the plain model's time", standoff=8, font_size=14), ticksuffix=" %", col=2)
    if column == "top1":
        chart.add_hline(y=100 * entries[0].top1_plain, line=dict(color="#888", width=1, dash="dot"))
    words = "top-1 without finetuning" if column == "top1" else "cosine to the plain model's features"
    chart.update_yaxes(title=dict(text=words, font_size=14), ticksuffix=" %" if column == "top1" else "", col=1)
    return chart


def setting(entries: Sequence[Entry]) -> str:
    """What was measured, on what, where: one line."""
    e = entries[0]
    fitted = max(x.fitted_on for x in entries)
    return (f"{e.model} on {e.images:,} images of {e.data}, {100 * e.top1_plain:.1f} % right with all tokens; fitted K from {fitted} others without labels; timed in "
            f"turns in batches of {e.batch_size}, {e.rounds} rounds, {'one thread, CPU time' if e.clock == 'cpu' else 'wall clock'}; {e.device}; torch {e.torch}, "
            f"timm {e.timm}, tokenpool {e.tokenpool} {e.commit}, {e.date[:10]}")


def section(entries: Sequence[Entry], name: str, table_open: bool = False) -> str:
    """Curves, sentences and the table, for the comparison's own page and for the board. `name`: of its plots."""
    said = "".join(f"<li>{html.escape(s)}</li>" for s in told(entries))
    budgets = sorted({e.budget for e in entries})
    head = "".join(f"<th>-{b:.0%}" for b in budgets)
    rows = []
    for fair, words in FAIR.items():
        rows.append(f"<tr><th colspan={len(budgets) + 2}>{words}</tr>")
        for line in cells(entries, fair):
            rows.append(f"<tr><td>{html.escape(line[0])}<td>{html.escape(_STORIES.get(line[0], ''))}"
                        + "".join(f"<td>{html.escape(c)}" for c in line[1:]) + "</tr>")
    see = ("Dotted line: the plain model. Bars are 95 % intervals over images. A method that is cheap in multiply-adds and slow by the clock lies "
           "lower on the right. Dotted curves, a click in the legend away, have a part of ours: metric, options or K.")
    return (f"<ul>{said}</ul>"
            + plot(f"{name}-top1", curves(entries), see, "top-1 of all contenders at equal multiply-adds and at equal time")
            + "<details><summary>Nearness to the plain model's features</summary>"
            + plot(f"{name}-cosine", curves(entries, "cosine"), "1 means that the classifier reads what it read before.",
                   "cosine of the class features of all contenders")
            + "</details>"
            f"<details{' open' if table_open else ''}><summary>The table</summary><p class=small>Top-1 in % with half its 95 % interval. ↓ below, ↑ above "
            f"{html.escape(OURS.label)} on the same images, beyond the 95 % interval of the pairs; no mark: not to be "
            "told apart. -: cannot be met.</p>"
            f"<table class=\"numbers comparison\"><tr><th>NamedMethod<th>What it is{head}</tr>{''.join(rows)}</table></details>"
            f"<p class=small>{html.escape(setting(entries))}.</p>")


def markdown(entries: Sequence[Entry]) -> str:
    """Sentences and the table, for docs/reproduction.md."""
    budgets = sorted({e.budget for e in entries})
    lines = [f"{setting(entries)}.\n", *(f"- {s}" for s in told(entries))]
    for fair, words in FAIR.items():
        lines.append(f"\n| {words} | {' | '.join(f'-{b:.0%}' for b in budgets)} |\n|---{'|---' * len(budgets)}|")
        lines += [f"| {' | '.join(c.strip() for c in line)} |" for line in cells(entries, fair)]
    return "\n".join(lines) + "\n"


def write_page(path: Path, entries: Sequence[Entry]) -> None:
    body = ("<h1>Side by side, without finetuning</h1><p>Every method with the options it was published with, at equal "
            "multiply-adds (clustering counted) and at equal time on this machine. DynamicViT and the patch merger need "
            "training and are on the board of finetuned systems.</p>" + section(entries, "comparison", True))
    page = PAGE.replace("{{title}}", "Token pooling and its peers").replace("{{plotly}}", get_plotlyjs())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(page.replace("{{body}}", body), encoding="utf-8")
