"""Notebook 04: its exercises answer typical mistakes, its numbers agree with slow and independent ways to get them."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from lessons import check_exercise, lesson, state_words

import tokenpool as tp
from tokenpool.core import clustering
from tokenpool.lab.kit.session import pebbles, shipped_vit, start

toys = lesson("04")


def brute_force_steps(f, begin, method, rounds):
    """Lloyd's two steps by loops over numbers; f (N, C) in double. Errors after every half-step."""
    f = f.double().tolist()
    centres, errors = [f[i] for i in begin.tolist()], []

    def apart(a, b):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    for _ in range(rounds):
        labels = [min(range(len(centres)), key=lambda j: apart(x, centres[j])) for x in f]
        errors.append(sum(apart(x, centres[j]) for x, j in zip(f, labels, strict=True)))
        for j in range(len(centres)):
            group = [x for x, label in zip(f, labels, strict=True) if label == j]
            if method == "k_means":
                centres[j] = [sum(column) / len(group) for column in zip(*group, strict=True)]
            else:
                best = min(group, key=lambda m: sum(apart(x, m) for x in group))
                if sum(apart(x, best) for x in group) < sum(apart(x, centres[j]) for x in group) - 1e-9:
                    centres[j] = best
        errors.append(sum(apart(x, centres[j]) for x, j in zip(f, labels, strict=True)))
    return errors


@pytest.fixture(scope="module")
def layers():
    lab = start("04")
    x = pebbles(24)[0]
    assert shipped_vit() is lab.vit
    return [lab.tokens(x, block=b) for b in (1, 3)]


# ---- exercises ----

def loop(cost):
    """A medoid update from a cost of the candidates: (d, inside, w) -> (N,), members only."""
    def update(d, labels, w, k):
        out = []
        for j in range(k):
            c = cost(d, labels == j, w)
            c[labels != j] = torch.inf
            out.append(c.argmin())
        return torch.stack(out)
    return update


def within(d, labels, w, k):
    return torch.stack([(d[labels == j][:, labels == j] * w[labels == j]).sum(1).argmin() for j in range(k)])


def anybody(d, labels, w, k):
    return torch.stack([(d[:, labels == j] * w[labels == j]).sum(1).argmin() for j in range(k)])


def infinite(d, labels, w, k):
    out = []
    for j in range(k):
        outside = labels != j
        masked = torch.where(outside[:, None], torch.inf, d)
        out.append(torch.where(outside[None], 0, masked * w).sum(1).argmin())
    return torch.stack(out)


def test_medoid_update():
    check_exercise("04", "a", wrong=[
        (toys.broken_medoid_update, "nearest to *all"),
        (loop(lambda d, inside, w: d.sum(1)), "over the members only"),
        (loop(lambda d, inside, w: (w[:, None] * d)[:, inside].sum(1)), "the candidate's or the served"),
        (loop(lambda d, inside, w: d[:, inside].sum(1)), "Do the weights enter"),
        (within, "the place *within* the cluster"),
        (anybody, "Candidates must be members"),
        (infinite, "0 * infinity"),
        (lambda d, labels, w, k: [(d[:, labels == j]).sum(1).min() for j in range(k)], "token *index* per cluster"),
        (lambda d, labels, w, k: torch.zeros(1, dtype=torch.int64), "shape (2,)"),
        (lambda d, labels, w, k: torch.full((k,), 99), "points at no token")])


def test_medoid_update_takes_lists_of_indices_and_the_packages_vectorised_form():
    def vectorised(d, labels, w, k):
        same = labels[:, None] == labels[None]
        cost = (d * same * w[None]).sum(1)
        return torch.where(clustering.members(labels[None], k)[0], cost[:, None], torch.inf).argmin(0)

    assert toys.medoid_update.check(vectorised).state == "right"
    listed = toys.medoid_update.solution
    assert toys.medoid_update.check(lambda *a: [int(i) for i in listed(*a)]).state == "right"


LINE = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([0, 0, 0, 1]), torch.ones(4)
HEAVY = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 0]), torch.tensor([1.0, 2.0])


