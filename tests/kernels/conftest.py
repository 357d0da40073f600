"""Where the Triton kernels are tested: on a GPU, or in Triton's interpreter, which needs a process of its own."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The device of the tensors: the CPU under the interpreter, else a GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device (test_interpreter.py runs this in Triton's interpreter)")
    return torch.device("cuda")
