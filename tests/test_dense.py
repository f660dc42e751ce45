"""Dense use: agreement counted by hand, a probe with a known answer, maps that fit their patches, a page with words."""

import html

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import tokenpool as tp
from tokenpool.cli import main
from tokenpool.core.clustering import take
from tokenpool.data.pebbles import CLASSES, MATERIALS, Pebbles
from tokenpool.measure import dense
from tokenpool.measure.accuracy import Setting
from tokenpool.report import dense_page


def test_mean_iou_by_hand():
    truth = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1]])
    answer = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]])
    counted = dense.confusion(truth, answer, 3)
    assert counted[0].tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    # ground: 2 agree of 3 + 1 said = 4; one: 2 of 3; two: 0 of 1
    torch.testing.assert_close(dense.iou(counted[0]), torch.tensor([2 / 4, 2 / 3, 0.0]).double())
    assert float(dense.mean_iou(counted[0])) == pytest.approx((2 / 4 + 2 / 3) / 3)
    # the second image has no class 2 and nobody says so: a mean over two
    assert float(dense.mean_iou(counted[1])) == 1.0
    # together is not the mean of the images: 6 of 8, 4 of 5, 0 of 1
    assert float(dense.mean_iou(counted.sum(0))) == pytest.approx((6 / 8 + 4 / 5) / 3)


def test_mean_iou_equals_scikit_learns():
    from sklearn.metrics import jaccard_score
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, (2, 4, 50))
    counted = dense.confusion(torch.from_numpy(truth), torch.from_numpy(answer), 3).sum(0)
    expected = jaccard_score(truth.ravel(), answer.ravel(), average=None)
    np.testing.assert_allclose(dense.iou(counted).numpy(), expected)


def test_the_interval_holds_the_value_and_shrinks():
    truth = torch.randint(0, 3, (200, 64), generator=torch.Generator().manual_seed(0))
    answer = torch.where(torch.rand(200, 64, generator=torch.Generator().manual_seed(1)) < 0.7, truth, 0)
    many = dense.confusion(truth, answer, 3)
    low, high = dense.interval(many)
    assert low < float(dense.mean_iou(many.sum(0))) < high
    few = dense.interval(many[:20])
    assert high - low < (few[1] - few[0]) / 2
    same = many[:1].expand(30, -1, -1)
    assert dense.interval(same) == pytest.approx([float(dense.mean_iou(many[0]))] * 2)


def test_a_patch_is_what_most_of_its_pixels_are():
    pixels = torch.tensor([[[0, 0, 2, 2],
                            [0, 1, 2, 1],
                            [1, 2, 1, 1],
                            [2, 1, 0, 0]]])
    # upper left: three grounds; upper right: three small; lower two are ties: the first of equals
    assert dense.patch_truth(pixels, (2, 2), 3).tolist() == [[0, 2, 1, 0]]
    assert dense.to_pixels(torch.tensor([[0, 2, 1, 0]]), (2, 2), (4, 4)).tolist() == [
        [[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 0, 0], [1, 1, 0, 0]]]
    oblong = torch.arange(6).reshape(1, 6)
    assert torch.equal(dense.patch_truth(dense.to_pixels(oblong, (2, 3), (4, 9)), (2, 3), 6), oblong)


def test_materials_are_those_of_the_label():
    _, labels, masks = Pebbles(seed=3).batch(range(5))
    pixels = dense.pixel_truth(labels, masks, "materials").numpy()
    for label, mask, found in zip(labels, masks, pixels, strict=True):
        for region, material in zip((1, 2), CLASSES[label], strict=True):
            assert (found[mask == region] == 1 + MATERIALS.index(material)).all()
        assert (found[mask == 0] == 0).all()
    assert np.array_equal(dense.pixel_truth(labels, masks).numpy(), masks)
    with pytest.raises(ValueError, match="Did you mean 'materials'"):
        dense.pixel_truth(labels, masks, "material")


