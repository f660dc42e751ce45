"""Notebook 02: the identity, the filter on a closed line, and what is measured of real tokens, against other ways."""

import itertools
import math

import numpy as np
import pytest
import timm
import torch
from lessons import check_exercise, lesson
from scipy.special import ive

import tokenpool as tp
from tokenpool.data.datasets import scale
from tokenpool.data.pebbles import Pebbles
from tokenpool.lab.kit.session import photograph_vit, shipped_vit
from tokenpool.models.attention import normalise_qk

smoothing = lesson("02")


@pytest.fixture(scope="module")
def x():
    return scale(Pebbles(seed=4).batch(range(4))[0])


@pytest.fixture(scope="module")
def measured(x):
    return smoothing.by_depth(shipped_vit(), x)


# ---- the toys ----

@pytest.mark.parametrize("shape", smoothing.SHAPES)
def test_factors_multiply_to_the_softmax(shape):
    q, k = smoothing.five_keys(shape)
    table = smoothing.factors(q, k)
    product = np.exp(-((q - k) ** 2).sum(1).numpy() / 8 ** 0.5) * np.exp((k ** 2).sum(1).numpy() / 8 ** 0.5)
    assert np.allclose(table["softmax"], product / product.sum(), atol=6e-4)
    assert np.allclose(table["product"], table["Gaussian"] * table["key factor"], atol=0.02)
    assert table["distance²"].iloc[3] == 0
    assert table["softmax"].idxmax() == {"straight": 4, "bent": 3}[shape]
    assert (table["key factor"] == 1).all() == (shape == "bent")


def test_evenly_spaced_keys():
    straight, bent = (smoothing.five_keys(shape)[1] for shape in smoothing.SHAPES)
    assert torch.allclose((straight[1:] - straight[:-1]).norm(dim=1), torch.full((4,), 1.5).double())
    assert torch.allclose(bent.norm(dim=1), torch.full((5,), 3.0).double())
    turn = torch.atan2(bent[:, 0], bent[:, 1])
    assert torch.allclose(3 * (turn[1:] - turn[:-1]), torch.full((4,), 1.5).double())


