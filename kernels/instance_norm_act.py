"""InstanceNorm with ReLU and the residual addition folded in: one program owns one plane, so nothing crosses programs.

A plane of up to 128 x 128 pixels is read once and stays in registers; a larger one is read once per pass. Statistics take two
passes in float32 whatever the storage type: the mean, then distances from it, whose own mean is the error of the first one.
The two are subtracted one after the other, so that a mean far from zero costs no accuracy.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.kernels.common import FLOAT_OPTIONS, active_channels, dense_planes, guard, plane_offset, sum_images

_RESIDENT_PIXELS = 128 * 128
_LOOP_BLOCK = 8192


def blocking(pixels: int) -> dict[str, Any]:
    """Compile-time options of both kernels for planes of ``pixels`` pixels."""
    resident = pixels <= _RESIDENT_PIXELS
    block = triton.next_power_of_2(pixels) if resident else _LOOP_BLOCK
    return {"RESIDENT": resident, "BLOCK": block, "num_warps": min(max(block // 512, 1), 32), **FLOAT_OPTIONS}


@triton.jit
def _load(pointer, index, pixels):
    return tl.load(pointer + index, mask=index < pixels, other=0.0).to(tl.float32)


@triton.jit
def _parameters(weight, bias, channel):
    scale, shift = 1.0, 0.0
    if weight is not None:
        scale = tl.load(weight + channel).to(tl.float32)
    if bias is not None:
        shift = tl.load(bias + channel).to(tl.float32)
    return scale, shift


@triton.jit
def _statistics(distances, squares, pixels, eps):
    """What to add to a good guess of the mean, and 1 / standard deviation, from the distances from it and their squares."""
    rest = tl.sum(distances) / pixels
    return rest, tl.rsqrt(tl.sum(squares) / pixels - rest * rest + eps)


@triton.jit
def _finish(values, residual, y, index, pixels, guess, rest, rstd, scale, shift, RELU: tl.constexpr):
    values = (values - guess - rest) * rstd * scale + shift
    if RELU:
        # Not maximum(): a NaN must stay one.
        values = tl.where(values <= 0.0, 0.0, values)
    if residual is not None:
        values += _load(residual, index, pixels)
    tl.store(y + index, values.to(y.dtype.element_ty), mask=index < pixels)


@triton.jit(do_not_specialize=["widths", "channels", "place"])
def _instance_norm_act_kernel(
    x, weight, bias, residual, y, means, rstds, widths, channels, pixels, x_stride_n, x_stride_c, residual_stride_n,
    residual_stride_c, eps, place, RELU: tl.constexpr, RESIDENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    if plane % channels >= active_channels(widths, channels, place):
        return
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    y += plane.to(tl.int64) * pixels
    if residual is not None:
        residual += plane_offset(plane, channels, residual_stride_n, residual_stride_c)
    scale, shift = _parameters(weight, bias, plane % channels)
    index = tl.arange(0, BLOCK)
    if RESIDENT:
        values = _load(x, index, pixels)
        guess = tl.sum(values) / pixels
        distance = tl.where(index < pixels, values - guess, 0.0)
        rest, rstd = _statistics(distance, distance * distance, pixels, eps)
        _finish(values, residual, y, index, pixels, guess, rest, rstd, scale, shift, RELU)
    else:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            total += _load(x, start + index, pixels)
        guess = tl.sum(total) / pixels
        distances, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            distance = tl.where(start + index < pixels, _load(x, start + index, pixels) - guess, 0.0)
            distances += distance
            squares += distance * distance
        rest, rstd = _statistics(distances, squares, pixels, eps)
        for start in range(0, pixels, BLOCK):
            values = _load(x, start + index, pixels)
            _finish(values, residual, y, start + index, pixels, guess, rest, rstd, scale, shift, RELU)
    tl.store(means + plane, guess + rest)
    tl.store(rstds + plane, rstd)


@triton.jit
def _normalised_and_gradient(x, grad, index, pixels, mean, rstd, scale, shift, RELU: tl.constexpr):
    """The normalised input and the gradient that the activation lets through; the latter is zero outside the plane."""
    normalised = (_load(x, index, pixels) - mean) * rstd
    gradient = _load(grad, index, pixels)
    if RELU:
        gradient = tl.where(normalised * scale + shift > 0.0, gradient, 0.0)
    return normalised, gradient


@triton.jit(do_not_specialize=["widths", "channels", "planes", "place"])
def _instance_norm_act_backward_kernel(
    grad, x, weight, bias, means, rstds, grad_x, partials, widths, channels, planes, pixels, grad_stride_n, grad_stride_c,
    x_stride_n, x_stride_c, place, RELU: tl.constexpr, RESIDENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    if plane % channels >= active_channels(widths, channels, place):
        return
    grad += plane_offset(plane, channels, grad_stride_n, grad_stride_c)
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    grad_x += plane.to(tl.int64) * pixels
    scale, shift = _parameters(weight, bias, plane % channels)
    mean, rstd = tl.load(means + plane), tl.load(rstds + plane)
    index = tl.arange(0, BLOCK)
    if RESIDENT:
        normalised, gradient = _normalised_and_gradient(x, grad, index, pixels, mean, rstd, scale, shift, RELU)
        sum_gradient, sum_product = tl.sum(gradient), tl.sum(gradient * normalised)
        value = rstd * scale * (gradient - sum_gradient / pixels - normalised * (sum_product / pixels))
        tl.store(grad_x + index, value.to(grad_x.dtype.element_ty), mask=index < pixels)
    else:
        gradients, products = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            normalised, gradient = _normalised_and_gradient(x, grad, start + index, pixels, mean, rstd, scale, shift, RELU)
            gradients += gradient
            products += gradient * normalised
        sum_gradient, sum_product = tl.sum(gradients), tl.sum(products)
        for start in range(0, pixels, BLOCK):
            normalised, gradient = _normalised_and_gradient(x, grad, start + index, pixels, mean, rstd, scale, shift, RELU)
            value = rstd * scale * (gradient - sum_gradient / pixels - normalised * (sum_product / pixels))
            tl.store(grad_x + start + index, value.to(grad_x.dtype.element_ty), mask=start + index < pixels)
    if partials is not None:
        tl.store(partials + plane, sum_product)
        tl.store(partials + planes + plane, sum_gradient)


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, relu: bool, eps: float,
    widths: Tensor | None = None, place: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel on tensors with dense planes and contiguous vectors.

    Args:
        widths: active channels on the device, or None where all are.
        place: where in ``widths`` these are counted.

    Returns:
        The result, and mean and 1 / standard deviation of every plane.
    """
    images, channels, height, width = x.shape
    y = x.new_empty(x.shape)
    mean, rstd = (x.new_empty((images, channels), dtype=torch.float32) for _ in range(2))
    residual_strides = (0, 0) if residual is None else residual.stride()[:2]
    if images:
        with guard(x):
            _instance_norm_act_kernel[(images * channels,)](
                x, weight, bias, residual, y, mean, rstd, widths, channels, height * width, *x.stride()[:2],
                *residual_strides, eps, place, RELU=relu, **blocking(height * width),
            )  # fmt: skip
    return y, mean, rstd


