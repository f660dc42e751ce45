"""The word list: nothing of it is left, and every kind of place where a word can hide is searched."""

import json
import re
import shutil

import pytest
from lint_words import ALLOWED, COURSE, COURSE_WORDS, ROOT, find, problems, texts, word_list

WORDS = word_list((ROOT / "CONTRIBUTING.md").read_text())


def test_no_listed_word_is_left():
    assert problems() == []


def test_the_list_is_read_from_the_table():
    assert WORDS["picture"].startswith("image")
    assert WORDS["contenders"] == WORDS["rival"] == "method, baseline"
    assert "yield" not in WORDS                              # advice without backticks: `yield` is Python too
    assert word_list("## Word list\n\n| use | not |\n|---|---|\n| a | `b`, `c d` |\n\n## Next\n\n| e | `f` |") \
        == {"b": "a", "c d": "a"}


@pytest.mark.parametrize(("text", "line", "found"), [
    ("one\na Picture of it", 2, "Picture"),
    ("def stand_ins(x):", 1, "stand_ins"),
    ("None was at\n    # hand.", 1, "at # hand"),
    ("(32 came)", 1, "came")])
def test_a_planted_word_is_found(text, line, found):
    assert [hit[:2] for hit in find(text, WORDS)] == [(line, found)]


@pytest.mark.parametrize("text", ["recommended", "a camera became", "rivalry", "standing for", "made up of tokens"])
def test_a_part_of_a_longer_word_is_not(text):
    assert list(find(text, WORDS)) == []


@pytest.fixture
def house(tmp_path):
    """A small repository with the real list."""
    shutil.copy(ROOT / "CONTRIBUTING.md", tmp_path)

    def put(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return problems(tmp_path)
    return put


@pytest.mark.parametrize("name", ["README.md", "docs/speed.md", "data/paper/README.md", "Makefile", "tools/tidy.py",
                                  ".github/workflows/tests.yml", "tokenpool/cli/bench.py",
                                  "tokenpool/report/templates/base.html.j2", "tokenpool/lab/lessons/lesson_01.py"])
def test_every_kind_of_file_is_searched(house, name):
    assert house(name, "fine\nhelp='a contest'\n") == [f'{name}:2: found "contest", use comparison']


def test_cells_of_a_notebook_are_searched(house):
    cells = [{"source": ["# fine\n"]}, {"source": ["# A contest\n", "of stand-ins"]}]
    name = "notebooks/01_small.ipynb"
    assert house(name, json.dumps({"cells": cells})) == [f'{name} cell 2:1: found "contest", use comparison']


def test_an_exception_covers_its_text_and_its_files_only(house):
    assert house("tokenpool/measure/rows.py", 'stage = "untouched"\n') == []
    assert len(house("README.md", 'stage = "untouched"\n')) == 1
    assert len(house("tokenpool/measure/rows.py", 'stage = "untouched"  # left untouched\n')) == 2


@pytest.mark.parametrize(("files", "pattern"), [e[:2] for e in ALLOWED], ids=[e[2][:30] for e in ALLOWED])
def test_every_exception_is_still_needed(files, pattern):
    spans = [m[0] for path in ROOT.glob(files) for m in re.finditer(pattern, path.read_text(), re.S)]
    assert any(list(find(span, WORDS)) for span in spans)


def test_the_courses_exceptions_are_still_needed():
    """A word that has left the notebooks and lessons leaves the exception too."""
    text = "\n".join(t for glob in COURSE for path in ROOT.glob(glob) for _, t in texts(path))
    assert {w for w in COURSE_WORDS if not list(find(text, {w: ""}))} == set()
    assert set(WORDS) >= COURSE_WORDS
