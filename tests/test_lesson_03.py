"""Notebook 03: exercises, toys, explorer."""

import itertools

import numpy as np
import pytest
import torch
from lessons import check_exercise, lesson, state_words

toys = lesson("03")


def test_chamfer():
    check_exercise("03", "a", [
        (lambda f, g: torch.cdist(f, g).square().min(0).values.sum(), "the minimum belongs to the K"),
        (lambda f, g: torch.cdist(f, g).min(1).values.sum(), "forget the square"),
        (lambda f, g: torch.cdist(f, g).square().min(1).values.mean(), "take a mean"),
        (lambda f, g: torch.cdist(f, g).square().sum(), "nothing is lost"),
        (lambda f, g: print(end=""), "Is there a `return`?"),
    ])


def test_best_stand_in():
    check_exercise("03", "b", [
        (lambda f, w: f.mean(0), "The weights change nothing"),
        (lambda f, w: (w[:, None] * f).sum(0) / len(f), "the number of tokens"),
        (lambda f, w: f[w.argmax()], "plain mean"),
        (lambda f, w: (w[:, None] * f).sum() / w.sum(), "shape"),
    ])


def test_counter_example():
    far = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    check_exercise("03", "c", [
        (lambda: (torch.zeros(3, 2), torch.ones(3)), "Return three things"),
        (lambda: (far, torch.tensor([0.5, 9.0, 0.1]), 2), "not smooth"),
        (lambda: (far, torch.ones(3), 3), "must leave something out"),
        (lambda: (far, torch.ones(3), 2), "at least ten times"),
        (lambda: (torch.rand(20, 2), torch.ones(20), 2), "At most 12 tokens"),
    ])


def test_the_best_subset_is_the_best():
    f = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    chosen, error = toys.best_subset(f, 3)
    pairs = np.square(f.numpy()[:, None] - f.numpy()[None]).sum(-1)
    everyone = {c: pairs[:, c].min(1).sum() for c in itertools.combinations(range(7), 3)}
    assert error == pytest.approx(min(everyone.values()), rel=1e-5)
    assert everyone[chosen] == pytest.approx(error, rel=1e-5)


def test_the_gain_of_a_linear_map_is_its_largest_singular_value():
    linear = torch.nn.Linear(4, 4)
    x, u = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    largest = torch.linalg.svdvals(linear.weight).max().item()
    assert toys.gain(linear, x, u, places=2, steps=60) == pytest.approx(largest, rel=1e-3)


def test_clouds_keep_their_copies_apart_from_the_cached_original():
    plain, score = toys.cloud(toys.CLOUDS[0])
    copied, _ = toys.cloud(toys.CLOUDS[0], 5)
    assert len(plain.unique(dim=0)) == 40
    assert len(copied.unique(dim=0)) == 35
    assert score.sum() == pytest.approx(1)


def test_the_explorer_says_what_it_computes():
    c = toys.compare(toys.CLOUDS[0], 0, 4, "top_k")
    distance = np.square(c.tokens[:, None] - c.stand_ins[None]).sum(-1).min(1).sum()
    assert c.errors["top_k"] == pytest.approx(distance, rel=1e-4)
    assert c.errors["k_means"] < c.errors["top_k"]
    explorer = toys.explore()
    before = state_words(explorer)
    assert f"{c.errors['top_k']:.1f}" in before
    explorer.set(k=8)
    assert state_words(explorer) != before
    assert "K = 8" in explorer.words
    far = np.sqrt(np.square(c.tokens - c.stand_ins[c.labels]).sum(1)) > 1.5
    assert f"{far.sum()} of the 40 tokens lie farther" in before
    explorer.set(k=4, copies=12)
    assert "Its 4 stand-ins lie on only 1 spot:" in explorer.words
    corners = itertools.product(toys.CLOUDS, (0, 12), (1, 12), ("random", "k_means", "wk_medoids"))
    for cloud, copies, k, method in corners:
        explorer.set(cloud_name=cloud, copies=copies, k=k, method=method)
        assert explorer.error is None, explorer.words
    assert len(explorer.figure.data) == 3


@pytest.mark.parametrize(("id", "evidence", "option"), [
    ("a", [0, 1, 2], 0), ("a", [0, 3, 5], 1), ("b", dict(best=0, found=0), 0), ("b", dict(best=0, found=3), 1),
    ("b", dict(best=1, found=3), 2), ("c", 0.0, 0), ("c", 0.1, 1), ("c", 0.5, 2)])
def test_predictions_follow_the_evidence(id, evidence, option):
    prediction = next(p for p in toys.PREDICTIONS if p.id == id)
    assert prediction.answer(evidence) == option
    assert prediction.reveal(evidence, option).state == "right"
    assert prediction.reveal(evidence, (option + 1) % 3).state == "wrong"