def normalise_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, relu: bool,
    needs_parameters: bool, widths: Tensor | None = None, place: int = 0,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Launch the backward kernel; returns the input's gradient, and [2, N, C]: every plane's share in weight's and bias's."""
    images, channels, height, width = x.shape
    grad_x = x.new_empty(x.shape)
    partials = mean.new_empty((2, images, channels)) if needs_parameters else None
    if images:
        with guard(x):
            _instance_norm_act_backward_kernel[(images * channels,)](
                grad, x, weight, bias, mean, rstd, grad_x, partials, widths, channels, images * channels, height * width,
                *grad.stride()[:2], *x.stride()[:2], place, RELU=relu, **blocking(height * width),
            )  # fmt: skip
    return grad_x, partials


class InstanceNormActTriton(torch.autograd.Function):
    """Forward and backward through the Triton kernels; keeps what the CPU implementation keeps.

    With ``widths``, one int32 on the device, only so many channels take part; those beyond are neither read nor written.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, relu: bool, eps: float,
        widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x = dense_planes(x)
        residual = None if residual is None else dense_planes(residual)
        weight, bias = (None if vector is None else vector.contiguous() for vector in (weight, bias))
        y, mean, rstd = normalise(x, weight, bias, residual, relu, eps, widths)
        ctx.save_for_backward(x, weight, bias, mean, rstd, widths)
        ctx.relu, ctx.has_residual = relu, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd, widths = ctx.saved_tensors
        grad = dense_planes(grad)
        _, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        needs_parameters = needs_weight or needs_bias
        grad_x, partials = normalise_backward(grad, x, weight, bias, mean, rstd, ctx.relu, needs_parameters, widths)
        with guard(x):
            grad_weight = sum_images(partials[:1], weight, widths) if partials is not None and needs_weight else None
            grad_bias = sum_images(partials[1:], bias, widths) if partials is not None and needs_bias else None
        return grad_x, grad_weight, grad_bias, grad if ctx.has_residual else None, None, None, None
