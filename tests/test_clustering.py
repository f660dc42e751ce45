"""The clusterings against oracles that share no code with them: brute force, scikit-learn, the kmedoids package."""

import itertools
import os
import warnings

import kmedoids
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans

import tokenpool as tp
from tokenpool.core import clustering, kernels

CLUSTERINGS = ("k_means", "wk_means", "k_medoids", "wk_medoids")


@pytest.fixture(autouse=True, scope="module", params=["plain", "auto"])
def _both_kernels(request):
    """Everything here is promised of plain PyTorch and of what is taken in its place where that can be had."""
    before = os.environ.get("TOKENPOOL_KERNEL")
    os.environ["TOKENPOOL_KERNEL"] = request.param
    yield
    del os.environ["TOKENPOOL_KERNEL"]
    if before is not None:
        os.environ["TOKENPOOL_KERNEL"] = before


def cloud(seed=0, b=3, n=20, c=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, n, c, generator=g, dtype=dtype), torch.rand(b, n, generator=g, dtype=dtype) + 0.05


def start_of(b, n, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=g)[:k] for _ in range(b)])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_iter", [1, 2, 5])
def test_k_means_equals_scikit_learns_lloyd(weighted, n_iter):
    x, w = cloud(1)
    start = start_of(3, 20, 6)
    out = tp.pool_tokens(x, 6, method="wk_means" if weighted else "k_means", weights=w, init=start, n_iter=n_iter)
    for b in range(3):
        theirs = KMeans(6, init=x[b, start[b]].numpy(), n_init=1, max_iter=n_iter, tol=0, algorithm="lloyd")
        with warnings.catch_warnings(action="ignore"):            # it warns that it has not converged
            theirs.fit(x[b].numpy(), sample_weight=w[b].numpy() if weighted else None)
        np.testing.assert_allclose(out.tokens[b].numpy(), theirs.cluster_centers_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_k_medoids_equals_the_kmedoids_package(seed):
    x, w = cloud(seed, b=2, n=25)
    d = clustering.pairwise(x)
    start = start_of(2, 25, 5, seed)
    labels, medoids = clustering.k_medoids(d, start, torch.ones_like(w), 50)
    for b in range(2):
        theirs = kmedoids.alternating(d[b].numpy(), start[b].numpy().astype(np.uint64), max_iter=50)
        assert sorted(medoids[b].tolist()) == sorted(np.asarray(theirs.medoids).tolist())
        own = d[b, torch.arange(25), medoids[b][labels[b]]].sum().item()
        assert own == pytest.approx(theirs.loss, rel=1e-9)


def plain_weighted_k_medoids(x, start, w, rounds):
    """Word for word what weighted K-Medoids is, with loops, in numpy."""
    n, medoids = len(x), list(start)
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    for _ in range(rounds):
        labels = [int(np.argmin([d[i, m] for m in medoids])) for i in range(n)]
        for k in range(len(medoids)):
            inside = [i for i in range(n) if labels[i] == k]
            medoids[k] = min(inside, key=lambda j, inside=inside: sum(w[i] * d[i, j] for i in inside))
    return sum(w[i] * min(d[i, m] for m in medoids) for i in range(n)), sorted(medoids)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounds", [1, 3])
def test_weighted_k_medoids_equals_its_definition(seed, rounds):
    x, w = cloud(seed, b=1, n=14, c=3)
    w = w ** 3                                   # weights that matter
    start = start_of(1, 14, 4, seed)
    out = tp.pool_tokens(x, 4, weights=w, init=start, n_iter=rounds, output="medoid")
    loss, medoids = plain_weighted_k_medoids(x[0].numpy(), start[0].tolist(), w[0].numpy(), rounds)
    assert sorted(out.indices[0].tolist()) == medoids
    assert out.inertia.item() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_starts_is_the_optimum_by_brute_force(seed):
    """K-Medoids from every possible start must include the optimal set, which is a fixed point."""
    x, w = cloud(seed, b=1, n=8, c=2)
    subsets = torch.tensor(list(itertools.combinations(range(8), 3)))
    d = clustering.pairwise(x)[0]
    best = min((w[0] * d[:, s].min(1).values).sum().item() for s in subsets)
    many = x.expand(len(subsets), -1, -1)
    out = tp.pool_tokens(many, 3, weights=w.expand(len(subsets), -1), init=subsets, output="medoid")
    assert out.inertia.min().item() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_k_means_reaches_the_optimum_over_all_partitions(seed):
    x, w = cloud(seed, b=1, n=7, c=2)
    best = np.inf
    for labels in itertools.product(range(2), repeat=7):
        labels = np.array(labels)
        if 0 < labels.sum() < 7:
            loss = 0.0
            for k in range(2):
                part, weight = x[0].numpy()[labels == k], w[0].numpy()[labels == k]
                mean = (weight[:, None] * part).sum(0) / weight.sum()
                loss += (weight * ((part - mean) ** 2).sum(1)).sum()
            best = min(best, loss)
    pairs = torch.tensor(list(itertools.combinations(range(7), 2)))
    out = tp.pool_tokens(x.expand(len(pairs), -1, -1), 2, method="wk_means", weights=w.expand(len(pairs), -1),
                         init=pairs, n_iter=20)
    assert out.inertia.min().item() == pytest.approx(best, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 24), data=st.data(), method=st.sampled_from(CLUSTERINGS),
       copies=st.booleans())
