"""The loop: killed and resumed, one process and two, NaN, full disk, streams, the three steps end to end."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import tokenpool as tp
from tokenpool.cli import main
from tokenpool.measure.rows import Results
from tokenpool.models import published
from tokenpool.train import jobs, loader, loop
from tokenpool.train.loader import Feed, TrainImages, open_train
from tokenpool.train.plan import plan
from tokenpool.train.recipe import PRESETS, Job, Recipe, load_preset

ROOT = Path(__file__).resolve().parents[1]
#: everything that draws is on, and every part of the state is used
RECIPE = Recipe(epochs=3, batch_size=16, lr=1e-3, warmup_epochs=0.5, mixup=0.8, cutmix=1.0, drop_path=0.2,
                clip_grad=1.0, ema=0.9, accumulate=2, augment="pebbles", repeats=2)


def tiny_vit():
    torch.manual_seed(0)
    return timm.create_model("pebbles_vit", embed_dim=24, depth=3, num_heads=2, drop_path_rate=0.2)


def feed_of(recipe, tmp_path, count=64):
    return lambda rank, world: open_train("pebbles", tiny_vit(), recipe, count=count, rank=rank, world=world,
                                          cache=tmp_path / "cache")


def fit(folder, tmp_path, recipe=RECIPE, system=None, **options):
    system = tp.PooledViT(tiny_vit(), schedule=[40, 20, 20], method="random") if system is None else system
    return loop.fit(system, feed_of(recipe, tmp_path), recipe, folder, {"recipe": asdict(recipe)},
                     tensorboard=False, cpu=True, **options)


# ---- killed and resumed ----

def test_a_run_stopped_at_random_steps_ends_with_the_same_bits(tmp_path):
    whole = fit(tmp_path / "whole", tmp_path).state_dict()
    stops = sorted(random.Random(time.time_ns()).sample(range(1, 12), 3))

    class Stopped(Exception):
        pass

    steps = iter(stops)
    original = loop._seed

    def seed_and_perhaps_stop(seed, step, piece, rank):
        if step == current and piece == 1:                     # in the middle of an accumulated step
            raise Stopped
        original(seed, step, piece, rank)

    for current in steps:                                      # noqa: B007  (read by the function above)
        loop._seed = seed_and_perhaps_stop
        try:
            with pytest.raises(Stopped):
                fit(tmp_path / "cut", tmp_path, checkpoint_steps=2)
        finally:
            loop._seed = original
    cut = fit(tmp_path / "cut", tmp_path, checkpoint_steps=2).state_dict()
    assert all(torch.equal(whole[k], cut[k]) for k in whole), f"stopped at {stops}"
    assert not all(torch.equal(v, tp.PooledViT(tiny_vit()).state_dict()[k]) for k, v in whole.items())
    lines = list(csv.DictReader((tmp_path / "cut" / "metrics.csv").open()))
    steps_written = [int(line["step"]) for line in lines]
    assert steps_written == sorted(set(steps_written))
    assert steps_written[-1] == 12


SMALL = ["--preset", "pebbles", "--images", "512", "--set", "epochs=6", "batch_size=32", "warmup_epochs=1",
         "--checkpoint-steps", "3", "--no-tensorboard", "--device", "cpu"]


def start(arguments, **environment):
    # Ctrl-C may be ignored here, as in a shell's background job, and children inherit that
    return subprocess.Popen([sys.executable, "-m", "tokenpool.cli", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                            env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def wait_for(condition, process=None, seconds=100):
    for _ in range(seconds * 20):
        if condition():
            return True
        if process is not None and process.poll() is not None:
            return condition()
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
                         ids=["SIGKILL", "Ctrl-C"])
def test_a_killed_command_goes_on_to_the_same_weights(how, tmp_path, small_run):
    out = ["finetune", "--system", "wk_medoids", "--saving", "0.5", *SMALL, "--out", str(tmp_path)]
    folder = tmp_path / "pebbles" / "finetune-vit-wk_medoids-save50-s0"
    process = start(out)
    assert wait_for((folder / loop.CHECKPOINT).exists, process)
    time.sleep(random.random() / 2)
    process.send_signal(how)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[how], said
    assert "Traceback" not in said
    assert not (folder / "card.json").exists()
    (folder / f".{loop.CHECKPOINT}.1.part").write_text("half")     # what a kill while one is written leaves
    again = start(out)
    assert again.wait(200) == 0, again.communicate()[0]
    assert (folder / "model.safetensors").read_bytes() == small_run.read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "metrics.csv", "model.safetensors", "rows.csv"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The same run, never stopped."""
    out = tmp_path_factory.mktemp("whole")
    process = start(["finetune", "--system", "wk_medoids", "--saving", "0.5", *SMALL, "--out", str(out)])
    assert process.wait(200) == 0, process.communicate()[0]
    return out / "pebbles" / "finetune-vit-wk_medoids-save50-s0" / "model.safetensors"


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    original, calls = loop.save_file, []

    def full_at_the_third(tensors, path, about):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        original(tensors, path, about)

    monkeypatch.setattr(loop, "save_file", full_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path / "run", tmp_path, checkpoint_steps=2)
    assert [p.name for p in (tmp_path / "run").iterdir() if "checkpoint" in p.name] == [loop.CHECKPOINT]
    monkeypatch.setattr(loop, "save_file", original)
    whole = fit(tmp_path / "whole", tmp_path).state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in fit(tmp_path / "run", tmp_path).state_dict().items())


