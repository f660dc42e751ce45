"""Check the notebooks of the course; one sentence per problem.

    python tools/lint_notebooks.py [FILE ...]        # default: all of notebooks/; exit 1 if there are any

A notebook test is easily empty: nbval compares nothing in a cell that was saved without output, and prose may say
"83 %" while the cell above prints something else. So: checked cells must hold their output, every number in prose must
come from a cell (or be marked as the paper's), the parts of the template must be there in their order.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHECKED = "nbval-check-output"
MOST_CELLS, MOST_LINES, MOST_BYTES = 40, 15, 150_000

#: parts of the template, in their order: (what is missing, how it is recognised)
TEMPLATE = (
    ("a question in the first cell (**Question.** ...)", r"\*\*Question\.\*\*"),
    ("the learning goals (You will be able to ...)", r"You will be able to"),
    ("the set-up line, lab = start(...)", r"^lab = start\(\"\d\d\"\)"),
    ("a prediction, lab.predict(...)", r"^lab\.predict\("),
    ("an exercise, lab.check(...)", r"^lab\.check\("),
    ("the explorer, lab.explore()", r"^lab\.explore\("),
    ("what the paper says, what we did, what is unknown", r"^## What the paper says, what we did, what is unknown"),
    ("key points", r"^## Key points"),
    ("a check-out question", r"\*\*Check out\.\*\*"),
)
_NETWORK = re.compile(r"https?://|\burlopen\b|\brequests\.|pretrained=True|download=True|^\s*[!%]|\bsys\.path\b", re.M)
_PLACE = re.compile(r"(?:^|[\s\"'(])/(?:home|root|tmp|usr|var|Users)/|site-packages|\bat 0x[0-9a-f]+")
# (P), (S; Fig. 2), (Fig. 6, P), (P; the size I), (?): a mark of the paper's facts
_MARK = re.compile(r"\((?:[^()]*[\s,;:])?[PSCI?](?:[\s,;:][^()]*)?\)")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])(\s?%)?")
_SENTENCES = re.compile(r"(?<=[.!?:])(?<!Fig\.)(?<!fig\.)(?<!eq\.)(?<!al\.)(?<!vs\.)\s+|\n\n|\n[-*|]|\|")
_NAMED = re.compile(r"(?:notebooks?|figs?\.|figures?|eqs?\.|sections?|appendix|level|python|torch|timm)\s*\(?$", re.I)


def problems(path: Path) -> list[str]:
    """All problems of a notebook file."""
    notebook = json.loads(path.read_text())
    size = path.stat().st_size
    found = [f"{size / 1e3:.0f} KB; at most {MOST_BYTES / 1e3:.0f}"] if size > MOST_BYTES else []
    return [*found, *_structure(notebook), *_code(notebook), *_outputs(notebook), *_prose(notebook, path.parent)]


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _cells(notebook: dict[str, Any], kind: str) -> list[tuple[int, dict[str, Any]]]:
    return [(i, c) for i, c in enumerate(notebook["cells"], start=1) if c["cell_type"] == kind]


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def _structure(notebook: dict[str, Any]) -> Iterator[str]:
    cells = notebook["cells"]
    if len(cells) > MOST_CELLS:
        yield f"{len(cells)} cells; at most {MOST_CELLS}"
    if "widgets" in notebook["metadata"]:
        yield "the state of widgets is saved; run tools/tidy_notebooks.py"
    level = 0
    for place, cell in _cells(notebook, "markdown"):
        for marks, title in re.findall(r"^(#+) (.+)$", _text(cell), re.M):
            if len(marks) > level + 1:
                yield f"cell {place}: heading '{title}' skips a level"
            level = len(marks)
    titles = [t for _, c in _cells(notebook, "markdown") for t in re.findall(r"^# .+$", _text(c), re.M)]
    if len(titles) != 1 or not _text(cells[0]).startswith("# "):
        yield f"{len(titles)} titles (# ...); one, at the very top"
    whole, place = "\n".join(_text(c) for c in cells), 0
    for part, pattern in TEMPLATE:
        hit = re.search(pattern, whole[place:], re.M)
        if hit is None:
            yield f"{part} is missing, or not in its place"
        else:
            place += hit.start()
    for letter in re.findall(r"^lab\.predict\(\"(\w+)\"\)", whole, re.M):
        asked = re.search(rf"^lab\.predict\(\"{letter}\"\)", whole, re.M)
        told = re.search(rf"^lab\.reveal\(\"{letter}\"", whole, re.M)
        if told is None or told.start() < asked.start():
            yield f"prediction {letter} is not revealed after it was asked"
    if len(re.findall(r"^lab\.check\(", whole, re.M)) < 2:
        yield "fewer than two exercises"


def _code(notebook: dict[str, Any]) -> Iterator[str]:
    for place, cell in _cells(notebook, "code"):
        text = _text(cell)
        if len(text.splitlines()) > MOST_LINES:
            yield f"cell {place}: {len(text.splitlines())} lines; at most {MOST_LINES}"
        if _NETWORK.search(text):
            yield f"cell {place}: reaches for the network or the shell: {_NETWORK.search(text)[0].strip()}"


def _outputs(notebook: dict[str, Any]) -> Iterator[str]:
    code = _cells(notebook, "code")
    checked = [(place, c) for place, c in code if CHECKED in _tags(c)]
    if len(checked) < 2:
        yield f"{len(checked)} checked cells; at least two"
    for place, cell in checked:
        if not cell["outputs"]:
            yield f"cell {place}: a checked cell has no output, so nothing would be compared"
        elif any(o["output_type"] != "stream" for o in cell["outputs"]):
            yield f"cell {place}: a checked cell may only print; figures differ in invisible ways"
        elif re.search(r"\d\.\d{5,}", _said(cell)):
            yield f"cell {place}: a checked output with five decimals differs between processors"
    counts = [c["execution_count"] for _, c in code]
    if counts != list(range(1, len(code) + 1)):
        yield "cells were not run once each, in order, in a fresh kernel; run tools/tidy_notebooks.py"
    for place, cell in code:
        for output in cell["outputs"]:
            data = output.get("data", {})
            if output["output_type"] == "error":
                yield f"cell {place}: an error is saved"
            if output.get("name") == "stderr":
                yield f"cell {place}: noise on stderr is saved"
            if "application/vnd.jupyter.widget-view+json" in data:
                yield f"cell {place}: a dead widget is saved; run tools/tidy_notebooks.py"
            if output["output_type"] == "execute_result" and set(data) == {"text/plain"}:
                yield f"cell {place}: shows a raw repr; print words"
        if _PLACE.search(_said(cell)):
            yield f"cell {place}: contains a path of this machine: {_PLACE.search(_said(cell))[0].strip()}"


def _said(cell: dict[str, Any]) -> str:
    """The text of a code cell's outputs."""
    said = []
    for output in cell["outputs"]:
        said.append("".join(output.get("text", "")))
        data = output.get("data", {})
        said += ["".join(data[kind]) for kind in ("text/html", "text/markdown") if kind in data]
        if "text/html" not in data:
            said.append("".join(data.get("text/plain", "")))
    return "\n".join(said)


