"""Notebook 07: the three steps, a run and its folder, killed and resumed, and what finetuning gives back."""

from __future__ import annotations

import dataclasses
import functools
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import timm
import torch
from plotly.subplots import make_subplots
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import tokenpool as tp
from tokenpool.data.weights import data_folder
from tokenpool.lab.kit.exercises import Wrong, ensure, exercise, expect
from tokenpool.lab.kit.figure import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from tokenpool.lab.kit.predictions import Prediction
from tokenpool.lab.kit.session import shipped_rows
from tokenpool.lab.widgets.controls import Choice, Number
from tokenpool.lab.widgets.explorer import Explorer
from tokenpool.report import board
from tokenpool.report.claims import Table, gap
from tokenpool.train import Stop, loop
from tokenpool.train.loader import open_train
from tokenpool.train.recipe import Recipe, load_preset

PHOTOGRAPHS, PEBBLES = "imagenet50_cpu", "pebbles"
NAMES = {PHOTOGRAPHS: "photographs", PEBBLES: "pebbles"}

#: the systems that were finetuned, and how each is drawn: colour, symbol, dash
FAMILIES = (
    board.Curve("WK-Medoids, top-K start (the paper's)", "wk_medoids", (GREEN, "triangle-up", "solid"), "top_k"),
    board.Curve("WK-Medoids, random start", "wk_medoids", (INK, "triangle-left", "dot"), "random"),
    board.Curve("WK-Medoids, farthest-first start", "wk_medoids", (BLUE, "triangle-right", "dash"), "farthest_first"),
    board.Curve("WK-Medoids, farthest-first, counts", "wk_medoids", (PURPLE, "star", "solid"), "farthest_first", True),
    board.Curve("K-Medoids, top-K start", "k_medoids", (ORANGE, "triangle-down", "dash"), "top_k"),
    board.Curve("WK-Means, top-K start", "wk_means", (BLUE, "circle", "solid"), "top_k"),
    board.Curve("K-Means, top-K start", "k_means", (GREY, "hexagon", "dash"), "top_k"),
    board.Curve("K-Means, farthest-first, counts", "k_means", (INK, "star-square", "solid"), "farthest_first", True),
    board.Curve("top-K (PoWER-BERT)", "top_k", (ORANGE, "square", "solid")),
    board.Curve("importance", "importance", (PURPLE, "diamond", "dash")),
    board.Curve("importance, with replacement", "importance_with_replacement", (GREY, "diamond-tall", "dot")),
    board.Curve("random", "random", (INK, "x", "dot")),
    board.Curve("average on the grid", "grid_average", (BLUE, "pentagon", "dashdot")),
    board.Curve("convolution", "convolution", (GREY, "bowtie", "dashdot")),
    board.Curve("DynamicViT", "dynamic_vit", (PURPLE, "cross", "dash")),
    board.Curve("plain model", "plain", (INK, "asterisk-open", "solid")),
    board.Curve("WK-Medoids, learned K", "wk_medoids", (BLUE, "triangle-ne", "dash"), "top_k", searched=True),
    board.Curve("top-K, learned K", "top_k", (ORANGE, "diamond-wide", "dash"), searched=True),
    board.Curve("wider net, plain", "plain", (BLUE, "asterisk-open", "dot"), model="*/e252"),
    board.Curve("wider net, WK-Medoids", "wk_medoids", (BLUE, "triangle-se", "solid"), "top_k", model="*/e252"),
    board.Curve("normalised q and k, plain", "plain", (ORANGE, "asterisk-open", "dot"), qk="r1-learned"),
    board.Curve("normalised q and k, WK-Medoids", "wk_medoids", (ORANGE, "triangle-sw", "solid"), "top_k",
                qk="r1-learned"),
    board.Curve("tokenpool, off the shelf", "tokenpool", (BLUE, "circle-open", "solid"), counts=True),
    board.Curve("ToMe", "ToMe", (ORANGE, "square-open", "solid"), counts=True),
    board.Curve("ATC", "ATC", (PURPLE, "diamond-open", "solid"), counts=True),
    board.Curve("EViT", "EViT", (INK, "triangle-down-open", "dash")),
    board.Curve("patch merger", "patch_merger", (GREY, "x-open", "dash")),
)
LABELS = tuple(c.label for c in FAMILIES)
#: what the explorer offers to look at together
GROUPS = {
    "Token Pooling and scores": (0, 3, 8, 9, 10, 11, 15),
    "clustering algorithms": (0, 4, 5, 6, 15),
    "starts and counts": (0, 1, 2, 3, 7, 15),
    "other designs": (0, 3, 12, 13, 14, 15),
    "learned K, wider nets, normalised": (0, 8, 15, 16, 17, 18, 19, 20, 21),
    "what others do (pebbles only)": (0, 3, 14, 15, 22, 23, 24, 25, 26),
}


