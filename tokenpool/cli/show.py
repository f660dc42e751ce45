"""The terminal: tables, sentences, progress."""

from __future__ import annotations

import os
import sys


def _progress():
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    return Progress(BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                    TimeRemainingColumn(), TextColumn("{task.description}"))


def _print_lines(table) -> None:
    from rich.console import Console
    from rich.table import Table
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for index, name in enumerate(table.head):
        wraps = not index or "quartiles" in name          # words: a method's, or why there is no number
        shown.add_column(name, justify="right" if index else "left", no_wrap=not wraps)
    for line in table.lines:
        shown.add_row(*line)
    print(f"\n{table.title}\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown)


def _print_sentences(sentences) -> None:
    import textwrap
    width = min(110, os.get_terminal_size().columns if sys.stdout.isatty() else 110)
    for sentence in sentences:
        print(textwrap.fill(sentence, width, initial_indent="- ", subsequent_indent="  "))
