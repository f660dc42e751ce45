"""Notebook 00: exercises, what is lost first, and the explorer, against numbers worked out another way."""

import itertools

import numpy as np
import pytest
import torch
from lessons import check_exercise, state_words

import tokenpool as tp
from tokenpool.lab.kit.session import Lab
from tokenpool.lab.lessons import lesson_00_start_here as toys


@pytest.fixture(scope="module")
def lab():
    return Lab("00")


# ---- exercises ----

def test_count_tokens():
    check_exercise("00", "a", [
        (lambda size, patch, prefix: size // patch + prefix, "along *one edge*"),
        (lambda size, patch, prefix: size * size // patch, "16 times 16 pixels"),
        (lambda size, patch, prefix: size * size, "counts pixels"),
        (lambda size, patch, prefix: (size // patch) ** 2, "prefix tokens are missing"),
        (lambda size, patch, prefix: (size // patch) ** 2 + (prefix > 0), "*added*, once"),
        (lambda size, patch, prefix: (size // patch) ** 2 * 2, "14 rows of 14"),
        (lambda size, patch, prefix: [14, 14], "Return one number"),
    ])


def test_companions():
    check_exercise("00", "b", [
        (lambda labels, patch: labels == labels[patch], "yes or no for every patch"),
        (lambda labels, patch: [i for i in range(len(labels)) if labels[i] == labels[patch]], "on its own list"),
        (lambda labels, patch: [i for i in range(len(labels)) if labels[i] == patch and i != patch], "the *number* of"),
        (lambda labels, patch: int((labels == labels[patch]).sum()) - 1, "Return which ones"),
        (lambda labels, patch: "none", "list of patch numbers"),
        (lambda labels, patch: [4, 5], "shares label 0 with patch 2"),
    ])


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, np.array, set])
def test_companions_may_come_in_any_container(form):
    solution = toys.companions.solution
    assert toys.companions.check(lambda labels, patch: form(solution(labels, patch))).state == "right"


# ---- images and tokens ----

def test_a_patch_is_where_it_should_be_and_the_way_back_is_exact(lab):
    _, pixels, _, _ = lab.images(4)
    f = toys.patch_tokens(pixels)
    assert f.shape == (4, 64, 192)
    patch = pixels[2][:, 24:32, 40:48]                      # row 3, column 5 of the grid
    assert np.array_equal((255 * f[2, 3 * 8 + 5]).round().numpy().astype(np.uint8), patch.ravel())
    assert np.array_equal(toys.redraw(f), pixels)


def test_regions_and_kinds_agree_with_a_count_of_pixels(lab):
    _, _, _, regions = lab.images(3)
    masks = toys.Pebbles(seed=4).batch(range(3))[2]
    kinds = toys.kinds(3)
    for image in range(3):
        for patch in range(64):
            row, column = divmod(patch, 8)
            inside = masks[image, 8 * row:8 * row + 8, 8 * column:8 * column + 8]
            shares = [(inside == r).mean() for r in range(3)]
            pure = [r for r in range(3) if shares[r] >= 0.9]
            assert kinds[image, patch] == (pure[0] if pure else 3)
            assert (regions[image, patch] == 2) == (shares[2] >= 1 / 3)


def test_in_the_network_is_what_lab_tokens_says(lab):
    x, _, _, _ = lab.images(2)
    for block in (0, 2, 5):
        mine, theirs = toys.in_the_network(x, block), lab.tokens(x, block)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, theirs, strict=True))


def test_chance_draws_anew_for_every_five_images():
    f = torch.randn(10, 12, 3, generator=torch.Generator().manual_seed(0))
    f[5:] = f[:5]
    u = toys.reconstruct(f, 4, "random")
    assert not torch.equal(u[:5], u[5:])
    assert torch.equal(u, toys.reconstruct(f, 4, "random"))
    assert torch.equal(toys.reconstruct(f, 12, "random"), f)


def test_the_network_names_what_it_was_trained_on(lab):
    _, pixels, labels, _ = lab.images(30)
    assert toys.top1(pixels, labels) > 0.9
    everything = tp.PooledViT(lab.vit, [64] * 6, method="random")
    assert toys.top1(pixels, labels, everything, draws=2) == toys.top1(pixels, labels)


# ---- what is lost first ----

@pytest.fixture(scope="module")
def lost():
    return toys.lost_by_kind(20, ks=(64, 40, 16))


def test_losses_are_those_of_a_loop(lab, lost):
    _, pixels, _, _ = lab.images(20)
    f, kinds = toys.patch_tokens(pixels), toys.kinds(20)
    u = tp.pool_tokens(f, 16, method="k_means").unpool()
    error = apart = pixel = count = 0.0
    for image in range(20):
        middle = f[image].mean(0)
        for patch in np.flatnonzero(kinds[image] == 0):
            off = ((f[image, patch] - u[image, patch]) ** 2).sum().item()
            error, apart = error + off, apart + ((f[image, patch] - middle) ** 2).sum().item()
            pixel, count = pixel + off, count + 192
    row = lost[(lost["method"] == "k_means") & (lost["k"] == 16) & (lost["kind"] == "ground")].iloc[0]
    assert row["lost"] == pytest.approx(error / apart, rel=1e-4)
    assert row["grey"] == pytest.approx(255 * (pixel / count) ** 0.5, rel=1e-4)


def test_nothing_is_lost_while_nothing_goes(lost):
    assert lost[lost["k"] == 64]["lost"].max() < 1e-6
    for _, curve in lost.groupby(["method", "kind"]):
        assert curve.sort_values("k")["lost"].is_monotonic_decreasing


def test_first_to_lose():
    frame = toys.pd.DataFrame([("ground", 32, 0.2), ("ground", 48, 0.1), ("ground", 56, 0.09), ("outline", 32, 0.3),
                               ("large pebble", 32, 0.05)], columns=["kind", "k", "lost"])
    assert toys.first_to_lose(frame) == {"ground": 48, "outline": 32, "large pebble": 0, "small pebble": 0}


def test_pattern_and_colour_make_the_whole():
    f = torch.zeros(1, 64, 192)
    kind = np.zeros((1, 64), int)
    colour = f + torch.tensor([0.1] * 64 + [0.0] * 128)                              # one channel is off by a constant
    stripes = f + torch.tensor([0.1, -0.1] * 96)                                      # right on average
    assert toys.pattern_share(f, colour, kind, "ground") == pytest.approx(0, abs=1e-6)
    assert toys.pattern_share(f, stripes, kind, "ground") == pytest.approx(1, abs=1e-6)
    assert toys.pattern_share(f, colour + stripes, kind, "ground") == pytest.approx(0.75, abs=1e-6)


# ---- figures and explorer ----

def test_clusters_are_numbered_as_one_reads():
    assert toys.number_clusters(np.array([5, 5, 2, 9, 2, 0])).tolist() == [1, 1, 2, 3, 2, 4]


def test_figures_hold_what_they_say(lab):
    _, pixels, _, regions = lab.images(1)
    fig = toys.grid_figure(pixels[0], regions[0])
    assert [t.type for t in fig.data] == ["image", "image", "scatter", "image", "scatter"]
    assert list(fig.data[2].text) == [str(i) for i in range(64)]
    assert "".join(fig.data[4].text).count("S") == (regions[0] == 2).sum()
    labels = tp.pool_tokens(toys.patch_tokens(pixels), 16, method="k_means").labels[0].numpy()
    fig = toys.redrawn_figure(pixels[0], pixels[0], labels)
    assert set(fig.data[2].text) == {str(i) for i in range(1, 17)}
    assert set(fig.data[2].textfont.color) <= {"#000000", "#ffffff"}
    lost = toys.lost_by_kind(3, ks=(32, 16), methods=("k_means", "top_k"))
    assert [t.name for t in toys.lost_figure(lost).data] == 2 * list(toys.KINDS)


def test_numbers_stand_in_their_patches():
    trace = toys._numbers(np.zeros((128, 128, 3), np.uint8), np.arange(64), 12, {})
    assert (trace.x[0], trace.y[0]) == (7.5, 7.5)
    assert (trace.x[10], trace.y[10]) == (39.5, 23.5)                # row 1, column 2


def test_group_against_the_operator(lab):
    _, pixels, _, regions = lab.images(6)
    out = tp.pool_tokens(toys.patch_tokens(pixels[1:2]), 9, method="k_means")
    g = toys.group("pebbles 2", -1, "k_means", 9, 20)
    same = out.labels[0].numpy()[:, None] == out.labels[0].numpy()[None]
    assert np.array_equal(same, g.labels[:, None] == g.labels[None])
    assert g.companions == [i for i in range(64) if i != 20 and same[20, i]]
    assert sum(g.by_region) == g.k == 9
    assert g.kept is None
    f = toys.patch_tokens(pixels[1:2])
    assert g.lost == pytest.approx((out.inertia / (f - f.mean(1, keepdim=True)).square().sum()).item(), rel=1e-4)
    chosen = toys.group("pebbles 2", 0, "top_k", 9, 20)
    assert chosen.kept.sum() == 9
    assert chosen.by_region == [int((regions[1][chosen.kept] == r).sum()) for r in range(3)]


def test_the_figure_shows_the_group(lab):
    g = toys.group("pebbles 1", -1, "k_means", 16, 0)
    fig = toys.group_figure(g)
    assert [t.type for t in fig.data] == ["image", "image", *["scatter"] * 5]
    assert [int(n) for n in fig.data[2].text] == g.labels.tolist()
    for frames, middle in zip(fig.data[3:], (3.5, 3.5, 7.5, 7.5), strict=True):     # twice as large at the right
        assert len(frames.x) == 1 + len(g.companions)
        assert (frames.x[0], frames.y[0]) == (middle, middle)


def test_the_table_lists_patches():
    table = toys.group_table(toys.group("pebbles 1", -1, "k_means", 64, 0))
    assert len(table) == 16                                          # the largest sixteen, where there are more
    table = toys.group_table(toys.group("pebbles 1", -1, "k_means", 3, 0))
    assert table["patches"].sum() == 64
    assert table["patches"].is_monotonic_decreasing


def test_every_corner_of_the_explorer():
    explorer = toys.explore()
    seen = {state_words(explorer)}
    corners = itertools.product(("pebbles 6", "cat (photograph)"), (-1, 2), ("k_means", "top_k"), (1, 64))
    for image, block, method, k in (*corners, ("pebbles 1", 0, "grid_average", 7), ("pebbles 1", 0, "wk_means", 7)):
        explorer.set(image=image, block=block, method=method, k=k)
        assert explorer.error is None, (image, block, method, k, explorer.error)
        assert f"{k} of 64 tokens by {method}" in explorer.words
        seen.add(state_words(explorer))
    assert len(seen) == 19
    explorer.set(patch=63)
    assert explorer.error is None
    assert "atch 63" in explorer.words
    assert len(explorer.figure.data) == 7


def test_words_say_what_happened_to_the_small_pebble():
    words = [toys.group_words(toys.group("pebbles 2", -1, "k_means", k, 0)) for k in (16, 2)]
    assert "small pebble 5 (of 5 patches)" in words[0]
    assert "Nobody is left" not in words[0]
    assert "small pebble 0" in words[1]
    assert "Nobody is left" in words[1]
    whole = toys.group_words(toys.group("pebbles 2", -1, "k_means", 64, 7))
    assert "Patch 7 speaks for itself alone" in whole
    assert "true" not in toys.group_words(toys.group("flower (photograph)", -1, "k_means", 8, 0))


# ---- predictions ----

def test_the_prediction_follows_the_evidence():
    (asked,) = toys.PREDICTIONS
    for place, (option, kind) in enumerate(zip(asked.options, toys._ORDER, strict=True)):
        evidence = dict.fromkeys(toys.KINDS, 12) | {kind: 40}
        assert asked.answer(evidence) == place
        card = asked.reveal(evidence, place)
        assert card.state == "right"
        assert option in card.words
        wrong = asked.reveal(evidence, (place + 1) % 4)
        assert wrong.state == "wrong"
        assert "K = 40" in wrong.words