# ---- the recorded runs ----

@functools.lru_cache(maxsize=1)
def recorded() -> board.Evidence:
    """Rows and cards of the runs that ship: every finetuning, and the same system measured before it."""
    return board.read([data_folder() / "runs"])


def untouched_rows() -> pd.DataFrame:
    """The 421 rows of `make reproduce`: the shipped model pooled, nothing trained."""
    return shipped_rows("pebbles")


@functools.lru_cache(maxsize=4)
def table_of(preset: str) -> Table:
    return Table(recorded().rows, preset)


@functools.lru_cache(maxsize=1)
def recorded_table() -> pd.DataFrame:
    """A row a measurement, with what a choice needs: preset, stage, setting (system and budget, without the seed),
    seed, mmacs (clustering counted), mmacs_without_clustering, top1 in %, run."""
    parts = []
    for preset in NAMES:
        mine = recorded().rows[recorded().rows["preset"] == preset]
        for curve in FAMILIES:
            found = board.select(mine, curve, table_of(preset).first)
            budget = [r.schedule_name.removeprefix("search-vit-") or (f"-{r.saving:.0%}" if r.saving else "")
                      for r in found.itertuples()]
            parts.append(pd.DataFrame({
                "preset": preset, "stage": found["stage"].tolist(),
                "setting": [f"{curve.label} {b}".strip() for b in budget], "seed": found["train_seed"].tolist(),
                "mmacs": (1e3 * found["gmacs"]).round(1).tolist(),
                "mmacs_without_clustering": (1e3 * found["gmacs_without_clustering"]).round(1).tolist(),
                "top1": (100 * found["top1"]).round(1).tolist(), "run": found["run"].tolist()}))
    return pd.concat(parts, ignore_index=True)


def before_after(preset: str, saving: float) -> pd.DataFrame:
    """Systems of one budget that were measured before and after finetuning: system, before, after, half (points of
    top-1 in %, mean over seeds; half of the 95 % interval after finetuning), seeds."""
    mine = recorded().rows[(recorded().rows["preset"] == preset) & np.isclose(recorded().rows["saving"], saving)]
    rows = []
    for curve in FAMILIES:
        part = board.select(mine, curve, table_of(preset).first)
        then, now = (part[part["stage"] == stage] for stage in ("untouched", "finetuned"))
        if len(then) and len(now) and curve.model is None and not curve.qk:
            point = board.points(now, table_of(preset).noise).iloc[0]
            rows.append((curve.label, 100 * then["top1"].mean(), 100 * point["top1"], 100 * point["half"],
                         int(point["seeds"])))
    found = pd.DataFrame(rows, columns=["system", "before", "after", "half", "seeds"])
    return found.sort_values("after", ignore_index=True)


def plain_after(preset: str) -> float:
    """Top-1 in % of the plain model, trained on as long as the pooled ones."""
    return 100 * float(table_of(preset).setting("plain")["top1"].mean())


def given_back(preset: str, saving: float = 0.42) -> float:
    """Of what WK-Medoids from the paper's start loses, the share that finetuning gives back."""
    found = before_after(preset, saving).set_index("system").loc[LABELS[0]]
    return float((found["after"] - found["before"]) / (plain_after(preset) - found["before"]))


def rank_agreement() -> pd.DataFrame:
    """Does the order before finetuning tell the order after it? Spearman's correlation, by preset and budget."""
    rows = []
    for preset in NAMES:
        for saving in load_preset(preset).budgets:
            found = before_after(preset, saving)
            agree = found["before"].rank().corr(found["after"].rank())
            rows.append((NAMES[preset], saving, len(found), round(float(agree), 2)))
    return pd.DataFrame(rows, columns=["images", "saving", "systems", "agreement"])


