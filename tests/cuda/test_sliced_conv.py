"""The CUDA convolutions, machine: values and gradients by slices of full weights, channel counts in device memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.ops.cuda import SlicedConv2dCuda, SlicedConvTranspose2dCuda
from gancomp.testing import LAYOUTS, images, laid_out

from .compare import DTYPES, check, poisoned, restored, run

MODES = ("zeros", "reflect", "replicate")


@dataclass(frozen=True)
class Case:
    """A convolution of [N, C, H, W] to ``out`` channels by part of a weight with ``spare`` further (output, input) channels."""

    shape: tuple[int, int, int, int]
    out: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    mode: int = 0
    transposed: bool = False
    output_padding: int = 0
    bias: bool = True
    spare: tuple[int, int] = (2, 3)

    def __str__(self) -> str:
        kind = "transposed" if self.transposed else MODES[self.mode]
        return f"{kind}-{'x'.join(map(str, self.shape))}-{self.out}-k{self.kernel}-s{self.stride}-p{self.padding}"

    def weight_shape(self) -> tuple[int, ...]:
        outer, inner = self.out + self.spare[0], self.shape[1] + self.spare[1]
        return (inner, outer, *self.kernel) if self.transposed else (outer, inner, *self.kernel)

    def active(self, weight: Tensor) -> Tensor:
        """The part of a weight, or of its gradient, that takes part."""
        channels = self.shape[1]
        return weight[:channels, : self.out] if self.transposed else weight[: self.out, :channels]

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight, bias = self.active(weight), None if bias is None else bias[: self.out]
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)
        if self.mode == 0:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(F.pad(x, (self.padding,) * 4, mode=MODES[self.mode]), weight, bias, self.stride)

    def kernel_call(self, x: Tensor, weight: Tensor, bias: Tensor | None, widths: Tensor | None = None, out: int | None = None):
        function = SlicedConvTranspose2dCuda if self.transposed else SlicedConv2dCuda
        last = self.output_padding if self.transposed else self.mode
        return function.apply(x, weight, bias, out or self.out, self.stride, self.padding, last, widths)

    def tensors(self, dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor]:
        """Image, weight and bias, and a gradient of the output."""
        x, weight = images(*self.shape, dtype=dtype), torch.randn(self.weight_shape()).to(weight_dtype)
        bias = torch.randn(self.out + self.spare[0]).to(weight_dtype) if self.bias else None
        y = self.stock(x.double(), weight.double(), None if bias is None else bias.double())
        return [x, weight, bias], torch.randn(y.shape).to(dtype)


CASES = [
    Case((2, 3, 9, 11), 5, (3, 3), padding=1),
    Case((1, 3, 9, 11), 16, (7, 7), padding=3, mode=1),  # a stem
    Case((1, 17, 6, 7), 3, (7, 7), padding=3, mode=1),  # a head
    Case((1, 20, 9, 8), 18, (3, 3), stride=2, padding=1, mode=2),  # tiles and stages are not full
    Case((2, 18, 8, 8), 33, (3, 3), stride=2, padding=1),
    Case((2, 33, 5, 7), 70, (1, 1), bias=False),  # several tiles of rows, a stage across taps
    Case((1, 2, 5, 6), 2, (4, 2), stride=3, padding=1),  # pixels that no tap meets
    Case((1, 1, 2, 2), 1, (1, 1), stride=4, spare=(0, 0)),
    Case((3, 2, 2, 3), 4, (3, 3), padding=2, mode=2, spare=(0, 1)),  # padding as large as the image
    Case((2, 5, 6, 7), 4, (3, 3), stride=2, padding=1, transposed=True, output_padding=1),
    Case((1, 18, 5, 4), 20, (4, 4), stride=3, transposed=True, output_padding=2),
    Case((1, 3, 4, 4), 2, (2, 3), stride=4, padding=1, transposed=True, output_padding=3),  # phases without taps
    Case((2, 66, 3, 3), 17, (1, 1), transposed=True, bias=False),
    Case((1, 2, 5, 6), 2, (2, 2), stride=5, padding=4),  # outputs that see nothing
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(case, dtype, machine):
    tensors, grad = case.tensors(dtype, dtype)
    _, _, grad_weight, *rest = check(case.kernel_call, case.stock, tensors, grad, machine=machine)
    unused = grad_weight.clone()
    case.active(unused).zero_()
    assert torch.equal(unused, torch.zeros_like(unused))
    assert all(torch.equal(vector[case.out :], torch.zeros(case.spare[0], dtype=vector.dtype)) for vector in rest)


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[9]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_master_weights(case, dtype, machine):
    """Weights of float32 beside images of 16 bits; their gradients are float32, with more digits than 16 bits have."""
    tensors, grad = case.tensors(dtype, torch.float32)
    _, _, grad_weight, _ = check(case.kernel_call, case.stock, tensors, grad, machine=machine)
    assert not torch.equal(grad_weight, grad_weight.to(dtype).float())


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[5], CASES[9]], ids=str)
def test_tf32(case, machine, monkeypatch):
    """The error is that of operands with ten bits of fraction, which float16 has as well, and not that of float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    tensors, grad = case.tensors(torch.float32, torch.float32)
    y, *_ = check(case.kernel_call, case.stock, tensors, grad, measure=torch.float16, machine=machine)
    exact = case.stock(*[None if t is None else t.double() for t in tensors])
    assert (y.double() - exact).abs().max() > 1e-4 * exact.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, machine):
    """Of the image and the gradient; and weights of any strides, as those of channels_last masters."""
    for case in (CASES[0], CASES[9]):
        (x, weight, bias), grad = case.tensors(torch.float32, torch.float32)
        weight = weight.contiguous(memory_format=torch.channels_last)
        check(case.kernel_call, case.stock, [laid_out(x, layout), weight, bias], laid_out(grad, layout), machine=machine)


