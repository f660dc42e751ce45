"""Serves the explorers of the course as a page without code, in the browser, to this machine only. Ctrl-C ends it.

    tokenpool explore 05                    K per layer
    tokenpool explore --address 0.0.0.0     for a classroom: the printed address has a token
"""

from dataclasses import dataclass

from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    which: str = option("all", "00 to 08 shows one notebook's explorer; all lets you choose", "NOTEBOOK", flag="")
    port: int = option(0, "default: a free one", "N", least=0)
    address: str = option("127.0.0.1", "0.0.0.0 lets other machines in, with a token", "IP")
    no_browser: bool = option(False, "print the address and open nothing")


def run(options: Options) -> None:
    try:
        from tokenpool.lab.app.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"The page is served by Voila, and {error.name} is not installed here. Type: pip install "
                         "voila") from None
    serve(options.which, options.port, options.address, not options.no_browser, lambda words: print(words, flush=True))