def test_weights_by_distance_are_the_softmax_if_norms_are_equal_and_only_then():
    q, k = torch.randn(2, 20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    by_hand = torch.stack([torch.exp(-((a - k) ** 2).sum(1) / (2 * 7 ** 0.5)) for a in q])
    assert torch.allclose(smoothing.gaussian_weights(q, k), by_hand / by_hand.sum(1, keepdim=True))
    assert not torch.allclose(smoothing.gaussian_weights(q, k), smoothing.softmax_weights(q, k), atol=1e-3)
    k = 2 * k / k.norm(dim=1, keepdim=True)
    assert (smoothing.gaussian_weights(q, k) - smoothing.softmax_weights(q, k)).abs().max() < 1e-12


def test_the_gain_of_every_wave_is_a_ratio_of_bessel_functions():
    q, k = smoothing.closed_line()
    v = smoothing.signal()
    out = smoothing.softmax_weights(q, k) @ v
    n = np.arange(20)
    sharpness = smoothing.RADIUS ** 2 / 2 ** 0.5
    gain = (smoothing.amplitudes(out) / smoothing.amplitudes(v)).numpy()[:20]
    assert np.allclose(gain, ive(n, sharpness) / ive(0, sharpness), atol=1e-9)
    assert np.allclose(gain[:9], np.exp(-n[:9] ** 2 / (2 * sharpness)), atol=0.01)       # what the notebook says


def test_amplitudes_are_those_that_went_in():
    turn = 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    found = smoothing.amplitudes(0.5 + 2 * (3 * turn).sin() + 0.7 * (10 * turn).cos() + 0.25 * (32 * turn).cos())
    wanted = torch.zeros(33, dtype=torch.float64)
    wanted[0], wanted[3], wanted[10], wanted[32] = 0.5, 2, 0.7, 0.25
    assert torch.allclose(found, wanted, atol=1e-12)


def test_every_fourth_sample_carries_up_to_eight_waves():
    turn = 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    assert smoothing.lost_by_sampling((7 * turn).sin() + 2 * (3 * turn).cos() + 1) < 1e-20
    assert smoothing.lost_by_sampling((12 * turn).sin()) == pytest.approx(2)    # itself, and the wave it pretends to be
    assert smoothing.lost_by_sampling((8 * turn).cos()) < 1e-20
    assert smoothing.lost_by_sampling((8 * turn).sin()) == pytest.approx(1)
    fine = smoothing.fine_energy((8 * turn).sin() + 3 * (9 * turn).sin())
    assert fine == pytest.approx(2 * (3 * 32) ** 2)


def test_numbers_of_keys():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert smoothing.effective_number(weights).tolist() == pytest.approx([4, 1, 2])
    assert smoothing.sharpened(0.0, draws=2) == 0
    assert 0.6 < smoothing.sharpened(0.02) < 0.95
    assert smoothing.sharpened(0.02) < smoothing.sharpened(0.1) < 1


def test_norms_of_the_closed_line():
    _, k = smoothing.closed_line(0.1, seed=5)
    assert k.norm(dim=1).min() >= 7 * 0.9
    assert k.norm(dim=1).max() <= 7 * 1.1
    assert k.norm(dim=1).std() > 0.2
    low, high = smoothing.lifted(0.02)
    assert math.exp(-49 * 0.0396 / 8 ** 0.5) <= low < 1 < high <= math.exp(49 * 0.0404 / 8 ** 0.5)
    assert smoothing.lifted(0.0) == pytest.approx((1, 1))


def test_figures_show_what_they_say():
    five = smoothing.five_figure()
    assert len(five.data) == 8
    assert any("5: 0.80" in a.text for a in five.layout.annotations)
    kernel = smoothing.kernel_figure(0.02)
    _, equal, uneven = kernel.data
    assert np.allclose(equal.y, np.exp(-np.array(equal.x) ** 2 / 8 ** 0.5), atol=1e-3)
    off = np.array(uneven.y) / np.exp(-np.array(uneven.x) ** 2 / 8 ** 0.5)
    assert off.max() > 1.9
    assert off[np.array(uneven.x) < 1].min() < 0.6
    v = smoothing.signal()
    assert [len(t.x) for t in smoothing.spectrum_figure(v, v).data] == [64, 64, 33, 33]


# ---- real tokens ----

def brute_fine(tokens, limit=2):
    """Projection on every cosine and sine of the grid, one by one."""
    side = math.isqrt(tokens.shape[1])
    row, col = np.divmod(np.arange(side * side), side)
    shares = []
    for image in tokens.double().numpy():
        high = total = 0.0
        for a, b in itertools.product(range(side), repeat=2):
            wave = np.exp(-2j * np.pi * (a * row + b * col) / side)
            energy = (np.abs(wave @ image) ** 2).sum()
            total += energy if (a, b) != (0, 0) else 0
            high += energy if max(min(a, side - a), min(b, side - b)) > limit else 0
        shares.append(high / total)
    return shares


def test_fine_detail_equals_the_slow_way():
    tokens = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0)) + 3
    assert smoothing.fine_detail(tokens).tolist() == pytest.approx(brute_fine(tokens), abs=1e-5)
    row, col = np.divmod(np.arange(64), 8)
    for waves, share in ((2, 0), (3, 1)):
        plane = torch.tensor(np.cos(2 * np.pi * waves * row / 8)[None, :, None] + 5)
        assert smoothing.fine_detail(plane).item() == pytest.approx(share, abs=1e-6)
        assert smoothing.fine_detail(plane[:, torch.tensor(8 * col + row)]).item() == pytest.approx(share, abs=1e-6)