def test_expose():
    pair = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([0, 0, 1]), torch.ones(3)
    balanced = torch.tensor([[0.0], [1.0], [2.0], [1.0]]), torch.tensor([0, 0, 0, 1]), torch.ones(4)
    long = torch.tensor([[0.0], [1.0], [2.0], [9.0], [10.0]]), torch.tensor([0, 0, 0, 1, 1]), torch.ones(5)
    check_exercise("04", "b", wrong=[
        (lambda: (pair, HEAVY), "A cluster of two with equal weights always ties"),
        (lambda: (balanced, HEAVY), "the broken function is right"),
        (lambda: (long, HEAVY), "can be done with 4"),
        (lambda: ((LINE[0], LINE[1], torch.tensor([1.0, 2.0, 1.0, 1.0])), HEAVY), "weights must be equal"),
        (lambda: ((LINE[0], torch.zeros(4, dtype=torch.int64), LINE[2]), HEAVY), "Somebody must stand outside"),
        (lambda: (LINE, LINE), "all tokens must be one cluster"),
        (lambda: (LINE, (HEAVY[0], HEAVY[1], torch.ones(2))), "second input the broken function is right"),
        (lambda: (LINE, (torch.tensor([[0.0], [1.0], [2.0]]), torch.zeros(3, dtype=torch.int64),
                         torch.tensor([1.0, 1.0, 9.0]))), "can be done with 2"),
        (lambda: (LINE, (HEAVY[0], HEAVY[1], torch.tensor([-1.0, 2.0]))), "must not be negative"),
        (lambda: ((LINE[0], LINE[1] + 1, LINE[2]), HEAVY), "without a gap"),
        (lambda: ((LINE[0][:, 0], LINE[1], LINE[2]), HEAVY), "tokens (N, C)"),
        (lambda: LINE, "Return two inputs")])


def test_no_smaller_input_exposes_it():
    """Four and two tokens are least: three tokens on a small grid, every grouping, equal weights, are always right."""
    for places in itertools.product(range(4), repeat=3):
        f = torch.tensor(places, dtype=torch.float)[:, None]
        d = (f - f.T).square()
        for labels in ([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2]):
            labels = torch.tensor(labels)
            k = int(labels.max()) + 1
            chosen = toys.broken_medoid_update(d, labels, torch.ones(3), k)
            assert torch.equal(toys.cost_of(d, labels, torch.ones(3), chosen),
                               toys.least_cost(d, labels, torch.ones(3), k))


def test_paired_interval():
    def half(a, b, scale):
        return (a - b).mean(), scale(a, b)

    check_exercise("04", "c", wrong=[
        (lambda a, b: half(a, b, lambda a, b: 1.96 * ((a.var() + b.var()) / len(a)) ** 0.5), "the unpaired one"),
        (lambda a, b: half(a, b, lambda a, b: 1.96 * (a - b).std()), "divide by the root of n"),
        (lambda a, b: half(a, b, lambda a, b: 1.96 * (a - b).std() / len(a)), "falls with the *root*"),
        (lambda a, b: half(a, b, lambda a, b: 1.96 * (a - b).std(correction=0) / len(a) ** 0.5), "divide by n - 1"),
        (lambda a, b: half(a, b, lambda a, b: (a - b).std() / len(a) ** 0.5), "one standard error"),
        (lambda a, b: half(a, b, lambda a, b: 2 * 1.96 * (a - b).std() / len(a) ** 0.5), "the whole width"),
        (lambda a, b: ((b - a).mean(), 1.0), "that of b - a"),
        (lambda a, b: ((a - b).sum(), 1.0), "their sum"),
        (lambda a, b: (a - b, 1.0), "single numbers"),
        (lambda a, b: (a - b).mean(), "Return two things")])


# ---- the two steps ----

@pytest.mark.parametrize("method", ["k_means", "k_medoids"])
def test_steps_equal_loops_over_numbers(method):
    for name, seed in itertools.product(toys.CLOUDS, range(2)):
        f, _ = toys.cloud(name, seed=seed)
        begin = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:5]
        errors = [s.error for s in toys.steps(f, begin, method, rounds=6)[1:]]
        assert np.allclose(errors, brute_force_steps(f, begin, method, 6), rtol=1e-3)


@pytest.mark.parametrize(("method", "output"), [("k_means", "mean"), ("k_medoids", "medoid")])
def test_steps_equal_the_package(method, output):
    f, score = toys.cloud(toys.CLOUDS[0])
    begin = clustering.top_k(score[None], 4)
    run = toys.steps(f, begin[0], method, rounds=5)
    out = tp.pool_tokens(f[None], 4, method=method, init=begin, n_iter=5, output=output)
    assert torch.allclose(run[10].centres.float(), out.tokens[0], atol=1e-4)
    if method == "k_means":                        # K-Medoids assigns once more at the end
        assert run[10].error == pytest.approx(out.inertia.item(), rel=1e-4)


