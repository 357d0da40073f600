"""instance_norm_act: the reference against PyTorch, the native kernels against the reference."""

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
VARIANTS = list(itertools.product([False, True], repeat=3))  # affine, relu, residual
SHAPES = [(1, 1, 2, 2), (2, 3, 5, 7), (3, 2, 1, 9), (1, 4, 16, 16), (2, 1, 33, 31), (1, 2, 64, 67)]


def stock(relu: bool) -> Callable[..., Tensor]:
    """The op by PyTorch's own functions, in the dtype of its inputs."""

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        y = F.instance_norm(x, weight=weight, bias=bias, eps=EPS)
        y = F.relu(y) if relu else y
        return y if residual is None else y + residual

    return function


def native(relu: bool, backend: str = "cpu") -> Callable[..., Tensor]:
    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return ops.instance_norm_act(x, weight, bias, relu=relu, residual=residual, backend=backend)

    return function


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def inputs(
    shape: tuple[int, ...], affine: bool, relu: bool, residual: bool, layout: str = "contiguous", mean: float = 0.0
) -> tuple[Tensor, list[Tensor | None]]:
    """A gradient of y and [x, weight, bias, residual]."""
    x = images(*shape, layout=layout, mean=mean, seed=1)
    weight = torch.linspace(-1.0, 1.5, shape[1]) if affine else None
    bias = torch.linspace(0.5, -0.7, shape[1]) if affine else None
    added = images(*shape, layout=layout, seed=2) if residual else None
    grad = images(*shape, layout=layout, seed=3)
    if relu:  # within rounding of the kink either gradient is right, so none flows there
        value = reference.instance_norm_act(x.double(), double(weight), double(bias), None, False, EPS)
        grad.masked_fill_(value.abs() < 1e-3, 0.0)
    return grad, [x, weight, bias, added]


def check(actual: list[Tensor], grad: Tensor, tensors: list[Tensor | None], relu: bool) -> None:
    """Compare a result and gradients with the float64 reference; PyTorch's own error is the measure."""
    exact = forward_backward(
        lambda x, w, b, r: reference.instance_norm_act(x, w, b, r, relu, EPS), grad.double(), *map(double, tensors)
    )
    measure = forward_backward(stock(relu), grad, *tensors)
    present = [name for name, tensor in zip(("x", "weight", "bias", "residual"), tensors, strict=True) if tensor is not None]
    for name, *three in zip(["y", *(f"gradient of {name}" for name in present)], actual, measure, exact, strict=True):
        assert_accurate(*three, name)


