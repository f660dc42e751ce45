"""A pooled model as a file: PyTorch's answers for any number of images, and a sentence where it cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenpool as tp
from tokenpool.cli import main
from tokenpool.data import datasets, weights
from tokenpool.measure import export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def images():
    return next(iter(datasets.open_data("pebbles", weights.load_model(), count=48)))[0]


def short_model():
    """The first two blocks of the model that ships, with its own head: little to trace, and real tokens."""
    vit = weights.load_model()
    vit.blocks = vit.blocks[:2]
    return vit


WAYS = [dict(method="wk_medoids"), dict(method="wk_medoids", init="farthest_first", carry_counts=True),
        dict(method="wk_means"), dict(method="top_k"), dict(method="random"), dict(method="grid_average"),
        dict(method="importance_with_replacement")]


@pytest.mark.parametrize("options", WAYS, ids=lambda o: " ".join(map(str, o.values())))
def test_onnx_answers_as_pytorch_for_any_number_of_images(options, images, tmp_path):
    pooled = tp.PooledViT(short_model(), saving=0.42, n_iter=2, **options).eval()
    assert min(pooled.schedule) < 30
    export.save(export.trace(pooled), tmp_path / "m.onnx")
    report = export.compare(tmp_path / "m.onnx", pooled, images, rounds=1)
    assert report.sizes == (1, 3, 16)
    assert report.images == report.same_top1 == 48
    assert report.difference <= 1e-4
    assert report.equal


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """`tokenpool export` as a person types it, on the whole model that ships."""
    out = tmp_path_factory.mktemp("export") / "deep" / "model.onnx"
    done = subprocess.run([sys.executable, "-m", "tokenpool.cli", "export", "pebbles_vit", "--saving", "0.42",
                           "--rounds", "2", "--method", "top_k", "--out", str(out)],
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_export_end_to_end(shipped):
    out, said, noise = shipped
    assert "Same answer as PyTorch in ONNX Runtime: 96 of 96 images have the same first class" in said
    assert "in batches of 1, 3 and 16" in said
    assert "timed in turns" in said
    assert noise == ""
    model = onnx.load(out)
    onnx.checker.check_model(model)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param
    assert not batch.dim_value
    assert [o.name for o in model.graph.output] == ["logits"]
    about = {p.key: p.value for p in model.metadata_props}
    assert "saving=0.42" in about["pooling"]
    assert "method='top_k'" in about["pooling"]
    assert [p.name for p in out.parent.iterdir()] == ["model.onnx"]


def test_exporting_twice_gives_the_same_program_and_leaves_the_model_alone(images, tmp_path):
    pooled = tp.PooledViT(short_model(), saving=0.42, method="top_k").eval()
    with torch.inference_mode():
        before = pooled(images[:5])
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        export.save(export.trace(pooled), file)
    a, b = (onnx.load(file).graph for file in files)
    assert [(n.op_type, list(n.input), list(n.output)) for n in a.node] == \
        [(n.op_type, list(n.input), list(n.output)) for n in b.node]
    assert [t.SerializeToString() for t in a.initializer] == [t.SerializeToString() for t in b.initializer]
    with torch.inference_mode():
        assert torch.equal(pooled(images[:5]), before)


def test_a_torch_program_is_kept_whole(images, tmp_path):
    pooled = tp.PooledViT(short_model(), saving=0.42, init="random", n_iter=2).eval()
    export.save(export.trace(pooled), tmp_path / "m.pt2")
    assert export.compare(tmp_path / "m.pt2", pooled, images[:20], rounds=1).equal


def test_another_models_file_is_not_called_the_same(images, shipped):
    other = tp.PooledViT(weights.load_model(), saving=0.6, method="random").eval()
    report = export.compare(shipped[0], other, images, rounds=1)
    assert not report.equal
    assert export.say(report, shipped[0])[0].startswith("NOT THE SAME")


def test_the_same_means_the_same_classes_and_close_logits():
    assert export.Comparison(10, (1,), 9e-5, 10, 1, 1, 1, 1).equal
    assert not export.Comparison(10, (1,), 2e-4, 10, 1, 1, 1, 1).equal
    assert not export.Comparison(10, (1,), 0.0, 9, 1, 1, 1, 1).equal
    assert not export.Comparison(10, (1,), float("nan"), 10, 1, 1, 1, 1).equal


def test_an_operator_that_is_not_supported_is_one_sentence(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x)

    program = torch.export.export(Odd(), (torch.zeros(2, 3, 3),))
    with pytest.raises(ValueError, match=r"cannot be translated to ONNX: .*matrix_exp") as error:
        export.save(program, tmp_path / "odd.onnx")
    assert len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "says"), [
    (["pebbles_vit", "--out", "model.bin"], "Use .onnx (ONNX) or .pt2"),
    (["pebbles_vit", "--out", "m.onnx", "--saving", "0.42", "--method", "topk"],
     "Unknown method 'topk'. Did you mean 'top_k'"),
    (["pebbles_vit", "--out", "m.onnx", "--saving", "0.42", "--schedule", "3"], "both say how many tokens"),
    (["resnet18", "--out", "m.onnx"], "cannot be pooled")])
def test_mistakes_get_one_sentence(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert list(Path(tmp_path).iterdir()) == []


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "pebbles_vit", "--saving", "0.42", "--out", "m.onnx"]) == 2
    assert "pip install 'tokenpool[export]'" in capsys.readouterr().err
