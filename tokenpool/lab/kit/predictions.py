"""Predictions: commit to an answer before the evidence, come back to it afterwards.

Which option is right is decided by the evidence that a notebook has computed, not by this file: `answer` gets the
measured value and returns the option's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets

from tokenpool.lab.kit.cards import Card, inline, plain
from tokenpool.lab.widgets.controls import Question


@dataclass(frozen=True)
class Prediction:
    """A question with options.

    Args:
        id: its letter. question: one or two sentences. options: what can be chosen.
        answer: the evidence -> place of the right option in `options`.
        why: place of a wrong option -> why it tempts and where it goes wrong.
        tell: the evidence -> how it reads, "14.3 % of the multiply-adds".
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: Callable[[Any], int]
    why: Mapping[int, str] = field(default_factory=dict)
    tell: Callable[[Any], str] = str

    def reveal(self, evidence: Any, committed: int | None) -> Card:
        right = self.answer(evidence)
        if not 0 <= right < len(self.options):
            raise ValueError(f"Prediction {self.id}: the evidence {evidence!r} points at option {right}, there are "
                             f"{len(self.options)}.")
        found = f"Measured: {self.tell(evidence)}. So: *{self.options[right]}*."
        if committed is None:
            tempting = "".join(f"\n\nTempting: *{self.options[i]}*. {text}"
                               for i, text in self.why.items() if i != right)
            return Card("note", f"{found} You had not committed to an answer.{tempting}")
        if committed == right:
            return Card("right", f"You said: *{self.options[committed]}*. {found}")
        return Card("wrong", f"You said: *{self.options[committed]}*. {found} {self.why.get(committed, '')}".strip())


class PredictionCard:
    """The question with radio buttons; what is committed is kept in `answers`."""

    def __init__(self, prediction: Prediction, answers: dict[str, int]) -> None:
        self.prediction, self.answers = prediction, answers
        # no button starts out chosen: none should look like the expected one
        self.choice = Question(label=f"Predict. {plain(prediction.question)}",
                               names=[plain(option) for option in prediction.options])
        self.button = widgets.Button(description="Commit", tooltip="Commit to this answer")
        self.status = widgets.HTML()
        self.button.on_click(self._commit)
        self._say("Choose, then commit. The answer comes after the evidence.")
        self.box = widgets.VBox([self.choice, self.button, self.status])

    def _commit(self, button: widgets.Button) -> None:
        if self.choice.index < 0:
            self._say("Nothing is chosen yet: choose one of the answers first.")
            return
        self.answers[self.prediction.id] = self.choice.index
        self.choice.disabled = self.button.disabled = True
        self._say(f"Committed: {self.prediction.options[self.choice.index]}. The answer comes after the evidence.")

    def _say(self, words: str) -> None:
        self.status.value = f'<div role="status" style="line-height:1.5">{inline(words)}</div>'

    def __repr__(self) -> str:
        options = " / ".join(self.prediction.options)
        return f"Predict. {self.prediction.question} [{options}]"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        items = "".join(f"<li>{inline(option)}</li>" for option in self.prediction.options)
        return {"application/vnd.jupyter.widget-view+json": view(self.box), "text/plain": repr(self),
                "text/html": '<div class="tp-card tp-predict" style="border-left:4px solid #0072B2;padding:.35em .8em;'
                             'margin:.4em 0;max-width:52em;line-height:1.5">'
                             f"<strong>Predict.</strong> {inline(self.prediction.question)}<ul>{items}</ul></div>"}


def view(widget: widgets.Widget) -> dict[str, Any]:
    """What a front end needs to show a widget."""
    return {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
