"""What can be chosen in the K-per-layer explorer, and how moving one control changes the others. No model runs here.

`follow(setting, control, value)` returns the setting after a move. While the budget is locked, `hold` adapts the other
blocks so that the MACs stay the same.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenpool.core.cost import ModelShape, count_macs
from tokenpool.core.methods import Pooling
from tokenpool.core.schedule import geometric
from tokenpool.lab.kit.session import shipped_vit
from tokenpool.models.vit import model_shape

Ks = tuple[int, ...]
N, DEPTH = 64, 6                        # patch tokens and blocks of the shipped model
POOLING = DEPTH - 1                     # blocks that pool; pooling after the last one would save nothing
BY_HAND, BUDGET = "by hand", "geometric, for the budget below"
OWN, NOTHING = "your own", "nothing"
OUTPUTS = {"the method's own": "", "medoid": "medoid", "mean": "mean", "weighted mean": "weighted_mean"}


# ---- cost ----

@functools.lru_cache(maxsize=1)
def _shape() -> ModelShape:
    return model_shape(shipped_vit())


@functools.lru_cache(maxsize=1)
def plain_macs() -> int:
    return count_macs(_shape()).total


def percent(macs: float) -> str:
    """MACs as a share of those of the plain model."""
    return f"{macs / plain_macs():.1%}"


def in_macs(budget: int) -> float:
    """A budget, in % of the plain model, in MACs."""
    return budget / 100 * plain_macs()


def is_near(macs: float, target: float, share: float = 0.01) -> bool:
    return abs(macs - target) <= share * target


# ---- schedules ----

def tokens(k: int) -> str:
    return f"{k} token{'s' if k != 1 else ''}"


def whole(ks: Sequence[int]) -> Ks:
    """The K of five blocks -> a schedule of six blocks."""
    return (*ks, ks[-1])


def allowed(asked: Sequence[int]) -> tuple[Ks, str]:
    """Five K that never rise, and a sentence about the blocks that ask for more tokens than there are.

    >>> ks, note = allowed((40, 50, 20, 20, 20))
    >>> ks, note[:34]
    ((40, 40, 20, 20, 20), 'Block 2 asks for 50 of 40 tokens: ')
    """
    ks = tuple(itertools.accumulate(asked, min))
    rises = [(b, k, left) for b, (k, left) in enumerate(zip(asked, ks, strict=True), start=1) if k > left]
    why = "removed tokens do not come back, so nothing is pooled there."
    if len(rises) == 1:
        block, k, left = rises[0]
        return ks, f"Block {block} asks for {k} of {left} tokens: {why}"
    blocks = ", ".join(f"{block} ({k} of {left})" for block, k, left in rises)
    return ks, f"These blocks ask for more tokens than are left: {blocks}; {why}" if rises else ""


def for_budget(target: float, macs: Callable[[Ks], int]) -> tuple[Ks, str]:
    """The geometric schedule whose cost is nearest to the target, and a sentence if it is more than 1 % away."""
    tried = dict.fromkeys(geometric(N, DEPTH, rate / 400)[:POOLING] for rate in range(1, 401))
    best = min(tried, key=lambda ks: abs(macs(ks) - target))
    return best, "" if is_near(macs(best), target) else (
        f"No geometric schedule costs {percent(target)} with this clustering: the nearest costs {percent(macs(best))}.")


def hold(ks: Ks, moved: int | None, target: float, macs: Callable[[Ks], int]) -> tuple[Ks, str]:
    """Keep the budget: block `moved` (0 is the first; None: no block) stays, the other blocks adapt.

    They are scaled by one factor, kept between 1 and 64 and never rising, and then changed token by token, because
    scaled whole numbers rarely meet a budget.

    Returns:
        the five K, and a sentence if they miss the budget by more than 1 %.
    """
    lowest = tuple(1 if moved is None or b > moved else ks[moved] for b in range(POOLING))
    highest = tuple(N if moved is None or b < moved else ks[moved] for b in range(POOLING))

    def scaled(shape: Ks, factor: float) -> Ks:
        return tuple(min(high, max(low, round(k * factor)))
                     for k, low, high in zip(shape, lowest, highest, strict=True))

    def distance(ks: Ks) -> float:
        return abs(macs(ks) - target)

    def climbed(best: Ks) -> Ks:
        """Token by token towards the budget."""
        while not is_near(macs(best), target, 0.002):
            single = [(*best[:b], best[b] + step, *best[b + 1:]) for b in range(POOLING) for step in (-1, 1)
                      if lowest[b] <= best[b] + step <= highest[b]]
            nearer = min((s for s in single if list(s) == sorted(s, reverse=True)), key=distance, default=best)
            if distance(nearer) >= distance(best):
                break
            best = nearer
        return best

    # a scan, not a bisection: without pooling there is no clustering to pay for, so the cost is not monotone in K
    shape = allowed(scaled(ks, 1))[0]
    tried = dict.fromkeys([shape, *(scaled(shape, 2 ** (step / 32)) for step in range(-192, 193)), lowest, highest])
    best = climbed(min(tried, key=distance))
    if not is_near(macs(best), target):           # then try other shapes
        steps = [sorted({low, high, *range(8 * (low // 8 + 1), high, 8)}, reverse=True)
                 for low, high in zip(lowest, highest, strict=True)]
        coarse = (ks for ks in itertools.product(*steps) if all(a >= b for a, b in itertools.pairwise(ks)))
        best = min(map(climbed, heapq.nsmallest(8, coarse, key=distance)), key=distance)
    got, wanted = percent(macs(best)), percent(target)
    if is_near(macs(best), target):
        return best, ""
    if moved is None:
        return best, f"The budget of {wanted} cannot be kept with this choice: the nearest schedule costs {got}."
    block, k = moved + 1, ks[moved]
    if macs(best) > target:
        verb, why = "kept", "earlier blocks must keep at least as many" if moved else "all tokens pass the first block"
    else:
        verb, why = "spent", f"later blocks cannot have more than {k}: removed tokens do not come back"
    return best, (f"The budget of {wanted} cannot be {verb}: with {tokens(k)} after block {block} the nearest schedule "
                  f"costs {got}, because {why}.")


# ---- a setting, and what a move makes of it ----

def pooling(method: str, init: str, output: str) -> Pooling:
    """A method with those choices that it uses: only clusterings have an initialisation and an output."""
    clusters = Pooling(method).spec.kind == "clustering"
    return Pooling(method, init if clusters else None, output=(output or None) if clusters else None)


@dataclass(frozen=True)
class Setting:
    """Everything that can be chosen. The fields after `image` have no control of their own."""

    preset: str
    budget: int                                 # % of the plain model's MACs
    k1: int
    k2: int
    k3: int
    k4: int
    k5: int
    lock: bool
    method: str
    init: str
    output: str
    counts: bool
    compare: str
    image: str
    shown: str                                  # the visible image: the previous one until "your own" is uploaded
    own: bytes = field(default=b"", repr=False)
    target: float = 0.0                         # the MACs to keep while the budget is locked
    streak: tuple[int, Ks] | None = None        # the block that is being moved, and K before its first move
    note: str = ""                              # what the last move could not do

    @property
    def ks(self) -> Ks:
        """The values of the five sliders."""
        return self.k1, self.k2, self.k3, self.k4, self.k5

    @property
    def schedule(self) -> Ks:
        """The schedule of PooledViT."""
        return whole(allowed(self.ks)[0])

    @property
    def how(self) -> Pooling:
        return self.poolings[0]

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The method, and the one it is compared with."""
        methods = dict.fromkeys((self.method, self.method if self.compare == NOTHING else self.compare))
        return tuple(pooling(method, self.init, self.output) for method in methods)

    @property
    def code(self) -> str:
        """One line of Python per model. `vit` is the timm model."""
        return "\n".join(
            f"tp.PooledViT(vit, schedule={list(self.schedule)}, method={how.method!r}, init={how.init!r}, "
            f"output={how.output!r}, carry_counts={self.counts})" for how in self.poolings)

    def macs(self, ks: Ks) -> int:
        how, shape = self.how, _shape()
        return count_macs(shape, whole(allowed(ks)[0]),
                          lambda n, k: how.macs(n, k, shape.channels, stand_ins=self.counts)).total

    def with_ks(self, ks: Ks, note: str = "") -> Setting:
        return replace(self, **{f"k{b}": k for b, k in enumerate(ks, start=1)}, note=note)

    def for_budget(self) -> Setting:
        return self.with_ks(*for_budget(in_macs(self.budget), self.macs))


