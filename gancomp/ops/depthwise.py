"""Depthwise 3x3 convolution with reflection padding folded in."""

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

OP = "reflect_pad_depthwise_conv3x3"


def reflect_pad_depthwise_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Filter every channel with its own 3x3 kernel, the image extended by reflection; the size is kept.

    ``y[n, c] = correlate(reflect_pad(x[n, c], 1), weight[c, 0]) + bias[c]``

    Args:
        x: [N, C, H, W] with H, W >= 2; may be a channel slice of a wider tensor, read where it lies.
        weight: [C_max >= C, 1, 3, 3], its first C filters used. In the dtype of ``x``, or float32 beside 16 bits.
        bias: [C_max >= C], its first C entries used; None for zero.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        [N, C, H, W], contiguous. Gradients of ``weight`` and ``bias`` have their full shape, zero in the unused part.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot run the call.

    Source: GAN Compression, section 3.2 (the depthwise half of a decomposed convolution).
    """
    x, weight, bias = unify_under_autocast(x, weight, bias)
    _validate(x, weight, bias)
    chosen = choose(OP, backend, _verdicts(x, weight, bias), x)
    if chosen == "reference":
        return reference.reflect_pad_depthwise_conv3x3(x, weight, bias)
    if chosen == "cuda":
        return cuda.ReflectPadDepthwiseConv3x3Cuda.apply(x, weight, bias)
    if chosen == "triton":
        from gancomp.kernels.reflect_pad_depthwise_conv3x3 import ReflectPadDepthwiseConv3x3Triton

        return ReflectPadDepthwiseConv3x3Triton.apply(x, weight, bias)
    return ReflectPadDepthwiseConv3x3Cpu.apply(x, weight, bias)


def explain(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> str:
    """Which backend runs this call and why the others do not."""
    x, weight, bias = unify_under_autocast(x, weight, bias)
    _validate(x, weight, bias)
    return describe(OP, backend, _verdicts(x, weight, bias), x)


def _verdicts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Verdicts:
    tensors = {"x": x, "weight": weight, "bias": bias}
    return {
        "cuda": lambda: cuda_verdict(**tensors),
        "triton": lambda: triton_verdict(**tensors),
        "cpu": lambda: cpu_verdict(**tensors),
        "reference": lambda: None,
    }


def _validate(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(f"{OP}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W]")
    if min(x.shape[2:]) < 2 or x.shape[1] == 0:
        raise ConfigError(f"{OP}: x of shape {list(x.shape)}: expected channels, and height and width of at least 2")
    if weight.dim() != 4 or weight.shape[1:] != (1, 3, 3) or weight.shape[0] < x.shape[1]:
        raise ConfigError(f"{OP}: weight of shape {list(weight.shape)}, expected at least [{x.shape[1]}, 1, 3, 3]")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] < x.shape[1]):
        raise ConfigError(f"{OP}: bias of shape {list(bias.shape)}, expected at least [{x.shape[1]}]")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not parameter_fits(tensor, x):
            raise ConfigError(f"{OP}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")


class ReflectPadDepthwiseConv3x3Cpu(torch.autograd.Function):
    """Forward and backward through the native kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_size = None if bias is None else bias.shape[0]
        return torch.ops.gancomp.reflect_pad_depthwise_conv3x3(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = torch.ops.gancomp.reflect_pad_depthwise_conv3x3_backward(
            grad, x, weight, ctx.bias_size or 0, needs_x
        )
        return grad_x if needs_x else None, grad_weight if needs_weight else None, grad_bias if needs_bias else None


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::reflect_pad_depthwise_conv3x3")
    def _forward(x, weight, bias):
        return x.new_empty(x.shape)

    @torch.library.register_fake("gancomp::reflect_pad_depthwise_conv3x3_backward")
    def _backward(grad, x, weight, bias_size, needs_x):
        return x.new_empty(x.shape if needs_x else (0,)), x.new_empty(weight.shape), x.new_empty((bias_size,))


if native_library().reason is None:
    _register_fakes()
