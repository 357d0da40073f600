"""The check of a GPU's kernels, on kernels that run in Triton's interpreter or are wrong on purpose; no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from gancomp import ops
from gancomp.ops import backend, reference, selfcheck

OPS = (
    "instance_norm_act", "reflect_pad_depthwise_conv3x3", "sliced_conv2d", "sliced_conv_transpose2d", "separable_resblock",
    "spade_modulate",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_the_reference_passes(op, dtype):
    assert selfcheck.verdict(op, "reference", CPU, dtype) is None


@pytest.mark.parametrize("op", OPS)
def test_native_kernels_pass(op):
    assert selfcheck.verdict(op, "cpu", CPU, torch.float32) is None


@pytest.mark.slow
def test_triton_kernels_pass_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    code = (
        "import torch; from gancomp.ops import selfcheck; import sys\n"
        f"found = [selfcheck.verdict(op, 'triton', torch.device('cpu'), torch.float32) for op in {OPS[:2] + OPS[5:]}]\n"
        "sys.exit(next((text for text in found if text), 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def wrong(monkeypatch):
    """Convolutions whose result, or whose gradient of the weight, is that of a neighbouring slice."""

    def use(part):
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight, bias, *settings):
                ctx.save_for_backward(x, weight, bias)
                ctx.settings = settings
                shift = int(part == "result")
                return reference.sliced_conv2d(x, weight.roll(shift, 0), bias, *settings[:3], "zeros")

            @staticmethod
            def backward(ctx, grad):
                x, weight, bias = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
                with torch.enable_grad():
                    y = reference.sliced_conv2d(x, weight, bias, *ctx.settings[:3], "zeros")
                grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, weight, bias), grad)
                return grad_x, grad_weight.roll(int(part == "gradient"), 1), grad_bias, *[None] * 4

        monkeypatch.setattr("gancomp.ops.sliced_conv.SlicedConv2dCpu", Wrong)
        selfcheck.verdict.cache_clear()

    yield use
    selfcheck.verdict.cache_clear()


@pytest.mark.parametrize(("part", "what"), [("result", "the result is off"), ("gradient", "gradient of tensor 1 is off")])
def test_a_wrong_kernel_has_a_reason(part, what, wrong):
    wrong(part)
    reason = selfcheck.verdict("sliced_conv2d", "cpu", CPU, torch.float32)
    assert reason.startswith("call 0 of its check on cpu in float32: ")
    assert what in reason


def test_a_kernel_that_fails_has_a_reason(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image is available\nsecond line")

    monkeypatch.setattr("gancomp.ops.sliced_conv.SlicedConv2dCpu.apply", fail)
    selfcheck.verdict.cache_clear()
    reason = selfcheck.verdict("sliced_conv2d", "cpu", CPU, torch.float32)
    assert reason == "call 0 of its check on cpu in float32: no kernel image is available"
    selfcheck.verdict.cache_clear()


def test_auto_passes_over_what_fails_its_check_and_says_so_once(monkeypatch):
    x = torch.empty(1, 3, 8, 8, device="meta")
    gpu = type("Images", (), {"device": torch.device("cuda", 0), "dtype": torch.float32})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(selfcheck, "verdict", lambda op, name, device, dtype: "its check failed" if name == "cuda" else None)
    backend._checked.cache_clear()
    verdicts = {"cuda": lambda: None, "triton": lambda: None, "reference": lambda: None}
    with pytest.warns(RuntimeWarning, match="instance_norm_act: the cuda kernels are not used: its check failed") as caught:
        chosen = [backend.choose("instance_norm_act", "auto", verdicts, gpu) for _ in range(2)]
    assert chosen == ["triton", "triton"]
    assert len(caught) == 1
    assert "cuda: no, its check failed" in backend.describe("instance_norm_act", "auto", verdicts, gpu)
    assert backend.choose("instance_norm_act", "cuda", verdicts, gpu) == "cuda", "a named backend is the user's decision"
    assert backend.choose("instance_norm_act", "auto", verdicts, x) == "cuda", "nothing runs for tensors without data"
    backend._checked.cache_clear()


def test_every_op_has_a_check():
    explained = {name for name in ops.__all__ if name in OPS}
    assert explained == set(OPS)
    assert all(selfcheck._cases(op) for op in OPS)
