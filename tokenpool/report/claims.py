"""The paper's claims about finetuned models, judged by the rows: holds, does not hold, or undecided within noise.

Two systems see the same images, so they are compared image by image, which is far sharper than comparing two
intervals. What differs from one finetuning to the next is added: its size is estimated from all settings of a preset
that were finetuned more than once.

A claim holds where every comparison it makes is above 0 with its 95 % interval. It fails where one is below, with an
interval widened for the number of comparisons (Bonferroni): among eight, one is easily below by chance. A claim that
does not say "at every budget" is judged by the mean over budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from tokenpool.measure.rows import unpack
from tokenpool.report.verdicts import FAILS, HOLDS, UNTESTED, Verdict

UNDECIDED = "undecided within noise"
MARGIN = 0.01            # a difference below one point is called little, or the same
_SETTING = ["preset", "model", "qk", "base_seed", "method", "init", "counts", "saving", "schedule_name"]


@dataclass(frozen=True)
class Gap:
    """Difference of two systems' top-1 (shares), and its 95 % interval."""

    value: float
    half: float
    seeds: int                # finetunings on the side that has fewer

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    def clearly_below(self, level: float = 0.0, among: int = 1) -> bool:
        """Below `level` beyond doubt, as one of so many comparisons."""
        return self.value + self.half * _widened(among) < level

    def clearly_not(self, level: float = 0.0, among: int = 1) -> bool:
        return abs(self.value - level) > self.half * _widened(among)

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.half:.1f}"


def _widened(among: int) -> float:
    return NormalDist().inv_cdf(1 - 0.025 / among) / NormalDist().inv_cdf(0.975)


def run_noise(rows: pd.DataFrame) -> float:
    """Standard deviation of top-1 from one finetuning to the next, pooled over settings; 0 where none was repeated."""
    done = rows[rows["stage"] == "finetuned"]
    groups = [g["top1"].to_numpy() for _, g in done.groupby(_SETTING) if len(g) > 1]
    freedom = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / freedom)) if freedom else 0.0


def gap(a: pd.DataFrame, b: pd.DataFrame, noise: float) -> Gap:
    """Top-1 of `a` minus that of `b`: rows of one setting each, one per seed, measured on the same images."""
    return mean_gap([(a, b)], noise)


def mean_gap(pairs: list[tuple[pd.DataFrame, pd.DataFrame]], noise: float) -> Gap:
    """The same, averaged over several pairs of settings (budgets)."""
    first = pairs[0][0].iloc[0]
    n = int(first["images"])
    if any((part["data"] != first["data"]).any() or (part["images"] != n).any() for pair in pairs for part in pair):
        raise ValueError("Systems that were measured on different images cannot be compared image by image.")
    right = [[np.mean([unpack(t, n) for t in part["right"]], axis=0) for part in pair] for pair in pairs]
    apart = np.mean([ours - theirs for ours, theirs in right], axis=0)
    images = apart.std(ddof=1) / np.sqrt(n)
    runs = noise * np.sqrt(sum(1 / len(a) + 1 / len(b) for a, b in pairs)) / len(pairs)
    return Gap(float(apart.mean()), float(1.96 * np.hypot(images, runs)), min(len(p) for pair in pairs for p in pair))


class Table:
    """The finetuned rows of one preset, asked for by setting."""

    def __init__(self, rows: pd.DataFrame, preset: str) -> None:
        mine = rows[rows["preset"] == preset]
        self.noise = run_noise(mine)
        self.all = mine
        self.rows = mine[(mine["stage"] == "finetuned") & (mine["schedule_name"] == "")]
        names = mine["model"].unique()
        self.first = f"{preset}/{_first_model(preset)}" if len(names) else ""

    def setting(self, method: str, saving: float = 0.0, init: str | None = None, counts: bool = False,
                model: str = "", qk: str = "") -> pd.DataFrame:
        r = self.rows
        init = ("top_k" if "_me" in method else "") if init is None else init
        return r[(r["method"] == method) & np.isclose(r["saving"], saving) & (r["init"] == init)
                 & (r["counts"] == counts) & (r["model"] == (model or self.first)) & (r["qk"] == qk)]

    def savings(self, *settings: dict) -> list[float]:
        """Budgets at which all these settings were finetuned."""
        found = [s for s in sorted(self.rows["saving"].unique()) if s > 0]
        return [s for s in found if all(len(self.setting(saving=s, **one)) for one in settings)]

    def gaps(self, a: dict, b: dict) -> dict[float, Gap]:
        return {s: gap(self.setting(saving=s, **a), self.setting(saving=s, **b), self.noise)
                for s in self.savings(a, b)}

    def over_budgets(self, a: dict, b: dict) -> Gap | None:
        pairs = [(self.setting(saving=s, **a), self.setting(saving=s, **b)) for s in self.savings(a, b)]
        return mean_gap(pairs, self.noise) if pairs else None


