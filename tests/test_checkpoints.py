"""Checkpoints of any size and layout: files made here, as the authors of DeiT, DINO and others write them."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

from tokenpool.data import weights
from tokenpool.data.checkpoints import load_into

SMALL = dict(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def vit(**changes):
    torch.manual_seed(changes.pop("seed", 0))
    return timm.create_model("deit_tiny_patch16_224", **(SMALL | dict(num_classes=7) | changes))


def equal(a, b):
    a, b = dict(a), dict(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_deits_official_layout(tmp_path):
    """facebookresearch/deit: {"model": state dict}, with what a training leaves beside it."""
    source, model = vit(), vit(seed=1)
    torch.save({"model": source.state_dict(), "optimizer": {"state": {}}, "epoch": 299,
                "args": argparse.Namespace(lr=5e-4)}, tmp_path / "deit.pth")
    load_into(model, "m", tmp_path / "deit.pth")
    assert equal(model.state_dict(), source.state_dict())


def test_dinos_teacher(tmp_path):
    """facebookresearch/dino: student and teacher, each with a head; we want the teacher's backbone, without classes."""
    teacher, student = vit(num_classes=0), vit(num_classes=0, seed=1)

    def packed(model):
        return {f"backbone.{k}": v for k, v in model.state_dict().items()} | {"head.mlp.0.weight": torch.ones(4, 32)}

    torch.save({"student": {f"module.{k}": v for k, v in packed(student).items()}, "teacher": packed(teacher),
                "optimizer": {}, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}, tmp_path / "dino.pth")
    model = vit(seed=2)
    load_into(model, "m", tmp_path / "dino.pth", any_classes=True)
    assert model.num_classes == 0
    assert equal(model.state_dict(), teacher.state_dict())
    with pytest.raises(ValueError, match=r"does not fit m: head.weight is missing; head.bias is missing\. Use"):
        load_into(vit(), "m", tmp_path / "dino.pth")


@pytest.mark.parametrize("wrap", [
    lambda s: {"state_dict": s}, lambda s: {"model_ema": s, "model": {}},
    lambda s: {"state_dict_ema": s, "state_dict": {}},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
    lambda s: {"teacher": {f"module.backbone.{k}": v for k, v in s.items()}},
    lambda s: {"model": {"state_dict": s}},
])
def test_wrappers(wrap, tmp_path):
    source, model = vit(), vit(seed=1)
    torch.save(wrap(source.state_dict()), tmp_path / "file.pth")
    load_into(model, "m", tmp_path / "file.pth")
    assert equal(model.state_dict(), source.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_bfloat16_becomes_float32(suffix, tmp_path):
    source, model = vit(), vit(seed=1)
    state = {k: v.bfloat16() for k, v in source.state_dict().items()}
    write = save_file if suffix == ".safetensors" else torch.save
    write(state, tmp_path / f"f{suffix}")
    load_into(model, "m", tmp_path / f"f{suffix}")
    assert equal(model.state_dict(), {k: v.float() for k, v in state.items()})


def test_another_image_size_resamples_positions(tmp_path):
    source = vit()
    save_file(source.state_dict(), tmp_path / "64.safetensors")
    model = vit(img_size=96, seed=1)
    load_into(model, "m", tmp_path / "64.safetensors")
    wanted = resample_abs_pos_embed(source.pos_embed, [12, 12], [8, 8], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, wanted, atol=1e-6, rtol=0)
    assert equal(model.blocks.state_dict(), source.blocks.state_dict())
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 7)


def test_dinov2s_layout_with_mask_token(tmp_path):
    source, model = vit(num_classes=0), vit(num_classes=0, seed=1)
    torch.save(source.state_dict() | {"mask_token": torch.zeros(1, 32)}, tmp_path / "dinov2.pth")
    load_into(model, "m", tmp_path / "dinov2.pth")
    assert equal(model.state_dict(), source.state_dict())


def test_eva02s_layout_with_split_queries_and_keys(tmp_path):
    """baaivision/EVA: {"module": ...} with its own names for biases and the gated MLP."""
    small = dict(img_size=56, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    source, model = (timm.create_model("eva02_base_patch14_224", **small) for _ in range(2))
    state = source.state_dict()
    theirs = {"q_proj.bias": "q_bias", "v_proj.bias": "v_bias", "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2",
              "mlp.fc2": "mlp.w3", "mlp.norm": "mlp.ffn_ln"}
    packed = {}
    for name, value in state.items():
        for ours, original in theirs.items():
            name = name.replace(ours, original)
        packed[name] = value
    assert packed.keys() != state.keys()
    assert "blocks.0.attn.k_proj.weight" in packed
    torch.save({"module": packed}, tmp_path / "eva.pth")
    load_into(model, "m", tmp_path / "eva.pth")
    assert equal(model.state_dict(), state)


def test_classifier_of_the_file(tmp_path):
    source = timm.create_model("pebbles_vit", num_classes=4)
    save_file(source.state_dict(), tmp_path / "four.safetensors")
    assert weights.load_model("pebbles_vit", tmp_path / "four.safetensors").num_classes == 4
    headless = {k: v for k, v in source.state_dict().items() if not k.startswith("head.")}
    save_file(headless, tmp_path / "none.safetensors")
    assert weights.load_model("pebbles_vit", tmp_path / "none.safetensors").num_classes == 0


def test_what_does_not_fit_is_named(tmp_path):
    state = vit().state_dict()
    del state["blocks.1.norm1.bias"]
    state["norm.weight"] = torch.ones(5)
    state["extra"] = torch.ones(1)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd.safetensors does not fit m: blocks.1.norm1.bias is missing; norm.weight "
                                         r"has shape \[5\], expected \[32\]; extra has no place. Use the --model"):
        load_into(vit(), "m", tmp_path / "odd.safetensors")
    save_file({"encoder.layer.0.attention.attention.query.weight": torch.ones(2)}, tmp_path / "hf.safetensors")
    with pytest.raises(ValueError, match=r"and \d+ more. It is a file of transformers"):
        load_into(vit(), "m", tmp_path / "hf.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_into(vit(), "m", tmp_path / "list.pth")


def test_code_in_a_file_is_not_executed(tmp_path):
    torch.save({"model": pytest.Item}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_into(vit(), "m", tmp_path / "code.pth")


def test_image_size():
    assert weights.load_model(image_size=96).patch_embed.grid_size == (12, 12)
    assert weights.load_model(image_size=64).pos_embed.equal(weights.load_model().pos_embed)
    with pytest.raises(ValueError, match=r"Got image size 100 for pebbles_vit, .* 8 pixels wide. Use 96 or 104"):
        weights.load_model(image_size=100)


@pytest.mark.parametrize("name", ["pebbles_vit", "vits14", "deit_e252_patch16_224"])
def test_our_own_models_load_from_timms_folders(name, tmp_path):
    source = timm.create_model(name, depth=1, num_classes=3)
    save_for_hf(source, tmp_path, model_args=dict(depth=1), safe_serialization=True)
    model = weights.load_model(f"local-dir:{tmp_path}")
    assert equal(model.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match="no public pretrained weights"):
        timm.create_model(name, pretrained=True)
