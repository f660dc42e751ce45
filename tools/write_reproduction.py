"""Write docs/reproduction.md from the rows that ship, so that no number in it is typed by hand.

    python tools/write_reproduction.py > docs/reproduction.md
"""

from pathlib import Path

from tokenpool.measure.rows import Results, frame
from tokenpool.report import board
from tokenpool.report.figures import best_clustering, summary
from tokenpool.report.verdicts import verdicts

runs = Path(__file__).resolve().parents[1] / "data" / "runs"
print("""# Reproduction: claim, evidence, our number, verdict

Written by `tools/write_reproduction.py` from the rows in `data/runs/`; not edited by hand. The same rows make the
board: `tokenpool report`.

P: the paper's abstract or captions. S: summaries of it; its full text was not at hand. The paper's claims are about
DeiT on ImageNet. A verdict here says what happens on our models and images and nothing about the paper's own
experiments. "Clearly" means outside a 95 % interval over images (compared one by one) and finetunings.
""")
print(board.markdown(board.read([runs])))

rows = frame(Results(runs / "pebbles.csv").rows)
first = rows.iloc[0]
print(f"""# Without any finetuning: every method, made-up images

Recorded with `make reproduce` in `data/runs/pebbles.csv`: {len(rows)} measurements, model {first.model} (weights
{first.weights}), {first.images} images of {first.data}, five seeds where something is drawn at random, one training
seed; {first.device}, {first.threads} threads; tokenpool {first.tokenpool}, torch {first.torch}, timm {first.timm},
python {first.python}; commit {first.commit}, {first.date}.

| claim | verdict | what was seen |
|---|---|---|""")
for v in verdicts(rows):
    print(f"| {v.claim} | **{v.verdict}** | {v.evidence} |")
best = best_clustering(rows)
print(f"""
## Why the start and the counts matter so much here

The best clustering measured is {best[0]} from a {best[1]} start{' with carried counts' if best[2] else ''}
(chosen on the same images; the gaps are far larger than that choice could make). Our reading (I): the top-K start
puts its centres where the score is high, so into one region, and five rounds of K-Medoids do not get them out: the
reconstruction error stays higher than from a farthest-first start. And a token that stands for forty patches of
ground is attended to like one of four of a pebble unless its count is carried, so later blocks see other
averages than they were trained on. What finetuning repairs of this stands further up.

## All means over seeds

Top-1 in %, 95 % intervals in the page that `make reproduce` writes. Error: share of the tokens' variance lost per
pooling.

| method | start | counts | saving | MMACs | without clustering | top-1 | error | seeds |
|---|---|---|---|---|---|---|---|---|""")
for r in summary(rows, ["method", "init", "counts"]).itertuples():
    cells = [r.method, r.init or "-", "carried" if r.counts else "-", f"{r.saving:.0%}", f"{1e3 * r.gmacs:.1f}",
             f"{1e3 * r.gmacs_without_clustering:.1f}", f"{100 * r.top1:.1f}", f"{r.error:.3f}", f"{r.seeds:.0f}"]
    print(f"| {' | '.join(cells)} |")
