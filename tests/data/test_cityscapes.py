"""Cityscapes from a download of its form: small scenes of known classes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gancomp.cli import main
from gancomp.data import DataConfig, open_dataset

STEMS = {
    "train": [f"aachen_{n:06}_000019" for n in range(12)],
    "val": ["frankfurt_000001_000019"],
    "test": ["berlin_000000_000019"],
}


def classes(stem: str) -> np.ndarray:
    """Class numbers [32, 64] in four blocks; one has no class (255)."""
    first = int(stem.split("_")[1])
    return np.kron(np.array([[first, 33], [255, 7]]), np.ones((16, 32))).astype(np.uint8)


def instances(stem: str) -> np.ndarray:
    """Numbers of instances, above 8 bits."""
    return classes(stem).astype(np.uint16) * 100


def colours(stem: str) -> np.ndarray:
    return np.stack([classes(stem), 255 - classes(stem), classes(stem) // 2], axis=2)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "city"
    for split, stems in STEMS.items():
        for stem in stems:
            place = root / "leftImg8bit" / split / stem.split("_")[0]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 64, 3), 90, np.uint8)).save(place / f"{stem}_leftImg8bit.png")
            place = root / "gtFine" / split / stem.split("_")[0]
            place.mkdir(parents=True, exist_ok=True)
            for what, pixels in (("color", colours), ("labelIds", classes), ("instanceIds", instances)):
                Image.fromarray(pixels(stem)).save(place / f"{stem}_gtFine_{what}.png")
            (place / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


@pytest.fixture
def archives(folders: Path, tmp_path: Path) -> Path:
    source = tmp_path / "download"
    source.mkdir()
    for kind in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(source / f"{kind}_trainvaltest.zip", "w") as archive:
            for path in sorted((folders / kind).rglob("*.*")):
                archive.write(path, path.relative_to(folders))
            archive.writestr(f"../{kind}/train/x/evil.png", b"")
    return source


def prepare(source: Path, out: Path, *arguments: str) -> Path:
    assert main(["data", "prepare", "cityscapes", "--source", str(source), "--out", str(out), *arguments]) == 0
    return out / "cityscapes"


@pytest.mark.parametrize("kind", ["folders", "archives"])
def test_label_maps(request, tmp_path: Path, kind: str) -> None:
    root = prepare(request.getfixturevalue(kind), tmp_path / "out", "--form", "labels", "--width", "64")
    config = DataConfig(
        root=str(root), labels=35, edges=True, dont_care=255, aspect_ratio=2.0, load_size=64, crop_size=64, flip=False
    )
    train = open_dataset(config, "train")
    assert [name.removesuffix(".png") for name in open_dataset(config, "test").names] == STEMS["val"]
    assert len(train) == 11
    for index, name in enumerate(train.names):
        pair = train.load(index)
        wanted = classes(name.removesuffix(".png"))
        assert np.array_equal(pair.input[0], np.where(wanted == 255, 34, wanted))
        assert pair.input[1].sum() == 2 * 32 + 2 * 64 - 4, "instances border on each other along a cross, two pixels wide"
        assert pair.target.shape == (3, 32, 64)
        assert (pair.target - (90 / 127.5 - 1)).abs().max() < 0.02


def test_pairs(folders: Path, tmp_path: Path) -> None:
    root = prepare(folders, tmp_path / "out", "--width", "32", "--split-seed", "3")
    config = DataConfig(root=str(root), direction="BtoA", load_size=32, crop_size=32)
    assert [len(open_dataset(config, split)) for split in ("train", "val", "test")] == [11, 1, 1]
    for path in (root / "train").iterdir():
        both = np.asarray(Image.open(path)).astype(int)
        assert both.shape == (32, 64, 3)
        assert np.abs(both[:, :32] - 90).max() <= 2
        assert np.abs(both[4::16, 36::16] - colours(path.stem)[4::16, 8::32]).max() <= 8


def test_label_maps_are_held_out_together(folders: Path, tmp_path: Path) -> None:
    root = prepare(folders, tmp_path / "out", "--form", "labels", "--width", "64", "--split-seed", "3")
    for split, count in (("train", 11), ("val", 1), ("test", 1)):
        stems = [{path.stem for path in (root / f"{split}{layer}").iterdir()} for layer in ("", "_labels", "_inst")]
        assert stems[0] == stems[1] == stems[2]
        assert len(stems[0]) == count


def test_what_is_missing_is_named(folders: Path, tmp_path: Path, capsys) -> None:
    def refused(message: str) -> None:
        assert main(["data", "prepare", "cityscapes", "--source", str(folders), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert list((tmp_path / "out").iterdir()) == []

    colour = folders / "gtFine" / "val" / "frankfurt" / f"{STEMS['val'][0]}_gtFine_color.png"
    colour.write_bytes(colour.read_bytes()[:60])
    refused(f"{STEMS['val'][0]} color: cannot be read")
    colour.unlink()
    refused(f"val image {STEMS['val'][0]} has no color picture")
    (folders / "gtFine").rename(folders / "other")
    refused("has neither a folder gtFine nor gtFine_trainvaltest.zip")
