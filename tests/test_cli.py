"""The command line as a person uses it: one run end to end, a page in a real browser, and all that goes wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tokenpool.cli import main

SMALL = ["reproduce", "--images", "60", "--seeds", "2", "--budget", "0.42", "0.6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    done = subprocess.run([sys.executable, "-m", "tokenpool.cli", *SMALL, "--out", str(out)], capture_output=True,
                          text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_reproduce_end_to_end(run):
    out, said = run
    rows = pd.read_csv(out / "results.csv", keep_default_na=False)
    assert set(rows["saving"]) == {0.0, 0.42, 0.6}
    assert rows["key"].is_unique
    assert "Top-1 in % without finetuning (plain: " in said
    assert "wk_medoids" in said
    assert "DOES NOT HOLD HERE" in said
    at = rows[(rows.saving == 0.6) & (rows.counts == True)].set_index(["method", "init"])["top1"]  # noqa: E712
    assert at[("wk_medoids", "farthest_first")] > at[("top_k", "")] + 0.2
    clustered = rows[rows.method == "wk_medoids"]
    assert (clustered.gmacs > clustered.gmacs_without_clustering).all()
    assert ((rows.gmacs / rows.gmacs_plain - 1 + rows.saving).abs() < 0.01).all()


def test_rerunning_measures_nothing_again(run, tmp_path):
    out = shutil.copytree(run[0], tmp_path / "copy")          # a narrower run writes a narrower page
    before = (out / "results.csv").read_bytes()
    started = time.time()
    assert main([*SMALL, "--out", str(out)]) == 0
    assert (out / "results.csv").read_bytes() == before
    assert time.time() - started < 30
    assert main(["reproduce", "--images", "60", "--seeds", "2", "--budget", "0.42", "--method", "top_k", "--figure",
                 "5a", "--out", str(out)]) == 0
    assert (out / "results.csv").read_bytes() == before


def test_the_page_in_a_real_browser(run):
    from playwright.sync_api import sync_playwright
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        assert not os.environ.get("TOKENPOOL_REQUIRE_BROWSER"), "a browser is required here and none is installed"
        pytest.skip("no Chromium on this machine")
    out, _ = run
    with sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu", "--disable-quic",
                                                                  "--disable-background-networking"])
        page = chrome.new_page(viewport={"width": 1180, "height": 900})
        problems, requests = [], []
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: requests.append(r.url))
        page.goto((out / "index.html").as_uri())
        assert page.locator("h1").inner_text() == "Token pooling without finetuning"
        assert page.locator("#glance .scatterlayer .trace").count() >= 5
        assert "wk_medoids" in page.locator("#glance .legend").text_content()
        before = page.locator("#grid img").nth(3).get_attribute("src")
        page.get_by_label("Image", exact=True).select_option(label="photograph: cat")
        assert page.locator("#grid img").nth(3).get_attribute("src") != before
        assert page.locator("#grid img").count() == 1 + 4 * 6
        assert all(alt for alt in page.locator("#grid img").evaluate_all("l => l.map(i => i.alt)"))
        page.get_by_text("Show the table").click()
        assert page.locator("table.numbers tr").count() > 20
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        assert not problems
        assert not [u for u in requests if not u.startswith(("file:", "data:"))]
        chrome.close()


@pytest.mark.parametrize(("arguments", "says"), [
    (["--method", "kmedoid"], "Unknown method 'kmedoid'. Did you mean"),
    (["--figure", "12"], "Unknown figure '12'"),
    (["--budget", "42"], "A saving of 42.0 is not a share"),
    (["--model", "deit_tiny"], "Unknown model 'deit_tiny'"),
    (["--model", "resnet18", "--data", "."], "cannot be pooled"),
    (["--model", "deit_tiny_patch16_224"], "would have random weights"),
    (["--data", "nowhere/at/all"], "timm could not open"),
    (["--checkpoint", "none.safetensors"], "No checkpoint at none.safetensors"),
    (["--device", "cuda"], "PyTorch finds no such device"),
    (["--images", "0"], "0 images are too few"),
])
def test_mistakes_get_one_sentence_and_no_traceback(arguments, says, tmp_path, capsys, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "resnet18" in arguments:
        (tmp_path / "a").mkdir()
        from PIL import Image
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
        arguments = [*arguments[:-1], str(tmp_path)]
    assert main(["reproduce", "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert said.startswith("tokenpool: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_no_permission_and_foreign_results(tmp_path, capsys):
    (tmp_path / "results.csv").write_text("old,columns\n")
    assert main(["reproduce", "--out", str(tmp_path)]) == 2
    assert "another version of tokenpool" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "--out", str(tmp_path / "file")]) == 2
    assert "another folder with --out" in capsys.readouterr().err


def test_a_full_disk_is_said(tmp_path, capsys, monkeypatch):
    from tokenpool.measure import rows

    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.Results, "add", full)
    assert main([*SMALL, "--method", "top_k", "--out", str(tmp_path)]) == 2
    assert "The disk is full" in capsys.readouterr().err


def test_ctrl_c_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "tokenpool.cli", "reproduce", "--images", "200", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    csv = tmp_path / "results.csv"
    for _ in range(600):
        if csv.exists() and len(csv.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    from tokenpool.measure.rows import Results
    assert len(Results(csv).rows) >= 3


def test_help_reads_well(capsys):
    for arguments in (["--help"], ["reproduce", "--help"], ["macs", "--help"], ["train", "--help"],
                      ["search", "--help"], ["finetune", "--help"], ["plan", "--help"], ["protocol", "--help"],
                      ["report", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "tokenpool reproduce --figure 6" in capsys.readouterr().out


def test_macs_prints_the_papers_number(capsys):
    assert main(["macs", "deit_tiny_patch16_224", "--saving", "0.42"]) == 0
    said = capsys.readouterr().out
    assert "plain   1.254 GMACs" in said
    assert "pooled  0.72" in said
