"""The house: which module may import which, the two dependency lists, the README's example, the notebooks' folder."""

import ast
import re
import subprocess
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
    below = [f"{name} imports {other}" for name, others in graph.items() for other in sorted(others)
             if name != "__init__" and ROOMS.index(other.split(".")[0]) > ROOMS.index(name.split(".")[0])]
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


def test_the_core_needs_torch_only():
    code = ("import sys; sys.modules.update(dict.fromkeys(('timm', 'pandas', 'plotly', 'sklearn')))\n"
            f"import importlib.util as u; p = {str(ROOT / 'tokenpool' / 'core' / 'clustering.py')!r}\n"
            "s = u.spec_from_file_location('clustering', p)\n"
            "m = u.module_from_spec(s); sys.modules['clustering'] = m; s.loader.exec_module(m); print('ok')")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"


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
def test_the_readmes_examples_run_as_printed(example):
    if "transformers" in example:
        pytest.importorskip("transformers", reason="pip install transformers to test the README's example of it")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"# prints: (.*)", example)
    assert expected
    assert done.stdout.splitlines() == expected


def test_the_readmes_files_exist():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    assert len(readme_examples()) >= 2
