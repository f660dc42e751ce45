"""Build the course site: notebooks, documents, results board and API as static pages that need no network.

    python tools/build_site.py                       # site/index.html; `make site` does this
    python tools/build_site.py --out elsewhere

Pages are assembled in a temporary folder with the repository's links made to fit (notebooks as MyST Markdown, see
`notebook_pages.py`), Sphinx turns them into HTML with every warning an error, and `check_site.py` reads the result.
Nothing is executed: notebooks are shown with their saved outputs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from check_site import check
from notebook_pages import Notebook, Unfit, fenced, outputs, relink, source, tags

ROOT = Path(__file__).resolve().parents[1]
#: pages besides docs/*.md and the notebooks
DOCUMENTS = {"README.md": "index.md", "docs/index.md": "index.md", "CONTRIBUTING.md": "contributing.md",
             "CHANGELOG.md": "changelog.md", "data/README.md": "data.md", "docs/board.html": "board.html",
             "docs/clusters.html": "clusters.html"}
#: files that pages fetch, taken from installed packages: one copy, no network
PLOTLY, MATHS = ("plotly", "package_data/plotly.min.js"), ("ziamath", "fonts/STIXTwoMath-Regular.ttf")
_TABLE = re.compile(r"<!-- notebooks:.*?-->", re.S)


# ---- links: from where a file is in the repository to where its page is on the site ----

class Links:
    """`pages`: file in the repository -> its page. Other linked files are collected in `copied`."""

    def __init__(self, pages: dict[str, str]) -> None:
        self.pages, self.copied = pages, dict[str, str]()

    def mover(self, origin: str, page: str) -> Callable[[str, bool], str]:
        """`move(target, in_html)` for links that `origin` holds and `page` shows; see `notebook_pages.relink`."""

        def move(target: str, in_html: bool) -> str:
            if re.match(r"(?i)[a-z][a-z0-9+.-]*:|//", target):
                return target
            path, sign, anchor = target.partition("#")
            anchor = sign + slug(unquote(anchor))
            if not path:
                return anchor
            wanted = os.path.normpath(PurePosixPath(origin).parent / unquote(path)).replace(os.sep, "/")
            goal = self.pages.get(wanted)
            if goal is None:
                if not (ROOT / wanted).is_file():
                    raise Unfit(f"{origin} links to {target}, which is not there. Correct the link, or make the file.")
                goal, anchor = self.copied.setdefault(wanted, f"files/{wanted}"), ""
            elif in_html:
                goal = goal.removesuffix(".md") + ".html" if goal.endswith(".md") else goal
            return os.path.relpath(goal, PurePosixPath(page).parent).replace(os.sep, "/") + anchor
        return move


def slug(heading: str) -> str:
    """GitHub's anchor of a heading. JupyterLab's differ in case and punctuation only, so both lead here."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# ---- pages ----

def notebook_page(notebook: Notebook, links: Links) -> str:
    """The notebook without the lecturer's notes; a comment in front of each cell lets messages name it."""
    origin = notebook.path.as_posix()
    move = links.mover(origin, links.pages[origin])
    parts = []
    for place, cell in enumerate(notebook.cells):
        if "notes" in tags(cell):
            continue
        parts.append(f"% cell {place}")
        if cell["cell_type"] == "markdown":
            parts.append(relink(source(cell), move))
        elif cell["cell_type"] == "code":
            if source(cell).strip():
                parts.append(fenced(source(cell).rstrip(), "{code-block} python"))
            parts += outputs(notebook, place, move)
        if place == 0:
            parts.append(f'<p class="tp-run">The controls on this page are still images. To move them: '
                         f"<code>make lab</code>, then <code>{notebook.path.name}</code>.</p>")
    if any("{raw} html\n<figure" in part for part in parts):
        parts.append('<script src="../_static/plotly.min.js"></script><script src="../_static/figures.js"></script>')
    return "\n\n".join(parts) + "\n"


def one_title(text: str) -> str:
    """A document with several titles as a page with one: from the second on, headings go one level down."""
    titles, in_code, lines = 0, False, []
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        if not in_code and re.match("#+ ", line):
            titles += line.startswith("# ")
            line = "#" * (titles > 1) + line
        lines.append(line)
    return "\n".join(lines) + "\n"


def contents(notebooks: list[Notebook]) -> str:
    """The table of the front page."""
    lines = ["| | notebook | minutes |", "|---|---|---|"]
    for notebook in notebooks:
        head = notebook.head
        number, _, name = head.title.partition(" ")
        if not number.rstrip(".:").isdigit():
            number, name = "", head.title
        link = f"**[{name}](notebooks/{notebook.path.stem}.md)**"
        lines.append(f"| {number.rstrip('.:')} | {link} <br> {head.question} | {head.minutes} |".replace(r"\|", "|"))
    total = sum(n.head.minutes for n in notebooks)
    return "\n".join(lines) + f"\n\n{len(notebooks)} notebooks, about {total / 60:.0f} hours in all.\n"


