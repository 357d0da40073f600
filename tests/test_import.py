"""Importing gancomp is cheap: no CUDA, no Triton, nothing that only one verb needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gancomp

# What only plots, the command line, logs, kernels or data need.
HEAVY = ("triton", "matplotlib", "tyro", "tensorboard", "scipy", "yaml", "tqdm")

PROGRAM = """
import json, sys, time
import torch
before, start = set(sys.modules), time.process_time()
import gancomp
seconds = time.process_time() - start
print(json.dumps({
    "seconds": seconds,
    "new": sorted(set(sys.modules) - before),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    """What a fresh process that imports torch, then gancomp, says of itself."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_are_left_alone(imported, package):
    assert package not in {name.partition(".")[0] for name in imported["new"]}


def test_cuda_is_not_touched(imported):
    assert not imported["cuda"]


def test_kernels_and_tests_are_left_alone(imported):
    assert not [name for name in imported["new"] if name.startswith(("gancomp.kernels", "gancomp.testing", "gancomp.cli"))]


def test_the_import_is_fast(imported):
    assert imported["seconds"] < 1.0, "seconds of processor time beyond those of torch"


def test_the_public_names_exist():
    assert len(gancomp.__all__) == len(set(gancomp.__all__))
    for name in gancomp.__all__:
        assert getattr(gancomp, name) is not None
    assert Path(gancomp.__file__).with_name("py.typed").exists()
