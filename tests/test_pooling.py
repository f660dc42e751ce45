"""Selections, the grid, and every way a request can be wrong."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenpool as tp
from tokenpool.core import methods, selection

ROOT = Path(__file__).resolve().parents[1]


def tokens(b=2, n=16, c=3, seed=0):
    return torch.randn(b, n, c, generator=torch.Generator().manual_seed(seed))


def test_the_names_of_the_contract():
    assert tp.method_names() == ("random", "importance", "importance_with_replacement", "top_k", "grid_average",
                                 "k_means", "wk_means", "k_medoids", "wk_medoids", "ward", "top_k_class", "evit",
                                 "ats", "tome", "pitome", "dpc_knn", "agglomerative")
    assert tp.init_names() == ("top_k", "random", "farthest_first", "k_means_plus_plus")


def test_top_k_keeps_the_highest_in_their_order():
    w = torch.tensor([[0.1, 0.9, 0.3, 0.9, 0.2]])
    x = torch.arange(5.0).reshape(1, 5, 1)
    out = tp.pool_tokens(x, 3, method="top_k", weights=w)
    assert out.indices.tolist() == [[1, 2, 3]]
    assert out.labels.tolist() == [[0, 0, 1, 2, 2]]
    assert out.counts.tolist() == [[2, 1, 2]]
    assert out.inertia.tolist() == [2.0]


@pytest.mark.parametrize("method", ["importance", "importance_with_replacement", "random"])
def test_draws_follow_their_law(method):
    """One token of four: how often each is drawn, against the weights; 3 sigma of 4000 draws is 0.024."""
    w = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x = torch.arange(4.0).reshape(1, 4, 1)
    g = torch.Generator().manual_seed(0)
    seen = np.bincount([tp.pool_tokens(x, 1, method=method, weights=w, generator=g).indices.item()
                        for _ in range(4000)], minlength=4) / 4000
    expected = [0.25] * 4 if method == "random" else [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(seen, expected, atol=0.024)


def test_importance_without_replacement_never_repeats_and_with_does():
    w = torch.tensor([[1.0, 1.0, 50.0, 1.0]])
    x = torch.arange(4.0).reshape(1, 4, 1)
    g = torch.Generator().manual_seed(0)
    without = [tp.pool_tokens(x, 3, method="importance", weights=w, generator=g) for _ in range(20)]
    assert all(len(set(o.indices[0].tolist())) == 3 for o in without)
    repeated = [tp.pool_tokens(x, 3, method="importance_with_replacement", weights=w, generator=g) for _ in range(20)]
    assert any(len(set(o.indices[0].tolist())) < 3 for o in repeated)
    assert all(o.counts.sum() == 4 for o in repeated)


def test_zero_weights_are_never_drawn():
    w = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    for method in ("importance", "importance_with_replacement"):
        for seed in range(30):
            out = tp.pool_tokens(tokens(1, 4), 2, method=method, weights=w,
                                 generator=torch.Generator().manual_seed(seed))
            assert set(out.indices[0].tolist()) <= {1, 3}


def test_grid_average_equals_torchs_average_pooling():
    image = torch.randn(2, 5, 14, 14, generator=torch.Generator().manual_seed(0))
    out = tp.pool_tokens(image.flatten(2).mT, 49, method="grid_average")
    expected = torch.nn.functional.avg_pool2d(image, 2).flatten(2).mT
    torch.testing.assert_close(out.tokens, expected)


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (8, 8), (4, 9), (1, 7)])
def test_grid_cells_are_never_empty_and_balanced(rows, cols):
    n = rows * cols
    place = selection.grid_positions(rows, cols)
    for k in range(1, n + 1):
        sizes = selection.grid_cells(place, k, rows / cols).bincount() if n == 1 else \
            torch.bincount(selection.grid_cells(place, k, rows / cols)[0], minlength=k)
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1


def test_the_same_generator_state_gives_the_same_answer():
    x, w = tokens(), torch.rand(2, 16, generator=torch.Generator().manual_seed(9))
    for method in tp.method_names():
        a, b = (tp.pool_tokens(x, 4, method=method, weights=w, generator=torch.Generator().manual_seed(5))
                for _ in range(2))
        assert torch.equal(a.labels, b.labels)
    before = torch.get_rng_state()
    tp.pool_tokens(x, 4, method="random")
    assert torch.equal(before, torch.get_rng_state())             # the global generator is left alone


def test_autocast_does_not_change_the_choice():
    x, w = tokens(2, 64, 32), torch.rand(2, 64, generator=torch.Generator().manual_seed(1))
    plain = tp.pool_tokens(x, 9, weights=w)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tp.pool_tokens(x, 9, weights=w)
    assert torch.equal(plain.labels, cast.labels)


def test_without_a_method_weights_decide_between_the_two_k_medoids():
    x, w = tokens(), torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    for options, method in ((dict(), "k_medoids"), (dict(weights=w), "wk_medoids")):
        ours, named = (tp.pool_tokens(x, 5, **options, **more) for more in (dict(), dict(method=method)))
        assert torch.equal(ours.tokens, named.tokens)
    assert not torch.equal(tp.pool_tokens(x, 5).tokens, tp.pool_tokens(x, 5, weights=w).tokens)


READ = ("tokens", "labels", "counts", "indices", "inertia")


def test_what_is_not_read_is_not_computed(monkeypatch):
    """A selection compares no tokens until someone asks which kept token is nearest, and then once."""
    calls = []
    distances = selection.squared_distances
    monkeypatch.setattr(selection, "squared_distances", lambda x, y: (calls.append(1), distances(x, y))[1])
    x, w = tokens(), torch.rand(2, 16)
    out = tp.pool_tokens(x, 4, method="top_k", weights=w)
    assert out.tokens.shape == (2, 4, 3)
    assert out.indices.shape == (2, 4)
    assert not calls
    nearest = torch.cdist(x, out.tokens).argmin(2)
    assert torch.equal(out.labels, nearest)
    assert out.counts.tolist() == [torch.bincount(row, minlength=4).tolist() for row in nearest]
    assert calls == [1]
    assert out.labels is out.labels
    torch.testing.assert_close(out.inertia, torch.cdist(x, out.tokens).min(2).values.square().sum(1))
    assert calls == [1]
    assert "inertia=tensor" in repr(out)


@pytest.mark.parametrize("method", ["top_k", "k_means", "wk_medoids", "tome"])
def test_a_result_is_copied_pickled_and_compiled(method):
    x, w = tokens(), torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    out = tp.pool_tokens(x, 4, method=method, weights=w)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: tp.pool_tokens(x, 4, method=method, weights=w), fullgraph=True, backend="eager")
    read = torch.compile(lambda x: tp.pool_tokens(x, 4, method=method, weights=w).inertia, fullgraph=True,
                         backend="eager")
    assert torch.equal(read(x), out.inertia)
    for other in (pickle.loads(pickle.dumps(tp.pool_tokens(x, 4, method=method, weights=w))), copy.deepcopy(out),
                  compiled(x)):
        for name in READ:
            ours, theirs = getattr(out, name), getattr(other, name)
            assert ours is theirs is None or torch.equal(ours, theirs)
    with pytest.raises(AttributeError):
        out.tokens = x


def test_only_the_tokens_have_a_gradient():
    x = tokens().requires_grad_()
    out = tp.pool_tokens(x, 4, method="k_means")
    assert out.tokens.requires_grad
    assert not out.inertia.requires_grad
    assert not out.error.requires_grad


X, W = tokens(), torch.ones(2, 16)
NAN = X.clone().index_fill_(1, torch.tensor([3]), float("nan"))
WRONG = [
    (dict(k=0), "k=0 keeps no token. Use k from 1 to 16."),
    (dict(k=-3), "k=-3 keeps no token"),
    (dict(k=17), "k=17 asks for more than the 16 tokens there are. Use k <= 16."),
    (dict(k=10**12), "asks for more than the 16 tokens"),
    (dict(k=2.5), "k=2.5 is not a number of tokens"),
    (dict(k=True), "k=True is not a number of tokens"),
    (dict(method="kmedoid"), "Unknown method 'kmedoid'. Did you mean 'k_medoids' or 'wk_medoids'?"),
    (dict(method="zzz"), "Unknown method 'zzz'. Use one of 'random'"),
    (dict(init="farthest"), "Did you mean 'farthest_first'?"),
    (dict(output="medoids"), "Did you mean 'medoid'?"),
    (dict(n_iter=0), "n_iter=0 is not a number of iterations"),
    (dict(weights=None, method="wk_medoids"), "method='wk_medoids' needs weights, one score per token"),
    (dict(weights=None, method="top_k"), "method='top_k' needs weights"),
    (dict(weights=None, method="k_medoids", init="top_k"), "init='top_k' needs weights"),
    (dict(weights=None, method="k_means", output="weighted_mean"), "output='weighted_mean' needs weights"),
    (dict(weights=torch.ones(2, 15)), r"Got weights of shape \(2, 15\) for tokens"),
    (dict(weights=-W), "must be finite and not negative"),
    (dict(weights=W * float("nan")), "must be finite and not negative"),
    (dict(weights=W * 0), "are zero, so they cannot rank"),
    (dict(counts=-W), "counts from -1 to -1; they must be finite and not negative"),
    (dict(x=NAN), "2 of 32 tokens in x hold NaN or infinity"),
    (dict(x=X / 0), "in x hold NaN or infinity"),
    (dict(x=X[0]), r"torch.float32 of shape \(16, 3\). Expected a float tensor of shape"),
    (dict(x=X.long()), "float tensor"),
    (dict(x=X[:0], weights=W[:0]), "There is nothing to pool"),
    (dict(x="image"), "Got tokens of type str"),
    (dict(method="grid_average", grid=(3, 5)), "has 15 places for 16 tokens"),
    (dict(init=torch.zeros(2, 4, dtype=torch.int64)), "names the same token twice"),
    (dict(init=torch.full((2, 4), 99)), "there are tokens 0 to 15"),
    (dict(init=torch.zeros(2, 3, dtype=torch.int64)), r"Pass int64 token indices of shape \(2, 4\)"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_requests_are_refused_with_what_to_type(change, says):
    request = dict(x=X, k=4, weights=W) | change
    with pytest.raises(ValueError, match=says.replace("(", r"\(").replace(")", r"\)").replace(r"\\", "\\")
                       if "\\" not in says else says):
        tp.pool_tokens(request.pop("x"), request.pop("k"), **request)


def test_a_grid_must_be_said_where_it_is_no_square():
    with pytest.raises(ValueError, match="15 tokens are not a square grid"):
        tp.pool_tokens(tokens(n=15), 4, method="grid_average")
    assert tp.pool_tokens(tokens(n=15), 4, method="grid_average", grid=(3, 5)).counts.sum() == 30


def test_a_new_method_is_one_function_and_one_row(monkeypatch):
    def keep_first(r):
        return methods.Choice(indices=torch.arange(r.k).expand(len(r.x), -1))

    monkeypatch.setitem(methods.METHODS, "first", methods.Method(
        description="keep the first K", choose=keep_first, kind="selection"))
    assert tp.pool_tokens(X, 3, method="first").indices.tolist() == [[0, 1, 2]] * 2


def test_contributings_example_is_a_method_everywhere(tmp_path):
    """CONTRIBUTING.md's example, put where it says, is a method everywhere."""
    told = (ROOT / "CONTRIBUTING.md").read_text().split("## A new method")[1]
    function, row = told.split("```python\n")[1].split("```")[0].strip().split("\n\n")
    shutil.copytree(ROOT / "tokenpool", tmp_path / "tokenpool", ignore=shutil.ignore_patterns("__pycache__"))
    methods = tmp_path / "tokenpool" / "core" / "methods.py"
    head, table, rest = methods.read_text().partition("METHODS: dict[str, Method] = {\n")
    methods.write_text(f"{head}{function}\n\n\n{table}    {row}\n{rest}")
    code = ("import timm, torch, tokenpool as tp\n"
            "x = torch.arange(12.0).reshape(1, 6, 2)\n"
            "print(tp.pool_tokens(x, 2, method='longest').tokens.flatten().tolist())\n"
            "pooled = tp.PooledViT(timm.create_model('pebbles_vit').eval(), saving=0.42, method='longest')\n"
            "print(tuple(pooled(torch.randn(2, 3, 64, 64)).shape), tp.macs(pooled).clustering)\n"
            "from tokenpool.cli import main\n"
            "main(['macs', 'deit_tiny_patch16_224', '--saving', '0.42', '--method', 'longest'])\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.stdout.splitlines()[:2] == ["[8.0, 9.0, 10.0, 11.0]", "(2, 30) 0"], done.stderr[-1000:]
    assert "pooled  0.7" in done.stdout