def test_shuffled_places_have_the_fine_detail_of_noise():
    draw = torch.Generator().manual_seed(0)
    row = torch.arange(64) // 8
    tokens = torch.stack([row.float(), (row - 3.5).square()], 1)
    shuffled = torch.stack([tokens[torch.randperm(64, generator=draw)] for _ in range(400)])
    assert smoothing.fine_detail(tokens[None]).item() < 0.2
    assert smoothing.fine_detail(shuffled).mean().item() == pytest.approx(smoothing.fine_detail_of_noise(), abs=0.01)
    assert smoothing.fine_detail_of_noise() == pytest.approx(39 / 63)


def test_rank_counts_directions():
    cross = torch.cat([torch.eye(4), -torch.eye(4)])
    assert smoothing.rank(cross + 7).item() == pytest.approx(4, abs=1e-4)
    assert smoothing.rank(torch.arange(5.0)[:, None] * torch.ones(3)).item() == pytest.approx(1, abs=1e-4)
    tokens = torch.randn(30, 6, generator=torch.Generator().manual_seed(1)).double() * torch.arange(1.0, 7.0)
    share = np.linalg.eigvalsh(np.cov(tokens.T.numpy()))
    share = share / share.sum()
    assert smoothing.rank(tokens).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_by_depth_sees_what_the_model_computes(x, measured):
    vit = shipped_vit()
    seen = {}
    hooks = [block.attn.proj.register_forward_pre_hook(lambda module, args, i=i: seen.__setitem__(i, args[0][:, 1:]))
             for i, block in enumerate(vit.blocks)]
    with torch.no_grad():
        steps = tp.PooledViT(vit).trace(x).steps
    for hook in hooks:
        hook.remove()
    for place, step in enumerate(steps):
        rows = measured[measured["block"] == place + 1]
        assert rows["fine_stream"].tolist() == pytest.approx(smoothing.fine_detail(step.tokens).tolist(), abs=1e-4)
        assert rows["rank_stream"].tolist() == pytest.approx(smoothing.rank(step.tokens).tolist(), abs=1e-3)
        assert rows["fine_output"].tolist() == pytest.approx(smoothing.fine_detail(seen[place]).tolist(), abs=1e-4)
        assert rows["rank_output"].tolist() == pytest.approx(smoothing.rank(seen[place]).tolist(), abs=1e-3)
        values = vit.blocks[place].attn.qkv(vit.blocks[place].norm1(_before(vit, x, place)))[:, 1:, -vit.embed_dim:]
        left = smoothing.variance(seen[place]) / smoothing.variance(values)
        assert rows["kept"].tolist() == pytest.approx(left.tolist(), rel=1e-3)


@torch.no_grad()
def _before(vit, x, place):
    t = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    return vit.blocks[:place](t)


def test_what_by_depth_must_obey(measured):
    blocks = measured[measured["block"] > 0]
    assert len(measured) == 4 * 7
    assert blocks.notna().all().all()
    assert (blocks["outside"] == 0).all()
    assert blocks["keys"].between(1, 65).all()
    assert blocks["elsewhere"].between(0, 1).all()
    assert (blocks["kept_shuffled"] < blocks["kept"]).all()
    ends = smoothing.first_and_last({("pebbles", "pebbles"): measured})
    assert ends["last"].item() < ends["embedding"].item()
    wide = measured.pivot(index="image", columns="block", values="fine_stream")
    assert ends["fell in"].item() == f"{(wide[6] < wide[0]).sum()} of 4"
    norms = smoothing.norms_by_block({"pebbles": measured})
    assert len(norms) == 6
    assert (norms["largest / smallest key factor"].astype(float) > 10).all()


def test_equal_norms_put_no_weight_elsewhere(x):
    vit = normalise_qk(timm.create_model("pebbles_vit").eval(), "r1")
    blocks = smoothing.by_depth(vit, x[:1]).query("block > 0")
    assert blocks["factor"].max() < 1e-5
    assert blocks["elsewhere"].max() < 1e-5


def test_figures_of_real_tokens(measured):
    both = {"pebbles": measured, "photographs": measured}
    assert len(smoothing.attention_figure(both).data) == 8
    crossed = {(m, p): measured for m in both for p in both}
    fig = smoothing.stream_figure(crossed)
    assert len(fig.data) == 9
    assert fig.data[0].error_y.array is not None
    assert fig.data[2].error_y.array is None
    assert list(fig.data[0].y) == pytest.approx(measured.groupby("block")["fine_stream"].mean().tolist(), abs=1e-4)


