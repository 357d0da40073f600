"""sliced_conv2d and sliced_conv_transpose2d: the native kernels against PyTorch in double, on slices of poisoned weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import BackendError, ConfigError, ops
from gancomp.testing import (
    LAYOUTS,
    allocations,
    assert_accurate,
    forward_backward,
    images,
    laid_out,
    poisoned_outputs,
    unchanged,
)


@dataclass(frozen=True)
class Case:
    """One call: active and full channels, geometry."""

    c: int
    o: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    mode: str = "zeros"  # or "transpose"
    output_padding: int = 0
    size: tuple[int, int] = (9, 21)
    n: int = 2
    spare: int = 3

    @property
    def transposed(self) -> bool:
        return self.mode == "transpose"

    @property
    def op(self) -> str:
        return "sliced_conv_transpose2d" if self.transposed else "sliced_conv2d"

    def __str__(self) -> str:
        kernel, size = "x".join(map(str, self.kernel)), "x".join(map(str, self.size))
        return f"{self.mode}-{self.c}to{self.o}-k{kernel}s{self.stride}p{self.padding}+{self.output_padding}-{size}"

    def active(self, weight: Tensor) -> Tensor:
        return weight[: self.c, : self.o] if self.transposed else weight[: self.o, : self.c]

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's own functions on the active slices."""
        weight, bias = self.active(weight), None if bias is None else bias[: self.o]
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)
        if self.mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(F.pad(x, [self.padding] * 4, mode=self.mode), weight, bias, self.stride)

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "cpu") -> Tensor:
        if self.transposed:
            return ops.sliced_conv_transpose2d(
                x, weight, bias, out_channels=self.o, stride=self.stride, padding=self.padding,
                output_padding=self.output_padding, backend=backend,
            )  # fmt: skip
        return ops.sliced_conv2d(
            x, weight, bias, out_channels=self.o, stride=self.stride, padding=self.padding, padding_mode=self.mode,
            backend=backend,
        )  # fmt: skip

    def tensors(self, layout: str = "contiguous", poison: float = float("nan")) -> list[Tensor]:
        """[x, weight, bias], the inactive part of the last two filled with ``poison``."""
        full_c, full_o = self.c + self.spare, self.o + self.spare
        shape = (full_c, full_o) if self.transposed else (full_o, full_c)
        weight = torch.full((*shape, *self.kernel), poison)
        active = self.active(weight)
        active.copy_(images(*active.shape, seed=2))
        bias = torch.full((full_o,), poison)
        bias[: self.o] = torch.linspace(-1.0, 2.0, self.o)
        return [images(self.n, self.c, *self.size, layout=layout, seed=1), weight, bias]

    def grad(self, layout: str = "contiguous") -> Tensor:
        shape = self.stock(*self.tensors(poison=0.0)).shape
        return images(*shape, layout=layout, seed=3)


