"""winograd_conv2d: the native kernels against PyTorch in double, measured by the same algorithm in stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp import BackendError, ConfigError, ops
from gancomp.testing import (
    LAYOUTS,
    WinogradConv2d,
    assert_accurate,
    forward_backward,
    images,
    laid_out,
    poisoned_outputs,
    tolerance,
    unchanged,
)


@dataclass(frozen=True)
class Case:
    """One call: channels, geometry."""

    c: int
    o: int
    stride: int = 1
    padding: int = 1
    size: tuple[int, int] = (9, 14)
    n: int = 2
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.n}x{self.c}to{self.o}-s{self.stride}p{self.padding}-{self.size[0]}x{self.size[1]}"

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def measure(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same algorithm in stock PyTorch, with its own gradients."""
        conv = nn.Conv2d(self.c, self.o, 4, self.stride, self.padding, device="meta")
        network = WinogradConv2d(conv)
        network.weight = network.bias = None
        network.__dict__.update(weight=weight, bias=bias)
        return network(x)

    def turned(self, turn: int) -> Callable[..., Tensor]:
        """The same again on images that are mirrored, turned or both, as ``turn`` from 0 to 7 says: with other roundings."""

        def around(image: Tensor) -> Tensor:
            image = image.rot90(turn % 4, (2, 3))
            return image.mT if turn >= 4 else image

        def back(image: Tensor) -> Tensor:
            return (image.mT if turn >= 4 else image).rot90(-turn % 4, (2, 3))

        return lambda x, weight, bias=None: back(self.measure(around(x), around(weight), bias))

    @property
    def turns(self) -> range:
        """Those of which the windows are the same."""
        whole = all((size + 2 * self.padding) % self.stride == 0 for size in self.size)
        return range(8) if whole else range(1)

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "cpu") -> Tensor:
        return ops.winograd_conv2d(x, weight, bias, stride=self.stride, padding=self.padding, backend=backend)

    def tensors(self, layout: str = "contiguous") -> list[Tensor | None]:
        """[x, weight, bias]."""
        x = images(self.n, self.c, *self.size, layout=layout, seed=1)
        return [x, images(self.o, self.c, 4, 4, seed=2), torch.linspace(-1.0, 2.0, self.o) if self.bias else None]

    def grad(self, layout: str = "contiguous") -> Tensor:
        return images(*self.stock(*self.tensors()).shape, layout=layout, seed=3)


CASES = [
    Case(3, 5),
    Case(1, 1, size=(4, 4), n=1, padding=0),  # one output
    Case(1, 1, size=(1, 1), padding=3),
    Case(2, 3, size=(2, 9), padding=2),
    Case(70, 130, size=(13, 8)),  # more than a block of channels, on both sides
    Case(6, 4, size=(5, 120), n=1),  # more tiles than are worked on at a time
    Case(5, 66, size=(31, 37), bias=False),  # tiles of several tasks
    Case(3, 5, stride=2),
    Case(3, 5, stride=2, size=(13, 10)),
    Case(3, 5, stride=2, size=(10, 13)),  # a last column that no window sees
    Case(1, 1, stride=2, size=(4, 4), n=1, padding=0),
    Case(2, 3, stride=2, size=(9, 8), padding=3),
    Case(2, 3, stride=2, size=(9, 8), padding=2),
    Case(4, 5, stride=2, size=(7, 18), padding=0, n=3),
    Case(20, 70, stride=2, size=(13, 8)),
    Case(70, 20, stride=2, size=(12, 6), bias=False),
    Case(6, 4, stride=2, size=(6, 290), n=1),
    Case(5, 66, stride=2, size=(70, 76)),
]


def check(case: Case, actual: list[Tensor], grad: Tensor, tensors: list[Tensor | None]) -> None:
    """Compare the result and the gradients with PyTorch in double.

    A few numbers come out more or less rounded by chance, and PyTorch's as well as ours: the measure is the largest error of
    the same algorithm on the image in all of its eight positions.
    """
    exact = forward_backward(case.stock, grad.double(), *[None if tensor is None else tensor.double() for tensor in tensors])
    measures = [forward_backward(case.turned(turn), grad, *tensors) for turn in case.turns]
    names = ("y", "gradient of x", "gradient of weight", "gradient of bias")
    for name, result, truth, *stock in zip(names, actual, exact, *measures, strict=False):
        assert_accurate(result, max(stock, key=lambda one, truth=truth: tolerance(one, truth)), truth, name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_native(isa, case):
    grad, tensors = case.grad(), case.tensors()
    with unchanged(grad, *tensors), poisoned_outputs():
        actual = forward_backward(case.ours, grad, *tensors)
    assert len(actual) == 3 + case.bias
    check(case, actual, grad, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(256, 128, size=(32, 32)), Case(128, 256, stride=2, size=(64, 64))], ids=str)