@pytest.mark.parametrize(("affine", "relu", "residual"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_pytorch_in_double(shape, affine, relu, residual):
    grad, tensors = inputs(shape, affine, relu, residual)
    grad, tensors = grad.double(), [double(tensor) for tensor in tensors]
    ours = forward_backward(lambda x, w, b, r: reference.instance_norm_act(x, w, b, r, relu, EPS), grad, *tensors)
    theirs = forward_backward(stock(relu), grad, *tensors)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("affine", "relu", "residual"), VARIANTS)
def test_gradients_of_the_reference(affine, relu, residual):
    _, tensors = inputs((2, 2, 3, 2), affine, relu, residual)
    leaves = [None if tensor is None else tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *t: reference.instance_norm_act(*t, relu, EPS), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reference_rounds_16_bits_once(dtype):
    x = images(2, 3, 8, 8, mean=300.0, dtype=dtype)  # squares of it overflow float16
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=dtype)
    y = reference.instance_norm_act(x, weight, None, x, True, EPS)
    wide = reference.instance_norm_act(x.float(), weight.float(), None, x.float(), True, EPS)
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize(("affine", "relu", "residual"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_native(isa, shape, affine, relu, residual):
    grad, tensors = inputs(shape, affine, relu, residual)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native(relu), grad, *tensors)
    check(actual, grad, tensors, relu)


@pytest.mark.parametrize(("affine", "relu", "residual"), [(False, False, False), (True, True, True)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(isa, layout, affine, relu, residual):
    grad, tensors = inputs((2, 5, 6, 7), affine, relu, residual, layout)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(native(relu), grad, *tensors)
        dense = forward_backward(native(relu), grad.contiguous(), *(t if t is None else t.contiguous() for t in tensors))
    check(actual, grad, tensors, relu)
    for one, other in zip(actual, dense, strict=True):
        assert torch.equal(one, other), "the layout changes the result"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_contiguous(backend, layout):
    x = images(2, 3, 4, 5, layout=layout)
    assert ops.instance_norm_act(x, relu=True, residual=x, backend=backend).is_contiguous()


@pytest.mark.parametrize("mean", [30.0, 1000.0, -3e6])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 64, 67)])
def test_the_error_does_not_grow_with_the_mean(isa, shape, mean):
    # Taking the mean off is exact in float32 and changes neither result nor gradients: PyTorch's error without it is the
    # measure, which is far below its error with it.
    grad, (x, *others) = inputs(shape, True, True, True, mean=mean)
    centred = x - mean
    assert torch.equal(centred.double() + mean, x.double())
    actual = forward_backward(native(True), grad, x, *others)
    check(actual, grad, [centred, *others], True)


def test_a_constant_plane_becomes_its_shift(isa):
    x = torch.full((1, 2, 61, 97), 0.1)
    x[:, 1] = 1e6
    bias = torch.tensor([0.25, -0.5])
    y = ops.instance_norm_act(x, None, bias, backend="cpu")
    assert torch.equal(y, bias.view(1, 2, 1, 1).expand_as(y))


def test_planes_of_one_pixel(isa):
    x, residual, bias = images(2, 3, 1, 1), images(2, 3, 1, 1, seed=1), torch.tensor([-1.0, 0.5, 2.0])
    y, grad_x, grad_bias, grad_residual = forward_backward(
        lambda x, b, r: ops.instance_norm_act(x, None, b, relu=True, residual=r, backend="cpu"),
        torch.ones(2, 3, 1, 1), x, bias, residual,
    )  # fmt: skip
    assert torch.equal(y, bias.relu().view(1, 3, 1, 1) + residual)
    assert torch.equal(grad_x, torch.zeros_like(x))
    assert grad_bias.tolist() == [0.0, 2.0, 2.0]
    assert torch.equal(grad_residual, torch.ones_like(x))


def test_no_images(isa):
    weight, bias = torch.ones(4), torch.ones(4)
    y, *gradients = forward_backward(
        lambda x, w, b: ops.instance_norm_act(x, w, b, relu=True, backend="cpu"), torch.empty(0, 3, 4, 4),
        torch.empty(0, 3, 4, 4), weight, bias,
    )  # fmt: skip
    assert y.shape == gradients[0].shape == (0, 3, 4, 4)
    assert [g.tolist() for g in gradients[1:]] == [[0.0] * 4] * 2


@pytest.mark.parametrize("relu", [False, True])
def test_inactive_parameters_are_neither_read_nor_given_a_gradient(isa, relu):
    grad, (x, weight, bias, residual) = inputs((2, 3, 5, 7), True, relu, True)
    active = forward_backward(native(relu), grad, x, weight, bias, residual)
    with poisoned_outputs():
        full = forward_backward(native(relu), grad, x, with_inactive(weight), with_inactive(bias), residual)
    for name, one, other in zip(("y", "x", "weight", "bias", "residual"), active, full, strict=True):
        assert torch.equal(one, other[: len(one)]), name
    for gradient in full[2:4]:
        assert gradient.shape == (6,)
        assert gradient[3:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_may_be_strided_views(backend):
    grad, (x, weight, bias, _) = inputs((2, 3, 5, 7), True, True, False)
    spread = [torch.stack([vector, vector * float("nan")], 1)[:, 0] for vector in (weight, bias)]
    assert not spread[0].is_contiguous()
    for one, other in zip(
        forward_backward(native(True, backend), grad, x, *spread, None),
        forward_backward(native(True, backend), grad, x, weight, bias, None),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_nan_stays_visible(isa):
    x = images(1, 2, 4, 20)
    x[0, 0, 1, 1] = float("nan")
    y = ops.instance_norm_act(x, relu=True, backend="cpu")
    assert y[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


def test_both_passes_agree_on_the_sign(isa):
    # Shifts that put many pixels within rounding of zero: the gradient of the shift counts the pixels let through.
    x = torch.randint(0, 8, (1, 40, 16, 16), generator=torch.Generator().manual_seed(4)) / 7.0
    weight = torch.linspace(0.1, 3.0, 40)
    plain = ops.instance_norm_act(x, weight, backend="cpu")
    bias = -plain[0, :, 0, 0].detach()
    y, _, grad_bias = forward_backward(
        lambda x, b: ops.instance_norm_act(x, weight, b, relu=True, backend="cpu"), torch.ones_like(x), x, bias
    )
    assert torch.equal(grad_bias, (y > 0).sum(dim=(0, 2, 3)).float())


def test_only_the_wanted_gradients(isa):
    grad, (x, weight, bias, residual) = inputs((2, 3, 5, 7), True, True, True)
    full = forward_backward(native(True), grad, x, weight, bias, residual)
    for wanted in ([True, False, False, False], [False, True, False, False], [False, False, True, True]):
        leaves = [t.detach().requires_grad_(want) for t, want in zip((x, weight, bias, residual), wanted, strict=True)]
        native(True)(*leaves).backward(grad)
        for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
            assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


def test_threads_do_not_change_a_bit(isa):
    grad, tensors = inputs((3, 5, 9, 11), True, True, True)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(forward_backward(native(True), grad, *tensors))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_cannot_be_differentiated_again():
    x = images(1, 2, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.instance_norm_act(x, backend="cpu").square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_channel_slice_is_not_copied():
    x = images(2, 8, 16, 16)
    y, mean, rstd = 2 * 5 * 16 * 16 * 4, 2 * 5 * 8, 2 * 5 * 4
    with torch.no_grad():
        assert allocations(lambda: ops.instance_norm_act(x[:, :5], backend="cpu")) == [y, mean, rstd]
        assert allocations(lambda: ops.instance_norm_act(x[:, :5], residual=x[:, 3:], backend="cpu")) == [y, mean, rstd]
        last = laid_out(x[:, :5], "channels_last")
        assert sorted(allocations(lambda: ops.instance_norm_act(last, backend="cpu"))) == [rstd, mean, y, y]


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout, requires_grad):
    x, residual, grad = (images(2, 3, 5, 4, layout=layout, seed=seed).requires_grad_(requires_grad) for seed in (1, 2, 3))
    weight, bias = (torch.randn(5, requires_grad=requires_grad) for _ in range(2))
    plain = layout == "contiguous"
    for others in [(weight, bias, residual)] + [(None, None, None)] * plain:
        torch.library.opcheck(torch.ops.gancomp.instance_norm_act.default, (x, *others, True, EPS))
        _, mean, rstd = torch.ops.gancomp.instance_norm_act(x.detach(), *others, True, EPS)
        args = (grad, x, *others[:2], mean.detach(), rstd.detach(), True)
        torch.library.opcheck(torch.ops.gancomp.instance_norm_act_backward.default, args)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_compile_takes_it_whole(layout):
    grad, tensors = inputs((2, 3, 5, 4), True, True, True, layout)
    function = native(True, "auto")
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for one, other in zip(forward_backward(compiled, grad, *tensors), forward_backward(function, grad, *tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_float32_kernels(dtype):
    grad, (x, weight, bias, residual) = inputs((2, 3, 5, 7), True, True, True)
    small = x.to(dtype)
    expected = native(True)(small.float(), weight, bias, residual)
    with torch.autocast("cpu", dtype):
        y, *gradients = forward_backward(native(True), grad, small, weight, bias, residual)
        assert "cpu: runs" in ops.explain("instance_norm_act", small, weight)
    assert torch.equal(y, expected)
    assert [g.dtype for g in gradients] == [dtype, torch.float32, torch.float32, torch.float32]


X = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((torch.zeros(3, 4, 5),), {}, r"x is torch.float32 \[3, 4, 5\]"),
        ((X.int(),), {}, "x is torch.int32"),
        ((torch.zeros(2, 3, 0, 5),), {}, r"x of shape \[2, 3, 0, 5\]"),
        ((torch.zeros(2, 0, 4, 5),), {}, r"x of shape \[2, 0, 4, 5\]"),
        ((X, torch.ones(2)), {}, r"weight of shape \[2\], expected at least \[3\]"),
        ((X, torch.ones(3, 1)), {}, r"weight of shape \[3, 1\]"),
        ((X, None, torch.ones(2)), {}, r"bias of shape \[2\]"),
        ((X, torch.ones(3).double()), {}, "weight is torch.float64"),
        ((X, None, torch.ones(3, device="meta")), {}, "bias is torch.float32 on meta"),
        ((X,), {"residual": X[:, :2]}, r"residual of shape \[2, 2, 4, 5\]"),
        ((X,), {"residual": X.half()}, "residual is torch.float16"),
        ((X,), {"eps": 0.0}, "eps=0.0"),
        ((X,), {"eps": float("nan")}, "eps=nan"),
        ((X,), {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.instance_norm_act(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("instance_norm_act", *args, **kwargs)


def test_a_named_backend_does_not_fall_back():
    with pytest.raises(BackendError, match="instance_norm_act: backend 'cpu' cannot run this call: x is float64"):
        ops.instance_norm_act(X.double(), backend="cpu")
    assert ops.instance_norm_act(X.double()).dtype == torch.float64


def test_the_native_op_checks_its_own_inputs():
    op = torch.ops.gancomp.instance_norm_act
    for args, message in (
        ((X.double(), None, None, None), "x must be float32"),
        ((X[0], None, None, None), r"x must be \[N, C, H, W\]"),
        ((X, torch.ones(2), None, None), "weight must be a vector with an entry per channel"),
        ((X, None, None, X[:, :2]), "residual must have the shape of x"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args, False, EPS)
    statistics = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="mean must be float64"):
        torch.ops.gancomp.instance_norm_act_backward(X, X, None, None, statistics, statistics, False)