def _first_model(preset: str) -> str:
    from tokenpool.train.recipe import load_preset
    return next(iter(load_preset(preset).models))


def claims(rows: pd.DataFrame, preset: str) -> list[Verdict]:
    """One verdict per claim, from the rows of one preset."""
    t = Table(rows, preset)
    return [_above_scores(t), _same_with_less(t), _robust(t), _weighted(t), _normalised(t), _wider(t), _grid(t),
            _against(t, "dynamic_vit", "WK-Medoids is above DynamicViT at every budget (Fig. 3b; S)"), _medoids(t)]


def _at_every_budget(claim: str, groups: dict[str, dict[float, Gap]]) -> Verdict:
    """Is the first above every rival at every budget?"""
    missing = [name for name, group in groups.items() if not group]
    if missing:
        return Verdict(claim, UNTESTED, f"Not finetuned here: {', '.join(missing)}.")
    told = "; ".join(f"{name}: {_at(group)}" for name, group in groups.items())
    gaps = [g for group in groups.values() for g in group.values()]
    return Verdict(claim, _verdict(gaps), f"Points of top-1 above {told}. {_seeds(gaps)}")


def _on_average(claim: str, t: Table, pairs: dict[str, tuple[dict, dict]]) -> Verdict:
    """Is the first of every pair above the second, averaged over the budgets?"""
    found = {name: t.over_budgets(a, b) for name, (a, b) in pairs.items()}
    missing = [name for name, g in found.items() if g is None]
    if missing:
        return Verdict(claim, UNTESTED, f"Not finetuned here: {', '.join(missing)}.")
    gaps = [g for g in found.values() if g is not None]
    told = "; ".join(f"{name}: {found[name]} on average ({_at(t.gaps(a, b))})" for name, (a, b) in pairs.items())
    return Verdict(claim, _verdict(gaps), f"Points of top-1, {told}. {_seeds(gaps)}")


def _verdict(gaps: list[Gap]) -> str:
    if all(g.low > 0 for g in gaps):
        return HOLDS
    return FAILS if any(g.clearly_below(0.0, len(gaps)) for g in gaps) else UNDECIDED


def _at(gaps: dict[float, Gap]) -> str:
    return ", ".join(f"{g} at -{s:.0%}" for s, g in gaps.items())


def _seeds(gaps: list[Gap]) -> str:
    fewest, most = min(g.seeds for g in gaps), max(g.seeds for g in gaps)
    return f"{fewest if fewest == most else f'{fewest} to {most}'} seed{'s' if most > 1 else ''} a setting."


def _above_scores(t: Table) -> Verdict:
    ours = dict(method="wk_medoids")
    return _at_every_budget("WK-Medoids is above PoWER-BERT, importance and random at every budget (Fig. 3a; S)",
                            {name: t.gaps(ours, dict(method=name)) for name in ("top_k", "importance", "random")})


def _against(t: Table, rival: str, claim: str) -> Verdict:
    return _at_every_budget(claim, {rival: t.gaps(dict(method="wk_medoids"), dict(method=rival))})


def _same_with_less(t: Table) -> Verdict:
    claim = "the same top-1 with 42 % fewer computations (abstract; P)"
    plain = t.setting("plain")
    ours = t.setting("wk_medoids", 0.42)
    if not len(plain) or not len(ours):
        return Verdict(claim, UNTESTED, "Needs the plain model and WK-Medoids finetuned alike at 42 %.")
    g = gap(ours, plain, t.noise)
    verdict = FAILS if g.high < 0 and g.value < -MARGIN else HOLDS if g.low > -MARGIN else UNDECIDED
    other = t.setting("wk_medoids", 0.42, "farthest_first", True)
    more = f" From a farthest-first start with carried counts: {gap(other, plain, t.noise)}." if len(other) else ""
    return Verdict(claim, verdict, f"WK-Medoids (the paper's start) against the plain model finetuned as long "
                   f"({100 * plain['top1'].mean():.1f} %): {g} points.{more} {_seeds([g])}")


def _robust(t: Table) -> Verdict:
    claim = "robust to the start, top-K or random (Fig. 6; P)"
    gaps = t.gaps(dict(method="wk_medoids", init="random"), dict(method="wk_medoids"))
    if not gaps:
        return Verdict(claim, UNTESTED, "The starts were not finetuned here.")
    whole = t.over_budgets(dict(method="wk_medoids", init="random"), dict(method="wk_medoids"))
    assert whole is not None
    apart = whole.clearly_not() and abs(whole.value) > MARGIN
    if all(g.low > -MARGIN and g.high < MARGIN for g in (whole, *gaps.values())):
        verdict = HOLDS
    elif apart or any(g.clearly_not(among=len(gaps)) and abs(g.value) > MARGIN for g in gaps.values()):
        verdict = FAILS
    else:
        verdict = UNDECIDED
    far = t.gaps(dict(method="wk_medoids", init="farthest_first"), dict(method="wk_medoids"))
    more = f" Farthest-first above top-K: {_at(far)}." if far else ""
    return Verdict(claim, verdict, f"Random start above top-K start, in points: {whole} on average ({_at(gaps)})."
                   f"{more} {_seeds(list(gaps.values()))}")