def _prose(notebook: dict[str, Any], folder: Path) -> Iterator[str]:
    code = _cells(notebook, "code")
    known = _numbers("\n".join([_text(c) + "\n" + _said(c) for _, c in code]))
    for place, cell in _cells(notebook, "markdown"):
        text = _text(cell)
        if re.search(r"!\[\s*\]\(|<img(?![^>]*alt=\"[^\"])", text):
            yield f"cell {place}: an image without words"
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if not re.match(r"https?://", target) and not (folder / target).exists():
                yield f"cell {place}: the link {target} leads nowhere"
        for number, sentence in _claimed(text):
            if number not in known and f"{float(number) / 100:g}" not in known:
                yield f"cell {place}: no cell produces the number {number} in: {sentence.strip()[:90]}"


def _numbers(text: str) -> set[str]:
    return {f"{float(n):.10g}" for n in re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text))}


def _claimed(markdown: str) -> Iterator[tuple[str, str]]:
    """Numbers that prose claims: from 10, decimals, percentages; not those of figures, notebooks, minutes, years."""
    text = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<[^>]+>", " ", markdown, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^(#+ .*|\s*\d+\.\s)", "", text, flags=re.M)
    for sentence in _SENTENCES.split(text):
        if _MARK.search(sentence):
            continue
        for hit in _NUMBER.finditer(sentence):
            number = hit[0].rstrip(" %").replace(",", "")
            before, after = sentence[:hit.start()], sentence[hit.end():]
            small = float(number) < 10 and "." not in number and not hit[1]
            if small or re.fullmatch(r"0\d|19\d\d|20\d\d", number) or _NAMED.search(before):
                continue
            if re.match(r"\s*(?:minutes|-minute)", after):
                continue
            yield f"{float(number):.10g}", sentence


def main() -> None:
    paths = [Path(p) for p in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    told = [f"{path.name}, {problem}" for path in paths for problem in problems(path)]
    sys.exit("\n".join(told) or None)


if __name__ == "__main__":
    main()
