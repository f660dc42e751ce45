"""How many tokens to keep after each block: K = [K_1 .. K_L], patch tokens only (class and register tokens stay).

K is the same for every image, so shapes are static (paper; S). The paper finds it with PoWER-BERT's soft masks;
`from_soft_masks` reads those. Without a search, a geometric series is the simple choice: `geometric`, and
`for_saving`, which finds the series that meets a cost budget. `by_error` finds the K with the least loss within a
budget, from the loss of each block at each K; it needs no training and no labels (I: neither the paper nor PoWER-BERT
has it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


class OutOfReach(ValueError):
    """A saving that no schedule reaches: too large, or the clustering costs more than it saves."""


def check_schedule(schedule: Sequence[int], depth: int, n: int, prefix: int = 0) -> tuple[int, ...]:
    """A schedule as a tuple; otherwise a ValueError with what was passed, what is allowed and what to type.

    Args:
        depth: number of blocks. n: patch tokens of the model. prefix: tokens that are never pooled.
    """
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        raise ValueError(f"A schedule is a list with the tokens to keep after each block. Got {schedule!r}. "
                         f"For this model: schedule=[...] with {depth} numbers, or keep=0.9, or saving=0.42.")
    ks = tuple(schedule)
    if len(ks) != depth:
        raise ValueError(f"The schedule has {len(ks)} entries, the model {depth} blocks. "
                         f"Give the tokens to keep after each block, {depth} numbers.")
    before = n
    for block, k in enumerate(ks):
        if isinstance(k, bool) or not isinstance(k, int):
            raise ValueError(f"schedule[{block}] is {k!r}, which is not a number of tokens. Use ints from 1 to {n}.")
        if k < 1:
            raise ValueError(f"schedule[{block}] = {k} keeps no token. Use at least 1.")
        if k > n:
            prefix_note = (f"{n + prefix} - {prefix} that can be pooled ({prefix} prefix "
                           f"token{'s are' if prefix > 1 else ' is'} kept)" if prefix else f"{n} there are")
            raise ValueError(f"schedule[{block}] = {k} asks for more tokens than the {prefix_note}. Use k <= {n}.")
        if k > before:
            raise ValueError(f"The schedule rises from {before} to {k} at schedule[{block}]; removed tokens "
                             f"do not come back. Use numbers that stay equal or fall.")
        before = k
    return ks


def geometric(n: int, depth: int, keep: float) -> tuple[int, ...]:
    """Keep the share `keep` of the tokens after each block but the last: round(n * keep^l), at least 1.

    Nothing is pooled after the last block: it would save nothing, and a class-token head would not see it.

    >>> geometric(196, 12, 0.9)
    (176, 159, 143, 129, 116, 104, 94, 84, 76, 68, 62, 62)
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} is not a share of tokens. Use a number above 0 and up to 1, such as 0.9.")
    ks = [max(1, round(n * keep ** (block + 1))) for block in range(depth - 1)]
    return tuple(ks + ks[-1:]) if ks else (n,)


def for_saving(saving: float, n: int, depth: int, macs: Callable[[Sequence[int]], int]) -> tuple[int, ...]:
    """The geometric schedule whose cost is (1 - saving) times the plain model's, to within 1 % of the latter.

    Args:
        saving: share of the multiply-adds to save, clustering counted in. 0 keeps everything.
        macs: cost of a schedule, clustering included; called some fifty times.

    Raises:
        ValueError: no geometric schedule saves that much, or comes within 1 % of it.
    """
    if isinstance(saving, bool) or not 0 <= saving < 1:
        raise ValueError(f"saving={saving} is not a share of the computations. "
                         "Use a number from 0 up to (not including) 1; the paper's is 0.42.")
    everything = (n,) * depth
    if saving == 0:
        return everything
    plain = macs(everything)
    target = (1 - saving) * plain
    low, high = 0.0, 1.0
    least = geometric(n, depth, 1e-9)
    if macs(least) > target * 1.005:
        raise OutOfReach(f"saving={saving} cannot be reached: one token after the first block still costs "
                         f"{macs(least) / plain:.1%} of the plain model. Use saving <= {1 - macs(least) / plain:.2f}.")
    for _ in range(50):
        middle = (low + high) / 2
        if macs(geometric(n, depth, middle or 1e-9)) > target:
            high = middle
        else:
            low = middle
    best = min((geometric(n, depth, max(rate, 1e-9)) for rate in (low, high)), key=lambda ks: abs(macs(ks) - target))
    if abs(macs(best) - target) > 0.01 * plain:
        raise OutOfReach(f"No geometric schedule saves {saving:.0%}: the nearest saves {1 - macs(best) / plain:.1%}, "
                         "because the clustering itself costs more than dropping a few tokens saves. "
                         "Use a larger saving, a cheaper method, or give schedule=[...].")
    return best