def test_nan_stops_with_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    original = loop.Objective.forward
    calls = []

    def bad_at_the_ninth(self, x, target, seed):
        calls.append(1)
        return original(self, x * float("nan") if len(calls) == 17 else x, target, seed)      # two parts a step

    monkeypatch.setattr(loop.Objective, "forward", bad_at_the_ninth)
    plain = tp.PooledViT(tiny_vit())
    with pytest.raises(loop.Stop, match=r"at or shortly before step 9\. The last good checkpoint, step 8,"):
        fit(tmp_path / "run", tmp_path, system=plain, checkpoint_steps=1)
    saved = load_file(tmp_path / "run" / loop.CHECKPOINT)
    assert all(torch.isfinite(v).all() for v in saved.values())
    monkeypatch.undo()
    assert main(["finetune", "--system", "plain", *SMALL[:4], "--set", "batch_size=32", "lr=1e30", "clip_grad=0",
                 "epochs=1", "--device", "cpu", "--no-tensorboard", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "The loss became NaN or infinite" in said
    assert len(said.strip().splitlines()) == 1


def former_names(tree):
    """What a version wrote that said `start` and `pictures`."""
    old = {"init": "start", "images": "pictures"}
    return {old.get(k, k): former_names(v) if isinstance(v, dict) else v for k, v in tree.items()}


def test_a_finished_run_of_an_earlier_version_is_recognised(tmp_path):
    """Cards that ship were written by it: the same job has the same folder, and is not run again."""
    for file in sorted((ROOT / "data" / "runs").glob("*.cards.json")):
        for card in json.loads(file.read_text()):
            assert former_names(card["identity"]) == card["identity"]
            job = Job(**{"init" if k == "start" else k: v for k, v in card["identity"]["job"].items()})
            assert job.name == card["run"]
            folder = tmp_path / job.preset / job.name
            folder.mkdir(parents=True)
            (folder / "card.json").write_text(json.dumps(card))
            said = []
            assert jobs.run(job, tmp_path, say=said.append) == []
            assert said == [f"finished already: {folder}"]
    card["identity"]["job"]["start"] = "random"
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="holds a finished run with another recipe"):
        jobs.run(job, tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    identity = {"job": {"init": "top_k"}, "images": None}

    def part(written, until):
        return loop.fit(tp.PooledViT(tiny_vit()), feed_of(RECIPE, tmp_path), RECIPE, tmp_path / "run", written,
                        tensorboard=False, cpu=True, max_steps=until)

    part(former_names(identity), 2)
    assert load_step(tmp_path / "run") == 2
    original, steps = loop._seed, []
    monkeypatch.setattr(loop, "_seed", lambda seed, step, *rest: (steps.append(step), original(seed, step, *rest)))
    part(identity, 3)
    assert set(steps) == {2}
    with pytest.raises(ValueError, match="holds another run: init is 'top_k' there, and 'random' here"):
        part(identity | {"job": {"init": "random"}}, 4)


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(tmp_path / "run", tmp_path, checkpoint_steps=2, max_steps=3)
    with pytest.raises(ValueError, match=r"holds another run: lr is 0\.001 there, and 0\.1 here"):
        fit(tmp_path / "run", tmp_path, replace(RECIPE, lr=0.1))


# ---- the same images, whoever asks ----

def test_two_processes_see_together_what_one_with_the_doubled_batch_sees():
    recipe = replace(RECIPE, batch_size=16, accumulate=1)
    data = TrainImages([(np.full((3, 64, 64), i, np.uint8), i) for i in range(50)], loader._augment_pebbles, 0)

    def labels(rank, world, first=0, steps=8):
        parts = Feed(data, recipe, rank, world).micro_batches(first)
        return [next(parts) for _ in range(steps)]

    one = labels(0, 1)
    for step, (a, b) in enumerate(zip(labels(0, 2), labels(1, 2), strict=True)):
        assert torch.equal(torch.cat((a[1], b[1])), one[step][1])
        assert torch.equal(torch.cat((a[0], b[0])), one[step][0])
    assert torch.equal(labels(0, 1, first=5, steps=1)[0][0], one[5][0])          # from any step on
    assert not torch.equal(one[0][1], one[3][1])                                 # a new order in the next epoch
    epoch = torch.cat([y for _, y in one[:3]])
    assert len(set(epoch.tolist())) <= 25                                        # repeats=2: each image twice
    parts = Feed(data, replace(recipe, repeats=1)).micro_batches(0)
    assert len(set(torch.cat([next(parts)[1] for _ in range(3)]).tolist())) == 48


def test_reading_processes_change_nothing():
    data = TrainImages([(np.full((3, 64, 64), i, np.uint8), i) for i in range(40)], loader._augment_pebbles, 0)
    recipe = replace(RECIPE, batch_size=8, accumulate=1)
    alone, helped = (Feed(data, replace(recipe, workers=w)).micro_batches(0) for w in (0, 2))
    for _ in range(3):
        a, b = next(alone), next(helped)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_drawing_for_an_image_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with loader.seeded(1, "x"):
        first = random.random(), np.random.rand(), torch.rand(1).item()
    with loader.seeded(1, "x"):
        assert first == (random.random(), np.random.rand(), torch.rand(1).item())
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_augmentation_keeps_the_material_and_the_range():
    image = np.zeros((3, 64, 64), np.uint8)
    image[0], image[1, ::2], image[2, :, ::2] = 200, 100, 255
    seen = set()
    for seed in range(150):
        with loader.seeded(seed):
            x = loader._augment_pebbles(image, shift=0)
        same = [(order, sign) for order in __import__("itertools").permutations(range(3)) for sign in (1, -1)
                if torch.allclose(x, sign * (torch.from_numpy(image[list(order)]).float() / 127.5 - 1))]
        assert len(same) == 1
        seen.add(same[0])
        with loader.seeded(seed):
            assert loader._augment_pebbles(image).abs().max() <= 1
    assert len(seen) == 12


@pytest.mark.parametrize(("change", "says"), [
    (dict(batch_size=128), r"64 images do not fill a batch of 128"),
    (dict(batch_size=15), r"A batch of 15 cannot be split evenly over 1 processes and 2 parts")])
def test_batches_that_cannot_be(change, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        fit(tmp_path / "run", tmp_path, replace(RECIPE, **change))


# ---- more than one process ----

WITHOUT_CHANCE = ["--set", "batch_size=32", "epochs=2", "warmup_epochs=0.5", "accumulate=1"]


def torchrun(arguments, processes=2):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port",
         str(random.randint(20000, 60000)), "-m", "tokenpool.cli", *arguments], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})