def test_sums_of_many_products(case):
    """As wide as a discriminator, where a sum of thousands of products would lose digits."""
    grad, tensors = case.grad(), case.tensors()
    check(case, forward_backward(case.ours, grad, *tensors), grad, tensors)


SMALL = [Case(5, 7, size=(6, 19)), Case(5, 7, stride=2, size=(6, 19))]
BOTH = pytest.mark.parametrize("case", SMALL, ids=str)


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
def test_weights_may_lie_in_any_order(case):
    grad, (x, weight, bias) = case.grad(), case.tensors()
    expected = forward_backward(case.ours, grad, x, weight, bias)
    for layout in ("channels_last", "permuted", "offset", "crop"):
        for one, other in zip(forward_backward(case.ours, grad, x, laid_out(weight, layout), bias), expected, strict=True):
            assert torch.equal(one, other), layout


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
def test_only_the_wanted_gradients(case, wanted):
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


@BOTH
def test_an_image_does_not_depend_on_its_neighbours(case):
    case = replace(case, n=5)
    x, weight, bias = case.tensors()
    y = case.ours(x, weight, bias)
    assert all(torch.equal(case.ours(x[i : i + 1], weight, bias), y[i : i + 1]) for i in range(5))
    x[2] = float("nan")
    assert torch.equal(case.ours(x, weight, bias).isnan().flatten(1).any(1), torch.arange(5) == 2)


@BOTH
def test_the_reference_is_differentiable_twice(case):
    case = replace(case, size=(5, 4), n=1)
    tensors = [tensor.double().requires_grad_() for tensor in case.tensors()]
    torch.autograd.gradcheck(lambda *t: case.ours(*t, backend="reference"), tensors)


