"""Check the built pages: dead links, requests to other hosts, images without alt text.

    python tools/check_site.py site

This reads the files only; tests/test_site.py also opens the pages in a browser.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

_OUTSIDE = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]*:)?//")
#: tag -> attributes that make a browser load something with the page
_FETCHES = {"script": ["src"], "link": ["href"], "img": ["src", "srcset"], "source": ["src", "srcset"],
            "iframe": ["src"], "video": ["src", "poster"], "audio": ["src"], "embed": ["src"], "object": ["data"],
            "image": ["href"]}


@dataclass
class Page(HTMLParser):
    """The parts of a page that are checked."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    wordless: list[str] = field(default_factory=list)
    titles: int = 0
    styles: str = ""
    _in_style: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.titles += tag == "h1"
        self._in_style = tag == "style"
        self.styles += given.get("style", "") + "\n"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img" and not given.get("alt", "").strip() and given.get("role") != "presentation":
            self.wordless.append(given.get("src", "")[:60])
        self.fetched += [(tag, given[name]) for name in _FETCHES.get(tag, []) if given.get(name)]

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles += data


def read(file: Path) -> Page:
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def check(folder: Path, one_title: bool = True) -> list[str]:
    """A sentence per problem of the pages in `folder`."""
    pages = {file.resolve(): read(file) for file in sorted(folder.rglob("*.html")) if "_static" not in file.parts}
    if not pages:
        return [f"{folder} holds no pages. Build them first: make site"]
    found = []
    for file, page in pages.items():
        name = file.relative_to(folder.resolve()).as_posix()
        if one_title and page.titles != 1:
            found.append(f"{name} has {page.titles} titles (h1). A page has one; in notebooks, one `# ` line in all.")
        found += [f"{name} shows an image without words ({src}). Write ![what it shows](file)."
                  for src in page.wordless]
        for tag, target in page.fetched:
            if _OUTSIDE.match(target):
                found.append(f"{name} fetches {target} from outside (<{tag}>). Pages work offline: put the file into "
                             "docs/_static, or take the tag out.")
            elif problem := dead(file, target, pages, anchors=False):
                found.append(f"{name} fetches {target}, {problem}")
        found += [f"{name} links to {target}, {problem}" for target in page.links
                  if (problem := dead(file, target, pages))]
        found += [f"{name} fetches {url} from outside (style). Put the file into docs/_static."
                  for url in outside(page.styles)]
    for sheet in sorted(folder.rglob("*.css")):
        found += [f"{sheet.relative_to(folder)} fetches {url} from outside. Put the file into docs/_static."
                  for url in outside(sheet.read_text(encoding="utf-8", errors="replace"))]
    return list(dict.fromkeys(found))


def dead(file: Path, target: str, pages: dict[Path, Page], anchors: bool = True) -> str:
    """Why a link is dead; empty if it is not, or if it is a link to another host."""
    if re.match(r"(?i)[a-z][a-z0-9+.-]*:", target) or target.startswith("//"):
        return ""
    path, _, anchor = target.partition("#")
    goal = (file.parent / unquote(path.split("?")[0])).resolve() if path else file
    if not goal.is_file():
        return "which is not there. Correct the link in the notebook or in docs/."
    if anchors and anchor and goal in pages and unquote(anchor) not in pages[goal].ids:
        return "which has no such heading. Correct the part after the #."
    return ""


def outside(css: str) -> list[str]:
    return [m[1] for m in re.finditer(r"""(?i)(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", css)]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
    sys.exit("\n".join(problems) or None)