CASES = [
    Case(3, 5),
    Case(1, 1, size=(3, 3), n=1),
    Case(7, 13, kernel=(1, 1), padding=0),
    Case(96, 50, kernel=(1, 1), padding=0, size=(40, 33), n=1),  # more pixels than a tile
    Case(5, 7, kernel=(1, 1), padding=0, stride=2),
    Case(3, 9, kernel=(7, 7), padding=3, mode="reflect", size=(13, 30)),
    Case(9, 3, kernel=(7, 7), padding=3, mode="reflect", size=(4, 70)),  # reflections of both borders meet
    Case(6, 6, mode="reflect", size=(2, 2)),
    Case(6, 11, mode="reflect", size=(33, 65), n=1),
    Case(4, 3, kernel=(5, 5), padding=2, mode="replicate", size=(3, 40)),
    Case(4, 3, kernel=(5, 3), padding=2, mode="replicate", size=(2, 1)),
    Case(5, 6, stride=2),
    Case(5, 6, stride=2, size=(8, 300), n=1),
    Case(3, 4, kernel=(4, 4), stride=2, size=(10, 12)),
    Case(3, 4, kernel=(4, 4), stride=1, size=(10, 12)),
    Case(3, 4, kernel=(3, 5), stride=3, padding=2, size=(11, 17)),
    Case(2, 3, kernel=(2, 2), stride=4, padding=0, size=(9, 9)),
    Case(3, 2, stride=2, mode="reflect", size=(7, 8)),
    Case(3, 2, kernel=(5, 5), stride=3, padding=2, mode="replicate", size=(7, 8)),
    Case(2, 2, kernel=(11, 1), padding=0, size=(12, 5)),
    Case(1, 2, kernel=(15, 15), padding=7, size=(8, 40), n=1),
    Case(3, 2, kernel=(15, 2), padding=1, size=(14, 40), n=1),
    Case(70, 4, kernel=(7, 7), padding=3, mode="reflect", size=(9, 300), n=1),  # channels beyond the scratch of one tile
    Case(5, 7, mode="transpose", stride=2, output_padding=1),
    Case(6, 4, mode="transpose", stride=2, output_padding=1, size=(20, 140), n=1),
    Case(5, 3, mode="transpose", stride=2, kernel=(4, 4)),
    Case(5, 3, mode="transpose", stride=1),
    Case(2, 3, mode="transpose", stride=3, kernel=(2, 5), padding=1, output_padding=2, size=(4, 6)),
    Case(2, 3, mode="transpose", stride=4, kernel=(3, 3), padding=0, output_padding=3, size=(3, 5)),
    Case(2, 3, mode="transpose", stride=2, kernel=(1, 1), padding=0, size=(3, 5)),
    Case(4, 2, mode="transpose", size=(1, 1), stride=2, output_padding=1),
]


def check(case: Case, actual: list[Tensor], grad: Tensor, tensors: list[Tensor]) -> None:
    """Compare the result and the active gradients with PyTorch in double; the inactive ones must be zero."""
    plain = case.tensors(poison=0.0)
    plain[0] = tensors[0]
    exact = forward_backward(case.stock, grad.double(), *[tensor.double() for tensor in plain])
    measure = forward_backward(case.stock, grad, *plain)
    assert actual[2].shape == tensors[1].shape
    assert actual[3].shape == tensors[2].shape
    names = ("y", "gradient of x", "gradient of weight", "gradient of bias")
    for name, *three in zip(names, actual, measure, exact, strict=True):
        assert_accurate(*three, name)
    inactive = torch.ones_like(actual[2], dtype=torch.bool)
    case.active(inactive).zero_()
    assert not actual[2][inactive].any()
    assert not actual[3][case.o :].any()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_native(isa, case):
    grad, tensors = case.grad(), case.tensors()
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(case.ours, grad, *tensors)
    check(case, actual, grad, tensors)


CONV = Case(5, 7, mode="reflect", size=(6, 19))
UP = Case(5, 7, mode="transpose", stride=2, output_padding=1, size=(6, 11))
BOTH = pytest.mark.parametrize("case", [CONV, UP], ids=str)


@pytest.mark.parametrize("layout", LAYOUTS)
@BOTH
def test_memory_layouts(isa, case, layout):
    grad, tensors = case.grad(layout), case.tensors(layout)
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(case.ours, grad, *tensors)
        dense = forward_backward(case.ours, grad.contiguous(), tensors[0].contiguous(), *tensors[1:])
    check(case, actual, grad, tensors)
    for one, other in zip(actual, dense, strict=True):
        assert torch.equal(one, other), "the layout changes the result"


@BOTH
def test_weights_may_lie_in_any_order(isa, case):
    grad, (x, weight, bias) = case.grad(), case.tensors()
    expected = forward_backward(case.ours, grad, x, weight, bias)
    for layout in ("channels_last", "permuted", "offset", "crop"):
        for one, other in zip(forward_backward(case.ours, grad, x, laid_out(weight, layout), bias), expected, strict=True):
            assert torch.equal(one, other), layout


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@BOTH
def test_the_result_is_contiguous(case, backend):
    for layout in LAYOUTS:
        assert case.ours(*case.tensors(layout), backend=backend).is_contiguous()


@BOTH
def test_threads_do_not_change_a_bit(isa, case):
    case = replace(case, size=(40, 50), n=3)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(forward_backward(case.ours, case.grad(), *case.tensors()))
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
@BOTH
def test_only_the_wanted_gradients(isa, case, wanted):
    grad, tensors = case.grad(), case.tensors()
    full = forward_backward(case.ours, grad, *tensors)
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    with poisoned_outputs():
        case.ours(*leaves).backward(grad)
    for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
        assert torch.equal(leaf.grad, expected) if want else leaf.grad is None


