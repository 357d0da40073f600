"""When the CUDA kernels run a call, and that the torch ops behind them hold what tracing assumes of them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gancomp import _C, ops
from gancomp.errors import BackendError, ConfigError
from gancomp.ops import backend, cuda

CALLS = {
    "instance_norm_act": lambda x: (x,),
    "reflect_pad_depthwise_conv3x3": lambda x: (x, x.new_empty(x.shape[1], 1, 3, 3)),
}


@pytest.fixture
def gpu(monkeypatch, built):
    """A machine with a GPU and a build with kernels for it, as far as the choice of a backend sees it; tensors are fake."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_C, "cuda_architectures", "80 86 89 90a")
    monkeypatch.setattr(cuda, "_ops", built.ops)
    monkeypatch.delenv("GANCOMP_BACKEND", raising=False)
    backend._cuda_build_verdict.cache_clear()
    with FakeTensorMode():
        yield torch.device("cuda", 0)
    backend._cuda_build_verdict.cache_clear()


def line(text: str, name: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}:"))


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_runs_what_lies_on_a_gpu(op, dtype, gpu):
    call = CALLS[op](torch.empty(2, 3, 8, 8, dtype=dtype, device=gpu))
    assert line(ops.explain(op, *call), "cuda") == "cuda: runs"
    y = getattr(ops, op)(*call)
    assert (y.shape, y.dtype, y.device) == (call[0].shape, dtype, gpu)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_master_weights_stay_float32_under_autocast(dtype, gpu, monkeypatch):
    # Autocast itself turns itself off where there is no GPU.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: dtype)
    x, weight = torch.empty(2, 3, 8, 8, dtype=dtype, device=gpu), torch.empty(3, 1, 3, 3, device=gpu)
    assert backend.unify_under_autocast(x, weight)[1] is weight
    assert backend.unify_under_autocast(x.float(), weight, convolution=True)[0].dtype == dtype
    _, other = backend.unify_under_autocast(x, images=(x.float(),))
    assert other.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_are_float32_or_like_the_image(dtype, gpu):
    x, weight = torch.empty(2, 3, 8, 8, dtype=dtype, device=gpu), torch.empty(3, 1, 3, 3, device=gpu)
    assert ops.reflect_pad_depthwise_conv3x3(x, weight).dtype == dtype
    with pytest.raises(ConfigError, match="weight is"):
        ops.reflect_pad_depthwise_conv3x3(x.float(), weight.to(dtype))


@pytest.mark.parametrize("op", CALLS)
def test_what_the_kernels_cannot_take_has_a_reason(op, gpu, monkeypatch):
    def reason(x):
        backend._cuda_build_verdict.cache_clear()
        with pytest.raises(BackendError) as caught:
            getattr(ops, op)(*CALLS[op](x), backend="cuda")
        return str(caught.value)

    assert "x is float64" in reason(torch.empty(1, 1, 8, 8, dtype=torch.float64, device=gpu))
    assert "1 planes of 4294967296 pixels" in reason(torch.empty(1, 1, 2**16, 2**16, device=gpu))
    assert "x is on cpu" in reason(torch.empty(1, 1, 8, 8))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "has compute capability 7.5, the kernels are built for 80 86 89 90a" in reason(torch.empty(1, 1, 8, 8, device=gpu))
    monkeypatch.setattr(_C, "cuda_architectures", "")
    assert "built without CUDA kernels (build it with GANCOMP_CUDA=1)" in reason(torch.empty(1, 1, 8, 8, device=gpu))


def arguments(name: str, masters: bool):
    """A call of every op and of its backward, with what the first gives to the second."""
    dtype, weight_dtype = (torch.float16, torch.float32) if masters else (torch.float32, torch.float32)

    def image(*shape):
        return torch.randn(shape).to(dtype)

    def weight(*shape):
        return torch.randn(shape).to(weight_dtype)

    x, grad, vector = image(2, 3, 4, 6), image(2, 3, 4, 6), weight(5)
    if name == "instance_norm_act":
        return (x, vector, None, x, None, True, 1e-5), lambda out: (
            grad, x, vector, None, None, *out[1:], True, True, False,
        )  # fmt: skip
    if name == "reflect_pad_depthwise_conv3x3":
        call = x, weight(4, 1, 3, 3), weight(4), None
        return call, lambda out: (grad, *call, True, True, True)
    if name == "sliced_conv2d":
        call = x, weight(6, 4, 3, 3), weight(7), None
        return (*call, 5, 2, 1, 1, False), lambda out: (image(*out[0].shape), *call, 2, 1, 1, False, False, True, True)
    if name == "sliced_conv_transpose2d":
        call = x, weight(4, 6, 3, 3), None, torch.tensor([4, 2], dtype=torch.int32)
        return (*call, 5, 2, 1, 1, False), lambda out: (image(*out[0].shape), *call, 2, 1, 1, False, True, True, False)
    if name == "separable_resblock":
        call = x, weight(4, 1, 3, 3), weight(6, 4, 1, 1), weight(6, 1, 3, 3), weight(4, 6, 1, 1), None, None
        return (*call, 1.0, 5, 1e-5, False), lambda out: (grad, *call, *out[1:], 1.0, 5, 1e-5, False, True)
    return (x, image(*x.shape), grad, None, None, None, True, 0.2, 1e-5), lambda out: (
        grad, x, grad, grad, *out[1:3], None, True, False, 0.2,
    )  # fmt: skip


NAMES = (
    "instance_norm_act",
    "reflect_pad_depthwise_conv3x3",
    "sliced_conv2d",
    "sliced_conv_transpose2d",
    "separable_resblock",
    "spade_modulate",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masters", [False, True])
def test_schemas_and_fakes(name, masters, built):
    """No op changes or returns its arguments, and its outputs are as its fake says, strides and dtypes included."""
    forward, backward = arguments(name, masters)
    op, gradient = getattr(built.ops, name).widths, getattr(built.ops, f"{name}_backward").widths
    out = op(*forward)
    out = out if isinstance(out, tuple | list) else (out,)
    for function, call in ((op, forward), (gradient, backward(out))):
        torch.library.opcheck(function, call, test_utils=("test_schema", "test_faketensor"))
