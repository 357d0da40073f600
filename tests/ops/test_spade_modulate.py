"""spade_modulate: the reference against PyTorch, the native kernels against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import BackendError, ConfigError, ops
from gancomp.ops import reference
from gancomp.testing import (
    LAYOUTS,
    allocations,
    assert_accurate,
    forward_backward,
    images,
    laid_out,
    poisoned_outputs,
    unchanged,
    with_inactive,
)

EPS = 1e-5
STATISTICS = ("instance", "batch", "given")
SLOPES = (1.0, 0.2, 0.0)
VARIANTS = list(itertools.product(STATISTICS, SLOPES))
SHAPES = [(2, 3, 2, 2), (2, 3, 5, 7), (3, 2, 1, 9), (1, 4, 16, 16), (2, 1, 33, 31), (2, 2, 64, 67)]


def constants(channels: int) -> tuple[Tensor, Tensor]:
    """A given mean and 1 / standard deviation."""
    return torch.linspace(-0.5, 1.0, channels), torch.linspace(0.7, 1.3, channels)


def given(statistics: str, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if statistics != "given":
        return None, None
    mean, rstd = constants(x.shape[1])
    return mean.to(x.dtype), rstd.to(x.dtype)


def stock(statistics: str, slope: float) -> Callable[..., Tensor]:
    """The op by PyTorch's own functions, in the dtype of its inputs."""

    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if statistics == "instance":
            normalised = F.instance_norm(x, eps=EPS)
        elif statistics == "batch":
            normalised = F.batch_norm(x, None, None, training=True, eps=EPS)
        else:
            mean, rstd = given(statistics, x)
            normalised = (x - mean.view(1, -1, 1, 1)) * rstd.view(1, -1, 1, 1)
        value = normalised * (1 + gamma) + beta
        return value if slope == 1 else F.leaky_relu(value, slope)

    return function


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def native(statistics: str, slope: float, backend: str = "cpu") -> Callable[..., Tensor]:
    norm = "batch" if statistics == "batch" else "instance"

    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return first(ops.spade_modulate(x, gamma, beta, *given(statistics, x), norm=norm, slope=slope, backend=backend))

    return function


def specified(statistics: str, slope: float) -> Callable[..., Tensor]:
    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return reference.spade_modulate(x, gamma, beta, *given(statistics, x), statistics == "batch", slope, EPS)[0]

    return function


def inputs(
    shape: tuple[int, ...], statistics: str, slope: float, layout: str = "contiguous", mean: float = 0.0
) -> tuple[Tensor, list[Tensor]]:
    """A gradient of y and [x, gamma, beta]."""
    x, gamma, beta, grad = (images(*shape, layout=layout, mean=mean * (seed == 1), seed=seed) for seed in (1, 2, 3, 4))
    if slope != 1:  # within rounding of the kink either gradient is right, so none flows there
        value = specified(statistics, 1.0)(x.double(), gamma.double(), beta.double())
        grad.masked_fill_(value.abs() < 1e-3, 0.0)
    return grad, [x, gamma, beta]


def check(actual: list[Tensor], grad: Tensor, tensors: list[Tensor], statistics: str, slope: float) -> None:
    """Compare a result and gradients with the float64 reference; PyTorch's own error is the measure."""
    exact = forward_backward(specified(statistics, slope), grad.double(), *(tensor.double() for tensor in tensors))
    measure = forward_backward(stock(statistics, slope), grad, *tensors)
    names = ("y", "gradient of x", "gradient of gamma", "gradient of beta")
    for name, *three in zip(names, actual, measure, exact, strict=True):
        assert_accurate(*three, name)


