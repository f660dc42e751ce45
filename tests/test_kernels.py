"""Every kernel against clustering.py: the same answers, wherever they are computed.

The Triton programs run through Triton's interpreter where there is no GPU, in a process of their own, because Triton
decides when it is imported. That they also compile for a GPU is tested without one.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch

import tokenpool as tp
from tokenpool.core import clustering, kernels
from tokenpool.models import attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def modules():
    if INTERPRETED or DEVICE == "cuda":
        from tokenpool.core.kernels import cuda
        yield pytest.param(cuda, id="triton")
    if not INTERPRETED and find_spec("numba"):
        from tokenpool.core.kernels import cpu
        yield pytest.param(cpu, id="numba")


each_kernel = pytest.mark.parametrize("kernel", list(modules()))


def clouds(kind, n=70, c=24, b=2):
    """Tokens as they come, in groups, with copies, with one of enormous length, and in a large offset."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, n, c, generator=g)
    if kind == "clustered":
        x = 5 * x[:, torch.randint(6, (n,), generator=g)] + 0.1 * torch.randn(b, n, c, generator=g)
    if kind == "duplicated":
        x = x[:, torch.randint(n // 3, (n,), generator=g)]
    if kind == "extreme":
        x[:, 3] *= 1e4
        x[:, 5] *= 1e-6
    weights = torch.rand(b, n, generator=g) ** 3
    weights[:, ::7] = 0
    return clustering.centred(x).to(DEVICE), weights.to(DEVICE)


KINDS = ("random", "clustered", "duplicated", "extreme")
KS = (9, 45) if INTERPRETED else (1, 9, 45, 70)              # the interpreter is slow


def home(kernel):
    return "cpu" if kernel.__name__.endswith("cpu") or INTERPRETED else "cuda"


@each_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_distances(kernel, kind):
    x, _ = (t.to(home(kernel)) for t in clouds(kind))
    d, exact = kernel.pairwise(x), clustering.pairwise(x.double())
    assert torch.equal(d, d.mT)
    scale = (x.double() ** 2).sum(-1)
    assert ((d - exact).abs() <= 2e-6 * (scale[:, :, None] + scale[:, None, :]) + 1e-12).all()


@each_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_starts_and_medoids(kernel, kind):
    """Labels and medoids are clustering.py's; among copies, where everything is a tie, the loss is."""
    x, weights = (t.to(home(kernel)) for t in clouds(kind))
    d = clustering.pairwise(x)
    for k in KS:
        start = kernel.farthest_first(d, k)
        assert torch.equal(start, clustering.farthest_first(d, k))
        for first in (start, clustering.top_k(weights, k)):
            for mass in (weights, torch.ones_like(weights)):
                labels, medoids = kernel.k_medoids(d, first, mass, 4)
                theirs = clustering.k_medoids(d, first, mass, 4)
                if kind != "duplicated":
                    assert torch.equal(labels, theirs[0])
                    assert torch.equal(medoids, theirs[1])
                torch.testing.assert_close(loss(d, labels, medoids, mass), loss(d, *theirs, mass))
                assert torch.equal(labels.gather(1, medoids), torch.arange(k, device=d.device).expand(2, -1))


def loss(d, labels, medoids, mass):
    return (d.gather(2, medoids.gather(1, labels)[..., None])[..., 0] * mass).sum(1)


@each_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_k_means(kernel, kind):
    x, weights = (t.to(home(kernel)) for t in clouds(kind))
    for k in KS:
        start = clustering.top_k(torch.rand(2, 70, generator=torch.Generator().manual_seed(2)).to(x.device), k)
        for mass in (weights, torch.ones_like(weights)):
            labels, nearest = kernel.k_means(x, start, mass, 4)
            theirs, _ = clustering.k_means(x, start, mass, 4)
            if kind in ("random", "clustered"):
                assert torch.equal(labels, theirs)
            assert (clustering.members(labels, k).sum(1) >= 1).all()
            assert torch.equal(labels.gather(1, nearest), torch.arange(k, device=x.device).expand(2, -1))
            means = clustering.cluster_means
            lost = [(mass * (x - clustering.take(means(x, some, k, mass), some)).square().sum(-1)).sum(1)
                    for some in (labels, theirs)]
            torch.testing.assert_close(*lost, rtol=1e-3 if kind != "random" else 1e-5, atol=1e-3)


@each_kernel
@pytest.mark.parametrize("linkage", ["ward", "average", "complete"])
@pytest.mark.parametrize("kind", KINDS)
def test_bottom_up(kernel, kind, linkage):
    """The same groups, numbers and medoids as clustering.py, copies and tokens that stand for nobody included."""
    x, weights = (t.to(home(kernel)) for t in clouds(kind))
    d = clustering.pairwise(x)
    for k in (30,) if INTERPRETED else KS:
        for mass in (weights, (4 * weights).ceil()):
            labels, medoids = kernel.agglomerative(d, k, mass, linkage)
            theirs = clustering.agglomerative(d, k, mass, linkage)
            assert torch.equal(labels, theirs[0])
            assert torch.equal(labels.gather(1, medoids), torch.arange(k, device=d.device).expand(2, -1))
            torch.testing.assert_close(loss(d, labels, medoids, mass), loss(d, *theirs, mass))


@each_kernel
def test_bottom_up_survives_what_is_not_a_number(kernel):
    """A diverged model must not write outside of its memory: k clusters, whatever the distances."""
    d = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)).to(home(kernel))
    d = d + d.mT
    d[0], d[1, 3], d[1, :, 3], d[2, 4], d[2, :, 4] = torch.nan, torch.nan, torch.nan, torch.inf, torch.inf
    for linkage in ("ward", "average"):
        labels, medoids = kernel.agglomerative(d, 6, torch.ones(3, 20, device=d.device), linkage)
        assert (clustering.members(labels, 6).sum(1) >= 1).all()
        assert set(medoids.flatten().tolist()) <= set(range(20))


