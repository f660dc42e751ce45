"""PooledViT's promises: state dicts, copies, export, compile, gradients, dynamic sizes, trace."""

import copy
import io

import pytest
import timm
import torch

import tokenpool as tp
from tokenpool.models import attention

K = [40, 30, 20, 10, 5, 5]


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("pebbles_vit", **options).eval()


def images(b=3, size=64):
    return torch.randn(b, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_state_dicts_are_timms_both_ways():
    a, b = vit(), vit()
    for p in b.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pooled = tp.PooledViT(a, keep=0.8)
    assert list(pooled.state_dict()) == list(a.state_dict())
    pooled.load_state_dict(b.state_dict())
    assert torch.equal(a(images()), b(images()))
    fresh = vit()
    fresh.load_state_dict(pooled.state_dict())
    assert torch.equal(fresh(images()), b(images()))
    with pytest.raises(RuntimeError, match="Missing key"):
        pooled.load_state_dict({})
    wrapped = torch.nn.Sequential(pooled)
    wrapped.load_state_dict(wrapped.state_dict())


def test_parameters_are_shared_and_unpooling_gives_the_model_back():
    model = vit()
    pooled = tp.PooledViT(model, K, method="top_k")
    assert {id(p) for p in pooled.parameters()} == {id(p) for p in model.parameters()}
    assert not torch.equal(pooled(images()), model(images()))
    pooled.schedule = None
    assert torch.equal(pooled(images()), model(images()))
    pooled.schedule = K
    assert pooled.schedule == tuple(K)
    with pytest.raises(ValueError, match="PooledViT already"):
        tp.PooledViT(pooled)


@pytest.mark.parametrize("method", tp.method_names())
def test_twice_the_same_and_copies_and_saves(method):
    pooled = tp.PooledViT(vit(), K, method=method, init="random" if "k_me" in method else None, carry_counts=True)
    x = images()
    first = pooled(x)
    assert torch.equal(pooled(x), first)
    assert torch.equal(copy.deepcopy(pooled)(x), first)
    file = io.BytesIO()
    torch.save(pooled, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), first)
    torch.testing.assert_close(pooled(x[1:2]), first[1:2], atol=1e-5, rtol=1e-4)      # no matter the companions