def test_the_toy_of_the_notebook():
    f, score = toys.six_tokens()
    begin = clustering.top_k(score[None], 3)[0].sort().values
    runs = {m: toys.steps(f, begin, m) for m in ("k_means", "k_medoids")}
    assert [round(s.error, 2) for s in runs["k_means"][1:4]] == [165, 74.75, 74.75]
    assert [round(s.error, 2) for s in runs["k_medoids"][1:7]] == [165, 117, 65, 30, 6, 6]
    assert toys.settled(runs["k_means"]) == 2
    assert toys.settled(runs["k_medoids"]) == 5
    assert toys.best_possible(f, 3) == {"k_means": 3.0, "k_medoids": 6.0}
    told = toys.told(f, runs["k_medoids"], 6)
    assert told[0].split() == ["0", "start", "centres", "10", "15", "16"]
    assert told[3].startswith("3 assign groups 0 2 | 9 10 15 | 16")
    assert told[3].endswith("error 65")
    assert toys.settled(runs["k_medoids"][:4]) is None, "cut while it moves"


def test_best_possible_equals_trying_all_medoids():
    f = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    d = torch.cdist(f, f).square()
    least = min(d[:, list(c)].min(1).values.sum().item() for c in itertools.combinations(range(6), 2))
    best = toys.best_possible(f, 2)
    assert best["k_medoids"] == pytest.approx(least, rel=1e-5)
    assert best["k_means"] < least


def test_the_error_never_rises_and_a_broken_update_is_seen_to():
    assert toys.rises(seeds=2) == (0, 2 * 4 * 2 * 11)
    f, _ = toys.six_tokens()
    d, ones = (f - f.T).square(), torch.ones(6)
    right = toys.run_with(toys.medoid_update.solution, d, torch.tensor([3, 4, 5]), ones, 3)
    broken = toys.run_with(toys.broken_medoid_update, d, torch.tensor([3, 4, 5]), ones, 3)
    assert right == [165, 117, 65, 30, 6, 6]
    assert broken[:2] == [165, 131], "it takes 9 for 0, 2, 9, 10; the right one is 2"
    assert broken[-1] > 6


# ---- the bug, counted ----

def test_cost_and_least_cost():
    d = (torch.tensor([0.0, 2.0, 9.0, 10.0, 15.0])[:, None] - torch.tensor([0.0, 2.0, 9.0, 10.0, 15.0])).square()
    labels, w = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1.0, 1.0, 1.0, 2.0, 5.0])
    assert toys.cost_of(d, labels, w, torch.tensor([1, 4])).tolist() == [4 + 49 + 2 * 64, 0]
    assert toys.least_cost(d, labels, w, 2).tolist() == [132, 0]


