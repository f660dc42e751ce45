"""The notebooks: the lint finds nothing, sees every planted mistake, and what nbval compares really can fail.

The notebooks themselves run under nbval, twice: as they are (`notebooks/`, by pytest's own collection) and as a good
student leaves them (`tools/solve_notebooks.py`; see `make test`).
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import lint_notebooks
import nbformat
import pytest
import solve_notebooks
import tidy_notebooks
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tokenpool.lab.kit.session import LESSONS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRIAL = ROOT / "notebooks" / "03_reconstruction.ipynb"


def test_there_is_one_notebook_a_lesson():
    assert [path.stem[:2] for path in NOTEBOOKS] == list(LESSONS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_is_wrong_with_a_notebook(path):
    assert lint_notebooks.problems(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_tidy(path):
    saved = path.read_text()
    assert nbformat.writes(tidy_notebooks.tidy(nbformat.reads(saved, 4))) == saved.rstrip("\n")


# ---- the lint sees what it is for ----

def first(notebook, kind, where=lambda cell: True):
    return next(c for c in notebook["cells"] if c["cell_type"] == kind and where(c))


def checked(cell):
    return lint_notebooks.CHECKED in cell["metadata"].get("tags", [])


def strip_outputs(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def add(text, kind="markdown"):
    def change(notebook):
        first(notebook, kind, lambda c: "# 03" not in "".join(c["source"]))["source"] = text
    return change


def set_output(**output):
    def change(notebook):
        first(notebook, "code", checked)["outputs"] = [output]
    return change


def append(text):
    def change(notebook):
        first(notebook, "markdown", lambda c: "Why it matters" in "".join(c["source"]))["source"] += [f"\n\n{text}"]
    return change


def without(kind, text):
    def change(notebook):
        notebook["cells"].remove(first(notebook, kind, lambda c: text in "".join(c["source"])))
    return change


MISTAKES = [
    (strip_outputs, "a checked cell has no output"),
    (strip_outputs, "not run once each, in order"),
    (append("It saves 37 % of the work."), "no cell produces the number 37"),
    (append("It saves 0.37 of the work."), "no cell produces the number 0.37"),
    (append("There are 1,234 of them."), "no cell produces the number 1234"),
    (append("![](image.png)"), "an image without words"),
    (append("See [this](nowhere.md)."), "the link nowhere.md leads nowhere"),
    (append("# Another title"), "2 titles"),
    (append("#### Deep"), "skips a level"),
    (add("import torch\n" * 16, "code"), "16 lines"),
    (add("!pip install tokenpool", "code"), "reaches for the network or the shell"),
    (add("m = timm.create_model('x', pretrained=True)", "code"), "reaches for the network"),
    (set_output(output_type="error", ename="E", evalue="", traceback=[]), "an error is saved"),
    (set_output(output_type="stream", name="stderr", text="warning"), "noise on stderr"),
    (set_output(output_type="stream", name="stdout", text="0.1234567"), "five decimals"),
    (set_output(output_type="stream", name="stdout", text="saved in /home/me/x"), "a path of this machine"),
    (set_output(output_type="execute_result", data={"text/plain": "tensor(3)"}), "a raw repr"),
    (set_output(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": {}}), "a dead widget"),
    (lambda n: n["metadata"].update(widgets={}), "the state of widgets is saved"),
    (lambda n: n["cells"].extend(n["cells"][-3:] * 2), "cells; at most 40"),
    (without("code", 'lab.reveal("b"'), "is not revealed"),
    (without("code", "lab.explore"), "the explorer"),
    (without("markdown", "Key points"), "key points"),
    (lambda n: first(n, "code", checked)["metadata"].clear(), ""),
]


@pytest.mark.parametrize(("plant", "said"), MISTAKES, ids=[said or "fewer checked cells" for _, said in MISTAKES])
def test_the_lint_sees_a_planted_mistake(plant, said, tmp_path):
    notebook = copy.deepcopy(json.loads(TRIAL.read_text()))
    plant(notebook)
    if not said:                       # one check less is allowed; none left is not
        for cell in notebook["cells"]:
            cell["metadata"].clear()
        said = "0 checked cells"
    path = tmp_path / TRIAL.name
    path.write_text(json.dumps(notebook))
    found = [p for p in lint_notebooks.problems(path) if not ("leads nowhere" in p and ".ipynb" in p)]
    assert any(said in problem for problem in found), found


def test_the_lint_sees_a_large_file(tmp_path):
    path = tmp_path / TRIAL.name
    path.write_text(TRIAL.read_text() + " " * 150_000)
    assert any("KB; at most" in problem for problem in lint_notebooks.problems(path))


@pytest.mark.parametrize(("sentence", "claims"), [
    ("Saves 42 % at equal top-1 (P).", []), ("(Fig. 6, P) says 12.", []), ("Notebook 04 and Fig. 12 tell.", []),
    ("In 2021, after 40 minutes.", []), ("It keeps `16` of $N = 64$.", []), ("Five of 8 remain.", []),
    ("It keeps 16 of them.", ["16"]), ("A share of 0.5.", ["0.5"]), ("Only 5 % remain.", ["5"]),
])
def test_which_numbers_in_prose_are_claims(sentence, claims):
    assert [number for number, _ in lint_notebooks._claimed(sentence)] == claims


# ---- what nbval and the solved copies can see ----

def beginning(notebook):
    """A notebook up to its first checked cell, which is enough to see whether a comparison takes place."""
    end = next(i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code" and checked(c))
    notebook["cells"] = notebook["cells"][:end + 1]
    return notebook


@pytest.mark.parametrize("wrong", [False, True])
def test_a_wrong_number_in_a_checked_output_fails(wrong, tmp_path):
    notebook = beginning(json.loads(TRIAL.read_text()))
    output = notebook["cells"][-1]["outputs"][0]
    if wrong:
        text = "".join(output["text"])
        assert "50" in text
        output["text"] = text.replace("50", "51")
    path = tmp_path / "trial.ipynb"
    path.write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-c", "/dev/null",
               "--rootdir", str(tmp_path), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == (1 if wrong else 0), run.stdout


def test_a_broken_exercise_fails_in_its_solved_copy(tmp_path):
    notebook = solve_notebooks.solve(nbformat.read(TRIAL, 4), "03")
    keep = [c for c in notebook.cells if c.cell_type == "code" and
            ("import" in c.source or "lab.check" in c.source or "lab.outcomes" in c.source)]
    notebook.cells = copy.deepcopy(keep)
    NotebookClient(notebook, timeout=120).execute()
    broken = next(c for c in keep if 'lab.check("a"' in c.source)
    assert ".min(1)" in broken.source
    broken.source = broken.source.replace(".min(1)", ".min(0)")
    notebook.cells = keep
    with pytest.raises(CellExecutionError, match="the minimum belongs to the K"):
        NotebookClient(notebook, timeout=120).execute()


def test_a_solution_replaces_its_stub_and_nothing_else():
    cell = 'def f(x):\n    """Words."""\n    return ...\n\nlab.check("a", f)'
    assert solve_notebooks.with_solution(cell, "f", "def f(x):\n    return x\n") == \
        'def f(x):\n    return x\n\nlab.check("a", f)'
    with pytest.raises(ValueError, match="does not define it"):
        solve_notebooks.with_solution('lab.check("a", g)', "g", "")


def test_every_exercise_of_a_lesson_must_be_in_its_notebook():
    notebook = nbformat.read(TRIAL, 4)
    notebook.cells = [c for c in notebook.cells if 'lab.check("b"' not in c.source]
    with pytest.raises(ValueError, match="its lesson has"):
        solve_notebooks.solve(notebook, "03")
