"""Two sets of images without pairs: layouts, splits, what is drawn and when, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp.data import DataConfig, ImageDataset, eval_batches, open_dataset, stack_pairs, to_tensor, to_uint8, train_batches
from gancomp.errors import DataError

from .conftest import LAYOUTS, SIZE, side, write, write_pairs

A = [f"horse {number:02}.png" for number in range(7)]
B = [f"zebra {number:02}.png" for number in range(12)]


def config(root: Path | str, **changes) -> DataConfig:
    return DataConfig(**{"root": str(root), "load_size": SIZE, "crop_size": SIZE, "unpaired": True, "flip": False, **changes})


def write_sets(root: Path, split: str, a: list[str], b: list[str], style: str = "{split}{side}") -> None:
    for letter, names in (("A", a), ("B", b)):
        for name in names:
            write(root / style.format(split=split, side=letter) / name, side(name, letter))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every split of both sides, of unequal counts and names."""
    write_sets(tmp_path, "train", A, B)
    write_sets(tmp_path, "val", A[:2], B[:3])
    write_sets(tmp_path, "test", A[:3], B[:1])
    return tmp_path


def pixels(name: str, letter: str) -> torch.Tensor:
    return to_tensor(Image.fromarray(side(name, letter)))


def which(image: torch.Tensor, names: list[str], letter: str) -> str:
    """The name of the image that was loaded."""
    (name,) = [name for name in names if torch.equal(pixels(name, letter), image)]
    return name


@pytest.mark.parametrize("style", ["{split}{side}", "{side}/{split}"])
def test_counts_and_names_are_free(tmp_path: Path, style: str) -> None:
    for split, a, b in (("train", A, B), ("val", A[:2], B[:3]), ("test", A[:3], B[:1])):
        write_sets(tmp_path, split, a, b, style)
    for split, a, b in (("train", A, B), ("val", A[:2], B[:3]), ("test", A[:3], B[:1])):
        dataset = open_dataset(config(tmp_path), split)
        assert dataset.names == a
        assert len(dataset) == len(a)
        assert dataset.target_count == len(b)
        assert not dataset.paired
        for index, name in enumerate(a):
            pair = dataset.load(index)
            assert torch.equal(pair.input, pixels(name, "A"))
            assert torch.equal(pair.target, pixels(b[index % len(b)], "B"))
            assert not pair.paired
        assert [which(dataset.load_target(index), b, "B") for index in range(len(b))] == b


def test_direction_turns_the_sides_round(folder: Path) -> None:
    dataset = open_dataset(config(folder, direction="BtoA"), "train")
    assert dataset.names == B
    assert dataset.target_count == len(A)
    assert which(dataset.load(3).input, B, "B") == B[3]
    assert which(dataset.load(8).target, A, "A") == A[1]


def test_targets_are_drawn_evenly_and_on_their_own(folder: Path) -> None:
    dataset = open_dataset(config(folder), "train")
    count = 1200
    drawn = [which(dataset.load(2, np.random.default_rng(seed)).target, B, "B") for seed in range(count)]
    expected = count / len(B)
    assert all(abs(drawn.count(name) - expected) < 5 * expected**0.5 for name in B)


