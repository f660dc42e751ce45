"""Every model of timm's VisionTransformer and Eva families: timm's own logits when nothing is dropped, and a schedule.

Each name is built by its own entry function (so with its own norms, heads, registers, rotary positions, ...), only
shallower, narrower and for smaller images. The oracles are timm's own forward and torch's own FLOP counter.
"""

import pytest
import timm
import torch
from timm.models import Eva, VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp
from tokenpool.models import attention

NAMES = sorted({n for module in ("vision_transformer", "deit", "eva", "vision_transformer_hybrid")
                for n in timm.list_models(module=module)})
#: one name of every signature
FEW = ("aimv2_1b_patch14_224", "beit3_base_patch16_224", "deit3_base_patch16_224", "deit_base_distilled_patch16_224",
       "deit_base_patch16_224", "eva02_base_patch14_224", "eva02_base_patch16_clip_224",
       "eva02_enormous_patch14_clip_224", "eva02_small_patch14_224", "eva_giant_patch14_224",
       "eva_giant_patch14_clip_224", "eva_large_patch14_196", "test_vit2", "test_vit3", "vit_5b_patch16_sapiens2",
       "vit_7b_patch16_dinov3", "vit_base_mci_224", "vit_base_patch14_reg1_tipsv2", "vit_base_patch16_18x2_224",
       "vit_base_patch16_dinov3_qkvb", "vit_base_patch16_lingbot", "vit_base_patch16_reg4_gap_256",
       "vit_base_patch16_rope_224", "vit_base_patch16_rope_ape_224", "vit_base_patch16_rope_mixed_224",
       "vit_base_patch16_rope_mixed_ape_224", "vit_base_patch16_rope_reg1_gap_256", "vit_base_patch16_rpn_224",
       "vit_base_patch16_siglip_224", "vit_base_patch16_xp_224", "vit_betwixt_patch16_reg4_gap_256",
       "vit_betwixt_patch16_rope_reg4_gap_256", "vit_dlittle_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256",
       "vit_giant_patch16_lingbot", "vit_giant_patch16_radio_v3", "vit_mediumd_patch16_rope_reg1_gap_256",
       "vit_pe_core_base_patch16_224", "vit_pe_core_gigantic_patch14_448", "vit_pe_lang_gigantic_patch14_448",
       "vit_pe_lang_large_patch14_448", "vit_pe_spatial_base_patch16_512", "vit_pwee_patch16_reg1_gap_256",
       "vit_so150m_patch16_reg4_map_256")


def small(name):
    options = dict(depth=3, embed_dim=192, num_heads=3, num_classes=7, img_size=112 if "intern" in name else 96)
    if "sapiens2" in name:
        options["num_kv_heads"] = (3, 1, 3)          # one entry a block, grouped in the middle
    if "_mci_" in name:
        del options["embed_dim"], options["num_heads"]     # its convolutional stem gives the width
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim == 1:                              # a LayerScale of 1e-5 or a gate of 0 would hide a mistake
            torch.nn.init.uniform_(p, 0.2, 0.8)
    return model


def signature(model):
    """Everything that PooledViT treats in a way of its own: blocks, attention, positions, head."""
    block, rope = model.blocks[1], getattr(model, "rope", None)
    attns = attention.attentions(block)
    return (type(model).__name__, type(model.patch_embed).__name__, type(block).__name__, type(attns[0]).__name__,
            tuple(sorted({name.split(".")[0] for name, _ in attns[0].named_parameters()})),
            tuple(sorted({name for name, _ in block.named_parameters() if name.count(".") < 2 and
                          name.split(".")[0] in ("gamma_1", "ls1", "mlp_bias")})),
            model.pos_embed is not None, type(rope).__name__, getattr(model, "rope_mixed", False),
            model.global_pool, type(getattr(model, "attn_pool", None)).__name__, hasattr(model, "head_dist"),
            model.cls_token is not None, model.num_prefix_tokens > 1)


@pytest.mark.slow
def test_the_few_have_every_signature_there_is():
    with torch.device("meta"):
        found = {signature(small(name)) for name in NAMES}
        assert {signature(small(name)) for name in FEW} == found
    assert len(FEW) == len(found)
    assert len(NAMES) > 200


