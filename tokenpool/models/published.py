"""Methods to compare: each with the options its authors published it with, and ours.

`reproduce --peers`, `bench`, `dense` and `finetune --system` accept their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenpool.core.checks import one_of
from tokenpool.core.methods import METHODS
from tokenpool.models.vit import OFF_THE_SHELF


@dataclass(frozen=True)
class NamedMethod:
    name: str
    options: dict[str, Any] = field(hash=False)     # of PooledViT
    fitted: bool = False                            # K per block by fit_schedule; else geometric
    description: str = ""
    published: bool = True                          # with its authors' options; False: with some of ours

    @property
    def label(self) -> str:
        return self.name + (", fitted K" if self.fitted else "")


_INSIDE: dict[str, Any] = dict(position="before_mlp")
_COUNTS: dict[str, Any] = _INSIDE | dict(carry_counts=True)
_KEYS: dict[str, Any] = _COUNTS | dict(metric="keys")
OURS = NamedMethod("tokenpool", OFF_THE_SHELF, True, "OFF_THE_SHELF: Ward's clustering of directions", False)

#: options are those of the papers or their code (docs/choices.md has the marks)
NAMED_METHODS = (
    OURS,
    NamedMethod("tokenpool", OFF_THE_SHELF, False, "the same, K geometric", False),
    NamedMethod("K-Medoids", OFF_THE_SHELF | dict(method="k_medoids", init="farthest_first"), True, "our options",
                False),
    NamedMethod("WK-Medoids", dict(method="wk_medoids"), description="Token Pooling: top-K init"),
    NamedMethod("WK-Means", dict(method="wk_means"), description="Token Pooling: top-K init"),
    NamedMethod("ToMe", dict(method="tome", **_KEYS), description="bipartite matching of keys"),
    NamedMethod("ToMe", dict(method="tome", **_KEYS), True, "the same, K as ours", False),
    NamedMethod("ToMe on tokens", dict(method="tome", **_COUNTS), False, "our metric", False),
    NamedMethod("ToMe on tokens", dict(method="tome", **_COUNTS), True, "our metric and K", False),
    NamedMethod("PiToMe", dict(method="pitome", **_KEYS), description="energy-ordered matching of keys"),
    NamedMethod("ATC", dict(method="agglomerative", **_KEYS), description="agglomerative, keys, average linkage"),
    NamedMethod("ATC", dict(method="agglomerative", **_KEYS), True, "the same, K as ours", False),
    NamedMethod("ATC on tokens", dict(method="agglomerative", **_COUNTS), True, "our metric and K", False),
    NamedMethod("DPC-KNN", dict(method="dpc_knn"), description="TCFormer's density peaks"),
    NamedMethod("EViT", dict(method="evit", **_INSIDE), description="class token's attention, the rest fused"),
    NamedMethod("ATS", dict(method="ats", **_INSIDE), description="sampling by the class token's attention"),
    NamedMethod("top-K, class token", dict(method="top_k_class", **_INSIDE), description="class token's attention"),
    NamedMethod("top-K (PoWER-BERT)", dict(method="top_k", **_INSIDE), description="attention received"),
    NamedMethod("grid average", dict(method="grid_average"), description="averages of cells, whatever the tokens"),
    NamedMethod("random", dict(method="random"), description="random tokens"),
)

#: name -> options of PooledViT; without those whose name is a method's
NAMED = {c.name: c.options for c in NAMED_METHODS if not c.fitted and c.name not in METHODS}
_OPTIONS = NAMED | {c.name: c.options for c in NAMED_METHODS if c.fitted}

#: methods that can be finetuned; their names are part of a run's folder
TRAINABLE = tuple(name for name in _OPTIONS if " " not in name)


def options_of(name: str, init: str = "", counts: bool = False) -> dict[str, Any]:
    """Options of PooledViT for a named method, or for a method with its init and counts."""
    return _OPTIONS.get(name) or dict(method=name, init=init or None, carry_counts=counts)


def chosen(methods: Sequence[str] | None) -> tuple[NamedMethod, ...]:
    """Ours, and those whose name or method is in `methods`; a method that none of them uses with its defaults."""
    if not methods:
        return NAMED_METHODS
    names = {c.name.lower() for c in NAMED_METHODS}
    for name in methods:
        if name.lower() not in names:
            one_of("method", name, METHODS, f"Or one of {', '.join(dict.fromkeys(c.name for c in NAMED_METHODS))}.")
    asked = {name.lower() for name in methods}
    found = [c for c in NAMED_METHODS if c == OURS or {c.name.lower(), c.options["method"]} & asked]
    known = {c.options["method"] for c in found} | names
    return (*found, *(NamedMethod(m, dict(method=m), description="PooledViT's defaults") for m in methods
                      if m.lower() not in known))
