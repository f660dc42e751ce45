"""Framed text: how checks, predictions, hints and captions look, on a page and to a screen reader.

A card has three forms: HTML for JupyterLab and the course site, plain text for a terminal, and its words for tests.
Colour, symbol and word say the state together, never colour alone.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

#: state -> (colour of the edge, symbol and word in front)
STATES = {
    "right": ("#007A5E", "✓ Right."),
    "wrong": ("#D55E00", "✗ Not yet."),
    "open": ("#777777", "○ Nothing to check yet."),
    "note": ("#0072B2", ""),
}


@dataclass(frozen=True)
class Card:
    """A sentence or two in a frame. `words` may hold `code` and *emphasis*."""

    state: str
    words: str

    def __repr__(self) -> str:
        return f"{STATES[self.state][1]} {self.words}".strip()

    def _repr_html_(self) -> str:
        colour, label = STATES[self.state]
        strong = f"<strong>{label}</strong> " if label else ""
        return frame(strong + inline(self.words), f'class="tp-card tp-{self.state}" role="status"', colour)


@dataclass(frozen=True)
class Code:
    """Python code shown as text, never as a cell, so that it overwrites nothing."""

    words: str
    source: str

    def __repr__(self) -> str:
        return f"{self.words}\n\n{self.source}"

    def _repr_markdown_(self) -> str:
        return f"{self.words}\n\n```python\n{self.source.rstrip()}\n```"


_CODE, _EMPHASIS = re.compile(r"`([^`]+)`"), re.compile(r"(?<!\*)\*([^*\s][^*]*)\*")


def plain(words: str) -> str:
    """Without the marks of `code` and *emphasis*."""
    return _EMPHASIS.sub(r"\1", _CODE.sub(r"\1", words))


def inline(words: str) -> str:
    """Escaped HTML with `code`, *emphasis* and paragraphs."""
    text = html.escape(words, quote=False)
    text = _EMPHASIS.sub(r"<em>\1</em>", _CODE.sub(r"<code>\1</code>", text))
    return text.replace("\n\n", "<br><br>")


def frame(content: str, attributes: str, colour: str) -> str:
    """HTML with a coloured edge."""
    return (f'<div {attributes} style="border-left:4px solid {colour};padding:.35em .8em;margin:.4em 0;'
            f'max-width:52em;line-height:1.5">{content}</div>')


def view(widget: widgets.Widget) -> dict[str, Any]:
    """The output that makes a front end show a widget."""
    return {"application/vnd.jupyter.widget-view+json":
            {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}
