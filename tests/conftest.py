"""What holds for every test: one torch thread, and which tests one worker of pytest-xdist takes together."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")      # of the processes too that tests start

import hypothesis
import pytest
import torch
from browsing import open_chromium

torch.set_num_threads(1)
# a planted mistake needs to be found, not to be made small (tools/run_mutants.py)
hypothesis.settings.register_profile("find", phases=[p for p in hypothesis.Phase if p is not hypothesis.Phase.shrink])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that share a fixture of their module, and the cells of a notebook, go to one worker of pytest-xdist."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        definitions = getattr(item, "_fixtureinfo", None)
        shared = sorted(name for name, (*_, last) in (definitions.name2fixturedefs.items() if definitions else ())
                        if last.scope in ("module", "class"))
        if item.path.suffix == ".ipynb" or shared:
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *shared])))


@pytest.fixture(scope="module")
def chromium():
    """A real browser. The tests that ask for it are marked `browser`."""
    with open_chromium() as browser:
        yield browser