def _weighted(t: Table) -> Verdict:
    return _on_average("weighted clustering is above unweighted (Fig. 5b; S)", t, {
        f"{weighted} above {plain}": (dict(method=weighted), dict(method=plain))
        for weighted, plain in (("wk_medoids", "k_medoids"), ("wk_means", "k_means"))})


def _medoids(t: Table) -> Verdict:
    return _on_average("K-Medoids is above K-Means at equal computations, clustering counted (Fig. 5b; S)", t,
                       {"wk_medoids above wk_means": (dict(method="wk_medoids"), dict(method="wk_means"))})


def _normalised(t: Table) -> Verdict:
    claim = "normalised keys and queries change little (Fig. 10; P caption, the size I)"
    kinds = [k for k in sorted(t.rows["qk"].unique()) if k]
    if not kinds or not len(t.setting("plain")):
        return Verdict(claim, UNTESTED, "No model with normalised keys and queries was trained here.")
    told, gaps = [], []
    for kind in kinds:
        if not len(t.setting("plain", qk=kind)):
            continue
        whole = gap(t.setting("plain", qk=kind), t.setting("plain"), t.noise)
        told.append(f"{kind}, plain model: {whole}")
        gaps.append(whole)
        for saving, g in t.gaps(dict(method="wk_medoids", qk=kind), dict(method="wk_medoids")).items():
            told.append(f"WK-Medoids at -{saving:.0%}: {g}")
            gaps.append(g)
    if all(g.low > -2 * MARGIN and g.high < 2 * MARGIN for g in gaps):
        verdict = HOLDS
    elif any(g.clearly_not(among=len(gaps)) and abs(g.value) > 2 * MARGIN for g in gaps):
        verdict = FAILS
    else:
        verdict = UNDECIDED
    return Verdict(claim, verdict, "Points above the usual attention (two points are called little): "
                   f"{'; '.join(told)}. One base model each. {_seeds(gaps)}")


def _wider(t: Table) -> Verdict:
    claim = "pooling a wider net beats a narrower net at its cost (Fig. 4; P)"
    narrow = t.setting("plain")
    wide_names = [m for m in t.rows["model"].unique() if m != t.first]
    if not len(narrow) or not wide_names:
        return Verdict(claim, UNTESTED, "Needs a second width.")
    cost = narrow["gmacs"].mean()
    told, gaps = [], []
    for name in wide_names:
        mine = t.rows[(t.rows["model"] == name) & (t.rows["method"] == "wk_medoids") & (t.rows["init"] == "top_k")
                      & ~t.rows["counts"] & (t.rows["qk"] == "")]
        cheap = mine[mine["gmacs"] <= cost * 1.01]
        if not len(cheap):
            continue
        saving = cheap["saving"].min()
        g = gap(cheap[cheap["saving"] == saving], narrow, t.noise)
        gaps.append(g)
        told.append(f"{name.split('/')[1]} at -{saving:.0%} ({1e3 * cheap['gmacs'].max():.1f} MMACs) above "
                    f"{t.first.split('/')[1]} ({1e3 * cost:.1f} MMACs): {g}")
    if not gaps:
        return Verdict(claim, UNTESTED, "No wider net was pooled down to the narrower one's cost.")
    return Verdict(claim, _verdict(gaps),
                   f"{'; '.join(told)} points, finetuned alike. One base model each. {_seeds(gaps)}")


def _grid(t: Table) -> Verdict:
    claim = "convolution on the grid competes only at low computations (Fig. 8; S)"
    rows = t.rows[(t.rows["method"] == "convolution") & (t.rows["model"] == t.first)]
    if not len(rows):
        return Verdict(claim, UNTESTED, "The convolution was not finetuned here.")
    gaps = {s: gap(rows[rows["saving"] == s], t.setting("wk_medoids", s), t.noise)
            for s in sorted(rows["saving"].unique()) if len(t.setting("wk_medoids", s))}
    if len(gaps) < 2:
        return Verdict(claim, UNTESTED, "Needs the convolution and WK-Medoids at two budgets or more.")
    high, low = gaps[min(gaps)], gaps[max(gaps)]
    verdict = FAILS if high.low > 0 else HOLDS if high.high < 0 <= low.high else UNDECIDED
    true = rows.groupby("saving")["gmacs"].mean() / rows["gmacs_plain"].mean()
    told = ", ".join(f"{g} at -{s:.0%} (its true cost: {true[s]:.0%})" for s, g in gaps.items())
    return Verdict(claim, verdict, f"Convolution above WK-Medoids, in points: {told}. {_seeds(list(gaps.values()))}")
