"""Where the Triton kernels are tested: on a GPU, or in Triton's interpreter, which needs a process of its own."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device of the tensors: the CPU under the interpreter, else a GPU, where PyTorch's own op keeps to float32."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device (test_interpreter.py runs this in Triton's interpreter)")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda")
