"""Photographs as square arrays: six that other packages ship, or any image file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FIVE = ("cat", "coffee", "astronaut", "temple", "flower")


def photographs(size: int = 64, names: Sequence[str] = FIVE) -> dict[str, np.ndarray]:
    """Photographs of scikit-image and scikit-learn ("rocket" too), square: name -> (3, size, size) uint8.

    None of their files is copied into this project. Sources and licences: see data/README.md.
    """
    from skimage import data as skimage_data
    from sklearn.datasets import load_sample_image

    sources = {"cat": skimage_data.chelsea, "coffee": skimage_data.coffee, "astronaut": skimage_data.astronaut,
               "temple": lambda: load_sample_image("china.jpg"), "flower": lambda: load_sample_image("flower.jpg"),
               "rocket": skimage_data.rocket}
    return {name: square(Image.fromarray(np.asarray(sources[name]())), size) for name in names}


def read_image(path: Path, size: int = 64) -> np.ndarray:
    """An image file as (3, size, size) uint8, centre-cropped to a square."""
    try:
        with Image.open(path) as image:
            return square(image.convert("RGB"), size)
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at {path}.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not an image that can be read ({error}). Use PNG, JPEG, WebP or BMP.") from error


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre of an image, scaled: (3, size, size) uint8."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
