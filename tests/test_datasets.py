"""Images from packages, Parquet and folders, and what is said about unreadable ones."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import tokenpool as tp
from tokenpool.data import datasets, photographs, weights

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "tiny-imagenet-50"


def test_photographs_come_from_packages():
    found = photographs.photographs(64)
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
        photographs.read_image(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="No image at"):
        photographs.read_image(tmp_path / "y.png")


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
