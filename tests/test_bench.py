"""Timing in turns, on machines whose clock is ours: what a ratio must survive, and what is said where there is none."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from browsing import CHROMIUM, launch

import tokenpool as tp
from tokenpool.cli import main
from tokenpool.measure import bench, memory, workloads
from tokenpool.measure.bench import Built, Group, Item, Options, Sample, Stopwatch
from tokenpool.measure.rows import Results, Row, Timing
from tokenpool.report import speed_page


class Machine:
    """Time passes only when something runs, and the machine grows slower with every second of work."""

    def __init__(self, drift=0.0):
        self.now, self.worked, self.drift, self.log = 0.0, 0.0, drift, []
        self.watch = Stopwatch(clock=lambda: self.now, wall=lambda: self.now)

    def work(self, name, seconds):
        def run():
            self.log.append(name)
            begun, self.worked = self.worked, self.worked + seconds
            self.now += seconds if not self.drift else (
                math.exp(self.drift * self.worked) - math.exp(self.drift * begun)) / self.drift
        return run


def test_a_ratio_survives_a_machine_that_drifts():
    """Ten per cent slower with every baseline: a clock read once before would be off by that much."""
    machine = Machine(drift=0.1)
    items = {Item(name): (machine.work(name, seconds), 1) for name, seconds in (("half", 0.5), ("double", 2.0))}
    found = bench.in_turns(machine.watch, (machine.work("plain", 1.0), 1), items, rounds=5)
    assert machine.now > 3 * machine.worked / 2                                # it really drifted
    for name, wanted in (("half", 0.5), ("double", 2.0)):
        low, middle, high = bench.quartiles(found[Item(name)])
        assert middle == pytest.approx(wanted, rel=0.02)
        assert high - low < 0.02 * wanted


def test_every_item_stands_between_two_baselines_in_an_order_that_changes():
    def log(seed):
        machine = Machine()
        items = {Item(n): (machine.work(n, 1.0), 1) for n in "abcd"}
        bench.in_turns(machine.watch, (machine.work("plain", 1.0), 1), items, rounds=6, seed=seed)
        return machine.log

    first = log(0)
    rounds = [first[9 * r:9 * r + 9] for r in range(6)]
    assert all(r[0::2] == ["plain"] * 5 and sorted(r[1::2]) == list("abcd") for r in rounds)
    assert len({tuple(r) for r in rounds}) > 3
    assert log(0) == first != log(1)


def test_calls_too_short_for_a_clock_are_repeated():
    machine = Machine()
    calls, _ = bench._ready(machine.work("short", 0.002), "cpu", machine.watch)
    assert calls == 5
    assert bench._ready(machine.work("long", 3.0), "cpu", machine.watch)[0] == 1
    assert bench._ready(machine.work("very short", 1e-7), "cpu", machine.watch)[0] == 50
    assert machine.watch.time(machine.work("short", 0.002), 5) == pytest.approx(0.002)


def test_quartiles_are_numpys():
    ratios = np.random.default_rng(0).random(9)
    assert bench.quartiles([Sample(r, 1.0) for r in ratios]) == pytest.approx(np.quantile(ratios, [0.25, 0.5, 0.75]))
    assert bench.quartiles([Sample(3.0, 2.0)]) == (1.5, 1.5, 1.5)


# ---- groups, rows, and what can go wrong ----

def group(machine, name="g", seconds=(0.5, 2.0), plain=1.0, share=0.4, fail=None):
    """A group of fake items; `fail` maps an item's index to (call from which it fails, error)."""
    items = tuple(Item(f"{name}{i}") for i in range(len(seconds)))
    calls = dict.fromkeys(items, 0)

    def make(index, item, took):
        work = machine.work(item.name, took)

        def run():
            calls[item] += 1
            if fail and index in fail and calls[item] >= fail[index][0]:
                raise fail[index][1]
            work()
        return run

    def build(g, options):
        runs = {item: make(n, item, seconds[n]) for n, item in enumerate(items)}
        return Built(machine.work("plain", plain), runs, dict.fromkeys(items, share), {})
    return Group("forward", name, 4, "float32", 196, "plain model", items, build, plain * (1 + sum(seconds)))


