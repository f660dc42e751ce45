"""Make the lecturer's slides from the notebooks: one deck, offline, for a browser.

    python tools/make_slides.py                      # slides/index.html; `make slides` does this

What becomes a slide is said by tags of cells. `slide` on text: a slide of its own, or, if it is short, the head of the
tagged code cell right behind it. `slide` on code: what the cell showed, not its code. `notes` on text: the speaker's
notes of the slide before (key S). Every notebook opens with its title, question and minutes, from its first cell. Where
Chromium is installed every slide is opened and looked at, and one that holds too much is named.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
import tempfile
from pathlib import Path

from build_site import (
    MATHS,
    PLOTLY,
    ROOT,
    Links,
    copy_linked,
    finish,
    notebooks_in,
    package_file,
    put,
    sphinx,
)
from check_site import check
from notebook_pages import Notebook, Unfit, fenced, outputs, relink, source, tags

_DETAILS = re.compile(r"<details.*?</details>", re.S)                     # no tables behind a click on slides
KEYS = {"→": "next", "←": "back", "O": "overview", "S": "speaker's notes", "F": "full screen", "?": "all keys"}
#: the first slide of a notebook; slides.css asks reveal.js whether a slide is dark
_TITLE = "```{revealjs-section}\n:data-background-color: \"#0B3C5D\"\n```"
#: parts of reveal.js, some of which would load fonts and scripts
UNUSED = ("css", "dist/theme", *(f"plugin/{name}" for name in ("highlight", "markdown", "math", "search", "zoom")))
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)\s]*\)")


def raw(markup: str) -> str:
    return fenced(markup, "{raw} html")


def slide(parts: list[str], where: str, cell: str) -> str:
    """One slide: closes the one before. `where` is written above it, `cell` is for messages."""
    opening = (f'</section>\n<section data-cell="{html.escape(cell)}"><p class="tp-where">{html.escape(where)}</p>'
               '<div class="tp-body">')
    return "\n\n".join([raw(opening), *parts, raw("</div>")])


def on_slide(text: str, move) -> str:
    """Markdown as a slide shows it: headings that open no section, links to other pages as plain words."""
    text = relink(_LINK.sub(r"\1", text), move)
    return re.sub(r"^(#{1,4}) +(.+)$", lambda m: f"```{{rubric}} {m[2]}\n:heading-level: {max(2, len(m[1]))}\n```",
                  text, flags=re.M)


def column(notebook: Notebook, links: Links) -> tuple[str, int]:
    """All slides of a notebook, and how many there are."""
    head, move, section = notebook.head, links.mover(notebook.path.as_posix(), "index.md"), ""
    parts = [f"# {head.title}\n\n{_TITLE}", raw(
        f'<p class="tp-question">{inline(head.question)}</p><p class="tp-small">{head.minutes} minutes</p>')]
    count, short = 1, ""                                       # `short`: words that wait for the figure they introduce
    for place, cell in enumerate(notebook.cells):
        name = f"{notebook.path}, cell {place}"
        text = source(cell)
        if heading := re.findall(r"^##+ +(.+)$", text, re.M) if cell["cell_type"] == "markdown" and place else []:
            section = plain(heading[-1])
        if "notes" in tags(cell) and cell["cell_type"] == "markdown":
            parts.append(f'{raw("<aside class=notes>")}\n\n{on_slide(text, move)}\n\n{raw("</aside>")}')
        elif "slide" in tags(cell) and place:
            if cell["cell_type"] == "markdown":
                shown, where = [on_slide(text, move)], head.title
            else:
                shown = [_DETAILS.sub("", piece) for piece in outputs(notebook, place, move)]
                where = f"{head.title} · {section}" if section and not short else head.title
            if not "".join(shown).strip():
                raise notebook.fail(place, "tagged `slide`, and shows nothing. Take the tag away, or run the notebook.")
            if short:
                shown, short = [short, *shown], ""
            elif cell["cell_type"] == "markdown" and len(text.split()) <= room_above(notebook, place + 1):
                short = shown[0]
                continue
            for group in groups(shown):
                parts.append(slide(group, plain(where), name))
                count += 1
    return "\n\n".join(parts), count


def groups(pieces: list[str]) -> list[list[str]]:
    """The pieces of one cell by slide: what a card says after a figure gets a slide of its own."""
    found: list[list[str]] = [[]]
    for piece in pieces:
        if 'class="tp-card' in piece and any("<figure" in other for other in found[-1]):
            found.append([])
        found[-1].append(piece)
    return found


def room_above(notebook: Notebook, place: int) -> int:
    """How many words have room above what the cell at this place puts on a slide; none if it puts nothing there."""
    cell = notebook.cells[place] if place < len(notebook.cells) else {"cell_type": ""}
    if cell["cell_type"] != "code" or "slide" not in tags(cell):
        return 0
    return 45 if any(output["output_type"] != "stream" for output in cell["outputs"]) else 130


def inline(text: str) -> str:
    """The few Markdown marks that a question may contain."""
    text = html.escape(plain(text, marks=False), quote=False)
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", re.sub(r"`([^`]+)`", r"<code>\1</code>", text.replace("**", "*")))


def plain(text: str, marks: bool = True) -> str:
    text = _LINK.sub(r"\1", text)
    return re.sub(r"[*`$]", "", text) if marks else text


def opening(notebooks: list[Notebook]) -> str:
    rows = "".join(f"<tr><td>{inline(n.head.title)}</td><td>{n.head.minutes} min</td></tr>" for n in notebooks)
    return "\n\n".join([
        f"# Fewer tokens, same answer\n\n{_TITLE}",
        raw('<p class="tp-question">A course on <em>Token Pooling in Vision Transformers</em></p><p class="tp-small">'
            f"{' &nbsp; '.join(f'<kbd>{key}</kbd> {does}' for key, does in KEYS.items())}</p>"),
        slide([raw(f'<div class="tp-map"><table>{rows}</table></div>')], "The course", "the list of notebooks")])


def build(out: Path, folder: Path) -> tuple[list[str], int]:
    """Build the deck into `out`; returns a sentence per problem, and the number of slides."""
    notebooks = notebooks_in(folder)
    with tempfile.TemporaryDirectory() as temporary:
        pages, built = Path(temporary) / "pages", Path(temporary) / "slides"
        pages.mkdir()
        links = Links({})
        columns = [column(n, links) for n in notebooks]
        deck = "\n\n".join([opening(notebooks), *(text for text, _ in columns)])
        (pages / "index.md").write_text(deck, encoding="utf-8")
        copy_linked(links, pages)
        if problems := finish(sphinx(pages, built, "revealjs"), pages):
            return problems, 0
        for file in (PLOTLY, MATHS):
            shutil.copy(package_file(*file), built / "_static")
        for unused in UNUSED:
            shutil.rmtree(built / "_static" / "revealjs" / unused)
        problems = check(built, one_title=False)
        put(built, out, "_static/slides.js")
    return problems, 2 + sum(count for _, count in columns)


# ---- does everything fit? ----

#: what of the slide on show lies outside of it, or is cut off inside it
OUTSIDE = """() => {
  const slide = Reveal.getCurrentSlide(), box = document.querySelector('.reveal .slides').getBoundingClientRect();
  const found = [];
  for (const e of slide.querySelectorAll('*')) {
    if (e.closest('aside, script, math math, svg svg') || (e.closest('svg') && e.tagName !== 'svg')) continue;
    const r = e.getBoundingClientRect();
    if (!r.width || !r.height) continue;
    if (r.right > box.right + 1 || r.bottom > box.bottom - 20 || r.left < box.left - 1 || r.top < box.top - 1)
      found.push(e.tagName.toLowerCase() + (e.className.baseVal === undefined && e.className ? '.' + e.className : ''));
    else if (e.tagName === 'PRE' && e.scrollWidth > e.clientWidth + 1) found.push('a line of text');
  }
  return [slide.dataset.cell || 'a title', found.slice(0, 3)];
}"""


def overfull(page, deck: Path) -> list[str]:
    """Open every slide in a playwright page of 1280 x 720; name those that hold too much."""
    page.goto(deck.resolve().as_uri())
    page.wait_for_selector("body[data-fitted]", timeout=60_000)
    found = []
    for _ in range(page.evaluate("Reveal.getTotalSlides()")):
        cell, outside = page.evaluate(OUTSIDE)
        if outside:
            found.append(f"{cell} holds too much for a slide ({', '.join(outside)}). Tag less, or split the cell.")
        page.evaluate("Reveal.next()")
    return found


def look(deck: Path) -> list[str] | None:
    """`overfull` in the installed Chromium; None if there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu",
                                                                    "--disable-background-networking"])
        found = overfull(browser.new_page(viewport={"width": 1280, "height": 720}), deck)
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "slides", metavar="FOLDER", help="default: slides")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER",
                        help="default: notebooks")
    parser.add_argument("--no-look", action="store_true", help="do not open the slides in Chromium")
    args = parser.parse_args()
    count, looked = 0, None
    try:
        problems, count = build(args.out, args.notebooks)
        if not problems and not args.no_look:
            looked = look(args.out / "index.html")
            problems = looked or []
    except Unfit as error:
        problems = [str(error)]
    if problems:
        sys.exit("The slides have problems:\n" + "\n".join(f"- {p}" for p in problems))
    said = "every one fits" if looked is not None else "not looked at in a browser: no Chromium here"
    print(f"page   {args.out / 'index.html'}   ({count} slides, {said}; open it in a browser)")


if __name__ == "__main__":
    main()
