"""Fig. 1c: merge trees, what is cut from them, and the page without Python."""

import os

import numpy as np
import pytest
import torch
from browsing import CHROMIUM, launch, watched
from playwright.sync_api import sync_playwright
from sklearn.cluster import AgglomerativeClustering

import tokenpool as tp
from tokenpool.data.weights import load_model
from tokenpool.report import clusters
from tokenpool.report.clusters import Photograph, cut, merge_tree


def some_tokens(n=40, c=8, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("k", [1, 2, 7, 20, 39, 40])
def test_a_cut_is_the_clustering_of_scikit_learn_and_of_the_package(k):
    x = torch.nn.functional.normalize(some_tokens(), dim=1)
    labels = cut(merge_tree(some_tokens()), k)
    assert labels.max() == k - 1
    assert same_partition(labels, AgglomerativeClustering(k, linkage="ward").fit(x.numpy()).labels_)
    assert same_partition(labels, tp.pool_tokens(x[None], k, method="ward").labels[0].numpy())


def test_the_share_lost_is_the_reconstruction_error_by_hand():
    x = torch.nn.functional.normalize(some_tokens().double(), dim=1).numpy()
    tree = merge_tree(some_tokens())
    for k in (1, 3, 15, 39):
        labels = cut(tree, k)
        error = sum(((x[labels == c] - x[labels == c].mean(0)) ** 2).sum() for c in range(k))
        assert tree[len(x) - k - 1, 2] / 65535 == pytest.approx(error / ((x - x.mean(0)) ** 2).sum(), abs=1e-4)


def test_k_out_of_range_is_refused():
    with pytest.raises(ValueError, match="k=41 clusters of 40 patches: use a number from 1 to 40"):
        cut(merge_tree(some_tokens()), 41)


def test_a_photograph_has_the_models_own_tokens_and_scores():
    vit = load_model()
    pixels = clusters.photographs(64)["cat"]
    photo = clusters.photograph("cat", pixels, vit, blocks=(2, 5))
    x = (torch.from_numpy(pixels)[None] / 255 - 0.5) / 0.5
    tokens = vit.forward_intermediates(x, indices=[1], norm=False, output_fmt="NLC", intermediates_only=True)[0][0]
    assert np.array_equal(photo.trees[2], merge_tree(tokens.detach()))
    kept = tp.PooledViT(vit, [64, 16, 16, 16, 16, 16], method="top_k").eval().trace(x).steps[1].origin[0]
    assert set(photo.ranks[2][:16].tolist()) == set(kept.tolist())
    with pytest.raises(ValueError, match="Block 7 does not exist"):
        clusters.photograph("cat", pixels, vit, blocks=(7,))


def small(name="square"):
    """2 x 2 patches of 2 x 2 pixels; the left two share a token first, then the right two."""
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[:, :, :2], pixels[:, :2, 2:], pixels[:, 2:, 2:] = 100, 40, 80
    pixels[0, 0, 0] = 180                                                   # one odd pixel: mean of its cluster is 110
    return Photograph(name, pixels, (2, 2), {1: np.array([[0, 2, 5], [1, 3, 9], [0, 1, 65535]], np.uint16)},
                      {1: np.array([3, 0, 1, 2], np.uint16)})


def test_images_by_hand():
    photo = small()
    assert photo.labels(1, 2).tolist() == [0, 1, 0, 1]
    painted = clusters.paint(photo, photo.labels(1, 2))
    assert painted[1, 1].tolist() == [110, 100, 100]
    assert painted[3, 3].tolist() == [60, 60, 60]
    assert painted[1, 2].tolist() == [255, 255, 255]                        # the outline, where the colour changes
    kept = clusters.blank(photo, photo.ranks[1][:1])
    assert kept[3, 3].tolist() == [80, 80, 80]
    assert (kept[:2] == 225).all()
    assert clusters.figure([photo], 1, 1, (2, 1), side=32).size == (4 * 40 - 8, 30 + 32)


def test_what_ships_is_whole():
    photos = clusters.shipped()
    assert len(photos) == 6
    for photo in photos:
        assert set(photo.trees) == set(photo.ranks) == set(clusters.BLOCKS)
        for block in clusters.BLOCKS:
            assert photo.trees[block].shape == (1023, 3)
            assert sorted(photo.ranks[block]) == list(range(1024))
            assert photo.labels(block, 6).max() == 5


def test_the_page_by_keyboard(tmp_path):
    photos = clusters.shipped()
    page_file = clusters.write_page(tmp_path / "clusters.html", photos)
    assert page_file.stat().st_size < 2_000_000
    if CHROMIUM is None and not os.environ.get("TOKENPOOL_REQUIRE_BROWSER"):
        pytest.skip("Chromium is not installed")
    with sync_playwright() as play:
        page = watched(launch(play))
        page.goto(page_file.as_uri())
        said = page.get_by_role("status")
        said.filter(has_text="6 of 1,024 tokens").wait_for()
        slider = page.get_by_role("slider", name="Tokens, K")
        slider.focus()
        page.keyboard.press("ArrowRight")
        said.filter(has_text="7 of 1,024 tokens").wait_for()
        page.get_by_label("Tokens, K, as a number").fill("64")
        page.keyboard.press("Enter")
        said.filter(has_text="64 of 1,024 tokens").wait_for()
        page.get_by_label("9", exact=True).check()
        said.filter(has_text="after block 9: 64 of").wait_for()
        page.get_by_label("keep by score (top-K)").check()
        said.filter(has_text="The other 960 are dropped").wait_for()
        page.get_by_label(photos[2].name).focus()
        page.keyboard.press("Space")
        said.filter(has_text="Temple").wait_for()
        for k in (1, 2, 37, 500, 1024):                                     # the page's cut is Python's
            heads = page.evaluate(f"Array.from(cut(PHOTOS[1].trees[6], {k}))")
            assert same_partition(np.array(heads), photos[1].labels(6, k))
        assert page.errors == []
        assert not [url for url in page.outside if not url.startswith("file:")]