def measured(machine, groups, tmp_path, **options):
    return bench.measure(Options(**options), groups, Results(tmp_path / "t.csv", Timing), watch=machine.watch)


def test_rows_say_what_was_measured_and_survive_the_file(tmp_path):
    machine = Machine()
    rows = measured(machine, [group(machine)], tmp_path, rounds=3, seconds=None)
    assert [(r.name, r.rounds, r.note) for r in rows] == [("g0", 3, ""), ("g1", 3, "")]
    first = rows[0]
    assert (first.ratio, first.seconds, first.baseline_seconds) == pytest.approx((0.5, 0.5, 1.0))
    assert (first.obtained, first.promised, first.efficiency) == pytest.approx((2.0, 2.5, 0.8))
    assert Results(tmp_path / "t.csv", Timing).rows == rows
    with pytest.raises(ValueError, match="its columns differ"):
        Results(tmp_path / "t.csv", Row)


def test_a_time_budget_is_kept_and_what_it_left_out_is_said(tmp_path):
    machine = Machine()
    groups = [group(machine, f"g{n}-", seconds=(1.0,) * 5) for n in range(4)]
    rows = measured(machine, groups, tmp_path, rounds=100, seconds=150.0)
    assert machine.now <= 150 + 11                                       # at most a round beyond
    assert {r.note for r in rows if not r.rounds} <= {"not reached in 150 s"}
    assert all(r.rounds >= 1 for r in rows)
    tight = Machine()
    groups = [group(tight, f"t{n}-", seconds=(1.0,) * 5) for n in range(4)]
    rows = measured(tight, groups, tmp_path, rounds=100, seconds=20.0)
    assert tight.now < 60
    assert any(r.note == "not reached in 20 s" and r.ratio == 0 for r in rows)


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.\nmore words")


@pytest.mark.parametrize("call", [1, 4])
def test_out_of_memory_is_a_row_and_the_others_go_on(tmp_path, call):
    """In the warm-up, and in the first round."""
    machine = Machine()
    rows = measured(machine, [group(machine, fail={0: (call, OUT)})], tmp_path, rounds=3, seconds=None)
    assert rows[0].rounds == 0
    assert rows[0].note == "out of memory (CUDA out of memory. Tried to allocate 80.00 GiB.)"
    assert rows[1].ratio == pytest.approx(2.0)
    assert "out of memory" in " ".join(speed_page.model_table(rows, "forward").lines[0])
    other = RuntimeError("a mistake")
    with pytest.raises(RuntimeError, match="a mistake"):
        measured(machine, [group(machine, "h", fail={0: (call, other)})], tmp_path, rounds=3, seconds=None)


def test_a_plain_model_out_of_memory_is_said_too(tmp_path):
    machine = Machine()
    broken = replace(group(machine), build=lambda g, o: (_ for _ in ()).throw(MemoryError("no")))
    assert {r.note for r in measured(machine, [broken], tmp_path)} == {"the plain model ran out of memory (no)"}


def test_asking_for_too_much_is_an_error_and_not_the_end_of_the_process():
    with memory.bounded(share=0.3), pytest.raises(RuntimeError) as refused:
        torch.empty(int(0.6 * memory.free()), dtype=torch.uint8)
    assert memory.ran_out(refused.value)
    assert not memory.ran_out(RuntimeError("shapes differ"))
    assert torch.empty(1000).shape == (1000,)


def test_peak_memory_is_the_worst_moment_and_the_second_call_is_not_free():
    def run():
        a = torch.ones(16 * 2**20)                                        # 64 MiB
        del a
        torch.ones(8 * 2**20)

    if math.isnan(memory.peak(run)):
        pytest.skip("this machine does not say")
    assert [memory.peak(run) for _ in range(2)] == pytest.approx([64, 64], abs=8)


