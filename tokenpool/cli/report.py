"""Reads rows from files and folders and writes the board: one self-contained page, a panel per figure, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenpool.cli import show
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    sources: tuple[Path, ...] = option((), "CSV files, or folders of runs; default: what ships and results/", "PATH",
                                       flag="")
    out: Path = option(Path("results/board.html"), "the page", "FILE")
    collect: Path | None = option(None, "also write all rows and run cards there, one pair of files a preset", "FOLDER")


def run(options: Options) -> None:
    from tokenpool.data.weights import data_folder
    shipped_and_own = [p for p in (data_folder() / "runs", Path("results")) if p.exists()]
    write_board(options.sources or shipped_and_own, options.out, options.collect)


def write_board(sources: Sequence[Path], page: Path, collect: Path | None = None) -> None:
    from tokenpool.report import board
    evidence = board.read(sources)
    show.verdicts(board.write_page(page, evidence))
    for path in board.collect(evidence, collect) if collect else ():
        print(f"rows   {path}")
    show.written(page)
