"""Convolution and transposed convolution by the first channels of a full weight, which is read where it lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.errors import ConfigError
from gancomp.ops import cuda, reference
from gancomp.ops.backend import (
    Verdicts,
    choose,
    cpu_verdict,
    cuda_verdict,
    describe,
    native_library,
    parameter_fits,
    triton_verdict,
    unify_under_autocast,
)

CONV, TRANSPOSE = "sliced_conv2d", "sliced_conv_transpose2d"
PADDING_MODES = ("zeros", "reflect", "replicate")
_MAX_KERNEL, _MAX_STRIDE = 15, 4  # of the native kernels


def sliced_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_channels: int | None = None,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """Convolve with the first channels of a weight; neither the weight nor its gradient is copied for that.

    ``y = conv2d(pad(x), weight[:out_channels, :C], bias[:out_channels], stride)``

    Args:
        x: [N, C, H, W]; may be a channel slice of a wider tensor, read where it lies.
        weight: [O_max >= out_channels, C_max >= C, kh, kw], in any memory layout.
        bias: [O_max >= out_channels], its first entries used; None for zero.
        out_channels: output channels; all of the weight's by default.
        stride: pixels, in both directions.
        padding: pixels on every side.
        padding_mode: ``zeros``, ``reflect`` or ``replicate``.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        [N, out_channels, H', W'], contiguous. Gradients of ``weight`` and ``bias`` have their full shape, zero in the unused
        part.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot run the call.

    Source: GAN Compression, section 3.2 (weight sharing by prefix slices).
    """
    x, weight, bias, out = _checked_conv(x, weight, bias, out_channels, stride, padding, padding_mode)
    chosen = _choose(CONV, backend, x, weight, bias, stride, padding)
    if chosen == "reference":
        return reference.sliced_conv2d(x, weight, bias, out, stride, padding, padding_mode)
    arguments = (x, weight, bias, out, stride, padding, PADDING_MODES.index(padding_mode))
    if chosen == "cuda":
        return cuda.SlicedConv2dCuda.apply(*arguments)
    if chosen == "triton":
        from gancomp.kernels.sliced_conv import SlicedConv2dTriton

        return SlicedConv2dTriton.apply(*arguments)
    return SlicedConv2dCpu.apply(*arguments)


def sliced_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_channels: int | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Transposed convolution with the first channels of a weight; neither the weight nor its gradient is copied for that.

    ``y = conv_transpose2d(x, weight[:C, :out_channels], bias[:out_channels], stride, padding, output_padding)``

    Args:
        x: [N, C, H, W]; may be a channel slice of a wider tensor, read where it lies.
        weight: [C_max >= C, O_max >= out_channels, kh, kw], in any memory layout.
        bias: [O_max >= out_channels], its first entries used; None for zero.
        out_channels: output channels; all of the weight's by default.
        stride: pixels, in both directions.
        padding: pixels cut off on every side.
        output_padding: pixels added at the bottom and at the right, less than the stride.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        [N, out_channels, H', W'], contiguous, with ``H' = (H - 1) * stride - 2 * padding + kh + output_padding``. Gradients of
        ``weight`` and ``bias`` have their full shape, zero in the unused part.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot run the call.

    Source: GAN Compression, section 3.2 (weight sharing by prefix slices).
    """
    x, weight, bias, out = _checked_transpose(x, weight, bias, out_channels, stride, padding, output_padding)
    chosen = _choose(TRANSPOSE, backend, x, weight, bias, stride, padding)
    if chosen == "reference":
        return reference.sliced_conv_transpose2d(x, weight, bias, out, stride, padding, output_padding)
    arguments = (x, weight, bias, out, stride, padding, output_padding)
    if chosen == "cuda":
        return cuda.SlicedConvTranspose2dCuda.apply(*arguments)
    if chosen == "triton":
        from gancomp.kernels.sliced_conv import SlicedConvTranspose2dTriton

        return SlicedConvTranspose2dTriton.apply(*arguments)
    return SlicedConvTranspose2dCpu.apply(*arguments)


def explain_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_channels: int | None = None,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    backend: str = "auto",
) -> str:
    """Which backend runs this call of :func:`sliced_conv2d` and why the others do not."""
    x, weight, bias, _ = _checked_conv(x, weight, bias, out_channels, stride, padding, padding_mode)
    return describe(CONV, backend, _verdicts(x, weight, bias, stride, padding), x)


def explain_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_channels: int | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    backend: str = "auto",
) -> str:
    """Which backend runs this call of :func:`sliced_conv_transpose2d` and why the others do not."""
    x, weight, bias, _ = _checked_transpose(x, weight, bias, out_channels, stride, padding, output_padding)
    return describe(TRANSPOSE, backend, _verdicts(x, weight, bias, stride, padding), x)


