"""The server of `tokenpool explore` and `make app`: Voila, narrowed to one page that only this machine can open.

The page is one call of `gallery.Gallery`, in a Python process of the visitor's own. That process is begun, and its page
drawn before anybody asks: importing torch takes longer than a visitor waits. Beside the page the server knows the files
of the front end and the line to that process, over which widgets speak and nothing can be executed. No folder, no
notebook and no file of the machine has an address here, and nothing that a visitor sends is written down.
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

VISITORS = 8                # pages at a time: each is a Python process with a model in it, about a gigabyte
IDLE = 15 * 60              # seconds after which the process of a page goes that was left without a goodbye
MESSAGE = 16 * 2**20        # bytes a page may send at once: an image of 5 MB, written out in letters, and some room
#: what of Voila's addresses stays; folders, files, themes of other packages and the list of notebooks go
KEPT = ("/api/kernels/", "/voila/static/", "/voila/templates/", "/voila/labextensions/", "/voila/api/themes/",
        "/voila/api/shutdown/", "/login", "/logout")


def serve(which: str = "all", port: int = 0, address: str = "127.0.0.1", browser: bool = True,
          tell: Callable[[str], Any] = print, visitors: int = VISITORS, idle: int = IDLE) -> None:
    """Serve the explorers until Ctrl-C or SIGTERM.

    Args:
        which: `all`, or a notebook's number. port: 0 finds a free one. tell: gets the lines for the person.
        visitors: pages at a time. idle: seconds that a page's process outlives a browser that is gone.

    Raises:
        ValueError: no such explorer; the port or the address cannot be had.
    """
    numbers = chosen(which)
    listening = _listen(address, port)
    with tempfile.TemporaryDirectory(prefix="tokenpool-") as folder:
        page = Path(folder) / "explorers.ipynb"
        page.write_text(json.dumps(_notebook(numbers)))
        _quiet_python(Path(folder) / "ipython")
        server = Server(config=_config(address, page, idle))
        server.listening, server.browser_wanted, server.tell, server.visitors = listening, browser, tell, visitors
        for name in ("tornado", "nbconvert"):   # a line for every file of the page is not for a person's terminal
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
    """A home for IPython in which nobody's start-up files are run, no history is kept and only disasters are told."""
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
                  # from elsewhere only with the token that is part of the printed address
                  **({} if local else {"auto_token": True}),
                  "tornado_settings": {"websocket_max_message_size": MESSAGE,
                                       # a foreign page must not reach this machine by a name of its own for it
                                       "allow_remote_access": not local,
                                       "default_handler_class": Nothing}},
        "VoilaConfiguration": {"file_allowlist": [], "show_tracebacks": False, "strip_sources": True,
                               "allow_template_override": "NO", "allow_theme_override": "NO",
                               "extension_allowlist": ["@voila-dashboards/widgets-manager8", "anywidget",
                                                       "@jupyter-widgets/jupyterlab-manager"],
                               "preheat_kernel": True, "default_pool_size": 1},
        "VoilaExecutor": {"cell_error_instruction": "Type tokenpool explore again; if it stays, please report it."},
        "MappingKernelManager": {"cull_idle_timeout": idle, "cull_interval": min(idle, 60)},
        "ZMQChannelsWebsocketConnection": {"limit_rate": False},        # a figure may be large: it goes nowhere far
    })


class Pages:
    """The processes that have a visitor, and the one that waits for the next."""

    def __init__(self, kernels: Any, notebook: str, most: int) -> None:
        self._kernels, self._notebook, self._most = kernels, notebook, most
        self._taken: set[str] = set()
        self._turn = asyncio.Lock()             # two at once would both find room for one, or one process for both

    async def wait(self) -> None:
        """Until a page waits for its visitor."""
        for started in tuple(self._kernels._pools[self._notebook]):
            await (await started)["task"]

    async def take(self) -> tuple[asyncio.Task[Any], list[str]]:
        """What is drawn of the page that waited, as Voila's task and its parts so far. The next one is begun."""
        async with self._turn:
            self._taken &= set(self._kernels.list_kernel_ids())
            if len(self._taken) >= self._most:
                raise tornado.web.HTTPError(503, f"{self._most} pages are open, and each takes a Python process. Close "
                                                 "one and load this page again.", reason="No room for one more page")
            try:
                task, parts, kernel = await self._kernels.get_rendered_notebook(self._notebook)
            except Exception:
                self._kernels.fill_if_needed(notebook_name=self._notebook)
                raise
            # it may have waited for longer than an abandoned page may, and its visitor is not connected yet
            self._kernels.get_kernel(kernel).last_activity = utcnow()
            self._taken.add(kernel)
            return task, parts