def test_a_generator_draws_anew_and_a_seed_repeats():
    x = images()
    pooled = tp.PooledViT(vit(), K, method="random")
    assert not torch.equal(pooled(x, generator=torch.Generator().manual_seed(1)),
                           pooled(x, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(tp.PooledViT(vit(), K, method="random", seed=7)(x), pooled(x))
    assert torch.equal(pooled(x, generator=torch.Generator().manual_seed(1)),
                       pooled(x, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("method", "init"), [(m, None) for m in tp.method_names()]
                         + [("wk_medoids", i) for i in tp.init_names()])
def test_compiles_in_one_graph(method, init):
    pooled = tp.PooledViT(vit(), [20, 20, 6, 6, 3, 3], method=method, init=init, carry_counts=True)
    torch._dynamo.reset()
    compiled = torch.compile(pooled, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), pooled(images()))


def test_exports_twice_with_a_dynamic_batch():
    pooled = tp.PooledViT(vit(), K, carry_counts=True)
    for _ in range(2):
        program = torch.export.export(pooled, (images(4),), dynamic_shapes={
            "x": {0: torch.export.Dim("batch", min=2, max=64)}})
        torch.testing.assert_close(program.module()(images(3)), pooled(images(3)))
    assert torch.isfinite(pooled(images())).all()


@pytest.mark.parametrize("method", tp.method_names())
def test_trains(method):
    model = vit().train()
    pooled = tp.PooledViT(model, K, method=method).train()
    loss = torch.nn.functional.cross_entropy(pooled(images()), torch.tensor([1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.pos_embed.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_nothing():
    model = vit().train()
    pooled = tp.PooledViT(model, K).train()
    plain = pooled(images())
    model.set_grad_checkpointing(True)
    torch.testing.assert_close(pooled(images()), plain)


def test_half_precision_and_autocast():
    pooled = tp.PooledViT(vit(), K, carry_counts=True)
    with torch.no_grad():
        full = pooled(images())
        with torch.autocast("cpu", torch.bfloat16):
            cast = pooled(images())
        low = tp.PooledViT(vit().bfloat16(), K, carry_counts=True)(images().bfloat16())
    for other in (cast, low):
        assert torch.isfinite(other).all()
        assert (other.float() - full).abs().mean() < 0.2 * full.std()


def test_features_heads_and_intermediates_have_timms_shapes():
    model = vit()
    x = images()
    pooled = tp.PooledViT(model, K)
    assert pooled.forward_features(x).shape == (3, 1 + 5, 96)
    torch.testing.assert_close(pooled.forward_head(pooled.forward_features(x)), pooled(x))
    assert pooled.forward_head(pooled.forward_features(x), pre_logits=True).shape == (3, 96)
    final, maps = pooled.forward_intermediates(x, indices=[1, 4])
    reference = model.forward_intermediates(x, indices=[1, 4])[1]
    assert [m.shape for m in maps] == [m.shape for m in reference]
    torch.testing.assert_close(final, pooled.forward_features(x))
    assert [len(m.flatten(2)[0].unique(dim=1).T) for m in maps] == [30, 5]            # K different columns
    pooled.schedule = None
    for ours, theirs in zip(pooled.forward_intermediates(x, indices=3, norm=True, return_prefix_tokens=True)[1],
                            model.forward_intermediates(x, indices=3, norm=True, return_prefix_tokens=True)[1],
                            strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_dynamic_sizes():
    model = vit(dynamic_img_size=True)
    pooled = tp.PooledViT(model, saving=0.4)
    for height, width in ((64, 64), (96, 48), (128, 128), (16, 16)):
        x = torch.randn(2, 3, height, width)
        out = pooled.trace(x)
        n = height * width // 64
        assert out.grid == (height // 8, width // 8)
        assert out.steps[-1].kept < n
        assert abs(tp.macs(pooled, (height, width)).total / tp.macs(model, (height, width)).total - 0.6) < 0.12
    listed = tp.PooledViT(model, K)
    small = torch.randn(2, 3, 16, 16)                          # 4 tokens: every entry of K asks for more
    assert torch.equal(listed(small), model(small))


def test_trace_follows_tokens_to_the_patches():
    pooled = tp.PooledViT(vit(), K, method="k_medoids", output="medoid")
    x = images(2)
    trace = pooled.trace(x)
    assert torch.equal(trace.logits, pooled(x))
    for step, k in zip(trace.steps, K, strict=True):
        assert step.tokens.shape == (2, k, 96)
        assert step.labels.shape == (2, 64)
        assert (torch.stack([torch.bincount(row, minlength=k) for row in step.labels]) == step.counts).all()
        # a medoid token is its own stand-in
        assert torch.equal(step.labels.gather(1, step.origin), torch.arange(k).expand(2, -1))
        assert ((step.error >= 0) & (step.error <= 1)).all()
    assert [s.pooled for s in trace.steps] == [True] * 5 + [False]


def test_rotary_positions_follow_the_medoids():
    """With all attention outputs zero a block leaves tokens as they are; the rope that arrives is the medoid's."""
    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2, num_classes=3).eval()
    ropes = []
    model.blocks[1].register_forward_pre_hook(lambda m, args, kwargs: ropes.append(kwargs["rope"]), with_kwargs=True)
    pooled = tp.PooledViT(model, [5, 5], method="k_medoids", output="medoid")
    step = pooled.trace(torch.randn(2, 3, 56, 56)).steps[0]
    table = model.rope.get_embed()
    assert torch.equal(ropes[0][:, 0], table[step.origin])


def test_carried_counts_equal_copies_in_attention():
    """A block sees one token with count 3 exactly as it sees three equal tokens."""
    model = vit()
    block, x = model.blocks[0], torch.randn(1, 4, 96)
    bias = torch.tensor([1.0, 1.0, 3.0, 1.0]).log().reshape(1, 1, 1, 4)
    copies = block(x[:, [0, 1, 2, 2, 2, 3]])
    torch.testing.assert_close(block(x, attn_mask=bias), copies[:, [0, 1, 2, 5]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention.run_block(block, x, None, bias)[0], copies[:, [0, 1, 2, 5]],
                               atol=1e-5, rtol=1e-4)


def test_the_bias_is_the_log_of_the_counts():
    pooled = tp.PooledViT(vit(), K, method="k_medoids", carry_counts=True)
    biases = []
    pooled.vit.blocks[5].register_forward_pre_hook(
        lambda m, args, kwargs: biases.append(kwargs["attn_mask"]), with_kwargs=True)
    trace = pooled.trace(images(2))
    expected = torch.cat((torch.zeros(2, 1), trace.steps[4].counts.float().log()), dim=1)
    torch.testing.assert_close(biases[0][:, 0, 0], expected)


def test_an_average_pooling_head_counts_every_patch():
    model = vit(global_pool="avg", class_token=False)
    pooled = tp.PooledViT(model, [64, 64, 64, 64, 64, 7], carry_counts=True, method="k_means",
                          init="farthest_first")
    x = images()
    step = pooled.trace(x).steps[-1]
    weighted = (model.norm(step.tokens) * (step.counts / 64)[..., None]).sum(1)
    torch.testing.assert_close(pooled(x), model.head(model.fc_norm(weighted)))


def test_significance_by_hand():
    a = torch.tensor([[[[0.2, 0.3, 0.5], [0.1, 0.7, 0.2], [0.6, 0.4, 0.0]],
                       [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]])
    torch.testing.assert_close(tp.significance(a), torch.tensor([[0.35, 0.35]]))
    torch.testing.assert_close(tp.significance(a, kind="received_with_self"), torch.tensor([[1.2, 0.85]]))
    torch.testing.assert_close(tp.significance(a, kind="class_token"), torch.tensor([[0.15, 0.25]]))


def test_prefix_tokens_are_never_pooled():
    model = timm.create_model("vit_small_patch16_dinov3", img_size=64, depth=2, embed_dim=64, num_heads=2).eval()
    pooled = tp.PooledViT(model, [2, 1], method="k_means", init="farthest_first")
    tokens = pooled.forward_features(torch.randn(1, 3, 64, 64))
    assert tokens.shape[1] == model.num_prefix_tokens + 1 == 6


def test_blocks_that_need_no_score_keep_fused_attention(monkeypatch):
    def forbidden(*args):
        raise AssertionError("explicit attention")

    monkeypatch.setattr(attention, "_attend", forbidden)
    tp.PooledViT(vit(), K, method="k_medoids", init="farthest_first")(images())
    tp.PooledViT(vit(), K, method="random", carry_counts=True)(images())
    with pytest.raises(AssertionError, match="explicit attention"):
        tp.PooledViT(vit(), K)(images())


def test_options_are_checked_and_shown():
    with pytest.raises(ValueError, match="Did you mean 'after_block'"):
        tp.PooledViT(vit(), position="after_blocks")
    with pytest.raises(ValueError, match=r"Unknown score 'recieved'. Did you mean 'received"):
        tp.PooledViT(vit(), score="recieved")
    with pytest.raises(ValueError, match="needs a class token"):
        tp.PooledViT(vit(class_token=False, global_pool="avg"), score="class_token")
    assert "saving=0.42, method='wk_medoids'" in repr(tp.PooledViT(vit(), saving=0.42))
