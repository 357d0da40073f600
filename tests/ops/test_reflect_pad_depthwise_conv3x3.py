"""reflect_pad_depthwise_conv3x3: the reference against PyTorch, the native kernels against the reference."""

from __future__ import annotations

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

# 2 x 2 planes, where every neighbour is a reflection; rows shorter and longer than any vector; heights of 2 and 3.
SHAPES = [(1, 1, 2, 2), (2, 3, 2, 9), (1, 2, 9, 2), (2, 2, 3, 3), (2, 4, 5, 7), (1, 3, 16, 16), (2, 1, 33, 31), (1, 2, 3, 70)]


def stock(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The op by PyTorch's own functions, in the dtype of its inputs."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias, groups=x.shape[1])


def native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return ops.reflect_pad_depthwise_conv3x3(x, weight, bias, backend="cpu")


def inputs(shape: tuple[int, ...], bias: bool, layout: str = "contiguous") -> tuple[Tensor, list[Tensor | None]]:
    """A gradient of y and [x, weight, bias]."""
    channels = shape[1]
    return images(*shape, layout=layout, seed=3), [
        images(*shape, layout=layout, seed=1),
        images(channels, 1, 3, 3, seed=2),
        torch.linspace(-1.0, 2.0, channels) if bias else None,
    ]


def check(actual: list[Tensor], grad: Tensor, tensors: list[Tensor | None]) -> None:
    """Compare a result and gradients with the float64 reference; PyTorch's own error is the measure."""
    doubles = [None if tensor is None else tensor.double() for tensor in tensors]
    exact = forward_backward(reference.reflect_pad_depthwise_conv3x3, grad.double(), *doubles)
    measure = forward_backward(stock, grad, *tensors)
    names = ("y", "gradient of x", "gradient of weight", "gradient of bias")[: len(exact)]
    for name, *three in zip(names, actual, measure, exact, strict=True):
        assert_accurate(*three, name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_pytorch_in_double(shape, bias):
    grad, tensors = inputs(shape, bias)
    grad, tensors = grad.double(), [None if tensor is None else tensor.double() for tensor in tensors]
    ours = forward_backward(reference.reflect_pad_depthwise_conv3x3, grad, *tensors)
    for mine, other in zip(ours, forward_backward(stock, grad, *tensors), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("shape", [(2, 2, 2, 3), (1, 2, 4, 2)])
def test_gradients_of_the_reference(shape):
    _, tensors = inputs(shape, True)
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(reference.reflect_pad_depthwise_conv3x3, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_rounds_16_bits_once(dtype):
    _, tensors = inputs((2, 3, 5, 7), True)
    small = [tensor.to(dtype) for tensor in tensors]
    wide = reference.reflect_pad_depthwise_conv3x3(*(tensor.float() for tensor in small))
    assert torch.equal(reference.reflect_pad_depthwise_conv3x3(*small), wide.to(dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_native(isa, shape, bias):
    grad, tensors = inputs(shape, bias)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native, grad, *tensors)
    check(actual, grad, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout):
    grad, tensors = inputs((2, 5, 6, 11), True, layout)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native, grad, *tensors)
        dense = forward_backward(native, grad.contiguous(), *(tensor.contiguous() for tensor in tensors))
    check(actual, grad, tensors)
    for one, other in zip(actual, dense, strict=True):
        assert torch.equal(one, other), "the layout changes the result"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_contiguous(backend, layout):
    x = images(2, 3, 4, 5, layout=layout)
    assert ops.reflect_pad_depthwise_conv3x3(x, images(3, 1, 3, 3), backend=backend).is_contiguous()


def test_every_tap_reads_its_own_pixel(isa):
    # Exact: one tap of weight one moves the reflected image by one pixel.
    x = torch.arange(2 * 20.0).view(1, 2, 4, 5)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    for row in range(3):
        for column in range(3):
            weight = torch.zeros(2, 1, 3, 3)
            weight[:, 0, row, column] = 1
            y = ops.reflect_pad_depthwise_conv3x3(x, weight, backend="cpu")
            assert torch.equal(y, padded[:, :, row : row + 4, column : column + 5])


def test_no_images(isa):
    y, grad_x, grad_weight, grad_bias = forward_backward(
        native, torch.empty(0, 3, 4, 4), torch.empty(0, 3, 4, 4), torch.ones(4, 1, 3, 3), torch.ones(4)
    )
    assert y.shape == grad_x.shape == (0, 3, 4, 4)
    assert torch.equal(grad_weight, torch.zeros(4, 1, 3, 3))
    assert torch.equal(grad_bias, torch.zeros(4))


def test_inactive_parameters_are_neither_read_nor_given_a_gradient(isa):
    grad, (x, weight, bias) = inputs((2, 3, 5, 12), True)
    active = forward_backward(native, grad, x, weight, bias)
    with poisoned_outputs():
        full = forward_backward(native, grad, x, with_inactive(weight), with_inactive(bias))
    for name, one, other in zip(("y", "x", "weight", "bias"), active, full, strict=True):
        assert torch.equal(one, other[: len(one)]), name
    assert torch.equal(full[2][3:], torch.zeros(3, 1, 3, 3))
    assert torch.equal(full[3][3:], torch.zeros(3))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_may_be_strided_views(backend):
    grad, (x, weight, bias) = inputs((2, 3, 5, 7), True)
    flipped = weight.transpose(2, 3).contiguous().transpose(2, 3)
    spread = torch.stack([bias, bias * float("nan")], 1)[:, 0]
    assert not flipped.is_contiguous()
    assert not spread.is_contiguous()

    def function(*tensors: Tensor) -> Tensor:
        return ops.reflect_pad_depthwise_conv3x3(*tensors, backend=backend)

    views = forward_backward(function, grad, x, flipped, spread)
    for one, other in zip(views, forward_backward(function, grad, x, weight, bias), strict=True):
        assert torch.equal(one, other)


def test_a_nan_reaches_its_neighbours_alone(isa):
    x = images(1, 2, 9, 20)
    x[0, 0, 4, 10] = float("nan")
    y = native(x, torch.ones(2, 1, 3, 3), None)
    expected = torch.zeros(1, 2, 9, 20, dtype=torch.bool)
    expected[0, 0, 3:6, 9:12] = True
    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
def test_only_the_wanted_gradients(isa, wanted):
    grad, tensors = inputs((2, 3, 5, 12), True)
    full = forward_backward(native, grad, *tensors)
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    with poisoned_outputs():
        native(*leaves).backward(grad)
    for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
        assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


def test_threads_do_not_change_a_bit(isa):
    grad, tensors = inputs((3, 5, 9, 11), True)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(forward_backward(native, grad, *tensors))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_cannot_be_differentiated_again():
    x, weight = images(1, 2, 4, 4).requires_grad_(), images(2, 1, 3, 3)
    (gradient,) = torch.autograd.grad(native(x, weight, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_channel_slice_is_not_copied():
    x, weight = images(2, 8, 16, 16), images(8, 1, 3, 3)
    y = 2 * 5 * 16 * 16 * 4
    with torch.no_grad():
        assert allocations(lambda: native(x[:, :5], weight, None)) == [y]
        last = laid_out(x[:, :5], "channels_last")
        assert allocations(lambda: native(last, weight, None)) == [y, y]


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout, requires_grad):
    x, grad = (images(2, 3, 5, 4, layout=layout, seed=seed).requires_grad_(requires_grad) for seed in (1, 2))
    weight, bias = images(5, 1, 3, 3).requires_grad_(requires_grad), torch.randn(5, requires_grad=requires_grad)
    backward = torch.ops.gancomp.reflect_pad_depthwise_conv3x3_backward.default
    plain = layout == "contiguous"
    for shift, needs_x in [(bias, True)] + [(None, True), (bias, False)] * plain:
        torch.library.opcheck(torch.ops.gancomp.reflect_pad_depthwise_conv3x3.default, (x, weight, shift))
        torch.library.opcheck(backward, (grad, x, weight, 0 if shift is None else 5, needs_x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_compile_takes_it_whole(layout):
    grad, tensors = inputs((2, 3, 5, 4), True, layout)
    torch._dynamo.reset()
    compiled = torch.compile(ops.reflect_pad_depthwise_conv3x3, backend="aot_eager", fullgraph=True)
    for one, other in zip(forward_backward(compiled, grad, *tensors), forward_backward(native, grad, *tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_float32_kernels(dtype):
    grad, (x, weight, bias) = inputs((2, 3, 5, 7), True)
    small = x.to(dtype)
    with torch.autocast("cpu", dtype):
        y, *gradients = forward_backward(native, grad, small, weight, bias)
        assert "cpu: runs" in ops.explain("reflect_pad_depthwise_conv3x3", small, weight)
    assert torch.equal(y, native(small.float(), weight, bias))
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]


X, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(3, 1, 3, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((X[0], WEIGHT), {}, r"x is torch.float32 \[3, 4, 5\]"),
        ((X.long(), WEIGHT), {}, "x is torch.int64"),
        ((X[:, :, :1], WEIGHT), {}, r"x of shape \[2, 3, 1, 5\]: expected channels, and height and width of at least 2"),
        ((X[:, :, :, :1], WEIGHT), {}, r"x of shape \[2, 3, 4, 1\]"),
        ((X[:, :0], WEIGHT), {}, r"x of shape \[2, 0, 4, 5\]"),
        ((X, WEIGHT[:2]), {}, r"weight of shape \[2, 1, 3, 3\], expected at least \[3, 1, 3, 3\]"),
        ((X, torch.zeros(3, 3, 3, 3)), {}, r"weight of shape \[3, 3, 3, 3\]"),
        ((X, torch.zeros(3, 1, 5, 5)), {}, r"weight of shape \[3, 1, 5, 5\]"),
        ((X, WEIGHT, torch.zeros(2)), {}, r"bias of shape \[2\], expected at least \[3\]"),
        ((X, WEIGHT.half()), {}, "weight is torch.float16"),
        ((X, WEIGHT, torch.zeros(3, device="meta")), {}, "bias is torch.float32 on meta"),
        ((X, WEIGHT), {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.reflect_pad_depthwise_conv3x3(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("reflect_pad_depthwise_conv3x3", *args, **kwargs)


def test_a_named_backend_does_not_fall_back():
    with pytest.raises(BackendError, match="reflect_pad_depthwise_conv3x3: backend 'cpu' cannot run this call: x is float64"):
        native(X.double(), WEIGHT.double(), None)
    assert ops.reflect_pad_depthwise_conv3x3(X.double(), WEIGHT.double()).dtype == torch.float64


def test_the_native_op_checks_its_own_inputs():
    op = torch.ops.gancomp.reflect_pad_depthwise_conv3x3
    for args, message in (
        ((X.double(), WEIGHT, None), "x must be float32"),
        ((X[:, :, :1], WEIGHT, None), "reflection needs h, w >= 2"),
        ((X, WEIGHT[:2], None), "weight must be"),
        ((X, WEIGHT, torch.zeros(2)), "bias must be a vector with an entry per channel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    with pytest.raises(RuntimeError, match="grad must have the shape of x"):
        torch.ops.gancomp.reflect_pad_depthwise_conv3x3_backward(X[:1], X, WEIGHT, 0, True)
