"""What commands print: tables, sentences, progress, and where the results are."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Tell = Callable[[str, int, int], None]


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:         # rich would end the process as failed; main() knows better
        raise BrokenPipeError


def _console() -> Console:
    return _Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextmanager
def progress(total: int | None = None, visible: bool = True) -> Iterator[Tell]:
    """A bar. Yields what measuring functions call with (what is going on, done, total)."""
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=_console()) as bar:
        task = bar.add_task("", total=total, visible=visible)
        yield lambda what, done, total: bar.update(task, completed=done, total=total, description=what)


def table(head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> None:
    """A table: `words` columns of text, then numbers. The first column may wrap, and notes in place of quartiles."""
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for index, name in enumerate(head):
        wraps = index == 0 or "quartiles" in name
        shown.add_column(name, justify="left" if index < words else "right", no_wrap=not wraps,
                         overflow="fold" if wraps else "ellipsis", min_width=11 if wraps else None)
    for line in lines:
        shown.add_row(*line)
    _console().print(shown)


def by_saving(cells: Mapping[tuple[str, str, bool], Mapping[float, str]]) -> None:
    """A table with a line per (method, init, counts) and a column per saving."""
    savings = sorted({saving for line in cells.values() for saving in line})
    table(("method", "init", "counts", *(f"-{saving:.0%} " for saving in savings)),
          [(method, init or "-", "carried" if counts else "-", *(line.get(saving, "-") for saving in savings))
           for (method, init, counts), line in cells.items()], words=3)


def sentences(said: Iterable[str]) -> None:
    """A list of sentences, wrapped."""
    for sentence in said:
        print(textwrap.fill(sentence, min(110, _console().width), initial_indent="- ", subsequent_indent="  "))


def verdicts(said: Iterable[Any]) -> None:
    """A sentence per claim."""
    sentences(f"{v.status.upper()}: {v.claim}. {v.evidence}" for v in said)


def written(page: Path, rows: Path | None = None) -> None:
    """Where the results are."""
    print("" if rows is None else f"\nrows   {rows}", f"page   {page}   (open it in a browser)", sep="\n")
