"""Folders of pairs: layouts, splits, what is refused and how, augmentation, the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp.data import DataConfig, eval_batches, open_dataset, stack_pairs, to_tensor, to_uint8
from gancomp.data import datasets as module
from gancomp.data.datasets import PairedDataset, PictureCache
from gancomp.errors import ConfigError, DataError

from .conftest import FLAT_LAYOUTS, LAYOUTS, SIZE, side, write, write_folders, write_pairs

NAMES = [f"{number}.png" for number in (1, 2, 10, 11, 20, 100, 101, 103, 110, 200, 1000)]


def config(root: Path, **changes) -> DataConfig:
    return DataConfig(**{"root": str(root), "load_size": SIZE, "crop_size": SIZE, **changes})


def touch(folder: Path, count: int) -> None:
    """Files that are opened only if somebody decodes what he should not."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").touch()


def check_pictures(dataset: PairedDataset) -> None:
    for index, name in enumerate(dataset.names):
        a, b = dataset.pictures(index)
        assert np.array_equal(a, side(name, "A"))
        assert np.array_equal(b, side(name, "B"))


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(tmp_path: Path, layout: str) -> None:
    splits = {"train": NAMES[:6], "val": NAMES[6:9], "test": NAMES[9:]}
    for split, names in splits.items():
        LAYOUTS[layout](tmp_path, split, reversed(names))
    for split, names in splits.items():
        dataset = open_dataset(config(tmp_path), split)
        assert dataset.names == names, "2 comes before 10"
        check_pictures(dataset)


@pytest.mark.parametrize("layout", FLAT_LAYOUTS)
def test_flat_layouts(tmp_path: Path, layout: str) -> None:
    FLAT_LAYOUTS[layout](tmp_path, NAMES)
    datasets = [open_dataset(config(tmp_path), split) for split in ("train", "val", "test")]
    assert sorted(name for dataset in datasets for name in dataset.names) == sorted(NAMES)
    for dataset in datasets:
        check_pictures(dataset)


