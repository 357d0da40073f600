"""The CUDA kernels as differentiable functions: what :mod:`gancomp.ops` runs for ``cuda``, with the Triton kernels' arguments.

The last argument of every function, ``widths``, is None, or int32 on the device that say how many channels take part. Then
the tensors are as wide as any sub-network: channels beyond those in use are neither read nor written, and a graph captured
with such calls serves every sub-network when it is replayed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.ops.backend import native_library

_ops = torch.ops.gancomp


def _tf32(x: Tensor) -> bool:
    """Whether products of float32 may be rounded to TF32: PyTorch's setting for convolutions, which is that they may."""
    return x.dtype == torch.float32 and bool(torch.backends.cudnn.allow_tf32)


class InstanceNormActCuda(torch.autograd.Function):
    """:func:`gancomp.ops.instance_norm_act`; ``widths``: one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, relu: bool, eps: float,
        widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y, mean, rstd = _ops.instance_norm_act.widths(x, weight, bias, residual, widths, relu, eps)
        ctx.save_for_backward(x, weight, bias, widths, mean, rstd)
        ctx.relu, ctx.has_residual = relu, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = _ops.instance_norm_act_backward.widths(
            grad, *ctx.saved_tensors, ctx.relu, needs_weight, needs_bias
        )
        return (
            grad_x,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            grad if ctx.has_residual else None,
            *[None] * 3,
        )


class ReflectPadDepthwiseConv3x3Cuda(torch.autograd.Function):
    """:func:`gancomp.ops.reflect_pad_depthwise_conv3x3`; ``widths``: one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, widths: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight, bias, widths)
        return _ops.reflect_pad_depthwise_conv3x3.widths(x, weight, bias, widths)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        gradients = _ops.reflect_pad_depthwise_conv3x3_backward.widths(grad, *ctx.saved_tensors, *needs)
        return *_wanted(gradients, needs), None


