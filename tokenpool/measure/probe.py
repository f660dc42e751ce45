"""`tokenpool probe`: a linear classifier on the frozen features of any ViT, for models without classes of their own.

    fit_probe(model, "some/folder", Path("probe"))      # then load_model("local-dir:probe") classifies

The features are those that the model's own classifier would see. Only the new classifier is fitted, by logistic
regression; its strength of regularisation C is chosen by five-fold cross-validation on the training images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import save_for_hf
from torch import nn

from tokenpool.data.datasets import find, transform_of
from tokenpool.data.files import replace_file
from tokenpool.data.weights import fingerprint

STRENGTHS = tuple(10 ** (half / 2) for half in range(-8, 3))
FEATURES = "features.npz"


@dataclass(frozen=True)
class Probe:
    classes: int
    images: int
    strength: float         # C of scikit-learn: larger fits the training images more closely
    top1: float             # cross-validated


def fit_probe(model: Any, data: str, folder: Path, split: str = "train", batch_size: int = 32,
              tell: Callable[[int, int], None] | None = None) -> Probe:
    """Fit a classifier for `model` and save both as a folder that timm and every command can load.

    Args:
        model: a timm model; it gets the new classifier.
        data, split: labelled images, see `open_data`.
        folder: for config.json, model.safetensors and the features, which a second call reads again.
        tell: called with (images done, images in all).

    Raises:
        ValueError: a model whose classifier is not one linear layer, or data with fewer than two classes.
    """
    model.reset_classifier(0)
    x, y = _features(model.eval(), data, split, folder, batch_size, tell)
    classes = int(y.max()) + 1
    if len(np.unique(y)) < classes or classes < 2:
        raise ValueError(f"{data} has images of {len(np.unique(y))} classes and labels up to {classes - 1}. "
                         "A probe needs images of every class, and two classes at least.")
    weight, bias, strength, top1 = fit_head(x, y)
    model.reset_classifier(classes)
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"The classifier of {type(model).__name__} is not one linear layer. Use a model without a "
                         "distillation token.")
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    save_for_hf(model, str(folder), safe_serialization=True)
    return Probe(classes, len(y), strength, top1)


def fit_head(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(images, C) features and (images,) labels -> weight (classes, C), bias (classes,), C, cross-validated top-1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = min(5, int(np.bincount(y).min()))
    if folds < 2:
        raise ValueError("A class has a single image. A probe needs two of every class, to choose its strength.")
    search = GridSearchCV(LogisticRegression(max_iter=5000), {"C": STRENGTHS},
                          cv=StratifiedKFold(folds, shuffle=True, random_state=0))
    search.fit(x.astype(np.float64), y)
    found = search.best_estimator_
    weight, bias = found.coef_, found.intercept_
    if len(weight) == 1:                                   # two classes: scikit-learn keeps the difference only
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias - bias.mean(), float(search.best_params_["C"]), float(search.best_score_)


@torch.inference_mode()
def _features(model: Any, data: str, split: str, folder: Path, batch_size: int,
              tell: Callable[[int, int], None] | None) -> tuple[np.ndarray, np.ndarray]:
    images = find(data, split, transform_of(model))
    about = f"{fingerprint(model)} {data} {split} {len(images)} {model.patch_embed.img_size}"
    file = folder / FEATURES
    if file.exists():
        kept = np.load(file)
        if str(kept["about"]) == about:
            return kept["x"], kept["y"]
    features, labels = [], []
    for first in range(0, len(images), batch_size):
        x, y = zip(*(images[i] for i in range(first, min(first + batch_size, len(images)))), strict=True)
        features.append(model.forward_head(model.forward_features(torch.stack(x)), pre_logits=True).float().numpy())
        labels += y
        if tell:
            tell(len(labels), len(images))
    folder.mkdir(parents=True, exist_ok=True)
    found = np.concatenate(features), np.array(labels)
    with replace_file(file) as part, part.open("wb") as out:
        np.savez(out, x=found[0], y=found[1], about=about)
    return found
