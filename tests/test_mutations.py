"""Would the tests notice? Each mistake below is planted in a copy of the package, and its test must fail on it."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: (file, what is there, the mistake, tests that must fail)
MUTATIONS = [
    # the two defects of the only public K-Medoids for tokens: rows instead of columns, the candidate's own weight
    ("core/clustering.py", "(d * same * mass[:, None, :]).sum(-1)", "(d * mass[:, None, :]).sum(-1)",
     "test_pool.py -k k_medoids_equals"),
    ("core/clustering.py", "(d * same * mass[:, None, :]).sum(-1)", "(d * same).sum(-1) * mass",
     "test_pool.py -k weighted_k_medoids_equals"),
    ("core/clustering.py", "labels = torch.where(moved.any(2), moved.to(torch.uint8).argmax(2), labels)", "pass",
     "test_pool.py -k 'never_rises or emptied'"),
    ("core/clustering.py", "return labels.scatter(1, medoids, torch.arange(K, device=d.device).expand(B, -1))", "return labels",
     "test_pool.py -k copies_are_told"),
    ("core/clustering.py", "share = onehot * mass[:, None, :].to(x.dtype)", "share = onehot", "test_pool.py -k scikit"),
    ("core/clustering.py", "x = x.detach().to(torch.promote_types(x.dtype, torch.float32))", "x = x.detach()",
     "test_pool.py -k low_precision"),
    ("core/clustering.py", "x = x - x[:, :1] ", "x = x ", "test_pool.py -k large_offsets"),
    ("core/clustering.py", "gap = torch.minimum(gap, take(d, new)[:, 0])", "gap = take(d, new)[:, 0]",
     "test_pool.py -k farthest_first_by"),
    ("core/clustering.py", "gap.clamp(min=0) * mass", "gap.clamp(min=0)", "test_pool.py -k plus_plus"),
    ("core/selection.py", "+ gumbel", "- gumbel", "test_methods.py -k follow_their_law"),
    ("core/selection.py", "by_cell = (band + positions[..., 1])", "by_cell = (band + 0 * positions[..., 1])",
     "test_methods.py -k average_pooling"),
    ("core/methods.py", "mass = mass if part is None else mass * part.to(x.dtype)", "mass = mass",
     "test_pool.py -k 'carried_counts or weighted'"),
    ("core/methods.py", "generator = torch.Generator().manual_seed(0)", "generator = torch.default_generator",
     "test_methods.py -k same_generator"),
    # what others do: who joins whom, in which order, by what size
    ("core/merging.py", "(unit[:, ::2] @ unit[:, 1::2].mT)", "(f[:, ::2] @ f[:, 1::2].mT)", "test_peers.py -k tome_equals"),
    ("core/merging.py", "f = clustering.cluster_means(f, new, left, mass)",
     "f = clustering.cluster_means(f, new, left, torch.ones_like(mass))", "test_peers.py -k tome_equals"),
    ("core/merging.py", "energy = F.elu(cosine - margin).mean(2)", "energy = -F.elu(cosine - margin).mean(2)",
     "test_peers.py -k pitome"),
    ("core/merging.py", "a, b = order[:, ::2], order[:, 1::2]", "a, b = order.chunk(2, 1)", "test_peers.py -k pitome_equals"),
    ("core/merging.py", "rank[:, None, :] < rank[:, :, None]", "rank[:, None, :] > rank[:, :, None]",
     "test_peers.py -k dpc_knn_equals"),
    ("core/merging.py", "0.5 * gap.log() - near", "gap.log() - near", "test_peers.py -k dpc_knn_equals"),
    ("core/clustering.py", "(si * to_i + sj * to_j) / (si + sj)", "(to_i + to_j) / 2", "test_pool.py -k 'bottom_up and plain'"),
    ("core/clustering.py", "- size * between) / (si", ") / (si", "test_pool.py -k 'ward and plain'"),
    ("core/clustering.py", "(one * other / (one + other))", "1", "test_pool.py -k 'ward and plain'"),
    ("core/merging.py", "+ 0.5) / k", "+ 1.0) / k", "test_peers.py -k ats_"),
    ("core/merging.py", "seats = picked.gather(1, falling)", "seats = picked", "test_peers.py -k ats_"),
    ("core/methods.py", "lambda r, mass: Choice(*peers.evit(_scores(r), r.k)),\n        \"merging\", True, True",
     "lambda r, mass: Choice(*peers.evit(_scores(r), r.k)),\n        \"merging\", True, False",
     "test_peers.py -k evit_by_hand"),
    ("models/vit.py", "keys = seen.keys.detach().float().mean(1)[:, prefix:]",
     "keys = seen.values.detach().float().mean(1)[:, prefix:]", "test_peers.py -k keys_are_the_blocks_own"),
    ("models/attention.py", "score * values[:, :, prefix:].float().square().sum((1, 3)).sqrt()",
     "score * values[:, :, prefix:].float().square().sum(3).sqrt().sum(1)", "test_peers.py -k ats_score"),
    ("models/baselines.py", "return 2 * n * k * self.vit.embed_dim", "return n * k * self.vit.embed_dim",
     "test_systems.py -k 'merger_equals'"),
    ("core/schedule.py", "errors[block][k] - errors[block][n])", "errors[block][k])",
     "test_schedule_and_cost.py -k best_of_all"),
    ("core/schedule.py", "w -= int(spent[before, at])", "w -= int(spent[at, at])",
     "test_schedule_and_cost.py -k 'best_of_all or rounded'"),
    ("models/vit.py", "if index < first:", "if index < first - 1:", "test_schedule_and_cost.py -k in_one_block_alone"),
    ("core/schedule.py", "ks.append(min(k, ks[-1]) if ks else k)", "ks.append(k)",
     "test_schedule_and_cost.py -k soft_masks"),
    ("core/schedule.py", "target = (1 - saving) * plain", "target = (1 - saving / 2) * plain",
     "test_schedule_and_cost.py -k within_one_percent"),
    ("core/cost.py", "block.pair * t * t", "block.pair * t * n", "test_schedule_and_cost.py -k 'torch_counts or papers'"),
    ("models/attention.py", "a.sum(2) - a.diagonal(dim1=2, dim2=3), None", "a.sum(2), None", "test_vit.py -k by_hand"),
    ("models/attention.py", "        y = block.ls1(y)", "        pass", "test_families.py -k 'every_family_member and 3'"),
    ("models/vit.py", "bias = counts.to(torch.float32).log()", "bias = counts.to(torch.float32)",
     "test_vit.py -k bias_is_the_log"),
    ("models/vit.py", "return rope[origin].unsqueeze(1)", "return rope[origin.sort(1).values].unsqueeze(1)",
     "test_vit.py -k rotary"),
    ("models/vit.py", "state.labels = labels.gather(1, state.labels)", "state.labels = labels",
     "test_vit.py -k trace_follows"),
    ("measure/rows.py", "text = text[:text.rfind(\"\\n\") + 1]", "pass", "test_runs.py -k cut_off_line"),
    ("data/weights.py", "if sha256(path) != wanted", "if False and wanted", "test_runs.py -k damaged"),
    ("data/pebbles.py", "Philox(key=[self.seed, i])", "Philox(key=[self.seed, row])", "test_runs.py -k every_batch"),
    # training: what a checkpoint must bring back, who sees which image, what must not pass unseen
    ("train/loop.py", "parts = images.micro_batches(first)", "parts = images.micro_batches(0)",
     "test_training.py -k random_steps"),
    ("train/loop.py", "self.ema.module.load_state_dict(_part_of(tensors, \"ema.\"))", "pass",
     "test_training.py -k random_steps"),
    ("train/loop.py", "if float(accelerator.reduce(bad, reduction=\"sum\")):", "if False:",
     "test_training.py -k nan_stops"),
    ("train/loader.py", "start = (piece * self.world + self.rank) * self.part", "start = piece * self.part",
     "test_training.py -k see_together"),
    ("train/loader.py", "torch.set_rng_state(before[2])", "pass", "test_training.py -k generators_alone"),
    ("train/recipe.py", "(field.name, self.step) != (\"system\", \"finetune\")", "True",
     "test_training.py -k every_planned"),
    ("train/plan.py", "key=lambda j: (STEPS.index(j.step), ", "key=lambda j: (0, ", "test_training.py -k every_planned"),
    ("models/baselines.py", "F.pad(keep, (prefix, 0), value=1.0)", "F.pad(keep, (prefix, 0), value=0.0)",
     "test_systems.py -k masked_training"),
    ("models/baselines.py", "module.weight.zero_()[:, :, 1:, 1:] = 0.25", "module.weight.zero_()[:, :, :2, :2] = 0.25",
     "test_systems.py -k average_of_two"),
    ("models/baselines.py", "return n * Predictor.macs(self.vit.embed_dim)", "return 0", "test_systems.py -k really_drops"),
    ("train/soft_masks.py", "descending=True", "descending=False", "test_systems.py -k rank_p"),
    ("train/soft_masks.py", "(depth * self.masks.sum(1))", "(self.masks.sum(1))", "test_systems.py -k masks_of_one"),
    ("models/attention.py", "UnitNorm(alpha, 1, math.sqrt(attn.head_dim))", "UnitNorm(alpha, 1)",
     "test_systems.py -k 'alpha_one or usual_scale'"),
    ("report/claims.py", "1.96 * np.hypot(images, runs)", "1.96 * runs", "test_board.py -k mcnemars"),
    ("report/claims.py", "if all(g.low > 0 for g in gaps):", "if all(g.value > 0 for g in gaps):",
     "test_board.py -k above_every_rival"),
    # the course: a check that praises everything, an answer that ignores the evidence, a figure that stands still
    ("lab/kit/exercises.py", "if not torch.allclose(a, b, rtol=tolerance, atol=tolerance):", "if False:",
     "test_lab.py -k 'three_outcomes or does_not_equal'"),
    ("lab/kit/exercises.py", "return Card(\"wrong\", str(reason))", "return Card(\"right\", str(reason))",
     "test_lesson_03.py -k chamfer"),
    ("lab/kit/predictions.py", "if committed == right:", "if committed is not None:", "test_lab.py -k commitment_is_kept"),
    ("lab/widgets/explorer.py", "            _transfer(new, self.figure)", "            pass",
     "test_lab.py -k follows_its_controls"),
    ("lab/widgets/explorer.py", "go.FigureWidget._esm.changed.disconnect()", "pass", "test_lab.py -k 'run_again and 03'"),
    ("lab/widgets/explorer.py", "if old == new:", "if False:", "test_lab.py -k became_of_a_number"),
    ("lab/app/server.py", "if len(self._taken) >= self._most:", "if False:", "test_app.py -k room_for_so_many"),
    ("lab/app/server.py", "self._kernels.get_kernel(kernel).last_activity = utcnow()", "pass", "test_app.py -k waited_long"),
    ("lab/k_explorer/explorer.py", "if self._quiet:", "if False:", "test_k_explorer.py -k 'one_move or once'"),
    ("lab/kit/session.py", "[n] * block + [n - 1]", "[n] * max(0, block - 1) + [n - 1] * min(block, 1) + [n - 1]",
     "test_lab.py -k tokens_of_a_block"),
    ("lab/lessons/lesson_03_reconstruction.py", "return distances.min(1).values.sum()", "return distances.min(0).values.sum()",
     "test_lesson_03.py -k chamfer"),
    ("lab/lessons/lesson_04_clustering.py", "cost = (d[:, inside] * w[inside]).sum(1)  ", "cost = (d[:, inside]).sum(1) * w  ",
     "test_lesson_04.py -k test_medoid_update"),
    ("lab/lessons/lesson_01_compute.py", "attention = n * n * c + n * n * c", "attention = n * n * c",
     "test_lesson_01.py -k block_macs"),
    ("lab/lessons/lesson_02_smoothing.py", "weights = (-squared / (2 * q.shape[1] ** 0.5)).softmax(1)",
     "weights = (-squared / (2 * q.shape[1])).softmax(1)", "test_lesson_02.py -k test_gaussian_attention"),
    ("lab/lessons/lesson_05_layers.py", "        k = max(1, int(mask.sum()))", "        k = max(1, round(mask.sum().item()))",
     "test_lesson_05.py -k integers"),
    ("lab/lessons/lesson_06_normalised.py", "else alpha ** 2 * cos / q.shape[-1] ** 0.5", "else alpha * cos / q.shape[-1] ** 0.5",
     "test_lesson_06.py -k exercise_a"),
    # the fast kernels must say what the plain one says
    ("core/kernels/cpu.py", "return (si * to_i + sj * to_j) / (si + sj)", "return (to_i + to_j) / 2",
     "test_kernels.py -k 'bottom_up and numba'"),
    ("core/kernels/cpu.py", "size[i] += sj", "pass", "test_kernels.py -k 'bottom_up and numba'"),
    ("report/compare_page.py", "d = a - b", "d = b - a", "test_compare.py -k paired"),
    ("measure/compare.py", "wanted = {c: min(0.99, wanted[c] / miss[c]) for c in ready if abs(miss[c] - 1) > _MISSED}",
     "break",
     "test_compare.py -k clock_that_counts"),
    ("measure/compare.py", "falling[i - 1] - share", "share", "test_compare.py -k read_off"),
    ("core/kernels/cpu.py", "total += d[token, m] * mass[m]", "total += d[token, m]",
     "test_kernels.py -k 'medoids and numba'"),
    ("core/kernels/cpu.py", "        labels[medoids[j]] = j\n", "        pass\n", "test_kernels.py -k 'medoids and numba'"),
    ("core/kernels/cpu.py", "        inner /= 2\n", "        pass\n", "test_kernels.py -k 'k_means and numba'"),
    ("core/kernels/cpu.py", "spread * share[..., None].to(spread.dtype)", "spread",
     "test_kernels.py -k 'gradient and numba'"),
    ("core/kernels/cuda.py", "gap = tl.where(n == new, -1.0, gap)", "gap = gap", "test_kernels.py -k interpreter"),
    ("core/kernels/cuda.py", "attention = tl.where(rows[:, None] == columns[None, :], 0.0, attention)",
     "attention = attention",
     "test_kernels.py -k interpreter"),
    ("models/attention.py", "for h in range(0, H, heads):", "for h in range(0, 1, heads):", "test_kernels.py -k in_parts"),
    # models of transformers: what interpolates their positions, whose names a state dict has, what DINOv2 averages
    ("models/transformers.py", "antialias=self.antialias", "antialias=True", "test_hf.py -k 'other_sizes and Dinov2Model'"),
    ("models/transformers.py", "state[prefix + theirs] = state.pop(prefix + name)", "pass", "test_hf.py -k state_dicts"),
    ("models/transformers.py", "mean = ((counts / counts.sum(1, keepdim=True))", "mean = ((counts / counts.sum(1, keepdim=True) ** 0)",
     "test_hf.py -k dinov2s_mean"),
    # dense maps: another patch's stand-in, a union that counts the intersection twice, patches cut across
    ("measure/dense.py", "take(pooled.vit.norm(s.tokens), s.labels)",
     "take(pooled.vit.norm(s.tokens), s.labels.sort(1)[0])", "test_dense.py -k stand_ins"),
    ("measure/dense.py", "(counted.sum(-1) + counted.sum(-2) - hit)", "(counted.sum(-1) + counted.sum(-2))",
     "test_dense.py -k iou_by_hand"),
    ("measure/dense.py", ".transpose(2, 3).reshape(B, rows * cols, -1)", ".reshape(B, rows * cols, -1)",
     "test_dense.py -k most_of_its"),
    # speed: a clock that drifts, a promise without the clustering, a file that is not the model
    ("measure/bench.py", "Sample(took, (before + after) / 2)", "Sample(took, before)", "test_bench.py -k drifts"),
    ("measure/bench.py", "for item in order.sample(list(samples), len(samples)):", "for item in list(samples):",
     "test_bench.py -k order_that_changes"),
    ("measure/bench.py", "begun - started + longest > seconds", "begun - started > seconds and False",
     "test_bench.py -k budget"),
    ("measure/bench.py", "if all(k in rows for k in key.values()):", "if False:", "test_bench.py -k ctrl_c"),
    ("measure/bench.py", "    store.path.unlink()", "    pass", "test_bench.py -k ctrl_c"),
    ("measure/rows.py", "return self.obtained / self.promised", "return self.promised / self.obtained",
     "test_bench.py -k rows_say"),
    ("measure/workloads.py", "(passes * own.without_clustering + own.clustering)", "(passes * own.without_clustering)",
     "test_bench.py -k shares_are"),
    ("measure/memory.py", "resource.setrlimit(resource.RLIMIT_AS, (limit, hard))", "pass", "test_bench.py -k too_much"),
    ("report/speed_page.py", "(row.ratio_low, row.ratio, row.ratio_high))", "(row.ratio_high, row.ratio, row.ratio_low))",
     "test_bench.py -k table_by_hand"),
    ("measure/export.py", "largest=int(descending)", "largest=1 - int(descending)",
     "test_export.py -k 'any_number and top_k'"),
    ("measure/export.py", "self.same_top1 == self.images and self.difference", "self.difference",
     "test_export.py -k same_means"),
    ("report/board.py", "rows[key].date <= row.date", "rows[key].date > row.date", "test_board.py -k merge_without"),
]


if find_spec("transformers") is None:               # its tests are skipped, so they cannot notice anything
    MUTATIONS = [m for m in MUTATIONS if m[0] != "models/transformers.py"]


def plant(number, folder):
    """Exit code and output of the tests run on a package with one mistake."""
    file, right, wrong, tests = MUTATIONS[number]
    home = folder / str(number)
    shutil.copytree(ROOT / "tokenpool", home / "tokenpool", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data", home / "data")
    target = home / "tokenpool" / file
    source = target.read_text()
    assert source.count(right) == 1, f"mutation {number}: {right!r} stands {source.count(right)} times in {file}"
    target.write_text(source.replace(right, wrong))
    name, _, chosen = tests.partition(" -k ")
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{name}",
                           *(["-k", chosen.strip("'")] if chosen else [])],
                          # a mistake in pool.py is met only where pool.py computes
                          env=os.environ | ({} if file.startswith("core/kernels/") else {"TOKENPOOL_KERNEL": "plain"}),
                          cwd=home, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout[-600:] + done.stderr[-300:]


@pytest.mark.timeout(2400)
def test_every_planted_mistake_is_caught(tmp_path):
    with ThreadPoolExecutor(2) as workers:
        results = list(workers.map(lambda number: plant(number, tmp_path), range(len(MUTATIONS))))
    # 1 is "tests failed"; 5 would be "no test chosen", 2 and 4 a broken call
    missed = [(MUTATIONS[n][:3], said) for n, (code, said) in enumerate(results) if code != 1]
    assert not missed, missed
