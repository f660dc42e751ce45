"""The server of `tokenpool explore` and `make app`: Voila, restricted to one page that only this machine can open.

The page is one call of `gallery.Gallery`, in a Python process of its own for every visitor. The process for the next
visitor starts, and renders its page, in advance, because importing torch takes seconds. Besides the page, the server
has only the files of the front end and the connection of the widgets, which cannot execute code. It serves no folder,
notebook or other file of the machine, and stores nothing that a visitor sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.ioloop
import tornado.web
from jupyter_client.session import utcnow
from traitlets.config import Config
from voila.app import Voila
from voila.tornado.handler import TornadoVoilaHandler

from tokenpool.lab.app.gallery import FILES, chosen

VISITORS = 8                # pages at a time: each is a Python process with a model, about a gigabyte
IDLE = 15 * 60              # seconds until the process of an abandoned page ends
MESSAGE = 16 * 2**20        # bytes per message: an image of 5 MB in base64, and some room
#: Voila's addresses that we keep; not folders, files, themes of other packages and the list of notebooks
KEPT = ("/api/kernels/", "/voila/static/", "/voila/templates/", "/voila/labextensions/", "/voila/api/themes/",
        "/voila/api/shutdown/", "/login", "/logout")


def serve(which: str = "all", port: int = 0, address: str = "127.0.0.1", browser: bool = True,
          tell: Callable[[str], Any] = print, visitors: int = VISITORS, idle: int = IDLE) -> None:
    """Serve the explorers until Ctrl-C or SIGTERM.

    Args:
        which: `all`, or the number of a notebook. port: 0 finds a free one. tell: prints messages.
        visitors: pages at a time. idle: seconds until the process of an abandoned page ends.

    Raises:
        ValueError: there is no such explorer, or the port or the address is not available.
    """
    numbers = chosen(which)
    listening = _listen(address, port)
    with tempfile.TemporaryDirectory(prefix="tokenpool-") as folder:
        page = Path(folder) / "explorers.ipynb"
        page.write_text(json.dumps(_notebook(numbers)))
        _quiet_python(Path(folder) / "ipython")
        server = Server(config=_config(address, page, idle))
        server.listening, server.browser_wanted, server.tell, server.visitors = listening, browser, tell, visitors
        for name in ("tornado", "nbconvert"):   # they would print a line for every file of the page
            logging.getLogger(name).setLevel(logging.CRITICAL)
        server.initialize([])
        server.start()


def _notebook(numbers: tuple[str, ...]) -> dict[str, Any]:
    source = f"from tokenpool.lab.app.gallery import Gallery\nGallery({numbers!r}).box"
    cell = {"cell_type": "code", "id": "explorers", "metadata": {}, "execution_count": None, "outputs": [],
            "source": source}
    kernel = {"name": "python3", "language": "python", "display_name": "Python"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _quiet_python(home: Path) -> None:
    """A home for IPython without start-up files, history and warnings."""
    settings = home / "profile_default" / "ipython_kernel_config.py"
    settings.parent.mkdir(parents=True)
    settings.write_text("c.IPKernelApp.log_level = 50\nc.HistoryManager.enabled = False\n")
    os.environ["IPYTHONDIR"] = str(home)


def _local(address: str) -> bool:
    return address == "localhost" or ipaddress.ip_address(address).is_loopback


def _config(address: str, page: Path, idle: int) -> Config:
    local = _local(address)
    return Config({
        "Voila": {"notebook_path": str(page), "ip": address, "open_browser": False, "log_level": "CRITICAL",
                  "connection_dir_root": str(page.parent),
                  # other machines need the token in the printed address
                  **({} if local else {"auto_token": True}),
                  "tornado_settings": {"websocket_max_message_size": MESSAGE,
                                       # no other web page may reach this server by another host name
                                       "allow_remote_access": not local,
                                       "default_handler_class": Nothing}},
        "VoilaConfiguration": {"file_allowlist": [], "show_tracebacks": False, "strip_sources": True,
                               "allow_template_override": "NO", "allow_theme_override": "NO",
                               "extension_allowlist": ["@voila-dashboards/widgets-manager8", "anywidget",
                                                       "@jupyter-widgets/jupyterlab-manager"],
                               "preheat_kernel": True, "default_pool_size": 1},
        "VoilaExecutor": {"cell_error_instruction": "Type tokenpool explore again. If it still fails, report it."},
        "MappingKernelManager": {"cull_idle_timeout": idle, "cull_interval": min(idle, 60)},
        "ZMQChannelsWebsocketConnection": {"limit_rate": False},        # figures may be large, and stay on this machine
    })


class Pages:
    """The processes that have a visitor, and the one that is ready for the next."""

    def __init__(self, kernels: Any, notebook: str, most: int) -> None:
        self._kernels, self._notebook, self._most = kernels, notebook, most
        self._taken: set[str] = set()
        self._turn = asyncio.Lock()             # else two visitors could get the last place, or the same process

    async def wait(self) -> None:
        """Return when a page is ready for its visitor."""
        for started in tuple(self._kernels._pools[self._notebook]):
            await (await started)["task"]

    async def take(self) -> tuple[asyncio.Task[Any], list[str]]:
        """The page that is ready: Voila's rendering task and its parts so far. Voila starts the next one."""
        async with self._turn:
            self._taken &= set(self._kernels.list_kernel_ids())
            if len(self._taken) >= self._most:
                raise tornado.web.HTTPError(503, f"{self._most} pages are open, and each needs a Python process. Close "
                                                 "one, then reload this page.", reason="Too many open pages")
            try:
                task, parts, kernel = await self._kernels.get_rendered_notebook(self._notebook)
            except Exception:
                self._kernels.fill_if_needed(notebook_name=self._notebook)
                raise
            # it may have waited longer than an abandoned page may, and its visitor is not connected yet
            self._kernels.get_kernel(kernel).last_activity = utcnow()
            self._taken.add(kernel)
            return task, parts


