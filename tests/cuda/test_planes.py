"""The CUDA kernels that own planes, machine: InstanceNorm, the depthwise convolution, SPADE's modulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gancomp.ops.cuda import InstanceNormActCuda, ReflectPadDepthwiseConv3x3Cuda, SpadeModulateCuda
from gancomp.testing import LAYOUTS, images, laid_out

from .compare import DTYPES, check, poisoned, restored, run

EPS = 1e-5
# Pixels in pieces of 16 bytes and one by one, kept in registers and not, fewer than a block has threads and several for each.
SHAPES = [(2, 3, 8, 8), (1, 2, 5, 7), (2, 2, 1, 1), (1, 1, 64, 72), (1, 1, 97, 89)]
LARGE = (1, 1, 96, 96)


def norm(relu):
    return lambda x, weight, bias, residual: InstanceNormActCuda.apply(x, weight, bias, residual, relu, EPS)


def stock_norm(relu):
    def function(x, weight, bias, residual):
        weight, bias = (None if vector is None else vector[: x.shape[1]] for vector in (weight, bias))
        centred = x - x.mean((2, 3), keepdim=True)
        y = centred / (centred.square().mean((2, 3), keepdim=True) + EPS).sqrt()
        y = y if weight is None else y * weight.view(1, -1, 1, 1)
        y = y if bias is None else y + bias.view(1, -1, 1, 1)
        y = F.relu(y) if relu else y
        return y if residual is None else y + residual

    return function


def norm_tensors(shape, dtype, vector_dtype=None, spare=2, mean=0.0):
    x, residual = images(*shape, dtype=dtype, mean=mean), images(*shape, dtype=dtype, seed=1)
    weight, bias = (torch.randn(shape[1] + spare).to(vector_dtype or dtype) for _ in range(2))
    return [x, weight, bias, residual], images(*shape, dtype=dtype, seed=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_instance_norm_act(shape, dtype, relu, machine):
    tensors, grad = norm_tensors(shape, dtype)
    results = check(norm(relu), stock_norm(relu), tensors, grad, machine=machine)
    for vector in results[2:4]:
        assert not vector[shape[1] :].any()


def test_instance_norm_act_of_a_large_plane(machine):
    tensors, grad = norm_tensors(LARGE, torch.float32)
    check(norm(True), stock_norm(True), tensors, grad, machine=machine)


@pytest.mark.parametrize("used", [(0, 0, 0), (1, 0, 0), (0, 1, 1)], ids=str)
def test_instance_norm_act_without_some(used, machine):
    (x, *others), grad = norm_tensors((2, 3, 4, 6), torch.float32)
    others = [tensor if use else None for tensor, use in zip(others, used, strict=True)]
    check(norm(True), stock_norm(True), [x, *others], grad, machine=machine)


def test_instance_norm_act_with_master_parameters(machine):
    tensors, grad = norm_tensors((2, 3, 8, 8), torch.bfloat16, torch.float32)
    check(norm(True), stock_norm(True), tensors, grad, machine=machine)


def test_a_large_mean_does_not_cancel(machine):
    tensors, grad = norm_tensors((1, 2, 24, 24), torch.float32, mean=1000.0)
    x, exact = tensors[0], tensors[0].double()
    y, grad_x = run(machine, lambda x: norm(False)(x, None, None, None), grad, x)
    centred = exact - exact.mean((2, 3), keepdim=True)
    rstd = (centred.square().mean((2, 3), keepdim=True) + EPS).rsqrt()
    # The subtraction is exact in float32, since x lies near its mean.
    assert (y.double() - centred * rstd).abs().max() < 2e-6
    inner = grad.double() - grad.double().mean((2, 3), keepdim=True)
    expected = rstd * (inner - centred * rstd * (inner * centred * rstd).mean((2, 3), keepdim=True))
    assert (grad_x.double() - expected).abs().max() < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, machine):
    tensors, grad = norm_tensors((2, 3, 4, 6), torch.float32)
    x, weight, bias, residual = tensors
    check(
        norm(True),
        stock_norm(True),
        [laid_out(x, layout), weight, bias, laid_out(residual, layout)],
        laid_out(grad, layout),
        machine=machine,
    )
    (x, weight, bias), grad = depthwise_tensors((2, 3, 4, 6), torch.float32)
    check(depthwise, stock_depthwise, [laid_out(x, layout), weight, bias], laid_out(grad, layout), machine=machine)
    given, grad = spade_tensors((2, 3, 4, 6), torch.float32)
    check(spade(), stock_spade(), [laid_out(tensor, layout) for tensor in given], laid_out(grad, layout), machine=machine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_channel_counts_in_device_memory(dtype, machine):
    """Of tensors that are wider, exactly the active channels are read and written."""
    one = machine.place(torch.tensor([3], dtype=torch.int32))
    (x, weight, bias, residual), grad = norm_tensors((2, 3, 4, 8), dtype)
    weight[3:], bias[3:] = float("nan"), float("nan")
    narrow = run(machine, norm(True), grad, x, weight, bias, residual)
    wide = run(
        machine,
        lambda *t: InstanceNormActCuda.apply(*t, True, EPS, one),
        poisoned(grad, 2),
        poisoned(x, 2),
        weight,
        bias,
        poisoned(residual, 2),
    )
    for got, expected in zip(wide, narrow, strict=True):
        assert torch.equal(restored(got, 3) if got.dim() == 4 else got, expected)
    (x, weight, bias), grad = depthwise_tensors((2, 3, 4, 8), dtype)
    weight[3:], bias[3:] = float("nan"), float("nan")
    narrow = run(machine, depthwise, grad, x, weight, bias)
    wide = run(
        machine, lambda *t: ReflectPadDepthwiseConv3x3Cuda.apply(*t, one), poisoned(grad, 2), poisoned(x, 2), weight, bias
    )
    for index, (got, expected) in enumerate(zip(wide, narrow, strict=True)):
        assert torch.equal(restored(got, 3) if index < 2 else got, expected)
    given, grad = spade_tensors((2, 3, 4, 8), dtype)
    for batch in (False, True):
        narrow = run(machine, spade(batch), grad, *given)
        wide = run(machine, spade(batch, one), poisoned(grad, 2), *(poisoned(tensor, 2) for tensor in given))
        assert all(torch.equal(restored(got, 3), expected) for got, expected in zip(wide, narrow, strict=True))


def depthwise(x, weight, bias):
    return ReflectPadDepthwiseConv3x3Cuda.apply(x, weight, bias)


def stock_depthwise(x, weight, bias):
    channels = x.shape[1]
    bias = None if bias is None else bias[:channels]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight[:channels], bias, groups=channels)


def depthwise_tensors(shape, dtype, weight_dtype=None, spare=2):
    weight = torch.randn(shape[1] + spare, 1, 3, 3).to(weight_dtype or dtype)
    bias = torch.randn(shape[1] + spare).to(weight_dtype or dtype)
    return [images(*shape, dtype=dtype), weight, bias], images(*shape, dtype=dtype, seed=2)


# The smallest, strips of rows that are not full, more strips than a block has threads.
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 2, 2), (2, 1, 3, 2), (1, 2, 17, 5), (1, 1, 20, 131)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise(shape, dtype, machine):
    tensors, grad = depthwise_tensors(shape, dtype)
    results = check(depthwise, stock_depthwise, tensors, grad, machine=machine)
    assert not results[2][shape[1] :].any()
    assert not results[3][shape[1] :].any()


def test_depthwise_with_master_weights_and_without_bias(machine):
    (x, weight, _), grad = depthwise_tensors((2, 3, 9, 8), torch.float16, torch.float32)
    check(depthwise, stock_depthwise, [x, weight, None], grad, machine=machine)


@pytest.mark.parametrize("side", [2, 3, 4, 9])
def test_the_adjoint_of_the_reflection_is_exact(side, machine):
    """In whole numbers: <D x, g> = <x, D* g>."""
    x, g = (torch.randint(-8, 9, (1, 2, side, side + 1)).float() for _ in range(2))
    weight = torch.randint(-8, 9, (2, 1, 3, 3)).float()
    y, grad_x, grad_weight = run(machine, lambda x, w: depthwise(x, w, None), g, x, weight)
    assert (y * g).sum() == (x * grad_x).sum() == (weight * grad_weight).sum()


def spade(batch=False, widths=None, slope=0.2):
    return lambda x, gamma, beta: SpadeModulateCuda.apply(x, gamma, beta, None, None, batch, slope, EPS, widths)[0]


def stock_spade(batch=False, slope=0.2):
    def function(x, gamma, beta):
        over = (0, 2, 3) if batch else (2, 3)
        centred = x - x.mean(over, keepdim=True)
        normalised = centred / (centred.square().mean(over, keepdim=True) + EPS).sqrt()
        return F.leaky_relu(normalised * (1 + gamma) + beta, slope)

    return function


def spade_tensors(shape, dtype):
    return [images(*shape, dtype=dtype, seed=seed) for seed in range(3)], images(*shape, dtype=dtype, seed=3)


# Not of two pixels: rounding would decide the sign of gradients that are almost zero.
SPADE = [(shape, batch) for shape in SHAPES[:4] for batch in (False, True) if not batch or shape != (2, 2, 1, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "batch"), SPADE, ids=str)
@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_spade(shape, dtype, batch, slope, machine):
    tensors, grad = spade_tensors(shape, dtype)
    check(spade(batch, slope=slope), stock_spade(batch, slope), tensors, grad, machine=machine)


def test_spade_of_a_large_plane(machine):
    tensors, grad = spade_tensors(LARGE, torch.float32)
    check(spade(), stock_spade(), tensors, grad, machine=machine)


def test_spade_gives_the_statistics_of_the_batch(machine):
    (x, gamma, beta), _ = spade_tensors((3, 2, 5, 4), torch.float32)
    x, gamma, beta = machine.place(x), machine.place(gamma), machine.place(beta)
    _, mean, variance = SpadeModulateCuda.apply(x + 3, gamma, beta, None, None, True, 1.0, EPS)
    exact = (x + 3).double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
    _, mean, variance = SpadeModulateCuda.apply(
        x, gamma, beta, None, None, True, 1.0, EPS, torch.tensor([1], dtype=torch.int32)
    )
    assert mean[1] == variance[1] == 0, "an inactive channel's would go into running statistics"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spade_with_given_statistics(dtype, machine):
    tensors, grad = spade_tensors((2, 3, 4, 8), dtype)
    mean, rstd = torch.randn(5), torch.rand(5) + 0.5

    def kernel(x, gamma, beta):
        return SpadeModulateCuda.apply(x, gamma, beta, machine.place(mean), machine.place(rstd), True, 0.2, EPS)[0]

    def stock(x, gamma, beta):
        m, r = (vector[:3].to(x).view(1, 3, 1, 1) for vector in (mean, rstd))
        return F.leaky_relu((x - m) * r * (1 + gamma) + beta, 0.2)

    check(kernel, stock, tensors, grad, machine=machine)
