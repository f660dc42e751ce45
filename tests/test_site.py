"""The course site and the slides: built once from the notebooks as they are, then read and opened as by a visitor."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "docs")]
import build_site  # noqa: E402
import check_site  # noqa: E402
import make_slides  # noqa: E402
from docutils.utils.math import MathError  # noqa: E402
from mathml import mathml  # noqa: E402
from notebook_pages import PLOTLY, Notebook, Unfit, relink, source, tags  # noqa: E402

NOTEBOOKS = build_site.notebooks_in(ROOT / "notebooks")
pytestmark = pytest.mark.timeout(300)


def tool(name, out, *more):
    done = subprocess.run([sys.executable, ROOT / "tools" / name, "--out", out, *more], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return tool("build_site.py", tmp_path_factory.mktemp("built") / "site")


@pytest.fixture(scope="module")
def deck(tmp_path_factory):
    return tool("make_slides.py", tmp_path_factory.mktemp("built") / "slides", "--no-look")


class Visit:
    """A tab that notes what goes wrong in it. Requests to the outside are noted and not let through."""

    def __init__(self, chromium, width, height=900):
        self.tab, self.problems = chromium.new_page(viewport={"width": width, "height": height}), []
        self.tab.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda e: self.problems.append(str(e)))
        self.tab.route(lambda url: not url.startswith(("file:", "data:", "blob:")), self.refuse)

    def comes_true(self, expression):
        try:
            return bool(self.tab.wait_for_function(expression, timeout=5000))
        except Exception as error:
            if "Timeout" in type(error).__name__:
                return False
            raise

    def refuse(self, route):
        self.problems.append(f"asks for {route.request.url}")
        route.abort()


def figures(notebook, *, tagged=False):
    return sum(PLOTLY in output.get("data", {}) for place, cell in enumerate(notebook.cells)
               for output in cell.get("outputs", []) if not tagged or (place and "slide" in tags(cell)))


def words(text):
    """A heading as it reads: no marks, typographic quotes as typed."""
    return re.sub(r"[`*]", "", text).replace("’", "'").strip()


# ---- the site ----

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.path.stem)
def test_every_notebook_has_its_page(site, notebook):
    page = (site / "notebooks" / f"{notebook.path.stem}.html").read_text()
    title = re.search(r"<h1>(.*?)<a", page, re.S)[1]
    assert words(re.sub("<[^>]+>", "", title)) == words(notebook.head.title)
    text = "\n".join(source(c) for c in notebook.cells if c["cell_type"] == "markdown" and "notes" not in tags(c))
    assert page.count("<math") >= len(re.findall(r"\$\$.+?\$\$", text, re.S))
    assert ("<math" in page) == bool(re.search(r"\$[^$]+\$", re.sub(r"`[^`]*`", "", text)))
    assert page.count('<figure class="tp-figure"') == figures(notebook)
    assert "model_id" not in page                                            # no view of a widget that is not there


def test_the_front_page_lists_the_course(site):
    front = (site / "index.html").read_text()
    for notebook in NOTEBOOKS:
        row = re.search(rf"<tr[^>]*>(?:(?!</tr>).)*notebooks/{notebook.path.stem}\.html.*?</tr>", front, re.S)[0]
        assert f"<p>{notebook.head.minutes}</p>" in row
    for page in ("board", "clusters", "reproduction", "choices", "instructor", "api"):
        assert f'href="{page}.html"' in front


def test_the_api_page_holds_the_public_names(site):
    import tokenpool
    ids = check_site.read(site / "api.html").ids
    assert {f"tokenpool.{name}" for name in tokenpool.__all__} <= ids
    assert "tokenpool.PooledViT.trace" in ids


def test_one_copy_of_plotly(site):
    assert [f.name for f in site.rglob("plotly*.js")] == ["plotly.min.js"]
    assert (site / "board.html").stat().st_size < 2_000_000


def test_what_was_checked_is_right(site, deck):
    assert check_site.check(site) == []
    assert check_site.check(deck, one_title=False) == []


FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def test_pages_in_a_browser(site, chromium):
    """Every figure is drawn, nothing is fetched from outside, nothing is wider than a wide or a narrow window."""
    visit = Visit(chromium, 1280)
    wanted = {f"notebooks/{n.path.stem}.html": figures(n) for n in NOTEBOOKS}
    for file in sorted(site.rglob("*.html")):
        name = file.relative_to(site).as_posix()
        visit.tab.set_viewport_size({"width": 1280, "height": 900})
        visit.tab.goto(file.as_uri())
        if name in wanted:
            if wanted[name]:
                visit.tab.locator("figure.tp-figure .js-plotly-plot .main-svg").first.wait_for()
            assert visit.tab.locator("figure.tp-figure .js-plotly-plot").count() == wanted[name], name
        assert visit.tab.evaluate(FITS), f"{name} is wider than a window of 1280"
        visit.tab.set_viewport_size({"width": 800, "height": 900})
        assert visit.comes_true(FITS), f"{name} is wider than a window of 800"      # figures follow a moment later
        assert not visit.problems, f"{name}: {visit.problems}"
    visit.tab.close()


# ---- the slides ----

def test_slides_in_a_browser(deck, chromium):
    visit = Visit(chromium, 1280, 720)
    assert make_slides.overfull(visit.tab, deck / "index.html") == []        # went through all of them
    drawn = visit.tab.locator("figure.tp-drawn .js-plotly-plot").count()
    assert drawn == sum(figures(n, tagged=True) for n in NOTEBOOKS)
    visit.tab.goto((deck / "index.html").as_uri())
    visit.tab.wait_for_selector("body[data-fitted]")
    first = visit.tab.evaluate("Reveal.getSlidePastCount()")
    visit.tab.keyboard.press("ArrowRight")
    assert visit.tab.evaluate("Reveal.getSlidePastCount()") == first + 1
    assert not visit.problems
    visit.tab.close()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.path.stem)
def test_every_notebook_opens_with_its_title(deck, notebook):
    titles = re.findall(r"<h1>(.*?)</h1>", (deck / "index.html").read_text(), re.S)
    assert words(notebook.head.title) in [words(re.sub("<[^>]+>", "", title)) for title in titles]


# ---- a small notebook with everything in it ----

def markdown(text, *tagged):
    return {"cell_type": "markdown", "metadata": {"tags": list(tagged)}, "source": text}


def code(text, *shown, tagged=()):
    made = [{"output_type": "display_data", "data": data, "metadata": {}} for data in shown]
    return {"cell_type": "code", "metadata": {"tags": list(tagged)}, "source": text, "outputs": made}


FIRST = markdown("# 01 Small\n\n**Question.** How small?\n\n5 minutes")
CHART = {"data": [{"x": [1, 2], "y": [1, 3]}], "layout": {"title": {"text": "Rises"}, "height": 380}}


def notebook(*cells):
    return Notebook(Path("notebooks/01_small.ipynb"), [FIRST, *cells])


def page(*cells):
    links = build_site.Links({"notebooks/01_small.ipynb": "notebooks/01_small.md", "docs/choices.md": "choices.md",
                              "notebooks/02_next.ipynb": "notebooks/02_next.md"})
    return build_site.notebook_page(notebook(*cells), links)


def test_the_head_of_a_notebook():
    head = notebook().head
    assert (head.title, head.question, head.minutes) == ("01 Small", "How small?", 5)
    for line in ("# 01 Small", "**Question.** How small?", "5 minutes"):
        less = Notebook(Path("x.ipynb"), [markdown(FIRST["source"].replace(line, ""))])
        with pytest.raises(Unfit, match="Begin a notebook with its"):
            _ = less.head


def test_links_fit_the_site_and_code_is_left_alone():
    text = page(markdown("[a](02_next.ipynb#2-Say-it,-exactly) [b](../docs/choices.md#training) `[c](02_next.ipynb)` "
                         "[d](#The-end) [e](https://example.org/x) <a href=\"02_next.ipynb\">f</a>"))
    assert "[a](02_next.md#2-say-it-exactly)" in text
    assert "[b](../choices.md#training)" in text
    assert "`[c](02_next.ipynb)`" in text
    assert "[d](#the-end)" in text
    assert "[e](https://example.org/x)" in text
    assert '<a href="02_next.html">f</a>' in text
    assert relink("[a](b)", lambda target, _: target.upper()) == "[a](B)"
    with pytest.raises(Unfit, match="which is not there"):
        page(markdown("[a](../docs/nothing.md)"))


def test_outputs_are_shown_in_their_richest_form():
    text = page(
        code("figure", {PLOTLY: CHART, "text/html": "<p>in words</p>", "text/plain": "Explorer."}),
        code("widget", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Box()",
                        "text/html": "<ul><li>an option</li></ul>"}),
        code("bare", {"text/plain": "<object at 0x7f>"}), code("plain", {"text/plain": "tensor(3)"}),
        code("table", {"text/html": "<table>", "text/plain": "   a"}), markdown("for the lecturer", "notes"))
    assert text.index("data-height=\"380\"") < text.index("in words")
    assert 'aria-label="Rises"' in text
    assert "an option" in text
    assert "<table>" in text
    assert "tensor(3)" in text
    for hidden in ("model_id", "Box()", "0x7f", "   a<", "for the lecturer", "Explorer."):
        assert hidden not in text, hidden


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(Unfit, match="cell 1: an image without words"):
        page(code("plot", {"image/png": "iVBO"}))
    broken = code("1/0")
    broken["outputs"] = [{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "", "traceback": []}]
    with pytest.raises(Unfit, match="cell 1: an error was saved"):
        page(broken)
    with pytest.raises(Unfit, match="tagged `slide`, and shows nothing"):
        make_slides.column(notebook(code("x = 1", tagged=["slide"])), build_site.Links({}))


def test_sphinx_names_the_cell(tmp_path):
    """Warnings are errors, told with the notebook and the cell that hold them."""
    pages = tmp_path / "pages"
    (pages / "notebooks").mkdir(parents=True)
    (pages / "index.md").write_text("# Course\n\n```{toctree}\n:glob:\n\nnotebooks/*\n```\n")
    (pages / "notebooks" / "01_small.md").write_text(page(markdown("fine"), markdown("$$\n\\nosuch x\n$$")))
    said = build_site.finish(build_site.sphinx(pages, tmp_path / "out", "html"), pages)
    assert len(said) == 1
    assert "notebooks/01_small.ipynb, cell 2" in said[0]
    assert "\\nosuch" in said[0]


def test_a_full_slide_is_named(tmp_path, chromium):
    """Planted: a cell with far too much text. Beside it one that just needs smaller letters."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    said = {"text/html": '<div class="tp-card">So it rises.</div>'}
    cells = [FIRST, markdown("## A\n\n" + "Many words. " * 90, "slide"), markdown("To *say*: slowly.", "notes"),
             markdown("## B\n\n" + "Many words. " * 600, "slide"),
             code("f", {PLOTLY: CHART}, said, tagged=["slide"])]
    (folder / "01_small.ipynb").write_text(json.dumps({"cells": cells}))
    problems, count = make_slides.build(tmp_path / "slides", folder)
    assert problems == []
    assert count == 7                      # two to open, the title, two texts, the figure, and what is said about it
    visit = Visit(chromium, 1280, 720)
    found = make_slides.overfull(visit.tab, tmp_path / "slides" / "index.html")
    assert len(found) == 1
    assert found[0].startswith("notebooks/01_small.ipynb, cell 3 holds too much")
    assert '<aside class=notes>' in (tmp_path / "slides" / "index.html").read_text()
    assert visit.tab.locator("figure.tp-drawn").count() == 1
    assert not visit.problems
    visit.tab.close()


