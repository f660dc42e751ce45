"""Rows made by hand for the tests of what is reported."""

import numpy as np

from tokenpool.measure import rows as measured
from tokenpool.measure.rows import Row, pack

IMAGES = 1000


def row(method="wk_medoids", top1=0.8, saving=0.42, seed=0, stage="finetuned", init=None, shuffle=0, **more):
    """A row whose first `top1` share of images is right, or another set of the same size."""
    init = ("top_k" if "_me" in method else "") if init is None else init
    right = np.arange(IMAGES) < round(top1 * IMAGES)
    if shuffle:
        right = np.random.default_rng(shuffle).permutation(right)
    given = dict(
        key=f"{method}{saving}{seed}{stage}{init}{shuffle}", method=method, init=init, output="", counts=False,
        saving=saving, seed=seed, schedule="", gmacs=0.02 * (1 - saving), gmacs_without_clustering=0.02 * (1 - saving),
        gmacs_plain=0.02, top1=top1, top1_low=top1 - 0.02, top1_high=top1 + 0.02, images=IMAGES,
        reconstruction_error=0.1, images_per_second=100.0, batch_size=100, model="imagenet50_cpu/ti", weights="x",
        data="tiny-imagenet-50", device="CPU", threads=1, tokenpool="0", torch="2", timm="1", python="3", commit="c",
        date="2026-01-01T00:00:00+00:00", stage=stage, preset="imagenet50_cpu",
        run=f"finetune-ti-{method}-{init}-{saving}-{seed}", train_seed=seed, epochs=1.0, right=pack(right))
    return Row(**(given | more))


def frame(*rows):
    return measured.frame(list(rows))
