"""A pooled model in a folder: the same answers to the bit, readable by timm too, refused where it would not be."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf

import tokenpool as tp
from tokenpool.data.weights import load_model
from tokenpool.models.attention import normalise_qk

SMALL = dict(img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7)


def vit(name="deit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **(SMALL | changes)).eval()


def images(size=48):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [
    {}, dict(saving=0.4), dict(keep=0.8, method="k_medoids", init="random", seed=3, n_iter=2, output="mean"),
    dict(saving=0.3, **tp.OFF_THE_SHELF), dict(schedule=[20, 20, 9, 9], method="top_k", score="class_token"),
    dict(saving=0.4, method="random", seed=5),
])
def test_equal_answers_to_the_bit(options, tmp_path):
    pooled = tp.PooledViT(vit(), **options).eval()
    pooled.save(tmp_path / "folder")
    again = tp.load(tmp_path / "folder")
    assert type(again) is tp.PooledViT
    assert not again.training
    assert again.schedule == pooled.schedule
    assert torch.equal(again(images()), pooled(images()))
    assert {p.name for p in (tmp_path / "folder").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(("name", "changes"), [
    ("vit_small_patch16_dinov3", dict(embed_dim=48)),
    ("deit_tiny_patch16_224", dict(drop_path_rate=0.2, img_size=64)),
    ("deit_tiny_distilled_patch16_224", {}), ("eva02_tiny_patch14_224", dict(num_heads=1)),
    ("pebbles_vit", dict(num_heads=1, num_classes=0)),
    ("vit_tiny_patch16_224", dict(class_token=False, global_pool="avg")),
])
def test_families_and_options_come_back(name, changes, tmp_path):
    pooled = tp.PooledViT(vit(name, **changes), saving=0.3, method="k_means", carry_counts=True).eval()
    pooled.save(tmp_path)
    x = images(changes.get("img_size", 48))
    assert torch.equal(tp.load(tmp_path)(x), pooled(x))


def test_the_same_folder_is_timms_plain_model(tmp_path):
    model = vit()
    tp.PooledViT(model, saving=0.4).save(tmp_path)
    assert torch.equal(load_model(f"local-dir:{tmp_path}")(images()), model(images()))


def test_a_classifier_changed_afterwards(tmp_path):
    model = vit()
    model.reset_classifier(4)
    pooled = tp.PooledViT(model, saving=0.4).eval()
    pooled.save(tmp_path)
    assert torch.equal(tp.load(tmp_path)(images()), pooled(images()))


def test_the_hubs_own_methods(tmp_path):
    pooled = tp.PooledViT(vit(), saving=0.4).eval()
    pooled.save_pretrained(tmp_path)
    assert "tokenpool" in json.loads((tmp_path / "config.json").read_text())
    assert (tmp_path / "README.md").exists()
    assert torch.equal(tp.PooledViT.from_pretrained(tmp_path)(images()), pooled(images()))
    assert callable(pooled.push_to_hub)


def test_what_cannot_be_built_again_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"blocks.0.attn.q_norm is not what timm builds for deit_tiny_patch16_224"):
        tp.PooledViT(normalise_qk(vit()), saving=0.4).save(tmp_path / "a")
    plain = timm.models.VisionTransformer(**SMALL)
    with pytest.raises(ValueError, match=r"was not built by timm.create_model"):
        tp.PooledViT(plain, saving=0.4).save(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_folders_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        tp.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"config.json and model.safetensors is missing"):
        tp.load(tmp_path)
    save_for_hf(vit(), tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=r"the entry tokenpool of config.json is missing"):
        tp.load(tmp_path)
