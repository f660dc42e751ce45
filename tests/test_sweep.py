"""The one loop: only what is missing is measured, by what decides a result, the code's version among it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenpool.data.datasets import Images
from tokenpool.measure import accuracy, rows
from tokenpool.measure.accuracy import Setting
from tokenpool.measure.rows import Results, Timing
from tokenpool.measure.sweep import Task, sweep


def tasks(log, **names):
    """Tasks of fake timings by their rounds; rounds of 0 give no row."""
    def measure(missing):
        for key, rounds in missing.items():
            log.append(key)
            if rounds < 0:
                raise KeyboardInterrupt
            if rounds:
                yield key, dict(part="forward", name=key, baseline="b", model="m", tokens=1, batch_size=1, dtype="d",
                                compiled=False, kernel="auto", clock="wall", rounds=rounds)
    return [Task(name, settings, measure) for name, settings in names.items()]


def test_a_stopped_sweep_measures_what_is_missing(tmp_path):
    path, log, told = tmp_path / "deep" / "t.csv", [], []
    with pytest.raises(KeyboardInterrupt):
        sweep(tasks(log, one=dict(a=1, b=0), two=dict(c=3, d=-1)), Results(path, Timing))
    assert [r.key for r in rows.read(path, Timing)] == ["a", "c"]
    log.clear()
    found = sweep(tasks(log, one=dict(a=1, b=0), two=dict(c=3, d=4)), Results(path, Timing),
                  tell=lambda *said: told.append(said))
    assert log == ["b", "d"]                                   # b has no row, so it is tried again
    assert [(r.key, r.rounds) for r in found] == [("a", 1), ("c", 3), ("d", 4)]
    assert told == [("one", 0, 2), ("two", 1, 2), ("done", 2, 2)]
    assert sorted(r.key for r in rows.read(path, Timing)) == ["a", "c", "d"]


def test_rows_of_another_version_of_the_code_are_left_aside_and_that_is_said(tmp_path, monkeypatch, caplog):
    path, log = tmp_path / "t.csv", []
    sweep(tasks(log, one=dict(a=1, b=2)), Results(path, Timing))
    assert caplog.text == ""
    monkeypatch.setattr(rows, "code_version", lambda: "edited")
    found = sweep(tasks(log, one=dict(a=5, b=6)), Results(path, Timing))
    assert log == ["a", "b", "a", "b"]
    assert [(r.rounds, r.code) for r in found] == [(5, "edited"), (6, "edited")]
    assert f"2 rows of another version of the code are left aside in {path}" in caplog.text
    assert len(rows.read(path, Timing)) == 4
    assert sweep(tasks(log, one=dict(a=5, b=6)), Results(path, Timing)) == found
    assert len(log) == 4


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    log = []
    with pytest.raises(OSError):
        sweep(tasks(log, one=dict(a=1)), Results(tmp_path / "file" / "t.csv", Timing))
    assert log == []


def test_the_key_of_an_accuracy_holds_all_that_decides_it(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "build", lambda model, setting: None)
    monkeypatch.setattr(accuracy, "score", lambda *measured: dict(
        schedule="", gmacs=1.0, gmacs_plain=1.0, gmacs_without_clustering=1.0, output="", batch_size=2,
        reconstruction_error=0.0, images_per_second=1.0, **rows.answers(np.ones(2, bool))))

    def rows_after(images, size=64, weight=0.0, name="m"):
        results = Results(tmp_path / "r.csv")
        model = torch.nn.Linear(1, 1)
        model.weight.data.fill_(weight)
        model.bias.data.fill_(0)
        model.patch_embed = SimpleNamespace(img_size=(size, size))
        accuracy.measure(model, name, images, [Setting(), Setting("top_k", saving=0.42)], results)
        return len(results.rows)

    images = Images("pebbles", 2, [], 2)
    assert rows_after(images) == rows_after(images) == 2
    assert rows_after(replace(images, split="test")) == 4
    assert rows_after(replace(images, name="a/val")) == 6
    assert rows_after(replace(images, name="b/val")) == 8               # another folder, although the rows say "val"
    assert rows_after(replace(images, count=4)) == 10
    assert rows_after(images, weight=1.0) == 12
    assert rows_after(images, name="n") == 14
    assert rows_after(images, size=96) == 16
    assert {r.data for r in rows.read(tmp_path / "r.csv")} == {"pebbles", "val"}
    assert rows_after(images) == 16
