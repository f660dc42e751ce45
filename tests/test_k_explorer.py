"""The K-per-layer explorer: what it computes against the model, what its lock keeps, and what it says of every move."""

import gc
import io
import random
import struct
import time
import zlib

import ipywidgets
import numpy as np
import pytest
import torch
from lessons import lesson
from PIL import Image

import tokenpool as tp
from tokenpool.lab.k_explorer import compute, settings, view
from tokenpool.lab.k_explorer.explorer import KExplorer
from tokenpool.lab.kit.session import Lab, pebbles, shipped_vit
from tokenpool.lab.widgets.controls import Choice, Number

PRESETS = lesson("05").presets()


@pytest.fixture
def explorer():
    made = KExplorer(PRESETS)
    yield made
    made.close()


def setting(**changed):
    first = PRESETS["geometric, 42 % saved"]
    plain = dict(preset="geometric, 42 % saved", budget=58, lock=False, method="wk_medoids", init="top_k", output="",
                 counts=False, compare=settings.NOTHING, image=compute.image_names()[0], shown=compute.image_names()[0],
                 **{f"k{b}": k for b, k in enumerate(first[:5], start=1)})
    return settings.Setting(**(plain | changed | ({"shown": changed["image"]} if "image" in changed else {})))


def built(code):
    return eval(code, {"tp": tp, "vit": shipped_vit()}).eval()


# ---- compute, against the model ----

@pytest.mark.parametrize("choice", [dict(), dict(method="top_k", counts=True), dict(method="k_means", output="medoid"),
                                    dict(init="farthest_first", output="mean"), dict(method="grid_average")])
def test_compute_against_the_model(choice):
    asked = setting(**choice)
    v = compute.look(asked)
    x = pebbles(24)[0][[4]]
    model = built(asked.code)
    with torch.no_grad():
        assert v.runs[0].after == pytest.approx(model(x).softmax(1)[0].numpy(), abs=1e-5)
        assert v.before == pytest.approx(shipped_vit()(x).softmax(1)[0].numpy(), abs=1e-5)
        steps = model.trace(x).steps[:5]
    counted, plain = tp.macs(model), tp.macs(shipped_vit()).total
    assert v.runs[0].share == counted.total / plain
    assert v.runs[0].share_without == counted.without_clustering / plain
    assert asked.macs(asked.ks) == counted.total                     # what lock and budget count with
    assert v.runs[0].error == pytest.approx([float(s.error) for s in steps])
    assert v.runs[0].left.sum(1).tolist() == [64, *asked.ks]
    assert v.patches == tuple(np.bincount(pebbles(24)[3][4], minlength=3))


def test_tokens_by_region_by_counting():
    regions = pebbles(24)[3][4]
    for method in ("top_k", "wk_medoids"):
        v = compute.look(setting(method=method))
        steps = built(setting(method=method).code).trace(pebbles(24)[0][[4]]).steps[:5]
        for place, step in enumerate(steps, start=1):
            if method == "top_k":
                mine = [regions[o] for o in step.origin[0].tolist()]
            else:
                labels = step.labels[0].tolist()
                members = [[regions[p] for p in range(64) if labels[p] == c] for c in range(step.kept)]
                mine = [max(range(3), key=lambda r, of=of: (of.count(r), -r)) for of in members]
            assert v.runs[0].left[place].tolist() == [mine.count(r) for r in range(3)]


def test_a_cluster_belongs_to_most_of_its_patches():
    regions = np.array([2, 2, 0, 1, 1, 0])
    step = type("Step", (), dict(kept=2, labels=torch.tensor([[0, 0, 0, 1, 1, 1]]), origin=torch.tensor([[2, 5]])))
    assert compute.regions_of(regions, step, chooses=False).tolist() == [2, 1]
    assert compute.regions_of(regions, step, chooses=True).tolist() == [0, 0]


