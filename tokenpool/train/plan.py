"""The jobs behind each figure of the paper: `tokenpool plan` prints them, `tokenpool protocol` runs them.

Every job is one command with its own folder. So a scheduler can split the list in any way, and results are merged by
copying folders. Only the order of steps matters: base models first, then searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenpool.core.checks import one_of
from tokenpool.core.methods import METHODS
from tokenpool.train.recipe import STEPS, Job, Preset

_CLUSTERINGS = tuple(name for name, m in METHODS.items() if m.kind == "clustering")


def _finetune(preset: Preset, seeds: int, systems: Iterable[str], models: Iterable[str] | None = None,
              init: str = "top_k", counts: bool = False, **more: str | bool) -> list[Job]:
    return [Job(preset.name, "finetune", model, system, init if system in _CLUSTERINGS else "", counts,
                0.0 if system == "plain" else saving, seed=seed, **more)                  # type: ignore[arg-type]
            for model in models or [next(iter(preset.models))]
            for seed in range(seeds)
            for saving in preset.budgets
            for system in systems]


def _bases(preset: Preset) -> list[Job]:
    return [Job(preset.name, "base", model) for model in preset.models]


def _searched(preset: Preset, seeds: int) -> list[Job]:
    model = next(iter(preset.models))
    found = [Job(preset.name, "search", model, penalty=p) for p in preset.penalties]
    return found + [Job(preset.name, "finetune", model, system, "top_k" if system == "wk_medoids" else "",
                        schedule=search.name, seed=seed)
                    for search in found for seed in range(seeds) for system in ("top_k", "wk_medoids")]


#: figure -> (what it compares, its jobs)
FIGURES: dict[str, tuple[str, Callable[[Preset, int], list[Job]]]] = {
    "1b": ("the trade-off: WK-Medoids against the plain model", lambda p, s: _finetune(p, s, ("plain", "wk_medoids"))),
    "3a": ("Token Pooling, PoWER-BERT, importance, random, width",
           lambda p, s: _bases(p) + _finetune(p, s, ("plain", "wk_medoids", "top_k", "importance", "random"))),
    "3b": ("Token Pooling and DynamicViT", lambda p, s: _finetune(p, s, ("wk_medoids", "dynamic_vit"))),
    "4": ("WK-Medoids on every width", lambda p, s: _finetune(p, s, ("plain", "wk_medoids"), p.models)),
    "5a": ("uses of the significance score",
           lambda p, s: _finetune(p, s, ("top_k", "importance", "importance_with_replacement", "random"))),
    "5b": ("clustering algorithms", lambda p, s: _finetune(p, s, _CLUSTERINGS)),
    "6": ("initialisations of WK-Medoids",
          lambda p, s: [j for init in ("top_k", "random", "farthest_first")
                        for j in _finetune(p, s, ("wk_medoids",), init=init)]),
    "8": ("convolution and average pooling on the grid",
          lambda p, s: _finetune(p, s, ("wk_medoids", "grid_average")) + _finetune(p, 1, ("convolution",))),
    "10": ("normalised keys and queries",
           lambda p, s: [j for alpha in ("learned", "one") for qk in ("r1", "r2")
                         for j in _finetune(p, s, ("plain", "top_k", "wk_medoids"), qk=qk, alpha=alpha)]),
    "11": ("PoWER-BERT on the middle widths",
           lambda p, s: _finetune(p, s, ("top_k", "wk_medoids"), [m for m in p.models if m in ("e252", "e318")])),
    "search": ("schedules found by the search, and geometric ones", _searched),
    "counts": ("farthest-first initialisation and carried counts (not in the paper)",
               lambda p, s: _finetune(p, s, ("wk_medoids", "k_means"), init="farthest_first", counts=True)),
    "peers": ("methods of others, and our recommendation off the shelf (not in the paper)",
              lambda p, s: _finetune(p, s, ("tokenpool", "ToMe", "ATC", "EViT", "patch_merger"))),
}
#: figures that use only the first model of the preset
ONE_BASE = ("1b", "3b", "5a", "5b", "6", "8", "search", "counts", "peers")
#: figures that need no training, and why
WITHOUT_RUNS = {
    "7": "it uses public weights. Type tokenpool reproduce --model deit_small_patch16_224 --pretrained --data ...",
    "9": "every finetuning first measures its system without finetuning",
    "12": "every row has its images per second",
}


def plan(figures: Iterable[str], preset: Preset, seeds: int = 1) -> list[Job]:
    """The jobs of some figures, each once: base models, then searches, then finetunings.

    Args:
        figures: names with or without "fig", such as "fig3" or "5b"; "all".
        seeds: finetunings per setting.
    """
    if seeds < 1:
        raise ValueError(f"Got --seeds {seeds}. Use 1 or more.")
    wanted: dict[Job, None] = {}
    for name in figures:
        short = name.lower().removeprefix("fig").removeprefix(".")
        chosen = list(FIGURES) if short == "all" else [f for f in FIGURES if f == short or f.rstrip("ab") == short]
        if not chosen:
            if short in WITHOUT_RUNS:
                raise ValueError(f"Figure {short} needs no training: {WITHOUT_RUNS[short]}.")
            one_of("figure", short, [*FIGURES, "all"], "")
        for figure in chosen:
            wanted |= dict.fromkeys(FIGURES[figure][1](preset, seeds))
    needed = [j.base for j in wanted if j.step != "base"]
    jobs = dict.fromkeys(j for j in [*needed, *wanted] if not (j.step == "base" and preset.has_base(j)))
    # all methods with one seed before the next seed
    return sorted(jobs, key=lambda j: (STEPS.index(j.step), j.seed if j.step == "finetune" else 0))
