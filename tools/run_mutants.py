"""Would the tests notice? Plants each mistake of `tests/mutants.py` and runs the tests that must fail on it.

    python tools/run_mutants.py                 all of them (`make mutants`)
    python tools/run_mutants.py clustering      only those whose function or tests contain the word

One process imports torch and everything else once and forks a child per mistake. The child imports tokenpool from an
overlay: a folder of symbolic links to the package in which one file is replaced. Processes that a test starts import
from the overlay too. The same tests also run once without a mistake, and must pass.

A mistake is pinned to a function: the row ("core.clustering.k_means", "labels == old", "True", "test_clustering.py -k
rounds") replaces the one expression (or statement) of that function that reads `labels == old`. Line breaks, comments
and everything outside the function do not matter. In the text to find, `...` matches anything; in the replacement it
is what was matched. A text that is missing or not unique is an error that names the function.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tokenpool"
WARM = ("torch", "timm", "numpy", "pandas", "plotly.graph_objects", "PIL.Image", "sklearn.cluster", "hypothesis",
        "accelerate", "ipywidgets", "anywidget", "nbformat", "nbclient", "pyarrow", "rich.progress", "scipy.stats",
        "kmedoids", "torch.utils.flop_counter", "timm.data", "timm.optim", "timm.scheduler", "transformers",
        "onnx", "onnxruntime", "numba", "pytest", "_pytest.assertion.rewrite", "jinja2")


WORKERS = 2
MEANING = {0: "NOT NOTICED", 5: "NO SUCH TEST"}


class Mutant(NamedTuple):
    function: str       # room.module.function, .Class.method or .TABLE
    find: str           # the expression or statement to replace; ... matches anything
    replace: str        # the mistake; ... is what was matched
    tests: str          # arguments of pytest: a file of tests/ and -k


# ---- planting ----

def locate(function: str) -> tuple[Path, list[str]]:
    """The file of `room.module.name...` and the rest of the name."""
    parts = function.split(".")
    for n in range(len(parts) - 1, 0, -1):
        for path in (PACKAGE.joinpath(*parts[:n]).with_suffix(".py"), PACKAGE.joinpath(*parts[:n], "__init__.py")):
            if path.exists():
                return path, parts[n:]
    raise LookupError(f"{function}: there is no such module in {PACKAGE.name}/.")


def definition(tree: ast.Module, names: list[str], function: str) -> ast.AST:
    """The function, class or table that a dotted name means."""
    node: ast.AST = tree
    for name in names:
        named = [n for n in ast.walk(node) if n is not node and (
            (isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and n.name == name)
            or (isinstance(n, ast.Assign | ast.AnnAssign) and name in
                {t.id for t in getattr(n, "targets", [getattr(n, "target", None)]) if isinstance(t, ast.Name)}))]
        if not named:
            raise LookupError(f"{function}: its module defines no `{name}`. Was it renamed?")
        node = named[0]
    return node


def matches(pattern: object, node: object, held: list[ast.AST]) -> bool:
    """Does the syntax tree read like the pattern? What `...` matched is appended to `held`."""
    if isinstance(pattern, ast.Constant) and pattern.value is Ellipsis:
        held.append(node)
        return True
    if isinstance(pattern, ast.AST):
        return type(pattern) is type(node) and all(
            matches(getattr(pattern, f, None), getattr(node, f, None), held) for f in pattern._fields if f != "ctx")
    if isinstance(pattern, list):
        return isinstance(node, list) and len(pattern) == len(node) and all(
            matches(p, n, held) for p, n in zip(pattern, node, strict=True))
    return pattern == node


def plant(mutant: Mutant) -> dict[Path, str]:
    """The file that changes, from the repository's root, and its text with the mistake."""
    path, names = locate(mutant.function)
    source = path.read_bytes()
    tree = ast.parse(source)
    within = definition(tree, names, mutant.function)
    (pattern,), (mistake,) = ast.parse(mutant.find).body, ast.parse(mutant.replace).body
    if isinstance(pattern, ast.Expr) and isinstance(mistake, ast.Expr):
        pattern = pattern.value
    found = []
    for node in ast.walk(within):
        held: list[ast.AST] = []
        if matches(pattern, node, held) and held != [node]:
            found.append((node, held))
    if len(found) != 1:
        raise LookupError(f"{mutant.function}: `{mutant.find}` occurs {len(found)} times in it, not once. Look at the "
                          f"function in {path.relative_to(ROOT)} and change the row of tests/mutants.py.")
    node, held = found[0]
    starts = [0, *(m.end() for m in re.finditer(rb"\n", source))]

    def span(n: ast.AST) -> tuple[int, int]:
        return starts[n.lineno - 1] + n.col_offset, starts[n.end_lineno - 1] + n.end_col_offset

    texts = iter([source[slice(*span(h))].decode() for h in held])
    text = re.sub(r"\.\.\.", lambda m: next(texts), mutant.replace)
    if isinstance(node, ast.expr):
        text = f"({text})"
    low, high = span(node)
    changed = (source[:low] + text.encode() + source[high:]).decode()
    if ast.dump(ast.parse(changed)) == ast.dump(tree):
        raise LookupError(f"{mutant.function}: replacing `{mutant.find}` by `{mutant.replace}` changes nothing.")
    return {path.relative_to(ROOT): changed}


