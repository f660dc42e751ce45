"""One sentence per claim of the paper: holds here, does not hold here, not tested here. Computed from the rows.

"Here" is a small model on synthetic images without finetuning. Most claims of the paper are about finetuned models
on ImageNet; where that is the claim, the sentence says so and gives what can be said.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import timm

from tokenpool.models.model_cost import macs
from tokenpool.report.figures import summary

HOLDS, FAILS, UNTESTED, MIXED = "holds here", "does not hold here", "not tested here", "undecided here"


@dataclass(frozen=True)
class Verdict:
    claim: str          # with where it stands in the paper and how sure we are that it does (P primary, S secondary)
    verdict: str
    evidence: str


def verdicts(rows: pd.DataFrame) -> list[Verdict]:
    base = rows[~rows["counts"]]
    out = [_fully_connected()]
    if (base["method"] == "plain").any():
        out += [
            _order(base, ("wk_medoids", "top_k"), ("top_k", ""),
                   "WK-Medoids (top-K start) keeps more accuracy than PoWER-BERT's top-K at every budget "
                   "(Fig. 3a, finetuned; S)"),
            _order(base, ("importance", "random"), ("", ""), "importance sampling beats random selection (Fig. 5a; S)"),
            _order(base, ("top_k", "importance"), ("", ""),
                   "PoWER-BERT's top-K beats importance sampling (Fig. 5a; S)"),
            _order(base, ("wk_medoids", "k_medoids"), ("top_k", "top_k"),
                   "weighted clustering beats unweighted, K-Medoids (Fig. 5b; S)"),
            _order(base, ("wk_medoids", "wk_means"), ("top_k", "top_k"),
                   "K-Medoids beats K-Means at equal computations, clustering counted (Fig. 5b; S)"),
            _robust(rows), _retains(rows), _grid(base)]
    return out + [Verdict(claim, UNTESTED, why) for claim, why in (
        ("the same ImageNet accuracy with 42 % fewer computations (abstract; P)", "Needs ImageNet and finetuning."),
        ("pooling a wider DeiT beats a narrower one at equal cost (Fig. 4; P)", "Needs several trained widths."),
        ("WK-Medoids beats DynamicViT, HVT and ConViT (Fig. 3b; S)", "Needs those models, finetuned."),
        ("with normalised keys and queries the result is the same (Fig. 10; P, caption only)", "Needs training."),
        ("the clustering is affordable in images per second (Fig. 12; P)",
         "Images per second are in every row, but this is no benchmark."))]


def _fully_connected() -> Verdict:
    shares = {name: macs(timm.create_model(f"deit_{name}_patch16_224")).shares for name in ("tiny", "small")}
    lowest = min(s["fully_connected"] for s in shares.values())
    highest = max(s["attention"] for s in shares.values())
    return Verdict("over 80 % of a DeiT's computations are fully connected layers, under 15 % attention (P, S)",
                   HOLDS if lowest > 0.8 and highest < 0.15 else FAILS,
                   f"Counted: DeiT-Ti {shares['tiny']['fully_connected']:.1%} and {shares['tiny']['attention']:.1%}, "
                   f"DeiT-S {shares['small']['fully_connected']:.1%} and {shares['small']['attention']:.1%}.")


def _points(rows: pd.DataFrame, method: str, init: str) -> pd.DataFrame | None:
    mine = rows[(rows["method"] == method) & (rows["init"] == init)]
    return summary(mine, ["method"]).set_index("saving") if len(mine) else None


def _order(rows: pd.DataFrame, methods: tuple[str, str], starts: tuple[str, str], claim: str) -> Verdict:
    """Is the first above the second at every budget, beyond the intervals?"""
    a, b = (_points(rows, m, s) for m, s in zip(methods, starts, strict=True))
    if a is None or b is None:
        return Verdict(claim, UNTESTED, "These methods were not measured in this run.")
    both = a.add_suffix("_a").join(b.add_suffix("_b"), how="inner")
    gap = both["top1_a"] - both["top1_b"]
    # intervals of the two shares, combined; images are the same, so this errs on the careful side
    noise = ((both["top1_a"] - both["low_a"]) ** 2 + (both["high_b"] - both["top1_b"]) ** 2) ** 0.5
    above, below = int((gap > noise).sum()), int((-gap > noise).sum())
    if above and not below:
        verdict = HOLDS if (gap > 0).all() else MIXED
    elif below and not above:
        verdict = FAILS
    else:
        verdict = MIXED
    return Verdict(claim, verdict,
                   f"Without finetuning: clearly above at {above}, clearly below at {below} of {len(both)} budgets; "
                   f"differences {100 * gap.min():+.1f} to {100 * gap.max():+.1f} points.")


def _robust(rows: pd.DataFrame) -> Verdict:
    claim = "the result hardly depends on the start, top-K or random (Fig. 6, finetuned; P)"
    gaps = []
    for counts in (False, True):
        part = rows[rows["counts"] == counts]
        points = {s: _points(part, "wk_medoids", s) for s in ("top_k", "random", "farthest_first")}
        if any(p is None for p in points.values()):
            return Verdict(claim, UNTESTED, "The starts were not measured in this run.")
        table = pd.DataFrame({s: p["top1"] for s, p in points.items() if p is not None})
        gaps.append(((table.max(axis=1) - table.min(axis=1)).max(), table.mean()))
    widest = max(gap for gap, _ in gaps)
    plain, carried = gaps[0][1], gaps[1][1]
    return Verdict(claim, HOLDS if widest < 0.03 else FAILS,
                   f"Without finetuning the starts differ by up to {100 * widest:.0f} points. Mean over budgets: top-K "
                   f"{100 * plain['top_k']:.0f} %, random {100 * plain['random']:.0f} %, farthest-first "
                   f"{100 * plain['farthest_first']:.0f} %; with carried counts {100 * carried['top_k']:.0f}, "
                   f"{100 * carried['random']:.0f} and {100 * carried['farthest_first']:.0f} %.")


def _retains(rows: pd.DataFrame) -> Verdict:
    claim = "without finetuning the model retains its accuracy, because the reconstruction error is small (Fig. 9; P)"
    plain = rows[rows["method"] == "plain"]["top1"].iloc[0]
    part = rows[(rows["method"] == "wk_medoids")]
    if not len(part):
        return Verdict(claim, UNTESTED, "wk_medoids was not measured in this run.")
    saving = min(part["saving"].unique(), key=lambda s: abs(s - 0.42))
    at = part[part["saving"] == saving].groupby(["init", "counts"])["top1"].mean()
    paper = at.get(("top_k", False))
    best, (init, counts) = at.max(), at.idxmax()
    lost = None if paper is None else plain - paper
    verdict = UNTESTED if lost is None else HOLDS if lost < 0.02 else FAILS
    if verdict == FAILS and plain - best < 0.02:
        verdict = "holds here only with another start"
    told = "" if paper is None else f"the paper's top-K start leaves {100 * paper:.1f} %, "
    return Verdict(claim, verdict, f"At {saving:.0%} fewer computations, of {100 * plain:.1f} %: {told}"
                   f"the {init} start{' with carried counts' if counts else ''} {100 * best:.1f} %.")


def _grid(rows: pd.DataFrame) -> Verdict:
    claim = "downsampling on a grid competes only at low computations (Fig. 8, convolution; S)"
    grid, ours = _points(rows, "grid_average", ""), _points(rows, "wk_medoids", "top_k")
    if grid is None or ours is None or len(grid) < 3:
        return Verdict(claim, UNTESTED, "These methods were not measured in this run.")
    gap = (grid["top1"] - ours["top1"]).dropna().sort_index()
    verdict = HOLDS if gap.iloc[0] < 0 < gap.iloc[-1] else FAILS if gap.iloc[0] > 0 else MIXED
    return Verdict(claim, verdict,
                   f"Average pooling stands in for the convolution. Against WK-Medoids (top-K start): "
                   f"{100 * gap.iloc[0]:+.1f} points at the highest, {100 * gap.iloc[-1]:+.1f} at the lowest budget.")