class Page(TornadoVoilaHandler):
    """The address of the page."""

    async def get_generator(self, path: str | None = None) -> AsyncIterator[str]:
        drawing, parts = await self.settings["pages"].take()
        self.set_header("Content-Type", "text/html")
        self.set_header("Cache-Control", "no-store")            # a page belongs to one process: never show it twice
        yield "".join(parts)                                    # perhaps only its head so far
        drawn, rest = await drawing
        yield "".join(drawn[len(parts):])
        async for part, _ in rest:
            yield part


class Nothing(tornado.web.RequestHandler):
    """All other addresses."""

    def prepare(self) -> None:
        self.set_status(404)
        self.finish("There is nothing at this address. The explorers are at /.")


class Server(Voila):
    """Voila with a socket that is already open, our template and fewer addresses."""

    listening: socket.socket
    browser_wanted: bool
    tell: Callable[[str], Any]
    visitors: int

    def _config_file_paths_default(self) -> list[str]:
        return []                               # ignore the settings of other Voila servers

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths.insert(0, str(FILES))

    def init_settings(self) -> dict[str, Any]:
        settings = super().init_settings()
        # compute with the Python that serves, not with other registered kernels
        self.kernel_spec_manager.kernel_dirs = []
        self.pages = Pages(self.kernel_manager, self.kernel_manager.notebook_path, self.visitors)
        return settings | {"pages": self.pages}

    def init_handlers(self) -> list[Any]:
        known = super().init_handlers()
        # Voila's last handler serves the page at every address; ours serves it at one
        return [*(h for h in known if h[0].startswith(KEPT)), ("/", Page, known[-1][2])]

    def listen(self) -> None:
        server = tornado.httpserver.HTTPServer(self.app, max_body_size=2**20, max_buffer_size=MESSAGE + 2**20)
        server.add_socket(self.listening)
        self.ioloop = tornado.ioloop.IOLoop.current()
        self.ioloop.add_callback(self._invite)
        self.tell("Starting Python and the model. This takes a few seconds ...")
        try:
            self.ioloop.start()
        except KeyboardInterrupt:
            pass
        finally:
            server.stop()
            self.stop()

    async def _invite(self) -> None:
        """Print the address, once the first page is ready."""
        with contextlib.suppress(Exception):    # the page itself will show the error
            await self.pages.wait()
        host, port = self.listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        token = self.identity_provider.token
        url += f"?token={token}" if token else ""
        self.tell(f"The explorers are at {url}   (press Ctrl-C to stop)")
        if token:
            self.tell("Other machines can connect: anyone with this address and its token can open up to "
                      f"{self.visitors} pages, each a Python process on this machine. They can move controls, but not "
                      "run code.")
        if self.browser_wanted:                 # a text browser would block the terminal
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _listen(address: str, port: int) -> socket.socket:
    """The socket, opened before anything slow starts."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: a port is a number from 1 to 65535. Leave --port out to use a free one.")
    try:
        _local(address)
    except ValueError:
        raise ValueError(f"--address {address}: an address is written like 127.0.0.1, for this machine only (the "
                         "default), or 0.0.0.0, for every machine that can reach this one.") from None
    address = "127.0.0.1" if address == "localhost" else address
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if os.name != "nt":                         # on Windows this would allow a port that is in use
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(128)
        listening.setblocking(False)
        return listening
    except OSError as error:
        listening.close()
        why = {errno.EADDRINUSE: f"Port {port} is in use. Give another with --port, or leave --port out to use a free "
                                 "one.",
               errno.EACCES: f"Port {port} is reserved for the system. Use 1024 to 65535, or leave --port out to use a "
                             "free one."}
        raise ValueError(why.get(error.errno or 0, f"--address {address}: this machine has no such address. Leave "
                                 "--address out, or use one of this machine.")) from None