def test_the_model_of_photographs_is_the_one_that_ships():
    vit = photograph_vit()
    assert (vit.embed_dim, len(vit.blocks), vit.num_classes, vit.training) == (64, 6, 50, False)
    assert photograph_vit() is vit


# ---- the explorer ----

def test_the_explorer_counts_right():
    s = smoothing.smooth(0, 0, 12)
    q, k = smoothing.closed_line()
    weights = smoothing.softmax_weights(q, k)
    assert np.allclose(s.weights, weights[32].numpy())
    away = (np.arange(64) - 32) ** 2
    assert s.width == pytest.approx((s.weights * away).sum() ** 0.5)
    assert s.gain == pytest.approx(ive(12, 49 / 2 ** 0.5) / ive(0, 49 / 2 ** 0.5), abs=1e-6)
    assert s.strayed == 0
    before, after = (np.abs(np.fft.fft(t.numpy())) ** 2 for t in (s.values, s.output))
    high = np.abs(np.fft.fftfreq(64, 1 / 64)) > 8
    assert s.fine_left == pytest.approx(after[high].sum() / before[high].sum())
    assert s.keys == pytest.approx(s.keys_equal)
    assert smoothing.smooth(0, 20, 12).strayed > 0
    assert smoothing.smooth(-8, 0, 12).output.std() < 0.02
    assert torch.allclose(smoothing.smooth(6, 0, 12).output, s.values, atol=0.05)


def test_the_explorer_works_in_every_corner():
    explorer = smoothing.explore()
    traces = len(explorer.figure.data)
    assert traces == 5
    for log_alpha, spread, waves in itertools.product((-8, 6), (0, 30), (4, 30)):
        explorer.set(log_alpha=log_alpha, spread=spread, waves=waves)
        assert explorer.error is None
        assert len(explorer.figure.data) == traces
        assert "nan" not in explorer.words


@pytest.mark.parametrize(("settings", "phrase"), [
    ({"log_alpha": -8}, "near the mean of all values"), ({"log_alpha": 6}, "repeats the values"),
    ({"log_alpha": 6, "spread": 10}, "a long key is heard by many"), ({}, "under one kernel and cancel"),
    ({"log_alpha": 2, "waves": 4}, "narrow beside it"), ({"log_alpha": 2}, "passes in part"),
    ({"spread": 10}, "Unequal norms"), ({"log_alpha": -8, "spread": 30}, "hardly matter")])
def test_the_words_say_what_changed(settings, phrase):
    assert phrase in smoothing.explore().set(**settings).words


def test_the_title_and_the_table_follow():
    explorer = smoothing.explore().set(log_alpha=-3, spread=5, waves=20)
    assert explorer.figure.layout.title.text.startswith("alpha = 1/8, norms within 5 %")
    table = smoothing.smooth_table(smoothing.smooth(-3, 5, 20))
    assert 20 in table["waves"].tolist()
    assert smoothing.smooth_figure(smoothing.smooth(0, 0, 12)).layout.title.text.startswith("alpha = 1, equal norms")


# ---- predictions ----

@pytest.mark.parametrize(("id", "evidence", "right"), [
    ("a", [0.0, 1.8, 0.5], 0), ("a", [0.5, 0.0, 0.4], 1), ("a", [0.5, 1.0, 0.0], 2),
    ("b", 1.0, 0), ("b", 0.78, 1), ("b", 0.0, 2),
    ("c", 0.6, 0), ("c", 1.05, 1), ("c", 1.4, 2)])
def test_the_evidence_decides(id, evidence, right):
    prediction = next(p for p in smoothing.PREDICTIONS if p.id == id)
    assert prediction.answer(evidence) == right
    for committed in (None, *range(3)):
        card = prediction.reveal(evidence, committed)
        assert prediction.options[right] in card.words
        assert card.state == ("note" if committed is None else "right" if committed == right else "wrong")


