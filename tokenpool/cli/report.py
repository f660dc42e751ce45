"""tokenpool report"""

from __future__ import annotations

import argparse
from pathlib import Path


def _options(one: argparse.ArgumentParser) -> None:
    one.add_argument("sources", nargs="*", type=Path, metavar="PATH",
                       help="CSV files, or folders of runs; default: what ships and results/")
    one.add_argument("--page", type=Path, default=Path("results/board.html"), help="default: results/board.html")
    one.add_argument("--collect", type=Path, metavar="FOLDER",
                       help="also write all rows and run cards there, one pair of files a preset")


def _report(args: argparse.Namespace) -> None:
    from tokenpool.data.weights import data_folder
    sources = args.sources or [p for p in (data_folder() / "runs", Path("results")) if p.exists()]
    _write_board(sources, args.page, args.collect)


def _write_board(sources: list[Path], page: Path, collect: Path | None) -> None:
    from tokenpool.report import board
    evidence = board.read(sources)
    said = board.write_page(page, evidence)
    for verdict in said:
        print(f"- {verdict.verdict.upper()}: {verdict.claim}. {verdict.evidence}")
    if collect:
        for path in board.collect(evidence, collect):
            print(f"rows   {path}")
    print(f"\npage   {page}   (open it in a browser)")