@BOTH
def test_no_images(isa, case):
    x, weight, bias = case.tensors()
    y, grad_x, grad_weight, grad_bias = forward_backward(case.ours, case.grad()[:0], x[:0], weight, bias)
    assert y.shape[0] == grad_x.shape[0] == 0
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_a_nan_reaches_its_neighbours_alone(isa):
    x = images(1, 2, 9, 40)
    x[0, 0, 4, 20] = float("nan")
    y = ops.sliced_conv2d(x, torch.ones(8, 2, 3, 3), padding=1, backend="cpu")
    expected = torch.zeros(1, 8, 9, 40, dtype=torch.bool)
    expected[:, :, 3:6, 19:22] = True
    assert torch.equal(y.isnan(), expected)


@BOTH
def test_nothing_is_copied(case):
    # Forward: the result. Backward: the gradients, those of the parameters in full shape, which autograd keeps as they are.
    _, weight, bias = case.tensors()
    wide = images(case.n, case.c + 2, *case.size)[:, : case.c]
    grad = case.grad()
    with torch.no_grad():
        assert allocations(lambda: case.ours(wide, weight, bias)) == [grad.numel() * 4]
    leaves = [wide.clone()[:, : case.c].requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    y = case.ours(*leaves)
    sizes = allocations(lambda: y.backward(grad))
    assert sorted(sizes) == sorted(tensor.numel() * 4 for tensor in leaves)


@BOTH
def test_the_gradient_cannot_be_differentiated_again(case):
    x, weight, bias = case.tensors(poison=0.0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(case.ours(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
@BOTH
def test_opcheck(case, layout, requires_grad):
    case = replace(case, size=(5, 4))
    x, weight, bias = (tensor.requires_grad_(requires_grad) for tensor in case.tensors(layout, poison=0.0))
    grad = case.grad(layout).requires_grad_(requires_grad)
    last = case.output_padding if case.transposed else 1
    geometry = (case.stride, case.padding, last)
    namespace: Any = torch.ops.gancomp
    forward, backward = getattr(namespace, case.op), getattr(namespace, case.op + "_backward")
    torch.library.opcheck(forward.default, (x, weight, bias, case.o, *geometry))
    for size, needs_x, needs_weight in ((len(bias), True, True), (0, False, True), (0, True, False)):
        torch.library.opcheck(backward.default, (grad, x, weight, *geometry, size, needs_x, needs_weight))


@BOTH
def test_torch_compile_takes_it_whole(case):
    grad, tensors = case.grad(), case.tensors(poison=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    for one, other in zip(forward_backward(compiled, grad, *tensors), forward_backward(case.ours, grad, *tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BOTH
def test_autocast_runs_the_float32_kernels(case, dtype):
    grad, (x, weight, bias) = case.grad(), case.tensors()
    small = x.to(dtype)
    with torch.autocast("cpu", dtype):
        y, *gradients = forward_backward(case.ours, grad, small, weight, bias)
    assert torch.equal(y, case.ours(small.float(), weight, bias))
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]


X, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((X[0], WEIGHT), {}, r"x is torch.float32 \[3, 4, 5\]"),
        ((X.long(), WEIGHT), {}, "x is torch.int64"),
        ((X[:, :0], WEIGHT), {}, r"x is torch.float32 \[2, 0, 4, 5\]"),
        ((X, WEIGHT[:, :2]), {}, r"weight of shape \[4, 2, 3, 3\], expected \[O, C, kh, kw\] with C of at least 3"),
        ((X, WEIGHT[0]), {}, r"weight of shape \[3, 3, 3\]"),
        ((X, torch.zeros(1, 3, 0, 1)), {}, r"weight of shape \[1, 3, 0, 1\]"),
        ((X, WEIGHT), {"out_channels": 5}, r"out_channels=5, expected 1 to 4"),
        ((X, WEIGHT), {"out_channels": 0}, r"out_channels=0, expected 1 to 4"),
        ((X, WEIGHT, torch.zeros(3)), {}, r"bias of shape \[3\], expected at least \[4\]"),
        ((X, WEIGHT), {"stride": 0}, "stride=0, expected at least 1"),
        ((X, WEIGHT), {"padding": -1}, "padding=-1, expected at least 0"),
        ((X, WEIGHT), {"padding_mode": "circular"}, "padding_mode='circular', expected zeros, reflect, replicate"),
        ((X[:, :, :2], WEIGHT), {}, "x has height 2, with padding 0 less than the kernel's 3"),
        (
            (X[:, :, :, :2], torch.zeros(4, 3, 5, 5)),
            {"padding": 2, "padding_mode": "reflect"},
            "x has width 2, reflection by 2",
        ),
        ((X, WEIGHT.half()), {}, "weight is torch.float16"),
        ((X, WEIGHT, torch.zeros(4, device="meta")), {}, "bias is torch.float32 on meta"),
        ((X, WEIGHT), {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.sliced_conv2d(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("sliced_conv2d", *args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((X, WEIGHT[:2]), {}, r"weight of shape \[2, 3, 3, 3\], expected \[C, O, kh, kw\] with C of at least 3"),
        ((X, WEIGHT), {"out_channels": 4}, r"out_channels=4, expected 1 to 3"),
        ((X, WEIGHT), {"stride": 2, "output_padding": 2}, r"output_padding=2, expected 0 to 1 \(less than the stride\)"),
        ((X[:, :, :1], WEIGHT), {"padding": 2}, "x has height 1, of which padding 2 leaves nothing"),
    ],
)
def test_bad_arguments_of_the_transposed_one_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.sliced_conv_transpose2d(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("sliced_conv_transpose2d", *args, **kwargs)


@BOTH
def test_a_named_backend_does_not_fall_back(case):
    x, weight, bias = (tensor.double() for tensor in case.tensors(poison=0.0))
    with pytest.raises(BackendError, match=f"{case.op}: backend 'cpu' cannot run this call: x is float64"):
        case.ours(x, weight, bias)
    assert case.ours(x, weight, bias, backend="auto").dtype == torch.float64


def test_what_the_kernels_do_not_take_goes_to_the_reference():
    for case in (
        Case(2, 3, kernel=(17, 1), padding=0, size=(18, 9)),
        Case(2, 3, stride=5),
        Case(2, 3, kernel=(1, 1), padding=1),
        Case(2, 3, mode="transpose", stride=5, output_padding=4),
    ):
        tensors = case.tensors()
        with pytest.raises(
            BackendError, match=f"stride {case.stride}, padding {case.padding}: they take kernels of at most 15"
        ):
            case.ours(*tensors)
        assert torch.equal(case.ours(*tensors, backend="auto"), case.stock(*tensors))


def test_the_native_op_checks_its_own_inputs():
    op, up = torch.ops.gancomp.sliced_conv2d, torch.ops.gancomp.sliced_conv_transpose2d
    for args, message in (
        ((X.double(), WEIGHT, None, 4, 1, 1, 0), "x must be float32"),
        ((X, WEIGHT[0], None, 4, 1, 1, 0), "weight must have four dimensions"),
        ((X, WEIGHT, None, 5, 1, 1, 0), "weight must have at least the channels"),
        ((X, WEIGHT, torch.zeros(3), 4, 1, 1, 0), "bias must be a vector with an entry per channel"),
        ((X, WEIGHT, None, 4, 5, 1, 0), "stride must be"),
        ((X, WEIGHT, None, 4, 1, 3, 0), "padding must be"),
        ((X, WEIGHT, None, 4, 1, 1, 3), "mode must be"),
        ((X[:, :, :1], WEIGHT, None, 4, 1, 1, 1), "reflection needs"),
        ((X[:, :, :2], WEIGHT, None, 4, 1, 0, 0), "x is smaller than the kernel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    with pytest.raises(RuntimeError, match="output_padding must be"):
        up(X, WEIGHT, None, 3, 2, 1, 2)
    with pytest.raises(RuntimeError, match="grad must have the shape of the output"):
        torch.ops.gancomp.sliced_conv2d_backward(X[:1], X, WEIGHT, 1, 1, 0, 0, True, True)
