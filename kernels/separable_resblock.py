"""The ResBlock of depthwise-separable convolutions: programs that own planes, and matrix products between them.

Depthwise convolution and InstanceNorm both stay within one plane of an image. One program therefore does everything between
two pointwise convolutions: it normalises its plane, applies ReLU and dropout, reflects at the border, filters, and normalises
again. Nothing crosses programs but what the pointwise products mix, so that no sum depends on the order of programs. Forwards
that makes five launches: plane, product, plane, product, and the last InstanceNorm with the residual.

Planes of up to 64 x 64 pixels stay in registers from the filter on. Larger ones are walked through in tiles, twice: for the
statistics, which tiles merge, and for the result. Neighbours come from the cache: they are the program's own plane.

Backwards a program owns its plane likewise: gradient of the inner norm, of the filter, the filter's own nine sums, of dropout,
ReLU and the outer norm. Kept are the input, both normalised filter results, both products, and the statistics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.kernels.common import (
    FLOAT_OPTIONS,
    active_channels,
    channel_counts,
    dense_planes,
    filter_row,
    fold,
    guard,
    plane_offset,
    reflect,
    sum_images,
)
from gancomp.kernels.instance_norm_act import normalise, normalise_backward
from gancomp.kernels.sliced_conv import convolve, weight_gradient

_RESIDENT_PIXELS = 64 * 64
_LOOP_BLOCK = 2048
# The places in ``widths``.
_STREAM, _HIDDEN = 0, 1


def blocking(pixels: int) -> dict[str, Any]:
    """Compile-time options of both kernels for planes of ``pixels`` pixels."""
    resident = pixels <= _RESIDENT_PIXELS
    block = triton.next_power_of_2(pixels) if resident else _LOOP_BLOCK
    warps = min(max(block // 256, 1), 16)
    # All the registers there are, said explicitly: left to itself, the assembler spills a few to fit one more block.
    return {"RESIDENT": resident, "BLOCK": block, "num_warps": warps, "maxnreg": min(2048 // warps, 255), **FLOAT_OPTIONS}


@triton.jit
def _load(pointer, index, inside):
    return tl.load(pointer + index, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _merge(values, inside, block_count, count, mean, squares):
    """Mean and sum of squared distances of ``count`` values and a block of further ones (Chan et al. 1979)."""
    guess = tl.sum(tl.where(inside, values, 0.0)) / block_count
    distances = tl.where(inside, values - guess, 0.0)
    rest = tl.sum(distances) / block_count
    apart = guess - mean + rest
    together = count + block_count
    squares += tl.sum(distances * distances) - block_count * rest * rest + apart * apart * (count * block_count / together)
    return together, mean + apart * (block_count / together), squares


@triton.jit
def _activated(x, mask, index, inside, mean, rstd, scale, ACT: tl.constexpr):
    """What the filter sees at ``index``: the plane itself, or normalised, after ReLU and dropout."""
    value = _load(x, index, inside)
    if ACT:
        value = (value - mean) * rstd
        # Not maximum(): a NaN must stay one.
        value = tl.where(value <= 0.0, 0.0, value)
        if mask is not None:
            value *= _load(mask, index, inside) * scale
    return value


# The loops over the filter's rows are left to run time: unrolled, so many loads are under way that registers spill.
@triton.jit
def _filtered(x, mask, weight, index, height, width, mean, rstd, scale, ACT: tl.constexpr):
    inside = index < height * width
    row, column = index // width, index % width
    value = tl.zeros_like(index).to(tl.float32)
    for u in range(0, 3):
        start = reflect(row + (u - 1), height) * width
        for v in tl.static_range(3):
            source = start + reflect(column + (v - 1), width)
            tap = tl.load(weight + 3 * u + v).to(tl.float32)
            value += tap * _activated(x, mask, source, inside, mean, rstd, scale, ACT)
    return value


@triton.jit(do_not_specialize=["widths", "channels", "place"])
def _separable_plane_kernel(
    x, mask, weight, y, x_means, x_rstds, y_rstds, widths, channels, height, width, stride_n, stride_c, scale, eps,
    place, ACT: tl.constexpr, RESIDENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # y = norm(filter(x)), or norm(filter(dropout(relu(norm(x))))) with ACT.
    plane = tl.program_id(0)
    channel = plane % channels
    if channel >= active_channels(widths, channels, place):
        return
    pixels = height * width
    x += plane_offset(plane, channels, stride_n, stride_c)
    y += plane.to(tl.int64) * pixels
    weight += channel * 9
    index = tl.arange(0, BLOCK)
    mean, rstd = 0.0, 1.0
    if ACT:
        if mask is not None:
            mask += plane.to(tl.int64) * pixels
        count, mean, squares = 0.0, 0.0, 0.0
        for start in range(0, pixels, BLOCK):
            values, inside = _load(x, start + index, start + index < pixels), start + index < pixels
            count, mean, squares = _merge(values, inside, tl.minimum(pixels - start, BLOCK) * 1.0, count, mean, squares)
        rstd = tl.rsqrt(squares / pixels + eps)
        tl.store(x_means + plane, mean)
        tl.store(x_rstds + plane, rstd)
    y_count, y_mean, y_squares = 0.0, 0.0, 0.0
    if RESIDENT:
        value = _filtered(x, mask, weight, index, height, width, mean, rstd, scale, ACT)
        y_count, y_mean, y_squares = _merge(value, index < pixels, pixels * 1.0, y_count, y_mean, y_squares)
        y_rstd = tl.rsqrt(y_squares / pixels + eps)
        tl.store(y + index, ((value - y_mean) * y_rstd).to(y.dtype.element_ty), mask=index < pixels)
    else:
        for start in range(0, pixels, BLOCK):
            value = _filtered(x, mask, weight, start + index, height, width, mean, rstd, scale, ACT)
            block_count = tl.minimum(pixels - start, BLOCK) * 1.0
            y_count, y_mean, y_squares = _merge(value, start + index < pixels, block_count, y_count, y_mean, y_squares)
        y_rstd = tl.rsqrt(y_squares / pixels + eps)
        for start in range(0, pixels, BLOCK):
            value = _filtered(x, mask, weight, start + index, height, width, mean, rstd, scale, ACT)
            value = (value - y_mean) * y_rstd
            tl.store(y + start + index, value.to(y.dtype.element_ty), mask=start + index < pixels)
    tl.store(y_rstds + plane, y_rstd)


@triton.jit
def _inner_gradient(grad, y, index, exists, rstd, mean_grad, mean_product):
    """The gradient of the filter's result: that of its InstanceNorm, zero where nothing exists."""
    value = _load(grad, index, exists) - mean_grad - _load(y, index, exists) * mean_product
    return tl.where(exists, value * rstd, 0.0)


