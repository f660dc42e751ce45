"""Images, weights, rows, training: everything with files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import tokenpool as tp
from tokenpool.data import datasets, weights
from tokenpool.data.pebbles import CLASSES, MATERIALS, Pebbles
from tokenpool.measure import accuracy, rows

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tiny-imagenet-50"


# ---- pebbles ----

def test_a_image_is_the_same_in_every_batch():
    scenes = Pebbles(seed=5)
    images, labels, masks = scenes.batch(range(40))
    again, label, mask = scenes.batch([33])
    assert np.array_equal(again[0], images[33])
    assert np.array_equal(mask[0], masks[33])
    assert label[0] == labels[33]
    assert not np.array_equal(Pebbles(seed=6).batch([33])[0][0], images[33])
    assert images.shape == (40, 3, 64, 64)
    assert images.dtype == np.uint8


def test_masks_and_knobs_mean_what_they_say():
    def areas(**knobs):
        masks = Pebbles(seed=1, **knobs).batch(range(60))[2]
        return [(masks == region).mean() for region in range(3)]

    for imbalance in (2.0, 4.0, 8.0):
        _, large, small = areas(imbalance=imbalance)
        assert large / small == pytest.approx(imbalance, rel=0.25)       # outlines wobble, the front hides a little
    masks = Pebbles(seed=1).batch(range(200))[2]
    assert (masks == 2).sum((1, 2)).min() > 2 * 64                       # the small pebble covers some patches always
    assert Pebbles(size=96).batch([0])[0].shape == (1, 3, 96, 96)


def test_labels_are_balanced_and_never_equal_pairs():
    labels = Pebbles(seed=1).batch(range(1500))[1]
    share = np.bincount(labels, minlength=30) / 1500
    assert abs(share - 1 / 30).max() < 4.5 * np.sqrt(1 / 30 / 1500)
    assert len(CLASSES) == 30
    assert all(a != b and a in MATERIALS for a, b in CLASSES)


def test_colour_does_not_tell_the_label():
    """A nearest-mean classifier on each region's mean colour stays near chance."""
    images, labels, masks = Pebbles(seed=1).batch(range(1200))
    large = np.array([CLASSES[c][0] for c in labels])
    colour = np.stack([img[:, m == 1].mean(1) for img, m in zip(images, masks, strict=True)])
    names = np.array(MATERIALS)
    means = np.stack([colour[:600][large[:600] == n].mean(0) for n in names])
    guess = names[((colour[600:, None] - means) ** 2).sum(-1).argmin(1)]
    assert (guess == large[600:]).mean() < 0.27                          # chance is 1/6


@pytest.mark.parametrize(("knobs", "says"), [
    (dict(size=4), "size=4 is not an image side"), (dict(difficulty=2), "difficulty=2 is outside its scale"),
    (dict(imbalance=0.5), "imbalance=0.5 is outside"), (dict(seed=-1), "seed=-1 is negative")])
def test_wrong_knobs(knobs, says):
    with pytest.raises(ValueError, match=says):
        Pebbles(**knobs)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty list"):
        Pebbles().batch([])


# ---- other images ----

def test_photographs_come_from_packages():
    found = datasets.photographs(64)
    assert set(found) == {"cat", "coffee", "astronaut", "temple", "flower"}
    assert all(p.shape == (3, 64, 64) and p.dtype == np.uint8 and p.std() > 20 for p in found.values())


def parquet_folder(folder, rows=12, broken=None):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    images = []
    for i in range(rows):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(file, "PNG")
        images.append({"bytes": b"no image" if i == broken else file.getvalue(), "path": None})
    table = pa.table({"image": images, "label": list(range(rows))})
    pq.write_table(table, folder / "validation-00000-of-00001.parquet")


def test_a_folder_of_parquet(tmp_path):
    parquet_folder(tmp_path)
    model = weights.load_model("pebbles_vit")
    found = datasets.open_data(str(tmp_path), model, count=6, batch_size=4)
    labels = torch.cat([y for _, y in found])
    assert labels.tolist() == [0, 2, 4, 6, 8, 10]                        # spread over the rows
    assert next(iter(found))[0].shape == (4, 3, 64, 64)
    with pytest.raises(ValueError, match=r"No Parquet file of the split 'train'.*--split validation"):
        datasets.open_data(str(tmp_path), model, split="train")


def test_a_folder_of_images_per_class(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (70, 70), (200, 10, 10)).save(tmp_path / name / "1.png")
    found = datasets.open_data(str(tmp_path), weights.load_model("pebbles_vit"))
    assert torch.cat([y for _, y in found]).tolist() == [0, 1]


def test_unreadable_images_and_folders(tmp_path):
    model = weights.load_model("pebbles_vit")
    with pytest.raises(ValueError, match=r"holds neither .parquet files nor one folder"):
        datasets.open_data(str(tmp_path), model)
    with pytest.raises(ValueError, match="Pebbles have 30 classes, this model 7"):
        datasets.open_data("pebbles", timm.create_model("pebbles_vit", num_classes=7))
    with pytest.raises(FileNotFoundError, match="No data called 'pebles'"):
        datasets.open_data("pebles", model)
    parquet_folder(tmp_path, broken=3)
    with pytest.raises(ValueError, match=r"Row 3 of .* is not a readable image"):
        list(datasets.open_data(str(tmp_path), model))
    (tmp_path / "validation-1.parquet").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not a Parquet file with the columns image and label"):
        datasets.open_data(str(tmp_path), model)
    (tmp_path / "x.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is not an image that can be read"):
        datasets.read_image(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="No image at"):
        datasets.read_image(tmp_path / "y.png")