def test_the_objective_never_rises_and_no_cluster_is_empty(seed, n, data, method, copies):
    k = data.draw(st.integers(1, n))
    x, w = cloud(seed, b=2, n=n, c=3)
    if copies:
        x = x.round()                            # many tokens coincide
    start = start_of(2, n, k, seed)
    output = "medoid" if "medoids" in method else None
    before = None
    for rounds in range(1, 7):
        out = tp.pool_tokens(x, k, method=method, weights=w, init=start, n_iter=rounds, output=output)
        assert (out.counts >= 1).all()
        assert (out.counts.sum(1) == n).all()
        if before is not None:
            assert (out.inertia <= before * (1 + 1e-9) + 1e-9).all()
        before = out.inertia


def test_an_emptied_k_means_cluster_takes_the_worst_token():
    # centres 0, 1 and 1 again: the third is empty at once, and the token at 9 is the worst served
    x = torch.tensor([[[0.0], [1.0], [1.0], [9.0]]])
    out = tp.pool_tokens(x, 3, method="k_means", init=torch.tensor([[0, 1, 2]]), n_iter=1)
    assert out.counts.min() == 1
    assert out.inertia.item() == 0.0


def test_copies_are_told_apart():
    x = torch.zeros(1, 6, 2)
    for method in CLUSTERINGS:
        for init in tp.init_names():
            out = tp.pool_tokens(x, 4, method=method, weights=torch.ones(1, 6), init=init)
            assert out.counts.min() >= 1
            assert out.inertia.item() == 0.0


def test_farthest_first_by_hand():
    # mean 3.5, so 3 is first; then 10 (7 away), then 0 (3 away), then 1
    x = torch.tensor([[[0.0], [1.0], [3.0], [10.0]]])
    assert clustering.farthest_first(clustering.pairwise(x), 4).tolist() == [[2, 3, 0, 1]]


def test_k_means_plus_plus_draws_in_proportion_to_mass_times_distance():
    x = torch.tensor([[[0.0], [1.0], [3.0]]]).expand(1, 3, 1)
    mass = torch.tensor([[1.0, 2.0, 1.0]])
    d = clustering.pairwise(x)
    seen = np.zeros(3)
    g = torch.Generator().manual_seed(0)
    first = torch.zeros(3)
    for _ in range(4000):
        noise = torch.rand(2, generator=g)
        noise[0] *= 0.2                          # the first draw then always falls on token 0: its share is 1/4
        picked = clustering.k_means_plus_plus(d, 2, mass, noise)[0].tolist()
        first[picked[0]] += 1
        seen[picked[1]] += 1
    assert first.tolist() == [4000, 0, 0]
    np.testing.assert_allclose(seen / 4000, [0, 2 / 11, 9 / 11], atol=0.03)       # 2 * 1 and 1 * 9


@pytest.mark.parametrize("method", tp.method_names())
def test_a_image_does_not_notice_its_companions(method):
    x, w = cloud(3, b=4, n=16, dtype=torch.float32)
    whole = tp.pool_tokens(x, 5, method=method, weights=w)
    for b in range(4):
        alone = tp.pool_tokens(x[b:b + 1], 5, method=method, weights=w[b:b + 1])
        assert torch.equal(alone.labels[0], whole.labels[b])
        torch.testing.assert_close(alone.tokens[0], whole.tokens[b])