@triton.jit
def _unfiltered(grad, y, weight, index, height, width, rstd, mean_grad, mean_product):
    """The gradient of what the filter saw: outputs one row and column around, and once more those that saw a reflection."""
    inside = index < height * width
    row, column = index // width, index % width
    value = tl.zeros_like(index).to(tl.float32)
    for down in range(-1, 2):
        near, far = filter_row(weight + 3 * (1 - down)), filter_row(weight + 3 * (1 + down))
        # The row at the end shows the one before it again, above or below itself.
        end = tl.where(down == 0, -1, (height - 1) * (down + 1) // 2)
        at_end = row + down == end
        k0 = near[0] + tl.where(at_end, far[0], 0.0)
        k1 = near[1] + tl.where(at_end, far[1], 0.0)
        k2 = near[2] + tl.where(at_end, far[2], 0.0)
        for right in tl.static_range(-1, 2):
            exists = inside & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
            source = index + down * width + right
            gradient = _inner_gradient(grad, y, source, exists, rstd, mean_grad, mean_product)
            value += fold(k0, k1, k2, column, width, right) * gradient
    return value


@triton.jit
def _outer_gradient(x, mask, gradient, index, inside, mean, rstd, scale):
    """The normalised input, and the gradient that dropout and ReLU let through."""
    normalised = (_load(x, index, inside) - mean) * rstd
    if mask is not None:
        gradient *= _load(mask, index, inside) * scale
    return normalised, tl.where(inside & (normalised > 0.0), gradient, 0.0)


@triton.jit(do_not_specialize=["widths", "channels", "planes", "place"])
def _separable_plane_backward_kernel(
    grad, y, x, mask, residual, weight, grad_x, partials, x_means, x_rstds, y_rstds, widths, channels, planes, height, width,
    x_stride_n, x_stride_c, residual_stride_n, residual_stride_c, scale, place, ACT: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    channel = plane % channels
    if channel >= active_channels(widths, channels, place):
        return
    pixels = height * width
    grad += plane.to(tl.int64) * pixels
    y += plane.to(tl.int64) * pixels
    grad_x += plane.to(tl.int64) * pixels
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    weight += channel * 9
    mean, rstd = 0.0, 1.0
    if ACT:
        mean, rstd = tl.load(x_means + plane), tl.load(x_rstds + plane)
        if mask is not None:
            mask += plane.to(tl.int64) * pixels
    else:
        residual += plane_offset(plane, channels, residual_stride_n, residual_stride_c)
    y_rstd = tl.load(y_rstds + plane)
    index = tl.arange(0, BLOCK)

    gradients, products = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, pixels, BLOCK):
        gradient = _load(grad, start + index, start + index < pixels)
        gradients += gradient
        products += gradient * _load(y, start + index, start + index < pixels)
    mean_grad, mean_product = tl.sum(gradients) / pixels, tl.sum(products) / pixels

    if partials is not None:
        for tap in range(0, 9):
            total = tl.zeros([BLOCK], tl.float32)
            for start in range(0, pixels, BLOCK):
                inside = start + index < pixels
                row, column = (start + index) // width, (start + index) % width
                source = reflect(row + (tap // 3 - 1), height) * width + reflect(column + (tap % 3 - 1), width)
                seen = _activated(x, mask, source, inside, mean, rstd, scale, ACT)
                total += seen * _inner_gradient(grad, y, start + index, inside, y_rstd, mean_grad, mean_product)
            tl.store(partials + tap * planes + plane, tl.sum(total))

    if not ACT:
        for start in range(0, pixels, BLOCK):
            inside = start + index < pixels
            value = _unfiltered(grad, y, weight, start + index, height, width, y_rstd, mean_grad, mean_product)
            value += _load(residual, start + index, inside)
            tl.store(grad_x + start + index, value.to(grad_x.dtype.element_ty), mask=inside)
    elif RESIDENT:
        inside = index < pixels
        value = _unfiltered(grad, y, weight, index, height, width, y_rstd, mean_grad, mean_product)
        normalised, value = _outer_gradient(x, mask, value, index, inside, mean, rstd, scale)
        value -= tl.sum(value) / pixels + normalised * (tl.sum(value * normalised) / pixels)
        tl.store(grad_x + index, (rstd * value).to(grad_x.dtype.element_ty), mask=inside)
    else:
        outer_gradients, outer_products = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            inside = start + index < pixels
            value = _unfiltered(grad, y, weight, start + index, height, width, y_rstd, mean_grad, mean_product)
            normalised, value = _outer_gradient(x, mask, value, start + index, inside, mean, rstd, scale)
            outer_gradients += value
            outer_products += value * normalised
        outer_grad, outer_product = tl.sum(outer_gradients) / pixels, tl.sum(outer_products) / pixels
        for start in range(0, pixels, BLOCK):
            inside = start + index < pixels
            value = _unfiltered(grad, y, weight, start + index, height, width, y_rstd, mean_grad, mean_product)
            normalised, value = _outer_gradient(x, mask, value, start + index, inside, mean, rstd, scale)
            value = rstd * (value - outer_grad - normalised * outer_product)
            tl.store(grad_x + start + index, value.to(grad_x.dtype.element_ty), mask=inside)


def _plane(
    x: Tensor, mask: Tensor | None, weight: Tensor, widths: Tensor, place: int, act: bool, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Filter ``x`` and normalise the result; returns that, its rstd, and mean and rstd of ``x`` with ``act``."""
    images, channels, height, width = x.shape
    y = x.new_empty(x.shape)
    y_rstd = x.new_empty((images, channels), dtype=torch.float32)
    mean, rstd = (torch.empty_like(y_rstd) if act else None for _ in range(2))
    if images:
        with guard(x):
            _separable_plane_kernel[(images * channels,)](
                x, mask, weight, y, mean, rstd, y_rstd, widths, channels, height, width, *x.stride()[:2], scale, eps,
                place, ACT=act, **blocking(height * width),
            )  # fmt: skip
    return y, y_rstd, mean, rstd


def _plane_backward(
    grad: Tensor, y: Tensor, y_rstd: Tensor, x: Tensor, mask: Tensor | None, residual: Tensor | None, mean: Tensor | None,
    rstd: Tensor | None, weight: Tensor, widths: Tensor, place: int, scale: float, needs_weight: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of :func:`_plane` by its input, with ``residual`` added, and by its full weight."""
    images, channels, height, width = x.shape
    grad_x = x.new_empty(x.shape)
    partials = y_rstd.new_empty((9, images, channels)) if needs_weight else None
    residual_strides = (0, 0) if residual is None else residual.stride()[:2]
    if images:
        with guard(x):
            _separable_plane_backward_kernel[(images * channels,)](
                grad, y, x, mask, residual, weight, grad_x, partials, mean, rstd, y_rstd, widths, channels, images * channels,
                height, width, *x.stride()[:2], *residual_strides, scale, place, ACT=residual is None,
                **blocking(height * width),
            )  # fmt: skip
    with guard(x):
        return grad_x, None if partials is None else sum_images(partials, weight, widths, place)


class SeparableResblockTriton(torch.autograd.Function):
    """Forward and backward through the Triton kernels.

    Args:
        x: [N, C, H, W] with H, W >= 2.
        depthwise1, pointwise1, depthwise2, pointwise2: full weights.
        mask: [N, hidden, H, W] bytes of 0 and 1, contiguous, or None.
        scale: what kept values are multiplied by, 1 / (1 - dropout).
        hidden: channels in between: the active ones, or with ``widths`` the most that may be.
        eps: added to variances.
        widths: None, and the channels of the shapes are active; or two int32 on the device, (C, hidden) channels that take
            part. Then channels beyond them are neither read nor written.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, depthwise1: Tensor, pointwise1: Tensor, depthwise2: Tensor, pointwise2: Tensor,
        mask: Tensor | None, scale: float, hidden: int, eps: float, widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x, depthwise1, depthwise2 = dense_planes(x), depthwise1.contiguous(), depthwise2.contiguous()
        images, channels, height, width = x.shape
        widths = channel_counts(x.device, channels, hidden) if widths is None else widths
        d1, d1_rstd, _, _ = _plane(x, None, depthwise1, widths, _STREAM, False, 1.0, eps)
        z1 = convolve(d1, pointwise1, None, (images, hidden, height, width), widths, _HIDDEN, 1, 0)
        d2, d2_rstd, z1_mean, z1_rstd = _plane(z1, mask, depthwise2, widths, _HIDDEN, True, scale, eps)
        z2 = convolve(d2, pointwise2, None, x.shape, widths, _STREAM, 1, 0)
        y, z2_mean, z2_rstd = normalise(z2, None, None, x, False, eps, widths, _STREAM)
        ctx.save_for_backward(
            x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths, d1, z1, d2, z2, d1_rstd, z1_mean, z1_rstd, d2_rstd,
            z2_mean, z2_rstd,
        )  # fmt: skip
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, depthwise1, pointwise1, depthwise2, pointwise2, mask, widths, d1, z1, d2, z2, d1_rstd, z1_mean, z1_rstd, d2_rstd,
            z2_mean, z2_rstd,
        ) = ctx.saved_tensors  # fmt: skip
        _, needs_depthwise1, needs_pointwise1, needs_depthwise2, needs_pointwise2 = ctx.needs_input_grad[:5]
        grad = dense_planes(grad)
        grad_z, _ = normalise_backward(grad, z2, None, None, z2_mean, z2_rstd, False, False, widths, _STREAM)
        grad_pointwise1 = grad_pointwise2 = None
        if needs_pointwise2:
            grad_pointwise2 = weight_gradient(grad_z, d2, pointwise2, widths, _STREAM, 1, 0)
        grad_d = convolve(grad_z, pointwise2, None, z1.shape, widths, _HIDDEN, 1, 0, transposed=True)
        grad_z, grad_depthwise2 = _plane_backward(
            grad_d, d2, d2_rstd, z1, mask, None, z1_mean, z1_rstd, depthwise2, widths, _HIDDEN, ctx.scale, needs_depthwise2
        )
        if needs_pointwise1:
            grad_pointwise1 = weight_gradient(grad_z, d1, pointwise1, widths, _HIDDEN, 1, 0)
        grad_d = convolve(grad_z, pointwise1, None, x.shape, widths, _STREAM, 1, 0, transposed=True)
        grad_x, grad_depthwise1 = _plane_backward(
            grad_d, d1, d1_rstd, x, None, grad, None, None, depthwise1, widths, _STREAM, 1.0, needs_depthwise1
        )
        return grad_x, grad_depthwise1, grad_pointwise1, grad_depthwise2, grad_pointwise2, None, None, None, None, None
