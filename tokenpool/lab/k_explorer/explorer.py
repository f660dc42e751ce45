"""The K-per-layer explorer: one slider per block, and what it means for the tokens, the cost and the class.

    KExplorer({"geometric": (48, 36, 27, 21, 15, 15), ...})        # notebook 05 and `tokenpool explore`

`settings.follow` says what a move makes of the other controls, `compute.look` runs the model, and `view` draws and
describes the result: all pure functions. This file connects them to widgets and keeps the history.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

import tokenpool as tp
from tokenpool.lab.k_explorer import view
from tokenpool.lab.k_explorer.compute import ENDINGS, MOST_BYTES, View, image_names, look, read_upload
from tokenpool.lab.k_explorer.settings import BUDGET, BY_HAND, DEPTH, NOTHING, OUTPUTS, OWN, Ks, N, Setting, follow
from tokenpool.lab.kit.cards import inline
from tokenpool.lab.kit.figure import details
from tokenpool.lab.widgets.controls import Choice, Control, Number, Switch, Upload
from tokenpool.lab.widgets.explorer import Explorer


class KExplorer(Explorer):
    """Computes once per move, however many controls the move changes. Has undo, redo, reset, code and uploads.

    Args:
        presets: name shown -> tokens kept after each of the six blocks. The first one is selected at first.
    """

    def __init__(self, presets: Mapping[str, Ks]) -> None:
        self.presets = dict(presets)
        first = next(iter(presets))
        sliders = {f"k{b}": Number(f"K after block {b}", presets[first][b - 1], 1, N) for b in range(1, DEPTH)}
        controls: dict[str, Control] = {
            "preset": Choice("Schedule", (*presets, BUDGET, BY_HAND)),
            "budget": Number("Budget, % of the MACs", 58, 20, 100), **sliders,
            "lock": Switch("Keep the total budget"),
            "method": Choice("Method", tp.method_names(), "wk_medoids"),
            "init": Choice("Initialisation", tp.init_names(), "top_k"),
            "output": Choice("Output of a clustering", OUTPUTS, ""),
            "counts": Switch("Carry counts"),
            "compare": Choice("Compare with", (NOTHING, *tp.method_names())),
            "image": Choice("Image", (*image_names(), OWN))}
        self.upload = Upload("Upload an image", ENDINGS, MOST_BYTES, self.receive)
        self.buttons = {
            name: widgets.Button(description=label, layout=widgets.Layout(width="auto"))
            for name, label in (("undo", "Undo"), ("redo", "Redo"), ("reset", "Reset"), ("show_code", "Copy as code"))}
        self._code = widgets.HTML()
        values = {name: control.read() for name, control in controls.items()}
        self.setting = self._first = Setting(**values, shown=values["image"])
        self._undo: list[Setting] = []
        self._redo: list[Setting] = []
        self._view: View | None = None
        self._move, self._quiet = "", False
        super().__init__(controls, look, view.figure, view.first_words, view.table, height=None)

    # ---- moves ----

    @property
    def code(self) -> str:
        """The line that makes this model; two lines when two methods are compared."""
        return self.setting.code

    def undo(self) -> KExplorer:
        return self._step(self._undo, self._redo, "undo")

    def redo(self) -> KExplorer:
        return self._step(self._redo, self._undo, "redo")

    def reset(self) -> KExplorer:
        """Back to the first setting. This is a move: it can be undone."""
        return self._become(replace(self._first, own=self.setting.own), "reset")

    def receive(self, name: str, size: int, content: bytes) -> None:
        """Show an uploaded file."""
        try:
            own = read_upload(name, size, content)
        except ValueError as error:         # the file is not usable, which is no error of this program
            self._write(f"{error} Still showing {self.setting.shown}.")
        else:
            self._become(replace(self.setting, image=OWN, shown=OWN, own=own, note="", streak=None), "image")

    def _step(self, source: list[Setting], other: list[Setting], name: str) -> KExplorer:
        if not source:
            self._write(f"There is nothing to {name}.")
            return self
        other.append(self.setting)
        return self._become(source.pop(), name, keep=False)

    def _moved(self, change: Any) -> None:
        if not self._quiet:
            name = next(n for n, c in self.controls.items() if c is change["owner"])
            with self._told():
                self._become(follow(self.setting, name, self.values()[name], self.presets), name)

    def _become(self, then: Setting, name: str, keep: bool = True) -> KExplorer:
        """Change to a setting: move all controls, then compute and draw once."""
        with self._told():
            if keep:
                self._undo.append(self.setting)
                self._redo.clear()
            self.setting, self._move = then, name
            self._quiet = True              # while this moves the controls
            try:
                for control, widget in self.controls.items():
                    widget.value = getattr(then, control)
            finally:
                self._quiet = False
            self._show()
            if self._code.value:
                self._write_code()
        return self

    # ---- the page ----

    def _look(self) -> View:
        return self.compute(self.setting)

    def _tell(self, found: View) -> None:
        words = view.move_words(self._view, found, self._move) if self._view else self.say(found)
        self._view = found
        self._write(words)
        self._numbers.value = details(self.table(found))

    def _arrange(self) -> widgets.Box:
        names = list(self.controls)
        half = names.index("lock") + 1
        wrap = dict(flex_flow="row wrap")
        columns = widgets.HBox([
            widgets.VBox([self.controls[n] for n in names[:half]]),
            widgets.VBox([*(self.controls[n] for n in names[half:]), self.upload])], layout=widgets.Layout(**wrap))
        columns.add_class("tp-columns")
        for name, button in self.buttons.items():
            button.on_click(functools.partial(lambda name, _: getattr(self, name)(), name))
        row = widgets.HBox(list(self.buttons.values()), layout=widgets.Layout(**wrap, margin="0 0 8px 0"))
        return widgets.VBox([columns, row, self._code, self._status, self.figure, self._numbers])

    def show_code(self) -> KExplorer:
        """Show the code; it follows all later moves."""
        self._write_code()
        self._write("The code of this setting is shown above. Click it to select it, then copy it. `vit` is the "
                    "shipped model: `lab.vit` in a notebook.")
        return self

    def _write_code(self) -> None:
        lines = "".join(f'<pre style="user-select:all;white-space:pre-wrap;margin:.2em 0;padding:.4em .6em;'
                        f'background:#f3f3f3;color:#1b1b1b" tabindex="0"><code>{inline(line)}</code></pre>'
                        for line in self.code.split("\n"))
        self._code.value = f'<div class="tp-code" aria-label="This setting as code">{lines}</div>'

    def close(self) -> None:
        for button in self.buttons.values():
            button._click_handlers.callbacks.clear()
        super().close()
