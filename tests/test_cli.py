"""The command line as a person uses it: one run end to end, a page in a real browser, and all that goes wrong."""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pandas as pd
import pytest

from tokenpool.cli import COMMANDS, FORMER, chosen, main, show
from tokenpool.cli.options import Parser, add, fill
from tokenpool.measure.options import option

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for group in COMMANDS.values() for name in group]
SMALL = ["reproduce", "--images", "60", "--seeds", "2", "--saving", "0.42", "0.6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("reproduce"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*SMALL, "--out", str(out)]) == 0
    return out, said.getvalue()


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
    assert main(["reproduce", "--images", "60", "--seeds", "2", "--saving", "0.42", "--method", "top_k", "--figure",
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
    (["--model", "deit_tiny"], "Unknown model 'deit_tiny'"),
    (["--model", "resnet18", "--data", "."], "cannot be pooled"),
    (["--model", "deit_tiny_patch16_224"], "has random weights"),
    (["--data", "nowhere/at/all"], "timm could not open"),
    (["--checkpoint", "none.safetensors"], "No checkpoint at none.safetensors"),
    (["--device", "cuda"], "--device cuda: use cpu, cuda or mps, and one that PyTorch finds"),
    (["--device", "gpu"], "--device gpu: use cpu, cuda or mps"),
    *[(["--saving", bad], f"--saving {bad}: use a share between 0 and 1, such as 0.42")
      for bad in ("42", "0", "1", "-0.1", "nan", "inf", "much", "")],
    *[([flag, bad], f"{flag} {bad}: use a whole number of 1 or more.")
      for flag in ("--images", "--seeds") for bad in ("0", "-3", "1.5", "nan", "many")],
    (["--saving"], "--saving expected at least one argument. Type: tokenpool reproduce --help"),
    (["--savnig", "0.4"], "Unknown option --savnig. Did you mean --saving? Type: tokenpool reproduce --help"),
    (["--s", "0.4"], "Type: tokenpool reproduce --help"),
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
    assert "give another one with --out" in capsys.readouterr().err


def test_a_full_disk_is_said(tmp_path, capsys, monkeypatch):
    from tokenpool.measure import rows

    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.Results, "add", full)
    assert main([*SMALL, "--method", "top_k", "--out", str(tmp_path)]) == 2
    assert "The disk is full" in capsys.readouterr().err


def test_ctrl_c_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "tokenpool.cli", "reproduce", "--images", "200", "--out", str(tmp_path)]
    # the signal may be ignored here, as in a shell's background job, and children inherit that
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    csv = tmp_path / "results.csv"
    seen = 0
    for _ in range(2000):
        seen = len(csv.read_text().splitlines()) - 1 if csv.exists() else 0
        if seen > 1:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in said
    assert "Traceback" not in said
    from tokenpool.measure.rows import Results
    assert len(Results(csv).rows) >= seen > 1


# ---- the command line itself ----

def test_help_fits_a_screen_and_groups_commands_by_purpose(capsys):
    assert main(["--help"]) == main([]) == 0
    said = capsys.readouterr().out.splitlines()
    half = said[:len(said) // 2]
    assert half == said[len(said) // 2:]
    assert 24 <= len(half) <= 40
    assert max(map(len, half)) <= 90
    for purpose, group in COMMANDS.items():
        first = half.index(purpose) + 1
        assert [line.split()[0] for line in half[first:first + len(group)]] == list(group)
    assert sorted(NAMES) == sorted(set(NAMES))


@pytest.mark.parametrize("module", ["tokenpool", "tokenpool.cli"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(module, option):
    code = (f"import runpy, sys, contextlib; sys.argv[1:] = ['{option}']\n"
            f"with contextlib.suppress(SystemExit): runpy.run_module('{module}', run_name='__main__')\n"
            "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tokenpool" in done.stdout
    assert "tokenpool" in done.stderr.split()
    assert not {"torch", "timm", "numpy", "pandas", "rich"} & set(done.stderr.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: tokenpool {name}" in said
    assert next(group[name] for group in COMMANDS.values() if name in group)[1:] in said
    if name not in ("macs", "weights", "plan", "explore"):         # those that write nothing
        assert "--out" in said


def test_every_command_line_in_the_documents_is_understood(capsys, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tokenpool/cli").glob("*.py"))]
    lines = [line for text in texts for line in re.findall(r"^ *(tokenpool [a-z].*)", text.read_text(), re.M)
             if line.split()[1] in NAMES]
    assert len(lines) > 20
    assert {line.split()[1] for line in lines} >= {"reproduce", "bench", "train", "search", "plan", "export"}
    for line in lines:
        words = shlex.split(re.split(r"\s{2,}(?=\w)|\s#|;| >|\||`", line)[0], comments=True)
        assert chosen(words[1:]), line
    assert capsys.readouterr().err == ""


def test_former_spellings_do_the_same_and_say_the_new_one(capsys):
    now = chosen(["reproduce", "--saving", "0.42", "0.6", "--images", "9"])
    assert capsys.readouterr().err == ""
    before = chosen(["reproduce", "--budget", "0.42", "0.6", "--pictures=9"])
    assert before.keywords == now.keywords
    assert capsys.readouterr().err.splitlines() == ["tokenpool: --budget is now --saving.",
                                                    "tokenpool: --pictures is now --images."]
    assert chosen(["finetune", "--saving", "0.4", "--start", "random"]).keywords["job"].init == "random"
    assert chosen(["dense", "--train-pictures", "7"]).keywords["options"].train_images == 7
    assert chosen(["report", "--page", "x.html"]).keywords["options"].out == Path("x.html")
    assert len(capsys.readouterr().err.splitlines()) == len(FORMER) - 2
    assert main(["macs", "--help"]) == 0
    assert not any(f"{old} " in capsys.readouterr().out for old in FORMER)


@pytest.mark.parametrize(("arguments", "says"), [
    (["reprodce"], "Unknown command reprodce. Did you mean reproduce? Type: tokenpool --help"),
    (["macs"], "The following arguments are required: MODEL. Type: tokenpool macs --help"),
    (["export", "pebbles_vit"], "The following arguments are required: --out. Type: tokenpool export --help"),
    (["macs", "pebbles_vit", "again"], "Unknown option again"),
    (["export", "pebbles_vit", "--out", "m.onnx", "--schedule", "8", "0"], "--schedule 0: use a whole number of 1"),
    (["plan", "--step", "all"], "--step all: use base or search or finetune."),
    (["protocol", "--jobs", "0"], "--jobs 0: use a whole number of 1 or more."),
    (["protocol", "--set", "epochs"], "write it as FIELD=VALUE"),
    (["search", "--penalty", "-1"], "--penalty -1: use a number above 0."),
    (["search", "--penalty", "inf"], "--penalty inf: use a number above 0."),
    (["search"], "Add --penalty 1e-3"),
    (["train", "--seed", "-1"], "--seed -1: use a whole number of 0 or more."),
    (["train", "--checkpoint-seconds", "0"], "--checkpoint-seconds 0: use a number above 0."),
    (["train", "--device", "cuda"], "--device cuda: use"),
    (["bench", "--threads", "0"], "--threads 0: use a whole number of 1 or more."),
    (["bench", "--quick", "--full"], "--quick and --full exclude each other"),
    (["dense", "--train-images", "0"], "--train-images 0: use"),
    (["explore", "--port", "-1"], "--port -1: use a whole number of 0 or more."),
])
def test_wrong_words_are_refused_in_a_sentence(arguments, says, capsys, monkeypatch, tmp_path):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tokenpool.train.protocol.run_all", lambda *args, **options: [])
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("tokenpool: ")
    assert len(said.splitlines()) == 1


def test_what_is_not_typed_is_what_the_dataclass_says():
    seen = set()
    for name in NAMES:
        needed = {"macs": ["m"], "export": ["m", "--out", "m.pt2"], "search": ["--penalty", "1"],
                  "finetune": ["--system", "plain"], "weights": ["vits14"],
                  "probe": ["--data", "d", "--out", "f"]}.get(name, [])
        for made in chosen([name, *needed]).keywords.values():
            typed = {"model", "out", "penalty", "step"} if needed else set()
            for field in fields(made):
                if field.default is not MISSING and field.name not in typed:
                    assert getattr(made, field.name) == field.default, (name, field.name)
                    seen.add(field.name)
    assert {"saving", "images", "rounds", "seeds", "jobs", "models", "no_browser"} <= seen


def test_fields_become_options_and_back():
    @dataclass(frozen=True)
    class Some:
        which: str = option(MISSING, "a word", flag="")
        many: tuple[int, ...] = option((), "numbers", "N", flag="--number", least=3)
        maybe: Path | None = option(None, "100 % of a path", "FILE")
        on: bool = option(False, "a switch")
        only: str = option("x", "elsewhere", commands=("other",))
        hidden: int = 5

    parser = Parser("try")
    add(parser, Some, "here")
    assert fill(Some, parser.parse_args(["a"])) == Some("a")
    typed = parser.parse_args(["a", "--number", "3", "4", "--maybe", "b/c", "--on"])
    assert fill(Some, typed) == Some("a", (3, 4), Path("b/c"), True)
    assert "100 % of a path" in parser.format_help()
    for wrong in (["a", "--number", "2"], ["a", "--only", "y"], ["a", "--hidden", "1"], []):
        with pytest.raises(ValueError, match=r"--number 2: use|Unknown option|required"):
            parser.parse_args(wrong)
    other = argparse.ArgumentParser()
    add(other, Some, "other")
    assert fill(Some, other.parse_args(["a", "--only", "y"])).only == "y"


def test_a_closed_pipe_is_no_failure(monkeypatch):
    read, write = os.pipe()
    os.close(read)                                       # the reader has gone before the first word
    done = subprocess.run([sys.executable, "-m", "tokenpool", "--help"], stdout=write, stderr=subprocess.PIPE,
                          text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):                 # and not rich's SystemExit(1)
        show.table(("a", "b"), [("1", "2")])


def test_what_the_terminal_cannot_print_is_replaced(monkeypatch):
    def words() -> None:
        show.table(("method",), [("±1 ↑",)])
        print("±2")

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("tokenpool.cli.macs.run", words)
    assert main(["macs"]) == 0
    assert raw.getvalue().split() == [b"method", b"?1", b"?", b"?2"]


def test_ctrl_c_while_torch_is_imported():
    code = ("import sys\n"
            "class Stopped:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'torch': raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Stopped())\n"
            "from tokenpool.cli import main\n"
            "sys.exit(main(['macs', 'pebbles_vit']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == "tokenpool: stopped. Finished results are saved; the same command resumes."


def test_traceback_is_shown_on_request(capsys):
    assert main(["plan", "fig99"]) == 2
    for words in (["--traceback", "plan", "fig99"], ["plan", "fig99", "--traceback"]):
        with pytest.raises(ValueError, match="Unknown figure '99'"):
            main(words)


def test_the_package_offers_its_names_and_no_others():
    import tokenpool as tp
    assert {name for name in tp.__all__ if getattr(tp, name) is not None} == set(tp.__all__) == set(tp._HOMES)
    with pytest.raises(AttributeError, match="pool_token"):
        tp.pool_token  # noqa: B018
    code = ("import timm, tokenpool\nprint(timm.is_model('pebbles_vit'))\n"
            "import tokenpool.data.weights\nprint(timm.is_model('deit_e252_patch16_224'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_macs_prints_the_papers_number(capsys):
    assert main(["macs", "deit_tiny_patch16_224", "--saving", "0.42"]) == 0
    said = capsys.readouterr().out
    assert "plain   1.254 GMACs" in said
    assert "pooled  0.72" in said
