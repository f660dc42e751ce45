"""CONTRIBUTING.md's worked examples, put where they say, do what the text says.

A piece of code there begins with a line that names its place: `# tokenpool/core/methods.py, in METHODS`. All pieces are
put into an overlay of the repository, one process uses them, and every section is compared with what it must print.
"""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from run_mutants import overlay

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"^# (\S+\.(?:py|ipynb)), (?:above (\w+)|in (\w+)|(at the end|a cell|new))\n", re.M)
SECTION = re.compile(r"^## (A new [\w ]+): (\d) places?\n(.*?)(?=^## |\Z)", re.M | re.S)

#: section -> what a reader would type to see the example work, and what it prints
USES = {
    "A new method": ("""
        x = torch.arange(12.0).reshape(1, 6, 2)
        print(tp.pool_tokens(x, 2, method="longest").tokens.flatten().tolist())
        pooled = tp.PooledViT(timm.create_model("pebbles_vit").eval(), saving=0.42, method="longest")
        print(tuple(pooled(torch.zeros(2, 3, 64, 64)).shape), tp.macs(pooled).clustering)
        print(main(["macs", "deit_tiny_patch16_224", "--saving", "0.42", "--method", "longest"]))
        """, "[8.0, 9.0, 10.0, 11.0]", "(2, 30) 0", "0"),
    "A new score": ("""
        pooled = tp.PooledViT(timm.create_model("pebbles_vit").eval(), saving=0.42, score="strongest", method="top_k")
        print(tuple(pooled(torch.zeros(2, 3, 64, 64)).shape))
        """, "(2, 30)"),
    "A new claim": ("""
        from tokenpool.report import claims
        print(next(claim.sentence for claim in claims.CLAIMS if claim.id == "random_above_top_k"))
        """, "random selection is above top-K at every budget"),
    "A new exercise": ("""
        import nbformat, solve_notebooks
        from tokenpool.lab import start
        lab = start("03")
        notebook = nbformat.read("notebooks/03_reconstruction.ipynb", as_version=4)
        cell = next(c.source for c in notebook.cells if 'lab.check("d"' in c.source)
        exec(cell)
        print(lab.outcomes["d"].state)
        solved = solve_notebooks.solve(notebook, "03")
        exec(next(c.source for c in solved.cells if 'lab.check("d"' in c.source))
        print(lab.outcomes["d"].state)
        """, "open", "right"),
    "A new notebook": ("""
        import nbformat
        [cell] = nbformat.read("notebooks/09_rotary.ipynb", as_version=4).cells
        exec(cell.source)
        print(lab.number, lab.lesson.__name__, lab.predict("a").prediction.id)
        """, "09 tokenpool.lab.lessons.lesson_09_rotary a"),
}


def pieces(text):
    """(file, where, code) of every piece in a section."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        marks = list(PLACE.finditer(block))
        for mark, end in zip(marks, [*(m.start() for m in marks), len(block)][1:], strict=bool(marks)):
            file, above, inside, kind = mark.groups()
            code = block[mark.end():end].strip("\n") + "\n"
            found.append((Path(file), f"above {above}" if above else f"in {inside}" if inside else kind, code))
    return found


def put(source, where, code):
    """A file's text with a piece of code in its place."""
    if where == "new":
        return code
    if where == "at the end":
        return f"{source.rstrip()}\n\n\n{code}"
    if where == "a cell":
        notebook = nbformat.reads(source, as_version=4) if source else nbformat.v4.new_notebook()
        notebook.cells.append(nbformat.v4.new_code_cell(code.rstrip()))
        return nbformat.writes(notebook)
    how, name = where.split()
    tables = [n for n in ast.parse(source).body if isinstance(n, ast.Assign | ast.AnnAssign)
              and name in [getattr(t, "id", "") for t in getattr(n, "targets", [getattr(n, "target", None)])]]
    assert len(tables) == 1, f"{name} is assigned {len(tables)} times"
    lines = source.splitlines(keepends=True)
    if how == "above":
        return "".join([*lines[:tables[0].lineno - 1], code, "\n\n", *lines[tables[0].lineno - 1:]])
    value = next(n for n in ast.walk(tables[0].value) if isinstance(n, ast.Dict | ast.Tuple | ast.List | ast.Set))
    last = (value.values if isinstance(value, ast.Dict) else value.elts)[-1]
    line, at = lines[last.end_lineno - 1].encode(), last.end_col_offset
    row, rest = code.rstrip(",\n"), line[at:].lstrip(b",").decode()
    lines[last.end_lineno - 1] = f"{line[:at].decode()},\n{row}\n{rest}"
    return "".join(lines)


SECTIONS = {title: (int(places), pieces(text))
            for title, places, text in SECTION.findall((ROOT / "CONTRIBUTING.md").read_text())}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Section -> what its use printed, with all pieces in place."""
    files = {}
    for _, found in SECTIONS.values():
        for file, where, code in found:
            source = files.get(file) or ((ROOT / file).read_text() if (ROOT / file).exists() else "")
            files[file] = put(source, where, code)
    folder = tmp_path_factory.mktemp("overlay")
    overlay(folder, files)
    script = ("import contextlib, io, json, sys, textwrap, timm, torch, traceback, tokenpool as tp\n"
              "from tokenpool.cli import main\n"
              "printed = {}\n"
              "for title, use in json.load(sys.stdin).items():\n"
              "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
              "        try:\n"
              "            exec(textwrap.dedent(use), globals())\n"
              "        except Exception:\n"
              "            traceback.print_exc(file=out)\n"
              "    printed[title] = out.getvalue().splitlines()\n"
              "print(json.dumps(printed))\n")
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps({t: u[0] for t, u in USES.items()}),
                          cwd=folder, env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tools'}"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_worked_example_is_used():
    assert set(SECTIONS) == set(USES)


@pytest.mark.parametrize("title", USES)
def test_a_worked_example_does_what_the_text_says(title, printed):
    expected = list(USES[title][1:])
    assert [line for line in printed[title] if line in expected] == expected, "\n".join(printed[title])


@pytest.mark.parametrize("title", USES)
def test_an_example_touches_as_many_places_as_its_title_says(title):
    places, found = SECTIONS[title]
    assert 1 <= len({file for file, *_ in found}) == places <= 3


@pytest.mark.parametrize(("where", "code", "becomes"), [
    ("in A", "3,", "A = [1, 2,\n3\n]\nB: dict = {\n    'a': f(1),\n}\n"),
    ("in B", "'b': 2,", "A = [1, 2]\nB: dict = {\n    'a': f(1),\n'b': 2\n\n}\n"),
    ("above B", "C = 1\n", "A = [1, 2]\nC = 1\n\n\nB: dict = {\n    'a': f(1),\n}\n"),
    ("at the end", "C = 1\n", "A = [1, 2]\nB: dict = {\n    'a': f(1),\n}\n\n\nC = 1\n"),
])
def test_a_piece_is_put_where_it_says(where, code, becomes):
    assert put("A = [1, 2]\nB: dict = {\n    'a': f(1),\n}\n", where, code) == becomes
