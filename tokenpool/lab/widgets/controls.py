"""Controls for explorers and predictions: native inputs in one small widget, with names that screen readers find.

ipywidgets' own sliders have no such name, and JupyterLab takes the arrow keys from its drop-downs and radio buttons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import traitlets


@dataclass(frozen=True)
class Number:
    """A slider with a number box."""

    label: str
    value: float
    low: float
    high: float
    step: float = 1

    def spoken(self, value: float) -> str:
        return f"{value:g}"

    def widget(self) -> Slider:
        return Slider(label=self.label, value=self.value, low=self.low, high=self.high, step=self.step)


@dataclass(frozen=True)
class Choice:
    """A drop-down. `options`: names, or name shown -> value."""

    label: str
    options: tuple[str, ...] | Mapping[str, Any]
    value: Any = None

    @property
    def shown(self) -> dict[str, Any]:
        return dict(self.options) if isinstance(self.options, Mapping) else {name: name for name in self.options}

    def spoken(self, value: Any) -> str:
        return next(name for name, known in self.shown.items() if known == value)

    def widget(self) -> Select:
        return Select(self.label, self.shown, next(iter(self.shown.values())) if self.value is None else self.value)


@dataclass(frozen=True)
class Switch:
    """A box to tick."""

    label: str
    value: bool = False

    def spoken(self, value: bool) -> str:
        return "on" if value else "off"

    def widget(self) -> Tick:
        return Tick(label=self.label, value=self.value)


class _Control(anywidget.AnyWidget):
    # text, not files: a widget whose code is a file is kept by anywidget for ever, to follow the file's changes
    _esm = Path(__file__).with_name("controls.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("controls.css").read_text(encoding="utf-8")
    kind = traitlets.Unicode().tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)


class Slider(_Control):
    """A number in [low, high]; anything else is refused."""

    kind = traitlets.Unicode("number").tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    low = traitlets.Float().tag(sync=True)
    high = traitlets.Float().tag(sync=True)
    step = traitlets.Float(1.0).tag(sync=True)

    @traitlets.validate("value")
    def _inside(self, proposal: Any) -> float:
        if self.high > self.low and not self.low <= proposal["value"] <= self.high:
            raise ValueError(f"{self.label}: {proposal['value']:g} came. Use {self.low:g} to {self.high:g}.")
        return float(proposal["value"])


class Select(_Control):
    """One of several values, each shown by its name."""

    kind = traitlets.Unicode("choice").tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    value = traitlets.Any()

    def __init__(self, label: str, options: Mapping[str, Any], value: Any) -> None:
        self.options = dict(options)
        super().__init__(label=label, names=list(options), index=self._place(value), value=value)

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


class Tick(_Control):
    """Yes or no."""

    kind = traitlets.Unicode("switch").tag(sync=True)
    value = traitlets.Bool(False).tag(sync=True)


class Question(_Control):
    """A question with radio buttons; `index` is -1 until one is chosen."""

    kind = traitlets.Unicode("question").tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(-1).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)


class Upload(_Control):
    """A file of the person's own. Its bytes arrive with a message and are kept nowhere: not here, not on a disk.

    Args:
        limit: bytes; the browser does not send a larger file, only its size. accept: endings, ".png,.jpg".
        received: called with (name, size, bytes); no bytes where the file was too large to send.
    """

    kind = traitlets.Unicode("upload").tag(sync=True)
    accept = traitlets.Unicode().tag(sync=True)
    limit = traitlets.Int().tag(sync=True)

    def __init__(self, label: str, accept: str, limit: int, received: Callable[[str, int, bytes], None]) -> None:
        super().__init__(label=label, accept=accept, limit=limit)
        self.on_msg(lambda widget, said, buffers: received(str(said.get("name", "")), int(said.get("size", 0)),
                                                           bytes(buffers[0]) if buffers else b""))

    def close(self) -> None:
        self._msg_callbacks.callbacks.clear()       # whoever receives would stay in memory with it
        super().close()
