"""The embedded data set: procedural drawings and the pictures they stand for.

A drawing in coloured ink shows the outlines of one to three objects and, inside each, the lines of a pattern. The picture
shows the same objects shaded, textured and lit from the upper left, with a soft shadow. The drawing decides everything: the
ink sets the hue, the pattern the texture, the kind of outline how saturated and bright the object is. So a generator can
learn the task, and a wrong colour is a visible mistake. Every pair is a function of seed, split and index; sizes show the
same scene at other resolutions.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gancomp.data.config import DataConfig, Split
from gancomp.data.datasets import PairedDataset, PictureCache

Array = np.ndarray

PATTERNS = ("plain", "stripes", "bars", "diagonal", "checks", "dots", "rings")
_OFFSETS = {"train": 0, "val": 1, "test": 2}


def _smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def _box(x: Array, y: Array, half_width: float, half_height: float, radius: float) -> Array:
    qx, qy = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - radius


def _ellipse(x: Array, y: Array, a: Array) -> Array:
    wide, high = 0.62 + 0.3 * a[0], 0.45 + 0.3 * a[1]
    return (np.hypot(x / wide, y / high) - 1) * min(wide, high)


def _cushion(x: Array, y: Array, a: Array) -> Array:
    return _box(x, y, 0.5 + 0.3 * a[0], 0.45 + 0.25 * a[1], 0.1 + 0.2 * a[2])


def _flower(x: Array, y: Array, a: Array) -> Array:
    petals = 3 + int(4 * a[0])
    angle = np.arctan2(y, x)
    return (np.hypot(x, y) - 0.66 * (1 + 0.2 * np.cos(petals * angle))) * 0.75


def _bottle(x: Array, y: Array, a: Array) -> Array:
    body = _box(x, y - 0.2, 0.3 + 0.12 * a[0], 0.55, 0.12)
    neck = _box(x, y + 0.58, 0.11 + 0.05 * a[1], 0.3, 0.04)
    return _smooth_min(body, neck, 0.16)


def _mug(x: Array, y: Array, a: Array) -> Array:
    body = _box(x + 0.12, y, 0.42 + 0.1 * a[0], 0.5 + 0.1 * a[1], 0.12)
    handle = np.abs(np.hypot((x - 0.42) * 1.1, y) - 0.3) - 0.075
    return np.minimum(body, handle)


def _boot(x: Array, y: Array, a: Array) -> Array:
    leg = _box(x + 0.3, y + 0.2, 0.24 + 0.06 * a[0], 0.5 + 0.1 * a[1], 0.12)
    foot = _box(x - 0.08, y - 0.42, 0.6, 0.2 + 0.05 * a[2], 0.18)
    return _smooth_min(leg, foot, 0.18)


SHAPES: dict[str, tuple[Callable[[Array, Array, Array], Array], float, float]] = {
    # outline: signed distance, saturation, brightness
    "ellipse": (_ellipse, 0.72, 0.92),
    "cushion": (_cushion, 0.55, 0.86),
    "flower": (_flower, 0.85, 0.95),
    "bottle": (_bottle, 0.80, 0.62),
    "mug": (_mug, 0.62, 0.74),
    "boot": (_boot, 0.48, 0.58),
}


@dataclass(frozen=True)
class Thing:
    """One object of a scene: outline, pattern, hue in [0, 1), and where it lies (units: half the picture's side)."""

    shape: str
    pattern: str
    hue: float
    x: float
    y: float
    scale: float
    angle: float
    frequency: float
    details: tuple[float, float, float]

    def locate(self, grid_x: Array, grid_y: Array) -> tuple[Array, Array]:
        """The picture's coordinates in the object's own frame."""
        dx, dy = (grid_x - self.x) / self.scale, (grid_y - self.y) / self.scale
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def distance(self, x: Array, y: Array) -> Array:
        """Signed distance to the outline in the object's frame, negative inside."""
        return SHAPES[self.shape][0](x, y, np.array(self.details))

    def texture(self, x: Array, y: Array) -> Array:
        """A wave in [-1, 1] whose zero lines are the pattern's lines; all ones for the plain one."""
        f = np.pi * self.frequency
        if self.pattern == "stripes":
            return np.sin(f * y)
        if self.pattern == "bars":
            return np.sin(f * x)
        if self.pattern == "diagonal":
            return np.sin(f * 0.75 * (x + y))
        if self.pattern == "checks":
            return np.sin(f * x) * np.sin(f * y)
        if self.pattern == "dots":
            return np.cos(f * x) * np.cos(f * y) - 0.35
        if self.pattern == "rings":
            return np.sin(1.2 * f * np.hypot(x, y))
        return np.ones_like(x)


def scene(seed: int, split: Split, index: int) -> list[Thing]:
    """The objects of a scene, from back to front."""
    rng = np.random.default_rng((seed, _OFFSETS[split], index))
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    places = {1: [(0.0, 0.0)], 2: [(-0.43, 0.05), (0.43, -0.05)], 3: [(-0.45, -0.42), (0.46, -0.35), (0.0, 0.45)]}[count]
    size = {1: 0.82, 2: 0.5, 3: 0.44}[count]
    names = list(SHAPES)
    things = []
    for x, y in places:
        things.append(
            Thing(
                shape=names[rng.integers(len(names))],
                pattern=PATTERNS[rng.integers(len(PATTERNS))],
                hue=float(rng.uniform()),
                x=x + rng.uniform(-0.06, 0.06),
                y=y + rng.uniform(-0.06, 0.06),
                scale=size * rng.uniform(0.88, 1.08),
                angle=rng.uniform(-0.3, 0.3),
                frequency=rng.uniform(4.4, 5.8) * (1.0 if count == 1 else 0.6),
                details=(float(rng.uniform()), float(rng.uniform()), float(rng.uniform())),
            )
        )
    return things


def render(things: list[Thing], size: int) -> tuple[Image.Image, Image.Image]:
    """The drawing and the picture of a scene, ``size`` x ``size`` RGB."""
    line = (np.arange(size) + 0.5) / size * 2 - 1
    grid_x, grid_y = np.meshgrid(line, line)
    pixel = 2.0 / size
    backdrop = 0.93 - 0.05 * (grid_y + 1) / 2
    picture = np.repeat(backdrop[:, :, None], 3, axis=2)
    picture[:, :, 2] += 0.012
    drawing = np.ones((size, size, 3))
    for thing in things:
        x, y = thing.locate(grid_x, grid_y)
        inside = thing.distance(x, y) * thing.scale
        cover = np.clip(0.5 - inside / pixel, 0, 1)
        wave = thing.texture(x, y)

        shadow_x, shadow_y = thing.locate(grid_x - 0.05, grid_y - 0.07)
        shadow = 0.32 / (1 + np.exp(thing.distance(shadow_x, shadow_y) * thing.scale / 0.035))
        picture *= (1 - shadow)[:, :, None]
        picture = picture * (1 - cover[:, :, None]) + _shade(thing, inside, wave, size) * cover[:, :, None]

        slope = np.hypot(*np.gradient(wave)) + 1e-6
        # Lines where the wave crosses zero; dots are filled.
        signed = -wave if thing.pattern == "dots" else np.abs(wave)
        marks = np.clip(1.1 - signed / slope, 0, 1) * (inside < -1.5 * pixel)
        outline = np.clip(1.4 - np.abs(inside) / pixel, 0, 1)
        drawing = np.where((inside < 0)[:, :, None], 1.0, drawing)
        ink = np.array(colorsys.hsv_to_rgb(thing.hue, 0.95, 0.6))
        stroke = np.maximum(outline, 0.7 * marks)[:, :, None]
        drawing = drawing * (1 - stroke) + ink * stroke
    colours = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    strokes = np.clip(drawing * 255 + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(strokes), Image.fromarray(colours)


def _shade(thing: Thing, inside: Array, wave: Array, size: int) -> Array:
    """Colour of an object lit from the upper left: domed like a cushion, its pattern two-toned."""
    _, saturation, brightness = SHAPES[thing.shape]
    light = np.array(colorsys.hsv_to_rgb(thing.hue, saturation, brightness))
    dark = np.array(colorsys.hsv_to_rgb((thing.hue + 0.03) % 1, min(1.0, saturation * 1.15), brightness * 0.55))
    blend = np.clip(0.5 + wave * 2.5, 0, 1)[:, :, None]
    colour = light * blend + dark * (1 - blend)
    rim = 0.55 * thing.scale
    depth = np.clip(-inside / rim, 0, 1)
    height = np.sqrt(np.maximum(1 - (1 - depth) ** 2, 0)) * rim
    slope_y, slope_x = np.gradient(height, 2.0 / size)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    facing = np.clip((0.45 * slope_x + 0.55 * slope_y + 0.70) / length, 0, 1)
    gloss = np.clip((0.33 * slope_x + 0.40 * slope_y + 0.86) / length, 0, 1) ** 24
    return np.clip(colour * (0.42 + 0.72 * facing)[:, :, None] + 0.22 * gloss[:, :, None], 0, 1)


class SyntheticDataset(PairedDataset):
    """The embedded edges->shapes set; A is the drawing, B the picture."""

    def __init__(self, config: DataConfig, split: Split) -> None:
        count = config.synthetic_train if split == "train" else config.synthetic_test
        super().__init__(config, split, [f"{split}-{index:05d}" for index in range(count)])
        self._cache = PictureCache[tuple[Image.Image, Image.Image]](config.cache_mb * 2**20)

    def source(self) -> str:
        return f"synthetic/{self.config.seed}"

    def pictures(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Drawing and picture at the size that is asked for next: ``load_size`` in training, else ``crop_size``."""
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        c = self.config
        size = c.load_size if self.split == "train" else c.crop_size
        a, b = render(scene(c.seed, self.split, index), size)
        channels = (c.in_channels, c.out_channels) if c.direction == "AtoB" else (c.out_channels, c.in_channels)
        a, b = (p if n == 3 else p.convert("L") for p, n in zip((a, b), channels, strict=True))
        self._cache.put(index, (a, b))
        return a, b