def test_the_rebuilt_image_patch_by_patch():
    pixels = pebbles(24)[1][4]
    labels = torch.arange(64).div(2, rounding_mode="floor")[None]                # patches 2 c and 2 c + 1 share c
    step = type("Step", (), dict(kept=32, labels=labels, origin=torch.arange(1, 64, 2)[None]))
    mean, own = compute.rebuilt(pixels, step, own=False), compute.rebuilt(pixels, step, own=True)
    for row, column in ((0, 0), (3, 4), (7, 6)):
        left, right = (pixels[:, 8 * row:8 * row + 8, 8 * c:8 * c + 8].astype(float) for c in (column, column + 1))
        for c in (column, column + 1):
            place = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * c, 8 * c + 8))
            assert np.abs(mean[place] - (left + right) / 2).max() <= 0.5
            assert (own[place] == right).all()
    whole = compute.look(setting(**{f"k{b}": 64 for b in range(1, 6)}))
    assert (whole.runs[0].rebuilt == pixels).all()                   # nothing pooled: nothing lost


def test_the_strip_holds_seven_images():
    shown = compute.sample(compute.image_names()[0])
    first = compute.framed(shown)
    frame = (first == 255).all(2) & (shown.pixels.transpose(1, 2, 0).repeat(2, 0).repeat(2, 1) != 255).any(2)
    inside = (shown.regions == 2).reshape(8, 8).repeat(16, 0).repeat(16, 1)
    assert frame.any()
    assert not (frame & ~inside).any()                   # the frame lies on the small pebble's own patches
    assert compute.look(setting()).runs[0].strip.shape == (128, 7 * 136, 3)


def test_the_images_are_what_their_names_say():
    assert len(compute.image_names()) == 11
    for name in compute.image_names()[:6]:
        assert compute.spoken(int(compute.plain(name).argmax())) in name        # and the plain model knows them all
        assert (compute.sample(name).regions == 2).sum() >= 4


def test_copies_lose_nothing_of_no_variance():
    """Drawing with replacement leaves copies; a later cut among copies of one token divides 0 by 0."""
    run = compute.look(setting(k1=9, k2=2, k3=2, k4=2, k5=1, method="importance_with_replacement", counts=True)).runs[0]
    assert np.isfinite(run.error).all()
    assert np.isfinite(run.after).all()


# ---- schedules: rising, for a budget, locked ----

def test_a_rising_slider_is_answered_in_words():
    assert settings.allowed((48, 36, 27, 21, 15)) == ((48, 36, 27, 21, 15), "")
    ks, told = settings.allowed((40, 50, 20, 20, 20))
    assert ks == (40, 40, 20, 20, 20)
    assert told.startswith("Block 2 asks for 50 of 40 tokens")
    ks, told = settings.allowed((5, 64, 3, 64, 4))
    assert ks == (5, 5, 3, 3, 3)
    assert "2 (64 of 5), 4 (64 of 3), 5 (4 of 3)" in told
    v = compute.look(setting(k3=60))
    assert "Block 3 asks for 60 of 36" in view.first_words(v)
    assert v.runs[0].error[2] == 0


@pytest.mark.parametrize("method", ["wk_medoids", "k_means", "top_k"])
def test_a_budget_is_met_or_its_miss_is_told(method):
    plain = tp.macs(shipped_vit()).total
    for budget in range(20, 101, 8):
        s = settings.follow(setting(method=method), "budget", budget, PRESETS)
        got = tp.macs(tp.PooledViT(shipped_vit(), s.schedule, method=method, init=s.how.init)).total
        assert s.preset == settings.BUDGET
        assert (abs(got - budget / 100 * plain) <= 0.01 * budget / 100 * plain) == (s.note == ""), budget