def test_ctrl_c_keeps_rows_and_a_finished_run_is_done_anew(tmp_path):
    machine = Machine()
    built = []

    def noted(g):
        return replace(g, build=lambda *a: built.append(g.model) or g.build(*a))

    good, stops = noted(group(machine, "good")), replace(group(machine, "late"), build=lambda *a: (_ for _ in ()).throw(
        KeyboardInterrupt()))
    options = Options(rounds=2, seconds=None)
    with pytest.raises(KeyboardInterrupt):
        bench.run(options, [good, stops], tmp_path)
    assert bench.unfinished(tmp_path) == 2
    assert not (tmp_path / "bench.csv").exists()
    rows = bench.run(options, [good, noted(group(machine, "late"))], tmp_path)
    assert built == ["good", "late"]                                       # the first was not timed again
    assert [r.model for r in rows] == ["good", "good", "late", "late"]
    assert Results(tmp_path / "bench.csv", Timing).rows == rows
    assert bench.unfinished(tmp_path) == 0
    bench.run(options, [good], tmp_path)
    assert built == ["good", "late", "good"]


# ---- what is timed ----

def test_the_plan_holds_every_method_start_and_size():
    groups = workloads.plan(Options(models=("pebbles_vit",)))
    steps = next(g for g in groups if g.part == "operators")
    assert {(i.name, i.init) for i in steps.items if i.kept} == {
        (m, s) for m in tp.method_names() for s in (("top_k", "farthest_first") if "_me" in m else ("",))}
    assert {i.kept for i in steps.items if i.kept} == {32, 48}
    assert Item("score") in steps.items
    whole = [g for g in groups if g.part == "forward"]
    assert [g.batch_size for g in whole] == [1, 16]
    assert {i.saving for i in whole[1].items} == {0.2, 0.42, 0.6}
    assert len(groups[-1].items) > 1
    assert len({g.tokens for g in groups if g.part == "growth"}) == 3
    far = workloads.plan(Options(models=("pebbles_vit",), growth=True, extent="quick"))
    assert max(g.tokens for g in far) == 4096
    assert far[-1].part == "memory"


def test_shares_are_the_counted_multiply_adds():
    options = Options(models=("pebbles_vit",), savings=(0.42,), batches=(2,), extent="quick")
    groups = {g.part: g for g in workloads.plan(replace(options, train=True))}
    for part, passes in (("forward", 1), ("training", 3)):
        built = groups[part].build(groups[part], options)
        item = Item("wk_medoids", "top_k", saving=0.42)
        cost = tp.macs(tp.PooledViT(workloads.load("pebbles_vit", "cpu", "float32"), saving=0.42))
        plain = tp.macs(workloads.load("pebbles_vit", "cpu", "float32")).total
        backward = (passes - 1) * cost.without_clustering                  # the choice has no gradient
        assert built.shares[item] == pytest.approx((cost.total + backward) / (passes * plain))
    steps = groups["operators"].build(groups["operators"], options)
    block = sum(tp.macs(workloads.load("pebbles_vit", "cpu", "float32")).blocks[0].values())
    pooling = 64 * 64 * 96 + 64 * 32 * 96                                  # distances, and the means at the end
    assert steps.shares[Item("wk_medoids", "farthest_first", kept=32)] == pytest.approx(pooling / block)
    for run in steps.items.values():
        assert torch.isfinite(run()).all()


