"""Puts pooled tokens back on the grid and segments pebbles with a linear probe: mean IoU against computations.
Writes a table, a CSV file and a page; two minutes.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenpool.cli import show
from tokenpool.measure.options import option


@dataclass(frozen=True)
class Options:
    method: tuple[str, ...] = option((), "default: random, a score, the grid, K-Medoids, tokenpool, ToMe, ATC, EViT")
    saving: tuple[float, ...] = option((), "shares of the computations to save; default: 0.2 0.42 0.6", "SHARE",
                                       share=True)
    truth: str = option("regions", "regions (ground, large and small pebble) or materials", "KIND")
    checkpoint: Path | None = option(None, "other weights of pebbles_vit, such as finetuned ones", "FILE")
    train_images: int = option(300, "to fit the probe on", "N")
    images: int = option(300, "to measure on", "N")
    seeds: int = option(3, "repetitions of what is random", "N")
    out: Path = option(Path("results/dense"), "where the results go", "FOLDER")


def run(options: Options) -> None:
    from tokenpool.core.checks import one_of
    from tokenpool.data.weights import load_model
    from tokenpool.measure import dense
    from tokenpool.measure.rows import DenseRow, Results
    from tokenpool.report import dense_page

    one_of("truth", options.truth, dense.TRUTHS, "")
    wanted = dense.settings(options.method or dense.COMPARED, options.saving or dense.BUDGETS, options.seeds)
    model = load_model(checkpoint=options.checkpoint)
    data = dense.Data.make(options.train_images, options.images, options.truth)
    results, page = Results(options.out / "dense.csv", DenseRow), options.out / "index.html"
    print(f"{len(wanted)} measurements on {options.images} images of pebbles; "
          f"{', '.join(dense.TRUTHS[options.truth])}")
    with show.progress(len(wanted)) as tell:
        rows = dense.measure(model, wanted, data, results, tell=tell)
    dense_page.write_page(page, rows, model, data)
    points = dense_page.summary(rows)
    if (points["saving"] > 0).any():
        print("\nMean IoU in pixels, %, by computations saved; probe fitted on the plain model / on the pooled "
              "features:\n")
        show.by_saving(_cells(points[points["saving"] > 0]))
        print()
    show.sentences(dense_page.told(rows))
    show.written(page, results.path)


def _cells(points) -> dict:
    """Both probes in one cell."""
    wide = points.pivot_table(index=["method", "init", "counts", "saving"], columns="probe", values="miou", sort=False)
    cells: dict = {}
    for (*way, saving), line in wide.iterrows():
        cells.setdefault(tuple(way), {})[saving] = f"{100 * line['plain']:.1f} / {100 * line['own']:.1f}"
    return cells