def test_the_lock_keeps_the_budget_over_many_moves_or_says_why_not():
    draw = random.Random(0)
    missed = kept = 0
    for _ in range(40):
        s = setting(method=draw.choice(["wk_medoids", "top_k", "k_means"]), counts=draw.random() < 0.3)
        s = settings.follow(s, "preset", draw.choice([*PRESETS][:5]), PRESETS)
        s = settings.follow(s, "lock", True, PRESETS)
        target = s.target
        for _ in range(10):
            block, k = draw.randint(1, 5), draw.randint(1, 64)
            s = settings.follow(s, f"k{block}", k, PRESETS)
            assert s.ks[block - 1] == k                              # what was asked for is never clamped
            assert list(s.ks) == sorted(s.ks, reverse=True)
            assert all(isinstance(k, int) and 1 <= k <= 64 for k in s.ks)
            assert s.target == target
            model = tp.PooledViT(shipped_vit(), s.schedule, method=s.how.method, init=s.how.init,
                                 carry_counts=s.counts)
            off = abs(tp.macs(model).total - target) / target
            assert (off <= 0.01) == (s.note == ""), (s.ks, off, s.note)
            kept += not s.note
            if s.note:                                               # and then it is true: no schedule comes near
                missed += 1
                assert f"{k} token" in s.note
                for _ in range(30):
                    other = sorted((draw.randint(k, 64) for _ in range(block - 1)), reverse=True)
                    other += [k, *sorted((draw.randint(1, k) for _ in range(5 - block)), reverse=True)]
                    assert abs(s.macs(tuple(other)) - target) > 0.01 * target, other
    assert min(missed, kept) > 20


def test_there_and_back_with_the_lock_is_no_change():
    s = settings.follow(setting(), "lock", True, PRESETS)
    begin = s.ks
    for k in (40, 20, 5, 60, 36, 48):
        s = settings.follow(s, "k1", k, PRESETS)
    assert s.ks == begin


def test_the_lock_holds_when_the_method_changes():
    s = settings.follow(setting(), "lock", True, PRESETS)
    for name, value in (("method", "top_k"), ("method", "k_means"), ("output", "medoid"), ("counts", True)):
        s = settings.follow(s, name, value, PRESETS)
        assert abs(s.macs(s.ks) - s.target) <= 0.01 * s.target
    assert s.preset == settings.BY_HAND
    assert sum(settings.follow(setting(lock=True, target=s.target), "method", "top_k", PRESETS).ks) > sum(setting().ks)
    free = settings.follow(s, "lock", False, PRESETS)
    assert settings.follow(free, "k1", 3, PRESETS).ks[1:] == free.ks[1:]


def test_the_lock_takes_what_is_chosen_next():
    s = settings.follow(setting(), "lock", True, PRESETS)
    s = settings.follow(s, "preset", "early and hard, 42 % saved", PRESETS)
    assert s.target == s.macs(s.ks)
    s = settings.follow(s, "budget", 40, PRESETS)
    assert s.target == s.macs(s.ks) == pytest.approx(0.4 * settings.plain_macs(), rel=0.01)
    rising = settings.follow(setting(k3=60), "lock", True, PRESETS)
    assert rising.ks == (48, 36, 36, 21, 15)                         # a schedule that rises cannot be scaled


# ---- wiring ----

def test_a_preset_sets_the_sliders_and_a_slider_takes_over(explorer):
    explorer.set(preset="early and hard, 42 % saved")
    assert [explorer.values()[f"k{b}"] for b in range(1, 6)] == [31] * 5
    assert "K = 31 31 31 31 31" in explorer.words
    explorer.set(k4=12)
    assert explorer.values()["preset"] == settings.BY_HAND
    assert "You moved block 4 from 31 to 12 tokens" in explorer.words
    explorer.set(preset=settings.BUDGET)
    assert "K = " in explorer.words
    explorer.set(preset=settings.BY_HAND)
    assert explorer.words == "You set the sliders."


