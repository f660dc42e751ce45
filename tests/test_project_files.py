"""For contributors: the table of rooms, the changelog, workflows, templates and hooks name what exists."""

import functools
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from test_repository import ROOMS, modules

from tokenpool.measure.rows import Row

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
CHANGELOG, CONTRIBUTING = ((ROOT / f"{name}.md").read_text() for name in ("CHANGELOG", "CONTRIBUTING"))


def steps(workflow):
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def unknown(command):
    """Make targets and files that a shell command names and that are not there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    wrong = [f"make {t}" for t in re.findall(r"\bmake ([a-z-]+)", command) if t not in targets]
    return wrong + [f for f in re.findall(r"[\w./-]+\.(?:py|lock|toml|ipynb)\b", command) if not (ROOT / f).exists()]


def test_an_unknown_name_would_be_seen():
    assert unknown("make test && make tests && python tools/nothing.py requirements.lock") \
        == ["make tests", "tools/nothing.py"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_runs_what_exists(workflow):
    whole = yaml.safe_load(workflow.read_text())
    assert {"push", "pull_request"} <= set(whole[True])             # YAML 1.1 reads the key `on` as true
    for job in whole["jobs"].values():
        assert job["runs-on"]
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        assert unknown(step.get("run", "")) == []
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_the_workflows_run_the_tests_and_build_the_site():
    assert [p.stem for p in WORKFLOWS] == ["site", "tests"]
    said = {p.stem: [s["run"] for s in steps(p) if "run" in s] for p in WORKFLOWS}
    assert {"make test", "make test-all"} <= set(said["tests"])
    assert "make site" in said["site"]


def test_every_supported_python_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["linux"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]


@pytest.mark.parametrize("form", FORMS, ids=lambda p: p.stem)
def test_an_issue_form_is_complete(form):
    whole = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(whole)
    assert len({field["id"] for field in whole["body"]}) == len(whole["body"])
    for field in whole["body"]:
        assert field["type"] in ("input", "textarea", "dropdown")
        assert field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] == "dropdown")


def test_hooks_are_the_locked_ruff_and_our_lints():
    locked = re.search(r"^ruff==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M)[1]
    ruff = next(repo for repo in HOOKS if "ruff" in repo["repo"])
    assert ruff["rev"] == f"v{locked}"
    local = next(repo for repo in HOOKS if repo["repo"] == "local")["hooks"]
    assert {hook["id"] for hook in local} == {"lint-words", "lint-notebooks"}
    assert [unknown(hook["entry"]) for hook in local] == [[], []]


# ---- the changelog ----

def table(title):
    rows = re.findall(r"^\| (.+) \|$", CHANGELOG.partition(f"### {title}\n")[2].partition("\n##")[0], re.M)
    return [row.split(" | ") for row in rows[2:]]


def test_moved_modules_are_where_the_changelog_says():
    for old, new in table("Moved modules"):
        for name in re.findall(r"`(tokenpool[\w.]*)`", new):
            path = ROOT / name.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{old} -> {name}"
    assert len(table("Moved modules")) > 20


def test_renamed_columns_are_what_rows_have():
    columns = set(Row.__dataclass_fields__)
    for old, new in table("Renamed columns"):
        assert new.strip("`") in columns
        assert old.strip("`") not in columns


def test_versions_agree():
    versions = re.findall(r"^## (\S+)", CHANGELOG, re.M)
    assert versions[0] == "Unreleased"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[1] == project["version"] == str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"])


# ---- the table of rooms in CONTRIBUTING.md ----

def rooms():
    """Room -> its modules, as the table lists them; a folder ends in a slash."""
    rows = re.findall(r"^\| `(\w+)/` \| .+? \| (.+?) \|$", CONTRIBUTING, re.M)
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
