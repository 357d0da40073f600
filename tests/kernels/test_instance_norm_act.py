"""InstanceNorm in Triton against the float64 reference, with PyTorch's own op as the measure of error."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

from gancomp import ops
from gancomp.ops import reference
from gancomp.testing import LAYOUTS, assert_accurate, images, laid_out, poisoned_outputs, unchanged, with_inactive

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Blocks of every kind: a full one, one with a tail, and planes that are too large for registers. The interpreter is slow.
SHAPES = [(2, 16, 8, 8), (1, 16, 5, 7), (1, 4, 131, 129)]
if os.environ.get("TRITON_INTERPRET") != "1":
    SHAPES += [(2, 64, 64, 64), (1, 8, 128, 128), (1, 4, 256, 256)]
EPS = 1e-5


def stock(x, weight, bias, residual, relu):
    channels = x.shape[1]
    weight, bias = (None if vector is None else vector[:channels] for vector in (weight, bias))
    y = F.instance_norm(x, weight=weight, bias=bias, eps=EPS)
    y = F.relu(y) if relu else y
    return y if residual is None else y + residual


def exact(x, weight, bias, residual, relu):
    return reference.instance_norm_act(x, weight, bias, residual, relu, EPS)


def kernel(x, weight, bias, residual, relu):
    return ops.instance_norm_act(x, weight, bias, relu=relu, residual=residual, eps=EPS, backend="triton")


def leaves(tensors, dtype=None):
    """Copies that require gradients, memory layout kept."""
    return [None if t is None else (t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]


def results(function, tensors, grad, relu):
    """The output and the gradients of all tensors, in order."""
    y = function(*tensors, relu)
    y.backward(grad)
    return [y.detach(), *[tensor.grad for tensor in tensors if tensor is not None]]


def check(tensors, grad, relu, spare=0):
    """Compare output and gradients; ``spare`` inactive entries at the end of the parameters have a zero gradient."""
    x, weight, bias, residual = tensors
    ours = leaves((x, *(None if v is None else with_inactive(v, spare) for v in (weight, bias)), residual))
    theirs, truth = leaves(tensors), leaves(tensors, torch.float64)
    with poisoned_outputs(), unchanged(*ours):
        actual = results(kernel, ours, grad, relu)
    measure, expected = results(stock, theirs, grad, relu), results(exact, truth, grad.double(), relu)
    assert actual[0].is_contiguous()
    names = [
        "y",
        *[f"gradient of {n}" for n, t in zip(("x", "weight", "bias", "residual"), tensors, strict=True) if t is not None],
    ]
    for name, got, one, other in zip(names, actual, measure, expected, strict=True):
        if got.dim() == 1:
            assert torch.equal(got[len(other) :], torch.zeros_like(got[len(other) :])), f"{name}: inactive part"
            got = got[: len(other)]
        assert_accurate(got, one, other, name)


def inputs(shape, dtype, device, layout="contiguous", mean=0.0):
    x = laid_out(images(*shape, dtype=dtype, mean=mean).to(device), layout)
    residual = laid_out(images(*shape, dtype=dtype, seed=1).to(device), layout)
    grad = laid_out(images(*shape, dtype=dtype, seed=2).to(device), layout)
    weight, bias = (torch.randn(shape[1]).to(device, dtype) for _ in range(2))
    return (x, weight, bias, residual), grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients(shape, dtype, relu, device):
    tensors, grad = inputs(shape, dtype, device)
    check(tensors, grad, relu, spare=3)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("used", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)], ids=str)
def test_optional_parts(used, relu, device):
    tensors, grad = inputs((2, 8, 4, 6), torch.float32, device)
    check((tensors[0], *(t if use else None for t, use in zip(tensors[1:], used, strict=True))), grad, relu)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, device):
    tensors, grad = inputs((2, 8, 4, 6), torch.float32, device, layout)
    check(tensors, grad, relu=True)


@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (1, 4, 131, 129)], ids=str)
def test_large_mean_does_not_cancel(shape, device):
    tensors, grad = inputs(shape, torch.float32, device, mean=1000.0)
    check(tensors, grad, relu=False)


def test_frozen_tensors_get_no_gradient_and_change_no_other(device):
    tensors, grad = inputs((1, 2, 4, 6), torch.float32, device)
    _, *gradients = results(kernel, leaves(tensors), grad, True)
    for trained in range(4):
        some = [t.detach().requires_grad_(index == trained) for index, t in enumerate(tensors)]
        kernel(*some, True).backward(grad)
        assert torch.equal(some[trained].grad, gradients[trained])
        assert all(t.grad is None for index, t in enumerate(some) if index != trained)


def test_constant_and_single_pixel_planes_give_the_bias(device):
    bias = torch.tensor([0.5, -2.0], device=device)
    for shape in ((2, 2, 1, 1), (1, 2, 3, 5)):
        y = kernel(torch.full(shape, 7.0, device=device), None, bias, None, False)
        assert torch.equal(y, bias.view(1, 2, 1, 1).expand(shape))


def test_a_nan_stays_in_its_plane_and_stays_a_nan(device):
    x = images(2, 2, 4, 4).to(device)
    x[0, 1, 2, 3] = float("nan")
    y = kernel(x, None, None, None, True)
    assert y[0, 1].isnan().all()
    assert y.isnan().sum() == 16


def test_parameter_gradients_are_bitwise_repeatable(device):
    tensors, grad = inputs((4, 2, 8, 8), torch.float32, device)
    first, second = (results(kernel, leaves(tensors), grad, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_empty_batch(device):
    weight = torch.ones(3, device=device, requires_grad=True)
    x = torch.empty(0, 2, 4, 4, device=device, requires_grad=True)
    y = kernel(x, weight, None, None, True)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 2, 4, 4)
    assert torch.equal(weight.grad, torch.zeros(3, device=device))


def test_no_second_derivative(device):
    x = images(1, 1, 4, 4).to(device).requires_grad_()
    (gradient,) = torch.autograd.grad(kernel(x, None, None, None, False).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
