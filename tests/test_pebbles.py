"""Pebbles: the same image in every batch, masks and labels that mean what they say, no shortcut by colour."""

import numpy as np
import pytest

from tokenpool.data.pebbles import CLASSES, MATERIALS, Pebbles


def test_an_image_is_the_same_in_every_batch():
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
    (dict(size=4), "size=4 is not an image side"), (dict(difficulty=2), "difficulty=2 is out of range"),
    (dict(imbalance=0.5), "imbalance=0.5 is out of range"), (dict(seed=-1), "seed=-1 is negative")])
def test_wrong_knobs(knobs, says):
    with pytest.raises(ValueError, match=says):
        Pebbles(**knobs)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="is empty"):
        Pebbles().batch([])
