"""The shipped weights do what their card says; damaged and foreign ones are refused in a sentence."""

import json

import pytest
import timm
import torch

import tokenpool as tp
from tokenpool.data import weights
from tokenpool.data.pebbles import Pebbles


@torch.inference_mode()
def top1(model, images, labels):
    return float((model(images.float() / 127.5 - 1).argmax(1) == labels).float().mean())


def test_the_shipped_model_does_what_its_card_says():
    card = json.loads((weights.data_folder() / "pebbles_vit" / "card.json").read_text())
    assert card["top1_new_pictures"] >= 0.95
    model = weights.load_model()
    images, labels, _ = Pebbles(seed=card["config"]["val_seed"]).batch(range(300))
    assert top1(model, torch.from_numpy(images), torch.from_numpy(labels)) >= 0.98


def test_the_effect_is_visible_at_a_glance():
    """60 % of the computations saved: the best clustering keeps most of the accuracy, top-K has lost most of it."""
    images, labels, _ = Pebbles(seed=11).batch(range(300))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = weights.load_model()
    ours = tp.PooledViT(model, saving=0.6, init="farthest_first", carry_counts=True)
    scores = tp.PooledViT(model, saving=0.6, method="top_k")
    assert top1(ours, x, y) > 0.95
    assert top1(scores, x, y) < 0.60


def test_damaged_and_foreign_checkpoints(tmp_path, monkeypatch):
    good = weights.shipped_weights().read_bytes()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good[:1000])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        weights.load_model(checkpoint=bad)
    (tmp_path / "bad.pth").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        weights.load_model(checkpoint=tmp_path / "bad.pth")
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        weights.load_model(checkpoint=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="does not fit deit_tiny_patch16_224"):
        weights.load_model("deit_tiny_patch16_224", checkpoint=weights.shipped_weights())
    with pytest.raises(ValueError, match=r"Unknown model 'pebble_vit'. Did you mean 'pebbles_vit'"):
        weights.load_model("pebble_vit")

    folder = tmp_path / "data"
    (folder / "pebbles_vit").mkdir(parents=True)
    (folder / "checksums.txt").write_text((weights.data_folder() / "checksums.txt").read_text())
    monkeypatch.setattr(weights, "data_folder", lambda: folder)
    with pytest.raises(FileNotFoundError, match="git checkout data"):
        weights.load_model()
    (folder / "pebbles_vit" / "model.safetensors").write_bytes(good[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        weights.load_model()


def test_public_weights_without_network(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"could not be fetched.*pass --checkpoint FILE"):
        weights.load_model("deit_tiny_patch16_224", pretrained=True)
