"""The CUDA residual block, machine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gancomp.ops.cuda import SeparableResblockCuda
from gancomp.testing import LAYOUTS, images, laid_out

from .compare import DTYPES, check, poisoned, restored, run

EPS = 1e-5
# Planes in registers and shared memory; of odd sizes; too large for registers; too large for shared memory, backward and then
# forward as well.
SHAPES = [(2, 3, 8, 8), (1, 4, 5, 7), (2, 2, 2, 3)]
LARGE = [(1, 2, 40, 216), (1, 2, 113, 112), (1, 2, 152, 168)]


def block(hidden, mask=None, scale=1.0, widths=None):
    return lambda *tensors: SeparableResblockCuda.apply(*tensors, mask, scale, hidden, EPS, widths)


def stock(hidden, mask=None, scale=1.0):
    def norm(x):
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt()

    def half(x, depthwise, pointwise, out):
        channels = x.shape[1]
        y = norm(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), depthwise[:channels], groups=channels))
        return norm(F.conv2d(y, pointwise[:out, :channels]))

    def function(x, depthwise1, pointwise1, depthwise2, pointwise2):
        h = F.relu(half(x, depthwise1, pointwise1, hidden))
        h = h if mask is None else h * mask.to(h) * scale
        return x + half(h, depthwise2, pointwise2, x.shape[1])

    return function


def make(shape, hidden, dtype, weight_dtype=None, spare=2):
    channels = shape[1]

    def weight(*size):
        return torch.randn(size).to(weight_dtype or dtype)

    tensors = [
        images(*shape, dtype=dtype),
        weight(channels + spare, 1, 3, 3),
        weight(hidden + spare, channels + spare, 1, 1),
        weight(hidden + spare, 1, 3, 3),
        weight(channels + spare, hidden + spare, 1, 1),
    ]
    return tensors, images(*shape, dtype=dtype, seed=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout", [False, True])
def test_values_and_gradients(shape, dtype, dropout, machine):
    hidden = 5
    tensors, grad = make(shape, hidden, dtype)
    mask = machine.place((torch.rand(shape[0], hidden, *shape[2:]) < 0.7).to(torch.uint8)) if dropout else None
    scale = 1 / 0.7 if dropout else 1.0
    results = check(block(hidden, mask, scale), stock(hidden, mask, scale), tensors, grad, machine=machine)
    channels = shape[1]
    _, _, depthwise1, pointwise1, depthwise2, pointwise2 = results
    for unused in (
        depthwise1[channels:], depthwise2[hidden:], pointwise1[hidden:], pointwise1[:, channels:], pointwise2[channels:],
        pointwise2[:, hidden:],
    ):  # fmt: skip
        assert torch.equal(unused, torch.zeros_like(unused))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_planes(shape, machine):
    tensors, grad = make(shape, 2, torch.float32, spare=0)
    check(block(2), stock(2), tensors, grad, machine=machine)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_master_weights(dtype, machine):
    tensors, grad = make((2, 3, 8, 8), 5, dtype, torch.float32)
    check(block(5), stock(5), tensors, grad, machine=machine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, machine):
    (x, *weights), grad = make((2, 3, 4, 6), 2, torch.float32)
    check(block(2), stock(2), [laid_out(x, layout), *weights], laid_out(grad, layout), machine=machine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channel_counts_in_device_memory(dtype, machine):
    """Of tensors and weights that are wider, exactly the active channels are read and written."""
    channels, hidden, spare = 3, 5, 2
    (x, depthwise1, pointwise1, depthwise2, pointwise2), grad = make((2, channels, 4, 8), hidden, dtype)
    mask = machine.place((torch.rand(2, hidden + spare, 4, 8) < 0.7).to(torch.uint8))
    depthwise1[channels:], depthwise2[hidden:] = float("nan"), float("nan")
    pointwise1[hidden:], pointwise1[:, channels:] = float("nan"), float("nan")
    pointwise2[channels:], pointwise2[:, hidden:] = float("nan"), float("nan")
    weights = depthwise1, pointwise1, depthwise2, pointwise2
    narrow = run(machine, block(hidden, mask[:, :hidden], 1.4), grad, x, *weights)
    widths = machine.place(torch.tensor([channels, hidden], dtype=torch.int32))
    wide = run(machine, block(hidden + spare, mask, 1.4, widths), poisoned(grad, spare), poisoned(x, spare), *weights)
    assert torch.equal(restored(wide[0], channels), narrow[0])
    assert torch.equal(restored(wide[1], channels), narrow[1])
    for got, expected in zip(wide[2:], narrow[2:], strict=True):
        torch.testing.assert_close(got, expected)


def test_frozen_weights_get_no_gradient(machine):
    (x, *weights), grad = make((1, 3, 4, 8), 4, torch.float32)
    _, grad_x, *_ = run(machine, block(4), grad, x, *weights)
    x = machine.place(x).requires_grad_()
    block(4)(x, *(machine.place(weight) for weight in weights)).backward(machine.place(grad))
    assert torch.equal(x.grad.cpu(), grad_x)
