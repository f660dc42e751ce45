"""`tokenpool ...` in a process that a test can kill, without importing torch anew: forked from one that has it."""

import contextlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["torch", "timm", "pandas", "plotly.graph_objects", "accelerate", "tokenpool.cli"])


class Command:
    """A running command with the methods of `subprocess.Popen`; errors and output come together."""

    def __init__(self, *arguments, **environment):
        self._said = tempfile.NamedTemporaryFile("r", errors="replace")      # noqa: SIM115  gone with the command
        self._process = _forked.Process(target=_run, args=(arguments, environment, self._said.name))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, which):
        os.kill(self.pid, which)

    def wait(self, timeout):
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"The command took more than {timeout} s. It said:\n{self._said.read()}")
        return self.returncode

    def communicate(self, timeout=280):
        self.wait(timeout)
        return self._said.read(), ""


def _run(arguments, environment, said):
    with open(said, "w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os.environ.update(environment)
        os.chdir(ROOT)
        from tokenpool.cli import main
        sys.exit(main(list(arguments)))
