"""A preset whose base model comes with weights: no step 1, and the plain model too is measured before finetuning."""

from dataclasses import replace

import pytest

from tokenpool.data.weights import fingerprint, load_model
from tokenpool.models.published import OFF_THE_SHELF, options_of
from tokenpool.train import jobs
from tokenpool.train.plan import plan
from tokenpool.train.recipe import Job, load_preset


@pytest.fixture
def pebbles(monkeypatch):
    """Preset pebbles as if its weights did not ship with it but came with the model."""
    preset = replace(load_preset("pebbles"), shipped={}, pretrained=True, val_images=60)
    monkeypatch.setattr(jobs, "load_preset", lambda name: preset)
    return preset


def test_no_base_run_is_planned(pebbles):
    assert not any(j.step == "base" for j in plan(["1b"], pebbles))
    assert {j.name for j in plan(["1b"], replace(pebbles, pretrained=False))} > {j.name for j in plan(["1b"], pebbles)}
    assert any(j.step == "base" for j in plan(["10"], pebbles))         # normalised keys and queries: new weights


@pytest.mark.parametrize(("system", "saving"), [("plain", 0.0), ("K-Medoids", 0.42)])
def test_measured_before_and_after(pebbles, tmp_path, system, saving):
    job = Job("pebbles", "finetune", "vit", system, saving=saving)
    rows = jobs.run(job, tmp_path, images=128, device="cpu", tensorboard=False, settings={"epochs": "1", "lr": "1e-4"})
    assert [r.stage for r in rows] == ["untouched", "finetuned"]
    assert rows[0].weights == fingerprint(load_model("pebbles_vit"))
    assert rows[0].weights != rows[1].weights
    assert all(r.right for r in rows)


def test_the_base_model_by_name(pebbles):
    assert fingerprint(jobs.open_model("pebbles/vit")) == fingerprint(load_model("pebbles_vit"))
    with pytest.raises(ValueError, match="one image size"):
        jobs.open_model("pebbles/vit", image_size=96)


def test_k_medoids_with_the_options_of_ours():
    assert options_of("K-Medoids") == OFF_THE_SHELF | dict(method="k_medoids", init="farthest_first")