# ---- exercises ----

def _distances(q, k):
    return (q[:, None] - k[None]).square().sum(-1)


def test_gaussian_attention():
    check_exercise("02", "a", [
        (lambda q, k, v: (-_distances(q, k) / (2 * q.shape[1])).softmax(1) @ v, "variance is sqrt(d), not d"),
        (lambda q, k, v: (-_distances(q, k) / q.shape[1] ** 0.5).softmax(1) @ v, "The 2 of the Gaussian"),
        (lambda q, k, v: (-_distances(q, k) / 2).softmax(1) @ v, "A variance of 1"),
        (lambda q, k, v: (-torch.cdist(q, k) / (2 * q.shape[1] ** 0.5)).softmax(1) @ v, "*squared* distance"),
        (lambda q, k, v: (_distances(q, k) / (2 * q.shape[1] ** 0.5)).softmax(1) @ v, "the sign"),
        (lambda q, k, v: (-_distances(q, k) / (2 * q.shape[1] ** 0.5)).exp() @ v, "do not sum to one"),
        (lambda q, k, v: (-_distances(q, k) / (2 * q.shape[1] ** 0.5)).softmax(0) @ v, "over the queries"),
        (lambda q, k, v: (w := (-_distances(q, k) / (2 * q.shape[1] ** 0.5)).exp()) @ v / w.sum(), "sum of its own"),
        (lambda q, k, v: (q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v, "Use distances only"),
        (lambda q, k, v: (-_distances(q, k) / (2 * q.shape[1] ** 0.5)).softmax(1), "shape (4, 6)"),
        (lambda q, k, v: v, "shape (6, 2)")])


def _energy(signal):
    return torch.fft.fft(signal).abs().square()


def _bins(signal):
    return torch.arange(len(signal))


def _folded(signal):
    return torch.fft.fftfreq(len(signal), 1 / len(signal)).abs()


def _half(signal, cutoff):
    energy = torch.fft.rfft(signal).abs().square()
    return energy[cutoff + 1:].sum() / energy[1:].sum()


def test_high_frequency_energy():
    check_exercise("02", "b", [
        (lambda s, c: _energy(s).sqrt()[_folded(s) > c].sum() / _energy(s).sqrt()[1:].sum(), "energy is amplitude"),
        (lambda s, c: _energy(s)[_bins(s) > c].sum() / _energy(s)[1:].sum(), "*negative* frequencies"),
        (lambda s, c: _energy(s)[c + 1:len(s) // 2 + 1].sum() / _energy(s)[1:].sum(), "on one side"),
        (lambda s, c: _energy(s)[_folded(s) <= c][1:].sum() / _energy(s)[1:].sum(), "*below* the cutoff"),
        (lambda s, c: _energy(s)[_folded(s) > c].sum() / _energy(s)[_folded(s) <= c][1:].sum(), "high over *all*"),
        (lambda s, c: _energy(s)[_folded(s) > c].sum() / _energy(s).sum(), "leave element 0"),
        (_half, "`rfft` keeps one"),
        (lambda s, c: _energy(s)[_folded(s) >= c].sum() / _energy(s)[1:].sum(), "The cutoff itself"),
        (lambda s, c: _energy(s)[_folded(s) > c].sum(), "energies 4 to 1")])


def test_rfft_counted_well_is_right_too():
    found = smoothing.high_frequency_energy

    def answer(signal, cutoff):
        twice = torch.full((len(signal) // 2 + 1,), 2.0)
        twice[0] = 0
        if len(signal) % 2 == 0:
            twice[-1] = 1
        energy = torch.fft.rfft(signal).abs().square() * twice
        return energy[cutoff + 1:].sum() / energy.sum()

    assert found.check(answer).state == "right"
    assert smoothing.gaussian_attention.check(
        lambda q, k, v: (w := torch.exp(-torch.cdist(q, k) ** 2 / 2 / q.shape[-1] ** 0.5)) @ v / w.sum(1, keepdim=True)
    ).state == "right"