@pytest.mark.parametrize(("statistics", "slope"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_pytorch_in_double(shape, statistics, slope):
    grad, tensors = inputs(shape, statistics, slope)
    grad, tensors = grad.double(), [tensor.double() for tensor in tensors]
    ours = forward_backward(specified(statistics, slope), grad, *tensors)
    for mine, other in zip(ours, forward_backward(stock(statistics, slope), grad, *tensors), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("statistics", "slope"), VARIANTS)
def test_gradients_of_the_reference(statistics, slope):
    _, tensors = inputs((2, 2, 3, 2), statistics, slope)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(specified(statistics, slope), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_rounds_16_bits_once(dtype):
    x, gamma, beta = (images(2, 3, 8, 8, mean=mean, dtype=dtype) for mean in (300.0, 0.0, 0.0))
    y = reference.spade_modulate(x, gamma, beta, None, None, False, 0.2, EPS)[0]
    wide = reference.spade_modulate(x.float(), gamma.float(), beta.float(), None, None, False, 0.2, EPS)[0]
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize(("statistics", "slope"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_native(isa, shape, statistics, slope):
    grad, tensors = inputs(shape, statistics, slope)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native(statistics, slope), grad, *tensors)
    check(actual, grad, tensors, statistics, slope)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout, statistics):
    grad, tensors = inputs((2, 5, 6, 7), statistics, 0.2, layout)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native(statistics, 0.2), grad, *tensors)
        dense = forward_backward(native(statistics, 0.2), grad.contiguous(), *(tensor.contiguous() for tensor in tensors))
    check(actual, grad, tensors, statistics, 0.2)
    for one, other in zip(actual, dense, strict=True):
        assert torch.equal(one, other), "the layout changes the result"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_contiguous(backend, layout):
    x = images(2, 3, 4, 5, layout=layout)
    assert native("instance", 0.2, backend)(x, x, x).is_contiguous()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_statistics_of_a_batch(backend):
    x, gamma, beta = (images(3, 4, 9, 7, mean=2.0 * (seed == 0), seed=seed).requires_grad_() for seed in range(3))
    y, mean, variance = ops.spade_modulate(x, gamma, beta, norm="batch", backend=backend)
    torch.testing.assert_close(mean, x.detach().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(variance, x.detach().var(dim=(0, 2, 3), correction=0))
    assert y.requires_grad
    assert not mean.requires_grad
    assert not variance.requires_grad
    # Given back as constants, the same statistics make the same image, and one tensor.
    again = ops.spade_modulate(x, gamma, beta, mean, (variance + EPS).rsqrt(), norm="batch", backend=backend)
    torch.testing.assert_close(again, y)
    assert isinstance(ops.spade_modulate(x, gamma, beta, backend=backend), Tensor)


@pytest.mark.parametrize("mean", [30.0, 1000.0, -3e6])
@pytest.mark.parametrize("statistics", ["instance", "batch"])
def test_the_error_does_not_grow_with_the_mean(isa, statistics, mean):
    # Taking the mean off is exact in float32 and changes neither result nor gradients: PyTorch's error without it is the
    # measure, which is far below its error with it.
    grad, (x, *others) = inputs((2, 3, 24, 37), statistics, 0.2, mean=mean)
    centred = x - mean
    assert torch.equal(centred.double() + mean, x.double())
    actual = forward_backward(native(statistics, 0.2), grad, x, *others)
    check(actual, grad, [centred, *others], statistics, 0.2)


def test_one_pixel_far_from_all_others(isa):
    x = images(1, 2, 64, 64)
    x[0, 0, 0, 0] = 1e6
    x[0, 1, 63, 63] = -1e6
    ones = torch.zeros_like(x)
    actual = native("instance", 1.0)(x, ones, ones)
    exact = specified("instance", 1.0)(x.double(), ones.double(), ones.double())
    assert_accurate(actual, stock("instance", 1.0)(x, ones, ones), exact)


def test_no_images(isa):
    empty = torch.empty(0, 3, 4, 4)
    for statistics in ("instance", "given"):
        for result in forward_backward(native(statistics, 0.2), empty, empty, empty, empty):
            assert result.shape == (0, 3, 4, 4)


def test_inactive_constants_are_not_read(isa):
    x, gamma, beta = (images(2, 3, 5, 7, seed=seed) for seed in range(3))
    mean, rstd = constants(3)
    y = ops.spade_modulate(x, gamma, beta, mean, rstd, backend="cpu")
    assert torch.equal(ops.spade_modulate(x, gamma, beta, with_inactive(mean), with_inactive(rstd), backend="cpu"), y)
    spread = [torch.stack([vector, vector * float("nan")], 1)[:, 0] for vector in (mean, rstd)]
    assert torch.equal(ops.spade_modulate(x, gamma, beta, *spread, backend="cpu"), y)


def test_gradients_flow_through_statistics_but_not_through_constants(isa):
    # The gradient of sum(y) with gamma = 0 is zero where the mean is taken off, and rstd where constants are.
    x, zeros = images(2, 3, 5, 7), torch.zeros(2, 3, 5, 7)
    ones = torch.ones_like(x)
    for statistics in ("instance", "batch"):
        _, grad_x, *_ = forward_backward(native(statistics, 1.0), ones, x, zeros, zeros)
        assert grad_x.abs().max() < 1e-6
    _, grad_x, *_ = forward_backward(native("given", 1.0), ones, x, zeros, zeros)
    assert torch.equal(grad_x, constants(3)[1].view(1, 3, 1, 1).expand_as(x))


def test_a_nan_stays_visible(isa):
    x, gamma, beta = (images(2, 2, 4, 20, seed=seed) for seed in range(3))
    x[0, 0, 1, 1] = float("nan")
    gamma[1, 1, 2, 3] = float("nan")
    for statistics, spoiled in (("instance", x[:1, :1]), ("batch", x[:, :1]), ("given", x[:1, :1, 1, 1])):
        y = native(statistics, 0.2)(x, gamma, beta)
        assert y.isnan().sum() == spoiled.numel() + 1, statistics


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_wanted_gradients(isa, wanted):
    grad, tensors = inputs((2, 3, 5, 7), "batch", 0.2)
    full = forward_backward(native("batch", 0.2), grad, *tensors)
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    native("batch", 0.2)(*leaves).backward(grad)
    for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
        assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


@pytest.mark.parametrize("statistics", STATISTICS)
def test_threads_do_not_change_a_bit(isa, statistics):
    grad, tensors = inputs((3, 5, 19, 31), statistics, 0.2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(forward_backward(native(statistics, 0.2), grad, *tensors))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert torch.equal(one, another)


def test_the_gradient_cannot_be_differentiated_again():
    x, gamma, beta = (images(1, 2, 4, 4, seed=seed).requires_grad_() for seed in range(3))
    (gradient,) = torch.autograd.grad(native("instance", 0.2)(x, gamma, beta).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_channel_slices_are_not_copied():
    # gamma and beta are halves of one convolution's output.
    both, x = images(2, 8, 16, 16), images(2, 4, 16, 16, seed=1)
    y = 2 * 4 * 256 * 4
    with torch.no_grad():
        made = allocations(lambda: native("instance", 0.2)(x, both[:, :4], both[:, 4:]))
        assert made == [y, 2 * 4 * 8, 2 * 4 * 4, 2 * 4 * 4]  # the result and the statistics
        last = laid_out(x, "channels_last")
        assert allocations(lambda: native("instance", 0.2)(last, both[:, :4], both[:, 4:])).count(y) == 2


@pytest.mark.parametrize(("slope", "kept"), [(1.0, 2), (0.2, 3)])
def test_what_is_kept(slope, kept):
    # The input and gamma; the result, whose sign the gradient needs, only where there is an activation.
    leaves = [images(2, 3, 8, 8, seed=seed).requires_grad_() for seed in range(3)]
    found: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = native("instance", slope)(*leaves)
    assert len([pointer for pointer in found if pointer in {*(leaf.data_ptr() for leaf in leaves), y.data_ptr()}]) == kept
    assert leaves[2].data_ptr() not in found


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout, requires_grad):
    x, gamma, beta, grad = (images(2, 3, 5, 4, layout=layout, seed=seed).requires_grad_(requires_grad) for seed in range(4))
    forward, backward = torch.ops.gancomp.spade_modulate.default, torch.ops.gancomp.spade_modulate_backward.default
    plain = layout == "contiguous"
    for statistics in STATISTICS if plain else ("batch",):
        numbers = given(statistics, x)
        batch = statistics == "batch"
        torch.library.opcheck(forward, (x, gamma, beta, *numbers, batch, 0.2, EPS))
        y, mean, rstd, _ = (tensor.detach() for tensor in forward(x, gamma, beta, *numbers, batch, 0.2, EPS))
        args = mean, rstd, statistics != "instance", statistics == "given", 0.2
        torch.library.opcheck(backward, (grad, x, gamma, y, *args))
    if plain:
        torch.library.opcheck(backward, (grad, x, gamma, None, *args))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_torch_compile_takes_it_whole(statistics):
    grad, tensors = inputs((2, 3, 5, 4), statistics, 0.2)
    function = native(statistics, 0.2, "auto")
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for one, other in zip(forward_backward(compiled, grad, *tensors), forward_backward(function, grad, *tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_float32_kernels(dtype):
    grad, tensors = inputs((2, 3, 5, 7), "instance", 0.2)
    small = [tensor.to(dtype) for tensor in tensors]
    with torch.autocast("cpu", dtype):
        y, *gradients = forward_backward(native("instance", 0.2), grad, *small)
        assert "cpu: runs" in ops.explain("spade_modulate", *small)
    assert torch.equal(y, native("instance", 0.2)(*(tensor.float() for tensor in small)))
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3


X, V = torch.zeros(2, 3, 4, 5), torch.ones(3)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((X[0], X, X), {}, r"x is torch.float32 \[3, 4, 5\]"),
        ((X.int(), X, X), {}, "x is torch.int32"),
        ((X[:, :, :0], X, X), {}, r"x of shape \[2, 3, 0, 5\] has an empty plane"),
        ((X, X[:, :2], X), {}, r"gamma of shape \[2, 2, 4, 5\], expected \[2, 3, 4, 5\] as x"),
        ((X, X, X[:1]), {}, r"beta of shape \[1, 3, 4, 5\]"),
        ((X, X.half(), X), {}, "gamma is torch.float16 on cpu, x is torch.float32"),
        ((X, X, X.to("meta")), {}, "beta is torch.float32 on meta"),
        ((X, X, X, V), {}, "mean and rstd are given together or not at all"),
        ((X, X, X, None, V), {}, "mean and rstd are given together or not at all"),
        ((X, X, X, V[:2], V), {}, r"mean of shape \[2\], expected at least \[3\]"),
        ((X, X, X, V, V.view(3, 1)), {}, r"rstd of shape \[3, 1\]"),
        ((X, X, X, V, V.double()), {}, "rstd is torch.float64 on cpu"),
        ((X, X, X), {"norm": "layer"}, "norm='layer', expected instance or batch"),
        ((X[:0], X[:0], X[:0]), {"norm": "batch"}, r"x of shape \[0, 3, 4, 5\] has no images to take statistics of"),
        ((X, X, X), {"slope": -0.1}, "slope=-0.1, expected at least 0"),
        ((X, X, X), {"slope": float("nan")}, "slope=nan"),
        ((X, X, X), {"eps": 0.0}, "eps=0.0, expected a number above 0"),
        ((X, X, X), {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.spade_modulate(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("spade_modulate", *args, **kwargs)


def test_a_named_backend_does_not_fall_back():
    with pytest.raises(BackendError, match="spade_modulate: backend 'cpu' cannot run this call: x is float64"):
        ops.spade_modulate(X.double(), X.double(), X.double(), backend="cpu")
    assert ops.spade_modulate(X.double(), X.double(), X.double()).dtype == torch.float64


def test_the_native_op_checks_its_own_inputs():
    forward, backward = torch.ops.gancomp.spade_modulate, torch.ops.gancomp.spade_modulate_backward
    for args, message in (
        ((X.double(), X, X, None, None), "x must be float32"),
        ((X, X[:, :2], X, None, None), "gamma must have the shape of x"),
        ((X, X, X[:1], None, None), "beta must have the shape of x"),
        ((X, X, X, V, None), "mean and rstd must be given together"),
        ((X, X, X, V[:2], V), "mean must be a vector with an entry per channel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(*args, False, 1.0, EPS)
    numbers = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3)
    for args, message in (
        ((X[:1], X, X, X, *numbers), "grad must have the shape of x"),
        ((X, X, X, X[:1], *numbers), "y must have the shape of x"),
        ((X, X, X, X, numbers[1], numbers[1]), "mean must be float64"),
        ((X, X, X, X, numbers[0][:1], numbers[1]), "with a number per channel or per plane"),
    ):
        with pytest.raises(RuntimeError, match=message):
            backward(*args, False, False, 1.0)