def test_one_move_is_one_compute_and_one_drawing(explorer, monkeypatch):
    computes, drawings = [], []
    monkeypatch.setattr(explorer, "compute", lambda s: (computes.append(s), compute.look(s))[1])
    monkeypatch.setattr(explorer, "draw", lambda v: (drawings.append(v), view.figure(v))[1])
    moves = [dict(k2=20), dict(preset="early and hard, 42 % saved"), dict(lock=True), dict(k1=40), dict(budget=70),
             dict(method="top_k"), dict(compare="k_means"), dict(image=compute.image_names()[2])]
    for count, move in enumerate(moves, start=1):
        explorer.set(**move)
        assert (len(computes), len(drawings)) == (count, count), move
    for count, act in enumerate((explorer.undo, explorer.undo, explorer.redo, explorer.reset), start=len(moves) + 1):
        act()
        assert len(computes) == count


def test_undo_redo_and_reset(explorer):
    settings = [explorer.setting]
    for move in (dict(k2=20), dict(lock=True), dict(k1=30), dict(preset="late and gently, 42 % saved"),
                 dict(method="top_k"), dict(compare="k_means")):
        explorer.set(**move)
        settings.append(explorer.setting)
    first = explorer.values()
    for before in settings[-2::-1]:
        explorer.undo()
        assert explorer.setting == before
        assert explorer.values() == {name: getattr(before, name) for name in explorer.controls}
        assert explorer.words.startswith("One move undone.")
    assert explorer.undo().words == "There is nothing to undo."
    for after in settings[1:]:
        assert explorer.redo().setting == after
    assert explorer.values() == first
    assert explorer.redo().words == "There is nothing to redo."
    explorer.reset()
    assert explorer.setting == settings[0]
    assert explorer.words.startswith("All controls are back at their first values.")
    explorer.undo()
    assert explorer.values() == first
    explorer.set(k5=1)
    assert explorer.redo().words == "There is nothing to redo."         # a new move forgets what was taken back
    explorer.buttons["undo"].click()
    assert explorer.values() == first


def test_the_code_makes_the_same_model(explorer):
    explorer.set(preset="late and gently, 42 % saved", method="k_means", output="medoid", counts=True,
                 init="farthest_first", compare="top_k")
    explorer.buttons["show_code"].click()
    assert "Click it to select it" in explorer.words
    lines = explorer.code.split("\n")
    assert len(lines) == 2
    x = pebbles(24)[0][[4]]
    for line, run in zip(lines, explorer._view.runs, strict=True):
        model = built(line)
        assert model.schedule == explorer.setting.schedule
        assert model(x).softmax(1)[0].detach().numpy() == pytest.approx(run.after, abs=1e-5)
        assert line.replace("'", "&#x27;") in explorer._code.value or line in explorer._code.value
    explorer.set(k5=2)                                               # the line follows
    assert ", 2, 2], method" in explorer._code.value


def test_two_methods_side_by_side(explorer):
    alone = len(explorer.figure.data)
    explorer.set(compare="top_k")
    first, second = explorer._view.runs
    assert [t.type for t in explorer.figure.data].count("image") == 1
    assert len(explorer.figure.data) == 14
    assert second.after == pytest.approx(compute.look(setting(method="top_k")).runs[0].after)
    for number in (f"{second.share:.1%}", f"{sum(second.error) / 5:.2f}", f"{sum(first.error) / 5:.2f}"):
        assert number in explorer.words
    assert list(explorer.table(explorer._view)["method"]) == ["wk_medoids"] * 5 + ["top_k"] * 5
    explorer.set(k1=30)
    assert "top_k costs" in explorer.words
    explorer.set(compare="wk_medoids")
    assert "compared with itself is one row" in explorer.words
    explorer.set(compare=settings.NOTHING)
    assert len(explorer.figure.data) == alone == 9


