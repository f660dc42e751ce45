"""CONTRIBUTING.md: its table of rooms is the tree, and its worked examples, put where they say, work."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_repository import ROOMS, modules

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
#: in an example, the comment that says where the lines below it go
PLACE = re.compile(r"^# (\S+), (.+)$", re.M)


# ---- the table of rooms ----

def rooms():
    """Room -> its modules, as the table lists them; a folder ends in a slash."""
    rows = re.findall(r"^\| `(\w+)/` \| .+? \| (.+?) \|$", TEXT, re.M)
    return {room: re.findall(r"`([\w/]+)`", listed) for room, listed in rows}


def in_the_tree(room):
    folder = ROOT / "tokenpool" / room
    return {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__"} | {
        f"{p.name}/" for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"}


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_lists_the_modules_of_a_room(room):
    listed = rooms()[room]
    assert len(listed) == len(set(listed))
    assert set(listed) == in_the_tree(room)


def test_the_rooms_are_listed_from_the_top():
    assert tuple(rooms()) == ROOMS


@functools.cache
def imports():
    return modules(ROOT / "tokenpool")


@pytest.mark.parametrize("room", ROOMS)
def test_a_module_imports_only_from_modules_listed_before_it(room):
    place = {f"{room}.{name}": i for i, name in enumerate(rooms()[room])}              # folders are not compared
    graph = imports()
    assert [f"{name} imports {other}" for name in place for other in graph.get(name, ())
            if place.get(other, -1) > place[name]] == []


# ---- the worked examples ----

def pieces(heading):
    """(file, where in it, lines) of an example, in order."""
    section = TEXT.partition(f"## {heading}")[2].partition("\n## ")[0]
    found = []
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        _, *parts = PLACE.split(block)
        found += [(file, where, lines.strip("\n"))
                  for file, where, lines in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return found


def put(root, file, where, lines):
    path, (how, _, name) = root / file, where.partition(" ")
    text = path.read_text() if path.exists() else ""
    if where == "a cell":
        notebook = json.loads(text or '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
        notebook["cells"].append({"cell_type": "code", "id": "example", "metadata": {}, "execution_count": None,
                                  "outputs": [], "source": lines})
        text = json.dumps(notebook)
    elif how in ("above", "in"):
        found = re.search(rf"^{name}\b.*\n", text, re.M)
        assert found, f"{file} has no {name}"
        at, new = ((found.start(), f"{lines}\n\n\n") if how == "above"
                   else (found.end(), "".join(f"    {line}\n" for line in lines.splitlines())))
        text = text[:at] + new + text[at:]
    else:
        assert where in ("new", "at the end")
        assert bool(text) == (where == "at the end")
        text += f"\n\n{lines}\n"
    path.write_text(text)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What a copy of the package with all examples in it answers: one line a question."""
    root = tmp_path_factory.mktemp("examples")
    for folder in ("tokenpool", "notebooks", "data"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for heading in re.findall(r"^## (A new .+)$", TEXT, re.M):
        for piece in pieces(heading):
            put(root, *piece)
    done = subprocess.run([sys.executable, "-c", QUESTIONS], cwd=root, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


QUESTIONS = """
import json, timm, torch, tokenpool as tp
from tokenpool.cli import main
from tokenpool.lab import start
from tokenpool.measure.rows import Results, frame
from tokenpool.report.claims import verdicts

x = torch.arange(12.0).reshape(1, 6, 2)
print("method:", tp.pool_tokens(x, 2, method="longest").indices.sort().values.tolist())
vit = timm.create_model("pebbles_vit").eval()
print("pooled:", tp.PooledViT(vit, saving=0.42, method="longest")(torch.zeros(2, 3, 64, 64)).shape[1])
main(["macs", "deit_tiny_patch16_224", "--saving", "0.42", "--method", "longest"])

attention = torch.tensor([[[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.0, 1.0, 0.0]]]])
print("score:", tp.significance(attention, kind="strongest").flatten().tolist())
print("by score:", tp.PooledViT(vit, saving=0.42, method="top_k", score="strongest").trace(
    torch.zeros(1, 3, 64, 64)).steps[0].score is not None)

found = {v.claim.id: v for v in verdicts(frame(Results("data/runs/pebbles.csv").rows))}
print("claim:", len(found["random_above_top_k"].effects))

def run_last_cell(notebook, **names):
    exec(json.load(open(f"notebooks/{notebook}.ipynb"))["cells"][-1]["source"], names)
    return names

run_last_cell("03_reconstruction", lab=(lab := start("03")))
print("stub:", lab.outcomes["d"].state)
print("solution:", lab.check("d", lab.lesson.cluster_sizes.solution).state)
print("wrong:", lab.check("d", lambda labels, k: torch.bincount(labels)).state)
print("notebook:", run_last_cell("09_rotary")["lab"].predict("a").prediction.options[1])
"""


@pytest.mark.parametrize(("question", "answer"), [
    ("method", "[[4, 5]]"), ("pooled", "30"), ("by score", "True"), ("claim", "6"),
    ("stub", "open"), ("solution", "right"), ("wrong", "wrong"), ("notebook", "its medoid's")])
def test_a_worked_example(shown, question, answer):
    assert shown[question] == answer


def test_the_score_of_the_example_is_its_definition(shown):
    """The largest attention paid to each of the two patches, in the matrix of QUESTIONS."""
    assert json.loads(shown["score"]) == pytest.approx([1.0, 0.3])


@pytest.mark.parametrize(("heading", "most"), [("A new method", 1), ("A new score", 1), ("A new claim", 1),
                                               ("A new exercise", 2), ("A new notebook", 3)])
def test_few_places_are_touched(heading, most):
    title = re.search(rf"^## {heading}: (\d) places?$", TEXT, re.M)
    places = {file for file, _, _ in pieces(title[0].removeprefix("## "))}
    assert 1 <= len(places) == int(title[1]) <= most
