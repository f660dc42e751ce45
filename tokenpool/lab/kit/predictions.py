"""Predictions: commit to an answer before the evidence, and compare afterwards.

The notebook's own measurement decides which option is right: `answer` gets the measured value and returns the index of
the right option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets

from tokenpool.lab.kit.cards import Card, frame, inline, plain, view
from tokenpool.lab.widgets.controls import Question


@dataclass(frozen=True)
class Prediction:
    """A question with options.

    Args:
        id: its letter. question: one or two sentences. options: the possible answers.
        answer: the evidence -> index of the right option.
        why: index of a wrong option -> why it is tempting, and where it goes wrong.
        tell: the evidence -> text, such as "14.3 % of the multiply-adds".
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
            raise ValueError(f"Prediction {self.id}: the evidence {evidence!r} selects option {right}; use "
                             f"0 to {len(self.options) - 1}.")
        found = f"Measured: {self.tell(evidence)}. So: *{self.options[right]}*."
        if committed is None:
            tempting = "".join(f"\n\nTempting: *{self.options[i]}*. {text}"
                               for i, text in self.why.items() if i != right)
            return Card("note", f"{found} You had not committed to an answer.{tempting}")
        if committed == right:
            return Card("right", f"You said: *{self.options[committed]}*. {found}")
        return Card("wrong", f"You said: *{self.options[committed]}*. {found} {self.why.get(committed, '')}".strip())


class PredictionCard:
    """The question with radio buttons. The committed option is stored in `answers`."""

    def __init__(self, prediction: Prediction, answers: dict[str, int]) -> None:
        self.prediction, self.answers = prediction, answers
        # no option is selected at first: none should look like the expected one
        self.choice = Question(label=f"Predict. {plain(prediction.question)}",
                               names=[plain(option) for option in prediction.options])
        self.button = widgets.Button(description="Commit", tooltip="Commit to this answer")
        self.status = widgets.HTML()
        self.button.on_click(self._commit)
        self._say("Choose, then commit. The answer comes after the evidence.")
        self.box = widgets.VBox([self.choice, self.button, self.status])

    def _commit(self, button: widgets.Button) -> None:
        if self.choice.index < 0:
            self._say("Nothing is chosen yet. Choose an answer first.")
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
        text = f"<strong>Predict.</strong> {inline(self.prediction.question)}<ul>{items}</ul>"
        return view(self.box) | {"text/html": frame(text, 'class="tp-card tp-predict"', "#0072B2"),
                                 "text/plain": repr(self)}
