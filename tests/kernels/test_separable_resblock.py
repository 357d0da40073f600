"""The separable ResBlock in Triton against stock layers in float64, on slices of poisoned weights."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import ops
from gancomp.testing import LAYOUTS, assert_accurate, forward_backward, images, laid_out, poisoned_outputs, unchanged

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

from gancomp.kernels.separable_resblock import SeparableResblockTriton  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")
EPS = 1e-5
# n, channels, hidden, height, width: the smallest plane, odd ones, several images, a plane too large for registers. Of one
# channel a pointwise convolution is a factor that the next norm divides out: its gradient would be rounding alone.
SHAPES = [(1, 3, 2, 2, 2), (2, 3, 2, 9, 11), (1, 2, 2, 67, 65)]
if os.environ.get("TRITON_INTERPRET") != "1":
    SHAPES += [(2, 96, 192, 64, 64), (1, 24, 40, 128, 128)]
NAMES = ("y", *(f"gradient of {name}" for name in ("x", "depthwise1", "pointwise1", "depthwise2", "pointwise2")))


def stock(mask: Tensor | None, scale: float, channels: int, hidden: int):
    """The block in PyTorch's own functions on the active slices, weights in the dtype of the image."""

    def half(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), depthwise.to(x.dtype), groups=x.shape[1])
        return F.instance_norm(F.conv2d(F.instance_norm(x, eps=EPS), pointwise.to(x.dtype)), eps=EPS)

    def block(x: Tensor, dw1: Tensor, pw1: Tensor, dw2: Tensor, pw2: Tensor) -> Tensor:
        h = F.relu(half(x, dw1[:channels], pw1[:hidden, :channels]))
        h = h if mask is None else h * mask * scale
        return x + half(h, dw2[:hidden], pw2[:channels, :hidden])

    return block


def ours(mask: Tensor | None, scale: float, hidden: int, widths: Tensor | None = None):
    return lambda *tensors: SeparableResblockTriton.apply(*tensors, mask, scale, hidden, EPS, widths)