def step_seconds() -> pd.DataFrame:
    """What each step took, from the cards: images, step, runs, median seconds of training."""
    rows = [(NAMES[preset], card["identity"]["job"]["step"], card["seconds"])
            for (preset, _), card in recorded().cards.items()]
    found = pd.DataFrame(rows, columns=["images", "step", "seconds"]).groupby(["images", "step"])["seconds"]
    return found.agg(runs="count", seconds="median").reset_index()


# ---- a small run that is stopped and resumed ----

#: everything that draws is on, so that a resumed run has something to get wrong
TINY = Recipe(epochs=3, batch_size=16, lr=1e-3, warmup_epochs=0.5, mixup=0.8, cutmix=1.0, drop_path=0.2, clip_grad=1.0,
              accumulate=2, augment="pebbles")


def tiny_run(folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
    """Twelve steps of a very small pooled ViT, with a checkpoint every other step; its weights afterwards.

    Args:
        folder: of the run; goes on from a checkpoint that lies there.
        stop_after: stop the run at the first report of this step or a later one, before it is saved.
    """
    torch.manual_seed(0)
    vit = timm.create_model("pebbles_vit", embed_dim=24, depth=3, num_heads=2, drop_path_rate=TINY.drop_path)
    system = tp.PooledViT(vit, schedule=[40, 20, 20], method="random")

    def tell(what: str, done: int, total: int) -> None:
        if stop_after is not None and done >= stop_after:
            raise Stop(f"after step {done} of {total}")

    def feed(rank: int, world: int) -> Any:
        return open_train("pebbles", vit, TINY, count=64, rank=rank, world=world, cache=folder.parent / "cache")

    loop.fit(system, feed, TINY, folder, {"recipe": dataclasses.asdict(TINY)}, tell=tell, checkpoint_steps=2,
              tensorboard=False, cpu=True)
    return {name: value.clone() for name, value in system.state_dict().items()}


def checkpoint(folder: Path) -> tuple[int, dict[str, int]]:
    """The step a checkpoint was written at, and how many tensors of each kind are in it."""
    with safe_open(folder / loop.CHECKPOINT, "pt") as file:
        kinds = [name.split(".")[0] for name in file.keys()]             # noqa: SIM118  (not a dict)
        return int(file.metadata()["step"]), {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def forget_optimizer(folder: Path) -> None:
    """Leave only the weights in a checkpoint, as if no more had been saved."""
    path = folder / loop.CHECKPOINT
    with safe_open(path, "pt") as file:
        about = file.metadata()
        kept = {k: file.get_tensor(k) for k in file.keys() if k.startswith("model.")}     # noqa: SIM118
    save_file(kept, path, about)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """The same bits, tensor by tensor."""
    return all(torch.equal(value, b[name]) for name, value in a.items())


# ---- figures ----

def metrics(folder: Path) -> pd.DataFrame:
    """A run's metrics.csv."""
    return pd.read_csv(folder / "metrics.csv")


def recorded_metrics(preset: str, run: str) -> pd.DataFrame:
    """The dozen lines of metrics that a card keeps."""
    return pd.read_csv(io.StringIO("\n".join(recorded().cards[preset, run]["log"])))


def loss_figure(mine: pd.DataFrame, theirs: pd.DataFrame) -> go.Figure:
    """Loss and rate by epoch: of the run of this notebook, and of the recorded one."""
    fig = make_subplots(1, 2, horizontal_spacing=0.14, subplot_titles=["loss", "learning rate"])
    for name, part, colour, symbol, dash in (("this notebook's run", mine, BLUE, "circle", "solid"),
                                             ("the recorded run", theirs, ORANGE, "square", "dash")):
        for column, (field, digits) in enumerate((("loss", 3), ("lr", 6)), 1):
            fig.add_scatter(x=part["epoch"].round(3).tolist(), y=part[field].round(digits).tolist(), name=name,
                            mode="lines+markers", line=dict(color=colour, dash=dash), showlegend=column == 1,
                            marker=dict(symbol=symbol, size=7), legendgroup=name, row=1, col=column)
    fig.update_xaxes(title="epochs (passes over the images)", rangemode="tozero")
    fig.update_yaxes(rangemode="tozero", title="cross-entropy", col=1)
    fig.update_yaxes(title="AdamW's rate", tickformat=".4f", col=2)
    return fig.update_layout(title="Does it learn, and at which rate?", height=380, margin=dict(t=90),
                             legend=dict(orientation="h", y=-0.28))


def change_figure(found: pd.DataFrame, plain: float, title: str) -> go.Figure:
    """A line a system: hollow before finetuning, filled with its interval after it."""
    fig = go.Figure()
    for row in found.itertuples():
        fig.add_scatter(x=[round(row.before, 1), round(row.after, 1)], y=[row.system] * 2, mode="lines",
                        line=dict(color=GREY, width=1, dash="dot"), showlegend=False, hoverinfo="skip")
    fig.add_scatter(x=found["before"].round(1).tolist(), y=found["system"].tolist(), mode="markers", name="untouched",
                    marker=dict(color=ORANGE, symbol="circle-open", size=11, line=dict(width=2)))
    fig.add_scatter(x=found["after"].round(1).tolist(), y=found["system"].tolist(), mode="markers", name="finetuned",
                    marker=dict(color=BLUE, symbol="circle", size=10),
                    error_x=dict(type="data", array=found["half"].round(1).tolist(), thickness=1))
    fig.add_vline(x=plain, line=dict(color=INK, dash="dash", width=1))
    fig.add_annotation(x=plain, y=1.0, yref="paper", yanchor="bottom", text="plain", showarrow=False, font_size=13)
    fig.update_xaxes(title="top-1, %")
    fig.update_yaxes(automargin=True)
    return fig.update_layout(title=title, height=150 + 26 * len(found), legend=dict(orientation="h", y=-0.22),
                             margin=dict(l=250, t=80))


def agreement_figure(found: pd.DataFrame) -> go.Figure:
    """Spearman's correlation between the orders, by budget."""
    fig = go.Figure()
    looks = {"photographs": (BLUE, "circle", "solid"), "pebbles": (ORANGE, "square", "dash")}
    for images, part in found.groupby("images", sort=False):
        colour, symbol, dash = looks[str(images)]
        fig.add_scatter(x=(100 * part["saving"]).round().tolist(), y=part["agreement"].tolist(), name=str(images),
                        mode="lines+markers", line=dict(color=colour, dash=dash), marker=dict(symbol=symbol, size=10))
    fig.add_hline(y=0, line=dict(color=GREY, width=1))
    fig.update_xaxes(title="computations saved, %")
    fig.update_yaxes(title="rank correlation", range=[-0.5, 1.08])
    return fig.update_layout(title="Does the order before finetuning tell the order after it?", height=340,
                             legend=dict(orientation="h", y=-0.3))


# ---- the explorer: compute, draw, say ----

AXES = ("MACs, clustering counted", "MACs, clustering left out", "time an image (recorded speed)")
STAGES = ("both", "untouched", "finetuned")
BEST = "the best within the budget"


@dataclass(frozen=True)
class Point:
    """One system at one budget."""

    family: int
    stage: str
    cost: float         # % of the plain model's, on the chosen axis
    top1: float         # %
    half: float
    seeds: int
    mmacs: float
    speed: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class View:
    preset: str
    axis: str
    budget: int
    shown: tuple[Point, ...]
    best: dict[str, Point]          # stage -> the best within the budget
    level: dict[str, tuple[int, int]]    # stage -> (others that cannot be told from the best, others in the budget)
    run: str                        # whose card is told; "" where nothing fits
    card: dict[str, Any] | None


@functools.lru_cache(maxsize=4)
def _points(preset: str, axis: str) -> tuple[Point, ...]:
    """All systems of a preset, on one cost axis, as % of its first model, plain."""
    rows, table = recorded().rows, table_of(preset)
    mine = rows[rows["preset"] == preset]
    plain = board.points(table.setting("plain"), table.noise).iloc[0]
    found = []
    for number, curve in enumerate(FAMILIES):
        for stage in ("untouched", "finetuned"):
            # nothing is pooled in a plain model: untouched it is the base model
            want = "base" if curve.method == "plain" and stage == "untouched" else stage
            part = board.select(mine[mine["stage"] == want], curve, table.first)
            if not len(part):
                continue
            without = part.groupby(["saving", "schedule_name"])["gmacs_without_clustering"].mean()
            for p in board.points(part, table.noise if stage == "finetuned" else 0.0).itertuples():
                cost = {AXES[0]: p.mmacs / plain["mmacs"],
                        AXES[1]: 1e3 * without[p.saving, p.schedule_name] / plain["mmacs"],
                        AXES[2]: plain["speed"] / p.speed}[axis]
                found.append(Point(number, stage, round(100 * cost, 2), round(100 * p.top1, 2), round(100 * p.half, 2),
                                   int(p.seeds), round(p.mmacs, 1), round(p.speed), tuple(p.runs.split("|"))))
    return tuple(found)


def _rows_of(preset: str, point: Point) -> pd.DataFrame:
    rows = recorded().rows
    stages = ("untouched", "base") if point.stage == "untouched" else ("finetuned",)
    return rows[(rows["preset"] == preset) & rows["run"].isin(point.runs) & rows["stage"].isin(stages)]


@functools.lru_cache(maxsize=256)
def browse(preset: str, axis: str, stage: str, group: str, budget: int, run: str) -> View:
    """What is shown, what is best within the budget, and one card."""
    stages = STAGES[1:] if stage == "both" else (stage,)
    shown = tuple(p for p in _points(preset, axis) if p.family in GROUPS[group] and p.stage in stages)
    best, level = {}, {}
    for s in stages:
        inside = [p for p in shown if p.stage == s and p.cost <= budget]
        if not inside:
            continue
        best[s] = max(inside, key=lambda p: p.top1)
        rivals = {}
        for p in inside:                                    # each other system at its best within the budget
            if p.family != best[s].family and (p.family not in rivals or p.top1 > rivals[p.family].top1):
                rivals[p.family] = p
        noise = table_of(preset).noise if s == "finetuned" else 0.0
        ours = _rows_of(preset, best[s])
        close = sum(gap(ours, _rows_of(preset, p), noise).low <= 0 for p in rivals.values())
        level[s] = close, len(rivals)
    told = run
    if run == BEST:
        last = best.get("finetuned") or best.get("untouched")
        told = last.runs[0] if last else ""
    return View(preset, axis, budget, shown, best, level, told, _card_of(told))


def _card_of(run: str) -> dict[str, Any] | None:
    return next((card for (_, name), card in recorded().cards.items() if name == run), None)


def browse_figure(v: View) -> go.Figure:
    """A curve a system and stage; the budget; a ring round the best; a cross on the run whose card is told."""
    fig = go.Figure()
    for number, curve in enumerate(FAMILIES):
        colour, symbol, dash = curve.look
        for stage in ("finetuned", "untouched"):
            mine = sorted((p for p in v.shown if p.family == number and p.stage == stage), key=lambda p: p.cost)
            done = stage == "finetuned"
            other = any(p.family == number and p.stage == "finetuned" for p in v.shown)
            fig.add_scatter(
                x=[p.cost for p in mine], y=[p.top1 for p in mine], name=curve.label, legendgroup=curve.label,
                mode="lines+markers", showlegend=bool(mine) and (done or not other),
                line=dict(color=colour, dash=dash if done else "dot", width=2 if done else 1),
                marker=dict(symbol=symbol if done or symbol.endswith("-open") else f"{symbol}-open", size=9,
                            color=colour),
                error_y=dict(type="data", array=[p.half for p in mine] if done else [], thickness=1, width=3),
                hovertemplate=f"<b>{curve.label}</b>, {stage}<br>top-1 %{{y:.1f}} %<br>%{{x:.1f}} %<extra></extra>")
    fig.add_scatter(x=[v.budget, v.budget], y=[0, 100], mode="lines", name="budget",
                    line=dict(color=INK, dash="longdash", width=1))
    fig.add_scatter(x=[p.cost for p in v.best.values()], y=[p.top1 for p in v.best.values()], mode="markers",
                    name="best within the budget",
                    marker=dict(symbol="circle-open", size=22, color=INK, line=dict(width=2)))
    here = [p for p in v.shown if v.run in p.runs]
    fig.add_scatter(x=[p.cost for p in here], y=[p.top1 for p in here], mode="markers", name="the card's run",
                    marker=dict(symbol="square-open", size=17, color=ORANGE, line=dict(width=2)))
    fig.update_xaxes(title=f"{v.axis}, % of the plain model's", rangemode="tozero")
    lowest, highest = (edge([p.top1 for p in v.shown], default=50) for edge in (min, max))
    fig.update_yaxes(title="top-1, %", range=[max(0, lowest - 8), min(103, highest + 6)])
    return fig.update_layout(title=f"Which system for which budget? {NAMES[v.preset].capitalize()}", height=620,
                             margin=dict(b=230), legend=dict(orientation="h", y=-0.18, yanchor="top", font_size=13))


def browse_words(v: View) -> str:
    within = f"{NAMES[v.preset].capitalize()}, at most {v.budget} % of the plain model's " \
             f"{'time an image' if v.axis == AXES[2] else v.axis}"
    told = []
    for stage, p in v.best.items():
        close, others = v.level[stage]
        told.append(f"*{stage}*, best is {LABELS[p.family]} with {p.top1:.1f} ± {p.half:.1f} % at {p.cost:.0f} % "
                    f"({p.mmacs:.1f} MMACs, {p.seeds} seed{'s' if p.seeds > 1 else ''}); "
                    f"{_rivals(close, others)}")
    words = f"{within}: {'; '.join(told)}." if told else f"{within}: nothing that is shown is that cheap."
    if v.axis == AXES[2]:
        words += " Speeds were recorded in passing, on a machine with other work: an impression, not a benchmark."
    if v.axis == AXES[1]:
        words += " Left out is what the clustering itself costs; somebody has to pay it."
    return f"{words}\n\n{_card_words(v)}"


def _rivals(close: int, others: int) -> str:
    if not others:
        return "no other system shown is that cheap"
    if not close:
        return f"all others shown there, {others}, are below it beyond the interval"
    return f"of {others} others shown there, {close} cannot be told from it"


def _card_words(v: View) -> str:
    if not v.run:
        return "No card: no run fits."
    if v.card is None:
        return f"Card of {v.run}: none was kept."
    card, last = v.card, v.card["log"][-1].split(",")
    home = card["identity"]["job"]["preset"]
    elsewhere = f" It belongs to the {NAMES[home]}, which are not shown now." if home != v.preset else ""
    top1 = f" Top-1 {100 * card['top1']:.1f} %." if "top1" in card else ""
    threads = f"{card['threads']} thread{'s' if card['threads'] > 1 else ''}"
    return (f"Card of {v.run}: `{card['command']}`. {last[0]} steps, {card['seconds']} s on {card['device']}, "
            f"{threads}; torch {card['torch'].split('+')[0]}, commit {card['commit']}, {card['date'][:10]}; last loss "
            f"{float(last[2]):.3f}.{top1}{elsewhere}")


def browse_table(v: View) -> pd.DataFrame:
    """What is shown, the best first."""
    rows = [(LABELS[p.family], p.stage, f"{p.cost:.0f} %", p.mmacs, f"{p.top1:.1f} ± {p.half:.1f}", p.seeds,
             int(p.speed)) for p in sorted(v.shown, key=lambda p: -p.top1)[:40]]
    return pd.DataFrame(rows, columns=["system", "stage", "cost", "MMACs", "top-1, %", "seeds", "images/s"])


def best_of(v: View) -> tuple[str, float, str] | None:
    """The number to watch: the best top-1 within the budget."""
    if not v.best:
        return None
    stage, p = list(v.best.items())[-1]
    return f"best top-1 on {NAMES[v.preset]}, {stage},", p.top1, "{:.1f} %"


def explore() -> Explorer:
    runs = (BEST, *sorted(run for _, run in recorded().cards))
    return Explorer({"preset": Choice("Images", {v: k for k, v in NAMES.items()}, PEBBLES),
                     "axis": Choice("Cost", AXES), "stage": Choice("Stage", STAGES),
                     "group": Choice("Systems", tuple(GROUPS)),
                     "budget": Number("Budget, % of the plain model", 60, 20, 100, 5),
                     "run": Choice("Run card", runs)},
                    browse, browse_figure, browse_words, browse_table, height=620, measure=best_of)


# ---- predictions ----

PREDICTIONS = (
    Prediction("a", "The shipped model, 42 % fewer multiply-adds, WK-Medoids from the paper's start, nothing trained "
                    "afterwards. How many points of top-1 does it lose?",
               ("about 2", "about 20", "about 60"),
               answer=lambda lost: 0 if lost < 8 else 1 if lost < 40 else 2,
               why={0: "That is how the authors' words read: the model retains its accuracy (P). Theirs is a larger "
                       "net on other images; from another start ours retains it too (notebook 04).",
                    2: "Most tokens of an image say what their neighbours say; losing some of the rest costs, but not "
                       "everything."},
               tell=lambda lost: f"{lost:.1f} points"),
    Prediction("b", "And of that loss, how much does finetuning for two epochs on six thousand images give back?",
               ("less than a quarter", "a good part, but not all", "all of it"),
               answer=lambda share: 0 if share["pebbles"] < 0.25 else 1 if share["pebbles"] < 0.9 else 2,
               why={0: "The net can learn to live with merged tokens: it never saw one while it was trained.",
                    2: "Hoped for, and true from another start: farthest-first with carried counts ends where the "
                       "plain model does. From the top-K start a gap stays."},
               tell=lambda share: " and ".join(f"{v:.0%} on {k}" for k, v in share.items())),
)


# ---- exercises ----

@exercise("a", minutes=5, level=1, hints=(
    "How many *whole* batches do the images fill? The rest of an epoch is left out.",
    "That many per epoch, times the epochs; epochs may be a fraction, so round at the very end.",
    "`max(1, round(epochs * (images // batch)))`"))
def steps(images, batch, epochs):
    return max(1, round(epochs * (images // batch)))


@steps.check_by
def _(answer):
    expect(answer(1024, 64, 3), 48, "1024 images fill 16 batches of 64, and there are three epochs.")
    got = float(answer(6000, 128, 2))
    ensure(got != 94, "94 counts the last, half-filled batch of each epoch. The loop leaves it out: every step sees a "
                      "whole batch.")
    ensure(got != 93, "93 puts the rests of the two epochs together to one more batch. Each epoch leaves out its own: "
                      "whole batches first, then times the epochs.")
    ensure(abs(got - 93.75) > 1e-6, "A step is a whole number: 6000 / 128 is no number of batches.")
    expect(got, 92, "6000 images, batches of 128, two epochs.")
    expect(answer(6000, 128, 0.2), 9, "Warm-up for a fifth of an epoch: 0.2 x 46 steps, rounded at the end.")
    expect(answer(640, 64, 0.01), 1, "However short, one step is taken.")


@exercise("b", minutes=6, level=2, hints=(
    "`batch_size` is what one step of the optimiser sees, whatever fits the memory. `accumulate` is the number of "
    "parts it is computed in.",
    "`dataclasses.replace(base, epochs=base.epochs / 10, ...)` keeps everything that you do not name.",
    "256 images in parts of 64 are 4 parts. The rate is `base.lr / 3`; the precision is called \"bf16\"."))
def my_recipe(base):
    return dataclasses.replace(base, epochs=base.epochs / 10, batch_size=256, lr=base.lr / 3, accumulate=4,
                               precision="bf16")


@my_recipe.check_by
def _(answer):
    for base in (load_preset("imagenet50").base, replace(Recipe(300, 1024, 3e-4), crop=0.5, seed=7)):
        got = answer(base)
        ensure(isinstance(got, Recipe), f"A Recipe is wanted; {type(got).__name__} came.")
        ensure(got.batch_size != 64, "The optimiser's step is to see 256 images. 64 is what fits the memory: say how "
                                     "many parts with `accumulate`.")
        expect(got.batch_size, 256, "One step of the optimiser sees 256 images, all parts together.")
        ensure(got.accumulate != 64, "`accumulate` is the *number* of parts, not the images in one.")
        ensure(got.accumulate != 1, "With accumulate=1 all 256 images are in memory at once, and it holds 64.")
        expect(got.accumulate, 4, "256 images in parts of 64.")
        ensure(abs(got.epochs - base.epochs) > 1e-9, "That is as long as the base took: finetuning takes a tenth.")
        expect(got.epochs, base.epochs / 10, "A tenth of the base's epochs.")
        ensure(abs(got.lr - base.lr) > 1e-12, "That is the base's own rate. It is chosen for random weights; good ones "
                                              "are disturbed less by a third of it.")
        expect(got.lr * 1e6, base.lr / 3 * 1e6, "A third of the base's rate (in millionths).")
        ensure(got.precision == "bf16", "The precision is still float32. Say precision=\"bf16\".")
        lost = [f.name for f in dataclasses.fields(Recipe)
                if f.name not in ("epochs", "batch_size", "lr", "accumulate", "precision")
                and getattr(got, f.name) != getattr(base, f.name)]
        ensure(not lost, f"You were to change five things; {', '.join(lost)} changed too. `Recipe(...)` begins from "
                         "DeiT's defaults, `dataclasses.replace(base, ...)` from the base.")


def _toy_rows() -> pd.DataFrame:
    """Nine invented rows; every typical mistake picks another setting."""
    rows = [(PEBBLES, "finetuned", "medoids", 0, 19.7, 18.8, 92.0),
            (PEBBLES, "finetuned", "medoids", 1, 19.7, 18.8, 93.0),
            (PEBBLES, "finetuned", "means", 0, 23.0, 17.0, 96.0),
            (PEBBLES, "untouched", "untouched one", 0, 19.0, 18.0, 97.0),
            (PHOTOGRAPHS, "finetuned", "elsewhere", 0, 18.0, 17.5, 99.0),
            (PEBBLES, "finetuned", "plain", 0, 49.2, 49.2, 99.7),
            (PEBBLES, "finetuned", "lucky", 0, 19.5, 19.0, 95.0),
            (PEBBLES, "finetuned", "lucky", 1, 19.5, 19.0, 86.0),
            (PEBBLES, "finetuned", "cheap", 0, 12.0, 11.5, 80.0)]
    names = ["preset", "stage", "setting", "seed", "mmacs", "mmacs_without_clustering", "top1"]
    return pd.DataFrame(rows, columns=names)


@exercise("c", minutes=8, level=2, hints=(
    "Three conditions on the rows, joined with `&`: the preset, the stage, the cost with clustering.",
    "A setting may have several seeds: `mine.groupby(\"setting\")[\"top1\"].mean()` is a mean for each.",
    "`.idxmax()` of those means is the name wanted."))
def choose(rows, preset, budget):
    mine = rows[(rows["preset"] == preset) & (rows["stage"] == "finetuned") & (rows["mmacs"] <= budget)]
    return mine.groupby("setting")["top1"].mean().idxmax()


_CHOICES = {
    "means": "It chose `means`, which costs 23 MMACs once its clustering is counted: over the budget of 20. Use "
             "`mmacs`.",
    "untouched one": "It chose a row that was never finetuned. Untouched and finetuned systems are different goods: "
                     "`stage` tells them apart.",
    "elsewhere": "It chose a system of another preset. Top-1 on other images is another quantity.",
    "plain": "It chose the plain model: 49 MMACs where 20 were allowed. Where is the budget?",
    "lucky": "It chose `lucky`, which has the best single run and, over its two seeds, a lower mean than `medoids`. "
             "Average over the seeds first.",
    "cheap": "It chose the cheapest system. Anything up to the budget may be spent: the highest top-1 is wanted.",
}


@choose.check_by
def _(answer):
    toy = _toy_rows()
    got = answer(toy, "pebbles", 20)
    if isinstance(got, pd.Series | pd.DataFrame) or not isinstance(got, str):
        raise Wrong(f"The name of a setting is wanted, as a string; {type(got).__name__} came.")
    if got in _CHOICES:
        raise Wrong(_CHOICES[got])
    expect(got, "medoids", "Nine invented rows, 20 MMACs:")
    expect(answer(toy, "pebbles", 15), "cheap", "Nine invented rows, 15 MMACs: only one system is that cheap.")
    for preset, budget in (("pebbles", 30), ("pebbles", 20), (PHOTOGRAPHS, 14), (PHOTOGRAPHS, 40)):
        expect(answer(recorded_table(), preset, budget), choose.solution(recorded_table(), preset, budget),
               f"Recorded rows, {preset}, {budget} MMACs.")


#: the notebook's small setting: the same job on fewer images; the full one is the preset's recipe as it is
FEW = dict(images=1024, settings={"epochs": "3", "batch_size": "64"})
