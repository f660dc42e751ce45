"""tokenpool reproduce"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenpool.cli.common import _check_device, _to_measure
from tokenpool.cli.show import _print_sentences, _progress


def _options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--figure", nargs="+", metavar="FIG",
                     help="5a, 5b, 6, 9, or peers for what came later; default: the paper's")
    one.add_argument("--peers", action="store_true",
                     help="all methods side by side, at equal computations and at equal measured time")
    one.add_argument("--method", nargs="+", metavar="NAME", help="only these methods; default: all of the figures")
    one.add_argument("--budget", nargs="+", type=float, metavar="SHARE",
                     help="shares of the computations to save; default: 0.2 0.3 0.42 0.5 0.6 0.7, "
                          "with --peers 0.3 to 0.8")
    one.add_argument("--model", default="pebbles_vit",
                     help="any timm ViT, or PRESET/MODEL, such as imagenet50_cpu/ti; default: the model that ships")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, .safetensors or .pth")
    one.add_argument("--pretrained", action="store_true", help="timm's public weights")
    one.add_argument("--data", default="pebbles", metavar="NAME",
                     help="pebbles, a folder (Parquet, or one folder a class), or a timm name; default: pebbles")
    one.add_argument("--split", default="validation", help="of the data; default: validation")
    one.add_argument("--download", action="store_true", help="let torch/ data sets download themselves")
    one.add_argument("--images", "--pictures", type=int, metavar="N",
                     help="how many; default: 600 of pebbles, all of others")
    one.add_argument("--seeds", type=int, default=5, metavar="N", help="for what draws at random; default: 5")
    one.add_argument("--device", default="cpu", help="cpu, cuda, mps; default: cpu")
    one.add_argument("--out", type=Path, default=Path("results/reproduce"), metavar="FOLDER",
                     help="default: results/reproduce")


def _reproduce(args: argparse.Namespace) -> None:
    if args.peers:
        _peers(args)
        return
    from tokenpool.data.weights import SHIPPED
    from tokenpool.measure import accuracy
    from tokenpool.measure.rows import Results, frame
    from tokenpool.report import accuracy_page
    from tokenpool.report.figures import summary
    from tokenpool.report.verdicts import verdicts

    default = tuple(accuracy.FIGURES) if args.method else accuracy.PAPERS_FIGURES
    wanted = accuracy.settings(args.figure or default, args.method, args.budget or accuracy.BUDGETS, args.seeds)
    _check_device(args.device)
    results = Results(args.out / "results.csv")
    model, images = _to_measure(args)
    print(f"{args.model} on {images.count} images of {args.data}; {len(wanted)} measurements")
    with _progress() as bar:
        task = bar.add_task("", total=len(wanted))
        rows = accuracy.measure(model, args.model, images, wanted, results, args.device,
                                lambda what, done, total: bar.update(task, completed=done, description=what))
    table = frame(rows)
    said = verdicts(table)
    page = args.out / "index.html"
    accuracy_page.write_page(page, table, said, model if args.model == SHIPPED else None)
    _print_table(summary(table[table["method"] != "plain"], ["method", "init", "counts"]), table)
    _print_verdicts(said)
    print(f"\nrows   {results.path}\npage   {page}   (open it in a browser)")


def _peers(args: argparse.Namespace) -> None:
    from tokenpool.data.datasets import open_unlabelled
    from tokenpool.measure import compare
    from tokenpool.measure.rows import Results
    from tokenpool.models import published
    from tokenpool.report import compare_page
    if args.figure:
        raise ValueError("--peers is a comparison of its own. Leave out --figure, or leave out --peers.")
    chosen, budgets = published.chosen(args.method), args.budget or compare.BUDGETS
    _check_device(args.device)
    results = Results(args.out / "peers.csv", compare.Entry)
    model, images = _to_measure(args)
    few, where = open_unlabelled(args.data, model, args.split, download=args.download)
    print(f"{args.model} on {images.count} images of {args.data}; {len(chosen)} contenders, {len(budgets)} "
          f"budgets, twice; fitted K from {len(few)} images of {where}")
    with _progress() as bar:
        task = bar.add_task("", total=2 * len(budgets))
        entries = compare.measure(model, args.model, images, few, results, budgets, chosen, args.device,
                                  tell=lambda what, done, total: bar.update(task, completed=done, description=what))
    if not entries:
        raise ValueError(f"No contender can save {' or '.join(f'{b:.0%}' for b in budgets)} of this model. "
                         "Use a smaller --budget, such as 0.6.")
    page = args.out / "peers.html"
    compare_page.write_page(page, entries)
    _print_peers(entries)
    print(f"\nrows   {results.path}\npage   {page}   (open it in a browser)")


def _print_peers(entries) -> None:
    from rich.console import Console
    from rich.table import Table

    from tokenpool.measure import compare
    from tokenpool.models import published
    from tokenpool.report import compare_page
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown.add_column("contender", no_wrap=True)
    for budget in sorted({e.budget for e in entries}):
        shown.add_column(f"-{budget:.0%} ", justify="right", no_wrap=True)
    for fair, words in compare.FAIR.items():
        shown.add_row(f"[bold]{words}[/bold]")
        for line in compare_page.cells(entries, fair):
            shown.add_row(*line)
        shown.add_row("")
    print(f"\nTop-1 in % without finetuning, with half of its 95 % interval. On the same images: ↓ below, ↑ above\n"
          f"{published.OURS.label}, beyond the pairs' 95 % interval; no mark: no telling apart; -: cannot be met.\n")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(shown)
    _print_sentences(compare_page.told(entries))


def _print_table(points, table) -> None:
    from rich.console import Console
    from rich.table import Table
    savings = sorted(points["saving"].unique())
    plain = table[table["method"] == "plain"].iloc[0]
    print(f"\nTop-1 in % without finetuning (plain: {100 * plain['top1']:.1f}), by computations saved:\n")
    shown = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    shown.add_column("method", overflow="fold", min_width=11)          # the one that may wrap on a narrow terminal
    shown.add_column("init", no_wrap=True, min_width=17)
    shown.add_column("counts", no_wrap=True, min_width=7)
    for saving in savings:
        shown.add_column(f"-{saving:.0%} ", justify="right", no_wrap=True, min_width=5)
    wide = points.pivot_table(index=["method", "init", "counts"], columns="saving", values="top1", sort=False)
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    best = wide.max()
    for (method, init, counts), line in wide.iterrows():
        cells = ["-" if v != v else f"[bold]{100 * v:.1f}*[/bold]" if v == best[s] else f"{100 * v:.1f} "
                 for s, v in line.items()]
        shown.add_row(method, init or "-", "carried" if counts else "-", *cells)
    width = None if sys.stdout.isatty() else 110
    Console(width=width, highlight=False).print(shown)
    print("* best at that budget; '-' where the clustering costs more than is saved.")


def _print_verdicts(said) -> None:
    print("\nThe paper's claims (P: its abstract or captions, S: summaries of it):")
    _print_sentences(f"{v.verdict.upper()}: {v.claim}. {v.evidence}" for v in said)
