"""The page of `tokenpool explore`: a row of buttons, and the explorer that was chosen."""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from tokenpool.core.checks import one_of
from tokenpool.lab.kit.session import lesson

FILES = Path(__file__).with_name("page")
#: notebook -> its name and the question of its explorer. K per layer is first: it combines what the others separate
EXPLORERS = {
    "05": ("K per layer", "With a fixed budget of MACs, how many tokens should each block keep?"),
    "00": ("Start here", "If an image keeps a quarter of its tokens, what is lost first?"),
    "01": ("Where the compute goes", "Why do fewer tokens save more than cheaper attention?"),
    "02": ("Attention smooths", "Why do tokens repeat one another?"),
    "03": ("Reconstruction error", "Which K tokens represent all of them best?"),
    "04": ("Clustering and its start", "How are they found, and does the initialisation matter?"),
    "06": ("Normalised keys and queries", "What changes if attention is a true Gaussian filter?"),
    "07": ("Finetuning", "How much accuracy does training recover?"),
    "08": ("Reading the evidence", "Which claims hold, and how sure are we?"),
}


def chosen(which: str) -> tuple[str, ...]:
    """The explorers to show: of one notebook, or `all`."""
    return tuple(EXPLORERS) if which == "all" else (one_of("explorer", which, [*EXPLORERS, "all"], ""),)


class Chooser(anywidget.AnyWidget):
    """A row of buttons. Not a drop-down, where moving past an explorer would open it."""

    _esm, _css = FILES / "chooser.js", FILES / "chooser.css"
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)


class Gallery:
    """Shows one explorer at a time. Each is made when it is first opened, and kept."""

    def __init__(self, numbers: Sequence[str] = tuple(EXPLORERS)) -> None:
        self.numbers = tuple(numbers)
        self.explorers: dict[str, Any] = {}
        self.chooser = Chooser(names=[f"{n} {EXPLORERS[n][0]}" for n in self.numbers])
        self._head, self._state, self._place = widgets.HTML(), widgets.HTML(), widgets.VBox()
        self._head.add_class("tp-head")
        self._state.add_class("tp-state")
        self._place.add_class("tp-place")
        self.chooser.observe(lambda change: self.open(self.numbers[change["new"]]), "index")
        row = [self.chooser] if len(self.numbers) > 1 else []
        self.box = widgets.VBox([*row, self._head, self._state, self._place])
        self.open(self.numbers[0])

    def open(self, number: str) -> None:
        """Show an explorer, or the error if it cannot be made: the others still work."""
        name, question = EXPLORERS[number]
        self._head.value = f"<h2>{html.escape(name)}</h2><p>{html.escape(question)}</p>"
        try:
            if number not in self.explorers:
                self._say(f"Opening {name} ...")
                self.explorers[number] = lesson(number).explore()
                self._place.children = (*self._place.children, self.explorers[number].box)
            self._show(number)
            self._say("")
        except Exception as error:              # the page has no other place for errors
            logging.getLogger(__name__).exception("explorer %s", number)
            self._show("")
            self._say(f"{name} could not be opened: {str(error).rstrip('.')}. The other explorers still work.", True)

    def _show(self, number: str) -> None:
        """Hide all but one. They stay on the page, because a figure that is removed from it stops updating."""
        for other, explorer in self.explorers.items():
            (explorer.box.remove_class if other == number else explorer.box.add_class)("tp-away")

    def _say(self, words: str, trouble: bool = False) -> None:
        self.words = words
        mark = ' class="tp-trouble"' if trouble else ""
        self._state.value = f'<div role="status">{f"<p{mark}>{html.escape(words)}</p>" if words else ""}</div>'