# ---- the reader of finished pages: every planted mistake is seen ----

GOOD = '<body><h1 id="top">T</h1><a href="#top">up</a><a href="b.html#x">b</a><img src="p.png" alt="a dot"></body>'


@pytest.mark.parametrize(("wrong", "said"), [
    ("", None),
    ('<a href="c.html">c</a>', "links to c.html, which is not there"),
    ('<a href="b.html#y">c</a>', "links to b.html#y, which has no such heading"),
    ('<a href="#y">c</a>', "which has no such heading"),
    ('<script src="https://example.org/x.js"></script>', "from outside"),
    ('<link rel="stylesheet" href="//example.org/x.css">', "from outside"),
    ('<style>@import url("https://example.org/f.css");</style>', "from outside"),
    ('<p style="background: url(https://example.org/f.png)">x</p>', "from outside"),
    ('<img src="https://example.org/p.png" alt="a dot">', "from outside"),
    ('<script src="gone.js"></script>', "fetches gone.js, which is not there"),
    ('<img src="p.png">', "an image without words"),
    ('<img src="p.png" alt=" ">', "an image without words"),
    ("<h1>again</h1>", "has 2 titles"),
    ('<a href="https://example.org">a link that is clicked</a>', None),
])
def test_the_checker_sees_what_is_wrong(tmp_path, wrong, said):
    (tmp_path / "a.html").write_text(GOOD.replace("</body>", f"{wrong}</body>"))
    (tmp_path / "b.html").write_text('<h1 id="x">B</h1>')
    (tmp_path / "p.png").write_bytes(b"")
    found = check_site.check(tmp_path)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert said in found[0]


