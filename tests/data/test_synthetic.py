"""The embedded set: deterministic, of any size, and learnable: the drawing decides the picture."""

from __future__ import annotations

import colorsys
import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp.data import DataConfig, open_dataset
from gancomp.data.synthetic import PATTERNS, SHAPES, Thing, render, scene

THING = Thing("ellipse", "plain", 0.0, 0.0, 0.0, 0.8, 0.0, 5.0, (0.5, 0.5, 0.5))


def config(**changes) -> DataConfig:
    return DataConfig(**{"load_size": 32, "crop_size": 32, "synthetic_train": 6, "synthetic_test": 4, **changes})


def digest() -> str:
    """Of drawings and pictures of every split."""
    sha = hashlib.sha256()
    for split in ("train", "val", "test"):
        dataset = open_dataset(config(), split)
        for index in range(len(dataset)):
            for picture in dataset.pictures(index):
                sha.update(picture.tobytes())
    return sha.hexdigest()


def test_every_process_draws_the_same() -> None:
    code = f"import importlib.util as u; s = u.spec_from_file_location('t', {__file__!r}); m = u.module_from_spec(s);"
    code += " import sys; sys.modules['t'] = m; s.loader.exec_module(m); print(m.digest())"
    found = {digest()}
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_scenes_are_what_they_were() -> None:
    """The set is part of every number reported on it: a change of its scenes must be meant."""
    (thing,) = scene(233, "train", 0)
    assert (thing.shape, thing.pattern) == ("ellipse", "checks")
    assert (thing.hue, thing.scale) == pytest.approx((0.11115745007727895, 0.8414075303519317))


def test_splits_and_seeds_are_disjoint() -> None:
    seen = set()
    count = 0
    for seed in (233, 234):
        for split in ("train", "val", "test"):
            dataset = open_dataset(config(seed=seed), split)
            assert len(dataset) == (6 if split == "train" else 4)
            seen |= {b"".join(p.tobytes() for p in dataset.pictures(i)) for i in range(len(dataset))}
            count += len(dataset)
    assert len(seen) == count
    names = [open_dataset(config(), split).names for split in ("train", "val", "test")]
    assert len({name for split in names for name in split}) == sum(map(len, names))


def test_more_images_keep_the_first_ones() -> None:
    few, many = (open_dataset(config(synthetic_train=n), "train") for n in (3, 9))
    assert all(torch.equal(few.load(i).target, many.load(i).target) for i in range(3))
    with pytest.raises(IndexError):
        few.load(3)


@pytest.mark.parametrize("size", [8, 12, 100, 256])
def test_any_size_shows_the_same_scene(size: int) -> None:
    dataset = open_dataset(config(load_size=size, crop_size=size), "test")
    pair = dataset.load(1)
    assert pair.input.shape == pair.target.shape == (3, size, size)
    large = [p.resize((8, 8), Image.Resampling.BOX) for p in render(scene(233, "test", 1), 256)]
    small = [p.resize((8, 8), Image.Resampling.BICUBIC) for p in dataset.pictures(1)]
    difference = np.abs(np.asarray(small[1]).astype(float) - np.asarray(large[1]))
    assert difference.mean() < 14


def test_training_draws_at_load_size_and_evaluation_at_crop_size() -> None:
    c = config(load_size=40, crop_size=32)
    assert open_dataset(c, "train").pictures(0)[0].size == (40, 40)
    assert open_dataset(c, "val").pictures(0)[0].size == (32, 32)
    assert open_dataset(c, "train").load(0, np.random.default_rng(0)).input.shape == (3, 32, 32)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_grey_and_directions(direction: str) -> None:
    c = config(in_channels=1, out_channels=3, direction=direction)
    grey, coloured = open_dataset(c, "val").load(0), open_dataset(replace(c, in_channels=3), "val").load(0)
    assert grey.input.shape == (1, 32, 32)
    assert torch.equal(grey.target, coloured.target)
    other = open_dataset(replace(c, direction="BtoA" if direction == "AtoB" else "AtoB", in_channels=3), "val").load(0)
    assert torch.equal(other.input, coloured.target)