def follow(now: Setting, name: str, value: Any, presets: Mapping[str, Ks]) -> Setting:
    """The setting after a person has moved one control."""
    then = replace(now, **{name: value}, note="", streak=None)
    match name:
        case "preset" if value == BUDGET:
            return _relocked(then.for_budget())
        case "preset":
            return _relocked(then if value == BY_HAND else then.with_ks(presets[value][:POOLING]))
        case "budget":
            return _relocked(replace(then.for_budget(), preset=BUDGET))
        case "lock":
            return _relocked(then.with_ks(allowed(then.ks)[0]) if value else then)
        case "method" | "init" | "output" | "counts":
            if then.preset == BUDGET:
                return _relocked(then.for_budget())
            if then.lock and not is_near(then.macs(then.ks), then.target):
                return replace(then.with_ks(*hold(then.ks, None, then.target, then.macs)), preset=BY_HAND)
        case "image" if value == OWN and not then.own:
            return replace(then, note="You have not uploaded an image yet. Choose a file below. Still showing "
                                      f"{now.shown}.")
        case "image":
            return replace(then, shown=value)
        case "k1" | "k2" | "k3" | "k4" | "k5":
            then = replace(then, preset=BY_HAND)
            if now.lock:
                # while one slider moves, the others follow from where it was first: there and back changes nothing
                block = int(name[1:]) - 1
                before = now.streak[1] if now.streak and now.streak[0] == block else now.ks
                asked = (*before[:block], value, *before[block + 1:])
                return replace(then.with_ks(*hold(asked, block, then.target, then.macs)), streak=(block, before))
    return then


def _relocked(setting: Setting) -> Setting:
    """The lock keeps the cost of what was just chosen."""
    return replace(setting, target=float(setting.macs(setting.ks)) if setting.lock else 0.0)
