"""The linear classifier on frozen features: scikit-learn's own answers, kept in a folder that every command takes."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from tokenpool import cli
from tokenpool.data import datasets
from tokenpool.data.pebbles import Pebbles
from tokenpool.data.weights import load_model
from tokenpool.measure import probe
from tokenpool.measure.probe import FEATURES, fit_head, fit_probe


@pytest.fixture
def folder(tmp_path):
    """Pebbles of three classes, eight images each, twice: train and validation."""
    (tmp_path / "data").mkdir()
    for split, seed in (("train", 31), ("validation", 32)):
        images, labels, _ = Pebbles(seed=seed).batch(range(450))
        rows = []
        for label in range(3):
            for pixels in images[labels == label][:8]:
                Image.fromarray(pixels.transpose(1, 2, 0)).save(file := io.BytesIO(), "PNG")
                rows.append({"image": {"bytes": file.getvalue()}, "label": label})
        assert len(rows) == 24
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_answers_as_scikit_learn_does(classes):
    rng = np.random.default_rng(1)
    y = np.arange(120) % classes
    x = rng.normal(size=(120, 6)) + 1.5 * np.eye(6)[y]
    weight, bias, strength, top1 = fit_head(x, y)
    theirs = LogisticRegression(C=strength, max_iter=5000).fit(x, y)
    logits = torch.from_numpy(x @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(logits, theirs.predict_proba(x), atol=1e-6)
    assert weight.shape == (classes, 6)
    assert 0.5 < top1 <= 1
    assert strength in probe.STRENGTHS


def test_weak_features_want_strong_regularisation():
    rng = np.random.default_rng(2)
    y = np.arange(100) % 2
    noisy = rng.normal(size=(100, 60)) + 0.3 * y[:, None]
    assert fit_head(noisy, y)[2] < 1


def test_a_folder_that_every_command_takes(folder, monkeypatch):
    model = load_model("pebbles_vit")
    blocks = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("head.")}
    done = fit_probe(model, str(folder / "data"), folder / "out")
    assert (done.classes, done.images) == (3, 24)
    assert done.top1 > 0.9
    again = load_model(f"local-dir:{folder / 'out'}")
    assert all(torch.equal(v, blocks[k]) for k, v in again.state_dict().items() if k in blocks)
    images = datasets.open_data(str(folder / "data"), again)
    x, y = next(iter(images))
    with torch.inference_mode():
        assert (again(x).argmax(1) == y).float().mean() > 0.9
        assert torch.equal(again(x), model(x))
    # the features are read, not computed, where model and images are the same
    monkeypatch.setattr(type(model), "forward_features", None)
    assert fit_probe(load_model("pebbles_vit"), str(folder / "data"), folder / "out") == done
    with pytest.raises(TypeError):
        fit_probe(load_model("pebbles_vit", image_size=96), str(folder / "data"), folder / "out")
    assert (folder / "out" / FEATURES).exists()


def test_what_cannot_be_fitted(folder):
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=1)
    with pytest.raises(ValueError, match=r"not one linear layer. Use a model without a distillation token"):
        fit_probe(model, str(folder / "data"), folder / "out")
    with pytest.raises(ValueError, match="A class has a single image"):
        fit_head(np.zeros((3, 2)), np.array([0, 0, 1]))


def test_commands(folder, capsys):
    data, out = str(folder / "data"), folder / "out"
    assert cli.main(["probe", "--model", "pebbles_vit", "--data", data, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 classes, 24 images, C = " in said
    assert f"tokenpool reproduce --model local-dir:{out} --data {data}" in said
    assert cli.main(["reproduce", "--model", f"local-dir:{out}", "--data", data, "--budget", "0.42", "--method",
                     "top_k", "--out", str(folder / "results")]) == 0
    assert "on 24 images" in capsys.readouterr().out


def test_a_model_without_classes_says_what_to_type(folder, tmp_path, capsys):
    model = timm.create_model("pebbles_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "features.pth")
    assert cli.main(["reproduce", "--model", "pebbles_vit", "--checkpoint", str(tmp_path / "features.pth"), "--data",
                     str(folder / "data")]) == 2
    assert "pebbles_vit has no classifier. Fit one for your images first: tokenpool probe" in capsys.readouterr().err
