"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same random state and one thread: on images of a few pixels two threads mostly wait for each
    other, many times as long on a busy machine. Tests of threads set their number themselves."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real images and weights: GANCOMP_SHARED, or ``shared`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("GANCOMP_SHARED", default))
    if not path.is_dir():
        pytest.skip("real images and weights are not here (set GANCOMP_SHARED to their folder)")
    return path
