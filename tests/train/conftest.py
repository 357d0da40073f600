"""Tiny images and tiny networks: a training step of a few milliseconds."""

from __future__ import annotations

import pytest

from gancomp.data import DataConfig, PairedDataset, open_dataset

TINY = DataConfig(load_size=36, crop_size=32, synthetic_train=6, synthetic_test=3)


@pytest.fixture(scope="session")
def train_set() -> PairedDataset:
    return open_dataset(TINY, "train")


@pytest.fixture(scope="session")
def val_set() -> PairedDataset:
    return open_dataset(TINY, "val")