def test_a_batch_follows_from_seed_and_step(folder: Path) -> None:
    """So a resumed run goes on with what an unbroken one would draw, for any number of workers."""
    dataset = open_dataset(config(folder, load_size=SIZE + 4), "train")

    def take(start: int, workers: int = 0, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
        batches = train_batches(dataset, 2, seed, start_step=start, workers=workers)
        return [(batch.input, batch.target) for batch in itertools.islice(batches, 6)]

    whole, later, threaded, other = take(0), take(2), take(0, workers=2), take(0, seed=4)
    assert all(torch.equal(x, y) for a, b in zip(whole[2:], later, strict=False) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(x, y) for a, b in zip(whole, threaded, strict=True) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(whole, other, strict=True))


def test_every_input_once_per_pass_in_training(folder: Path) -> None:
    dataset = open_dataset(config(folder), "train")
    batches = list(itertools.islice(train_batches(dataset, 1, 0), 14))
    assert sorted(batch.names[0] for batch in batches[:7]) == sorted(batch.names[0] for batch in batches[7:]) == A


def test_sides_are_cut_and_flipped_on_their_own(tmp_path: Path) -> None:
    y, x = np.mgrid[:24, :24].astype(np.uint8)
    for letter in "AB":
        for split in ("train", "val", "test"):
            write(tmp_path / f"{split}{letter}" / "1.png", np.dstack([x, y, 0 * x]))
    dataset = open_dataset(config(tmp_path, load_size=24, crop_size=16, flip=True), "train")
    places = []
    for seed in range(200):
        pair = dataset.load(0, np.random.default_rng(seed))
        for image in (to_uint8(pair.input).int(), to_uint8(pair.target).int()):
            places.append((int(image[0].min()), int(image[1].min()), bool(image[0, 0, 0] > image[0, 0, -1])))
    a, b = places[::2], places[1::2]
    for number, values in enumerate(((*range(9),), (*range(9),), (False, True))):
        assert {place[number] for place in a} == {place[number] for place in b} == set(values)
    equal = [sum(p[number] == q[number] for p, q in zip(a, b, strict=True)) / 200 for number in range(3)]
    assert equal[0] < 0.3 > equal[1]
    assert 0.3 < equal[2] < 0.7


def test_odd_sizes_are_resized(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}A" / "a.png", np.zeros((37, 51, 3), dtype=np.uint8))
        write(tmp_path / f"{split}B" / "b.png", np.zeros((90, 21, 3), dtype=np.uint8))
    dataset = open_dataset(config(tmp_path, load_size=20), "train")
    for pair in (dataset.load(0), dataset.load(0, np.random.default_rng(0))):
        assert pair.input.shape == pair.target.shape == (3, SIZE, SIZE)


def test_grey_sides(folder: Path) -> None:
    there = open_dataset(config(folder, in_channels=1), "train").load(0)
    assert (there.input.shape[0], there.target.shape[0]) == (1, 3)
    grey = np.array(Image.fromarray(side(A[0], "A")).convert("L"))
    assert torch.equal(to_uint8(there.input)[0], torch.from_numpy(grey))
    back = open_dataset(config(folder, in_channels=1, direction="BtoA"), "train").load(0)
    assert (back.input.shape[0], back.target.shape[0]) == (1, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_paired_layout_can_be_used_without_its_pairs(tmp_path: Path, layout: str) -> None:
    names = [f"{number}.png" for number in range(6)]
    for split in ("train", "val", "test"):
        LAYOUTS[layout](tmp_path, split, names)
    dataset = open_dataset(config(tmp_path), "train")
    assert dataset.names == names
    drawn = {which(dataset.load(1, np.random.default_rng(seed)).target, names, "B") for seed in range(60)}
    assert drawn == set(names)
    assert which(dataset.load(1).input, names, "A") == "1.png"


def test_the_embedded_set_without_its_pairs() -> None:
    c = DataConfig(load_size=36, crop_size=32, synthetic_train=5, synthetic_test=2)
    pairs, sets = (open_dataset(replace(c, unpaired=unpaired), "train") for unpaired in (False, True))
    assert torch.equal(pairs.load(2).input, sets.load(2).input)
    assert pairs.fingerprint != sets.fingerprint
    assert len(sets) == sets.target_count == 5


def held_out(dataset: ImageDataset) -> set[str]:
    return {which(dataset.load_target(index), B, "B") for index in range(dataset.target_count)}


def test_each_side_has_its_own_held_out_images(tmp_path: Path) -> None:
    write_sets(tmp_path, "train", A, B)
    write_sets(tmp_path, "test", A[:2], B[:2])
    splits = {split: open_dataset(config(tmp_path), split) for split in ("train", "val", "test")}
    assert [len(dataset) for dataset in splits.values()] == [6, 1, 2]
    assert [dataset.target_count for dataset in splits.values()] == [11, 1, 2]
    assert sorted(splits["train"].names + splits["val"].names) == A
    assert held_out(splits["train"]) | held_out(splits["val"]) == set(B)
    assert not held_out(splits["train"]) & held_out(splits["val"])
    back = open_dataset(config(tmp_path, direction="BtoA"), "val")
    assert set(back.names) == held_out(splits["val"]), "the same images in both directions"


def test_folders_without_splits(tmp_path: Path) -> None:
    write_sets(tmp_path, "", A, B)
    splits = {split: open_dataset(config(tmp_path), split) for split in ("train", "val", "test")}
    assert [len(dataset) for dataset in splits.values()] == [5, 1, 1]
    assert [dataset.target_count for dataset in splits.values()] == [10, 1, 1]


def test_one_image_a_side(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_sets(tmp_path, split, A[:1], B[:1])
    (batch,) = eval_batches(open_dataset(config(tmp_path), "train"))
    assert batch.input.shape[0] == 1
    assert not batch.paired
    assert not batch.to("cpu").paired
    assert next(train_batches(open_dataset(config(tmp_path), "train"), 3, 0)).input.shape[0] == 3


def test_at_most_so_many_images_of_each_side(folder: Path) -> None:
    dataset = open_dataset(config(folder, max_images=4), "train")
    assert dataset.names == A[:4]
    assert dataset.target_count == 4
    assert held_out(dataset) == set(B[:4])


def test_stacking_pairs_and_others() -> None:
    pair = open_dataset(DataConfig(load_size=16, crop_size=16, synthetic_test=2), "val").load(0)
    assert stack_pairs([pair]).paired
    assert not stack_pairs([pair, replace(pair, paired=False)]).paired


def test_the_fingerprint_tells_both_sides(folder: Path) -> None:
    def fingerprint(**changes) -> str:
        return open_dataset(config(folder, **changes), "train").fingerprint

    first = fingerprint()
    assert first == fingerprint(load_size=99, flip=True)
    others = [fingerprint(direction="BtoA"), fingerprint(crop_size=8), fingerprint(max_images=3)]
    write(folder / "trainB" / "zebra 12.png", side("x", "B"))
    others.append(fingerprint())
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["trainB", "valB", "testB"], "no images of side B found; expected them in trainB/, B/train/ or B/"),
        (["trainA"], "has A val, test but no A training images"),
    ],
)
def test_sides_that_are_missing(folder: Path, missing: list[str], message: str) -> None:
    for name in missing:
        for file in (folder / name).iterdir():
            file.unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(config(folder), "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_to_hold_any_out(tmp_path: Path) -> None:
    write_sets(tmp_path, "train", A[:1], B)
    write_sets(tmp_path, "test", A, B)
    with pytest.raises(DataError, match="has 1 A training images, too few to hold out val images"):
        open_dataset(config(tmp_path), "train")


def test_files_that_do_not_fit_are_named(folder: Path) -> None:
    write(folder / "trainB" / B[1], side("x", "B", 8))
    damaged = folder / "trainA" / A[2]
    damaged.write_bytes(damaged.read_bytes()[:99])
    dataset = open_dataset(config(folder), "train")
    assert dataset.load_target(1).shape[1:] == (16, 16), "images of any size are resized"
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        dataset.load(2)
    assert str(caught.value).startswith(str(damaged))


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(config(tmp_path / "gone"), "train")
    with pytest.raises(DataError, match="no images found"):
        open_dataset(config(tmp_path), "train")
    write_pairs(tmp_path / "train", A)
    assert len(open_dataset(config(tmp_path), "train")) == 5
