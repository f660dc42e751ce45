"""Schedules found by the search: `tokenpool search` saves them, `tokenpool finetune --schedule NAME` loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenpool.core.methods import one_of
from tokenpool.data.files import replace_file
from tokenpool.data.weights import data_folder
from tokenpool.train.recipe import Job


def save_schedule(folder: Path, job: Job, system: Any) -> dict[str, Any]:
    """Write `folder/schedule.json` and return its content."""
    found = {"name": job.name, "preset": job.preset, "model": job.model, "penalty": job.penalty,
             "tokens": list(system.found_schedule()),
             "masks": [[round(float(v), 4) for v in mask] for mask in system.masks.detach()]}
    with replace_file(folder / "schedule.json") as temporary:
        temporary.write_text(json.dumps(found) + "\n")
    return found


def schedule_names(results: Path | None = None) -> dict[str, Path]:
    """Name -> file: the shipped ones and those in a folder of results, which have priority."""
    shipped = {p.stem: p for p in sorted((data_folder() / "schedules").glob("*.json"))}
    own = {p.parent.name: p for p in sorted(results.glob("*/search-*/schedule.json"))} if results else {}
    return shipped | own


def load_schedule(name: str, results: Path | None = None) -> tuple[int, ...]:
    """Tokens to keep after each block, by the name of the search that found them."""
    names = schedule_names(results)
    one_of("schedule", name, names, "Type tokenpool search to find one.")
    return tuple(json.loads(names[name].read_text())["tokens"])