def losses(folder):
    return {int(r["step"]): float(r["loss"]) for r in csv.DictReader((folder / "metrics.csv").open())}


@pytest.mark.slow
def test_two_processes_train_like_one_and_share_checkpoints(tmp_path):
    command = ["finetune", "--preset", "pebbles", "--system", "wk_medoids", "--saving", "0.5", "--images", "512",
               *WITHOUT_CHANCE, "--checkpoint-steps", "8", "--no-tensorboard", "--device", "cpu"]
    name = "pebbles/finetune-vit-wk_medoids-save50-s0"
    two = torchrun([*command, "--out", str(tmp_path / "two")])
    one = start([*command, "--out", str(tmp_path / "one")])
    said = two.communicate(timeout=250)[0]
    assert two.returncode == 0, said
    assert one.wait(200) == 0, one.communicate()[0]
    a, b = losses(tmp_path / "one" / name), losses(tmp_path / "two" / name)
    assert set(a) == set(b)
    assert all(a[s] == pytest.approx(b[s], rel=2e-3) for s in a)
    assert json.loads((tmp_path / "two" / name / "card.json").read_text())["processes"] == 2
    w, v = (load_file(tmp_path / k / name / "model.safetensors") for k in ("one", "two"))
    assert all(torch.allclose(w[k].float(), v[k].float(), atol=2e-3) for k in w)


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_with_one_clear_sentence_and_one_process_goes_on(tmp_path):
    command = ["finetune", "--preset", "pebbles", "--system", "wk_medoids", "--saving", "0.5", "--images", "512",
               "--set", "batch_size=32", "epochs=4", "accumulate=1", "--checkpoint-steps", "4", "--no-tensorboard",
               "--device", "cpu", "--out", str(tmp_path)]
    folder = tmp_path / "pebbles/finetune-vit-wk_medoids-save50-s0"
    job = torchrun(command)
    assert wait_for((folder / loop.CHECKPOINT).exists, job)
    children = [int(c) for c in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    workers = [c for c in children if b"tokenpool.cli" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    assert "tokenpool: Another process of this job ended, so this one stops." in said
    assert "Type the same command again to resume" in said
    step = load_step(folder)
    assert 0 < step < 64
    alone = start(command)
    assert alone.wait(200) == 0, alone.communicate()[0]
    assert max(losses(folder)) == 64


def load_step(folder):
    from safetensors import safe_open
    with safe_open(folder / loop.CHECKPOINT, "pt") as file:
        return int(file.metadata()["step"])


# ---- streams ----

def shards(folder, count=3, each=16):
    folder.mkdir()
    for number in range(count):
        with tarfile.open(folder / f"train-{number:04d}.tar", "w") as tar:
            for i in range(each):
                image = io.BytesIO()
                Image.new("RGB", (70, 70), (number * 80, i * 15, 0)).save(image, "JPEG")
                label = number * each + i
                for kind, data in (("jpg", image.getvalue()), ("cls", str(label % 50).encode())):
                    entry = tarfile.TarInfo(f"{label:05d}.{kind}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    split = {"num_samples": count * each, "shard_lengths": [each] * count,
             "filenames": [f"train-{n:04d}.tar" for n in range(count)]}
    splits = {name: split | {"name": name} for name in ("train", "validation")}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


def test_a_stream_is_read_whole_and_resumes_in_the_middle(tmp_path):
    folder = shards(tmp_path / "shards")
    recipe = replace(RECIPE, augment="timm", batch_size=8, accumulate=1, mixup=0.0, cutmix=0.0, repeats=1)

    def read(first, steps):
        stream = open_train(f"wds/{folder}", tiny_vit(), recipe, "train")
        assert stream.steps_per_epoch == 6
        parts = stream.micro_batches(first)
        return [next(parts) for _ in range(steps)]

    whole = read(0, 12)
    assert sorted(torch.cat([y for _, y in whole[:6]]).tolist()) == sorted(i % 50 for i in range(48))
    assert not torch.equal(whole[0][1], whole[6][1]) or not torch.equal(whole[1][1], whole[7][1])
    for (x, y), (x2, y2) in zip(read(4, 4), whole[4:8], strict=True):
        assert torch.equal(y, y2)
        assert torch.equal(x, x2)


# ---- presets, jobs, the three steps ----

@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_they_say(name):
    preset = load_preset(name)
    assert preset.name == name
    for model in preset.models:
        vit = jobs.build_base(preset, Job(name, "base", model))
        assert vit.num_classes == preset.classes
    assert preset.expects


def test_imagenet1k_is_the_papers(tmp_path, capsys):
    preset = load_preset("imagenet1k")
    cost = {m: tp.macs(jobs.build_base(preset, Job("imagenet1k", "base", m))).total / 1e9 for m in preset.models}
    assert {m: round(c, 3) for m, c in cost.items()} == {"ti": 1.254, "e252": 2.074, "e318": 3.213, "s": 4.599}
    assert preset.base.epochs == 300
    assert preset.base.lr == pytest.approx(5e-4 * preset.base.batch_size / 512)
    folder = shards(tmp_path / "shards")
    # one real step of the real model on the real loader, at a batch that fits a laptop
    assert main(["train", "--preset", "imagenet1k", "--dry-run", "--data", f"wds/{folder}", "--device", "cpu",
                 "--no-tensorboard", "--set", "batch_size=4", "workers=1", "precision=no", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "dry run: 1 step on images (4, 3, 224, 224)" in said
    assert float(said.split("loss ")[1].split(";")[0]) == pytest.approx(np.log(1000), rel=0.1)
    assert not (tmp_path / "imagenet1k").exists()


def test_the_three_steps_on_pebbles(tmp_path, capsys):
    small = ["--images", "256", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["search", "--penalty", "3e-3", "--set", "epochs=8", "mask_lr=0.05", *small]) == 0
    name = "search-vit-lambda0.003-s0"
    assert f"saved as {name}" in capsys.readouterr().out
    assert main(["finetune", "--system", "top_k", "--schedule", name, "--set", "epochs=1", *small]) == 0
    before, after = Results(tmp_path / "pebbles" / f"finetune-vit-top_k-{name}-s0" / "rows.csv").rows
    assert (before.stage, after.stage) == ("untouched", "finetuned")
    found = json.loads((tmp_path / "pebbles" / name / "schedule.json").read_text())["tokens"]
    assert before.schedule == " ".join(map(str, found))
    assert found[0] < 64
    assert found == sorted(found, reverse=True)
    assert before.weights != after.weights
    assert any(p.name.startswith("events.out.tfevents") for p in (tmp_path / "pebbles" / name).iterdir())
    assert main(["finetune", "--system", "top_k", "--schedule", name, "--set", "epochs=1", *small]) == 0
    assert "finished already" in capsys.readouterr().out
    assert main(["finetune", "--system", "top_k", "--schedule", name, "--set", "epochs=2", *small]) == 2
    assert "another recipe" in capsys.readouterr().err


PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "tiny-imagenet-50"


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="tiny-imagenet-50 is not beside the checkout")
def test_photographs_go_on_from_the_base_model_that_ships(tmp_path):
    assert main(["finetune", "--preset", "imagenet50_cpu", "--system", "random", "--saving", "0.42",
                 "--images", "256", "--data", str(PHOTOGRAPHS), "--device", "cpu", "--no-tensorboard",
                 "--out", str(tmp_path)]) == 0
    before, after = Results(next(tmp_path.glob("*/*/rows.csv"))).rows
    recorded = [r for r in Results(ROOT / "data" / "runs" / "imagenet50_cpu-runs.csv").rows
                if (r.method, r.saving, r.stage, r.seed) == ("random", 0.42, "untouched", 0)]
    assert before.top1 == pytest.approx(recorded[0].top1, abs=0.003)         # what ships is what was measured
    assert before.images == after.images == 2500
    assert before.data == "tiny-imagenet-50"


@pytest.mark.parametrize(("system", "metric"), [("tokenpool", "directions"), ("ToMe", "keys")])
def test_peers_are_finetuned_under_their_own_names(system, metric, tmp_path):
    assert main(["finetune", "--system", system, "--saving", "0.42", "--images", "64", "--device", "cpu",
                 "--no-tensorboard", "--set", "epochs=1", "batch_size=32", "--out", str(tmp_path)]) == 0
    before, after = Results(next(tmp_path.glob("*/*/rows.csv"))).rows
    assert (before.method, before.stage, after.stage) == (system, "untouched", "finetuned")
    assert before.counts
    pooled = tp.PooledViT(timm.create_model("pebbles_vit"), saving=0.42, **published.NAMED[system])
    assert pooled.metric == metric
    assert before.schedule == " ".join(map(str, pooled.schedule))
    assert before.gmacs == pytest.approx(tp.macs(pooled).total / 1e9)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_planned_command_runs_the_job_it_stands_for(preset, monkeypatch, capsys):
    planned = plan(["all"], load_preset(preset), seeds=2)
    ran = []
    monkeypatch.setattr(jobs, "run", lambda job, *args, **options: ran.append(job))
    for job in planned:
        assert main(job.command().split()[1:]) == 0
    assert ran == planned
    assert len({j.name for j in planned}) == len(planned)
    steps = [j.step for j in planned]
    assert steps == sorted(steps, key=["base", "search", "finetune"].index)
    capsys.readouterr()
    assert main(["plan", "fig3", "--preset", preset]) == 0
    assert all(line.startswith(("# ", "tokenpool ")) for line in capsys.readouterr().out.splitlines())
    assert not any(j.step == "finetune" and j.base not in planned and not load_preset(preset).has_base(j.base)
                   for j in planned)


@pytest.mark.parametrize(("arguments", "says"), [
    (["finetune"], "Type either --saving 0.42 or --schedule NAME"),
    (["finetune", "--system", "wk_medoid", "--saving", "0.4"], "Did you mean 'wk_medoids'"),
    (["finetune", "--system", "top_k", "--init", "random", "--saving", "0.4"], "top_k has no initialisation"),
    (["finetune", "--saving", "42"], "--saving 42: use a share"),
    (["finetune", "--saving", "0.4", "--set", "epoch=3"], "Did you mean 'epochs'"),
    (["finetune", "--saving", "0.4", "--set", "epochs=many"], "epochs='many' is not a number"),
    (["finetune", "--saving", "0.4", "--set", "epochs"], "write it as FIELD=VALUE"),
    (["finetune", "--schedule", "nobodys"], "Unknown schedule 'nobodys'"),
    (["finetune", "--preset", "imagenet", "--saving", "0.4"], "Unknown preset 'imagenet'"),
    (["finetune", "--preset", "imagenet50", "--model", "s", "--saving", "0.4"],
     "Train it first: tokenpool train --preset imagenet50 --model s"),
    (["train", "--model", "xl"], "Use --model vit"),
    (["train", "--preset", "imagenet50", "--data", "nowhere"], "No data called 'nowhere'"),
    (["train", "--preset", "imagenet50"], "Say where they are with --data FOLDER"),
    (["search", "--penalty", "0"], "--penalty 0: use a number above 0"),
    (["search"], "Add --penalty 1e-3"),
    (["train", "--qk", "r3"], "Unknown reading 'r3'"),
    (["plan", "fig7"], "needs no training"),
    (["plan", "fig99"], "Unknown figure '99'"),
    (["report", "nowhere"], "No rows at nowhere"),
])
def test_mistakes_get_one_sentence(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said
