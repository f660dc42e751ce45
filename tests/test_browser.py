"""The notebooks where they are used: JupyterLab in a real browser, every control found by its name and moved by key.

What the page says after a key press is compared with what the same explorer says in this process. Needs Chromium
(Debian's package, or another on the path); without it these tests are skipped, and fail where TOKENPOOL_REQUIRE_BROWSER
is set.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browsing import CHROMIUM, launch, press, save_image, wait_for_words, watched
from PIL import Image

from tokenpool.lab.kit.session import LESSONS, Lab

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORDS = ".widget-html"
pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(
    not CHROMIUM and os.environ.get("TOKENPOOL_REQUIRE_BROWSER") != "1", reason="no Chromium on the path")]
#: no pop-up about news, and all cells in the page, also those out of sight
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "notebook-extension/tracker": {"windowingMode": "none"}}


@contextlib.contextmanager
def serving(front_end, home):
    """A front end on copies of the notebooks, with an empty home: the address of a notebook."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for name, setting in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    server = subprocess.Popen(
        [sys.executable, "-m", front_end, "--no-browser", "--allow-root",
         f"--ServerApp.root_dir={home / 'notebooks'}", f"--ServerApp.port={port}",
         "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"],
        env=os.environ | {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"),
                          "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
                          "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2)
                break
            except OSError:
                assert server.poll() is None, f"{front_end} stopped"
                time.sleep(0.25)
        place = {"jupyterlab": "lab/tree", "notebook": "notebooks"}[front_end]
        yield f"http://127.0.0.1:{port}/{place}/{{name}}?token={token}&reset"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="module")
def lab_url(tmp_path_factory):
    with serving("jupyterlab", tmp_path_factory.mktemp("lab")) as url:
        yield url


@pytest.fixture
def notebook_url(tmp_path):
    pytest.importorskip("notebook", reason="Notebook is not installed here; JupyterLab is tested")
    with serving("notebook", tmp_path / "home") as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        chromium = launch(play)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    view = watched(browser)
    yield view
    view.close()


def run_all(page, url):
    """Open a notebook and run it to its end."""
    page.goto(url)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    if "/lab/" in url:
        page.get_by_text("| Idle").wait_for(timeout=60_000)
    else:                       # Notebook shows nothing while its kernel is idle
        page.wait_for_function("fetch('/api/sessions').then(r => r.json()).then(all => all.some("
                               "s => s.kernel.execution_state === 'idle' && s.kernel.connections))", timeout=60_000)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    # busy first, or an idle notebook that has not begun would pass for one that is done
    page.wait_for_function("[...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*'))",
                           timeout=60_000)
    page.wait_for_function("![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*'))",
                           timeout=300_000)


def move_everything(page, number):
    """Every control of a notebook's explorer, by key: the page says what the explorer says here."""
    explorer = Lab(number).explore()
    wait_for_words(page, explorer, WORDS)
    for name, spec in explorer.controls.items():
        control = page.get_by_label(spec.label, exact=True).first
        control.scroll_into_view_if_needed()
        press(page, control, explorer, name)
        assert explorer.error is None, explorer.words
        wait_for_words(page, explorer, WORDS)
    return page.locator(".jp-CodeCell", has=control)


def commit_by_keyboard(page):
    """The first prediction of notebook 03."""
    commit = page.get_by_role("button", name="Commit", exact=True).first
    commit.press("Enter")
    page.get_by_text("Nothing is chosen yet").wait_for(timeout=10_000)
    page.get_by_label("A, B and C", exact=True).press("Space")
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("one copy, D and E", exact=True).is_checked()
    commit.press("Enter")
    page.get_by_text("Committed: one copy, D and E. The answer comes after the evidence.").wait_for(timeout=10_000)
    assert page.get_by_label("A, B and C", exact=True).is_disabled()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_in_jupyterlab(path, lab_url, page):
    run_all(page, lab_url.format(name=path.name))
    broken = page.locator("[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText[data-mime-type*=error]")
    assert broken.count() == 0, broken.first.inner_text()
    cell = move_everything(page, path.stem[:2])
    save_image(page, cell, path.stem)
    assert page.errors == []
    assert page.outside == []


def test_a_notebook_in_notebook(notebook_url, page):
    """The other front end of this family hears keys before any control does."""
    run_all(page, notebook_url.format(name="03_reconstruction.ipynb"))
    commit_by_keyboard(page)
    cells = page.locator(".jp-Cell").count()
    page.get_by_label("Tokens kept, K, as a number", exact=True).press("b")         # elsewhere: a new cell below
    move_everything(page, "03")
    assert page.locator(".jp-Cell").count() == cells
    assert [e for e in page.errors if "'schema'" not in e] == []       # Notebook 7.6 has one of its own, at its start
    assert page.outside == []


def test_there_is_a_notebook_for_every_lesson():
    assert len(NOTEBOOKS) == len(LESSONS)


def test_a_prediction_is_committed_by_keyboard(lab_url, page):
    run_all(page, lab_url.format(name="03_reconstruction.ipynb"))
    commit_by_keyboard(page)
    assert page.errors == []


def test_undo_code_and_your_own_image(lab_url, page, tmp_path):
    """What the K-per-layer explorer has beside controls: buttons, and an image from this machine."""
    run_all(page, lab_url.format(name="05_layers.ipynb"))
    explorer = Lab("05").explore()
    wait_for_words(page, explorer, WORDS)
    page.get_by_label("K after block 2", exact=True).press("ArrowLeft")
    wait_for_words(page, explorer.set(k2=35), WORDS)
    page.get_by_role("button", name="Copy as code", exact=True).press("Enter")
    page.get_by_text(explorer.show_code().code.split("\n")[0]).wait_for(timeout=10_000)
    page.get_by_role("button", name="Undo", exact=True).press("Enter")
    wait_for_words(page, explorer.undo(), WORDS)
    photograph, text = tmp_path / "mine.png", tmp_path / "notes.png"
    Image.fromarray(np.full((90, 120, 3), (200, 90, 30), np.uint8)).save(photograph)
    text.write_text("no image")
    for file in (photograph, text):
        page.get_by_label("Upload an image", exact=True).set_input_files(file)
        explorer.receive(file.name, file.stat().st_size, file.read_bytes())
        wait_for_words(page, explorer, WORDS)
    assert page.errors == []
    assert page.outside == []