@each_kernel
def test_means_and_their_gradient(kernel):
    x, weights = (t.to(home(kernel)) for t in clouds("random"))
    labels, _ = clustering.k_medoids(clustering.pairwise(x), clustering.top_k(weights, 20), weights, 3)
    pull = torch.randn(2, 20, 24, generator=torch.Generator().manual_seed(3)).to(x.device)
    found = []
    for module in (kernel, clustering):
        tokens = x.clone().requires_grad_()
        means = module.cluster_means(tokens, labels, 20, weights)
        (means * pull).sum().backward()
        found.append((means.detach(), tokens.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="Triton runs on a GPU or interpreted; see below")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["received", "received_with_self"])
def test_triton_attention_received(kind, biased):
    from tokenpool.core.kernels import cuda
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 70, 3, 42, generator=g).transpose(1, 2).to(DEVICE) for _ in range(2))
    bias = torch.randint(1, 9, (2, 1, 1, 70), generator=g).log().to(DEVICE) if biased else None
    matrix = (0.2 * q @ k.mT + (0 if bias is None else bias)).softmax(-1)
    ours = cuda.received(q, k, 0.2, bias, kind == "received_with_self")
    torch.testing.assert_close(ours, attention.SCORES[kind].per_head(matrix), rtol=1e-4, atol=1e-5)


