"""Sliced convolutions in Triton against PyTorch's own in float64, on slices of poisoned weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import ops
from gancomp.testing import LAYOUTS, assert_accurate, forward_backward, images, laid_out, poisoned_outputs, unchanged

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

from gancomp.kernels import sliced_conv as kernels  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One call: active and full channels, geometry. ``mode`` is how it pads, or ``transpose``."""

    c: int
    o: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    mode: str = "zeros"
    output_padding: int = 0
    size: tuple[int, int] = (5, 7)
    n: int = 2

    @property
    def transposed(self) -> bool:
        return self.mode == "transpose"

    def __str__(self) -> str:
        return f"{self.mode}-{self.c}to{self.o}-k{self.kernel}s{self.stride}p{self.padding}-{self.size}".replace(" ", "")

    def active(self, weight: Tensor) -> Tensor:
        return weight[: self.c, : self.o] if self.transposed else weight[: self.o, : self.c]

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's own functions on the active slices, weights in the dtype of the image."""
        weight, bias = self.active(weight).to(x.dtype), None if bias is None else bias[: self.o].to(x.dtype)
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)
        if self.mode == "zeros":
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(F.pad(x, [self.padding] * 4, mode=self.mode), weight, bias, self.stride)

    def op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The op that runs these kernels."""
        settings = {"out_channels": self.o, "stride": self.stride, "padding": self.padding, "backend": "triton"}
        if self.transposed:
            return ops.sliced_conv_transpose2d(x, weight, bias, output_padding=self.output_padding, **settings)
        return ops.sliced_conv2d(x, weight, bias, padding_mode=self.mode, **settings)

    def ours(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, out: int | None = None, widths: Tensor | None = None
    ) -> Tensor:
        out = self.o if out is None else out
        if self.transposed:
            settings = self.stride, self.padding, self.output_padding
            return kernels.SlicedConvTranspose2dTriton.apply(x, weight, bias, out, *settings, widths)
        mode = ("zeros", "reflect", "replicate").index(self.mode)
        return kernels.SlicedConv2dTriton.apply(x, weight, bias, out, self.stride, self.padding, mode, widths)

    def tensors(
        self, device: torch.device, dtype: torch.dtype = torch.float32, layout: str = "contiguous", spare: int = 3,
        weights: torch.dtype | None = None, poison: float = NAN,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Image, full weight and bias with NaN in their inactive part, and the gradient of the result."""
        shape = (self.c + spare, self.o + spare) if self.transposed else (self.o + spare, self.c + spare)
        weight = torch.full((*shape, *self.kernel), poison)
        active = self.active(weight)
        active.copy_(images(*active.shape, seed=2))
        bias = torch.full((self.o + spare,), poison)
        bias[: self.o] = torch.linspace(-1.0, 2.0, self.o)
        x = images(self.n, self.c, *self.size, seed=1)
        grad = images(*self.stock(x, torch.zeros_like(weight), None).shape, seed=3)
        weight, bias = (tensor.to(device, weights or dtype) for tensor in (weight, bias))
        x, grad = (laid_out(tensor.to(device, dtype), layout) for tensor in (x, grad))
        return x, weight, bias, grad


