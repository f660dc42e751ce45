"""All explorers in one place: a row to choose from, and the one that was chosen. The page of `tokenpool explore`."""

from __future__ import annotations

import html
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from tokenpool.core.checks import one_of

FILES = Path(__file__).with_name("page")
#: notebook -> its name, and what its explorer answers. K per layer comes first: it holds what the others take apart
EXPLORERS = {
    "05": ("K per layer", "A budget pays for so many tokens in all. After which block should the others go?"),
    "00": ("Start here", "If only a quarter of an image's tokens may stay, what is lost first?"),
    "01": ("Where the compute goes", "Why do fewer tokens save more than cheaper attention?"),
    "02": ("Attention smooths", "Why do tokens repeat one another?"),
    "03": ("Reconstruction error", "Which K tokens speak for all?"),
    "04": ("Clustering and its start", "How are they found, and does the start matter?"),
    "06": ("Normalised keys and queries", "What changes if attention is a true Gaussian filter?"),
    "07": ("Finetuning", "What does training give back?"),
    "08": ("Reading the evidence", "Which claims hold, and how sure are we?"),
}


def chosen(which: str) -> tuple[str, ...]:
    """`all`, or a notebook's number -> the explorers to show."""
    return tuple(EXPLORERS) if which == "all" else (one_of("explorer", which, [*EXPLORERS, "all"], ""),)


class Chooser(anywidget.AnyWidget):
    """A row of buttons, one of them current. Buttons, not a drop-down: passing an explorer must not start it."""

    _esm, _css = FILES / "chooser.js", FILES / "chooser.css"
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)


class Gallery:
    """One explorer at a time; each is made when it is first asked for, and kept."""

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
        """Show an explorer; if it cannot be made, say so in words: the others still can."""
        name, question = EXPLORERS[number]
        self._head.value = f"<h2>{html.escape(name)}</h2><p>{html.escape(question)}</p>"
        try:
            if number not in self.explorers:
                self._say(f"Opening {name} ...")
                self.explorers[number] = _lesson(number).explore()
                self._place.children = (*self._place.children, self.explorers[number].box)
            self._show(number)
            self._say("")
        except Exception as error:              # a page without code has no other place to tell it
            logging.getLogger(__name__).exception("explorer %s", number)
            self._show("")
            self._say(f"{name} could not be opened: {str(error).rstrip('.')}. The other explorers still work.", True)

    def _show(self, number: str) -> None:
        """Put all but one out of sight. They stay on the page: a figure that is taken off it forgets how to follow."""
        for other, explorer in self.explorers.items():
            (explorer.box.remove_class if other == number else explorer.box.add_class)("tp-away")

    def _say(self, words: str, trouble: bool = False) -> None:
        self.words = words
        mark = ' class="tp-trouble"' if trouble else ""
        self._state.value = f'<div role="status">{f"<p{mark}>{html.escape(words)}</p>" if words else ""}</div>'


def _lesson(number: str) -> Any:
    from tokenpool.lab.kit.session import LESSONS
    return importlib.import_module(f"tokenpool.lab.lessons.{LESSONS[number]}")