def assemble(pages: Path, notebooks: list[Notebook]) -> None:
    """Write everything Sphinx reads into `pages`."""
    links = Links({f"docs/{f.name}": f.name for f in (ROOT / "docs").glob("*.md")} | DOCUMENTS
                  | {n.path.as_posix(): f"notebooks/{n.path.stem}.md" for n in notebooks})
    (pages / "notebooks").mkdir(parents=True)
    for notebook in notebooks:
        (pages / links.pages[notebook.path.as_posix()]).write_text(notebook_page(notebook, links), encoding="utf-8")
    for origin, page in links.pages.items():
        if not origin.endswith(".md") or origin == "README.md":
            continue
        text = relink((ROOT / origin).read_text(encoding="utf-8"), links.mover(origin, page))
        if origin == "docs/index.md":
            text, places = _TABLE.subn(lambda _: contents(notebooks), text)
            if places != 1:
                raise Unfit("docs/index.md needs one comment `<!-- notebooks: ... -->` where their table goes.")
        (pages / page).write_text(one_title(text), encoding="utf-8")
    copy_linked(links, pages)


def copy_linked(links: Links, pages: Path) -> None:
    for origin, copy in links.copied.items():
        (pages / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / origin, pages / copy)


def write_board(path: Path) -> None:
    """The package's own page, sharing the site's copy of plotly and leading back to the course."""
    from plotly.offline import get_plotlyjs

    from tokenpool.report import board
    board.write_page(path, board.read([ROOT / "data" / "runs"]))
    page = path.read_text(encoding="utf-8")
    page = page.replace(f"<script>{get_plotlyjs()}</script>", '<script src="_static/plotly.min.js"></script>')
    page = page.replace("<main>", '<main><p class=small><a href="index.html">The course</a></p>', 1)
    path.write_text(page, encoding="utf-8")


def write_clusters(path: Path) -> None:
    """Fig. 1c with its slider, leading back to the course."""
    from tokenpool.report import clusters
    page = clusters.write_page(path, clusters.shipped()).read_text(encoding="utf-8")
    path.write_text(page.replace("<main>", '<main><p class="soft"><a href="index.html">The course</a></p>', 1),
                    encoding="utf-8")


# ---- Sphinx ----

def sphinx(pages: Path, out: Path, builder: str) -> subprocess.Popen[str]:
    """Start Sphinx with docs/conf.py; warnings are errors."""
    return subprocess.Popen([sys.executable, "-m", "sphinx", "-b", builder, "-W", "--keep-going", "-q", "-c",
                             ROOT / "docs", "-d", pages.parent / "doctrees", pages, out],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def finish(process: subprocess.Popen[str], pages: Path) -> list[str]:
    """Wait for Sphinx; its messages, with notebooks and cells in place of temporary files and lines."""
    said = process.communicate()[0]
    if process.returncode == 0:
        return []

    def place(m: re.Match[str]) -> str:
        page = Path(m[1])
        if page.parent.name != "notebooks" or not page.exists():
            return f"{page.name}:{m[2]}"
        before = page.read_text(encoding="utf-8").splitlines()[:int(m[2])]
        cells = [line.split()[-1] for line in before if line.startswith("% cell ")]
        return f"notebooks/{page.stem}.ipynb, cell {cells[-1] if cells else 0}"
    said = re.sub(rf"({re.escape(str(pages))}\S*?\.md):(\d+)", place, said)
    return [line for line in said.splitlines() if line.strip()] or ["Sphinx stopped without a message."]


def package_file(package: str, path: str) -> Path:
    """A file of an installed package."""
    found = find_spec(package)                               # its place; it is not imported
    file = Path(found.origin).parent / path if found and found.origin else Path(path)
    if not file.is_file():
        raise Unfit(f"{package} is not installed, or has no {path}. Install the locked release: make install")
    return file


def put(built: Path, out: Path, mark: str) -> None:
    """Move the result to `out`; never over a folder with other files."""
    if out.exists() and any(out.iterdir()) and not (out / mark).exists():
        raise Unfit(f"{out} holds other files. Give --out a new or empty folder.")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(built, out)


def notebooks_in(folder: Path) -> list[Notebook]:
    found = [Notebook.read(file) for file in sorted(folder.glob("*.ipynb"))]
    if not found:
        raise Unfit(f"There are no notebooks in {folder}. Give --notebooks the folder that holds them.")
    return found


def build(out: Path, folder: Path) -> list[str]:
    """Build the site into `out`; returns a sentence per problem."""
    with tempfile.TemporaryDirectory() as temporary:
        pages, built = Path(temporary) / "pages", Path(temporary) / "site"
        assemble(pages, notebooks_in(folder))
        running = sphinx(pages, built, "html")
        board, clusters = Path(temporary) / "board.html", Path(temporary) / "clusters.html"
        write_board(board)
        write_clusters(clusters)
        if problems := finish(running, pages):
            return problems
        shutil.move(board, built / "board.html")
        shutil.move(clusters, built / "clusters.html")
        for file in (PLOTLY, MATHS):
            shutil.copy(package_file(*file), built / "_static")
        problems = check(built)
        put(built, out, "board.html")
        return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="FOLDER", help="default: site")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER",
                        help="default: notebooks")
    args = parser.parse_args()
    try:
        problems = build(args.out, args.notebooks)
    except Unfit as error:
        problems = [str(error)]
    if problems:
        sys.exit("The site has problems:\n" + "\n".join(f"- {p}" for p in problems))
    print(f"page   {args.out / 'index.html'}   (open it in a browser; nothing in it needs a network)")


if __name__ == "__main__":
    main()
