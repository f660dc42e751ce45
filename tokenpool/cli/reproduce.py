"""Measures the paper's methods without finetuning (Fig. 5a, 5b, 6, 9): a table, a sentence per claim, a CSV file and a
page. A few minutes on two cores.

    tokenpool reproduce --figure 6 --seeds 10        only the study of inits, with more seeds
    tokenpool reproduce --method top_k wk_medoids --saving 0.42
    tokenpool reproduce --peers                      ToMe, ATC, EViT, ... and ours, at equal cost and at equal time
    tokenpool reproduce --model deit_tiny_patch16_224 --pretrained --data FOLDER
"""

from dataclasses import dataclass
from pathlib import Path

from tokenpool.cli import show
from tokenpool.cli.groups import DataOptions, ModelOptions, to_measure
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    figure: tuple[str, ...] = option((), "5a, 5b, 6, 9, or peers for later methods; default: the paper's", "FIG")
    peers: bool = option(False, "all methods side by side, at equal computations and at equal measured time")
    method: tuple[str, ...] = option((), "only these methods; default: all of the figures")
    saving: tuple[float, ...] = option((), "shares of the computations to save; default: 0.2 0.3 0.42 0.5 0.6 0.7, "
                                       "with --peers 0.3 to 0.8", "SHARE", share=True)
    seeds: int = option(5, "repetitions of what is random", "N")
    device: str = option("cpu", "cpu, cuda or mps", device=True)
    out: Path = option(Path("results/reproduce"), "where the results go", "FOLDER")


def run(options: Options, model: ModelOptions, data: DataOptions) -> None:
    return (_peers if options.peers else _figures)(options, model, data)


def _figures(options: Options, model: ModelOptions, data: DataOptions) -> None:
    from tokenpool.data.weights import SHIPPED
    from tokenpool.measure import accuracy
    from tokenpool.measure.rows import Results, frame
    from tokenpool.report import accuracy_page
    from tokenpool.report.claims import verdicts
    from tokenpool.report.stats import summary

    figures = options.figure or (tuple(accuracy.FIGURES) if options.method else accuracy.PAPERS_FIGURES)
    wanted = accuracy.settings(figures, options.method, options.saving or accuracy.BUDGETS, options.seeds)
    results, page = Results(options.out / "results.csv"), options.out / "index.html"
    vit, images = to_measure(model, data)
    print(f"{model.model} on {images.count} images of {data.data}; {len(wanted)} measurements")
    with show.progress(len(wanted)) as tell:
        rows = frame(accuracy.measure(vit, model.model, images, wanted, results, options.device, tell))
    said = verdicts(rows)
    accuracy_page.write_page(page, rows, said, vit if model.model == SHIPPED else None)

    plain = rows[rows["method"] == "plain"].iloc[0]
    print(f"\nTop-1 in % without finetuning (plain: {100 * plain['top1']:.1f}), by computations saved:\n")
    show.by_saving(_cells(summary(rows[rows["method"] != "plain"], ["method", "init", "counts"])))
    print("* best at that saving; '-' where the clustering costs more than is saved."
          "\n\nThe paper's claims (P: its abstract or captions, S: summaries of it):")
    show.verdicts(said)
    show.written(page, results.path)


def _cells(points) -> dict:
    """Best method first."""
    wide = points.pivot_table(index=["method", "init", "counts"], columns="saving", values="top1", sort=False)
    best = wide.max()
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    return {way: {saving: f"[bold]{100 * v:.1f}*[/bold]" if v == best[saving] else f"{100 * v:.1f} "
                  for saving, v in line.dropna().items()} for way, line in wide.iterrows()}


def _peers(options: Options, model: ModelOptions, data: DataOptions) -> None:
    from tokenpool.data.datasets import open_unlabelled
    from tokenpool.measure import compare
    from tokenpool.measure.rows import Results
    from tokenpool.models import published
    from tokenpool.report import compare_page

    if options.figure:
        raise ValueError("--peers is a comparison of its own. Leave out --figure, or leave out --peers.")
    chosen, budgets = published.chosen(options.method), options.saving or compare.BUDGETS
    results, page = Results(options.out / "peers.csv", compare.Entry), options.out / "peers.html"
    vit, images = to_measure(model, data)
    few, where = open_unlabelled(data.data, vit, data.split, download=data.download)
    print(f"{model.model} on {images.count} images of {data.data}; {len(chosen)} methods, {len(budgets)} savings, "
          f"twice; K fitted on {len(few)} images of {where}")
    with show.progress(2 * len(budgets)) as tell:
        entries = compare.measure(vit, model.model, images, few, results, budgets, chosen, options.device, tell=tell)
    if not entries:
        raise ValueError(f"No method can save {' or '.join(f'{b:.0%}' for b in budgets)} of this model. "
                         "Use a smaller --saving, such as 0.6.")
    compare_page.write_page(page, entries)

    print("\nTop-1 in % without finetuning, with half of its 95 % interval. On the same images: ↓ below, ↑ above "
          f"{published.OURS.label},\nbeyond the 95 % interval of the pairs; no mark: not significantly different; "
          "-: cannot be reached.\n")
    lines = []
    for fair, words in compare.FAIR.items():
        lines += [[f"[bold]{words}[/bold]"], *compare_page.cells(entries, fair), [""]]
    show.table(("method", *(f"-{b:.0%} " for b in sorted({e.budget for e in entries}))), lines)
    show.sentences(compare_page.told(entries))
    show.written(page, results.path)
