"""Copies of the notebooks with all exercises solved: every stub replaced by the solution of its exercise.

    python tools/solve_notebooks.py FOLDER

The solutions are the package's own (`tokenpool.lab.lessons`), so a notebook whose stub, check and solution have drifted
apart fails when its copy is run. The last cell of a copy fails if one check did not say "right".
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tokenpool.lab.kit.session import LESSONS, exercises

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_CHECK = re.compile(r"^lab\.check\(\"(\w+)\", (\w+)\)", re.M)


def solve(notebook: NotebookNode, number: str) -> NotebookNode:
    """Fill in the solutions; changes and returns the notebook."""
    known = exercises(importlib.import_module(f"tokenpool.lab.lessons.{LESSONS[number]}"))
    solved = []
    for cell in notebook.cells:
        found = _CHECK.search(cell.source) if cell.cell_type == "code" else None
        if found:
            letter, name = found.groups()
            cell.source = with_solution(cell.source, name, known[letter].source())
            solved.append(letter)
    if sorted(solved) != sorted(known):
        raise ValueError(f"Notebook {number} checks the exercises {sorted(solved)}; its lesson has {sorted(known)}.")
    wanted = ", ".join(f'"{letter}": "right"' for letter in solved)
    notebook.cells.append(nbformat.v4.new_code_cell(
        f"assert {{letter: card.state for letter, card in lab.outcomes.items()}} == {{{wanted}}}, lab.outcomes"))
    return notebook


def with_solution(source: str, name: str, solution: str) -> str:
    """A cell with the function `name` replaced."""
    node = next((n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    if node is None:
        raise ValueError(f"The cell checks `{name}` but does not define it:\n{source}")
    lines = source.splitlines()
    return "\n".join([*lines[:node.lineno - 1], *solution.rstrip().splitlines(), *lines[node.end_lineno:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        solved = solve(nbformat.read(path, as_version=4), path.name[:2])
        nbformat.write(solved, folder / f"solved_{path.name}")


if __name__ == "__main__":
    main()