@BOTH
def test_the_gradient_cannot_be_differentiated_again(case):
    x, weight, bias = case.tensors()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(case.ours(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:gancomp.*autograd kernel was not registered")  # its autograd is the Function outside
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channel_slice"])
@pytest.mark.parametrize("requires_grad", [False, True])
@BOTH
def test_opcheck(case, layout, requires_grad):
    case = replace(case, size=(5, 4))
    x, weight, bias = (tensor.requires_grad_(requires_grad) for tensor in case.tensors(layout))
    grad, geometry = case.grad(layout).requires_grad_(requires_grad), (case.stride, case.padding)
    torch.library.opcheck(torch.ops.gancomp.winograd_conv2d.default, (x, weight, bias, *geometry))
    for needs in ((True, True, True), (False, True, False), (True, False, True)):
        torch.library.opcheck(torch.ops.gancomp.winograd_conv2d_backward.default, (grad, x, weight, *geometry, *needs))


@BOTH
def test_torch_compile_takes_it_whole(case):
    grad, tensors = case.grad(), case.tensors()
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    for one, other in zip(forward_backward(compiled, grad, *tensors), forward_backward(case.ours, grad, *tensors), strict=True):
        assert torch.equal(one, other)


LARGE = Case(64, 64, size=(17, 17), n=1)  # just large enough


def chosen(case: Case = LARGE, *, to: torch.dtype | str = torch.float32, **kwargs: str) -> str:
    """The backend that runs, by explain()."""
    tensors = [tensor.to(to) for tensor in case.tensors()]
    text = ops.explain("winograd_conv2d", *tensors, stride=case.stride, padding=case.padding, **kwargs)
    return next(line.split(":")[0].strip() for line in text.splitlines()[1:] if line.endswith(": runs"))


def test_auto_takes_the_faster_one(monkeypatch):
    assert chosen() == "cpu"
    assert chosen(replace(LARGE, stride=2, size=(32, 32))) == "cpu"
    for case in (replace(LARGE, c=63), replace(LARGE, o=63), replace(LARGE, size=(17, 16))):
        assert chosen(case) == "reference"
        assert chosen(case, backend="cpu") == "cpu"
        x, weight, bias = case.tensors()
        assert torch.equal(case.ours(x, weight, bias, backend="auto"), case.stock(x, weight, bias))
    assert not torch.equal(LARGE.ours(*LARGE.tensors(), backend="auto"), LARGE.stock(*LARGE.tensors()))
    for name in ("reference", "cuda", "triton"):
        monkeypatch.setenv("GANCOMP_BACKEND", name)
        assert torch.equal(LARGE.ours(*LARGE.tensors(), backend="auto"), LARGE.stock(*LARGE.tensors()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_pytorchs(dtype):
    assert chosen(to=dtype) == "reference"
    tensors = [tensor.to(dtype) for tensor in LARGE.tensors()]
    assert torch.equal(LARGE.ours(*tensors, backend="auto"), LARGE.stock(*tensors))
    with pytest.raises(BackendError, match="winograd_conv2d: backend 'cpu' cannot run this call: x is "):
        LARGE.ours(*tensors)


def test_autocast_is_pytorchs():
    x, weight, bias = LARGE.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        for image in (x, x.bfloat16()):
            y = LARGE.ours(image, weight, bias, backend="auto")
            assert y.dtype == torch.bfloat16
            assert torch.equal(y, LARGE.stock(image, weight, bias))


def test_meta_tensors_have_shapes():
    tensors = [tensor.to("meta") for tensor in LARGE.tensors()]
    assert LARGE.ours(*tensors).shape == LARGE.grad().shape


X, WEIGHT = torch.zeros(2, 3, 5, 6), torch.zeros(4, 3, 4, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((X[0], WEIGHT), {}, r"x is torch.float32 \[3, 5, 6\]"),
        ((X.long(), WEIGHT), {}, "x is torch.int64"),
        ((X[:, :0], WEIGHT), {}, r"x is torch.float32 \[2, 0, 5, 6\]"),
        ((X, WEIGHT[:, :2]), {}, r"weight of shape \[4, 2, 4, 4\], expected \[O, 3, 4, 4\]"),
        ((X, WEIGHT[..., :3]), {}, r"weight of shape \[4, 3, 4, 3\]"),
        ((X, WEIGHT[:0]), {}, r"weight of shape \[0, 3, 4, 4\]"),
        ((X, WEIGHT, torch.zeros(3)), {}, r"bias of shape \[3\], expected \[4\]"),
        ((X, WEIGHT), {"stride": 3}, "stride=3, expected 1 or 2"),
        ((X, WEIGHT), {"padding": 4}, "padding=4, expected 0 to 3"),
        ((X[:, :, :3], WEIGHT), {}, "x has height 3, with padding 0 less than the kernel's 4"),
        ((X, WEIGHT.half()), {}, "weight is torch.float16"),
        ((X, WEIGHT, torch.zeros(4, device="meta")), {}, "bias is torch.float32 on meta"),
        ((X, WEIGHT), {"backend": "gpu"}, "backend='gpu': expected auto, cuda, cpu, triton, reference"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, named):
    with pytest.raises(ConfigError, match=named):
        ops.winograd_conv2d(*args, **kwargs)
    with pytest.raises(ConfigError, match=named):
        ops.explain("winograd_conv2d", *args, **kwargs)


def test_a_backend_that_it_lacks():
    with pytest.raises(BackendError, match="winograd_conv2d has no cuda implementation"):
        ops.winograd_conv2d(X, WEIGHT, backend="cuda")


def test_the_native_op_checks_its_own_inputs():
    op = torch.ops.gancomp.winograd_conv2d
    for args, message in (
        ((X.double(), WEIGHT, None, 1, 1), "x must be float32"),
        ((X, WEIGHT[:, :2], None, 1, 1), "weight must be"),
        ((X, WEIGHT[0], None, 1, 1), "weight must be"),
        ((X, WEIGHT, torch.zeros(3), 1, 1), "bias must be a vector with an entry per channel"),
        ((X, WEIGHT, None, 3, 1), "stride must be 1 or 2"),
        ((X, WEIGHT, None, 1, 4), "padding must be"),
        ((X[:, :, :3], WEIGHT, None, 1, 0), "x is smaller than the kernel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    with pytest.raises(RuntimeError, match="grad must have the shape of the output"):
        torch.ops.gancomp.winograd_conv2d_backward(X[:1], X, WEIGHT, 1, 1, True, True, True)
