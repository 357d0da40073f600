"""A miniature of every stage, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gancomp.data import DataConfig
from gancomp.pipeline.compress import CompressRun
from gancomp.pipeline.settings import TeacherModel
from gancomp.search import SearchOptions
from gancomp.train import DistillOptions, TrainOptions

STEPS = {"batch_size": 2, "ndf": 4, "d_layers": 1, "log_every": 1, "save_every": 2, "sample_every": 0}


def mini(out: Path, **changes) -> CompressRun:
    """A compression that takes seconds."""
    settings = {
        "out": str(out),
        "budget": "4x",
        "space": "8,4",
        "data": DataConfig(load_size=18 * 2, crop_size=32, synthetic_train=16, synthetic_test=4),
        "model": TeacherModel(ngf=8, n_blocks=3),
        "train": TrainOptions(steps=4, **STEPS),
        "supernet": DistillOptions(steps=4, sampling="sandwich", **STEPS),
        "search": SearchOptions(population=4, generations=2, objective="l1"),
        "finetune": DistillOptions(steps=3, **STEPS),
    }
    return CompressRun(**{**settings, **changes})


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished miniature."""
    from gancomp.pipeline.compress import run_compress

    out = tmp_path_factory.mktemp("compress") / "run"
    torch.set_num_threads(1)  # as the tests that repeat this run; sums depend on the number of threads
    run_compress(mini(out), progress=False)
    return out