def test_wrong_updates(layers):
    tokens, score = layers[0]
    shares = []
    for w in (torch.ones_like(score), score):
        found = toys.wrong_updates(tokens, w, k=16)
        assert len(found) == 24 * 16
        assert found["inside"].all()
        assert (found.groupby(np.arange(len(found)) // 16)["size"].sum() == 64).all()
        assert (found["cost"] >= found["least"] * 0.9999 - 1e-6).all()
        assert not found[found["size"] == 1]["wrong"].any()
        shares.append(found[found["size"] > 2]["wrong"].mean())
    assert 0.6 < shares[0] < shares[1]
    equal = toys.wrong_updates(tokens, torch.ones_like(score), k=16)
    assert not equal[equal["size"] <= 2]["wrong"].any(), "two members of equal weight tie"


def test_symptom(layers):
    tokens, score = layers[0]
    found = toys.symptom(tokens[:12], score[:12], k=16)
    assert set(found) == {f"{u}, {w}" for u in ("right", "broken") for w in ("equal weights", "score as weight")}
    for name, errors in found.items():
        assert errors.shape == (10,)
        assert errors[0] == pytest.approx(1)
        ups = (np.diff(errors) > 1e-6).sum()
        assert ups == 0 if name.startswith("right") else ups >= 4
    assert len(toys.symptom_figure(found).data) == 4


# ---- starts ----

def test_error_path_equals_pool_tokens(layers):
    tokens, score = layers[0]
    variance = (tokens - tokens.mean(1, keepdim=True)).square().sum((1, 2))
    for name in ("top_k", "farthest_first"):
        out = tp.pool_tokens(tokens, 16, method="k_medoids", weights=score, init=name, output="medoid")
        path = toys.error_path(tokens, score, 16, name)
        assert path.shape == (1, 6, 24)
        assert torch.allclose(path[0, 5], out.inertia / variance, rtol=1e-3)
        assert (path.diff(dim=1) <= 1e-5).all(), "rounds never raise it"
    given = toys.random_starts(24, 64, 16, seed=3)
    out = tp.pool_tokens(tokens, 16, method="wk_medoids", weights=score, init=given, output="medoid")
    mean = (score[..., None] * tokens).sum(1, keepdim=True) / score.sum(1)[:, None, None]
    variance = (score * (tokens - mean).square().sum(2)).sum(1)
    path = toys.error_path(tokens, score, 16, "random", weighted=True, seeds=4)
    assert torch.allclose(path[3, 5], out.inertia / variance, rtol=1e-3)


def test_random_starts_differ_from_image_to_image():
    starts = toys.random_starts(50, 64, 16, seed=0)
    assert starts.shape == (50, 16)
    assert all(len(set(s)) == 16 for s in starts.tolist())
    assert len({tuple(sorted(s)) for s in starts.tolist()}) == 50
    x = torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))
    plus = toys.make_start("k_means_plus_plus", clustering.pairwise(x), torch.ones(6, 20), 5, seed=0)
    assert plus.shape == (6, 5)
    assert all(len(set(s)) == 5 for s in plus.tolist())
    assert len({s[0] for s in plus.tolist()}) > 1, "every image draws for itself"


