"""Write docs/reproduction.md from the rows that ship, so that no number in it is typed by hand.

    python tools/write_reproduction.py > docs/reproduction.md
"""

from pathlib import Path

from tokenpool.measure.rows import Results, frame
from tokenpool.report import board
from tokenpool.report.claims import verdicts
from tokenpool.report.figures import best_clustering
from tokenpool.report.pages import Listing
from tokenpool.report.stats import summary

runs = Path(__file__).resolve().parents[1] / "data" / "runs"
print("""# Reproduction: claim, evidence, our number, verdict

Written by `tools/write_reproduction.py` from the rows in `data/runs/`; do not edit it by hand. The same rows make the
board: `tokenpool report`.

P: the paper's abstract, captions or figures. S: summaries of it; its full text was not available to us. The paper's
claims are about DeiT on ImageNet. A verdict here says what happens on our models and images, and nothing about the
paper's own experiments. Every difference is in points of top-1 with its 95 % interval: over images, compared one by
one, and over finetunings where a setting was finetuned more than once (Student's t). "In the paper" is the same
difference read off the paper's Figures 1b, 3a and 3b at equal computations (`data/paper/`).
""")
print(board.markdown(board.read([runs])))

rows = frame(Results(runs / "pebbles.csv").rows)
first = rows.iloc[0]
print(f"""# Without any finetuning: every method, synthetic images

Recorded with `make reproduce` in `data/runs/pebbles.csv`: {len(rows)} measurements, model {first.model} (weights
{first.weights}), {first.images} images of {first.data}, five runs where something is drawn at random, one training
seed; {first.device}, {first.threads} threads; tokenpool {first.tokenpool}, torch {first.torch}, timm {first.timm},
python {first.python}; commit {first.commit}, {first.date}.

{board.verdict_table(verdicts(rows))}""")
best = best_clustering(rows)
counted = " with carried counts" if best[2] else ""
print(f"""
## Why the init and the counts matter so much here

The best clustering measured is {best[0]} from a {best[1]} init{counted}
(chosen on the same images; the differences are far larger than that choice could produce). Our reading (I): the top-K
init puts its centres where the score is high, so in one region, and five iterations of K-Medoids do not move them
out of it: the reconstruction error stays higher than from a farthest-first init. And a token that represents forty
patches of background gets no more attention than a token that represents four patches of a pebble unless its count
is carried, so later blocks see other averages than they were trained on. The tables above show how much of this
finetuning repairs.

## All means over runs

Top-1 in %; 95 % intervals are on the page that `make reproduce` writes. Error: share of the tokens' variance lost per
pooling.
""")
print(Listing("", ("method", "init", "counts", "saving", "MMACs", "without clustering", "top-1", "error", "runs"), [
    (r.method, r.init or "-", "carried" if r.counts else "-", f"{r.saving:.0%}", f"{1e3 * r.gmacs:.1f}",
     f"{1e3 * r.gmacs_without_clustering:.1f}", f"{100 * r.top1:.1f}", f"{r.error:.3f}", f"{r.seeds}")
    for r in summary(rows, ["method", "init", "counts"]).itertuples()]).markdown())
