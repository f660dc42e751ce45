"""Public weights end to end against a small hub on this machine's loopback: fetched, cached, offline, from files."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save, save_file

from tokenpool.data.weights import load_model

ROOT = Path(__file__).resolve().parents[1]
NAME, REPOSITORY = "deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k"


class Hub:
    """The few answers of the Hugging Face Hub that fetching one file needs."""

    def __init__(self, files):
        self.files, self.asked = files, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, whole):
                hub.asked.append(f"{self.command} {self.path}")
                name = self.path.split("?")[0].rpartition("/")[2]
                data = hub.files.get(name) if f"/{REPOSITORY}/resolve/" in self.path else None
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if whole:
                    self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(7)
    return {k: v.contiguous() for k, v in timm.create_model(NAME).state_dict().items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label in range(2):
        (folder / str(label)).mkdir()
        for i in range(2):
            pixels = np.random.default_rng(10 * label + i).integers(0, 255, (224, 224, 3), np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{i}.png")
    return folder


def reproduce(out, cache, images, address, *extra, model=NAME, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "tokenpool.cli", "reproduce", "--model", model, "--data", str(images), "--method",
         "top_k", "--figure", "9", "--saving", "0.42", "--seeds", "1", "--out", str(out), *extra], cwd=ROOT,
        capture_output=True, text=True, timeout=200,
        env={**clean, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1",
             "HF_HUB_DISABLE_TELEMETRY": "1", **environment})


def fingerprints(out):
    import csv
    return {row["weights"] for row in csv.DictReader((out / "results.csv").open())}


def test_public_weights_are_fetched_cached_and_used_offline(weights, images, tmp_path):
    hub = Hub({"model.safetensors": save(weights)})
    try:
        first = reproduce(tmp_path / "a", tmp_path / "cache", images, hub.address, "--pretrained")
    finally:
        hub.close()
    assert first.returncode == 0, first.stderr
    assert any(a.startswith("GET") and a.endswith("model.safetensors") for a in hub.asked)
    # the hub is gone; the cache serves, with and without being told to stay offline
    offline = reproduce(tmp_path / "b", tmp_path / "cache", images, hub.address, "--pretrained", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    save_file(weights, tmp_path / "file.safetensors")
    local = reproduce(tmp_path / "c", tmp_path / "none", images, hub.address, "--checkpoint",
                      str(tmp_path / "file.safetensors"))
    assert local.returncode == 0, local.stderr
    assert fingerprints(tmp_path / "a") == fingerprints(tmp_path / "b") == fingerprints(tmp_path / "c")
    assert len(fingerprints(tmp_path / "a")) == 1


@pytest.mark.slow              # huggingface_hub tries several times
def test_no_network_and_no_cache_is_one_sentence(images, tmp_path):
    hub = Hub({})
    hub.close()                                                     # an address where nobody listens
    done = reproduce(tmp_path / "out", tmp_path / "empty", images, hub.address, "--pretrained")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert "Traceback" not in done.stderr
    assert said[-1].startswith(f"tokenpool: The public weights of {NAME} are not in the cache and could not be fetched")
    assert "--checkpoint FILE" in said[-1]


def test_timms_local_folder(weights, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 1000,
                                                    "pretrained_cfg": {"input_size": [3, 224, 224]}}))
    model = load_model(f"local-dir:{folder}")
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    with pytest.raises(OSError, match="cannot be loaded"):
        load_model(f"local-dir:{tmp_path / 'nothing'}")
    with pytest.raises(ValueError, match="is not a place timm knows"):
        load_model("drive:somewhere")
