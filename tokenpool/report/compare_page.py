"""What a comparison of published methods says: one table, curves, sentences. Pure: the same entries, the same page."""

# ruff: noqa: E501  (sentences of the page)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tokenpool.measure.compare import FAIR, Entry
from tokenpool.measure.rows import frame
from tokenpool.models.published import NAMED_METHODS, OURS
from tokenpool.report import stats
from tokenpool.report.figures import PEER_LOOKS, Line, curves
from tokenpool.report.pages import Listing, render

_STORIES = {c.label: c.description for c in NAMED_METHODS}
_PUBLISHED = tuple(c.label for c in NAMED_METHODS if c.published)
MARKS = (f"↓ below, ↑ above ours (`{OURS.label}`) on the same images, beyond the 95 % interval of the pairs; no mark: not "
         "significantly different; -: cannot be met.")
_COSINE = "cosine to the plain model's features"


def gap(ours: Entry, other: Entry) -> stats.Effect:
    """Ours minus another's top-1, image by image."""
    return stats.gap(*(frame([e], Entry) for e in (ours, other)), label=f"{ours.label} − {other.label}", saving=ours.budget)


def by_place(entries: Sequence[Entry]) -> dict[tuple[str, str, float], Entry]:
    """(method, fair, budget) -> entry."""
    return {(e.label, e.fair, e.budget): e for e in entries}


def labels(entries: Sequence[Entry]) -> list[str]:
    """Methods by their mean top-1 over everything they reached, ours first, best first."""
    means = {name: np.mean([e.top1 for e in entries if e.label == name]) for name in {e.label for e in entries}}
    return sorted(means, key=lambda name: (name != OURS.label, -means[name], name))


def cells(entries: Sequence[Entry], fair: str) -> list[list[str]]:
    """One line per method: label, then top-1 with its half interval, and a mark, for every budget."""
    place = by_place(entries)
    budgets = sorted({e.budget for e in entries})

    def cell(name: str, budget: float) -> str:
        entry, ours = place.get((name, fair, budget)), place.get((OURS.label, fair, budget))
        if entry is None:
            return "-"
        found = ours and gap(ours, entry)
        mark = " " if not found else "↓" if found.low > 0 else "↑" if found.high < 0 else " "
        return f"{100 * entry.top1:.1f} ±{50 * (entry.top1_high - entry.top1_low):.1f}{mark}"
    return [[name, *(cell(name, budget) for budget in budgets)] for name in labels(entries)]


def told(entries: Sequence[Entry]) -> list[str]:
    """Ours against the best published method, budget by budget, at equal multiply-adds and at equal time."""
    place, said = by_place(entries), []
    for fair, words in FAIR.items():
        found = []
        for budget in sorted({e.budget for e in entries if e.fair == fair}):
            ours = place.get((OURS.label, fair, budget))
            others = [e for e in entries if e.fair == fair and e.budget == budget and e.label in _PUBLISHED]
            if ours and others:
                best = max(others, key=lambda e: e.top1)
                found.append((best.label, gap(ours, best)))
        if found:
            said.append(
                f"At {words}, {OURS.label} minus the best published method, points of top-1: "
                f"{'; '.join(f'{g.budget}: {g} over {name}' for name, g in found)}. Clearly above at "
                f"{sum(g.low > 0 for _, g in found)} of {len(found)} budgets, not significantly different at "
                f"{sum(g.low <= 0 <= g.high for _, g in found)}.")
    return said


def trade_off(entries: Sequence[Entry], column: str = "top1") -> go.Figure:
    """Equal multiply-adds and equal time side by side; variants with a part of ours are a click in the legend away."""
    panels: dict[str, list[Line]] = {}
    for fair, words in FAIR.items():
        panels[words] = []
        for name in labels(entries):
            mine = sorted((e for e in entries if e.fair == fair and e.label == name), key=lambda e: e.budget)
            if not mine:
                continue
            main = name == OURS.label or name in _PUBLISHED
            look = (*PEER_LOOKS.get(mine[0].name, ("#000000", "circle")), "solid" if main else "dot")
            top1 = column == "top1"
            panels[words].append(Line(
                name, look, [100 * (e.gmacs / e.gmacs_plain if fair == "macs" else e.time) for e in mine],
                [100 * e.top1 if top1 else e.cosine for e in mine],
                [100 * e.top1_low for e in mine] if top1 else None, [100 * e.top1_high for e in mine] if top1 else None,
                [f"-{e.budget:.0%}: top-1 {100 * e.top1:.1f} %, cosine {e.cosine:.4f}<br>{100 * e.gmacs / e.gmacs_plain:.0f} % of "
                 f"the multiply-adds, {100 * e.time:.0f} % of the time ({100 * e.time_low:.0f} to {100 * e.time_high:.0f})<br>K "
                 f"after each block: {e.schedule}" for e in mine], hidden=not main, width=3 if name == OURS.label else 1.6))
    return curves(panels, ("% of the plain model's multiply-adds", "% of the plain model's time"),
                  "top-1 without finetuning" if column == "top1" else _COSINE, percent="xy" if column == "top1" else "x",
                  level=100 * entries[0].top1_plain if column == "top1" else None, height=400)


def setting(entries: Sequence[Entry]) -> str:
    """What was measured, on what, where: one line."""
    e = entries[0]
    clock = "one thread, CPU time" if e.clock == "cpu" else "wall clock"
    return (f"{e.model} on {e.images:,} images of {e.data}, {100 * e.top1_plain:.1f} % right with all tokens; fitted K from "
            f"{max(x.fitted_on for x in entries)} others without labels; timed in turns in batches of {e.batch_size}, {e.rounds} "
            f"rounds, {clock}; {e.device}; torch {e.torch}, timm {e.timm}, tokenpool {e.tokenpool} {e.commit}, {e.date[:10]}")


def context(entries: Sequence[Entry], name: str, title: str = "", table_open: bool = False) -> dict[str, Any]:
    """What the template `comparison.html.j2` shows, on the comparison's own page and on the board. `name`: of its plots."""
    lines: list[Sequence[str]] = []
    for fair, words in FAIR.items():
        lines += [[words], *([line[0], _STORIES.get(line[0], ""), *line[1:]] for line in cells(entries, fair))]
    head = ("Method", "What it is", *(f"-{b:.0%}" for b in sorted({e.budget for e in entries})))
    return dict(name=name, title=title, said=told(entries), top1=trade_off(entries), cosine=trade_off(entries, "cosine"),
                table=Listing("", head, lines), marks=MARKS, setting=setting(entries), table_open=table_open)


def markdown(entries: Sequence[Entry]) -> str:
    """Sentences and the table, for docs/reproduction.md."""
    budgets = [f"-{b:.0%}" for b in sorted({e.budget for e in entries})]
    return "\n".join([f"{setting(entries)}.\n", *(f"- {s}" for s in told(entries)), *(
        "\n" + Listing("", (words, *budgets), cells(entries, fair)).markdown() for fair, words in FAIR.items())]) + "\n"


def write_page(path: Path, entries: Sequence[Entry]) -> None:
    render(path, "compare", "Token pooling and other methods", one=context(entries, "comparison", table_open=True))