@pytest.mark.parametrize("method", CLUSTERINGS)
@pytest.mark.parametrize("init", ["top_k", "farthest_first"])
def test_order_scale_and_place_of_tokens_do_not_matter(method, init):
    x, w = cloud(4, b=2)
    base = tp.pool_tokens(x, 6, method=method, weights=w, init=init)
    turn = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    turned = tp.pool_tokens(x[:, turn], 6, method=method, weights=w[:, turn], init=init)
    torch.testing.assert_close(turned.inertia, base.inertia, rtol=1e-9, atol=1e-9)
    moved = tp.pool_tokens(x + 100, 6, method=method, weights=w, init=init)
    torch.testing.assert_close(moved.inertia, base.inertia, rtol=1e-7, atol=1e-9)
    scaled = tp.pool_tokens(x, 6, method=method, weights=w * 7, init=init)
    assert torch.equal(scaled.labels, base.labels)
    torch.testing.assert_close(scaled.inertia, base.inertia * (7 if method.startswith("w") else 1))


def test_large_offsets_do_not_drown_distances():
    """Float32, tokens 8192 away from the origin: only centred distances keep their digits.

    Coordinates are multiples of 1/64, so that moving them is exact and any change is the clustering's own.
    """
    x = (cloud(5, b=4, dtype=torch.float32)[0] * 64).round() / 64
    near = tp.pool_tokens(x, 6, method="k_medoids", init="farthest_first", output="medoid")
    far = tp.pool_tokens(x + 8192, 6, method="k_medoids", init="farthest_first", output="medoid")
    torch.testing.assert_close(far.inertia, near.inertia, rtol=1e-5, atol=0)
    assert torch.equal(near.labels, far.labels)


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_carried_counts_equal_repeated_tokens(method):
    """A token with count 3 pools as three copies of it would."""
    x, _ = cloud(6, b=1, n=9)
    counts = torch.tensor([[1, 3, 1, 2, 1, 1, 4, 1, 2]])
    repeated = x.repeat_interleave(counts[0], dim=1)
    first = counts[0].cumsum(0) - counts[0]
    start = torch.tensor([[0, 4, 6]])
    w = torch.ones(1, 9, dtype=x.dtype)
    ours = tp.pool_tokens(x, 3, method=method, weights=w, counts=counts, init=start)
    theirs = tp.pool_tokens(repeated, 3, method=method, weights=torch.ones(1, 16, dtype=x.dtype), init=first[start])
    assert ours.counts.tolist() == theirs.counts.tolist()
    assert ours.counts.sum().item() == 16
    torch.testing.assert_close(ours.tokens, theirs.tokens)
    torch.testing.assert_close(ours.inertia, theirs.inertia)


@pytest.mark.parametrize("method", tp.method_names())
def test_the_result_is_what_it_says(method):
    x, w = cloud(7, b=2, n=16)
    out = tp.pool_tokens(x, 5, method=method, weights=w)
    rebuilt = torch.stack([out.tokens[b][out.labels[b]] for b in range(2)])
    assert torch.equal(out.unpool(), rebuilt)
    used = w if method in ("wk_means", "wk_medoids", "evit") else torch.ones_like(w)
    torch.testing.assert_close(out.inertia, (used * (x - rebuilt).square().sum(-1)).sum(1))
    assert out.labels.dtype == torch.int64
    assert out.counts.sum(1).tolist() == [16, 16]
    if out.indices is not None and out.tokens.shape == x[:, :5].shape and method not in ("k_medoids", "wk_medoids"):
        assert torch.equal(out.tokens, torch.stack([x[b][out.indices[b]] for b in range(2)]))


