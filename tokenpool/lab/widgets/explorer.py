"""Explorers: a few controls, an image that follows them, and a line that says what changed in words.

    explorer({"k": Number("Tokens kept, K", 4, 1, 12), "method": Choice("Method", names)},
             compute=compare,          # pure: (k, method) -> anything; cached by the lesson, tested with numbers
             draw=comparison_figure,   # pure: that -> go.Figure, always with the same traces
             say=comparison_words,     # pure: that -> what is seen, and why
             measure=comparison_error) # pure: that -> the number to watch, ("error", 7.7, "{:.1f}")

They are ordinary functions, tested without a browser; what is left here is the wiring. After a move the words begin
with what was moved and what the watched number did: "You changed *Method* from top_k to k_means: the error fell from
9.2 to 7.7." An error in any of them is told in the explorer's own line of words, because a front end hides errors of
callbacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tokenpool.lab.kit.cards import inline
from tokenpool.lab.kit.figure import details, styled
from tokenpool.lab.kit.predictions import view
from tokenpool.lab.widgets.controls import Choice, Number, Switch

Measured = tuple[str, float, str]       # a number by its name, and how it is written


class Explorer:
    """Controls, figure and words. `set(k=3)` moves controls from Python; `words` is what the line says now."""

    def __init__(self, controls: Mapping[str, Number | Choice | Switch], compute: Callable[..., Any],
                 draw: Callable[[Any], go.Figure], say: Callable[[Any], str],
                 table: Callable[[Any], pd.DataFrame] | None = None, height: int | None = 420,
                 measure: Callable[[Any], Measured | None] = lambda found: None) -> None:
        self.compute, self.draw, self.say, self.table, self.height = compute, draw, say, table, height
        self.measure, self._measured, self._moves = measure, None, ""
        self.specs = dict(controls)
        self.controls = {name: spec.widget() for name, spec in controls.items()}
        self._status, self._numbers = widgets.HTML(), widgets.HTML()
        self.words, self.error = "", None
        found = self._look()
        self.figure = go.FigureWidget(styled(draw(found), height))
        self.figure._config = {**self.figure._config, "responsive": True}       # else 700 pixels, whatever the page has
        self._tell(found)
        for control in self.controls.values():
            control.observe(self._moved, "value")
        self.box = self._arrange()

    def _arrange(self) -> widgets.Box:
        """Where things stand."""
        rows = widgets.VBox(list(self.controls.values()), layout=widgets.Layout(margin="0 0 8px 0"))
        return widgets.VBox([rows, self._status, self.figure, self._numbers])

    def _look(self) -> Any:
        """What the controls ask for, computed."""
        return self.compute(**self.values())

    def values(self) -> dict[str, Any]:
        """What the controls say."""
        return {name: int(c.value) if isinstance(s, Number) and float(s.step).is_integer() else c.value
                for (name, s), c in zip(self.specs.items(), self.controls.values(), strict=True)}

    def set(self, **values: Any) -> Explorer:
        """Move controls, as a person would."""
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(f"No control called {name!r}. There are: {', '.join(self.controls)}.")
            self.controls[name].value = value
        return self

    def _moved(self, change: Any) -> None:
        """A front end sends one change at a time, merges what comes while it waits, and this reads what the controls
        say *now*: a slider that is dragged is computed where it is, not at every place it has been."""
        name = next(n for n, c in self.controls.items() if c is change["owner"])
        spec = self.specs[name]
        with self._told():
            old, new = spec.spoken(change["old"]), spec.spoken(change["new"])
            self._moves = f"You changed *{spec.label}* from {old} to {new}"
            self._show()

    def _show(self) -> None:
        """Compute, draw and say what the controls ask for."""
        found = self._look()
        new = styled(self.draw(found), self.height)
        with self.figure.batch_update():
            _place(new, self.figure)
        with self.figure.batch_update():
            _transfer(new, self.figure)
        self._tell(found)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors inside are told where the person looks: a front end would hide them."""
        try:
            yield
            self.error = None
        except Exception as error:
            self.error = error
            self._write(f"This setting does not work: {error} The figure shows the last one that did.")

    def close(self) -> None:
        """Take the explorer off the page and out of the kernel's list of widgets."""
        for control in self.controls.values():
            control.unobserve_all()
        _close(self.box)
        with contextlib.suppress(AttributeError):       # plotly's code is a file, and anywidget would keep the figure
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
        """The widget; and, for pages without a kernel, its first view and its words."""
        named = ", ".join(spec.label for spec in self.specs.values())
        still = (f'<p class="tp-see" style="max-width:52em;line-height:1.5"><strong>Explorer, first view.</strong> '
                 f"{inline(self.words)} Run the notebook to move: {inline(named)}.</p>{self._numbers.value}")
        return {"application/vnd.jupyter.widget-view+json": view(self.box),
                "application/vnd.plotly.v1+json": go.Figure(self.figure).to_plotly_json(),
                "text/html": still, "text/plain": repr(self)}


def _gap(before: Measured | None, now: Measured | None) -> str:
    """What became of a number."""
    if before is None or now is None or before[0] != now[0]:
        return ""
    name, value, written = now
    old, new = written.format(before[1]), written.format(value)
    if old == new:
        return f": the {name} stays at {new}"
    return f": the {name} {'rose' if value > before[1] else 'fell'} from {old} to {new}"


def _close(widget: widgets.Widget) -> None:
    """With all that it holds, styles and layouts included: each is a widget of its own."""
    for child in getattr(widget, "children", ()):
        _close(child)
    for name in ("layout", "style"):
        part = getattr(widget, name, None)
        if isinstance(part, widgets.Widget):
            part.close()
    widget.close()


def _place(new: go.Figure, shown: go.FigureWidget) -> None:
    """Move panels that moved. By itself, because an axis that keeps images square forgets its old place only then."""
    for axis in (*new.select_xaxes(), *new.select_yaxes()):
        if axis.domain is not None:
            shown.layout[axis.plotly_name].domain = axis.domain


def _transfer(new: go.Figure, shown: go.FigureWidget) -> None:
    """Make the figure on the screen look like the new one, in place: a rebuilt figure would lose zoom and focus."""
    if len(new.data) != len(shown.data):
        shown.data = []
        shown.add_traces(new.data)
    else:
        for old, trace in zip(shown.data, new.data, strict=True):
            old.update(trace.to_plotly_json(), overwrite=True)
    shown.layout.update(new.layout.to_plotly_json(), overwrite=True)