class Page(TornadoVoilaHandler):
    """The address of the page."""

    async def get_generator(self, path: str | None = None) -> AsyncIterator[str]:
        drawing, parts = await self.settings["pages"].take()
        self.set_header("Content-Type", "text/html")
        self.set_header("Cache-Control", "no-store")            # a page belongs to one process: never show it twice
        yield "".join(parts)                                    # its head, if that is all there is yet
        drawn, rest = await drawing
        yield "".join(drawn[len(parts):])
        async for part, _ in rest:
            yield part


class Nothing(tornado.web.RequestHandler):
    """Every address that is not the page's."""

    def prepare(self) -> None:
        self.set_status(404)
        self.finish("There is nothing at this address. The explorers are at /.")


class Server(Voila):
    """Voila with a socket that is open already, our template and fewer addresses."""

    listening: socket.socket
    browser_wanted: bool
    tell: Callable[[str], Any]
    visitors: int

    def _config_file_paths_default(self) -> list[str]:
        return []                               # settings of another Voila on this machine are not for this page

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths.insert(0, str(FILES))

    def init_settings(self) -> dict[str, Any]:
        settings = super().init_settings()
        # the Python that serves is the Python that computes, whatever kernels are registered on this machine
        self.kernel_spec_manager.kernel_dirs = []
        self.pages = Pages(self.kernel_manager, self.kernel_manager.notebook_path, self.visitors)
        return settings | {"pages": self.pages}

    def init_handlers(self) -> list[Any]:
        known = super().init_handlers()
        # the last one serves the page at any address at all; it gets the one that is its own
        page = ("/", Page, known[-1][2])
        return [h for h in known if h[0].startswith(KEPT)] + [page]

    def listen(self) -> None:
        server = tornado.httpserver.HTTPServer(self.app, max_body_size=2**20, max_buffer_size=MESSAGE + 2**20)
        server.add_socket(self.listening)
        self.ioloop = tornado.ioloop.IOLoop.current()
        self.ioloop.add_callback(self._invite)
        self.tell("Starting Python and the model: some seconds ...")
        try:
            self.ioloop.start()
        except KeyboardInterrupt:
            pass
        finally:
            server.stop()
            self.stop()

    async def _invite(self) -> None:
        """Tell the address, once the first page waits there."""
        with contextlib.suppress(Exception):    # whoever opens the page is told
            await self.pages.wait()
        host, port = self.listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        token = self.identity_provider.token
        url += f"?token={token}" if token else ""
        self.tell(f"The explorers are at {url}   (Ctrl-C ends them)")
        if token:
            self.tell("This lets other machines in: whoever has the address with its token can open up to "
                      f"{self.visitors} pages, each a Python process on this machine. They can move controls, and run "
                      "nothing else.")
        if self.browser_wanted:                 # a text browser would not give the terminal back
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _listen(address: str, port: int) -> socket.socket:
    """The socket, taken before anything slow begins."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: a port is a number from 1 to 65535. Without --port a free one is found.")
    try:
        _local(address)
    except ValueError:
        raise ValueError(f"--address {address}: an address is written like 127.0.0.1, this machine only and the "
                         "default, or 0.0.0.0, whoever can reach this machine.") from None
    address = "127.0.0.1" if address == "localhost" else address
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if os.name != "nt":                         # there it would share a port that is in use
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(128)
        listening.setblocking(False)
        return listening
    except OSError as error:
        listening.close()
        why = {errno.EADDRINUSE: f"Port {port} is in use. Give another with --port, or leave --port out and a free one "
                                 "is found.",
               errno.EACCES: f"Port {port} is for the system only. Use 1024 to 65535, or leave --port out and a free "
                             "one is found."}
        raise ValueError(why.get(error.errno or 0, f"--address {address}: this machine has no such address. Leave "
                                 "--address out, or give one of its own.")) from None
