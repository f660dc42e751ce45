"""Find the words that CONTRIBUTING.md's word list replaces: one word for one thing, in code and in prose.

    python tools/lint_words.py          # prints FILE:LINE: found "came", use got; exit 1 if there are any

The list is the table under "Word list" in CONTRIBUTING.md. Everything in `backticks` in its column "not" is searched,
as whole words, in any case; a hyphen also matches an underscore, a space also a hyphen or a line break. The lint reads
the package (and so the help of every command), the documents, the tools and the notebooks. It skips the tests, which
quote old names on purpose.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEARCHED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "environment.yml",
            "docs/*.md", "data/**/*.md", ".github/**/*.*", "tools/*.py", "notebooks/*.ipynb",
            "tokenpool/**/*.py", "tokenpool/**/*.j2", "tokenpool/**/*.js", "tokenpool/**/*.css", "tokenpool/**/*.html")

#: text that may stay: (files, pattern, reason)
ALLOWED = (
    ("CONTRIBUTING.md", r"## Word list\n.*?(?=\n## |\Z)", "the list itself"),
    ("CHANGELOG.md", r"`[^`\n]*`", "names as they were before"),
    ("tools/lint_words.py", r".*", "quotes the words"),
    ("tokenpool/**/*.py", r"""(["'])untouched\1""", "a value of the column `stage`, in every shipped CSV"),
    ("tokenpool/**/*.j2", r"""(["'])untouched\1""", "the same value, on the board"),
    ("tokenpool/**/*.py", r"""(["'])pictures(_per_second)?\1""", "columns of CSV files of version 0.1.0"),
    ("tokenpool/cli/*.py", r"--(train-)?pictures", "an option's former spelling, still accepted"),
)
#: words the course still uses (notebooks and their lessons); its prose is rewritten separately, then this goes
COURSE = ("notebooks/*.ipynb", "tokenpool/lab/lessons/*.py")
COURSE_WORDS = frozenset({
    "rival", "rivals", "stand-in", "stand-ins", "stand in for", "stands for", "speak for", "speaks for",
    "untouched", "dear", "dearer", "at hand", "came", "anew", "go on from", "goes on from", "told apart", "by chance",
    "chance draws", "is told", "are told", "whoever", "made-up"})


def word_list(text: str) -> dict[str, str]:
    """Word to avoid -> word to use, from the table under "Word list"."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text.partition("## Word list")[2].partition("\n## ")[0], re.M)
    return {word: use for use, avoid in rows for word in re.findall(r"`([^`]+)`", avoid)}


def find(text: str, words: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """(line, what was found, what to use) for every listed word in a text."""
    for word, use in words.items():
        inner = word.replace("-", "[-_]").replace(" ", r"[-_\s#]+")
        for hit in re.finditer(rf"(?<![A-Za-z]){inner}(?![A-Za-z])", text, re.I):
            yield text.count("\n", 0, hit.start()) + 1, " ".join(hit[0].split()), use


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of a file: its whole text, or the source of each cell of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        yield "", text
        return
    for place, cell in enumerate(json.loads(text)["cells"], start=1):
        yield f" cell {place}", "".join(cell["source"])


def problems(root: Path = ROOT) -> list[str]:
    """A sentence for every listed word that no exception covers."""
    words = word_list((root / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    course = {path for glob in COURSE for path in root.glob(glob)}
    allowed = [(set(root.glob(glob)), pattern) for glob, pattern, _ in ALLOWED]
    found = []
    for path in sorted({path for glob in SEARCHED for path in root.glob(glob)}):
        listed = {w: use for w, use in words.items() if path not in course or w not in COURSE_WORDS}
        for place, text in texts(path):
            for files, pattern in allowed:
                if path in files:               # blank it, but keep the line numbers
                    text = re.sub(pattern, lambda m: re.sub(r"[^\n]", ".", m[0]), text, flags=re.S)
            found += [f'{path.relative_to(root)}{place}:{line}: found "{word}", use {use}'
                      for line, word, use in sorted(find(text, listed))]
    return found


if __name__ == "__main__":
    wrong = problems()
    print("\n".join(wrong) or "No word of the list was found.")
    sys.exit(bool(wrong))
