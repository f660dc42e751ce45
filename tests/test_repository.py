"""The house: which module may import which, the two dependency lists, the README's example, the notebooks' folder."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
#: rows of the table in CONTRIBUTING.md; a module imports only from rows above its own, or from its own room
LAYERS = [["pool"], ["kernels"], ["select"], ["peers"], ["methods"], ["schedule"], ["cost"], ["attention"],
          ["models"], ["hf"], ["vit"], ["baselines"], ["search"], ["runs"], ["lab"], ["cli"]]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenpool"):
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [a.name for a in node.names])
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("tokenpool."))


def wrong_imports(root):
    found = []
    for path in sorted((root / "tokenpool").rglob("*.py")):
        own = path.relative_to(root / "tokenpool").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        found += [f"{own} imports {name}" for name in imports(path) if name in RANK and RANK[name] > RANK[own]]
        assert own in RANK, f"{own} has no row in LAYERS"
    return found


def test_no_import_runs_the_wrong_way():
    assert wrong_imports(ROOT) == []


def test_a_wrong_import_would_be_seen(tmp_path):
    (tmp_path / "tokenpool").mkdir()
    (tmp_path / "tokenpool" / "pool.py").write_text("from tokenpool.vit import PooledViT\n")
    (tmp_path / "tokenpool" / "select.py").write_text("import tokenpool.runs.train\n")
    assert wrong_imports(tmp_path) == ["pool imports vit", "select imports runs"]


def test_the_core_needs_torch_only():
    code = ("import sys; sys.modules['timm'] = None; import importlib.util as u\n"
            f"s = u.spec_from_file_location('pool', {str(ROOT / 'tokenpool' / 'pool.py')!r})\n"
            "m = u.module_from_spec(s); sys.modules['pool'] = m; s.loader.exec_module(m); print('ok')")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"
    assert len((ROOT / "tokenpool" / "pool.py").read_text().splitlines()) <= 250


def declared(project):
    """All that the locked environment holds: the package's own and every extra's, so that every test runs in it."""
    return project["dependencies"] + [p for extra in project["optional-dependencies"].values() for p in extra]


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