def test_the_figure_shows_what_was_computed():
    v = compute.look(setting(preset="late and gently, 42 % saved"))
    run, fig = v.runs[0], view.figure(v)
    assert [t.type for t in fig.data] == ["image"] + ["bar"] * 8
    assert list(fig.data[1].y) == [round(e, 3) for e in run.error]
    for region in range(3):
        assert list(fig.data[2 + region].y) == run.left[:, region].tolist()
        assert list(fig.data[2 + region].base) == run.left[:, :region].sum(1).tolist()
    blocks, clustering = fig.data[5:7]
    assert list(blocks.y) == ["wk_medoids", "plain model"]
    assert blocks.x[1] == 100
    assert blocks.x[0] + clustering.x[0] == pytest.approx(100 * run.share, abs=0.06)
    assert blocks.x[0] == pytest.approx(100 * run.share_without, abs=0.06)
    plain, pooled = fig.data[7:]
    assert pooled.y == plain.y
    assert plain.y[list(plain.x).index(max(plain.x))].replace("<br>", " ") == compute.spoken(int(v.before.argmax()))
    assert max(pooled.x) == round(100 * float(run.after.max()), 1)
    assert fig.layout.xaxis.ticktext[-1] == f"rebuilt<br>{v.ks[-1]}"


# ---- words ----

def test_words_name_what_moved_and_why(explorer):
    before = explorer._view.runs[0]
    explorer.set(k2=20)
    now = explorer._view.runs[0]
    points = round(100 * before.share, 1) - round(100 * now.share, 1)
    assert explorer.words.startswith("You moved block 2 from 36 to 20 tokens.")
    assert f"{points:.1f} points fewer MACs: {before.share:.1%} became {now.share:.1%}" in explorer.words
    assert f"rose from {before.error[1]:.2f} to {now.error[1]:.2f}: it turned 48 tokens into 36, now 48 into 20" in \
        explorer.words
    assert "The class stays *large diagonal, small plain*" in explorer.words
    explorer.set(lock=True, k1=40)
    assert "and the lock moved the others: K = 40 " in explorer.words
    explorer.set(lock=False, method="top_k")
    assert "from wk_medoids to top_k (keep the K tokens with the highest score" in explorer.words
    assert "top_k does not cluster" in explorer.words
    explorer.set(image="photograph: cat")
    assert "trained on pebbles only" in explorer.words


def test_every_control_is_answered(explorer):
    for name, value in (("method", "top_k"), ("init", "farthest_first"), ("output", "medoid"), ("counts", True),
                        ("lock", True), ("compare", "top_k"), ("budget", 70), ("preset", "early and hard, 42 % saved"),
                        ("image", compute.image_names()[1]), *((f"k{b}", 12 - b) for b in range(1, 6))):
        before = explorer.words
        explorer.set(**{name: value})
        assert explorer.error is None
        assert explorer.words not in ("", before), name


def test_no_corner_breaks_the_explorer(explorer):
    """Every option and both ends of every control, each move from where the last one left things."""
    moves = []
    for name, spec in explorer.controls.items():
        if isinstance(spec, Choice):
            moves += [{name: option} for option in spec.options.values() if not str(option).startswith("photograph")]
        elif isinstance(spec, Number):
            moves += [{name: spec.low}, {name: spec.high}]
    moves += [dict(lock=True), *({f"k{b}": k} for b in range(1, 6) for k in (1, 64)), dict(budget=20),
              dict(counts=True), dict(method="importance_with_replacement"), dict(image="photograph: cat")]
    for move in moves:
        explorer.set(**move)
        assert explorer.error is None, (move, explorer.words)
        assert len(explorer.figure.data) in (9, 14)
        assert "nan" not in explorer.words
    for _ in range(5):
        assert explorer.undo().error is None


def test_a_raising_compute_is_told_and_kept(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "compute", lambda s: 1 / 0)
    explorer.set(k2=20)
    assert isinstance(explorer.error, ZeroDivisionError)
    assert "does not work" in explorer.words
    monkeypatch.undo()
    explorer.undo()
    assert explorer.error is None
    assert explorer.values()["k2"] == 36


