"""Rows: what is written is read again, from files of before and after; reading never writes."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tokenpool as tp
from tokenpool.measure import rows

ROOT = Path(__file__).resolve().parents[1]


def row(**changes):
    base = dict(key="k", method="plain", init="", output="", counts=False, saving=0.0, seed=0, schedule="",
                gmacs=1.0, gmacs_without_clustering=1.0, gmacs_plain=1.0, top1=0.9, top1_low=0.88, top1_high=0.92,
                images=1000, reconstruction_error=0.0, images_per_second=10.0, batch_size=100, model="m",
                weights="w", data="d", device="c", threads=2, tokenpool="0", torch="2", timm="1", python="3",
                commit="c", date="today")
    return rows.Row(**(base | changes))


def rows_of(path):
    return [r.key for r in rows.read(path)]


@pytest.fixture
def two(tmp_path):
    """A file of two rows as it is written."""
    store = rows.Results(tmp_path / "r.csv")
    store.add(row(key="a", counts=True))
    store.add(row(key="b", schedule='4 3, "2"'))
    assert rows.read(store.path) == store.rows
    return store.path


def test_rows_survive_a_line_cut_off_anywhere(two):
    """A run that was killed while it appended: the last line is missing, whole, or any part of it."""
    text = two.read_text()
    first, last = text[:text.index("\nb,") + 1], text[text.index("\nb,") + 1:]
    for end in range(len(last)):
        two.write_text(first + last[:end])
        assert rows_of(two) == ["a"]
    store = rows.Results(two)
    store.add(row(key="c"))
    store.add(row(key="d"))
    assert rows_of(two) == ["a", "c", "d"]


def test_a_reader_never_writes(two):
    """Not even to a file that has a half line, or columns of before."""
    (two.parent / "old.csv").write_text(two.read_text().replace("init", "start"))
    two.write_text(two.read_text() + "half a li")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in two.parent.iterdir()}
    for path in before:
        rows.read(path)
        rows.Results(path)
    rows.Results(two.parent / "none" / "yet.csv")
    with pytest.raises(FileNotFoundError):
        rows.read(two.parent / "none.csv")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in two.parent.iterdir()} == before


def test_columns_are_read_by_name(two):
    """In any order, under their former names; what a file lacks has a default."""
    header, *lines = [line.split(",") for line in two.read_text().splitlines()[:2]]
    header = [{"init": "start", "images": "pictures"}.get(name, name) for name in header]
    turned = [",".join(line[::-1]) for line in (header, *lines)]
    two.write_text("\n".join(turned) + "\n")
    assert rows.read(two) == [row(key="a", counts=True)]
    short = [name for name in header if name not in ("split", "code", "stage", "right")]
    two.write_text("\n".join(",".join(line[header.index(n)] for n in short) for line in (header, *lines)) + "\n")
    store = rows.Results(two)
    assert store.rows == [row(key="a", counts=True)]
    store.add(row(key="b", right="/w=="))
    assert rows.read(two) == [row(key="a", counts=True), row(key="b", right="/w==")]
    assert two.read_text().splitlines()[0] == ",".join(rows.COLUMNS)


def test_a_file_of_before_is_rewritten_in_one_step(two, monkeypatch):
    from tokenpool.data import files
    two.write_text(two.read_text().replace("init", "start"))
    before = two.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        rows.Results(two).add(row(key="c"))
    assert two.read_bytes() == before
    assert list(two.parent.iterdir()) == [two]


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "r.csv"
    for text, says in (("method,accuracy\ntop_k,0.5\n", "unknown accuracy; missing key, device"),
                       ("one line", "unknown one line"),
                       (",".join([*rows.COLUMNS, "colour"]) + "\n", "differ .unknown colour."),
                       (",".join([*rows.COLUMNS, "start"]) + "\n", "unknown init, init"),
                       (",".join(rows.COLUMNS) + "\n1,2,3\n", "Line 2 of .* is not a result")):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            rows.Results(path).add(row())
        with pytest.raises(ValueError, match=says):
            rows.read(path)
        assert path.read_text() == text
    path.write_text(",".join(rows.COLUMNS) + "\n" + ",".join(
        "yes" if c == "counts" else str(getattr(row(), c)) for c in rows.COLUMNS) + "\n")
    with pytest.raises(ValueError, match="'yes' where True or False is expected"):
        rows.read(path)


def test_every_shipped_file_is_read_whole():
    found = {p.name: rows.read(p, kind) for kind, pattern in (
        (rows.Row, "runs/*s.csv"), (rows.Entry, "runs/*peers.csv"), (rows.Timing, "bench/*.csv"))
        for p in sorted((ROOT / "data").glob(pattern)) if kind is not rows.Row or not p.name.endswith("peers.csv")}
    assert len(found) == len([p for p in (ROOT / "data").glob("*/*.csv") if p.parent.name in ("runs", "bench")]) == 6
    for name, read in found.items():
        (path,) = (ROOT / "data").glob(f"*/{name}")
        table = pd.read_csv(path, keep_default_na=False)
        assert [r.key for r in read] == list(table["key"])
        if "start" in table:
            assert [r.init for r in read] == list(table["start"])
    assert {r.tokenpool for read in found.values() for r in read} == {"0.1.0"}


# ---- provenance ----

def test_every_kind_of_row_says_where_it_was_made():
    origin = rows.provenance()
    for kind in (rows.Row, rows.Entry, rows.DenseRow, rows.Timing):
        assert rows.columns_of(kind)[0] == "key"
        assert set(rows.columns_of(kind)[-len(origin):]) == set(origin)
        assert len(set(rows.columns_of(kind))) == len(rows.columns_of(kind))


def test_the_code_version_changes_with_what_decides_a_result(tmp_path):
    def version():
        rows.code_version.cache_clear()
        return rows.code_version(tmp_path)

    assert version() == tp.__version__                                   # installed without sources
    for room in ("core", "report"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "x.py").write_text("a = 1\n")
    first = version()
    (tmp_path / "report" / "x.py").write_text("a = 2\n")
    assert version() == first
    (tmp_path / "core" / "x.py").write_text("a = 2\n")
    edited = version()
    (tmp_path / "core" / "x.py").rename(tmp_path / "core" / "y.py")
    assert len({first, edited, version()}) == 3
    rows.code_version.cache_clear()


def test_the_commit_is_tokenpools_own(tmp_path):
    """Not that of a repository in whose virtual environment the package is installed."""
    own, venv = tmp_path / "tokenpool", tmp_path / ".venv" / "site-packages" / "tokenpool"
    assert rows._commit(tmp_path) == "unknown"
    for package in (own, venv):
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert len(rows._commit(own)) == 12
    assert rows._commit(venv) == "unknown"


def test_wilson_covers_as_it_promises():
    """Simulated: 95 % intervals contain the truth in about 95 of 100 repetitions, near the edge too."""
    rng = np.random.default_rng(0)
    for p in (0.5, 0.95, 0.99):
        rights = rng.binomial(600, p, 3000)
        inside = [low <= p <= high for low, high in (rows.wilson(int(r), 600) for r in rights)]
        assert 0.93 < np.mean(inside) < 0.975


def test_frame_has_a_row_per_measurement():
    assert isinstance(rows.frame([row()]), pd.DataFrame)
    assert list(rows.frame([row()]).columns) == list(rows.COLUMNS)


def test_a_graphics_card_is_named_as_torch_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert rows.device_name("cuda:0") == "card cuda:0"
    assert rows.device_name("cpu")