CASES = [
    Case(5, 7),
    Case(1, 1, size=(3, 3), n=1),
    Case(37, 5, kernel=(1, 1), padding=0),  # two blocks of input channels
    Case(5, 70, kernel=(1, 1), padding=0, size=(9, 9)),  # two blocks of output channels and of pixels
    Case(5, 7, kernel=(1, 1), padding=0, stride=2),
    Case(3, 9, kernel=(7, 7), padding=3, mode="reflect", size=(8, 9)),
    Case(20, 3, kernel=(5, 5), padding=2, mode="reflect", size=(3, 7)),  # reflections of both borders meet
    Case(18, 6, mode="reflect", size=(2, 2)),
    Case(4, 3, kernel=(5, 3), padding=2, mode="replicate", size=(3, 1)),
    Case(17, 6, stride=2, size=(8, 7)),
    Case(17, 4, kernel=(4, 4), stride=2, size=(6, 8)),
    Case(3, 4, kernel=(3, 5), stride=3, padding=2, size=(7, 11)),
    Case(3, 2, kernel=(5, 5), stride=3, padding=2, mode="replicate", size=(7, 8)),
    Case(2, 3, kernel=(2, 2), stride=4, padding=0, size=(9, 9)),
    Case(3, 4, n=7, size=(6, 6)),  # several shares of the weight's gradient
    Case(17, 5, mode="transpose", stride=2, output_padding=1),
    Case(5, 3, mode="transpose", stride=2, kernel=(4, 4)),
    Case(5, 3, mode="transpose"),
    Case(2, 3, mode="transpose", stride=3, kernel=(2, 5), padding=1, output_padding=2, size=(4, 6)),
    Case(18, 3, mode="transpose", stride=2, kernel=(1, 1), padding=0, size=(3, 5)),
    Case(4, 2, mode="transpose", size=(1, 1), stride=2, output_padding=1),
    # More padding than the kernel is wide.
    Case(2, 3, kernel=(2, 1), padding=3, stride=2),
    Case(2, 3, mode="transpose", kernel=(2, 1), padding=3, stride=2, size=(6, 7)),
]
if os.environ.get("TRITON_INTERPRET") != "1":
    CASES += [
        Case(48, 192, stride=2, size=(128, 128)),
        Case(128, 96, kernel=(1, 1), padding=0, size=(64, 64)),
        Case(3, 64, kernel=(7, 7), padding=3, mode="reflect", size=(256, 256)),
        Case(48, 3, kernel=(7, 7), padding=3, mode="reflect", size=(256, 256)),
        Case(192, 96, mode="transpose", stride=2, output_padding=1, size=(64, 64)),
    ]
# The first multiplies channels and taps at once, the second tap by tap.
REFLECTED = Case(3, 2, mode="reflect", size=(4, 5))
UPSAMPLED = Case(14, 3, mode="transpose", stride=2, kernel=(2, 3), output_padding=1, size=(2, 3))
BOTH = pytest.mark.parametrize("case", [REFLECTED, UPSAMPLED], ids=str)
NAMES = ("y", "gradient of x", "gradient of weight", "gradient of bias")


def check(case: Case, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """Compare with PyTorch in double; the inactive part of the gradients must be zero."""
    with poisoned_outputs(), unchanged(x, weight, bias, grad):
        actual = forward_backward(case.ours, grad, x, weight, bias)
    clean = [torch.where(tensor.isnan(), 0.0, tensor) for tensor in (weight, bias)]
    measure = forward_backward(case.stock, grad, x, *clean)
    exact = forward_backward(case.stock, grad.double(), x.double(), *[tensor.double() for tensor in clean])
    assert actual[0].is_contiguous()
    for name, *three in zip(NAMES, actual, measure, exact, strict=True):
        assert_accurate(*three, name)
    inactive = torch.ones_like(actual[2], dtype=torch.bool)
    case.active(inactive).zero_()
    assert not actual[2][inactive].any()
    assert not actual[3][case.o :].any()
    return actual


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, device):
    check(case, *case.tensors(device))


