"""4x4 convolutions, as discriminators have them, by Winograd's method: a third of the multiplications or fewer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.errors import ConfigError
from gancomp.ops import reference
from gancomp.ops.backend import (
    Verdicts,
    choose,
    cpu_verdict,
    describe,
    native_library,
    parameter_fits,
    requested,
)

OP = "winograd_conv2d"
_TAPS = 4
# Transforming images costs the same whatever the channels on the other side, transforming weights whatever the pixels.
_FEWEST_CHANNELS, _FEWEST_PIXELS = 64, 256


def winograd_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, backend: str = "auto"
) -> Tensor:
    """Convolve with 4x4 kernels: ``y = conv2d(x, weight, bias, stride, padding)``, zeros around ``x``.

    The native kernels compute 3x3 outputs from 36 products instead of 144 and, with a stride of 2, 4x4 outputs from 100 instead
    of 256, forward and backward. That costs about a digit of float32; and a NaN or an infinity in ``x`` reaches all outputs of
    the tiles that see it.

    Args:
        x: [N, C, H, W]; may be a channel slice of a wider tensor, read where it lies.
        weight: [O, C, 4, 4], in any memory layout.
        bias: [O]; None for zero.
        stride: pixels, in both directions: 1 or 2.
        padding: pixels on every side: 0 to 3.
        backend: ``auto``, ``cpu`` or ``reference``; a named one never falls back. The reference is PyTorch's own convolution,
            for any dtype and device. ``auto`` takes it where it is the faster one, too, and where ``GANCOMP_BACKEND`` names a
            backend that has no implementation of this op.

    Returns:
        [N, O, H', W'] with ``H' = (H + 2 * padding - 4) // stride + 1``.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot run the call.

    Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks".
    """
    _validate(x, weight, bias, stride, padding)
    # Tensors without data only ask for shapes, which need no kernel, whichever is named.
    if x.is_meta or choose(OP, *_question(x, weight, bias, stride, padding, backend), x) == "reference":
        return reference.winograd_conv2d(x, weight, bias, stride, padding)
    return WinogradConv2dCpu.apply(x, weight, bias, stride, padding)


def explain(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0, backend: str = "auto"
) -> str:
    """Which backend runs this call of :func:`winograd_conv2d` and why the others do not."""
    _validate(x, weight, bias, stride, padding)
    return describe(OP, *_question(x, weight, bias, stride, padding, backend), x)


def _question(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, backend: str) -> tuple[str, Verdicts]:
    """The backend to ask for, and what each of them says."""
    name = requested(backend)
    if backend == "auto" and name in ("cuda", "triton"):
        name = backend = "reference"

    def cpu() -> str | None:
        return (_slower(x, weight, stride, padding) if name == "auto" else None) or cpu_verdict(x=x, weight=weight, bias=bias)

    return backend, {"cpu": cpu, "reference": lambda: None}


def _slower(x: Tensor, weight: Tensor, stride: int, padding: int) -> str | None:
    """Why PyTorch's own convolution is the better choice for this call."""
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return "autocast is on, under which PyTorch convolves in 16 bits"
    if min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return f"{weight.shape[1]} to {weight.shape[0]} channels, from {_FEWEST_CHANNELS} on both sides on it is faster"
    pixels = x.shape[0] * _positions(x.shape[2], stride, padding) * _positions(x.shape[3], stride, padding)
    if pixels < _FEWEST_PIXELS:
        return f"{pixels} pixels of output, from {_FEWEST_PIXELS} on it is faster"
    return None


def _positions(size: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - _TAPS) // stride + 1


def _validate(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
    if x.dim() != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise ConfigError(
            f"{OP}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W] with channels and pixels"
        )
    expected = (x.shape[1], _TAPS, _TAPS)
    if weight.dim() != 4 or weight.shape[1:] != expected or weight.shape[0] == 0:
        raise ConfigError(f"{OP}: weight of shape {list(weight.shape)}, expected [O, {', '.join(map(str, expected))}]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ConfigError(f"{OP}: bias of shape {list(bias.shape)}, expected {list(weight.shape[:1])}")
    if stride not in (1, 2):
        raise ConfigError(f"{OP}: stride={stride}, expected 1 or 2")
    if not 0 <= padding < _TAPS:
        raise ConfigError(f"{OP}: padding={padding}, expected 0 to {_TAPS - 1}")
    for name, size in (("height", x.shape[2]), ("width", x.shape[3])):
        if size + 2 * padding < _TAPS:
            raise ConfigError(f"{OP}: x has {name} {size}, with padding {padding} less than the kernel's {_TAPS}")
    mixed = x.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(x.device.type)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not mixed and not parameter_fits(tensor, x):
            raise ConfigError(f"{OP}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")


class WinogradConv2dCpu(torch.autograd.Function):
    """Forward and backward through the native kernels."""

    @staticmethod
    def forward(x, weight, bias, stride, padding):
        return torch.ops.gancomp.winograd_conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        gradients = torch.ops.gancomp.winograd_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, *needs)
        return (*[gradient if need else None for gradient, need in zip(gradients, needs, strict=True)], None, None)


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::winograd_conv2d")
    def _conv(x, weight, bias, stride, padding):
        return x.new_empty((x.shape[0], weight.shape[0], *[_positions(size, stride, padding) for size in x.shape[2:]]))

    @torch.library.register_fake("gancomp::winograd_conv2d_backward")
    def _backward(grad, x, weight, stride, padding, needs_x, needs_weight, needs_bias):
        return (
            x.new_empty(x.shape if needs_x else (0,)),
            x.new_empty(weight.shape if needs_weight else (0,)),
            x.new_empty((weight.shape[0] if needs_bias else 0,)),
        )


if native_library().reason is None:
    _register_fakes()
