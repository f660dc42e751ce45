"""tokenpool dense"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenpool.cli.show import _progress


def _options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--method", nargs="+", metavar="NAME",
                      help="default: chance, a score, the grid, K-Medoids; and tokenpool, ToMe, ATC, EViT")
    one.add_argument("--budget", nargs="+", type=float, metavar="SHARE",
                      help="shares of the computations to save; default: 0.2 0.42 0.6")
    one.add_argument("--truth", default="regions", metavar="KIND",
                      help="regions (ground, large and small pebble) or materials; default: regions")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="other weights of pebbles_vit, such as finetuned")
    one.add_argument("--train-images", "--train-pictures", type=int, default=300, metavar="N", help="to fit the probe on; default: 300")
    one.add_argument("--images", "--pictures", type=int, default=300, metavar="N", help="to measure on; default: 300")
    one.add_argument("--seeds", type=int, default=3, metavar="N", help="for what draws at random; default: 3")
    one.add_argument("--out", type=Path, default=Path("results/dense"), metavar="FOLDER",
                      help="default: results/dense")


def _dense(args: argparse.Namespace) -> None:
    from tokenpool.core.methods import one_of
    from tokenpool.data.weights import load_model
    from tokenpool.measure import dense
    from tokenpool.report import dense_page

    one_of("truth", args.truth, dense.TRUTHS, "")
    wanted = dense.settings(args.method or dense.COMPARED, args.budget or dense.BUDGETS, args.seeds)
    model = load_model(checkpoint=args.checkpoint)
    data = dense.Data.make(args.train_images, args.images, args.truth)
    path, page = args.out / "dense.csv", args.out / "index.html"
    print(f"{len(wanted)} measurements on {args.images} scenes of pebbles; {', '.join(dense.TRUTHS[args.truth])}")
    with _progress() as bar:
        task = bar.add_task("", total=len(wanted))
        rows = dense.measure(model, wanted, data, path,
                             tell=lambda what, done, total: bar.update(task, completed=done, description=what))
    dense_page.write_page(page, rows, model, data)
    _print_dense(dense_page.summary(rows))
    for sentence in dense_page.told(rows):
        print(f"- {sentence}")
    print(f"\nrows   {path}\npage   {page}   (open it in a browser)")


def _print_dense(points) -> None:
    from rich.console import Console
    from rich.table import Table
    pooled = points[points["saving"] > 0]
    if not len(pooled):
        return
    print("\nMean IoU in pixels, %, by computations saved; probe fitted on the plain model / on the pooled features:\n")
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name in ("method", "init", "counts"):
        shown.add_column(name, no_wrap=True)
    for saving in sorted(pooled["saving"].unique()):
        shown.add_column(f"-{saving:.0%}", justify="right", no_wrap=True)
    wide = pooled.pivot_table(index=["method", "init", "counts"], columns=["saving", "probe"], values="miou",
                              sort=False)
    for (method, init, counts), line in wide.iterrows():
        pairs = [(line[s, "plain"], line[s, "own"]) for s in sorted(pooled["saving"].unique())]
        shown.add_row(method, init or "-", "carried" if counts else "-",
                      *("-" if a != a else f"{100 * a:.1f} / {100 * b:.1f}" for a, b in pairs))
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(shown)
    print()
