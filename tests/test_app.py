"""The explorers as a page without code: `tokenpool explore` in a real browser, what it serves, and what it does not.

What the page says after a key press is compared with what the same explorer says in this process.
"""

import asyncio
import datetime
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import tornado.web
from browsing import open_chromium, press, save_image, wait_for_words, watched

from tokenpool.cli import main
from tokenpool.lab.app import gallery
from tokenpool.lab.app.gallery import EXPLORERS, Gallery
from tokenpool.lab.app.server import Pages
from tokenpool.lab.kit.session import LESSONS, Lab
from tokenpool.lab.widgets.controls import Number

pytestmark = pytest.mark.timeout(300)


def start(*options):
    """A server, and the address that it printed."""
    return run("-m", "tokenpool.cli", "explore", "--no-browser", *options)


def run(*command):
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              # a shell's background job begins with Ctrl-C switched off, and so do its children
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert "a few seconds" in server.stdout.readline(), server.stderr.read()
    said = server.stdout.readline()             # comes when the first page is ready
    assert said, server.stderr.read()
    return server, re.search(r"http://\S+", said)[0]


def end(server):
    """Ctrl-C: the exit code, and all it had to say."""
    server.send_signal(signal.SIGINT)
    said = "".join(server.communicate(timeout=120))
    return server.returncode, said


@pytest.fixture(scope="module")
def url():
    server, address = start("all")
    yield address
    server.terminate()
    server.communicate(timeout=120)


def answer(address, **headers):
    """Status of a GET, redirections not followed."""
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    asked = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.build_opener(Stay).open(asked, timeout=20) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


# ---- the page ----

def named(page, spec):
    """The control of this name; those of explorers out of sight cannot be seen or reached."""
    return page.get_by_label(spec.label, exact=True).locator("visible=true").first


def fits(page, width):
    """Nothing sticks out to the right, once figures have followed the page's width."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("document.documentElement.scrollWidth === document.documentElement.clientWidth "
                           f"&& document.documentElement.clientWidth <= {width}", timeout=10_000)


@pytest.fixture
def chromium():                 # one per test: asyncio.run, which other tests here need, fails beside an open one
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(chromium):
    return watched(chromium, height=900)


def test_all_explorers_on_one_page_by_keyboard(url, page):
    page.goto(url, wait_until="commit")
    page.get_by_role("status").filter(has_text="Starting Python").wait_for(timeout=5_000)     # there at once
    row = page.get_by_role("navigation", name="Explorers").get_by_role("button")
    row.first.wait_for(timeout=60_000)
    assert row.all_inner_texts() == [f"{n} {name}" for n, (name, _) in EXPLORERS.items()]
    for place, (number, (name, question)) in enumerate(EXPLORERS.items()):
        if place:
            page.keyboard.press("Tab")
            row.nth(place - 1).focus()
            page.keyboard.press("Tab")              # from one button to the next, and nothing opens on the way
            page.keyboard.press("Enter")
        page.get_by_role("heading", level=2, name=name, exact=True).wait_for(timeout=20_000)
        assert page.get_by_text(question, exact=True).is_visible()
        assert row.nth(place).get_attribute("aria-current") == "true"
        explorer = Lab(number).explore()
        wait_for_words(page, explorer, "#rendered_cells")
        page.locator(".js-plotly-plot .main-svg").locator("visible=true").first.wait_for(timeout=20_000)
        for spec in explorer.controls.values():
            assert named(page, spec).is_visible(), spec.label
        moved = next((n for n, s in explorer.controls.items() if isinstance(s, Number)), next(iter(explorer.controls)))
        press(page, named(page, explorer.controls[moved]), explorer, moved)
        assert explorer.error is None, explorer.words
        wait_for_words(page, explorer, "#rendered_cells")
        for width in (800, 1280):
            fits(page, width)
            save_image(page, page.locator("body"), f"app_{number}_{width}")
    row.first.press("Enter")                        # back: kept as it was left
    page.get_by_role("heading", level=2, name=EXPLORERS["05"][0], exact=True).wait_for(timeout=5_000)
    assert page.locator(".jp-InputArea, .jp-InputPrompt, .cm-editor, .jp-RenderedText").count() == 0
    assert page.locator("#loading").count() == 0
    text = page.locator("body").inner_text()
    assert "Traceback" not in text
    assert "Gallery" not in text
    assert "VBox(" not in text
    assert page.errors == []
    assert page.outside == []


# ---- the server ----

@pytest.mark.parametrize("path", ["voila/files/explorers.ipynb", "voila/files/x.png", "tree", "voila/tree", "lab",
                                  "explorers.ipynb", "api/contents", "api/kernels", "api/terminals", "files/x",
                                  "../../etc/passwd", "voila/static/../../../../etc/passwd", "voila/render/x.ipynb"])
def test_nothing_but_the_page_is_served(path, url):
    assert answer(url + path) in (403, 404)


def test_another_name_for_this_machine_is_refused(url):
    assert answer(url, Host="elsewhere.example") == 403


def test_from_elsewhere_only_with_the_token_and_ctrl_c_ends_it():
    server, address = start("03", "--address", "0.0.0.0")
    try:
        plain, token = address.replace("0.0.0.0", "127.0.0.1").split("?token=")
        assert len(token) >= 32
        assert answer(plain) in (302, 403)
        assert answer(plain + "voila/files/x.png") == 404
        assert server.stdout.readline().startswith("Other machines can connect")
    finally:
        code, said = end(server)
    assert (code, "Traceback" in said) == (0, False), said


# ---- how many, and for how long ----

class Kernels:
    """Voila's pool of one, without processes."""

    def __init__(self):
        self.alive, self.filled = {}, 0

    def list_kernel_ids(self):
        return list(self.alive)

    def get_kernel(self, kernel):
        return self.alive[kernel]

    def fill_if_needed(self, **_):
        self.filled += 1

    async def get_rendered_notebook(self, notebook):
        await asyncio.sleep(0.01)
        if self.filled < 0:
            raise OSError("no process")
        kernel = f"kernel {len(self.alive)}"
        self.alive[kernel] = SimpleNamespace(last_activity=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        return "task", [kernel], kernel


def take(pages, count):
    async def all_at_once():
        return await asyncio.gather(*(pages.take() for _ in range(count)), return_exceptions=True)
    return asyncio.run(all_at_once())


def test_there_is_room_for_so_many_pages():
    kernels = Kernels()
    answers = take(Pages(kernels, "page", 3), 5)
    assert [type(a) for a in answers] == [tuple] * 3 + [tornado.web.HTTPError] * 2
    assert answers[-1].status_code == 503
    assert "3 pages are open" in answers[-1].log_message


def test_a_closed_page_makes_room():
    kernels = Kernels()
    pages = Pages(kernels, "page", 1)
    assert len(take(pages, 1)) == len(kernels.alive) == 1
    kernels.alive.clear()
    assert take(pages, 1)[0][1] == ["kernel 0"]


def test_a_page_that_waited_long_is_not_taken_for_an_abandoned_one():
    kernels = Kernels()
    take(Pages(kernels, "page", 1), 1)
    age = datetime.datetime.now(datetime.UTC) - kernels.alive["kernel 0"].last_activity
    assert age.total_seconds() < 60


def test_a_process_that_could_not_start_is_tried_again():
    kernels = Kernels()
    kernels.filled = -1
    assert isinstance(take(Pages(kernels, "page", 1), 1)[0], OSError)
    assert kernels.filled == 0


@pytest.mark.slow
def test_the_limit_and_the_end_of_abandoned_pages():
    """One page at a time and five seconds without a browser, on a real server: a second page is refused in words, the
    first one's process goes, and the one that waits stays and becomes the next page."""
    server, address = run("-c", "from tokenpool.lab.app.server import serve\n"
                          "serve('03', browser=False, visitors=1, idle=5, tell=lambda w: print(w, flush=True))")
    try:
        first = kernel_of(address)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=60)
        assert refused.value.code == 503
        assert "1 pages are open" in refused.value.read().decode()
        assert answer(f"{address}api/kernels/{first}") == 200
        deadline = time.monotonic() + 90
        while answer(f"{address}api/kernels/{first}") != 404:
            assert time.monotonic() < deadline, "an abandoned page keeps its process"
            time.sleep(0.5)
        time.sleep(12)                          # longer than an abandoned page has
        second = kernel_of(address)
        assert answer(f"{address}api/kernels/{second}") == 200
    finally:
        end(server)