def test_intervals_and_the_two_losses(layers):
    a, b = (torch.rand(200, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    line = toys.intervals({"top_k": a + 0.5, "random": a + 0.1 * b}).iloc[0]
    d, scale = (a + 0.5 - (a + 0.1 * b)).numpy(), 100 / (a + 0.1 * b).mean().item()
    assert line["difference"] == pytest.approx(scale * d.mean(), rel=1e-4)
    assert line["paired"] == pytest.approx(scale * 1.96 * d.std(ddof=1) / np.sqrt(200), rel=1e-3)
    assert line["unpaired"] > 5 * line["paired"]
    table = toys.gap_by_block(layers, 16)
    assert len(table) == 4
    assert table["held"].between(0, 1).all()
    equal, weighted = (table[table["loss"] == kind]["difference"].tolist()
                       for kind in ("equal weights", "score as weight"))
    assert min(equal) > 0 > weighted[1], "after the fourth block the weighted loss likes top-K"


def test_tables_at_full_size(layers):
    tokens, score = layers[0]
    table = toys.error_by_round(tokens, score, 16, rounds=5, seeds=2)
    assert list(table.groupby("init", sort=False).size()) == [6] * 4
    last = table[table["round"] == 5].set_index("init")["error"]
    assert last["farthest_first"] < last["k_means_plus_plus"] < last["random"] < last["top_k"]
    assert 0 <= toys.still_moving(tokens, score, 16, "top_k") < 0.25
    finals = toys.final_by_start(tokens, score, 16, seeds=3)
    assert {s: tuple(e.shape) for s, e in finals.items()} == {
        "top_k": (1, 24), "random": (3, 24), "farthest_first": (1, 24), "k_means_plus_plus": (3, 24)}
    fig = toys.strip_figure({s: e.mean(1).tolist() for s, e in finals.items()}, "?", "error")
    assert [len(t.x) for t in fig.data] == [1, 3, 1, 3]
    assert len(toys.round_figure(table).data) == 4
    assert len(toys.block_figure(toys.gap_by_block(layers[:1], 16, seeds=1)).data) == 2


def test_group_sizes(layers):
    tokens, score = layers[0]
    table = toys.group_sizes(tokens, score, 16).set_index("init")
    out = tp.pool_tokens(tokens, 16, weights=score, init="farthest_first")
    assert table.loc["farthest_first", "largest"] == pytest.approx(out.counts.amax(1).double().mean().item())
    assert table.loc["farthest_first", "alone"] == pytest.approx((out.counts == 1).sum(1).double().mean().item())
    assert table["largest"].idxmin() == table["alone"].idxmin() == "random"


# ---- recorded accuracies ----

def test_recorded_rows():
    tables = {p: toys.accuracy(p) for p in toys.PRESETS}
    for table in tables.values():
        plain = table[~table["counts"]]
        assert plain.groupby("stage")["init"].nunique().to_dict() == {"finetuned": 3, "untouched": 3}
        assert (table["low"] <= table["top1"]).all()
        assert (table["top1"] <= table["high"]).all()
    assert len(toys.accuracy_figure(tables).data) == 2 * 2 * 4


def test_accuracy_gaps_equal_differences_of_means():
    for preset, stage in itertools.product(toys.PRESETS, ("untouched", "finetuned")):
        means = toys.accuracy(preset).query("stage == @stage and not counts").set_index("init")["top1"]
        gap = toys.accuracy_gap(preset, "farthest_first", "random", stage)
        assert gap.value == pytest.approx(means["farthest_first"] - means["random"])
        assert 0.005 < gap.half < 0.04


def test_what_the_notebook_says_of_accuracy():
    for preset in toys.PRESETS:
        table = toys.accuracy(preset)
        plain = table[~table["counts"]].set_index(["stage", "init"])
        for stage in ("untouched", "finetuned"):
            errors = plain.loc[stage]["error"]
            assert errors["farthest_first"] < errors["random"] < errors["top_k"]
        assert toys.accuracy_gap(preset, "farthest_first", "random", "untouched").high < 0
        assert plain.loc["finetuned"]["top1"].idxmax() == "farthest_first"
        assert plain.loc["finetuned"]["top1"].idxmin() == "top_k"
        assert toys.robustness(preset).low > 0
        carried = table[table["counts"] & (table["stage"] == "untouched")].set_index("init")["top1"]
        assert carried["farthest_first"] > plain.loc["untouched"]["top1"]["farthest_first"]
    assert toys.with_counts("farthest_first") > toys.with_counts("random")


# ---- the explorer ----

@pytest.mark.parametrize("init_name", toys.INITS)
def test_scene_starts_and_ends_where_the_package_does(init_name):
    f, score = toys.cloud(toys.CLOUDS[2])
    out = tp.pool_tokens(f[None], 5, method="k_medoids", weights=score[None], init=init_name, n_iter=20,
                         output="medoid", generator=torch.Generator().manual_seed(7))
    c = toys.scene(toys.CLOUDS[2], "k_medoids", 5, init_name, 7, 16)
    assert c.final == pytest.approx(out.inertia.item(), rel=1e-3)
    if c.settled is not None:
        assert c.run[16].error == pytest.approx(c.final, rel=1e-3)
    assert {s: len(e) for s, e in c.finals.items()} == {s: toys.seeds_of(s, 50) for s in toys.INITS}


def test_left_alone_means_settled():
    f, _ = toys.cloud(toys.CLOUDS[3])
    for method in ("k_means", "k_medoids"):
        x = clustering.centred(f[None]).expand(50, -1, -1)
        begin = torch.cat([toys.cloud_start(toys.CLOUDS[3], 8, "random", s) for s in range(50)])
        ones = x.new_ones(x.shape[:2])
        source = clustering.pairwise(x) if method == "k_medoids" else x
        last, more = (getattr(clustering, method)(source, begin, ones, toys._LAST + extra)[0] for extra in (0, 1))
        assert torch.equal(last, more)


def test_scene_figure_always_has_the_same_traces():
    shapes = set()
    for method, k, s, at in (
            ("k_means", 2, "random", 0), ("k_means", 8, "top_k", 1), ("k_means", 8, "k_means_plus_plus", 16),
            ("k_medoids", 2, "farthest_first", 16), ("k_medoids", 8, "random", 2), ("k_medoids", 8, "top_k", 0)):
        c = toys.scene(toys.CLOUDS[0], method, k, s, 3, at)
        fig = toys.scene_figure(c)
        shapes.add(tuple(t.name for t in fig.data))
        tokens = fig.data[1]
        pairs = set(zip(tokens.marker.color, tokens.marker.symbol, strict=True))
        assert len(pairs) == (1 if at == 0 else len(set(c.run[at].labels.tolist()))), "colour and symbol, per group"
        ring = fig.data[-1]
        assert ring.y[0] == pytest.approx(c.final / c.best, abs=1e-3)
        assert ring.y[0] >= 0.999
    assert len(shapes) == 1


def test_words_say_what_changed():
    def words(at, method="k_medoids", init_name="top_k", seed=0):
        return toys.scene_words(toys.scene(toys.CLOUDS[1], method, 6, init_name, seed, at))

    assert "highest score" in words(0)
    assert "Nobody belongs" in words(0)
    assert "every token goes to its nearest centre" in words(1)
    assert "centres that go to the member that loses least for its group: " in words(2)
    assert "centres that go to the mean of their members" in words(2, "k_means")
    assert "tokens that change over to a nearer centre" in words(3)
    assert "nothing changes" in words(16)
    assert "settles after half-step 7" in words(16)
    assert "the best of all starts and seeds. 0 of 50" in words(16, init_name="farthest_first")
    assert words(0, init_name="random", seed=1) != words(0, init_name="random", seed=2)
    table = toys.scene_table(toys.scene(toys.CLOUDS[1], "k_medoids", 6, "top_k", 0, 0))
    assert list(table["kind"][:3]) == ["start", "assign", "move"]
    assert len(table) == 17


def test_a_crowd_keeps_four_centres_from_top_k_and_two_from_farthest_first():
    for init_name, inside in (("top_k", 4), ("farthest_first", 2)):
        c = toys.scene(toys.CLOUDS[1], "k_medoids", 6, init_name, 0, 16)
        assert int((c.run[16].centres[:, 0] > 0.5).sum()) == inside


def test_explorer_at_the_corners_of_every_control():
    explorer = toys.explore()
    assert explorer.error is None
    traces = len(explorer.figure.data)
    for settings in (dict(k=2), dict(k=8, at=0), dict(at=16), dict(init="random", seed=49), dict(seed=0),
                     dict(method="k_means"), dict(init="k_means_plus_plus"), dict(init="farthest_first", at=1),
                     *(dict(cloud_name=name) for name in toys.CLOUDS)):
        before = state_words(explorer)
        explorer.set(**settings)
        assert explorer.error is None, settings
        assert len(explorer.figure.data) == traces
        moved = settings.get("seed") is None or explorer.values()["init"] == "random"
        assert (state_words(explorer) != before) or not moved, settings


def test_against_chance():
    table = toys.against_chance().set_index("init")
    assert (table["of"] == 28).all()
    assert table.loc["top_k", "no_higher"] < table.loc["farthest_first", "no_higher"]
    assert table["above"].min() > 0
    assert table["above"].idxmax() == "top_k"


def test_steps_figure():
    f, _ = toys.six_tokens()
    runs = {m: toys.steps(f, torch.tensor([3, 4, 5]), m) for m in ("k_means", "k_medoids")}
    fig = toys.steps_figure(f, runs, until=6)
    assert len(fig.data) == 2 * (3 + 1 + 1)
    assert sum(len(t.x) for t in fig.data if t.name.startswith("group")) == 2 * 6 * 6
    assert {"74.75", "117", "6"} <= {a.text for a in fig.layout.annotations}


# ---- predictions ----

def test_predictions_follow_the_evidence():
    known = {p.id: p for p in toys.PREDICTIONS}
    a, b, c = (known[i].answer for i in "abc")
    assert [a(v) for v in (0.5, -2.9, -14.0, 13.7, 40.0, -60.0)] == [0, 0, 1, 2, 3, 3]
    assert [b(v) for v in (0.5, 0.2, 0.04)] == [0, 1, 2]
    assert [c(v) for v in ("farthest_first", "random", "top_k")] == [0, 1, 2]
    for p, evidence in ((known["a"], 13.7), (known["b"], 0.044), (known["c"], "random")):
        right = p.answer(evidence)
        assert set(p.why) == set(range(len(p.options))) - {right}, "every tempting wrong answer is explained"
        assert p.reveal(evidence, right).state == "right"
        assert p.reveal(evidence, None).state == "note"
        for wrong in p.why:
            assert p.why[wrong] in p.reveal(evidence, wrong).words


def test_the_planted_function_can_be_read_in_the_notebook():
    text = inspect.getsource(toys.broken_medoid_update)
    assert "w[:, None] * d" in text