class SlicedConv2dCuda(torch.autograd.Function):
    """:func:`gancomp.ops.sliced_conv2d`; ``widths``: of the output and of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int, mode: int,
        widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, bias, widths)
        ctx.settings = stride, padding, mode, _tf32(x)
        return _ops.sliced_conv2d.widths(x, weight, bias, widths, out_channels, *ctx.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        gradients = _ops.sliced_conv2d_backward.widths(grad, *ctx.saved_tensors, *ctx.settings, *needs)
        return *_wanted(gradients, needs), *[None] * 5


class SlicedConvTranspose2dCuda(torch.autograd.Function):
    """:func:`gancomp.ops.sliced_conv_transpose2d`; ``widths``: of the output and of the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int,
        output_padding: int, widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, bias, widths)
        ctx.settings = stride, padding, output_padding, _tf32(x)
        return _ops.sliced_conv_transpose2d.widths(x, weight, bias, widths, out_channels, *ctx.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        gradients = _ops.sliced_conv_transpose2d_backward.widths(grad, *ctx.saved_tensors, *ctx.settings, *needs)
        return *_wanted(gradients, needs), *[None] * 5


class SeparableResblockCuda(torch.autograd.Function):
    """:func:`gancomp.ops.separable_resblock`; ``widths``: of the residual stream and inside the block.

    Kept for the backward pass: what lies before and after both pointwise convolutions, four images beside the input.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, depthwise1: Tensor, pointwise1: Tensor, depthwise2: Tensor, pointwise2: Tensor,
        mask: Tensor | None, scale: float, hidden: int, eps: float, widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        tensors = x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths
        ctx.settings = scale, hidden, eps, _tf32(x)
        y, *kept = _ops.separable_resblock.widths(*tensors, *ctx.settings)
        ctx.save_for_backward(*tensors, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:5]
        gradients = _ops.separable_resblock_backward.widths(grad, *ctx.saved_tensors, *ctx.settings, any(needs[1:]))
        return *_wanted(gradients, needs), *[None] * 5


class SpadeModulateCuda(torch.autograd.Function):
    """:func:`gancomp.ops.spade_modulate`; ``widths``: one.

    Args:
        mean, rstd: [C_max >= C], constants, or None for the statistics of ``x``.
        batch: whether those are of all images together.

    Returns:
        y, and where statistics of the batch were computed their mean and biased variance, [C] float32, else None twice.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor | None, rstd: Tensor | None, batch: bool, slope: float,
        eps: float, widths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        given = mean is not None
        if mean is not None and rstd is not None:
            mean, rstd = mean.double().contiguous(), rstd.float().contiguous()
        y, found_mean, found_rstd, variance = _ops.spade_modulate.widths(x, gamma, beta, mean, rstd, widths, batch, slope, eps)
        statistics = (mean, rstd) if given else (found_mean, found_rstd)
        ctx.save_for_backward(x, gamma, beta, *statistics, widths)
        ctx.settings = batch, given, slope
        if given or not batch:
            return y, None, None
        of_batch = found_mean.float(), variance
        ctx.mark_non_differentiable(*of_batch)
        return y, *of_batch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = _ops.spade_modulate_backward.widths(grad, *ctx.saved_tensors, *ctx.settings)
        return *_wanted(gradients, ctx.needs_input_grad[:3]), *[None] * 6


def _wanted(gradients: tuple[Tensor, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]


def register_fakes(namespace: str = "gancomp") -> None:
    """Shapes, strides and dtypes of the ops for tracing; they must equal the real ones exactly."""

    def fake(name):
        return torch.library.register_fake(f"{namespace}::{name}.widths")

    def of(like, shape, wanted=True):
        return like.new_empty(shape if wanted else (0,))

    def vector(x, full, wanted):
        return x.new_empty((0,)) if full is None or not wanted else full.new_empty(full.shape)

    def statistics(x, *shape):
        return x.new_empty(shape, dtype=torch.float64), x.new_empty(shape, dtype=torch.float32)

    @fake("instance_norm_act")
    def _norm(x, weight, bias, residual, widths, relu, eps):
        return x.new_empty(x.shape), *statistics(x, *x.shape[:2])

    @fake("instance_norm_act_backward")
    def _norm_backward(grad, x, weight, bias, widths, mean, rstd, relu, needs_weight, needs_bias):
        return x.new_empty(x.shape), vector(x, weight, needs_weight), vector(x, bias, needs_bias)

    @fake("reflect_pad_depthwise_conv3x3")
    def _depthwise(x, weight, bias, widths):
        return x.new_empty(x.shape)

    @fake("reflect_pad_depthwise_conv3x3_backward")
    def _depthwise_backward(grad, x, weight, bias, widths, needs_x, needs_weight, needs_bias):
        return of(x, x.shape, needs_x), of(weight, weight.shape, needs_weight), vector(x, bias, needs_bias)

    @fake("sliced_conv2d")
    def _conv(x, weight, bias, widths, out, stride, padding, mode, tf32):
        return x.new_empty((x.shape[0], out, *[(x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3)]))

    @fake("sliced_conv_transpose2d")
    def _transpose(x, weight, bias, widths, out, stride, padding, output_padding, tf32):
        size = [(x.shape[i] - 1) * stride - 2 * padding + weight.shape[i] + output_padding for i in (2, 3)]
        return x.new_empty((x.shape[0], out, *size))

    @fake("sliced_conv2d_backward")
    @fake("sliced_conv_transpose2d_backward")
    def _conv_backward(grad, x, weight, bias, widths, stride, padding, last, tf32, needs_x, needs_weight, needs_bias):
        return of(x, x.shape, needs_x), of(weight, weight.shape, needs_weight), vector(x, bias, needs_bias)

    @fake("separable_resblock")
    def _block(x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths, scale, hidden, eps, tf32):
        images, channels, height, width = x.shape
        inside = x.new_empty((images, hidden, height, width))
        mean, _ = statistics(x, images * (hidden + channels))
        _, rstd = statistics(x, 2 * images * (hidden + channels))
        like_x = [x.new_empty(x.shape) for _ in range(3)]
        return like_x[0], like_x[1], inside, torch.empty_like(inside), like_x[2], mean, rstd

    @fake("separable_resblock_backward")
    def _block_backward(grad, x, depthwise1, pointwise1, depthwise2, pointwise2, *rest):
        weights = depthwise1, pointwise1, depthwise2, pointwise2
        return x.new_empty(x.shape), *[of(weight, weight.shape, rest[-1]) for weight in weights]

    @fake("spade_modulate")
    def _spade(x, gamma, beta, mean, rstd, widths, batch, slope, eps):
        images, channels = x.shape[:2]
        given = mean is not None
        found = statistics(x, 0 if given else channels if batch else images * channels)
        return x.new_empty(x.shape), *found, x.new_empty((channels if batch and not given else 0,), dtype=torch.float32)

    @fake("spade_modulate_backward")
    def _spade_backward(grad, x, gamma, beta, mean, rstd, widths, batch, given, slope):
        return tuple(x.new_empty(x.shape) for _ in range(3))


if native_library().reason is None and "widths" in _ops.instance_norm_act.overloads():
    register_fakes()