def kernel_of(address):
    """Open the page as a browser would that goes at once; the name of its process."""
    page = urllib.request.urlopen(address, timeout=120).read().decode()
    assert "tp-page" in page
    return re.search(r'"kernelId": ?"([0-9a-f-]{36})"', page)[1]


# ---- mistakes ----

def test_a_port_in_use_is_told(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["explore", "--no-browser", "--port", str(port)]) == 2
    assert f"Port {port} is in use. Give another with --port" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "words"), [
    (["9"], "Unknown explorer '9'"),
    (["--port", "70000"], "a port is a number from 1 to 65535"),
    (["--address", "here"], "an address is written like 127.0.0.1"),
    (["--address", "192.0.2.1"], "this machine has no such address"),
])
def test_what_cannot_be_is_told(options, words, capsys):
    assert main(["explore", "--no-browser", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_voila_is_told(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tokenpool.lab.app.server", raising=False)
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert main(["explore"]) == 2
    assert "Type: pip install voila" in capsys.readouterr().err


# ---- the gallery, without a browser ----

def test_every_lesson_has_its_place():
    assert sorted(EXPLORERS) == sorted(LESSONS)
    assert next(iter(EXPLORERS)) == "05"


def test_explorers_are_made_when_asked_for_and_kept():
    shown = Gallery(("03", "04"))
    assert list(shown.explorers) == ["03"]
    first = shown.explorers["03"].set(k=5)
    shown.chooser.index = 1
    shown.chooser.index = 0
    assert shown.explorers["03"] is first
    assert shown._place.children == (first.box, shown.explorers["04"].box)
    assert "tp-away" in shown.explorers["04"].box._dom_classes
    assert "tp-away" not in first.box._dom_classes


def test_an_explorer_that_cannot_be_made_is_told_in_words(monkeypatch):
    class Broken:
        @staticmethod
        def explore():
            raise RuntimeError("planted")

    real = gallery.lesson
    monkeypatch.setattr(gallery, "lesson", lambda number: Broken if number == "04" else real(number))
    shown = Gallery(("04", "03"))
    name = EXPLORERS["04"][0]
    assert shown.words == f"{name} could not be opened: planted. The other explorers still work."
    assert 'role="status"' in shown._state.value
    assert "Traceback" not in shown._state.value
    shown.chooser.index = 1
    assert shown.words == ""
    assert shown._place.children == (shown.explorers["03"].box,)


def test_a_computation_that_fails_is_told_in_words(monkeypatch):
    shown = Gallery(("03",))

    def broken(**_):
        raise RuntimeError("planted")

    monkeypatch.setattr(shown.explorers["03"], "compute", broken)
    shown.explorers["03"].set(k=6)
    assert "planted" in shown.explorers["03"].words
    assert "Traceback" not in shown.explorers["03"].words