def _choose(op: str, backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> str:
    # Tensors without data only ask for shapes, which need no kernel, whichever is named.
    return "reference" if x.is_meta else choose(op, backend, _verdicts(x, weight, bias, stride, padding), x)


def _verdicts(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Verdicts:
    tensors = {"x": x, "weight": weight, "bias": bias}

    def cpu() -> str | None:
        kernel = weight.shape[2:]
        if max(kernel) > _MAX_KERNEL or stride > _MAX_STRIDE or padding >= min(kernel):
            size = "x".join(map(str, kernel))
            return (
                f"kernel {size}, stride {stride}, padding {padding}: they take kernels of at most {_MAX_KERNEL}, strides of at "
                f"most {_MAX_STRIDE} and padding below the kernel"
            )
        return cpu_verdict(**tensors)

    return {
        "cuda": lambda: cuda_verdict(**tensors),
        "triton": lambda: triton_verdict(**tensors),
        "cpu": cpu,
        "reference": lambda: None,
    }


def _checked_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int | None, stride: int, padding: int, padding_mode: str
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    x, weight, bias = unify_under_autocast(x, weight, bias, convolution=True)
    out = _validate(CONV, x, weight, bias, out_channels, 0, stride, padding)
    if padding_mode not in PADDING_MODES:
        raise ConfigError(f"{CONV}: padding_mode={padding_mode!r}, expected {', '.join(PADDING_MODES)}")
    for name, size, taps in (("height", x.shape[2], weight.shape[2]), ("width", x.shape[3], weight.shape[3])):
        if size + 2 * padding < taps:
            raise ConfigError(f"{CONV}: x has {name} {size}, with padding {padding} less than the kernel's {taps}")
        if padding_mode == "reflect" and size <= padding:
            raise ConfigError(f"{CONV}: x has {name} {size}, reflection by {padding} needs more than that")
    return x, weight, bias, out


def _checked_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int | None, stride: int, padding: int, output_padding: int
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    x, weight, bias = unify_under_autocast(x, weight, bias, convolution=True)
    out = _validate(TRANSPOSE, x, weight, bias, out_channels, 1, stride, padding)
    if not 0 <= output_padding < stride:
        raise ConfigError(f"{TRANSPOSE}: output_padding={output_padding}, expected 0 to {stride - 1} (less than the stride)")
    for name, size, taps in (("height", x.shape[2], weight.shape[2]), ("width", x.shape[3], weight.shape[3])):
        if (size - 1) * stride - 2 * padding + taps + output_padding < 1:
            raise ConfigError(f"{TRANSPOSE}: x has {name} {size}, of which padding {padding} leaves nothing")
    return x, weight, bias, out


def _validate(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int | None, out_dim: int, stride: int, padding: int
) -> int:
    if x.dim() != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise ConfigError(
            f"{op}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W] with channels and pixels"
        )
    if weight.dim() != 4 or weight.shape[1 - out_dim] < x.shape[1] or 0 in weight.shape:
        axes = ["[O, C, kh, kw]", "[C, O, kh, kw]"][out_dim]
        raise ConfigError(f"{op}: weight of shape {list(weight.shape)}, expected {axes} with C of at least {x.shape[1]}")
    out = weight.shape[out_dim] if out_channels is None else out_channels
    if not 1 <= out <= weight.shape[out_dim]:
        raise ConfigError(f"{op}: out_channels={out}, expected 1 to {weight.shape[out_dim]} (those of the weight)")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] < out):
        raise ConfigError(f"{op}: bias of shape {list(bias.shape)}, expected at least [{out}]")
    if stride < 1:
        raise ConfigError(f"{op}: stride={stride}, expected at least 1")
    if padding < 0:
        raise ConfigError(f"{op}: padding={padding}, expected at least 0")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not parameter_fits(tensor, x):
            raise ConfigError(f"{op}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")
    return out


class _Cpu(torch.autograd.Function):
    """What both ops share: the tensors kept and the order of the gradients."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, _, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_size = 0 if bias is None else bias.shape[0]

    @staticmethod
    def gradients(ctx: Any, grad: Tensor, op: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        bias_size = ctx.bias_size if needs_bias else 0
        grad_x, grad_weight, grad_bias = op(grad, x, weight, *ctx.geometry, bias_size, needs_x, needs_weight)
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            *[None] * 4,
        )


class SlicedConv2dCpu(_Cpu):
    """Forward and backward through the native kernels."""

    @staticmethod
    def forward(x, weight, bias, out, stride, padding, mode):
        return torch.ops.gancomp.sliced_conv2d(x, weight, bias, out, stride, padding, mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Cpu.gradients(ctx, grad, torch.ops.gancomp.sliced_conv2d_backward)


class SlicedConvTranspose2dCpu(_Cpu):
    """Forward and backward through the native kernels."""

    @staticmethod
    def forward(x, weight, bias, out, stride, padding, output_padding):
        return torch.ops.gancomp.sliced_conv_transpose2d(x, weight, bias, out, stride, padding, output_padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Cpu.gradients(ctx, grad, torch.ops.gancomp.sliced_conv_transpose2d_backward)


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::sliced_conv2d")
    def _conv(x, weight, bias, out, stride, padding, mode):
        size = [(x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3)]
        return x.new_empty((x.shape[0], out, *size))

    @torch.library.register_fake("gancomp::sliced_conv_transpose2d")
    def _transpose(x, weight, bias, out, stride, padding, output_padding):
        size = [(x.shape[i] - 1) * stride - 2 * padding + weight.shape[i] + output_padding for i in (2, 3)]
        return x.new_empty((x.shape[0], out, *size))

    @torch.library.register_fake("gancomp::sliced_conv2d_backward")
    @torch.library.register_fake("gancomp::sliced_conv_transpose2d_backward")
    def _backward(grad, x, weight, stride, padding, last, bias_size, needs_x, needs_weight):
        return (
            x.new_empty(x.shape if needs_x else (0,)),
            x.new_empty(weight.shape if needs_weight else (0,)),
            x.new_empty((bias_size,)),
        )


if native_library().reason is None:
    _register_fakes()