if not INTERPRETED:

    @pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
    @pytest.mark.slow
    @pytest.mark.timeout(280)
    def test_triton_through_its_interpreter():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", __file__]
        done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                              cwd=Path(__file__).parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert done.stdout.startswith("." * 30)

    @pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
    def test_triton_programs_compile_for_a_gpu():
        """Down to machine code for compute capability 9.0, which needs no GPU, and into the memory that one has."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from tokenpool.core.kernels import cuda
        types = {"scale": "fp32"}                # all other arguments are sizes and strides
        types |= dict.fromkeys(("x", "norms", "d", "mass", "cost", "means", "totals", "sums", "received"), "*fp32")
        types |= dict.fromkeys(("gap", "low_of"), "*fp32") | dict.fromkeys(("near_of", "head_of"), "*i64")
        types |= dict.fromkeys(("first", "medoids", "labels"), "*i64") | dict.fromkeys(("q", "k", "bias"), "*bf16")
        tile = dict(ROWS=64, COLUMNS=64)
        for program, constants in (
                (cuda._distances, dict(TILE=64, STEP=32)),
                (cuda._cluster, dict(GROW=True, WHOLE=256, ROWS=cuda.ROWS, COLUMNS=cuda.COLUMNS)),
                (cuda._join_up, dict(LINKAGE="ward", WHOLE=256, ROWS=cuda.ROWS, COLUMNS=cuda.COLUMNS)),
                (cuda._best_members, dict(ROWS=cuda.ROWS, COLUMNS=cuda.COLUMNS)),
                (cuda._average, dict(ROWS=32, COLUMNS=32, WIDE=64)),
                (cuda._row_sums, dict(BIAS=True, WIDE=64, **tile)),
                (cuda._column_sums, dict(BIAS=True, SELF=False, WIDE=64, **tile))):
            signature = {name: types.get(name, "i32") for name in program.arg_names}
            signature |= dict.fromkeys(constants, "constexpr")
            source = ASTSource(fn=program, constexprs=constants, signature=signature)
            made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert len(made.asm["cubin"]) > 1000
            assert made.metadata.shared <= 100 * 1024

    def test_which_kernel_is_taken(monkeypatch):
        cpu, cuda = torch.device("cpu"), torch.device("cuda")
        monkeypatch.delenv("TOKENPOOL_KERNEL", raising=False)
        assert kernels.pick("plain", cuda) is clustering
        if find_spec("numba"):
            assert kernels.pick("auto", cpu) is kernels.pick("numba", cpu) is not clustering
        monkeypatch.setenv("TOKENPOOL_KERNEL", "plain")
        assert kernels.pick("auto", cpu) is clustering
        monkeypatch.setenv("TOKENPOOL_KERNEL", "fast")
        with pytest.raises(ValueError, match="TOKENPOOL_KERNEL='fast' is no kernel"):
            kernels.pick("auto", cpu)
        with pytest.raises(ValueError, match="computes on cuda, and these tokens are on cpu"):
            kernels.pick("triton", cpu)
        with pytest.raises(ValueError, match="Did you mean 'numba'"):
            tp.PooledViT(timm.create_model("pebbles_vit"), keep=0.8, kernel="numbas")

    def test_a_missing_or_broken_package_means_plain(monkeypatch, caplog):
        monkeypatch.delenv("TOKENPOOL_KERNEL", raising=False)
        cpu = torch.device("cpu")
        monkeypatch.setattr(kernels, "_MODULES", {"plain": clustering})
        kernels._load.cache_clear()
        monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
        assert kernels.pick("auto", cpu) is clustering
        with pytest.raises(ValueError, match="pip install numba"):
            kernels.pick("numba", cpu)

        def refuse(name):
            raise ImportError("Numba needs NumPy 2.3 or less")

        kernels._load.cache_clear()
        monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: True)
        monkeypatch.setattr(kernels.importlib, "import_module", refuse)
        assert kernels.pick("auto", cpu) is clustering
        assert "Numba needs NumPy 2.3 or less" in caplog.text
        kernels._load.cache_clear()

    @pytest.mark.parametrize("options", [dict(), dict(init="farthest_first", carry_counts=True),
                                         dict(method="wk_means"), tp.OFF_THE_SHELF, dict(method="agglomerative"),
                                         dict(method="top_k", score="class_token"),
                                         dict(method="random", position="before_mlp")])
    def test_a_model_answers_the_same_by_every_kernel(options):
        torch.manual_seed(0)
        vit = timm.create_model("pebbles_vit").eval()
        x = torch.randn(7, 3, 64, 64)
        with torch.no_grad():
            plain, auto = (tp.PooledViT(vit, [40, 30, 20, 10, 5, 5], kernel=k, **options)(x) for k in ("plain", "auto"))
        torch.testing.assert_close(auto, plain, rtol=1e-4, atol=1e-5)
        with_gradient = tp.PooledViT(vit, [40, 30, 20, 10, 5, 5], **options)(x)
        torch.testing.assert_close(with_gradient.detach(), plain, rtol=1e-4, atol=1e-5)

    def test_one_graph_for_every_batch():
        """No graph break, and no new graph for new images."""
        pooled = tp.PooledViT(timm.create_model("pebbles_vit").eval(), [40, 30, 20, 10, 5, 5], carry_counts=True)
        torch._dynamo.reset()
        graphs = []
        compiled = torch.compile(pooled, fullgraph=True, dynamic=False,
                                 backend=lambda graph, _: graphs.append(graph) or graph.forward)
        with torch.no_grad():
            for seed in range(3):
                x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
                torch.testing.assert_close(compiled(x), pooled(x), rtol=1e-4, atol=1e-5)
        assert len(graphs) == 1

    def test_large_sets_are_pooled_in_parts(monkeypatch):
        """A few images, and a few heads, at a time: the same answer, to the last bit."""
        x, weights = clouds("random", b=5)
        whole = tp.pool_tokens(x, 9, weights=weights)
        monkeypatch.setattr(kernels, "_HELD", {"cpu": 2 * 70**2})
        parts = tp.pool_tokens(x, 9, weights=weights)
        for name in ("tokens", "labels", "counts", "indices", "inertia"):
            assert torch.equal(getattr(parts, name), getattr(whole, name))
        g = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(5, 3, 17, 8, generator=g) for _ in range(3))
        bias = torch.rand(5, 1, 1, 17, generator=g).log()
        wanted = attention.Wanted("received", 1)
        y, score = attention.attend_and_score(q, k, v, 0.3, bias, wanted)
        for held in (1, 2, 3, 7):                            # (image, head) pairs at a time
            monkeypatch.setattr(kernels, "_HELD", {"cpu": held * 17**2})
            some = attention.attend_and_score(q, k, v, 0.3, bias, wanted)
            torch.testing.assert_close(some, (y, score), rtol=1e-6, atol=1e-6)

    def test_attentions_dropout_is_kept_without_gradient():
        q, k, v = torch.randn(3, 2, 3, 17, 8, generator=torch.Generator().manual_seed(0))
        for kind in ("received", "class_token"):
            wanted = attention.Wanted(kind, 1)
            plain, score = attention.attend_and_score(q, k, v, 0.3, None, wanted, drop=torch.nn.Dropout(0.5).eval())
            dropped, same = attention.attend_and_score(q, k, v, 0.3, None, wanted, drop=torch.nn.Dropout(0.5))
            torch.testing.assert_close(score, same)              # the score is that of attention before it is dropped
            assert (dropped - plain).abs().mean() > 0.05

    @pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here")
    def test_a_gpu_never_waits_and_can_record_it_all():
        """No answer goes back to the host in a forward pass, so a CUDA graph can record it."""
        pooled = tp.PooledViT(timm.create_model("pebbles_vit").eval(), saving=0.42, carry_counts=True).cuda()
        x = torch.randn(8, 3, 64, 64, device="cuda")
        with torch.no_grad():
            expected = pooled(x)
            torch.cuda.set_sync_debug_mode("error")
            try:
                pooled(x)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                recorded = pooled(x)
            graph.replay()
        torch.testing.assert_close(recorded, expected)