def test_the_checker_reads_style_sheets_and_refuses_an_empty_folder(tmp_path):
    assert "holds no pages" in check_site.check(tmp_path)[0]
    (tmp_path / "a.html").write_text("<h1>T</h1>")
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/f.woff') }")
    assert "a.css fetches https://example.org/f.woff" in check_site.check(tmp_path)[0]


def test_nobody_elses_folder_is_replaced(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.md").write_text("years of work")
    (tmp_path / "new").mkdir()
    with pytest.raises(Unfit, match="holds other files"):
        build_site.put(tmp_path / "new", tmp_path / "site", "board.html")
    assert (tmp_path / "site" / "thesis.md").exists()


# ---- formulas ----

MATHML = "{http://www.w3.org/1998/Math/MathML}"


@pytest.mark.parametrize(("formula", "shape"), [
    (r"\hat{\mathbf x}_i", ["msub", "mrow", "mover", "mi"]),                # the index beside the letter, not below it
    (r"\sum_{i=1}^N x_i", ["munderover", "mo"]),
    (r"\operatorname*{arg\,min}_{j \in S} d_j", ["munder", "mo"]),
    (r"\frac{a}{\sqrt d}", ["mfrac", "mi"]),
    (r"\begin{align} a &= b \\ &= c \end{align}", ["mtable", "mtr", "mtd", "mi"]),
    (r"\begin{cases} 1 & \text{if } x \\ 0 & \text{otherwise} \end{cases}", ["mrow", "mo"]),
])
def test_formulas_have_the_right_shape(formula, shape):
    node = ElementTree.fromstring(mathml(formula, block=True))
    for tag in shape:
        node = node[0]
        assert node.tag == MATHML + tag


def test_formulas_keep_their_letters():
    def letters(formula):
        return "".join(ElementTree.fromstring(mathml(formula).replace("&ApplyFunction;", "")).itertext())
    assert letters(r"x \in \mathbb R^{N \times C}") == "x∈ℝN×C"
    assert letters(r"\{1, \dots, N\}") == "{1,…,N}"
    assert letters(r"\lVert x - \hat y \rVert_2^2") == "‖x−yˆ‖22"
    assert letters(r"\boldsymbol{\alpha}") == "\N{MATHEMATICAL BOLD ITALIC SMALL ALPHA}"
    assert letters(r"\text{top\_k}, \operatorname{softmax}(z)") == "top_k,softmax(z)"
    for wrong in (r"\nosuch", r"\frac{a", r"a \\ b"):
        with pytest.raises(MathError):
            mathml(wrong)


def test_fences_in_a_browser(site, chromium):
    """The brace of two cases is as high as both; norms without \\left are as high as their letters."""
    visit = Visit(chromium, 800)
    visit.tab.goto((site / "index.html").as_uri())
    formulas = r"\begin{cases} 1 & a \\ 0 & b \end{cases}", r"\lVert x \rVert^2 \sum_{i=1}^{N} 1", r"\lVert x \rVert"
    visit.tab.evaluate("html => document.querySelector('article').innerHTML = html",
                       "".join(f"<p>{mathml(f, block=True)}</p>" for f in formulas))
    visit.tab.evaluate("document.fonts.load('20px Maths')")
    brace, norm, alone = visit.tab.evaluate(
        "[...document.querySelectorAll('article math')].map(m => m.querySelector('mo').getBoundingClientRect().height)")
    assert brace > 1.7 * alone
    assert norm == pytest.approx(alone, rel=0.05)
    assert not visit.problems
    visit.tab.close()
