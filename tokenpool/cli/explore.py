"""tokenpool explore"""

from __future__ import annotations

import argparse


def _options(one: argparse.ArgumentParser) -> None:
    one.add_argument("which", nargs="?", default="all", metavar="NOTEBOOK",
                      help="00 to 08 shows one (05: K per layer); default: all, to choose from")
    one.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    one.add_argument("--address", default="127.0.0.1", metavar="IP",
                      help="0.0.0.0 lets other machines in, with a token; default: 127.0.0.1, this machine only")
    one.add_argument("--no-browser", action="store_true", help="print the address and open nothing")


def _explore(args: argparse.Namespace) -> None:
    try:
        from tokenpool.lab.app.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"The page is served by Voila, and {error.name} is not installed here. Type: pip install "
                         "voila") from None
    serve(args.which, args.port, args.address, not args.no_browser, lambda words: print(words, flush=True))