def test_the_probe_separates_what_can_be_separated():
    """Three classes in three cones about different directions, in scales that differ by a million."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    x = torch.eye(3)[y] * 4 + torch.rand(600, 3, generator=g)
    x = torch.cat((x * torch.tensor([1e-3, 1.0, 1e3]), x[:, :1] + 1e-4 * torch.rand(600, 1, generator=g)), dim=1)
    probe = dense.fit_probe(x[:300], y[:300], 3)
    assert torch.equal(probe(x), y)
    assert torch.equal(probe(x.reshape(20, 30, 4)), y.reshape(20, 30))


def test_the_probe_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 6, generator=g), torch.randint(0, 3, (500,), generator=g)
    x[:, 0] += y
    probe = dense.fit_probe(x, y, 3)
    z = ((x - x.mean(0)) / x.std(0)).numpy()
    oracle = LogisticRegression(C=1 / (500 * dense._PENALTY), tol=1e-8, max_iter=1000).fit(z, y.numpy())
    ours = torch.log_softmax(dense._with_one(torch.from_numpy(z)) @ probe.weight, 1).exp()
    np.testing.assert_allclose(ours.numpy(), oracle.predict_proba(z), atol=5e-3)


def test_maps_are_forward_intermediates_and_groups_their_equals():
    torch.manual_seed(0)
    vit = timm.create_model("pebbles_vit").eval()
    x = torch.randn(2, 3, 64, 64)
    for method in ("random", "wk_medoids", "grid_average"):
        pooled = tp.PooledViT(vit, [50, 40, 20, 10, 5, 5], method=method, carry_counts=True)
        features, groups = dense.dense(pooled, x)
        with torch.inference_mode():                             # as dense.dense: with gradient, attention is another
            maps = pooled.forward_intermediates(x, indices=4, norm=True, output_fmt="NLC", intermediates_only=True)
        assert torch.equal(features, torch.cat(maps, dim=-1))
        for f, group in zip(features, groups, strict=True):
            assert len(group.unique()) == 20
            same = (f[:, None] == f[None]).all(-1)
            assert torch.equal(same, group[:, None] == group[None])
    features, groups = dense.dense(tp.PooledViT(vit), x)
    assert torch.equal(groups, torch.arange(64).expand(2, -1))


def test_every_patch_gets_its_own_stand_ins_features():
    """Blocks that do nothing and tokens that say where they are: after unpooling, a kept patch is still itself, and any
    other patch has the features of the nearest kept one."""
    vit = timm.create_model("pebbles_vit", depth=4).eval()
    for block in vit.blocks:
        for p in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()):
            torch.nn.init.zeros_(p)
    pooled = tp.PooledViT(vit, [16] * 4, method="k_medoids", output="medoid")
    x = torch.randn(3, 3, 64, 64)
    before = vit.norm(vit._pos_embed(vit.patch_embed(x)))[:, 1:]
    features, _ = dense.dense(pooled, x)
    origin = pooled.trace(x).steps[-1].origin
    last = features[..., -96:]
    for f, b, kept in zip(last, before, origin, strict=True):
        torch.testing.assert_close(f[kept], b[kept])
        assert len(f.unique(dim=0)) == 16
    # distances are taken before the norm
    raw = vit._pos_embed(vit.patch_embed(x))[:, 1:]
    nearest = torch.cdist(raw, take(raw, origin)).argmin(2)
    torch.testing.assert_close(last, take(before, origin.gather(1, nearest)))


def test_the_best_answer_is_each_groups_majority():
    groups = torch.tensor([[0, 0, 0, 1, 1, 2]])
    truth = torch.tensor([[1, 1, 2, 0, 2, 2]])
    assert dense.best_answer(groups, truth, 3).tolist() == [[1, 1, 1, 0, 0, 2]]       # 0 and 2 tie: the first
    alone = torch.arange(6)[None]
    assert torch.equal(dense.best_answer(alone, truth, 3), truth)


def test_what_is_measured_is_checked():
    wanted = dense.settings(seeds=2)
    assert wanted[0] == Setting("plain", "", False, 0.0, 0)
    assert len(wanted) == len(set(wanted)) == 1 + 3 * (2 * (2 + 1 + 1 + 2 + 2) + len(dense.PEERS))
    with pytest.raises(ValueError, match="Did you mean 'top_k'"):
        dense.settings(["top_kk"])
    with pytest.raises(ValueError, match=r"A saving of 1.5 is not a share"):
        dense.settings(budgets=[1.5])
    with pytest.raises(ValueError, match="0 seeds"):
        dense.settings(seeds=0)
    with pytest.raises(ValueError, match="0 images are too few"):
        dense.Data.make(5, 0)


def test_peers_are_built_as_their_authors_have_them():
    (way,) = dense.settings(["ToMe"], [0.42])[1:]
    pooled = dense.build(timm.create_model("pebbles_vit"), way)
    assert (pooled.pooling.method, pooled.metric, pooled.position) == ("tome", "keys", "before_mlp")
    assert pooled.carry_counts
    assert way.counts


SMALL = ["dense", "--images", "60", "--train-images", "40", "--seeds", "2", "--saving", "0.42", "--method",
         "random", "top_k", "k_medoids", "ToMe"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("dense")
    assert main([*SMALL, "--out", str(out)]) == 0
    return out, pd.read_csv(out / "dense.csv", keep_default_na=False)


def test_the_command_measures(run):
    _, rows = run
    assert len(rows) == 2 * len(dense.settings(["random", "top_k", "k_medoids", "ToMe"], [0.42], 2))
    assert rows["key"].is_unique
    assert set(rows["probe"]) == {"plain", "own"}
    pooled = rows[rows.method != "plain"]
    assert ((pooled.gmacs / pooled.gmacs_plain - 0.58).abs() < 0.01).all()
    assert (rows.pixel_best >= rows.pixel_miou).all()
    assert ((rows.pixel_low <= rows.pixel_miou) & (rows.pixel_miou <= rows.pixel_high)).all()
    plain = rows[rows.method == "plain"]
    assert plain.pixel_miou.nunique() == 1                                     # its two probes are one
    assert plain.pixel_miou.iloc[0] > 0.4
    at = rows[rows.probe == "plain"].groupby(["method", "init", "counts"])["pixel_miou"].mean()
    assert at["k_medoids", "farthest_first", True] > at["top_k", "", False]
    draws = rows[(rows.method == "random") & (rows.probe == "plain") & rows.counts]
    assert draws.pixel_miou.nunique() == 2
    assert np.mean([float(v) for v in rows.ious.iloc[0].split()]) == pytest.approx(rows.pixel_miou.iloc[0], abs=1e-4)


def test_the_same_command_measures_nothing_again(run, capsys):
    out, _ = run
    before = (out / "dense.csv").read_bytes()
    assert main([*SMALL, "--out", str(out)]) == 0
    assert (out / "dense.csv").read_bytes() == before
    said = capsys.readouterr().out
    assert "Mean IoU in pixels" in said
    assert "farthest_first carried" in " ".join(said.split())
    (out / "other").mkdir()
    (out / "other" / "dense.csv").write_text("a,b\n1,2\n")
    assert main([*SMALL, "--out", str(out / "other")]) == 2
    assert "its columns differ" in capsys.readouterr().err
    assert main(["dense", "--truth", "region"]) == 2
    assert "Did you mean 'regions'" in capsys.readouterr().err


def test_the_page_has_words_images_and_a_table(run):
    out, rows = run
    page = (out / "index.html").read_text()
    sentences = dense_page.told(rows)
    assert len(sentences) == 3
    best = dense_page.summary(rows[(rows.probe == "own") & (rows.method != "plain")]).sort_values("miou").iloc[-1]
    assert f"{100 * best.miou:.1f} %" in sentences[2]
    assert dense_page.label(*best[["method", "init", "counts"]]) in sentences[2]
    for sentence in sentences:
        assert html.escape(sentence).replace(" %", "\u00a0%") in page
    assert page.count("<img alt=") == page.count("<img ") == 4 * (2 + 1 + len(dense_page.shown(rows)))
    table = page[page.index("<table"):]
    assert table.count("<tr>") == 1 + len(dense_page.summary(rows))
    for name in ("ground", "large pebble", "small pebble"):
        assert f"</i>{name}</span>" in page
    assert "http" not in page[page.index("<main>"):].replace("http://www.w3.org", "")


def test_painting_keeps_classes_apart():
    image = np.full((3, 4, 4), 100, np.uint8)
    answer = np.arange(16).reshape(4, 4) % 3
    pixels = dense_page.painted(image, answer, 2)
    assert pixels.shape == (8, 8, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 3
    assert (pixels[::2, ::2] == pixels[1::2, 1::2]).all()
