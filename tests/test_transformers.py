"""Models of Hugging Face's transformers: their own logits when nothing is dropped, their parameters, their names.

The oracles are transformers' own forward and torch's own FLOP counter; weights are random, made from configurations.
"""

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.models import attention
from tokenpool.models import transformers as adapter

transformers = pytest.importorskip("transformers", reason="pip install transformers to test its models")

KINDS = [("ViTModel", {}), ("ViTModel", {"add_pooling_layer": False}), ("ViTForImageClassification", {}),
         ("DeiTModel", {}), ("DeiTForImageClassification", {}), ("DeiTForImageClassificationWithTeacher", {}),
         ("Dinov2Model", {}), ("Dinov2ForImageClassification", {}), ("Dinov2ForImageClassification", {"swiglu": True}),
         ("Dinov2WithRegistersModel", {}), ("Dinov2WithRegistersForImageClassification", {})]
IDS = ["-".join([name, *options]) for name, options in KINDS]
every_kind = pytest.mark.parametrize(("name", "options"), KINDS, ids=IDS)
K = [9, 6, 6]


def make(name, options=None, **settings):
    options = dict(options or {})
    family = name.removesuffix("WithTeacher").removesuffix("ForImageClassification").removesuffix("Model")
    shape = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, num_labels=5)
    shape |= {"use_swiglu_ffn": options.pop("swiglu", False)} if family.startswith("Dinov2") else \
        {"intermediate_size": 48}
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**(shape | settings)), **options)
    for p in model.parameters():                     # a position of 0 or a scale of 1 would hide a mistake
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def images(b=2, height=32, width=32):
    return torch.randn(b, 3, height, width, generator=torch.Generator().manual_seed(1))


def theirs(model, x, **options):
    """What a model of transformers says: logits; without a head the pooler's output, or the class token."""
    said = model(x, **options)
    return said.logits if "logits" in said else said.last_hidden_state[:, 0] if said.pooler_output is None \
        else said.pooler_output


@every_kind
def test_logits_are_theirs_bit_by_bit(name, options):
    model, x = make(name, options), images()
    with torch.no_grad():
        for pooled in (tp.PooledViT(model), tp.PooledViT(model, [16, 16, 16])):
            assert torch.equal(pooled(x), theirs(model, x))
            assert torch.equal(pooled(**{"pixel_values": x}), pooled(x))
        assert torch.equal(pooled.forward_features(x), model.base_model(x).last_hidden_state)


