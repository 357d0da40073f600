"""SPADE's modulation in Triton against stock layers in float64."""

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

from gancomp.kernels import spade  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")
EPS = 1e-5
# A single pixel needs a second one in the batch; several segments per plane; more segments than are merged at once.
SHAPES = [(2, 3, 1, 1), (2, 5, 4, 3), (3, 2, 67, 65)]
if os.environ.get("TRITON_INTERPRET") != "1":
    SHAPES += [(2, 64, 64, 128), (4, 16, 512, 256)]
STATISTICS = pytest.mark.parametrize("statistics", ["instance", "batch", "given"])
NAMES = ("y", "gradient of x", "gradient of gamma", "gradient of beta")


def constants(channels: int, device: torch.device, spare: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation, NaN beyond the channels."""
    poison = torch.full((spare,), NAN)
    mean, rstd = torch.linspace(-1.0, 1.0, channels), torch.linspace(0.5, 2.0, channels)
    return torch.cat([mean, poison]).to(device), torch.cat([rstd, poison]).to(device)


def stock(statistics: str, slope: float):
    def modulate(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if statistics == "instance":
            x = F.instance_norm(x, eps=EPS) if x[0, 0].numel() > 1 else x * 0
        elif statistics == "batch":
            x = F.batch_norm(x, None, None, training=True, eps=EPS)
        else:
            mean, rstd = (vector.to(x.dtype).view(1, -1, 1, 1) for vector in constants(x.shape[1], x.device, 0))
            x = (x - mean) * rstd
        return F.leaky_relu(x * (1 + gamma) + beta, slope)

    return modulate


def ours(statistics: str, slope: float, widths: Tensor | None = None):
    def modulate(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        given = constants(x.shape[1], x.device) if statistics == "given" else (None, None)
        return spade.SpadeModulateTriton.apply(x, gamma, beta, *given, statistics == "batch", slope, EPS, widths)[0]

    return modulate


def inputs(shape, device, dtype=torch.float32, layout="contiguous", mean=0.5) -> tuple[list[Tensor], Tensor]:
    tensors = [images(*shape, seed=seed, mean=mean if seed == 0 else 0.0).to(device, dtype) for seed in range(4)]
    tensors = [laid_out(tensor, layout) for tensor in tensors]
    return tensors[:3], tensors[3]


def check(statistics, slope, tensors, grad):
    with poisoned_outputs(), unchanged(*tensors, grad):
        actual = forward_backward(ours(statistics, slope), grad, *tensors)
    function = stock(statistics, slope)
    measure = forward_backward(function, grad, *tensors)
    exact = forward_backward(function, grad.double(), *[tensor.double() for tensor in tensors])
    assert actual[0].is_contiguous()
    for name, *three in zip(NAMES, actual, measure, exact, strict=True):
        assert_accurate(*three, name)


@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@STATISTICS
def test_values_and_gradients(statistics, shape, slope, device):
    check(statistics, slope, *inputs(shape, device))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@STATISTICS
def test_16_bit_images(statistics, dtype, device):
    check(statistics, 0.2, *inputs(SHAPES[1], device, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@STATISTICS
def test_memory_layouts(statistics, layout, device):
    check(statistics, 0.2, *inputs(SHAPES[1], device, layout=layout))


@STATISTICS
def test_gamma_and_beta_may_be_halves_of_one_tensor(statistics, device):
    (x, gamma, beta), grad = inputs(SHAPES[1], device)
    both = torch.cat([gamma, beta], dim=1)
    actual = forward_backward(ours(statistics, 0.2), grad, x, *both.chunk(2, dim=1))
    expected = forward_backward(ours(statistics, 0.2), grad, x, gamma, beta)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_statistics_are_returned_and_do_not_require_a_gradient(shape, device):
    (x, gamma, beta), _ = inputs(shape, device)
    x.requires_grad_()
    _, mean, variance = spade.SpadeModulateTriton.apply(x, gamma, beta, None, None, True, 0.2, EPS)
    exact = x.detach().double()
    assert_accurate(mean, x.detach().mean(dim=(0, 2, 3)), exact.mean(dim=(0, 2, 3)), "mean")
    biased = {"dim": (0, 2, 3), "correction": 0}
    assert_accurate(variance, x.detach().var(**biased), exact.var(**biased), "variance")
    assert not mean.requires_grad
    assert not variance.requires_grad


@pytest.mark.parametrize("statistics", ["instance", "batch"])
def test_large_mean_does_not_cancel(statistics, device):
    check(statistics, 1.0, *inputs(SHAPES[2], device, mean=1000.0))


@STATISTICS
def test_channel_counts_are_read_from_the_device(statistics, device):
    """One launch geometry serves every choice of channels; what is inactive is neither read nor written."""
    tensors, grad = inputs((2, 5, 4, 3), device)
    widths = torch.zeros(1, dtype=torch.int32, device=device)
    for used in (3, 1, 5):
        widths.fill_(used)
        # The constants are those of all channels.
        given = [vector[:5] for vector in constants(5, device)] if statistics == "given" else [None, None]
        settings = *given, statistics == "batch", 0.2, EPS
        expected = forward_backward(
            lambda *t, s=settings: spade.SpadeModulateTriton.apply(*t, *s)[0], grad[:, :used], *[t[:, :used] for t in tensors]
        )
        poisoned = [tensor.clone() for tensor in (*tensors, grad)]
        for tensor in poisoned:
            tensor[:, used:] = NAN
        with poisoned_outputs():
            actual = forward_backward(
                lambda *t, s=settings: spade.SpadeModulateTriton.apply(*t, *s, widths)[0], poisoned.pop(), *poisoned
            )
            _, mean, variance = spade.SpadeModulateTriton.apply(*poisoned, None, None, True, 0.2, EPS, widths)
        for name, one, other in zip(NAMES, actual, expected, strict=True):
            assert one[:, used:].isnan().all(), f"{name}: an inactive channel is written"
            assert torch.equal(one[:, :used], other), name
        assert torch.equal(mean[used:], torch.zeros_like(mean[used:]))
        assert torch.equal(variance[used:], torch.zeros_like(variance[used:]))
        assert mean[:used].isfinite().all()


@STATISTICS
def test_the_op_runs_these_kernels(statistics, device):
    tensors, grad = inputs(SHAPES[1], device)
    given = constants(SHAPES[1][1], device) if statistics == "given" else ()
    settings = {"norm": "batch" if statistics == "batch" else "instance", "slope": 0.2, "eps": EPS, "backend": "triton"}

    def op(*tensors: Tensor) -> Tensor:
        results = ops.spade_modulate(*tensors, *given, **settings)
        return results[0] if statistics == "batch" else results

    actual = forward_backward(op, grad, *tensors)
    expected = forward_backward(ours(statistics, 0.2), grad, *tensors)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@STATISTICS
def test_two_runs_give_the_same_bits(statistics, device):
    tensors, grad = inputs(SHAPES[2], device)
    first, second = (forward_backward(ours(statistics, 0.2), grad, *tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@STATISTICS
def test_empty_batch(statistics, device):
    tensors, grad = inputs((0, 2, 4, 4), device)
    assert all(tensor.shape == (0, 2, 4, 4) for tensor in forward_backward(ours(statistics, 0.2), grad, *tensors))


@STATISTICS
def test_no_second_derivative(statistics, device):
    (x, gamma, beta), _ = inputs(SHAPES[1], device)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(statistics, 0.2)(x, gamma, beta).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
