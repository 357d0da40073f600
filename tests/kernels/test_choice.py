"""When Triton runs a call, and that every call it cannot run has a reason. Fake tensors stand in for those of a GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gancomp import ops
from gancomp.errors import BackendError
from gancomp.ops import backend

pytest.importorskip("triton", reason="triton is not installed")

CALLS = {
    "instance_norm_act": lambda x: (x,),
    "reflect_pad_depthwise_conv3x3": lambda x: (x, x.new_empty(x.shape[1], 1, 3, 3)),
    "separable_resblock": lambda x: (
        x, x.new_empty(x.shape[1], 1, 3, 3), x.new_empty(4, x.shape[1], 1, 1), x.new_empty(4, 1, 3, 3),
        x.new_empty(x.shape[1], 4, 1, 1),
    ),
    "sliced_conv2d": lambda x: (x, x.new_empty(4, x.shape[1], 1, 1)),
    "sliced_conv_transpose2d": lambda x: (x, x.new_empty(x.shape[1], 4, 1, 1)),
    "spade_modulate": lambda x: (x, x, x),
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice of a backend sees it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("CC", "cc")
    backend._launch_verdict.cache_clear()
    with FakeTensorMode():
        yield torch.device("cuda", 0)
    backend._launch_verdict.cache_clear()


def line(text: str, name: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}:"))


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_runs_what_lies_on_a_gpu(op, dtype, gpu):
    explanation = ops.explain(op, *CALLS[op](torch.empty(2, 3, 8, 8, dtype=dtype, device=gpu)))
    assert line(explanation, "triton") == "triton: runs"


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 1, 8, 8), torch.float64, "x is float64"),
        ((1, 1, 2**16, 2**16), torch.float32, "1 planes of 4294967296 pixels"),
        ((2**22, 2**10, 2, 2), torch.float32, "4294967296 planes of 4 pixels"),
    ],
)
def test_what_the_kernels_cannot_take_falls_to_the_reference_or_raises(op, shape, dtype, reason, gpu):
    call = CALLS[op](torch.empty(shape, dtype=dtype, device=gpu))
    explanation = ops.explain(op, *call)
    assert reason in line(explanation, "triton")
    assert line(explanation, "reference") == "reference: runs"
    with pytest.raises(BackendError, match=reason):
        getattr(ops, op)(*call, backend="triton")


@pytest.mark.parametrize("op", CALLS)
def test_large_planes_and_batches_are_taken(op, gpu):
    for shape in ((1, 1, 2**15, 2**15), (64, 1024, 1024, 1024)):
        assert line(ops.explain(op, *CALLS[op](torch.empty(shape, device=gpu))), "triton") == "triton: runs"


def test_a_gpu_that_is_too_old(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "compute capability 6.1" in ops.explain("instance_norm_act", torch.empty(1, 1, 4, 4, device=gpu))


def test_triton_needs_a_compiler(gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C compiler" in ops.explain("instance_norm_act", torch.empty(1, 1, 4, 4, device=gpu))


@pytest.mark.parametrize("op", CALLS)
def test_the_cpu_needs_the_interpreter_from_the_start(op, monkeypatch):
    from gancomp.kernels import common

    assert not common.INTERPRETED
    call = CALLS[op](torch.zeros(1, 1, 4, 4))
    for late in (False, True):
        if late:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert "x is on cpu (start with TRITON_INTERPRET=1" in line(ops.explain(op, *call), "triton")
        with pytest.raises(BackendError, match="x is on cpu"):
            getattr(ops, op)(*call, backend="triton")
