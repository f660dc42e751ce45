"""Exercises: a stub in the notebook, a check that explains, hints in steps, a solution that is tested code.

    @exercise("a", minutes=8, level=2, hints=("Which axis?", "Sum over tokens of the minimum over stand-ins."))
    def chamfer(f, f_hat):                      # the solution; the stub in the notebook has the same name
        return ...

    @chamfer.check_by
    def _(answer):                              # `answer` is the learner's function
        expect(answer(F, F), 0.0, "Every token can stand in for itself: which axis is the minimum over?")

A check has three outcomes: right, wrong with a sentence about the mistake, or nothing to check yet. It never raises, so
an exercise never stops a notebook.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch

from tokenpool.lab.kit.cards import Card, Code


class Wrong(Exception):
    """What is wrong with an answer, in a sentence for the learner."""


class _NotYet(Exception):
    """The answer still contains a `...`."""


class Exercise:
    """One exercise of a notebook.

    Args:
        id: its letter. minutes: how long it takes. level: how hard it is, 1 to 3.
        hints: from a nudge to almost the answer. solution: a function with the name of the stub.
    """

    def __init__(self, id: str, minutes: int, level: int, hints: tuple[str, ...], solution: Callable[..., Any]) -> None:
        self.id, self.minutes, self.level, self.hints, self.solution = id, minutes, level, hints, solution
        self._cases: Callable[[Callable[..., Any]], None] | None = None

    @property
    def name(self) -> str:
        return self.solution.__name__

    def check_by(self, cases: Callable[[Callable[..., Any]], None]) -> None:
        """Decorator of the check: `cases(answer)` raises `Wrong` if the answer is not right."""
        self._cases = cases

    def check(self, answer: Any) -> Card:
        """Right, wrong and why, or nothing to check yet."""
        assert self._cases is not None, f"exercise {self.id} has no check"
        if answer is ...:
            return self._open()
        if not callable(answer):
            return Card("wrong", f"`{self.name}` should be a function; got {_short(answer)}. "
                                 f"Pass it without calling it: `lab.check(\"{self.id}\", {self.name})`.")
        try:
            self._cases(_attempted(answer))
        except _NotYet:
            return self._open()
        except Wrong as reason:
            return Card("wrong", str(reason))
        except Exception as error:      # the learner should read it, whatever it is
            if "ellipsis" in str(error).lower():
                return self._open()
            return Card("wrong", f"`{self.name}` stops with {type(error).__name__}: {error}{_line(error, answer)}")
        return Card("right", "All cases agree.")

    def _open(self) -> Card:
        return Card("open", f"Replace the `...` in `{self.name}`, then run the cell again. "
                            f"Stuck? `lab.hint(\"{self.id}\")`, then `lab.solution(\"{self.id}\")`.")

    def source(self) -> str:
        """The solution as a learner would write it: the function without its decorator."""
        text = textwrap.dedent(inspect.getsource(self.solution))
        node = ast.parse(text).body[0]
        return "\n".join(text.splitlines()[node.lineno - 1:]) + "\n"

    def show_solution(self) -> Code:
        return Code(f"One way to write `{self.name}`. Type it rather than paste it, and check it:", self.source())


def exercise(id: str, *, minutes: int, level: int, hints: tuple[str, ...]) -> Callable[[Callable[..., Any]], Exercise]:
    """Decorator: turns the solution into an `Exercise`."""
    return lambda solution: Exercise(id, minutes, level, hints, solution)


def expect(got: Any, wanted: Any, say: str, tolerance: float = 1e-4) -> None:
    """`got` must equal `wanted` within the tolerance; otherwise the learner reads `say`, followed by both values.

    Args:
        got, wanted: numbers, booleans, strings, tensors, or lists of numbers.
    """
    differs = Wrong(f"{say} Expected {_short(wanted)}, got {_short(got)}.")
    if isinstance(wanted, str) or isinstance(got, str):
        if got != wanted:
            raise differs
        return
    try:
        a = torch.as_tensor(got, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        raise differs from None
    b = torch.as_tensor(wanted, dtype=torch.float64)
    if a.numel() == b.numel() == 1:
        a = a.reshape(b.shape)
    if a.shape != b.shape:
        raise Wrong(f"The answer has shape {tuple(a.shape)}, expected {tuple(b.shape)}. {say}")
    if not torch.isfinite(a).all() and torch.isfinite(b).all():
        raise Wrong(f"The answer contains NaN or infinity. {say}")
    if not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
        raise differs


def ensure(fact: Any, say: str) -> None:
    """`fact` must be true; otherwise the learner reads `say`."""
    if not bool(fact):
        raise Wrong(say)


def _attempted(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The learner's function; raises `_NotYet` when a result shows that it is not written yet."""
    def call(*args: Any, **options: Any) -> Any:
        result = answer(*args, **options)
        if result is ... or (isinstance(result, tuple | list) and any(r is ... for r in result)):
            raise _NotYet
        if result is None:
            if _is_empty(answer):
                raise _NotYet
            raise Wrong(f"`{getattr(answer, '__name__', 'the function')}` returned nothing. Is there a `return`?")
        return result
    return call


def _is_empty(function: Callable[..., Any]) -> bool:
    """Whether a function has only a docstring, `...` or `pass`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return False
    return isinstance(tree, ast.FunctionDef) and all(
        isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in tree.body)


def _short(value: Any) -> str:
    """A value in at most 80 characters."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().double()
        if flat.numel() == 1:
            return f"{flat.item():.6g}"
        if flat.numel() <= 12:
            return str([round(v, 4) for v in flat.flatten().tolist()])
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(error: BaseException, answer: Callable[..., Any]) -> str:
    """The line of the learner's function that raised."""
    code = getattr(answer, "__code__", None)
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
        trace = trace.tb_next
    return f" (line {line} of the function)." if line else "."
