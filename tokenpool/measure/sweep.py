"""The one loop of everything that is measured: which rows are missing, measure them, append each at once.

    tasks = [Task("top_k, saving 42%", {key_of(...): setting}, measure_it), ...]
    rows = sweep(tasks, Results(path))          # stopped? The same call measures what is still missing
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tokenpool.measure.rows import R, Results, provenance

_log = logging.getLogger(__name__)
S = TypeVar("S")
#: called with (what is going on, tasks done, tasks in all)
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task(Generic[S]):
    """Settings that are measured together, one for each row."""

    name: str
    settings: Mapping[str, S]                     # by the key of the row
    #: gets the settings whose rows are missing, and yields (key, columns) of each row; of none where it cannot be had
    measure: Callable[[Mapping[str, S]], Iterable[tuple[str, dict[str, Any]]]]


def sweep(tasks: Sequence[Task[Any]], results: Results[R], device: str = "cpu", tell: Tell | None = None) -> list[R]:
    """Measure what is missing from `results`; returns the rows of all tasks, in their order.

    Rows that another version of the code has measured are kept in the file and left aside, which is logged.
    """
    origin = provenance(device)
    rows = {row.key: row for row in results.rows if row.code == origin["code"]}
    aside = sum(row.code != origin["code"] for row in results.rows)
    if aside:
        _log.warning("%d row%s of another version of the code %s left aside in %s.", aside, "s"[:aside > 1],
                     "are" if aside > 1 else "is", results.path)
    results.path.parent.mkdir(parents=True, exist_ok=True)            # a folder that cannot be made is an error now
    for done, task in enumerate(tasks):
        if tell:
            tell(task.name, done, len(tasks))
        missing = {key: setting for key, setting in task.settings.items() if key not in rows}
        if missing:
            for key, columns in task.measure(missing):
                rows[key] = results.kind(key=key, **columns, **origin)
                results.add(rows[key])
    if tell:
        tell("done", len(tasks), len(tasks))
    return [rows[key] for task in tasks for key in task.settings if key in rows]
