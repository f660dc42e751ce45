"""The planted mistakes of `make mutants`: every row finds its place, and what is found does not hang on spelling."""

from pathlib import Path

import pytest
import run_mutants
from mutants import MUTANTS
from run_mutants import Mutant, plant

ROWS = [Mutant(*row) for row in MUTANTS]
SOURCE = '''\
TABLE = {"a": Row(one, True, True), "b": Row(two, True, False)}

class Pool:
    def mean(self, x):
        # a comment
        return (x *
                self.mass).sum(-1) / total(x)

def apart(x):
    return x - x.mean()
'''


@pytest.mark.parametrize("mutant", ROWS, ids=lambda m: m.function)
def test_a_mistake_can_be_planted(mutant):
    plant(mutant)
    assert (run_mutants.ROOT / "tests" / mutant.tests.split(" -k ")[0]).exists()


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setattr(run_mutants, "ROOT", tmp_path)
    monkeypatch.setattr(run_mutants, "PACKAGE", tmp_path / "tokenpool")
    (tmp_path / "data").mkdir()
    (tmp_path / "tokenpool" / "core").mkdir(parents=True)
    (tmp_path / "tokenpool" / "models").mkdir()
    (tmp_path / "tokenpool" / "core" / "pool.py").write_text(SOURCE)
    (tmp_path / "tokenpool" / "core" / "cost.py").write_text("")
    return tmp_path / "tokenpool"


@pytest.mark.parametrize(("function", "find", "replace", "line"), [
    ("core.pool.Pool.mean", "(x*self.mass).sum(-1)", "x.sum(-1)", "        return (x.sum(-1)) / total(x)"),
    ("core.pool.Pool.mean", "... / total(x)", "...", "                self.mass).sum(-1))"),
    ("core.pool.Pool.mean", "return ... / ...", "pass", "        pass"),
    ("core.pool.apart", "x - ...", "x + ...", "    return (x + x.mean())"),
    ("core.pool.TABLE", "Row(two, ..., False)", "Row(two, ..., True)",
     'TABLE = {"a": Row(one, True, True), "b": (Row(two, True, True))}'),
])
def test_a_mistake_is_one_expression_of_one_function(package, function, find, replace, line):
    [(path, text)] = plant(Mutant(function, find, replace, "")).items()
    assert path == Path("tokenpool/core/pool.py")
    assert line in text.splitlines()
    assert len(set(SOURCE.splitlines()) - set(text.splitlines())) in (1, 2)


@pytest.mark.parametrize(("function", "find", "says"), [
    ("core.pool.Pool.mean", "x - x.mean()", r"core\.pool\.Pool\.mean: `x - x\.mean\(\)` occurs 0 times"),
    ("core.pool.apart", "x", "occurs 2 times in it, not once"),
    ("core.pool.Pool.average", "x", "defines no `average`. Was it renamed"),
    ("core.pooling.mean", "x", "there is no such module"),
])
def test_a_row_that_does_not_fit_names_its_function(package, function, find, says):
    with pytest.raises(LookupError, match=says):
        plant(Mutant(function, find, "None", ""))


def test_a_replacement_must_change_something(package):
    with pytest.raises(LookupError, match="changes nothing"):
        plant(Mutant("core.pool.apart", "x - x.mean()", "(x - x.mean())", ""))


def test_an_overlay_is_the_repository_with_some_files_replaced(package, tmp_path):
    over = tmp_path / "over"
    changed = {Path("tokenpool/core/pool.py"): "mistake = 1\n", Path("tokenpool/new/one.py"): "new = 1\n"}
    run_mutants.overlay(over, changed, tmp_path)
    assert (over / "tokenpool" / "core" / "pool.py").read_text() == "mistake = 1\n"
    assert (over / "tokenpool" / "new" / "one.py").read_text() == "new = 1\n"
    assert (package / "core" / "pool.py").read_text() == SOURCE
    assert (over / "data").is_symlink()
    assert (over / "tokenpool" / "models").is_symlink()
    assert (over / "tokenpool" / "core" / "cost.py").is_symlink()
    assert not (over / "tokenpool" / "core").is_symlink()
