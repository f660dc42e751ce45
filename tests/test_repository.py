"""The repository: which module may import which, the dependency lists, the README's examples and links."""

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: the rooms, from the top of the house down: a module imports only from rooms above its own, or from its own
ROOMS = ("core", "models", "data", "measure", "train", "report", "lab", "cli")


def modules(package):
    """Dotted name below the package -> names of the package's modules that it imports."""
    paths = {".".join(p.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): p
             for p in sorted(package.rglob("*.py"))}
    found = {}
    for name, path in paths.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenpool."):
                base = node.module.removeprefix("tokenpool.")
                imported |= {f"{base}.{a.name}" if f"{base}.{a.name}" in paths else base for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "tokenpool":
                imported |= {a.name for a in node.names if a.name in paths}
            elif isinstance(node, ast.Import):
                imported |= {a.name.removeprefix("tokenpool.") for a in node.names if a.name.startswith("tokenpool.")}
        found[name] = imported - {name}
    return found


def wrong_imports(package):
    graph = modules(package)
    room = {name: ROOMS.index(name.split(".")[0]) for name in graph if not name.startswith("__")}
    below = [f"{name} imports {other}" for name in room for other in sorted(graph[name])
             if room.get(other, -1) > room[name]]
    try:                                        # inside a room too: no two modules may need each other
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        below.append(" imports ".join(reversed(error.args[1])))
    return below


def test_no_import_runs_the_wrong_way():
    assert wrong_imports(ROOT / "tokenpool") == []
    folders = {p.name for p in (ROOT / "tokenpool").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ROOMS)


def test_a_wrong_import_would_be_seen(tmp_path):
    for file, text in {"core/pooling.py": "from tokenpool.models.vit import PooledViT\n", "models/vit.py": "",
                       "data/one.py": "from tokenpool.data import two\n", "data/two.py": "import tokenpool.data.one\n",
                       "models/names.py": "import tokenpool.train.loop\n", "train/loop.py": ""}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    wrong = wrong_imports(tmp_path)
    assert wrong[:2] == ["core.pooling imports models.vit", "models.names imports train.loop"]
    assert set(wrong[2].split(" imports ")) == {"data.one", "data.two"}


def foreign(path):
    """Top-level names of all that a file imports, at its head or inside a function, beside Python's own library."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "." for n in nodes if isinstance(n, ast.ImportFrom) if not n.level}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted((ROOT / "tokenpool" / "core").rglob("*.py")), ids=lambda p: p.stem)
def test_the_core_needs_torch_only(path):
    compiler = {"cpu": {"numba"}, "cuda": {"triton"}}.get(path.stem, set()) if path.parent.name == "kernels" else set()
    assert foreign(path) <= {"torch", "numpy", "tokenpool"} | compiler


def test_a_foreign_import_in_a_function_would_be_seen(tmp_path):
    (tmp_path / "one.py").write_text("import math, torch\n\ndef f():\n    from timm.layers import Mlp\n")
    assert foreign(tmp_path / "one.py") == {"torch", "timm"}


def declared(project):
    """All that the locked environment holds: the package's own and every extra's, so that every test runs in it."""
    extras = [p for extra in project["optional-dependencies"].values() for p in extra]
    return list(dict.fromkeys(project["dependencies"] + extras))      # onnx is in two extras


def test_environment_yml_says_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = conda["dependencies"][-1]["pip"]
    assert listed[-1] == "-e ."
    assert sorted(listed[:-1]) == sorted(declared(project))
    assert f"python{project['requires-python']}" in conda["dependencies"]


def test_the_lock_holds_every_declared_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line}
    wanted = {re.split(r"[><=]", d)[0] for d in declared(project)}
    assert wanted <= locked


def readme_examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("example", readme_examples(), ids=lambda e: e.splitlines()[0][:20])
def test_the_readmes_examples_run_as_printed(example, capsys):
    if "transformers" in example:
        pytest.importorskip("transformers", reason="pip install transformers to test the README's example of it")
    expected = re.findall(r"# prints: (.*)", example)
    assert expected
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == expected


def test_the_readmes_files_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    assert len(readme_examples()) >= 2
