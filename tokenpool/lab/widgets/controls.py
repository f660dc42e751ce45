"""Controls for explorers and predictions: native HTML inputs in one small widget, with labels that screen readers find.

The sliders of ipywidgets have no such label, and JupyterLab intercepts the arrow keys of its drop-downs and radio
buttons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets


class Control(anywidget.AnyWidget):
    """A labelled input. `value` is what is chosen."""

    # text, not files: anywidget watches the file of a widget's code for changes, and keeps the widget in memory for it
    _esm = Path(__file__).with_name("controls.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("controls.css").read_text(encoding="utf-8")
    kind = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)

    def read(self) -> Any:
        """The value, as `compute` gets it."""
        return self.value

    def spoken(self, value: Any) -> str:
        """A value in words."""
        return str(value)


class Number(Control):
    """A slider with a number box, from `low` to `high`."""

    kind = traitlets.Unicode("number").tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    low = traitlets.Float().tag(sync=True)
    high = traitlets.Float().tag(sync=True)
    step = traitlets.Float().tag(sync=True)

    def __init__(self, label: str, value: float, low: float, high: float, step: float = 1) -> None:
        super().__init__(label=label, value=value, low=low, high=high, step=step)

    @traitlets.validate("value")
    def _inside(self, proposal: Any) -> float:
        if not self.low <= proposal["value"] <= self.high:
            raise ValueError(f"{self.label}: got {proposal['value']:g}. Use {self.low:g} to {self.high:g}.")
        return float(proposal["value"])

    def read(self) -> float:
        return int(self.value) if self.step.is_integer() else self.value

    def spoken(self, value: float) -> str:
        return f"{value:g}"


class Choice(Control):
    """A drop-down. `options`: names, or a mapping from the name shown to the value."""

    kind = traitlets.Unicode("choice").tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    value = traitlets.Any()

    def __init__(self, label: str, options: Sequence[str] | Mapping[str, Any], value: Any = None) -> None:
        self.options = dict(options) if isinstance(options, Mapping) else {name: name for name in options}
        value = next(iter(self.options.values())) if value is None else value
        super().__init__(label=label, names=list(self.options), index=self._place(value), value=value)

    def _place(self, value: Any) -> int:
        values = list(self.options.values())
        if value not in values:
            raise ValueError(f"{value!r} is not a choice. Use one of {', '.join(map(repr, values))}.")
        return values.index(value)

    @traitlets.validate("value")
    def _known(self, proposal: Any) -> Any:
        self._place(proposal["value"])
        return proposal["value"]

    @traitlets.observe("value")
    def _show(self, change: Any) -> None:
        self.index = self._place(change["new"])

    @traitlets.observe("index")
    def _chosen(self, change: Any) -> None:
        self.value = list(self.options.values())[change["new"]]

    def spoken(self, value: Any) -> str:
        return self.names[self._place(value)]


class Switch(Control):
    """A checkbox."""

    kind = traitlets.Unicode("switch").tag(sync=True)
    value = traitlets.Bool(False).tag(sync=True)

    def __init__(self, label: str, value: bool = False) -> None:
        super().__init__(label=label, value=value)

    def spoken(self, value: bool) -> str:
        return "on" if value else "off"


class Question(Control):
    """A question with radio buttons; `index` is -1 until one is chosen."""

    kind = traitlets.Unicode("question").tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(-1).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)


class Upload(Control):
    """A file from the user's computer. Its bytes arrive in a message and are not stored, here or on disk.

    Args:
        accept: file name endings, ".png,.jpg". limit: in bytes; of a larger file the browser sends only the size.
        received: called with (name, size, bytes); the bytes are empty if the file was too large to send.
    """

    kind = traitlets.Unicode("upload").tag(sync=True)
    accept = traitlets.Unicode().tag(sync=True)
    limit = traitlets.Int().tag(sync=True)

    def __init__(self, label: str, accept: str, limit: int, received: Callable[[str, int, bytes], None]) -> None:
        super().__init__(label=label, accept=accept, limit=limit)
        self.on_msg(lambda widget, said, buffers: received(str(said.get("name", "")), int(said.get("size", 0)),
                                                           bytes(buffers[0]) if buffers else b""))

    def close(self) -> None:
        self._msg_callbacks.callbacks.clear()       # they would keep the receiver in memory
        super().close()
