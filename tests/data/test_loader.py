"""Batches are a function of seed and step, for any number of workers and wherever a run goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from gancomp.data import Batch, DataConfig, PairedDataset, eval_batches, open_dataset, train_batches
from gancomp.data.loader import batch_indices
from gancomp.errors import ConfigError, DataError

from .conftest import write_pairs


def folder(root: Path, count: int = 30, **changes) -> PairedDataset:
    write_pairs(root, [f"{number}.png" for number in range(count)])
    return open_dataset(DataConfig(root=str(root), load_size=16, crop_size=12, **changes), "train")


def synthetic(count: int = 7) -> PairedDataset:
    return open_dataset(DataConfig(load_size=20, crop_size=16, synthetic_train=count, synthetic_test=5), "train")


def equal(a: Batch, b: Batch) -> bool:
    return a.names == b.names and torch.equal(a.input, b.input) and torch.equal(a.target, b.target)


def take(dataset: PairedDataset, count: int, batch_size: int = 4, seed: int = 3, **options) -> list[Batch]:
    batches = train_batches(dataset, batch_size, seed, **options)
    taken = list(islice(batches, count))
    batches.close()
    return taken


def test_an_epoch_sees_every_image_once_in_a_new_order() -> None:
    orders = []
    for epoch in range(3):
        seen = [pair for step in range(6 * epoch, 6 * epoch + 6) for pair in batch_indices(24, 4, seed=1, step=step)]
        assert {e for e, _ in seen} == {epoch}
        assert sorted(i for _, i in seen) == list(range(24))
        orders.append([i for _, i in seen])
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != list(range(24))
    assert batch_indices(24, 4, seed=1, step=7) == batch_indices(24, 4, seed=1, step=7) != batch_indices(24, 4, seed=2, step=7)


def test_images_that_do_not_fill_a_batch_wait_for_another_epoch() -> None:
    counts: Counter[int] = Counter()
    for step in range(200):
        batch = batch_indices(10, 4, seed=0, step=step)
        assert len({i for _, i in batch}) == 4
        assert batch[0][0] == step // 2
        counts.update(i for _, i in batch)
    assert set(counts) == set(range(10))
    assert all(50 < count < 110 for count in counts.values())


def test_a_set_smaller_than_a_batch_is_repeated() -> None:
    for step in range(3):
        counts = Counter(i for _, i in batch_indices(3, 8, seed=0, step=step))
        assert sorted(counts.values()) == [2, 3, 3]
    dataset = synthetic(1)
    (batch,) = take(dataset, 1, batch_size=6)
    assert batch.names == ("train-00000",) * 6
    assert len({image.numpy().tobytes() for image in batch.input}) > 1, "repeats are augmented on their own"


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("make", [folder, lambda root: synthetic()])
def test_workers_change_nothing(tmp_path: Path, workers: int, make) -> None:
    dataset = make(tmp_path)
    here, there = take(dataset, 9), take(dataset, 9, workers=workers)
    assert all(map(equal, here, there))
    assert not any(map(equal, here, take(dataset, 9, seed=4)))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_the_middle(tmp_path: Path, workers: int) -> None:
    dataset = folder(tmp_path)
    whole = take(dataset, 14)
    for start in (1, 5, 6, 7, 13):
        assert all(map(equal, whole[start:], take(dataset, 14 - start, start_step=start, workers=workers)))


def test_augmentation_differs_between_epochs(tmp_path: Path) -> None:
    dataset = folder(tmp_path, 12)
    batches = take(dataset, 20, batch_size=1)
    images: dict[str, set[bytes]] = {}
    for batch in batches:
        images.setdefault(batch.names[0], set()).add(batch.input.numpy().tobytes())
    assert len(images) == 10
    assert any(len(forms) == 2 for forms in images.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_stops_the_loader_with_its_name(tmp_path: Path, workers: int) -> None:
    dataset = folder(tmp_path)
    victim = tmp_path / dataset.names[5]
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match=f"{victim.name}: cannot be read as an image"):
        take(dataset, 12, workers=workers)


def test_workers_end_with_the_loader(tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    take(dataset, 2, workers=3)
    deadline = time.monotonic() + 10
    while (left := [t for t in threading.enumerate() if t.name.startswith("gancomp-data")]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def test_workers_prepare_only_a_few_batches_ahead(tmp_path: Path, monkeypatch) -> None:
    dataset = folder(tmp_path)
    loaded: list[int] = []
    original = dataset.load
    monkeypatch.setattr(dataset, "load", lambda index, rng: (loaded.append(index), original(index, rng))[1])
    batches = train_batches(dataset, 2, seed=0, workers=2)
    next(batches)
    time.sleep(0.2)
    assert len(loaded) <= 8
    batches.close()


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    dataset.names = []
    with pytest.raises(ConfigError, match="the train split is empty"):
        take(dataset, 1)


def test_evaluation_sees_every_pair_once_in_order(tmp_path: Path) -> None:
    dataset = folder(tmp_path, 30)
    for batch_size, sizes in ((5, [5, 5, 5, 5, 4]), (24, [24]), (100, [24])):
        batches = list(eval_batches(dataset, batch_size))
        assert [len(batch.names) for batch in batches] == sizes
        assert [name for batch in batches for name in batch.names] == dataset.names
    assert torch.equal(torch.cat([batch.input for batch in eval_batches(dataset, 7)]), batches[0].input)
    assert torch.equal(batches[0].target[9], dataset.load(9).target)