def test_nothing_before_the_images_is_read(machine):
    """Inputs begin at the fence; in all other tests they end at it."""
    for case in (CASES[2], CASES[3], CASES[8], CASES[10]):
        tensors, grad = case.tensors(torch.float16, torch.float16)
        placed = [machine.place(tensor, at_end=False).requires_grad_() for tensor in tensors]
        case.kernel_call(*placed).backward(machine.place(grad, at_end=False))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[5], CASES[8], CASES[9]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channel_counts_in_device_memory(case, dtype, machine):
    """Tensors as wide as any sub-network, of which the active channels alone are read and written.

    Equal to the narrow call, to the bit but for the weight's gradient, whose sums may be split otherwise.
    """
    (x, weight, bias), grad = case.tensors(dtype, dtype)
    narrow = run(machine, case.kernel_call, grad, x, weight, bias)
    widths = machine.place(torch.tensor([case.out, case.shape[1]], dtype=torch.int32))
    wide_x, wide_grad = poisoned(x, case.spare[1]), poisoned(grad, case.spare[0])
    wide_weight = torch.full_like(weight, float("nan"))
    case.active(wide_weight).copy_(case.active(weight))

    def call(x, weight, bias):
        return case.kernel_call(x, weight, bias, widths, case.out + case.spare[0])

    y, grad_x, grad_weight, *grad_bias = run(machine, call, wide_grad, wide_x, wide_weight, bias)
    assert torch.equal(restored(y, case.out), narrow[0])
    assert torch.equal(restored(grad_x, case.shape[1]), narrow[1])
    torch.testing.assert_close(grad_weight, narrow[2])
    assert all(torch.equal(a, b) for a, b in zip(grad_bias, narrow[3:], strict=True))


def test_only_what_is_needed_is_computed(machine):
    case = CASES[0]
    tensors, grad = case.tensors(torch.float32, torch.float32)
    _, *everything = run(machine, case.kernel_call, grad, *tensors)
    for wanted in range(3):
        leaves = [machine.place(tensor).requires_grad_(index == wanted) for index, tensor in enumerate(tensors)]
        case.kernel_call(*leaves).backward(machine.place(grad))
        assert torch.equal(leaves[wanted].grad.cpu(), everything[wanted])


def test_two_runs_give_the_same_bits(machine):
    case = Case((2, 40, 16, 16), 24, (3, 3), padding=1, mode=1)
    tensors, grad = case.tensors(torch.float32, torch.float32)
    first = run(machine, case.kernel_call, grad, *tensors)
    machine.other_order()
    assert all(torch.equal(a, b) for a, b in zip(first, run(machine, case.kernel_call, grad, *tensors), strict=True))


def test_an_empty_batch(machine):
    case = Case((0, 3, 4, 4), 5, (3, 3), padding=1)
    tensors, grad = case.tensors(torch.float32, torch.float32)
    y, grad_x, grad_weight, grad_bias = run(machine, case.kernel_call, grad, *tensors)
    assert y.shape == grad.shape
    assert grad_x.shape == tensors[0].shape
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, w: (x.double(), w), "x must be float32, float16 or bfloat16"),
        (lambda x, w: (x.half(), w.bfloat16()), "weight must be float32 or have the dtype of x"),
        (lambda x, w: (x, w[:3]), "weight must have at least the channels"),
        (lambda x, w: (x[:, :, :1], w), "x is smaller than the kernel"),
    ],
)
def test_wrong_tensors_are_refused(wrong, message, machine):
    case = Case((1, 3, 4, 4), 5, (3, 3))
    (x, weight, _), _ = case.tensors(torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        case.kernel_call(*wrong(machine.place(x), machine.place(weight)), None)