def inputs(
    shape, device, dtype=torch.float32, layout="contiguous", spare=3, weights=None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Image and full weights with NaN in their inactive part; gradient of the result; mask of dropout."""
    n, channels, hidden, *size = shape
    sizes = ((channels, 1, 3, 3), (hidden, channels, 1, 1), (hidden, 1, 3, 3), (channels, hidden, 1, 1))
    tensors = [laid_out(images(n, channels, *size, seed=1).to(device, dtype), layout)]
    for index, active in enumerate(sizes):
        inputs_too = spare if active[2] == 1 else 0
        full = torch.full((active[0] + spare, active[1] + inputs_too, *active[2:]), NAN)
        full[: active[0], : active[1]] = images(*active, seed=2 + index)
        tensors.append(full.to(device, weights or dtype))
    grad = laid_out(images(n, channels, *size, seed=7).to(device, dtype), layout)
    mask = (images(n, hidden, *size, seed=8) > -0.5).to(device, torch.uint8)
    return tensors, grad, mask


def check(shape, tensors, grad, mask, scale=1.0):
    _, channels, hidden, *_ = shape
    with poisoned_outputs(), unchanged(*tensors, grad, mask):
        actual = forward_backward(ours(mask, scale, hidden), grad, *tensors)
    clean = [tensors[0], *(torch.where(tensor.isnan(), 0.0, tensor) for tensor in tensors[1:])]
    block = stock(mask, scale, channels, hidden)
    measure = forward_backward(block, grad, *clean)
    exact = forward_backward(block, grad.double(), *[tensor.double() for tensor in clean])
    assert actual[0].is_contiguous()
    for name, *three in zip(NAMES, actual, measure, exact, strict=True):
        assert_accurate(*three, name)
    for gradient, tensor in zip(actual[2:], tensors[1:], strict=True):
        assert not gradient[tensor.isnan()].any()
    return actual


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_values_and_gradients(shape, dropout, device):
    tensors, grad, mask = inputs(shape, device)
    check(shape, tensors, grad, mask if dropout else None, 1.25 if dropout else 1.0)


def test_the_smallest_plane(device):
    tensors, grad, _ = inputs(SHAPES[0], device)
    check(SHAPES[0], tensors, grad, None)


@pytest.mark.parametrize("weights", [None, torch.float32], ids=["same", "master"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_16_bit_images(dtype, weights, device):
    shape = SHAPES[1]
    tensors, grad, mask = inputs(shape, device, dtype, weights=weights)
    actual = check(shape, tensors, grad, mask, 1.25)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, *[weights or dtype] * 4]


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_memory_layouts(layout, device):
    shape = (2, 2, 2, 9, 11)
    tensors, grad, mask = inputs(shape, device, layout=layout)
    check(shape, tensors, grad, mask, 1.25)


def test_channel_counts_are_read_from_the_device(device):
    """One launch geometry serves every choice of channels; what is inactive is neither read nor written."""
    n, _, hidden, *_ = shape = (2, 4, 4, 3, 5)
    (x, *weights), grad, mask = inputs(shape, device, spare=0)
    widths = torch.zeros(2, dtype=torch.int32, device=device)
    for used, inner in ((2, 4), (4, 1)):
        active = ours(mask[:, :inner].contiguous(), 1.25, inner)
        expected = forward_backward(active, grad[:, :used], x[:, :used], *weights)
        widths.copy_(torch.tensor([used, inner]))
        tensors = [x.clone(), *(weight.clone() for weight in weights)]
        for tensor, rows, columns in zip(tensors, (n, used, inner, inner, used), (used, 1, used, 1, inner), strict=True):
            tensor[rows:], tensor[:, columns:] = NAN, NAN
        poisoned_grad = grad.clone()
        poisoned_grad[:, used:] = NAN
        with poisoned_outputs():
            y, grad_x, *gradients = forward_backward(ours(mask, 1.25, hidden, widths), poisoned_grad, *tensors)
        assert y[:, used:].isnan().all(), "an inactive channel of the result is written"
        assert grad_x[:, used:].isnan().all(), "an inactive channel of the gradient is written"
        for name, one, other in zip(NAMES, [y[:, :used], grad_x[:, :used], *gradients], expected, strict=True):
            assert torch.equal(one, other), name


def test_the_op_runs_these_kernels(device):
    tensors, grad, _ = inputs((1, 2, 2, 3, 4), device)
    torch.manual_seed(3)
    mask = torch.empty(1, 2, 3, 4, dtype=torch.uint8, device=device).bernoulli_(0.6)
    torch.manual_seed(3)
    actual = forward_backward(
        lambda *t: ops.separable_resblock(*t, hidden=2, dropout=0.4, eps=EPS, backend="triton"), grad, *tensors
    )
    expected = forward_backward(ours(mask, 1 / 0.6, 2), grad, *tensors)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_frozen_weights_get_no_gradient_and_change_no_other(device):
    tensors, grad, mask = inputs((1, 2, 1, 3, 4), device)
    block = ours(mask, 1.25, 1)
    _, *gradients = forward_backward(block, grad, *tensors)
    for trained in range(5):
        some = [tensor.detach().requires_grad_(index == trained) for index, tensor in enumerate(tensors)]
        block(*some).backward(grad)
        assert torch.equal(some[trained].grad, gradients[trained])
        assert all(tensor.grad is None for index, tensor in enumerate(some) if index != trained)


def test_two_runs_give_the_same_bits(device):
    tensors, grad, mask = inputs((5, 1, 2, 4, 4), device)
    first, second = (forward_backward(ours(mask, 1.25, 2), grad, *tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(2, 2, 3, 5), (1, 1, 67, 65)], ids=str)
def test_a_nan_stays_in_its_image(shape, device):
    tensors, *_ = inputs((2, *shape), device)
    tensors[0][1, 0, 1, 1] = NAN
    y = ours(None, 1.0, shape[1])(*tensors)
    assert not y[0].isnan().any()
    assert y[1].isnan().all(), "every output of the image depends on it"


def test_empty_batch(device):
    tensors, grad, mask = inputs((0, 2, 3, 4, 4), device)
    y, grad_x, *gradients = forward_backward(ours(mask, 1.25, 3), grad, *tensors)
    assert y.shape == grad_x.shape == (0, 2, 4, 4)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_no_second_derivative(device):
    (x, *weights), *_ = inputs(SHAPES[1], device)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(None, 1.0, SHAPES[1][2])(x, *weights).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
