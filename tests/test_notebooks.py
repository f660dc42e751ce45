"""A notebook test that compares nothing passes whatever happens; this lint refuses notebooks that would."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def problems(notebook, size=0):
    """What is wrong with a notebook, as sentences."""
    found = []
    cells = notebook["cells"]
    text = ["".join(c["source"]) for c in cells]
    code = [(c, t) for c, t in zip(cells, text, strict=True) if c["cell_type"] == "code"]
    checked = [c for c, _ in code if "nbval-check-output" in c["metadata"].get("tags", [])]
    if not checked:
        found.append("no cell is checked")
    found += ["a checked cell has no output" for c in checked if not c["outputs"]]
    found += ["output without a count" for c, _ in code if c["outputs"] and c["execution_count"] is None]
    found += ["a cell over 15 lines" for _, t in code if len(t.splitlines()) > 15]
    found += ["an error is saved" for c, _ in code for o in c["outputs"] if o["output_type"] == "error"]
    found += ["widget state is saved"] if "widgets" in notebook["metadata"] else []
    found += ["more than 40 cells"] if len(cells) > 40 else []
    found += ["over 150 KB"] if size > 150_000 else []
    titles = [line for c, t in zip(cells, text, strict=True) if c["cell_type"] == "markdown"
              for line in t.splitlines() if line.startswith("# ")]
    found += [f"{len(titles)} titles"] if len(titles) != 1 else []
    found += ["a picture without words" for t in text if "![](" in t]
    return found


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_can_fail(path):
    assert problems(json.loads(path.read_text()), path.stat().st_size) == []


def test_the_lint_sees_a_stripped_notebook():
    notebook = json.loads(NOTEBOOKS[0].read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    assert "a checked cell has no output" in problems(notebook)