# ---- your own image ----

def encoded(kind="PNG", size=(90, 60), mode="RGB"):
    draw = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(draw).convert(mode).save(file, kind)
    return file.getvalue()


def huge():
    """A PNG of 100 000 x 100 000 pixels in a few bytes: only its header says so."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "L"),
                                            ("WEBP", "RGB"), ("BMP", "RGB")])
def test_an_upload_is_shown(explorer, kind, mode):
    content = encoded(kind, mode=mode)
    explorer.upload._handle_custom_msg({"name": f"mine.{kind}", "size": len(content)}, [memoryview(content)])
    assert explorer.error is None
    assert explorer.values()["image"] == settings.OWN
    assert "trained on pebbles only" in explorer.words
    own = np.frombuffer(explorer.setting.own, np.uint8).reshape(3, 64, 64)
    assert own.std() > 10
    if (kind, mode) == ("PNG", "RGB"):
        middle = Image.open(io.BytesIO(content)).crop((15, 0, 75, 60)).resize((64, 64), Image.Resampling.LANCZOS)
        assert (own == np.asarray(middle).transpose(2, 0, 1)).all()
        explorer.undo()
        assert explorer.values()["image"] == compute.image_names()[0]
        explorer.set(image=settings.OWN)                                  # taken back with the move that brought it
        assert "not uploaded an image yet" in explorer.words


@pytest.mark.parametrize(("name", "content", "phrase"), [
    ("notes.png", b"these are words", "cannot be read as an image"), ("empty.png", b"", "cannot be read as an image"),
    ("cut.png", encoded()[:2000], "damaged"), ("cut.jpg", encoded("JPEG")[:2500], "damaged"),
    ("anim.gif", encoded("GIF"), "Use a PNG, JPEG, WEBP or BMP file"), ("bomb.png", huge(), "pixels"),
    ("wide.bmp", encoded("BMP", (41_000, 1000), "1")[:9000], "41000 x 1000 pixels"),
    ("large.png", bytes(5_000_001), "5.0 MB. Use an image of at most 5 MB")])
def test_a_bad_upload_is_answered_in_words(explorer, name, content, phrase):
    explorer.upload._handle_custom_msg({"name": name, "size": len(content)}, [content])
    assert explorer.words.startswith(name)
    assert phrase in explorer.words
    assert f"Still showing {compute.image_names()[0]}" in explorer.words
    assert explorer.error is None
    assert explorer.setting.image == compute.image_names()[0]


def test_a_file_that_the_browser_did_not_send_is_answered_by_its_size(explorer):
    explorer.upload._handle_custom_msg({"name": "film.png", "size": 700_000_000}, [b""])
    assert "film.png has 700.0 MB" in explorer.words


def test_your_own_without_an_upload_keeps_the_image(explorer):
    explorer.set(image="photograph: cat", k1=40)
    explorer.set(image=settings.OWN)
    assert explorer.words.startswith("You have not uploaded an image yet")
    assert explorer.setting.shown == "photograph: cat"


# ---- quick, and gone when closed ----

def test_a_move_is_quick(explorer):
    took = []
    for k in range(47, 36, -1):
        started = time.process_time()          # of the processor, so that a busy machine changes nothing
        explorer.set(k1=k)
        took.append(time.process_time() - started)
    assert sorted(took)[len(took) // 2] < 0.3            # 0.07 s on one core


def test_nothing_is_left_when_it_is_closed():
    def widgets():
        gc.collect()
        return len(ipywidgets.widgets.widget._instances)

    KExplorer(PRESETS).close()
    before = widgets()
    for _ in range(20):
        KExplorer(PRESETS).set(lock=True).close()
    assert widgets() == before
    other = Lab("05").explore()
    other.close()
    assert widgets() == before