def from_soft_masks(masks: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """PoWER-BERT's reading of learned soft masks: K_l = floor(sum of mask l), at least 1, never rising (P).

    Args:
        masks: one row per block, each value in [0, 1]: how much of the token of that rank is kept.

    >>> from_soft_masks([[1, 1, 0.9, 0.4], [1, 1, 1, 0.9], [0.2, 0.1, 0, 0]])
    (3, 3, 1)
    """
    ks: list[int] = []
    for block, mask in enumerate(masks):
        values = [float(v) for v in mask]
        if not all(0 <= v <= 1 for v in values):
            raise ValueError(f"Soft mask {block} holds values from {min(values):g} to {max(values):g}; "
                             "clip them to [0, 1] as the search does.")
        # 1e-6: 0.1 + 0.2 + ... may miss a whole number by rounding
        k = max(1, int(sum(values) + 1e-6))
        ks.append(min(k, ks[-1]) if ks else k)
    return tuple(ks)


def levels(n: int, rate: float) -> tuple[int, ...]:
    """Numbers of tokens from n to 1, each about `rate` times the one before.

    >>> levels(64, 0.5)
    (64, 32, 16, 8, 4, 2, 1)
    """
    ks = [n]
    while ks[-1] > 1:
        ks.append(max(1, min(ks[-1] - 1, round(ks[-1] * rate))))
    return tuple(ks)


def between(curve: Mapping[int, float], ks: Sequence[int]) -> dict[int, float]:
    """A measured curve K -> error, made monotone (it never falls as K falls), interpolated at other K.

    Linear in log K and log error, because errors fall like a power of K; linear in the error itself next to an error
    of 0. A curve linear in the error everywhere would make the measured K look better than those between.

    >>> between({16: 0.0, 8: 0.25, 4: 1.0, 2: 1.0, 1: 4.0}, [16, 8, 4, 2, 1])
    {16: 0.0, 8: 0.25, 4: 1.0, 2: 1.0, 1: 4.0}
    """
    known = sorted(curve, reverse=True)
    at = [-math.log(k) for k in known]
    errors = np.maximum.accumulate([curve[k] for k in known])
    first = max(1, int((errors <= 0).sum()))                 # errors[first:] are above 0
    found = {}
    for k in ks:
        straight = float(np.interp(-math.log(k), at, errors))
        bent = float(np.exp(np.interp(-math.log(k), at[first:], np.log(errors[first:])))) if first < len(at) else 0.0
        found[k] = bent if first < len(at) and k <= known[first] else straight
    return found


def by_error(errors: Sequence[Mapping[int, float]], cost: Callable[[int, int, int], int], budget: int,
             bins: int = 4096) -> tuple[int, ...]:
    """The schedule with the least loss within a cost budget: exact, by dynamic programming.

    Going from n tokens to k in block l loses errors[l][k] - errors[l][n], and the losses of all blocks add up (I).
    Nothing is pooled after the last block: it would save nothing.

    Args:
        errors: for each block but the last, error by number of tokens kept there: the same numbers of tokens for all
            blocks, the largest being N.
        cost: (block, tokens in, tokens out) -> multiply-adds of the block, its pooling, and for the last block of what
            follows it.
        budget: of all blocks together, never exceeded.
        bins: costs are rounded up to budget / bins, so that the sum is exact to depth / bins of the budget; where the
            budget is no larger than bins, altogether.

    Raises:
        ValueError: even one token after the first block costs more.

    >>> curve = {4: 0.0, 2: 1.0, 1: 5.0}
    >>> by_error([curve, {4: 0.0, 2: 0.5, 1: 9.0}], lambda block, n, k: n, budget=10)     # 4 + 4 + 2
    (4, 2, 2)
    """
    ks = sorted(errors[0], reverse=True)
    if any(sorted(curve, reverse=True) != ks for curve in errors):
        raise ValueError("The error curves do not have the same numbers of tokens. Measure all blocks at the same K.")
    unit = max(1, -(-budget // bins))
    width = max(budget, 0) // unit
    depth = len(errors) + 1
    # least[i, w]: smallest loss of all ways to have ks[i] tokens here at a cost of w or less
    least = np.full((len(ks), width + 1), np.inf)
    least[0] = 0.0
    origins: list[np.ndarray] = []
    price: list[np.ndarray] = []
    for block in range(depth):
        last = block == depth - 1
        spent = np.array([[-(-cost(block, n, k) // unit) if k <= n and (k == n or not last) else width + 1
                           for k in ks] for n in ks])
        new, origin = np.full_like(least, np.inf), np.zeros(least.shape, dtype=np.int32)
        for i, n in enumerate(ks):
            for j, k in enumerate(ks):
                w = int(spent[i, j])
                if w > width:
                    continue
                loss = least[i, :width + 1 - w] + (0.0 if last else errors[block][k] - errors[block][n])
                better = loss < new[j, w:]
                new[j, w:][better] = loss[better]
                origin[j, w:][better] = i
        least = new
        origins.append(origin)
        price.append(spent)
    at, w = int(least[:, width].argmin()), width
    if not np.isfinite(least[at, width]):
        smallest = cost(0, ks[0], ks[-1]) + sum(cost(block, ks[-1], ks[-1]) for block in range(1, depth))
        raise OutOfReach(f"A budget of {budget} multiply-adds cannot be met: one token after the first block still "
                         f"costs {smallest}. Use a smaller saving.")
    found = []
    for origin, spent in zip(reversed(origins), reversed(price), strict=True):
        before = int(origin[at, w])
        found.append(ks[at])
        w -= int(spent[before, at])
        at = before
    return tuple(reversed(found))
