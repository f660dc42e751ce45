"""Explorers: a few controls, a figure that follows them, and a line of words that says what changed.

    Explorer({"k": Number("Tokens kept, K", 4, 1, 12), "method": Choice("Method", names)},
             compute=compare,          # (k, method) -> anything; cached by the lesson, tested with numbers
             draw=comparison_figure,   # the result -> go.Figure, always with the same traces
             say=comparison_words,     # the result -> what can be seen, and why
             measure=comparison_error) # the result -> the number to watch, ("error", 7.7, "{:.1f}")

These are pure functions, tested without a browser; this file only connects them. After a move the words begin with the
control and the number to watch: "You changed *Method* from top_k to k_means: the error fell from 9.2 to 7.7." Errors
are shown in the same place, because a front end hides the errors of callbacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tokenpool.lab.kit.cards import inline, view
from tokenpool.lab.kit.figure import caption, details, styled
from tokenpool.lab.widgets.controls import Control

Measured = tuple[str, float, str]       # name, value, format


class Explorer:
    """Controls, figure and words. `set(k=3)` moves controls from Python; `words` is the current text."""

    def __init__(self, controls: Mapping[str, Control], compute: Callable[..., Any],
                 draw: Callable[[Any], go.Figure], say: Callable[[Any], str],
                 table: Callable[[Any], pd.DataFrame] | None = None, height: int | None = 420,
                 measure: Callable[[Any], Measured | None] = lambda found: None) -> None:
        self.controls = dict(controls)
        self.compute, self.draw, self.say, self.table, self.height = compute, draw, say, table, height
        self.measure, self._measured, self._moves = measure, None, ""
        self._status, self._numbers = widgets.HTML(), widgets.HTML()
        self.words = ""
        self.error: Exception | None = None
        found = self._look()
        self.figure = go.FigureWidget(styled(draw(found), height))
        self.figure._config = {**self.figure._config, "responsive": True}       # else always 700 pixels wide
        self._tell(found)
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.box = self._arrange()

    def _arrange(self) -> widgets.Box:
        rows = widgets.VBox(list(self.controls.values()), layout=widgets.Layout(margin="0 0 8px 0"))
        return widgets.VBox([rows, self._status, self.figure, self._numbers])

    def _look(self) -> Any:
        return self.compute(**self.values())

    def values(self) -> dict[str, Any]:
        """The value of every control."""
        return {name: control.read() for name, control in self.controls.items()}

    def set(self, **values: Any) -> Explorer:
        """Move controls, as a person would."""
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"No control called {name!r}. Use one of {', '.join(self.controls)}.")
            self.controls[name].value = value
        return self

    def _moved(self, change: Any) -> None:
        """Front ends merge the changes that arrive while one is handled. So this reads the current value of all
        controls: a dragged slider is computed where it is, not at every place it passed."""
        control = change["owner"]
        with self._told():
            old, new = control.spoken(change["old"]), control.spoken(change["new"])
            self._moves = f"You changed *{control.label}* from {old} to {new}"
            self._show()

    def _show(self) -> None:
        """Compute, draw and describe the current setting."""
        found = self._look()
        new = styled(self.draw(found), self.height)
        with self.figure.batch_update():
            _place(new, self.figure)
        with self.figure.batch_update():
            _transfer(new, self.figure)
        self._tell(found)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Show errors in the line of words, because a front end would hide them."""
        self.error = None
        try:
            yield
        except Exception as error:
            self.error = error
            self._write(f"This setting does not work: {str(error).rstrip('.')}. The figure shows the last one that "
                        "did.")

    def close(self) -> None:
        """Remove the explorer from the page and from the kernel's list of widgets."""
        for control in self.controls.values():
            control.unobserve_all()
        _close(self.box)
        with contextlib.suppress(AttributeError):       # plotly's code is a file: anywidget would keep the figure
            go.FigureWidget._esm.changed.disconnect()

    def _tell(self, found: Any) -> None:
        before, self._measured = self._measured, self.measure(found)
        said = f"{self._moves}{_gap(before, self._measured)}. " if self._moves else ""
        self._write(said + self.say(found))
        self._numbers.value = "" if self.table is None else details(self.table(found))

    def _write(self, words: str) -> None:
        self.words = words
        self._status.value = (f'<div role="status" style="max-width:56em;line-height:1.5;font-size:14px">'
                              f"{inline(words)}</div>")

    def __repr__(self) -> str:
        return f"Explorer. {self.words}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget and, for pages without a kernel, its first view and its words."""
        labels = ", ".join(control.label for control in self.controls.values())
        still = caption(f"{self.words} Run the notebook to change: {labels}.", title="Explorer, first view.")
        return view(self.box) | {"application/vnd.plotly.v1+json": go.Figure(self.figure).to_plotly_json(),
                                 "text/html": still + self._numbers.value, "text/plain": repr(self)}


def _gap(before: Measured | None, now: Measured | None) -> str:
    """How a number changed."""
    if before is None or now is None or before[0] != now[0]:
        return ""
    name, value, written = now
    old, new = written.format(before[1]), written.format(value)
    if old == new:
        return f": the {name} stays at {new}"
    return f": the {name} {'rose' if value > before[1] else 'fell'} from {old} to {new}"


def _close(widget: widgets.Widget) -> None:
    """Close a widget and everything in it, styles and layouts included: each of them is a widget too."""
    for child in getattr(widget, "children", ()):
        _close(child)
    for name in ("layout", "style"):
        part = getattr(widget, name, None)
        if isinstance(part, widgets.Widget):
            part.close()
    widget.close()


def _place(new: go.Figure, shown: go.FigureWidget) -> None:
    """Move panels, in an update of its own: an axis that keeps images square forgets its old place only then."""
    for axis in (*new.select_xaxes(), *new.select_yaxes()):
        if axis.domain is not None:
            shown.layout[axis.plotly_name].domain = axis.domain


def _transfer(new: go.Figure, shown: go.FigureWidget) -> None:
    """Update the figure on the screen in place: a rebuilt figure would lose zoom and focus."""
    if len(new.data) != len(shown.data):
        shown.data = []
        shown.add_traces(new.data)
    else:
        for old, trace in zip(shown.data, new.data, strict=True):
            old.update(trace.to_plotly_json(), overwrite=True)
    shown.layout.update(new.layout.to_plotly_json(), overwrite=True)
