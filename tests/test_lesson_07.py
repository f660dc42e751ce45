"""Notebook 07: its exercises say what is wrong, its numbers are those of the rows, its runs stop and resume."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from lessons import check_exercise, lesson, state_words

from tokenpool.measure.rows import unpack
from tokenpool.train import Stop
from tokenpool.train.recipe import Recipe, load_preset

runs = lesson("07")


# ---- exercises ----

def test_steps():
    check_exercise("07", "a", wrong=[
        (lambda p, b, e: e * -(-p // b), "half-filled batch"),
        (lambda p, b, e: int(p * e) // b, "Each epoch leaves out its own"),
        (lambda p, b, e: p * e / b, "whole number"),
        (lambda p, b, e: p // b, "three epochs"),
        (lambda p, b, e: int(e * (p // b)), "However short"),
        (lambda p, b, e: round(e * (p // b)), "However short")])


def test_my_recipe():
    right = dict(batch_size=256, accumulate=4, precision="bf16")

    def answer(base, **changes):
        return dataclasses.replace(base, **(dict(epochs=base.epochs / 10, lr=base.lr / 3) | right | changes))

    check_exercise("07", "b", wrong=[
        (lambda base: answer(base, batch_size=64), "64 is what fits the memory"),
        (lambda base: answer(base, accumulate=64), "the *number* of parts"),
        (lambda base: answer(base, accumulate=1), "and it holds 64"),
        (lambda base: answer(base, epochs=base.epochs), "finetuning takes a tenth"),
        (lambda base: answer(base, lr=base.lr), "chosen for random weights"),
        (lambda base: answer(base, lr=base.lr / 6), "A third of the base's rate"),
        (lambda base: answer(base, precision="no"), "still float32"),
        (lambda base: answer(base, precision="fp16"), "Did you mean"),
        (lambda base: Recipe(base.epochs / 10, 256, base.lr / 3, accumulate=4, precision="bf16"), "crop"),
        (lambda base: right, "A Recipe is wanted")])


def test_an_unfinished_recipe_is_not_wrong():
    stub = runs.my_recipe.check(lambda base: dataclasses.replace(base, epochs=..., lr=..., accumulate=...))
    assert stub.state == "open"


def test_choose():
    def of(rows, preset, budget, cost="mmacs", stage=("finetuned",), how="mean"):
        mine = rows[(rows["preset"] == preset) & rows["stage"].isin(stage) & (rows[cost] <= budget)]
        return mine.groupby("setting")["top1"].agg(how).idxmax()

    everywhere = {"untouched", "finetuned"}
    check_exercise("07", "c", wrong=[
        (lambda r, p, b: of(r, p, b, cost="mmacs_without_clustering"), "its clustering is counted"),
        (lambda r, p, b: of(r, p, b, stage=everywhere), "never finetuned"),
        (lambda r, p, b: of(r, p, b, how="max"), "Average over the seeds first"),
        (lambda r, p, b: of(r, p, 1e9), "Where is the budget"),
        (lambda r, p, b: of(r.assign(preset=p), p, b), "another preset"),
        (lambda r, p, b: r.loc[r["mmacs"].idxmin(), "setting"], "the cheapest system"),
        (lambda r, p, b: r.iloc[0], "as a string")])


# ---- numbers against the rows ----

def test_every_recorded_row_has_a_family_and_one_only():
    rows, table = runs.recorded().rows, runs.recorded_table()
    assert len(rows) == len(table)
    assert set(rows["run"]) == set(table["run"])
    assert sorted((1e3 * rows["gmacs"]).round(1)) == sorted(table["mmacs"])


def test_before_after_is_the_mean_of_the_rows():
    rows = runs.recorded().rows
    found = runs.before_after(runs.PHOTOGRAPHS, 0.42).set_index("system")
    mine = rows[(rows["preset"] == runs.PHOTOGRAPHS) & (rows["method"] == "wk_medoids") & (rows["init"] == "top_k")
                & np.isclose(rows["saving"], 0.42) & (rows["model"] == "imagenet50_cpu/ti") & (rows["qk"] == "")]
    for column, stage in (("before", "untouched"), ("after", "finetuned")):
        right = [unpack(t, 2500).mean() for t in mine[mine["stage"] == stage]["right"]]
        assert found.loc[runs.LABELS[0], column] == pytest.approx(100 * np.mean(right))
    assert found.loc[runs.LABELS[0], "seeds"] == 2
    assert "convolution" not in found.index                    # it has no untouched row


def test_given_back_is_a_share_of_what_was_lost():
    rows = runs.recorded().rows
    mine = rows[(rows["preset"] == "pebbles") & np.isclose(rows["saving"], 0.42) & (rows["method"] == "wk_medoids")
                & (rows["init"] == "top_k")].set_index("stage")["top1"]
    plain = rows[(rows["preset"] == "pebbles") & (rows["method"] == "plain")]["top1"].item()
    wanted = (mine["finetuned"] - mine["untouched"]) / (plain - mine["untouched"])
    assert runs.given_back("pebbles") == pytest.approx(wanted)


def test_rank_agreement_by_hand():
    found = runs.rank_agreement()
    assert len(found) == sum(len(load_preset(p).budgets) for p in runs.NAMES)
    one = runs.before_after(runs.PHOTOGRAPHS, 0.75)
    places = [np.argsort(np.argsort(one[c].to_numpy())) for c in ("before", "after")]
    n = len(one)
    wanted = 1 - 6 * ((places[0] - places[1]) ** 2).sum() / (n * (n * n - 1))           # no ties here
    at = found[(found["images"] == "photographs") & (found["saving"] == 0.75)]
    assert at["agreement"].item() == pytest.approx(wanted, abs=0.01)


def test_step_seconds_counts_every_card():
    assert runs.step_seconds()["runs"].sum() == len(runs.recorded().cards)


# ---- stopped and resumed ----

def test_a_stopped_run_ends_with_the_same_bits_only_with_the_optimizer(tmp_path):
    whole = runs.tiny_run(tmp_path / "whole")
    with pytest.raises(Stop, match="after step 8 of 12"):
        runs.tiny_run(tmp_path / "cut", stop_after=8)
    step, kinds = runs.checkpoint(tmp_path / "cut")
    assert step == 6
    assert kinds["optimizer"] == 3 * kinds["model"]            # two averages and a step count for each tensor
    assert runs.equal(whole, runs.tiny_run(tmp_path / "cut"))
    with pytest.raises(Stop):
        runs.tiny_run(tmp_path / "other", stop_after=8)
    runs.forget_optimizer(tmp_path / "other")
    assert set(runs.checkpoint(tmp_path / "other")[1]) == {"model"}
    assert not runs.equal(whole, runs.tiny_run(tmp_path / "other"))
    assert not runs.equal(whole, {k: v + (k.endswith("weight")) for k, v in whole.items()})
    assert len(runs.metrics(tmp_path / "cut")["step"].unique()) == len(runs.metrics(tmp_path / "cut"))


def test_recorded_metrics_are_a_few_lines_of_the_run():
    found = runs.recorded_metrics("pebbles", "finetune-vit-wk_medoids-top_k-save60-s0")
    assert found["step"].iloc[-1] == runs.steps.solution(6000, 128, 2) == 92
    assert (found["loss"] > 0).all()


# ---- figures and explorer ----

def test_figures_have_their_traces():
    line = pd.DataFrame({"epoch": [0.5, 1.0], "loss": [2.0, 1.0], "lr": [1e-4, 0.0]})
    fig = runs.loss_figure(line, line)
    assert len(fig.data) == 4
    assert [t.showlegend for t in fig.data] == [True, False, True, False]
    found = runs.before_after("pebbles", 0.42)
    fig = runs.change_figure(found, 99.7, "?")
    assert len(fig.data) == len(found) + 2
    assert list(fig.data[-1].x) == found["after"].round(1).tolist()
    assert len(runs.agreement_figure(runs.rank_agreement()).data) == 2


def test_best_within_a_budget_is_the_best_row():
    axis, group = runs.AXES[0], "starts and counts"
    view = runs.browse(runs.PEBBLES, axis, "finetuned", group, 60, runs.BEST)
    table = runs.recorded_table()
    labels = tuple(runs.LABELS[i] for i in runs.GROUPS[group])
    mine = table[(table["preset"] == "pebbles") & (table["stage"] == "finetuned")
                 & (table["mmacs"] <= 0.6 * 49.180608) & table["setting"].str.startswith(labels)]
    assert view.best["finetuned"].top1 == pytest.approx(mine["top1"].max(), abs=0.06)
    assert view.run == view.best["finetuned"].runs[0]
    assert view.card["run"] == view.run
    assert runs.browse(runs.PEBBLES, axis, "both", group, 20, runs.BEST).best == {}
    assert {i for group in runs.GROUPS.values() for i in group} == set(range(len(runs.LABELS)))


def test_leaving_the_clustering_out_moves_k_means_most():
    counted, without = (
        {(p.family, p.stage, p.mmacs): p.cost for group in list(runs.GROUPS)[:2]
         for p in runs.browse(runs.PEBBLES, a, "finetuned", group, 100, runs.BEST).shown} for a in runs.AXES[:2])
    moved = {runs.LABELS[key[0]]: counted[key] - without[key] for key in counted if 28 < key[2] < 29}
    assert moved["top-K (PoWER-BERT)"] == pytest.approx(0, abs=0.01)
    assert moved["K-Means, top-K start"] > 3 * moved["K-Medoids, top-K start"] > 0


def test_the_explorer_follows_every_control_to_its_corners():
    explorer = runs.explore()
    spoken, traces = {state_words(explorer)}, len(explorer.figure.data)
    first = min(run for _, run in runs.recorded().cards)
    for values in ({"preset": runs.PHOTOGRAPHS}, {"axis": runs.AXES[2]}, {"stage": "untouched"},
                   {"group": "starts and counts"}, {"budget": 100}, {"run": first}):
        explorer.set(**values)
        assert explorer.error is None, explorer.words
        spoken.add(state_words(explorer))
        assert len(explorer.figure.data) == traces
    assert len(spoken) == 7
    assert "impression, not a benchmark" in explorer.words
    for preset, stage in itertools.product(runs.NAMES, runs.STAGES):
        view = runs.browse(preset, runs.AXES[2], stage, "learned K, wider nets, normalised", 60, runs.BEST)
        assert runs.browse_words(view)
        assert len(runs.browse_table(view)) <= 40
    explorer.set(preset=runs.PEBBLES, axis=runs.AXES[1], stage="both", group="starts and counts", budget=20)
    assert "nothing that is shown is that cheap" in explorer.words


def test_a_card_of_the_other_images_says_so():
    run = next(r for p, r in runs.recorded().cards if p == runs.PHOTOGRAPHS)
    view = runs.browse(runs.PEBBLES, runs.AXES[0], "both", "starts and counts", 60, run)
    assert "not shown now" in runs.browse_words(view)
    assert not runs.browse_figure(view).data[-1].x


# ---- predictions ----

def test_predictions_follow_the_evidence():
    a, b = runs.PREDICTIONS
    assert [a.answer(lost) for lost in (2.0, 18.2, 60.0)] == [0, 1, 2]
    assert [b.answer({"pebbles": s, "photographs": 0.5}) for s in (0.1, 0.67, 1.0)] == [0, 1, 2]
    assert "18.2 points" in a.reveal(18.2, None).words
    assert a.reveal(18.2, 1).state == "right"
    assert "67% on pebbles" in b.reveal({"pebbles": 0.67, "photographs": 0.35}, 0).words


def test_the_small_setting_is_the_jobs_recipe_made_shorter():
    settings = runs.FEW["settings"]
    assert set(settings) <= {f.name for f in dataclasses.fields(Recipe)}
    changed = load_preset("pebbles").finetune.changed(settings)
    assert runs.FEW["images"] * changed.epochs < load_preset("pebbles").finetune_images
    assert torch.tensor(runs.steps.solution(runs.FEW["images"], changed.batch_size, changed.epochs)) == 48
