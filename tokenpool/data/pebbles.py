"""Pebbles: synthetic images with known redundancy, drawn from a seed.

A large pebble and a small one lie on a ground. Each of the three is made of one of six materials, in two random
colours; the two pebbles never share a material. **The label is the pair (large, small): 30 classes.** Colour, place,
light and ground say nothing about it, so a model has to look at both pebbles, and the small one covers only a few
patches. That is the paper's case: many near copies (ground, large pebble) and a few tokens that no other token can
represent (small pebble). The masks say which patch is which.

    scenes = Pebbles(seed=1)
    images, labels, masks = scenes.batch(range(8))     # (8, 3, 64, 64) uint8, (8,) int64, (8, 64, 64) uint8

Image i of seed s is the same on every machine and in every batch: its random numbers come from a counter-based
generator with the key (s, i). No file is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MATERIALS = ("rows", "columns", "diagonal", "checks", "dots", "plain")
#: class index -> (material of the large pebble, material of the small one)
CLASSES = tuple((large, small) for large in MATERIALS for small in MATERIALS if large != small)
REGIONS = ("ground", "large pebble", "small pebble")

_HARMONICS = np.arange(2, 6)                  # wobbles of an outline: 2 is an ellipse, 5 a fine bump
_CHUNK = 16                                   # images rendered at once: the arrays stay in the processor's cache
_N_UNIFORM = 80                               # random numbers a scene may use; changing it changes every image


@dataclass(frozen=True)
class Pebbles:
    """The generator.

    Args:
        seed: of an endless series of images.
        size: side of the square image in pixels.
        difficulty: 0 (bold, clean) to 1 (faint textures, turned by up to 18 degrees, strong grain).
        imbalance: area of the large pebble over area of the small one, 1 to 12. At the default 4 a 64-pixel
            image cut in 8-pixel patches has about 17 patches of large and 4 of small pebble.
    """

    seed: int = 0
    size: int = 64
    difficulty: float = 0.35
    imbalance: float = 4.0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size={self.size} is not an image side that Pebbles can draw. Use 16 to 1024 pixels.")
        if not 0.0 <= self.difficulty <= 1.0:
            raise ValueError(f"difficulty={self.difficulty} is out of range. Use 0 (clean) to 1 (faint, grainy).")
        if not 1.0 <= self.imbalance <= 12.0:
            raise ValueError(f"imbalance={self.imbalance} is out of range. Use 1 (equal pebbles) to 12.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative. Use 0 or more.")

    def batch(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw images.

        Returns:
            images (batch, 3, size, size) uint8, labels (batch,) int64,
            masks (batch, size, size) uint8: 0 ground, 1 large pebble, 2 small pebble.
        """
        ids = list(indices)
        if not ids:
            raise ValueError("The list of image numbers is empty. Give at least one, such as batch(range(8)).")
        parts = [self._render(*self._draw(ids[i:i + _CHUNK])) for i in range(0, len(ids), _CHUNK)]
        images, labels, masks = (np.concatenate(p) for p in zip(*parts, strict=True))
        return images, labels, masks

    def _draw(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        u = np.empty((len(ids), _N_UNIFORM), np.float32)
        grain = np.empty((len(ids), self.size, self.size), np.float32)
        for row, i in enumerate(ids):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, i]))
            rng.random(out=u[row], dtype=np.float32)
            rng.standard_normal(out=grain[row], dtype=np.float32)
        return u, grain

    # ---- one scene = one row of uniforms; everything below is arithmetic on whole batches ----

    def _render(self, table: np.ndarray, grain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u = _Uniforms(table)
        labels = (u() * len(CLASSES)).astype(np.int64)
        pairs = np.array([[MATERIALS.index(a), MATERIALS.index(b)] for a, b in CLASSES])
        materials = np.concatenate([(u() * len(MATERIALS)).astype(np.int64)[:, None], pairs[labels]], axis=1)

        # Places: the two centres lie on opposite sides of the image, the small pebble in front.
        r_large = 0.29 + 0.04 * u()                                        # of the image's side
        r_small = r_large / np.sqrt(self.imbalance)
        angle = 2 * np.pi * u()
        apart = r_large + (0.35 + 0.45 * u()) * r_small                    # from just overlapping to almost apart
        along = np.stack([np.cos(angle), np.sin(angle)], 1)
        free = (0.5 - r_large)[:, None]
        middle = np.clip(0.5 - along * (apart * 0.42)[:, None], 0.5 - free, 0.5 + free) \
            + 0.06 * (np.stack([u(), u()], 1) - 0.5)
        small = np.clip(middle + along * apart[:, None], 1.05 * r_small[:, None], 1 - 1.05 * r_small[:, None])

        grid = ((np.arange(self.size, dtype=np.float32) + 0.5) / self.size)
        y, x = np.meshgrid(grid, grid, indexing="ij")
        depth_large = self._depth(x, y, middle, r_large, u)                # > 0 inside, 1 at the middle
        depth_small = self._depth(x, y, small, r_small, u)
        light = 2 * np.pi * u()
        sun = np.stack([np.cos(light), np.sin(light)], 1)

        image = self._cloth(x, y, materials[:, 0], u, chroma=0.6)
        masks = np.zeros(grain.shape, np.uint8)
        for place, (depth, centre, radius) in enumerate(
                [(depth_large, middle, r_large), (depth_small, small, r_small)], start=1):
            # A soft shadow away from the light, then the pebble itself, shaded like a dome.
            cast = self._shifted_shadow(x, y, centre, radius, sun)
            image *= (1 - 0.42 * cast)[..., None]
            surface = self._cloth(x, y, materials[:, place], u, chroma=1.0)
            toward = (_px(sun[:, 0]) * (x - _px(centre[:, 0])) + _px(sun[:, 1]) * (y - _px(centre[:, 1]))) / _px(radius)
            shade = 1.0 + 0.17 * np.clip(toward, -1, 1) - 0.30 * np.clip(1 - 2.6 * depth, 0, 1) ** 2
            edge = _smooth(depth * _px(radius) * self.size + 0.5)[..., None]          # one pixel wide
            image = image * (1 - edge) + np.clip(surface * shade[..., None], 0, 1) * edge
            masks[depth > 0] = place

        image += (0.012 + 0.075 * self.difficulty) * grain[..., None]
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels, masks

    @staticmethod
    def _depth(x: np.ndarray, y: np.ndarray, centre: np.ndarray, radius: np.ndarray, u: _Uniforms) -> np.ndarray:
        """1 at the centre, 0 on the outline, negative outside: 1 - distance / wobbling radius."""
        dx, dy = x - _px(centre[:, 0]), y - _px(centre[:, 1])
        theta = np.arctan2(dy, dx)
        wobble = np.ones_like(theta)
        for m in _HARMONICS:
            wobble += _px(0.30 / m * (u() - 0.5)) * np.cos(m * theta + _px(2 * np.pi * u()))
        return 1 - np.sqrt(dx * dx + dy * dy) / (_px(radius) * wobble)

    @staticmethod
    def _shifted_shadow(x: np.ndarray, y: np.ndarray, centre: np.ndarray, radius: np.ndarray,
                        sun: np.ndarray) -> np.ndarray:
        dx = x - _px(centre[:, 0] - 0.22 * radius * sun[:, 0])
        dy = y - _px(centre[:, 1] - 0.22 * radius * sun[:, 1])
        return _smooth((1.12 - np.sqrt(dx * dx + dy * dy) / _px(radius)) / 0.34)

    def _cloth(self, x: np.ndarray, y: np.ndarray, material: np.ndarray, u: _Uniforms, chroma: float) -> np.ndarray:
        """The two-coloured material of each image over the whole frame: (batch, size, size, 3) in 0..1."""
        d = self.difficulty
        name = {m: i for i, m in enumerate(MATERIALS)}
        period = (5.2 + 1.6 * u()) / 64                                     # of the image's side: 5 to 7 of 64
        turn = np.deg2rad(18) * d * (2 * u() - 1)
        direction = np.select([material == name["rows"], material == name["columns"]], [np.pi / 2, 0.0], np.pi / 4)
        direction = np.where(material == name["checks"], 0.0, direction) + turn
        p = _along(x, y, direction) / _px(period)
        q = _along(x, y, direction + np.pi / 2) / _px(period)
        p, q = p + _px(u()), q + _px(u())
        wave_p = np.sin(2 * np.pi * p)
        stripes = np.tanh(3 * wave_p)
        # checks: a wider period, so that a cell is as large as a stripe
        checks = np.tanh(4 * np.sin(np.pi * 1.15 * p) * np.sin(np.pi * 1.15 * q))
        # dots: every other row is shifted by half a cell
        column = 0.8 * p - (row := np.floor(0.8 * p)) - 0.5
        across = 0.8 * q + 0.5 * row
        across -= np.floor(across) + 0.5
        dots = np.tanh(5 * (0.34 - np.sqrt(column * column + across * across)))
        kind = material[:, None, None]
        tone = np.select([kind == name["plain"], kind == name["checks"], kind == name["dots"]],
                         [np.zeros_like(p), checks, dots], stripes)
        lightness, hue = 0.50 + 0.30 * u(), u()
        contrast = (0.155 - 0.085 * d) * np.where(u() < 0.5, -1, 1)
        colour = chroma * (0.045 + 0.075 * u())
        twist = 0.12 * (u() - 0.5)
        return _oklch(np.clip(_px(lightness) + _px(contrast) * tone, 0.2, 0.97),
                      _px(colour) * np.ones_like(tone), _px(hue) + _px(twist) * tone)


class _Uniforms:
    """Returns the next column of a (batch, n) table of uniforms at each call, so that each draw has its own number."""

    def __init__(self, table: np.ndarray) -> None:
        self._table, self._next = table, 0

    def __call__(self) -> np.ndarray:
        self._next += 1
        return self._table[:, self._next - 1]


def _px(per_image: np.ndarray) -> np.ndarray:
    """(batch,) -> (batch, 1, 1) in float32: a single float64 would double the time of everything after it."""
    return per_image[:, None, None].astype(np.float32)


def _along(x: np.ndarray, y: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return x * _px(np.cos(direction)) + y * _px(np.sin(direction))


def _smooth(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Lightness 0..1, chroma, hue in turns -> sRGB 0..1, by Ottosson's OKLab (2020): equal steps look equal."""
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    l_, m_, s_ = (lightness + ca * a + cb * b for ca, cb in
                  ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480)))
    l3, m3, s3 = l_ * l_ * l_, m_ * m_ * m_, s_ * s_ * s_
    linear = np.stack([
        4.0767416621 * l3 - 3.3077115913 * m3 + 0.2309699292 * s3,
        -1.2684380046 * l3 + 2.6097574011 * m3 - 0.3413193965 * s3,
        -0.0041960863 * l3 - 0.7034186147 * m3 + 1.7076147010 * s3], axis=-1)
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, np.float32(1 / 2.4)) - 0.055)