def test_fingerprints_tell_seeds_apart() -> None:
    assert open_dataset(config(), "val").fingerprint == open_dataset(config(), "val").fingerprint
    assert open_dataset(config(), "val").fingerprint != open_dataset(config(seed=1), "val").fingerprint


def mean_colour(picture: Image.Image, radius: float = 0.25) -> tuple[float, float, float]:
    """Hue, saturation and value of a disc in the middle."""
    pixels = np.asarray(picture).astype(float) / 255
    line = (np.arange(len(pixels)) + 0.5) / len(pixels) * 2 - 1
    inside = np.hypot(*np.meshgrid(line, line)) < radius
    return colorsys.rgb_to_hsv(*pixels[inside].mean(0))


def ink(drawing: Image.Image) -> tuple[float, float, float]:
    """Hue, saturation and value of the pixel with the most ink."""
    pixels = np.asarray(drawing).astype(float) / 255
    return colorsys.rgb_to_hsv(*pixels[np.unravel_index(pixels.sum(2).argmin(), pixels.shape[:2])])


@pytest.mark.parametrize("hue", [0.02, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_ink_tells_the_colour(hue: float, shape: str) -> None:
    drawing, picture = render([replace(THING, shape=shape, hue=hue)], 64)
    assert abs(ink(drawing)[0] - hue) < 0.01
    assert abs(mean_colour(picture)[0] - hue) < 0.04


def test_the_outline_tells_how_saturated_and_bright() -> None:
    shown = [mean_colour(render([replace(THING, shape=shape)], 64)[1])[1:] for shape in SHAPES]
    meant = [(saturation, brightness) for _, saturation, brightness in SHAPES.values()]
    for quality in range(2):
        assert np.corrcoef([v[quality] for v in shown], [v[quality] for v in meant])[0, 1] > 0.85


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_marks_tell_the_texture(pattern: str) -> None:
    """A patterned object has marks in its drawing and sharp edges in its picture; a plain one has neither."""
    drawing, picture = (np.asarray(p).astype(float) for p in render([replace(THING, pattern=pattern)], 96))
    line = (np.arange(96) + 0.5) / 48 - 1
    inside = np.hypot(*np.meshgrid(line, line)) < 0.3
    marked = (drawing[inside].min(1) < 200).mean()
    steepest = np.hypot(*np.gradient(picture.max(2)))[inside].max()
    assert (marked > 0.02) == (steepest > 30) == (pattern != "plain")


def test_equal_drawings_mean_equal_pictures() -> None:
    """What the drawing does not show (unused details of an outline, a plain object's frequency) does not change the picture."""
    a, b = render([THING], 64), render([replace(THING, frequency=4.0, details=(0.5, 0.5, 0.9))], 64)
    assert a[0].tobytes() == b[0].tobytes()
    assert a[1].tobytes() == b[1].tobytes()


def test_the_ink_of_whole_scenes_predicts_the_colour() -> None:
    """The set is learnable: the simplest of predictors gets the hue of scenes with one object."""
    errors = []
    for index in range(40):
        things = scene(1, "train", index)
        if len(things) == 1:
            drawing, picture = render(things, 64)
            difference = abs(ink(drawing)[0] - mean_colour(picture, 0.2)[0])
            errors.append(min(difference, 1 - difference))
    assert len(errors) > 10
    assert np.median(errors) < 0.03


def test_nearer_objects_hide_those_behind() -> None:
    back, front = replace(THING, hue=0.0, scale=0.9), replace(THING, hue=0.5, scale=0.4)
    drawing, picture = render([back, front], 64)
    alone = render([front], 64)
    assert abs(mean_colour(picture, 0.15)[0] - 0.5) < 0.04
    middle = np.asarray(drawing)[26:38, 26:38]
    assert np.array_equal(middle, np.asarray(alone[0])[26:38, 26:38])
