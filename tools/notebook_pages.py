"""A stored notebook as MyST Markdown: text, code in blocks, saved outputs. Nothing is run.

`build_site.py` makes pages of it, `make_slides.py` slides. Both need what stands here: the head of a notebook, the HTML
of an output, and links that lead to the right place.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CODE = re.compile(r"(^```.*?^```[ \t]*$|^~~~.*?^~~~[ \t]*$|`+[^`\n]+`+)", re.S | re.M)


class Unfit(ValueError):
    """Something in a notebook cannot be shown; the message says what, and what to do about it."""


@dataclass(frozen=True)
class Head:
    """What the first cell of a notebook says."""

    title: str
    question: str
    minutes: int


@dataclass(frozen=True)
class Notebook:
    """A notebook file; `path` is relative to the repository, for messages and links."""

    path: Path
    cells: list[dict[str, Any]]

    @classmethod
    def read(cls, file: Path) -> Notebook:
        return cls(Path("notebooks") / file.name, json.loads(file.read_text(encoding="utf-8"))["cells"])

    @property
    def head(self) -> Head:
        """Title, question and minutes, from the first cell."""
        first = source(self.cells[0]) if self.cells else ""
        title = re.search(r"\A\s*# +(.+)", first)
        question = (re.search(r"\*\*(?:The )?[Qq]uestion[.:]?\*\*[.:]?\s*(.+?)(?=\n\s*\n|\Z)", first, re.S)
                    or re.search(r"^(?!#)([^\n].*?\?)(?=[\s*_]*(?:\n\s*\n|\Z))", first, re.S | re.M))
        minutes = re.search(r"(\d+)\s*(?:\+\s*\w+\s*)?min", first)
        for found, form in ((title, "# 03 Title"), (question, "**Question.** Which tokens can go?"),
                            (minutes, "40 minutes")):
            if not found:
                raise Unfit(f"{self.path}: the first cell has no line such as `{form}`. Begin a notebook with its "
                            "title (# ...), its question (**Question.** ...) and its minutes (40 minutes ...).")
        return Head(title[1].strip(), " ".join(question[1].split()).strip("*_ "), int(minutes[1]))

    def fail(self, place: int, problem: str) -> Unfit:
        return Unfit(f"{self.path}, cell {place}: {problem}")


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def fenced(text: str, kind: str) -> str:
    """A block whose fence is longer than any inside it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{kind}\n{text}\n{fence}"


def relink(text: str, move: Callable[[str, bool], str]) -> str:
    """Markdown with the targets of its links replaced; code is left alone. `move(target, in_html)`."""
    parts = _CODE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(\]\()<?([^)\s>]+)>?", lambda m: m[1] + move(m[2], False), parts[i])
        parts[i] = re.sub(r"^(\[[^\]^]+\]:\s*)(\S+)", lambda m: m[1] + move(m[2], False), parts[i], flags=re.M)
        parts[i] = relink_html(parts[i], move)
    return "".join(parts)


def relink_html(text: str, move: Callable[[str, bool], str]) -> str:
    return re.sub(r"""(\b(?:href|src)=["'])([^"'#][^"']*)""", lambda m: m[1] + move(m[2], True), text)


def outputs(notebook: Notebook, place: int, move: Callable[[str, bool], str]) -> list[str]:
    """The saved outputs of a code cell as pieces of MyST."""
    shown = []
    for output in notebook.cells[place].get("outputs", []):
        kind = output["output_type"]
        if kind == "stream":
            shown.append(_text("".join(output["text"]), output["name"]))
        elif kind == "error":
            raise notebook.fail(place, f"an error was saved ({output['ename']}: {output['evalue']}). Run it again: "
                                       "python tools/tidy_notebooks.py")
        else:
            shown += _bundle(notebook, place, output["data"], move)
    return [piece for piece in shown if piece]


def _bundle(notebook: Notebook, place: int, data: dict[str, Any], move: Callable[[str, bool], str]) -> list[str]:
    """One output in its richest form; a figure keeps the words that were saved with it."""
    words = "".join(data.get("text/plain", ""))
    if PLOTLY in data:
        markup = "".join(data.get("text/html", ""))
        loads_plotly = "<script" in markup                       # plotly's own page of the same figure
        return [figure(data[PLOTLY], words)] + ([_html(markup, move)] if markup and not loads_plotly else [])
    if "text/html" in data:
        return [_html("".join(data["text/html"]), move)]
    if "text/markdown" in data:
        text = relink("".join(data["text/markdown"]), move)
        return [f"::::::{{container}} tp-out\n{text}\n::::::"]
    if "text/latex" in data:
        return ["$$\n" + "".join(data["text/latex"]).strip().strip("$") + "\n$$"]
    if any(kind.startswith("image/") for kind in data):
        raise notebook.fail(place, "an image without words was saved. Show it with lab.show(figure, see=...), or as "
                                   "HTML(<img alt=...>).")
    if WIDGET in data:
        return [_html("<p>A control; run the notebook in JupyterLab to use it.</p>", move)]
    if re.match(r"<[\w.]+( object)? at 0x|<[A-Z]\w+.*>$|(Figure|FigureWidget)\(\{", words):
        return []                                                # a bare repr is of no use to a reader
    return [_text(words, "result")]


def figure(spec: dict[str, Any], words: str) -> str:
    """A figure to be drawn by figures.js or slides.js; its label is its title, or the words beside it."""
    title = spec.get("layout", {}).get("title", "")
    title = title.get("text", "") if isinstance(title, dict) else title
    label = re.sub(r"<[^>]+>", " ", title or words.split("\n")[0]).strip() or "figure"
    height = spec.get("layout", {}).get("height") or 450
    numbers = json.dumps({k: spec[k] for k in ("data", "layout", "frames") if k in spec}).replace("</", "<\\/")
    return fenced(f'<figure class="tp-figure" data-height="{height}">'
                  f'<script type="application/json">{numbers}</script>'
                  f'<div class="tp-plot" role="img" aria-label="{html.escape(label)}" style="height:{height}px"></div>'
                  "</figure>", "{raw} html")


def _html(markup: str, move: Callable[[str, bool], str]) -> str:
    coloured = re.search(r"(?<![-\w])(?:color|background)[-\w]*\s*[:=]", markup)      # made for a white page
    classes = "tp-out tp-light" if coloured else "tp-out"
    return fenced(f'<div class="{classes}">{relink_html(markup, move)}</div>', "{raw} html")


def _text(text: str, name: str) -> str:
    text = _ANSI.sub("", text).rstrip()
    return fenced(f'<pre class="tp-text tp-{name}">{html.escape(text)}</pre>', "{raw} html") if text else ""