@every_kind
@pytest.mark.parametrize("size", [(48, 48), (32, 64), (16, 64), (37, 50)])      # 16 x 64: 16 patches too
def test_other_sizes_interpolate_as_theirs(name, options, size):
    model, x = make(name, options), images(2, *size)
    ask = {} if name.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        assert torch.equal(tp.PooledViT(model)(x), theirs(model, x, **ask))
        trace = tp.PooledViT(model, keep=0.7).trace(x)
        assert trace.grid == (size[0] // 8, size[1] // 8)
        assert trace.steps[-1].kept < trace.grid[0] * trace.grid[1]


def test_a_image_and_a_patch_may_be_oblong():
    model = make("ViTForImageClassification", image_size=(32, 48), patch_size=(8, 16))
    x = images(2, 32, 48)
    pooled = tp.PooledViT(model)
    assert torch.equal(pooled(x), theirs(model, x))
    assert pooled.trace(x).grid == (4, 3)
    assert pooled(images(2, 64, 48)).shape == (2, 5)          # transformers itself cannot
    with pytest.raises(ValueError, match=r"as a square, and config.image_size is 32 x 48"):
        tp.PooledViT(make("Dinov2Model", image_size=(32, 48)))


@every_kind
def test_the_block_with_a_score_is_theirs(name, options):
    """Scored blocks have an attention of our own: the same tokens, and the matrix that transformers reports."""
    model, x = make(name, options), images()
    model.set_attn_implementation("eager")
    vit = adapter.as_timm(model)
    said = model(x, output_hidden_states=True, output_attentions=True)
    before, after = said.hidden_states[1:3]
    out, seen = attention.run_block(vit.blocks[1], before, None, None)
    torch.testing.assert_close(out, after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.attention, said.attentions[1], atol=1e-6, rtol=1e-5)


@every_kind
@pytest.mark.parametrize("method", ["wk_medoids", "random"])
@torch.no_grad()
def test_pooled_models_count_trace_and_repeat(name, options, method):
    pooled, x = tp.PooledViT(make(name, options), K, method=method, carry_counts=True, kernel="plain"), images()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = pooled(x)
    assert counter.get_total_flops() == 2 * len(x) * tp.macs(pooled).total
    assert torch.isfinite(logits).all()
    assert torch.equal(pooled(x), logits)
    assert torch.equal(copy.deepcopy(pooled)(x), logits)
    trace = pooled.trace(x)
    assert torch.equal(trace.logits, logits)
    assert [s.kept for s in trace.steps] == K
    assert (trace.steps[-1].counts.sum(1) == 16).all()
    maps = pooled.forward_intermediates(x, intermediates_only=True, norm=True)
    assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 3
    assert [len(m.flatten(2)[0].unique(dim=1).T) for m in maps] == K


def test_a_budget_and_the_bare_model_have_a_cost():
    model = make("DeiTForImageClassification", hidden_size=64, image_size=96)
    pooled = tp.PooledViT(model, saving=0.42)
    assert abs(tp.macs(pooled).total / tp.macs(model).total - 0.58) < 0.01


@every_kind
def test_training_one_trains_the_other(name, options):
    model, x = make(name, options), images()
    pooled = tp.PooledViT(model, K)
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for p in pooled.parameters())
    pooled(x).square().sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    spare = {name for name, _ in model.named_parameters() if "mask_token" in name}
    silent = {name for name, _ in model.named_parameters() if name.endswith(("k_proj.bias", "key.bias"))}
    assert used | silent == set(dict(model.named_parameters())) - spare      # a key's bias moves no softmax
    before = theirs(model, x)
    torch.optim.SGD(pooled.parameters(), 1e-3).step()
    assert not torch.equal(theirs(model, x), before)
    pooled.schedule = None
    assert torch.equal(pooled(x), theirs(model, x))


@every_kind
def test_state_dicts_have_their_names_both_ways(name, options):
    a, b = make(name, options), make(name, options)
    for p in b.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pooled = tp.PooledViT(a, K)
    spare = {n for n in a.state_dict() if "mask_token" in n}
    assert set(pooled.state_dict()) == set(a.state_dict()) - spare
    pooled.load_state_dict(b.state_dict())
    assert torch.equal(theirs(a, images()), theirs(b, images()))
    fresh = make(name, options)
    assert not fresh.load_state_dict(pooled.state_dict(), strict=False).unexpected_keys
    assert torch.equal(theirs(fresh, images()), theirs(b, images()))
    wrapped = torch.nn.Sequential(pooled)
    wrapped.load_state_dict(wrapped.state_dict())
    pooled.vit.load_state_dict(pooled.vit.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        pooled.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        pooled.load_state_dict(b.state_dict() | {"vit.more": torch.zeros(1)})


@pytest.mark.parametrize(("name", "settings"), [
    ("ViTForImageClassification", dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)),
    ("DeiTForImageClassificationWithTeacher", dict(hidden_dropout_prob=0.3)),
    ("Dinov2ForImageClassification", dict(hidden_dropout_prob=0.3, drop_path_rate=0.4)),
    ("Dinov2WithRegistersForImageClassification", dict(drop_path_rate=0.4))])
def test_what_is_dropped_in_training_is_the_same(name, settings):
    """The same draws in the same order: equal bits with one seed, and other ones with another."""
    model, x = make(name, **settings).train(), images(4)
    pooled = tp.PooledViT(model)
    assert pooled.vit.training

    def seeded(call, seed):
        torch.manual_seed(seed)
        return call()

    assert torch.equal(seeded(lambda: pooled.train()(x), 3), seeded(lambda: theirs(model, x), 3))
    assert not torch.equal(seeded(lambda: pooled(x), 3), seeded(lambda: pooled(x), 4))
    assert torch.equal(pooled.eval()(x), theirs(model.eval(), x))