def test_a_training_step_leaves_gradients_behind_nowhere_and_trains():
    options = Options(models=("pebbles_vit",), savings=(0.42,), batches=(2,), extent="quick", train=True)
    steps = next(g for g in workloads.plan(options) if g.part == "training")
    vit = workloads.load("pebbles_vit", "cpu", "float32")
    seen = []
    hook = vit.patch_embed.proj.weight.register_hook(lambda grad: seen.append(float(grad.abs().sum())))
    built = steps.build(steps, options)
    for run in (built.baseline, *built.items.values()):
        run()
    hook.remove()
    assert len(seen) == 1 + len(built.items)
    assert min(seen) > 0
    assert all(p.grad is None for p in vit.parameters())


# ---- telling ----

def timing(**changes):
    base = dict(key="k", part="forward", name="wk_medoids", baseline="plain model", model="deit_tiny_patch16_224",
                init="top_k", counts=False, saving=0.5, tokens=196, kept=0, batch_size=8, dtype="float32",
                compiled=False, kernel="auto", share=0.5, ratio=0.625, ratio_low=0.6, ratio_high=0.65, seconds=0.05,
                baseline_seconds=0.08, rounds=7, peak_mib=110.0, baseline_peak_mib=100.0, note="", clock="wall",
                device="a <CPU>", threads=2, tokenpool="0", torch="2", timm="1", python="3", commit="c",
                date="2026-01-01T00")
    return Timing(**(base | changes))


def test_the_table_by_hand():
    table = speed_page.model_table([timing(), timing(counts=True, init="farthest_first", ratio=0.5)], "forward")
    assert table.lines[0] == ("wk_medoids top_k", "deit_tiny", "8", "50%", "2.00x", "1.60x (1.54 to 1.67)", "0.80",
                              "160", "1.10x", "7")
    assert table.lines[1][0] == "wk_medoids farthest_first +counts"
    assert table.lines[1][6] == "1.00"
    score = timing(part="operators", name="score", init="", ratio=1.05, ratio_low=1.04, ratio_high=1.07, seconds=0.084)
    line = speed_page.operator_table([score]).lines[0]
    assert line[0] == "score (what it adds)"
    assert line[4] == "0.050 (0.040 to 0.070)"
    assert line[5] == "4.00"
    assert speed_page._memory(timing(peak_mib=math.nan)) == "-"


def test_exponents_are_those_of_the_law():
    sizes = [196, 400, 784, 1600]
    assert speed_page.exponent(sizes, [3e-6 * s**2.5 for s in sizes]) == pytest.approx((2.5, 0.0), abs=1e-9)
    from scipy.stats import linregress
    noisy = [s**1.3 * f for s, f in zip(sizes, (1.1, 0.9, 1.2, 0.8), strict=True)]
    fitted = linregress(np.log(sizes), np.log(noisy))
    assert speed_page.exponent(sizes, noisy) == pytest.approx((fitted.slope, fitted.stderr))
    assert math.isnan(speed_page.exponent([1, 2], [1, 2])[1])


def grown():
    rows = []
    for batch, n, k in ((1, 196, 98), (1, 400, 200), (1, 784, 392), (2, 196, 98), (4, 196, 98), (1, 784, 98),
                        (1, 784, 196)):
        plain = 1e-4 * batch * n
        for name, init, took in (("wk_medoids", "top_k", 1e-9 * batch * n**2 * k),
                                  ("score", "", plain + 1e-7 * batch * n**2)):
            rows.append(timing(part="growth", name=name, init=init, batch_size=batch, tokens=n, kept=k, seconds=took,
                               baseline_seconds=plain, ratio=took / plain))
    return rows


def test_growth_varies_one_thing_at_a_time():
    def power(vary, name):
        return speed_page.exponent(*speed_page.series(grown(), vary)[name])[0]

    assert power("tokens", "wk_medoids top_k") == pytest.approx(3)         # n^2 k with k = n / 2
    assert power("tokens", "plain block") == pytest.approx(1)
    assert power("tokens", "score (what it adds)") == pytest.approx(2)
    assert power("batch_size", "wk_medoids top_k") == pytest.approx(1)
    assert power("kept", "wk_medoids top_k") == pytest.approx(1)
    assert "exponent 3.00" in speed_page.growth(grown(), "tokens", "t", "x").data[0].name