def overlay(folder: Path, changed: dict[Path, str], below: Path = ROOT) -> None:
    """The repository as links in `folder`, with the text of some files (relative to `below`) replaced or added."""
    folder.mkdir(exist_ok=True)
    first = {path.parts[0] for path in changed}
    for entry in below.iterdir() if below.exists() else ():
        if entry.name not in first | {".git", "__pycache__"}:
            (folder / entry.name).symlink_to(entry)
    for name in first:
        inside = {path.relative_to(name): text for path, text in changed.items() if path.parts[0] == name}
        if Path() in inside:
            (folder / name).write_text(inside[Path()])
        else:
            overlay(folder / name, inside, below / name)


# ---- running ----

class Run(NamedTuple):
    """One call of pytest on an overlay."""
    name: str
    arguments: list[str]
    expected: int       # pytest's exit code: 1 where a mistake must be noticed, 0 without one
    env: dict[str, str]
    mutant: Mutant | None = None


def runs(mutants: list[Mutant]) -> list[Run]:
    """For every file of tests one run without a mistake, and one run per mistake."""
    chosen: dict[tuple[str, bool], set[str]] = {}
    found = []
    for mutant in mutants:
        file, _, words = mutant.tests.partition(" -k ")
        words = words.strip("'")
        plain = mutant.function.startswith("core.clustering.")
        chosen.setdefault((file, plain), set()).add(words)
        found.append(Run(f"{mutant.function}: {mutant.find}", ["-x", f"tests/{file}", "-k", words],
                         1, environment(plain), mutant))
    return [Run(f"no mistake: {file}", [f"tests/{file}", "-k", " or ".join(f"({w})" for w in sorted(words))],
                0, environment(plain)) for (file, plain), words in chosen.items()] + found


def environment(plain: bool) -> dict[str, str]:
    return {"TOKENPOOL_KERNEL": "plain"} if plain else {}         # a mistake there is met only where it computes


def start(run: Run, folder: Path) -> int:
    """Fork a child that runs the tests; its process id."""
    overlay(folder, plant(run.mutant) if run.mutant else {})
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with (folder / "said.txt").open("w") as said, open(os.devnull) as nothing:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os.dup2(nothing.fileno(), 0)
        os.chdir(ROOT)
        # processes that a test starts import from the overlay, and not from the folder that they start in
        os.environ.update(run.env, PYTHONPATH=str(folder), PYTHONSAFEPATH="1")
        sys.path.insert(0, str(folder))
        import pytest
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers", *run.arguments]))
        if not sys.modules["tokenpool"].__file__.startswith(str(folder)):
            print("tokenpool was not imported from the overlay")
            code = 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(words: list[str]) -> int:
    sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    from mutants import MUTANTS
    for name in WARM:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"({name} is not installed)")
    chosen = [Mutant(*m) for m in MUTANTS]
    chosen = [m for m in chosen if not words or any(w in m.function or w in m.tests for w in words)]
    if not chosen:
        print(f"No mistake's function or tests contain {' or '.join(words)}. Try clustering or test_vit.")
        return 1
    began, waiting, running, wrong = time.monotonic(), runs(chosen)[::-1], {}, 0
    while waiting or running:
        while waiting and len(running) < WORKERS:
            run, folder = waiting.pop(), tempfile.TemporaryDirectory()
            running[start(run, Path(folder.name))] = run, folder
        child, status, used = os.wait4(-1, 0)
        run, folder = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        good = code == run.expected
        wrong += not good
        outcome = "ok" if good else MEANING.get(code, "BROKEN CALL") if run.mutant else "FAILS"
        print(f"{used.ru_utime + used.ru_stime:5.1f} s  {outcome:12}  {run.name}", flush=True)
        if not good:
            print((Path(folder.name) / "said.txt").read_text(errors="replace")[-3000:])
        folder.cleanup()
    print(f"{len(chosen)} mistakes planted in {(time.monotonic() - began) / 60:.1f} minutes; {wrong} problems")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