@pytest.mark.parametrize("weights", [None, torch.float32], ids=["same", "master"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@BOTH
def test_16_bit_images(case, dtype, weights, device):
    actual = check(case, *case.tensors(device, dtype, weights=weights))
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, *[weights or dtype] * 2]


@BOTH
def test_tf32_loses_no_more_than_its_digits(case, device, monkeypatch):
    """As PyTorch's convolutions by default: what TF32 cuts off a factor is the measure of error."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x, weight, bias, grad = case.tensors(device, spare=0)

    def cut(tensor: Tensor) -> Tensor:
        return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    actual = forward_backward(case.ours, grad, x, weight, bias)
    measure = forward_backward(case.stock, cut(grad), cut(x), cut(weight), bias)
    exact = forward_backward(case.stock, grad.double(), x.double(), weight.double(), bias.double())
    for name, *three in zip(NAMES, actual, measure, exact, strict=True):
        assert_accurate(*three, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@BOTH
def test_memory_layouts(case, layout, device):
    check(case, *case.tensors(device, layout=layout))


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "offset", "crop"])
@BOTH
def test_weights_may_lie_in_any_order(case, layout, device):
    x, weight, bias, grad = case.tensors(device)
    expected = forward_backward(case.ours, grad, x, weight, bias)
    weight = laid_out(weight, layout)
    actual = forward_backward(case.ours, grad, x, weight, bias)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    if layout in ("channels_last", "permuted"):
        assert actual[2].stride() == weight.stride(), "accumulating the gradient would copy it"


@pytest.mark.parametrize("case", [*CASES[:6], *CASES[9:15], *CASES[15:21]], ids=str)
def test_gradients_of_whole_numbers_are_exact(case, device):
    """Small whole numbers have no rounding: the kernels are the adjoints of PyTorch's own to the last bit."""
    tensors = [torch.randint(-4, 5, tensor.shape).float().to(device) for tensor in case.tensors(device)]
    *inputs, grad = tensors
    actual = forward_backward(case.ours, grad, *inputs)
    expected = forward_backward(case.stock, grad.double(), *[tensor.double() for tensor in inputs])
    assert all(torch.equal(one.double(), other) for one, other in zip(actual, expected, strict=True))


@BOTH
def test_channel_counts_are_read_from_the_device(case, device):
    """One launch geometry serves every choice of channels; what is inactive is neither read nor written."""
    widest = replace(case, c=case.c + 1, o=case.o + 1)
    x, weight, bias, grad = widest.tensors(device, spare=0)
    widths = torch.zeros(2, dtype=torch.int32, device=device)
    for out, used in ((case.o, 1), (1, case.c), (widest.o, widest.c)):
        active = replace(case, c=used, o=out)
        expected = forward_backward(active.ours, grad[:, :out], x[:, :used], weight, bias)
        widths.copy_(torch.tensor([out, used]))
        poisoned = [tensor.clone() for tensor in (x, weight, bias, grad)]
        poisoned[0][:, used:], poisoned[2][out:], poisoned[3][:, out:] = NAN, NAN, NAN
        keep = torch.zeros_like(weight, dtype=torch.bool)
        active.active(keep).fill_(True)
        poisoned[1][~keep] = NAN
        with poisoned_outputs():
            actual = forward_backward(lambda *t: case.ours(*t, out=widest.o, widths=widths), poisoned.pop(), *poisoned)
        assert actual[0][:, out:].isnan().all(), "an inactive channel of the result is written"
        assert actual[1][:, used:].isnan().all(), "an inactive channel of the gradient is written"
        for name, one, other in zip(NAMES, [actual[0][:, :out], actual[1][:, :used], *actual[2:]], expected, strict=True):
            assert torch.equal(one, other), name


@BOTH
def test_frozen_tensors_get_no_gradient_and_change_no_other(case, device):
    *tensors, grad = case.tensors(device)
    _, *gradients = forward_backward(case.ours, grad, *tensors)
    for trained in range(3):
        some = [tensor.detach().requires_grad_(index == trained) for index, tensor in enumerate(tensors)]
        case.ours(*some).backward(grad)
        assert torch.equal(some[trained].grad, gradients[trained])
        assert all(tensor.grad is None for index, tensor in enumerate(some) if index != trained)


@BOTH
def test_the_op_runs_these_kernels(case, device):
    *tensors, grad = case.tensors(device)
    expected = forward_backward(case.ours, grad, *tensors)
    for one, other in zip(forward_backward(case.op, grad, *tensors), expected, strict=True):
        assert torch.equal(one, other)


@BOTH
def test_without_bias(case, device):
    x, weight, bias, grad = case.tensors(device)
    y, grad_x, grad_weight = forward_backward(lambda x, weight: case.ours(x, weight, None), grad, x, weight)
    expected = forward_backward(case.ours, grad, x, weight, torch.zeros_like(bias))
    assert all(torch.equal(one, other) for one, other in zip((y, grad_x, grad_weight), expected, strict=False))


@BOTH
def test_two_runs_give_the_same_bits(case, device):
    *tensors, grad = replace(case, n=7).tensors(device)
    first, second = (forward_backward(case.ours, grad, *tensors) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@BOTH
def test_empty_batch(case, device):
    *tensors, grad = replace(case, n=0).tensors(device)
    y, grad_x, grad_weight, grad_bias = forward_backward(case.ours, grad, *tensors)
    assert y.shape == grad.shape
    assert grad_x.shape == tensors[0].shape
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))
    assert torch.equal(grad_bias, torch.zeros_like(grad_bias))


def test_a_nan_reaches_its_neighbours_only(device):
    case = Case(17, 3, size=(5, 5), n=1)
    x, weight, bias, _ = case.tensors(device, spare=0)
    x[0, 4, 0, 0] = NAN
    assert case.ours(x, weight, bias).isnan().any(dim=1).nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


@BOTH
def test_no_second_derivative(case, device):
    x, weight, bias, _ = case.tensors(device)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(case.ours(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