@pytest.mark.parametrize("method", tp.method_names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_flow_and_the_choice_is_float32(method, dtype):
    x, w = cloud(8, b=2, n=16, dtype=torch.float32)
    x = x.to(dtype).requires_grad_()
    out = tp.pool_tokens(x, 5, method=method, weights=w.to(dtype))
    assert out.tokens.dtype == dtype
    out.tokens.float().sum().backward()
    # every output token is an average of inputs: the shares sum to K in every channel
    torch.testing.assert_close(x.grad.float().sum(1), torch.full((2, 4), 5.0), atol=0.05, rtol=0)
    wide = tp.pool_tokens(x.detach().float(), 5, method=method, weights=w.to(dtype).float())
    assert torch.equal(out.labels, wide.labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [*CLUSTERINGS, "top_k"])
def test_low_precision_tokens_are_compared_in_float32(method, dtype):
    """The labels of low-precision tokens are those of the same numbers in float32."""
    x, w = cloud(9, b=4, n=100, c=48, dtype=torch.float32)
    x = x.to(dtype)
    low = tp.pool_tokens(x, 20, method=method, weights=w)
    assert torch.equal(low.labels, tp.pool_tokens(x.float(), 20, method=method, weights=w).labels)


# ---- bottom up ----

def groups(labels):
    """A partition as a set of sets, whatever the names of the clusters are."""
    return {frozenset(np.flatnonzero(np.asarray(labels) == k).tolist()) for k in set(np.asarray(labels).tolist())}


def bottom_up(d, k, mass, kind):
    return kernels.pick("auto", d.device).agglomerative(d, k, mass, kind)


@pytest.mark.parametrize("kind", ["ward", "average", "complete"])
@pytest.mark.parametrize("k", [1, 2, 6, 16, 17])
def test_bottom_up_equals_scipys_hierarchy(kind, k):
    x, w = cloud(6, n=17, c=5)
    labels, medoids = bottom_up(clustering.pairwise(x), k, torch.ones_like(w), kind)
    for b in range(len(x)):
        between = pdist(x[b].numpy()) if kind == "ward" else pdist(x[b].numpy(), "sqeuclidean")
        assert groups(labels[b]) == groups(fcluster(linkage(between, kind), k, criterion="maxclust"))
        assert labels[b][medoids[b]].tolist() == list(range(k))
        firsts = [int((labels[b] == j).nonzero()[0]) for j in range(k)]
        assert firsts == sorted(firsts)
        d = squareform(pdist(x[b].numpy(), "sqeuclidean"))
        for j in range(k):
            inside = np.flatnonzero(labels[b].numpy() == j)
            assert medoids[b, j] == inside[d[np.ix_(inside, inside)].sum(0).argmin()]


def test_every_join_of_ward_loses_least_with_sizes():
    """Of all pairs that could be joined next, none would have raised the loss of the means by less."""
    x, w = cloud(3, b=2, n=9, c=3)
    sizes = (w * 5).ceil()

    def lost(b, sets):
        total = 0.0
        for s in sets:
            part, mass = x[b, list(s)].numpy(), sizes[b, list(s)].numpy()
            total += (mass[:, None] * (part - np.average(part, axis=0, weights=mass)) ** 2).sum()
        return total

    for b in range(2):
        before = {frozenset([i]) for i in range(9)}
        for k in range(8, 0, -1):
            out = tp.pool_tokens(x, k, method="ward", counts=sizes)
            best = min(lost(b, before - {p, q} | {p | q}) for p, q in itertools.combinations(before, 2))
            before = groups(out.labels[b])
            assert lost(b, before) == pytest.approx(best)
            assert out.inertia[b].item() == pytest.approx(best)


def test_bottom_up_by_hand_and_with_sizes():
    # 0 and 1 join, 1 apart; then 4 is 3.5 from the two on average and 3.2 from 7.2
    def joined(points, mass):
        x = torch.tensor(points)
        return groups(bottom_up((x[:, None] - x[None]).abs()[None], 2, torch.tensor([mass]), "average")[0][0])

    assert joined([0.0, 1.0, 4.0, 7.2], [1.0, 1, 1, 1]) == {frozenset({0, 1}), frozenset({2, 3})}
    # 7.6 is 3.6 from 4: farther than 3.5, but nearer than 3.75, the mean distance where 0 counts three times
    assert joined([0.0, 1.0, 4.0, 7.6], [1.0, 1, 1, 1]) == {frozenset({0, 1, 2}), frozenset({3})}
    assert joined([0.0, 1.0, 4.0, 7.6], [3.0, 1, 1, 1]) == {frozenset({0, 1}), frozenset({2, 3})}


def test_agglomerative_compares_by_cosine():
    """ATC: what points the same way joins, however long it is."""
    x = torch.tensor([[[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 9.0]]])
    assert tp.pool_tokens(x, 2, method="agglomerative").labels.tolist() == [[0, 0, 1, 1]]
    assert tp.pool_tokens(x, 2, method="ward").labels.tolist() != [[0, 0, 1, 1]]
