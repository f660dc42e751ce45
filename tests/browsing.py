"""What the tests in a real browser share: Chromium, a page that remembers, a control moved by key there and here."""

import shutil
import time
from pathlib import Path

from tokenpool.lab.widgets.controls import Choice, Number

SHOTS = Path(__file__).resolve().parents[1] / "results" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(play):
    return play.chromium.launch(executable_path=CHROMIUM,
                                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])


def watched(chromium, height=1000):
    """A page that remembers what went wrong and who was called."""
    view = chromium.new_page(viewport={"width": 1280, "height": height})
    view.errors, view.outside = [], []
    view.on("console", lambda said: view.errors.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: view.errors.append(str(error)))
    view.on("request", lambda asked: view.outside.append(asked.url)
            if not asked.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")) else None)
    return view


def press(page, control, explorer, name):
    """Move a control by key on the page, and the same way in this process."""
    spec, before = explorer.controls[name], explorer.values()[name]
    control.focus()
    if isinstance(spec, Number):
        back = before + spec.step > spec.high
        page.keyboard.press("ArrowLeft" if back else "ArrowRight")
        explorer.set(**{name: before - spec.step if back else before + spec.step})
    elif isinstance(spec, Choice):
        options = list(spec.options.values()) if hasattr(spec.options, "values") else list(spec.options)
        place = options.index(before) + (1 if before != options[-1] else -1)
        page.keyboard.press("ArrowDown" if place > options.index(before) else "ArrowUp")
        explorer.set(**{name: options[place]})
    else:
        page.keyboard.press("Space")
        explorer.set(**{name: not before})


def wait_for_words(page, explorer, where):
    """Until a status line inside `where` says what the explorer says in this process."""
    said = " ".join(explorer.words.replace("`", "").replace("*", "").split())
    deadline = time.monotonic() + 60
    lines = page.locator(f"{where} [role=status]")
    while said not in (found := [" ".join(t.split()) for t in lines.all_inner_texts()]):
        assert time.monotonic() < deadline, (said, found)
        time.sleep(0.05)


def save_image(page, part, name):
    """A screenshot of a part of the page, in a window that is tall enough for it."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 1750})
    page.wait_for_timeout(600)                  # figures follow the window
    SHOTS.mkdir(parents=True, exist_ok=True)
    part.screenshot(path=SHOTS / f"{name}.png")
