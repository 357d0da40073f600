"""The depthwise convolution in Triton against the float64 reference, with PyTorch's own ops as the measure of error."""

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
# The smallest planes, where both ends of a line reflect into each other; lines of odd length; several tiles down and across.
SHAPES = [(2, 4, 2, 2), (1, 4, 2, 3), (1, 4, 3, 2), (2, 4, 7, 5), (1, 2, 19, 70)]
if os.environ.get("TRITON_INTERPRET") != "1":
    SHAPES += [(2, 64, 64, 64), (1, 4, 256, 192)]


def stock(x, weight, bias):
    channels = x.shape[1]
    bias = None if bias is None else bias[:channels]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight[:channels], bias, groups=channels)


def kernel(x, weight, bias):
    return ops.reflect_pad_depthwise_conv3x3(x, weight, bias, backend="triton")


def leaves(tensors, dtype=None):
    """Copies that require gradients, memory layout kept."""
    return [None if t is None else (t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]


def results(function, tensors, grad):
    """The output and the gradients of all tensors, in order."""
    y = function(*tensors)
    y.backward(grad)
    return [y.detach(), *[tensor.grad for tensor in tensors if tensor is not None]]


def check(tensors, grad, spare=0):
    """Compare output and gradients; ``spare`` inactive entries at the end of the parameters have a zero gradient."""
    x, *parameters = tensors
    channels = x.shape[1]
    ours = leaves((x, *(None if p is None else with_inactive(p, spare) for p in parameters)))
    with poisoned_outputs(), unchanged(*ours):
        actual = results(kernel, ours, grad)
    measure = results(stock, leaves(tensors), grad)
    expected = results(reference.reflect_pad_depthwise_conv3x3, leaves(tensors, torch.float64), grad.double())
    assert actual[0].is_contiguous()
    for parameter in range(2, len(actual)):
        inactive = actual[parameter][channels:]
        assert torch.equal(inactive, torch.zeros_like(inactive))
        actual[parameter] = actual[parameter][:channels]
    names = ("y", "gradient of x", "gradient of weight", "gradient of bias")
    for got, one, other, name in zip(actual, measure, expected, names, strict=False):
        assert_accurate(got, one, other, name)


def inputs(shape, dtype, device, layout="contiguous"):
    x = laid_out(images(*shape, dtype=dtype).to(device), layout)
    grad = laid_out(images(*shape, dtype=dtype, seed=2).to(device), layout)
    weight, bias = torch.randn(shape[1], 1, 3, 3).to(device, dtype), torch.randn(shape[1]).to(device, dtype)
    return (x, weight, bias), grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, device):
    tensors, grad = inputs(shape, dtype, device)
    check(tensors, grad, spare=3)


def test_without_bias(device):
    (x, weight, _), grad = inputs((2, 4, 4, 6), torch.float32, device)
    check((x, weight, None), grad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, device):
    tensors, grad = inputs((2, 4, 4, 6), torch.float32, device, layout)
    check(tensors, grad)


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (3, 3), (5, 2)], ids=str)
def test_gradient_of_whole_numbers_is_exact(size, device):
    """Small whole numbers have no rounding: the kernel is the adjoint of the reference to the last bit."""
    tensors = [torch.randint(-4, 5, s).float().to(device) for s in ((2, 3, *size), (3, 1, 3, 3), (3,))]
    grad = torch.randint(-4, 5, (2, 3, *size)).float().to(device)
    actual = results(kernel, leaves(tensors), grad)
    expected = results(reference.reflect_pad_depthwise_conv3x3, leaves(tensors, torch.float64), grad.double())
    assert all(torch.equal(a.double(), b) for a, b in zip(actual, expected, strict=True))


def test_frozen_tensors_get_no_gradient_and_change_no_other(device):
    tensors, grad = inputs((1, 2, 4, 6), torch.float32, device)
    _, *gradients = results(kernel, leaves(tensors), grad)
    for trained in range(3):
        some = [t.detach().requires_grad_(index == trained) for index, t in enumerate(tensors)]
        kernel(*some).backward(grad)
        assert torch.equal(some[trained].grad, gradients[trained])
        assert all(t.grad is None for index, t in enumerate(some) if index != trained)


def test_parameter_gradients_are_bitwise_repeatable(device):
    tensors, grad = inputs((4, 2, 6, 6), torch.float32, device)
    first, second = (results(kernel, leaves(tensors), grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_nan_reaches_its_neighbours_only(device):
    x = images(1, 2, 6, 6).to(device)
    x[0, 1, 0, 0] = float("nan")
    y = kernel(x, torch.ones(2, 1, 3, 3, device=device), None)
    assert y.isnan().nonzero().tolist() == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 1, 1]]


def test_empty_batch(device):
    weight, bias = torch.ones(3, 1, 3, 3, device=device, requires_grad=True), torch.ones(3, device=device, requires_grad=True)
    x = torch.empty(0, 2, 4, 4, device=device, requires_grad=True)
    y = kernel(x, weight, bias)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 2, 4, 4)
    assert not weight.grad.any()
    assert not bias.grad.any()


def test_no_second_derivative(device):
    x, weight = images(1, 1, 4, 4).to(device).requires_grad_(), torch.ones(1, 1, 3, 3, device=device)
    (gradient,) = torch.autograd.grad(kernel(x, weight, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