@pytest.mark.parametrize("name", FEW)
def test_a_family_member_of_every_signature(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_family_member(part):
    for name in NAMES[part::8]:
        check(name)


def check(name):
    model = small(name)
    assert isinstance(model, (VisionTransformer, Eva)), name
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    n = model.patch_embed.num_patches
    seen = {}
    hook = model.blocks[1].register_forward_hook(
        lambda m, args, kwargs, out: seen.update(x=args[0], kwargs=kwargs, out=out), with_kwargs=True)
    plain = model(x)
    hook.remove()

    assert torch.equal(tp.PooledViT(model)(x), plain), name
    assert torch.equal(tp.PooledViT(model, [n] * 3)(x), plain), name

    rope = seen["kwargs"].get("rope")
    out, whole = attention.run_block(model.blocks[1], seen["x"], rope, None)
    torch.testing.assert_close(out, seen["out"], atol=2e-5, rtol=2e-4, msg=lambda m: f"{name}: {m}")
    torch.testing.assert_close(whole.attention.sum(-1), torch.ones_like(whole.attention[..., 0]), atol=1e-4, rtol=0)

    # the same block with the score alone asked for, which never holds the whole matrix
    prefix = model.num_prefix_tokens
    for kind in (None, "received", *(["class_token"] if prefix else [])):
        out, keyed = attention.run_block(model.blocks[1], seen["x"], rope, None,
                                         attention.Wanted(kind, prefix, keys=True))
        torch.testing.assert_close(out, seen["out"], atol=2e-5, rtol=2e-4, msg=lambda m: f"{name}: {m}")
        if kind:
            torch.testing.assert_close(keyed.score, attention.significance(whole.attention, prefix, kind))
    width = attention.attentions(model.blocks[1])[0].head_dim
    assert (len(keyed.keys), *keyed.keys.shape[2:]) == (2, keyed.values.shape[2], width), name
    merged = tp.PooledViT(model, [n // 3, n // 4, n // 4], method="tome", metric="keys", carry_counts=True,
                          kernel="plain")            # which does all that is counted
    with FlopCounterMode(display=False) as counter:
        assert torch.isfinite(merged(x)).all(), name
    assert counter.get_total_flops() == 2 * len(x) * tp.macs(merged).total, name

    pooled = tp.PooledViT(model, [n // 3, n // 4, n // 4], carry_counts=True, kernel="plain")
    with FlopCounterMode(display=False) as counter:
        logits = pooled(x)
    assert logits.shape == plain.shape, name
    assert torch.isfinite(logits).all(), name
    assert counter.get_total_flops() == 2 * len(x) * tp.macs(pooled).total, name
    trace = pooled.trace(x)
    torch.testing.assert_close(trace.logits, logits)
    assert [s.kept for s in trace.steps] == [n // 3, n // 4, n // 4], name
    assert (trace.steps[-1].counts.sum(1) == n).all(), name


@pytest.mark.parametrize(("name", "says"), [
    ("swin_tiny_patch4_window7_224", "windows"), ("resnet18", "convolutions"), ("beit_base_patch16_224", "position"),
    ("vit_relpos_small_patch16_224", "position"), ("samvit_base_patch16_224", "windows")])
def test_others_are_refused_by_name(name, says):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be pooled.*{says}"):
        tp.PooledViT(model)


def test_a_model_with_its_own_forward_is_refused():
    class Mine(VisionTransformer):
        def forward_features(self, x):
            return super().forward_features(x) * 2

    with pytest.raises(ValueError, match="its forward_features is its own"):
        tp.PooledViT(Mine(img_size=32, patch_size=8, depth=1, embed_dim=16, num_heads=2))


def test_pooling_inside_a_parallel_block_is_refused():
    model = timm.create_model("vit_dpwee_patch16_reg1_gap_256", depth=2)
    with pytest.raises(ValueError, match="side by side"):
        tp.PooledViT(model, keep=0.5, position="before_mlp")


def test_patch_dropout_is_refused():
    with pytest.raises(ValueError, match="patch_drop_rate=0"):
        tp.PooledViT(timm.create_model("pebbles_vit", patch_drop_rate=0.2))