def test_the_figure_shows_what_was_obtained():
    rows = [timing(saving=s, share=1 - s, ratio=r) for s, r in ((0.2, 0.9), (0.42, 0.7))]
    curve = next(t for t in speed_page.speed_up(rows, "t").data if t.name == "wk_medoids top_k")
    assert list(curve.x) == pytest.approx([58, 80])
    assert list(curve.y) == pytest.approx([1 / 0.7, 1 / 0.9])
    promise = speed_page.speed_up(rows, "t").data[0]
    assert np.multiply(promise.x, promise.y) == pytest.approx(np.full(40, 100.0))


SMALL = ["bench", "--quick", "--train", "--model", "pebbles_vit", "--method", "wk_medoids", "top_k", "--batch", "2",
         "--saving", "0.3", "0.5", "--rounds", "2", "--seconds", "100"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`tokenpool bench` as a person types it, on the model that ships."""
    out = tmp_path_factory.mktemp("bench")
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


def test_bench_end_to_end(finished, capsys):
    rows = Results(finished / "bench.csv", Timing).rows
    assert {r.part for r in rows} == {"operators", "forward", "training"}
    assert {r.kernel for r in rows} == {"auto"}
    for row in (r for r in rows if r.part == "forward"):
        assert row.share == pytest.approx(1 - row.saving, abs=0.01)
    page = (finished / "index.html").read_text()
    for word in ("Fig. 12", "efficiency", "promised", "wk_medoids farthest_first +counts", "score (what it adds)"):
        assert word in page
    assert "<CPU>" not in page.replace("&lt;CPU&gt;", "")


def test_the_page_in_a_real_browser(finished, tmp_path):
    from playwright.sync_api import sync_playwright
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    page_file = tmp_path / "page.html"
    rows = Results(finished / "bench.csv", Timing).rows
    speed_page.write_page(page_file, [*rows, *grown(), timing(rounds=0, note="out of memory")])
    with sync_playwright() as play:
        chrome = launch(play)
        page = chrome.new_page(viewport={"width": 800, "height": 900})
        wrong = []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_selector("#growthtokens .scatterlayer .trace")
        assert page.locator("#forwardfloat322 .scatterlayer .trace").count() >= 4
        assert page.locator(".barlayer .point").count() >= 3
        page.locator("summary").first.click()
        assert "out of memory" in page.locator("table").first.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert not wrong
        chrome.close()


@pytest.mark.parametrize(("arguments", "says"), [
    (["--method", "kmedoid"], "Unknown method 'kmedoid'. Did you mean"), (["--dtype", "int8"], "Unknown dtype 'int8'"),
    (["--kernel", "cuda"], "Unknown kernel 'cuda'"), (["--batch", "0"], "--batch 0: use a whole number"),
    (["--saving", "42"], "--saving 42: use a share"), (["--rounds", "0"], "--rounds 0: use a whole number"),
    (["--seconds", "0"], "--seconds 0: use a number above 0"), (["--threads", "0"], "--threads 0"),
    (["--cpu-time", "--threads", "2"], "Add --threads 1"), (["--device", "tpu"], "use cpu, cuda or mps"),
    (["--model", "resnet18"], "cannot be pooled"), (["--model", "deit_tinny_patch16_224"], "Unknown model")])
def test_mistakes_get_one_sentence(arguments, says, tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        assert main(["bench", "--quick", *arguments, "--out", str(tmp_path)]) == 2
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_stopped_run_says_that_it_goes_on(finished, tmp_path, capsys):
    shutil.copy(finished / "bench.csv", tmp_path / bench.UNFINISHED)
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Resuming a stopped run" in said
    assert "Whole models against the plain model, forward" in said
    assert "efficiency" in said
    assert (tmp_path / "bench.csv").read_text() == (finished / "bench.csv").read_text()
