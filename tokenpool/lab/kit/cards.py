"""Words in a frame: what checks, predictions, hints and captions look like, for the eye and for a screen reader.

A card has three faces: HTML for JupyterLab and the course site, plain text for a terminal, and the words themselves for
tests. State is told by colour, symbol and word together, never by colour alone.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

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
        return (f'<div class="tp-card tp-{self.state}" role="status" style="border-left:4px solid {colour};'
                f'padding:.35em .8em;margin:.4em 0;max-width:52em;line-height:1.5">{strong}{inline(self.words)}</div>')


@dataclass(frozen=True)
class Code:
    """A piece of Python, shown as text: never a cell, so that it overwrites nothing."""

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
