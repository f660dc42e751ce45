"""What the tests of all lessons share: an exercise is open as a stub, right as its solution, wrong in typical ways."""

import importlib
from collections.abc import Callable
from typing import Any

from tokenpool.lab.kit.session import LESSONS, exercises


def lesson(number: str) -> Any:
    return importlib.import_module(f"tokenpool.lab.lessons.{LESSONS[number]}")


def state_words(explorer: Any) -> str:
    """What an explorer says of where it stands, without what was moved last: that differs with every move."""
    return explorer.say(explorer.compute(**explorer.values()))


def check_exercise(number: str, letter: str, wrong: list[tuple[Callable[..., Any], str]]) -> None:
    """The three outcomes of one exercise.

    Args:
        wrong: typical mistakes, each with a phrase of the sentence that must answer it.
    """
    found = exercises(lesson(number))[letter]
    assert found.check(lambda *a, **o: ...).state == "open"
    assert found.check(...).state == "open"
    right = found.check(found.solution)
    assert right.state == "right", right
    assert len(wrong) >= 3, "an exercise is tested with three typical mistakes at least"
    for mistake, phrase in wrong:
        said = found.check(mistake)
        assert said.state == "wrong", f"{phrase}: not noticed"
        assert phrase in said.words, said.words
    assert len(found.hints) >= 2
    assert 1 <= found.level <= 3
    assert 1 <= found.minutes <= 30
