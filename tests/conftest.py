"""What holds for every test: one torch thread, one Chromium, and which tests pytest-xdist keeps together."""

import functools
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")      # of the processes too that tests start

import hypothesis
import pytest
import torch
from browsing import open_chromium

torch.set_num_threads(1)
# a planted mistake needs to be found, not to be made small (tools/run_mutants.py)
hypothesis.settings.register_profile("find", phases=[p for p in hypothesis.Phase if p is not hypothesis.Phase.shrink])


def pytest_collection_modifyitems(items):
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A notebook, or a file whose tests share a fixture, goes to one worker; all other tests go anywhere."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if is_shared(config.rootpath / file) else nodeid

    return Scheduling(config, log)


@functools.cache
def is_shared(path):
    return path.suffix == ".ipynb" or 'scope="module"' in path.read_text()


@pytest.fixture(scope="module")
def chromium():
    """A real browser. The tests that ask for it are marked `browser`."""
    with open_chromium() as browser:
        yield browser