def test_direction_turns_pairs_round(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", NAMES)
    there, back = (open_dataset(config(tmp_path, direction=d), "train") for d in ("AtoB", "BtoA"))
    pair, turned = there.load(3), back.load(3)
    assert torch.equal(pair.input, to_tensor(Image.fromarray(side(there.names[3], "A"))))
    assert torch.equal(pair.input, turned.target)
    assert torch.equal(pair.target, turned.input)


def test_two_folders_may_differ_in_format(tmp_path: Path) -> None:
    for name in NAMES:
        write(tmp_path / "trainA" / name, side(name, "A"))
        write(tmp_path / "trainB" / name.replace("png", "bmp"), side(name, "B"))
    check_pictures(open_dataset(config(tmp_path), "train"))


def test_what_is_an_image_and_what_is_not(tmp_path: Path) -> None:
    names = ["Straße 1.PNG", "写真.png", "a b'c\".png", "αβγ.Png", "%41.png", "٣.png"]
    write_pairs(tmp_path / "train", names)
    (tmp_path / "train" / ".hidden.png").write_text("x")
    (tmp_path / "train" / "._1.png").write_text("x")
    (tmp_path / "train" / "notes.txt").write_text("x")
    (tmp_path / "train" / "Thumbs.db").write_text("x")
    (tmp_path / "train" / "folder.png").mkdir()
    write_pairs(tmp_path / "test", ["1.png"])
    train, val = open_dataset(config(tmp_path), "train"), open_dataset(config(tmp_path), "val")
    assert sorted(train.names + val.names) == sorted(names)
    check_pictures(train)
    check_pictures(val)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_grey_sides(tmp_path: Path, direction: str) -> None:
    write_pairs(tmp_path / "side", NAMES)
    write_folders(tmp_path / "two" / "A", tmp_path / "two" / "B", NAMES)
    for root in ("side", "two"):
        dataset = open_dataset(config(tmp_path / root, direction=direction, in_channels=1, out_channels=3), "train")
        pair = dataset.load(0)
        assert (pair.input.shape, pair.target.shape) == ((1, SIZE, SIZE), (3, SIZE, SIZE))
        first, second = ("A", "B") if direction == "AtoB" else ("B", "A")
        grey = Image.fromarray(side(pair.name, first)).convert("L")
        assert torch.equal(to_uint8(pair.input)[0], torch.from_numpy(np.array(grey)))
        assert np.array_equal(to_uint8(pair.target).permute(1, 2, 0), side(pair.name, second))


# Splits


@pytest.mark.parametrize("count", [3, 4, 9, 10, 19, 20, 57, 2100])
def test_held_out_splits_never_overlap(tmp_path: Path, count: int) -> None:
    touch(tmp_path / "flat", count)
    c = config(tmp_path / "flat")
    splits = {split: open_dataset(c, split).names for split in ("train", "val", "test")}
    assert sorted(name for names in splits.values() for name in names) == sorted(f"{n}.png" for n in range(count))
    held = min(200, max(1, count // 10))
    assert [len(names) for names in splits.values()] == [count - 2 * held, held, held]
    assert {split: open_dataset(c, split).names for split in splits} == splits, "the same on every call"
    if count > 50:
        assert open_dataset(replace(c, seed=1), "val").names != splits["val"]


@pytest.mark.parametrize("held", ["val", "test"])
def test_one_held_out_folder_is_the_test_split(tmp_path: Path, held: str) -> None:
    touch(tmp_path / "train", 40)
    touch(tmp_path / held, 7)
    c = config(tmp_path)
    train, val, test = (open_dataset(c, split).names for split in ("train", "val", "test"))
    assert len(test) == 7
    assert sorted(train + val) == sorted(f"{n}.png" for n in range(40))
    assert len(val) == 4


def test_folders_of_all_three_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, count in (("train", 1), ("val", 2), ("test", 3)):
        touch(tmp_path / split, count)
    assert [len(open_dataset(config(tmp_path), split)) for split in ("train", "val", "test")] == [1, 2, 3]


def test_at_most_so_many_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", NAMES)
    dataset = open_dataset(config(tmp_path, max_images=4), "train")
    assert len(dataset) == 4
    assert dataset.names == open_dataset(config(tmp_path), "train").names[:4]
    assert len(open_dataset(config(tmp_path, max_images=400), "train")) == len(NAMES) - 2
    with pytest.raises(IndexError):
        dataset.load(4)


def test_the_fingerprint_tells_sets_apart(tmp_path: Path) -> None:
    write_folders(tmp_path / "A", tmp_path / "B", NAMES)
    c = config(tmp_path)

    def fingerprint(split: str = "train", **changes) -> str:
        return open_dataset(replace(c, **changes), split).fingerprint

    first = fingerprint()
    assert first == fingerprint(load_size=99, flip=False, cache_mb=0), "what changes no pair does not count"
    others = [
        fingerprint("val"), fingerprint(direction="BtoA"), fingerprint(crop_size=8), fingerprint(in_channels=1),
        fingerprint(max_images=3), fingerprint(seed=5),
    ]  # fmt: skip
    name = open_dataset(c, "train").names[0]
    write(tmp_path / "B" / name, side("another", "B", 8))
    others.append(fingerprint())
    assert len({first, *others}) == len(others) + 1


# What is refused


def refused(c: DataConfig, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(c, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    assert refused(config(tmp_path / "gone")).endswith("gone': no such folder")
    (tmp_path / "file").touch()
    assert refused(config(tmp_path / "file")).endswith("file': is a file, expected a folder of images")
    assert "no images found; expected train/, trainA/ + trainB/" in refused(config(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "readme.txt").touch()
    assert "no images found" in refused(config(tmp_path))
    touch(tmp_path / "test", 3)
    assert "has test but no training images" in refused(config(tmp_path))
    with pytest.raises(ConfigError, match="split='all'"):
        open_dataset(config(tmp_path), "all")  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_to_hold_any_out(tmp_path: Path, count: int) -> None:
    touch(tmp_path / "flat", count)
    assert f"has {count} training images, too few to hold out val and test" in refused(config(tmp_path / "flat"))
    touch(tmp_path / "split" / "train", 1)
    touch(tmp_path / "split" / "test", 1)
    assert "has 1 training images, too few to hold out val images" in refused(config(tmp_path / "split"))


@pytest.mark.parametrize("layout", ["trainA, trainB", "A/train, B/train"])
def test_unpaired_counts(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, "train", NAMES)
    a, b = (next(p for p in tmp_path.rglob("10.png") if letter in str(p.relative_to(tmp_path))) for letter in "AB")
    b.unlink()
    message = refused(config(tmp_path))
    assert message == (
        f"{a.parent} has 11 images, {b.parent} has 10; 1 have no partner of equal name, first '10'; "
        "images without pairs need data.unpaired (or --model cyclegan)"
    )
    a.unlink()
    open_dataset(config(tmp_path), "train")
    for file in b.parent.iterdir():
        file.unlink()
    assert "has 10 images" in refused(config(tmp_path))
    assert "has 0; 10 have no partner" in refused(config(tmp_path))


def test_names_that_mean_two_files(tmp_path: Path) -> None:
    write_folders(tmp_path / "A", tmp_path / "B", NAMES)
    write(tmp_path / "A" / "10.bmp", side("10", "A"))
    assert (
        refused(config(tmp_path)) == f"{tmp_path / 'A'}: two images share a name without ending; pairs are matched by that name"
    )


def load_error(root: Path, **changes) -> str:
    dataset = open_dataset(config(root, **changes), "train")
    with pytest.raises(DataError) as caught:
        list(eval_batches(dataset))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path / "A", tmp_path / "B", NAMES)
    victim = open_dataset(config(tmp_path), "train").names[4]
    a, b = tmp_path / "A" / victim, tmp_path / "B" / victim
    assert (
        load_error(tmp_path, crop_size=20, load_size=20)
        .split(": ")[1]
        .startswith("a side is 16x16, smaller than data.crop_size=20")
    )
    write(b, side("x", "B", 18))
    assert load_error(tmp_path) == f"{a}: is 16x16, its partner {b} is 18x18"
    write(b, side("x", "B"))
    a.write_bytes(a.read_bytes()[:99])
    assert load_error(tmp_path).startswith(f"{a}: cannot be read as an image (")
    a.unlink()
    assert "1 have no partner" in refused(config(tmp_path))


def test_side_by_side_needs_an_even_width(tmp_path: Path) -> None:
    write_pairs(tmp_path, NAMES)
    odd = tmp_path / open_dataset(config(tmp_path), "train").names[2]
    write(odd, np.zeros((16, 33, 3), dtype=np.uint8))
    assert load_error(tmp_path) == f"{odd}: is 33 pixels wide; a side-by-side pair needs an even width"
    # One picture that is no pair: its halves are too narrow.
    write(odd, np.zeros((16, 16, 3), dtype=np.uint8))
    assert load_error(tmp_path).startswith(f"{odd}: a side is 8x16, smaller than data.crop_size=16")


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, NAMES)
    dataset = open_dataset(config(tmp_path), "train")
    (tmp_path / dataset.names[0]).unlink()
    with pytest.raises(DataError, match=f"{dataset.names[0]}: no such file"):
        dataset.load(0)


@pytest.mark.parametrize(
    "changes",
    [
        {"direction": "BtoC"}, {"crop_size": 30}, {"crop_size": 4}, {"crop_size": 0}, {"load_size": 15}, {"in_channels": 2},
        {"out_channels": 4}, {"max_images": -1}, {"synthetic_train": 0}, {"synthetic_test": 0}, {"cache_mb": -1}, {"seed": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range(tmp_path: Path, changes: dict) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"data.{name}={value!r}: expected"):
        config(tmp_path, **changes)


# Augmentation


def coordinates(folder: Path, size: int) -> None:
    """Pairs that say where each pixel was: red is x, green is y; B is the same in blue's complement."""
    y, x = np.mgrid[:size, :size].astype(np.uint8)
    a, b = np.dstack([x, y, 0 * x]), np.dstack([x, y, 0 * x + 255])
    for number in range(3):
        write(folder / f"{number}.png", np.hstack([a, b]))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_both_sides_are_cut_and_flipped_alike(tmp_path: Path, flip: bool, direction: str) -> None:
    coordinates(tmp_path, 24)
    dataset = open_dataset(config(tmp_path, load_size=24, crop_size=16, flip=flip, direction=direction), "train")
    corners, flips = set(), 0
    for seed in range(400):
        pair = dataset.load(0, np.random.default_rng(seed))
        a, b = (to_uint8(t).int() for t in ((pair.input, pair.target) if direction == "AtoB" else (pair.target, pair.input)))
        assert torch.equal(a[:2], b[:2])
        assert (a[2] == 0).all()
        assert (b[2] == 255).all()
        flipped = bool(a[0, 0, 0] > a[0, 0, -1])
        x, y = int(a[0].min()), int(a[1].min())
        row = torch.arange(x, x + 16)
        assert torch.equal(a[0], (row.flip(0) if flipped else row).expand(16, 16))
        assert torch.equal(a[1], torch.arange(y, y + 16)[:, None].expand(16, 16))
        corners.add((x, y))
        flips += flipped
    assert {x for x, _ in corners} == {y for _, y in corners} == set(range(9)), "every place, the outermost too"
    assert len(corners) == 81
    assert 150 < flips < 250 if flip else flips == 0


def test_evaluation_resizes_the_whole_picture(tmp_path: Path) -> None:
    coordinates(tmp_path, 24)
    dataset = open_dataset(config(tmp_path, load_size=24, crop_size=16), "val")
    a, b = dataset.pictures(0)
    expected = [p.resize((16, 16), Image.Resampling.BICUBIC) for p in (a, b)]
    pair = dataset.load(0)
    assert torch.equal(pair.input, to_tensor(expected[0]))
    assert torch.equal(pair.target, to_tensor(expected[1]))


def test_training_resizes_to_load_size(tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.png", np.zeros((40, 100, 3), dtype=np.uint8))
    for split in ("val", "test"):
        write_pairs(tmp_path / split, ["1.png"])
    pair = open_dataset(config(tmp_path, load_size=20), "train").load(0, np.random.default_rng(0))
    assert pair.input.shape == pair.target.shape == (3, 16, 16)


def test_stacking() -> None:
    pairs = [module.Pair(torch.full((1, 4, 4), float(n)), torch.full((3, 4, 4), -float(n)), str(n)) for n in range(3)]
    batch = stack_pairs(pairs)
    assert batch.input.shape == (3, 1, 4, 4)
    assert batch.target[2, 0, 0, 0] == -2
    assert batch.names == ("0", "1", "2")
    assert torch.equal(batch.to("cpu").input, batch.input)


# The cache


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    seen: list[Path] = []
    original: Callable = module.read_image

    def read(path: Path, channels: int = 3) -> Image.Image:
        seen.append(path)
        return original(path, channels)

    monkeypatch.setattr(module, "read_image", read)
    return seen


def test_pictures_are_decoded_once_while_they_fit(tmp_path: Path, reads: list[Path]) -> None:
    write_pairs(tmp_path, NAMES)
    for cache_mb, expected in ((1, 9), (0, 27)):
        reads.clear()
        dataset = open_dataset(config(tmp_path, cache_mb=cache_mb), "train")
        loaded = [[dataset.load(i) for i in range(9)] for _ in range(3)]
        assert len(reads) == expected
        assert all(torch.equal(loaded[0][i].input, again[i].input) for again in loaded for i in range(9))


def test_the_cache_keeps_to_its_bytes() -> None:
    pair = (Image.new("RGB", (10, 10)), Image.new("L", (10, 10)))
    cache = PictureCache(3 * 400 + 399)
    for index in range(6):
        cache.put(index, pair)
    assert [cache.get(index) is not None for index in range(6)] == [True] * 3 + [False] * 3
    small = (Image.new("L", (10, 10)), Image.new("L", (19, 10)))
    cache.put(7, small)
    assert cache.get(7) is small
    cache.put(8, (Image.new("L", (11, 10)), Image.new("L", (1, 1))))
    assert cache.get(8) is None


def test_a_pair_put_twice_counts_once() -> None:
    pair = (Image.new("RGB", (10, 10)), Image.new("RGB", (10, 10)))
    cache = PictureCache(1200)
    threads = [threading.Thread(target=cache.put, args=(0, pair)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.put(1, pair)
    assert cache.get(1) is pair