def test_dinov2s_mean_counts_every_original_patch_once():
    model, x = make("Dinov2ForImageClassification"), images()
    pooled = tp.PooledViT(model, [16, 16, 5], method="k_means", init="farthest_first", carry_counts=True)
    step = pooled.trace(x).steps[-1]
    patches = model.base_model.layernorm(step.tokens)
    mean = (patches * step.counts[..., None]).sum(1) / 16
    seen = torch.cat((pooled.forward_features(x)[:, 0], mean), dim=1)
    torch.testing.assert_close(pooled(x), model.classifier(seen))


def test_compiles_exports_and_saves_memory(tmp_path):
    model, x = make("Dinov2ForImageClassification"), images(4)
    pooled = tp.PooledViT(model, K, carry_counts=True)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(pooled, fullgraph=True, backend="eager", dynamic=False)
        torch.testing.assert_close(compiled(x), pooled(x))
        low = tp.PooledViT(copy.deepcopy(model).bfloat16(), K)(x)           # pixels take the weights' type, as theirs
    assert low.dtype == torch.bfloat16
    program = torch.export.export(pooled, (x,))
    torch.testing.assert_close(program.module()(x), pooled(x))
    torch.save(pooled, tmp_path / "pooled.pt")
    assert torch.equal(torch.load(tmp_path / "pooled.pt", weights_only=False)(x), pooled(x))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    plain = pooled.train()(x)
    again = tp.PooledViT(model, K, carry_counts=True).train()
    assert again.vit.grad_checkpointing
    torch.testing.assert_close(again(x), plain)


@pytest.mark.parametrize(("name", "config", "says"), [
    ("SwinModel", {}, "SwinModel cannot be pooled: its windows need"),
    ("BeitModel", {}, "relative position bias"),
    ("CLIPVisionModel", {}, "timm.create_model.'vit_base_patch16_clip_224'"),
    ("ViTForMaskedImageModeling", {}, "Pool its model.base_model, a ViTModel"),
    ("BertModel", {}, "BertModel cannot be pooled. Of transformers' models these can: ViTModel, ")])
def test_others_are_refused_by_name(name, config, says):
    family = name.removesuffix("ForMaskedImageModeling").removesuffix("Model")
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**config))
    with pytest.raises(ValueError, match=says):
        tp.PooledViT(model)


def test_the_models_to_use_instead_exist():
    import re

    import timm
    for why in adapter._ELSEWHERE.values():
        for name in re.findall(r"create_model\('(\w+)'", why):
            with torch.device("meta"):
                tp.PooledViT(timm.create_model(name))
    assert all(hasattr(transformers, name) for name in adapter.MODELS)


def test_a_model_with_its_own_forward_is_refused():
    class Mine(transformers.ViTModel):
        def forward(self, pixel_values):
            return super().forward(pixel_values * 2)

    with pytest.raises(ValueError, match="Pool the ViTModel that it extends"):
        tp.PooledViT(Mine(make("ViTModel").config))


def test_a_part_exchanged_before_comes_along():
    """As a LoRA layer would: whatever stands in the place of a projection is what runs."""
    model, x = make("ViTForImageClassification"), images()
    before = tp.PooledViT(model)(x)
    old = model.vit.layers[1].attention.q_proj if hasattr(model.vit, "layers") else None
    if old is None:
        pytest.skip("an older release of transformers names it otherwise")
    model.vit.layers[1].attention.q_proj = torch.nn.Sequential(old, torch.nn.Linear(32, 32))
    pooled = tp.PooledViT(model)
    assert not torch.equal(pooled(x), before)
    assert torch.equal(pooled(x), theirs(model, x))
    assert any("q_proj.1.weight" in name for name in pooled.state_dict())


def test_images_come_once():
    pooled = tp.PooledViT(make("ViTModel"))
    with pytest.raises(ValueError, match=r"Got no images. Pass the images once"):
        pooled()
    with pytest.raises(ValueError, match="Got both x and pixel_values"):
        pooled(images(), pixel_values=images())


def test_tokenpool_neither_needs_nor_loads_transformers():
    code = ("import sys, torch, timm, tokenpool as tp\n"
            "loaded = 'transformers' in sys.modules; sys.modules['transformers'] = None\n"
            "pooled = tp.PooledViT(timm.create_model('pebbles_vit'), keep=0.8)\n"
            "print(loaded, tuple(pooled(torch.zeros(1, 3, 64, 64)).shape))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False (1, 30)\n", done.stderr
