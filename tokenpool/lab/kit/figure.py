"""Figures with words: below each stands a sentence on what to see, and its numbers are one click away."""

from __future__ import annotations

import html
import math

import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, display

from tokenpool.lab.kit.cards import inline
from tokenpool.report.figures import TEMPLATE

#: contrast of 3:1 or more on white; used in this order, always with a second mark (dash, symbol, words)
INK, BLUE, ORANGE, GREEN, PURPLE, GREY = "#1b1b1b", "#0072B2", "#D55E00", "#007A5E", "#AA4499", "#6b6b6b"
_ROWS = 40                      # the longest table of a caption


def styled(figure: go.Figure, height: int | None = None) -> go.Figure:
    """The house style: template, title at the left, axis titles of 14 px, a legend below everything else."""
    names = [str(t.name) for t in figure.data if t.name and t.showlegend is not False]
    legend = len(names) > 1 and figure.layout.showlegend is not False
    # an entry is about 50 px wider than its letters; on the narrowest page a figure is about 720 px wide
    lines = math.ceil(sum(50 + 7.5 * len(name) for name in names) / 680) if legend else 0
    titled = any(axis.title.text for axis in figure.select_xaxes())
    bottom = (64 if titled else 24) + 24 * lines + (8 if legend else 0)
    figure.update_layout(template=TEMPLATE, title=dict(x=0.01, xanchor="left", font_size=16, y=1, yref="container",
                                                       yanchor="top", pad_t=16))
    figure.update_xaxes(title_font_size=14).update_yaxes(title_font_size=14)
    if legend:
        figure.update_layout(legend=dict(orientation="h", yref="container", y=0, yanchor="bottom", x=0, font_size=13))
    given = {side: space for side in "lrt" if (space := figure.layout.margin[side]) is not None}
    return figure.update_layout(margin=dict(l=70, r=20, t=64) | given | dict(b=bottom),
                                height=height or figure.layout.height or 400)


def show(figure: go.Figure, *, see: str, table: pd.DataFrame | None = None) -> None:
    """Display a figure, a sentence on what to see in it, and its numbers behind a click.

    Args:
        see: what a person who cannot see the figure should know.

    Raises:
        ValueError: the figure has no title, or `see` is empty.
    """
    if not see.strip():
        raise ValueError("A figure needs words. Type show(figure, see=\"what to look for\").")
    if not (figure.layout.title.text or "").strip():
        raise ValueError("A figure needs a title, the question it answers. Type figure.update_layout(title=...).")
    display({"application/vnd.plotly.v1+json": styled(figure).to_plotly_json(), "text/plain": f"Figure: {see}"},
            raw=True)
    display(HTML(caption(see, table)))


def caption(see: str, table: pd.DataFrame | None = None, title: str = "What to see.") -> str:
    words = (f'<p class="tp-see" style="max-width:52em;line-height:1.5;margin:.2em 0"><strong>{title}</strong> '
             f"{inline(see)}</p>")
    return words + (details(table) if table is not None else "")


def details(table: pd.DataFrame, summary: str = "The numbers of this figure") -> str:
    """A table behind a click. Works without a kernel, by keyboard and with a screen reader."""
    if len(table) > _ROWS:
        raise ValueError(f"A table of {len(table)} rows is too long for a caption. Use at most {_ROWS}.")
    head = "".join(f'<th scope="col" style="text-align:right;padding:.15em .7em">{html.escape(str(c))}</th>'
                   for c in table.columns)
    rows = "".join("<tr>" + "".join(f'<td style="text-align:right;padding:.15em .7em">{_cell(v)}</td>' for v in row)
                   + "</tr>" for row in table.itertuples(index=False))
    return (f'<details class="tp-table"><summary>{html.escape(summary)}</summary><div style="overflow-x:auto">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>")


def _cell(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