def test_no_network_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(OSError, match=r"timm could not open 'hfds/nobody/nothing'"):
        datasets.open_data("hfds/nobody/nothing", weights.load_model("pebbles_vit"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="tiny-imagenet-50 is not on this machine")
def test_real_images_from_parquet():
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=50).eval()
    found = datasets.open_data(str(SHARED), model, count=100)
    assert sorted(set(torch.cat([y for _, y in found]).tolist())) == sorted(
        {datasets.ParquetImages([SHARED / "validation-00000-of-00001.parquet"]).labels[i * 25] for i in range(100)})
    assert tp.PooledViT(model, saving=0.3)(next(iter(found))[0][:4]).shape == (4, 50)


# ---- weights ----

@torch.inference_mode()
def top1(model, images, labels):
    return float((model(images.float() / 127.5 - 1).argmax(1) == labels).float().mean())


def test_the_shipped_model_does_what_its_card_says():
    card = json.loads((weights.data_folder() / "pebbles_vit" / "card.json").read_text())
    assert card["top1_new_images"] >= 0.95
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


# ---- rows ----

def row(**changes):
    base = dict(key="k", method="plain", init="", output="", counts=False, saving=0.0, seed=0, schedule="",
                gmacs=1.0, gmacs_without_clustering=1.0, gmacs_plain=1.0, top1=0.9, top1_low=0.88, top1_high=0.92,
                images=1000, reconstruction_error=0.0, images_per_second=10.0, batch_size=100, model="m",
                weights="w", data="d", device="c", threads=2, tokenpool="0", torch="2", timm="1", python="3",
                commit="c", date="today")
    return rows.Row(**(base | changes))


def test_rows_survive_a_cut_off_line(tmp_path):
    store = rows.Results(tmp_path / "r.csv")
    store.add(row(key="a", counts=True))
    store.add(row(key="b", schedule="4 3, \"2\""))
    text = (tmp_path / "r.csv").read_text()
    (tmp_path / "r.csv").write_text(text + text.splitlines()[-1][:20])           # stopped while writing a third
    again = rows.Results(tmp_path / "r.csv")
    assert again.rows == store.rows
    again.add(row(key="c"))
    assert [r.key for r in rows.Results(tmp_path / "r.csv").rows] == ["a", "b", "c"]


def test_files_of_another_version_are_refused(tmp_path):
    (tmp_path / "r.csv").write_text("method,accuracy\ntop_k,0.5\n")
    with pytest.raises(ValueError, match="was written by another version of tokenpool"):
        rows.Results(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text(",".join(rows.COLUMNS) + "\n1,2,3\n")
    with pytest.raises(ValueError, match="holds a line that is not a result"):
        rows.Results(tmp_path / "r.csv")


def test_wilson_covers_as_it_promises():
    """Simulated: 95 % intervals contain the truth in about 95 of 100 repetitions, near the edge too."""
    rng = np.random.default_rng(0)
    for p in (0.5, 0.95, 0.99):
        rights = rng.binomial(600, p, 3000)
        inside = [low <= p <= high for low, high in (rows.wilson(int(r), 600) for r in rights)]
        assert 0.93 < np.mean(inside) < 0.975


def test_settings_are_each_once_and_seeds_only_where_something_is_drawn():
    wanted = accuracy.settings(seeds=5)
    assert len(wanted) == len(set(wanted))
    assert {s.seed for s in wanted if s.method == "top_k"} == {0}
    for init in ("random", "k_means_plus_plus"):
        assert {s.seed for s in wanted if s.init == init} == set(range(5))
    assert {s.method for s in wanted} == {"plain", *accuracy.PAPERS}
    assert {s.method for s in accuracy.settings(figures=accuracy.FIGURES)} == {"plain", *tp.method_names()}
    assert {s.init for s in wanted if s.method == "wk_medoids"} == set(tp.init_names())
    with pytest.raises(ValueError, match=r"Unknown figure '5c'. Did you mean"):
        accuracy.settings(figures=["5c"])
    with pytest.raises(ValueError, match=r"budget of 1.2"):
        accuracy.settings(budgets=[1.2])
    with pytest.raises(ValueError, match="0 seeds"):
        accuracy.settings(seeds=0)


# ---- rows ----

def test_frame_has_a_row_per_measurement():
    assert isinstance(rows.frame([row()]), pd.DataFrame)
    assert list(rows.frame([row()]).columns) == list(rows.COLUMNS)


def test_a_graphics_card_is_named_as_torch_names_it(monkeypatch):
    from tokenpool.measure.accuracy import device_name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert device_name("cuda:0") == "card cuda:0"
    assert device_name("cpu")
