"""SPADE's modulation: normalise, scale and shift pixel by pixel, activate.

Statistics take one launch and the result another. Programs own segments of planes, so that a few large planes fill a GPU as
well as many small ones. Every segment writes its mean and squared distances; whoever needs the statistics of a plane, or of a
channel over the batch, merges those in one fixed order. Backwards the same with two sums.

A mean is two numbers, a guess and the rest, subtracted one after the other: so one far from zero costs no accuracy.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.kernels.common import FLOAT_OPTIONS, active_channels, dense_planes, guard, plane_offset

_SEGMENT_PIXELS = 2048
_MOST_MERGED = 256


def blocking(images: int, pixels: int, batch: bool) -> dict[str, Any]:
    """Compile-time options of all kernels for ``images`` planes per channel of ``pixels`` pixels.

    Args:
        batch: whether statistics are of all images together.
    """
    block = min(triton.next_power_of_2(pixels), _SEGMENT_PIXELS)
    items = triton.cdiv(pixels, block) * (images if batch else 1)
    merged = min(triton.next_power_of_2(items), _MOST_MERGED)
    return {"BLOCK": block, "MERGED": merged, "num_warps": min(max(block // 256, 1), 8), **FLOAT_OPTIONS}


@triton.jit
def _load(pointer, index, inside):
    return tl.load(pointer + index, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _share(shares, item, term, plane, channels, images, segments, BATCH: tl.constexpr):
    """Where the item-th segment that belongs to the statistics of a plane has its share."""
    image = item // segments if BATCH else plane // channels
    segment = item % segments if BATCH else item
    return shares + (((term * images + image) * channels + plane % channels) * segments + segment)


@triton.jit(do_not_specialize=["widths", "channels", "images", "segments"])
def _spade_moments_kernel(x, shares, widths, channels, images, pixels, segments, stride_n, stride_c, BLOCK: tl.constexpr):
    # shares [3, N, C, segments]: the mean of a segment as guess and rest, the sum of squared distances from it.
    plane, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    if plane % channels >= active_channels(widths, channels, 0):
        return
    index = segment * BLOCK + tl.arange(0, BLOCK)
    inside = index < pixels
    count = tl.minimum(pixels - segment * BLOCK, BLOCK).to(tl.float32)
    values = _load(x + plane_offset(plane, channels, stride_n, stride_c), index, inside)
    guess = tl.sum(values) / count
    distances = tl.where(inside, values - guess, 0.0)
    rest = tl.sum(distances) / count
    target = _share(shares, segment, 0, plane, channels, images, segments, False)
    tl.store(target, guess)
    tl.store(target + images * channels * segments, rest)
    tl.store(target + 2 * images * channels * segments, tl.sum(distances * distances) - count * rest * rest)


@triton.jit
def _deviation(shares, item, known, guess, plane, channels, images, segments, BATCH: tl.constexpr):
    """How far the mean of a segment is from ``guess``."""
    mean = _load(_share(shares, item, 0, plane, channels, images, segments, BATCH), 0, known)
    rest = _load(_share(shares, item, 1, plane, channels, images, segments, BATCH), 0, known)
    return tl.where(known, mean - guess + rest, 0.0)


@triton.jit
def _merged_moments(
    shares, plane, channels, images, pixels, segments, BATCH: tl.constexpr, BLOCK: tl.constexpr, MERGED: tl.constexpr
):
    """Mean, as guess and rest, and biased variance of a plane, or of a channel over the batch."""
    items = segments * images if BATCH else segments
    size = pixels * (images if BATCH else 1) * 1.0
    guess = tl.load(_share(shares, 0, 0, plane, channels, images, segments, BATCH))
    total = tl.zeros([MERGED], tl.float32)
    for start in range(0, items, MERGED):
        item = start + tl.arange(0, MERGED)
        count = tl.minimum(pixels - item % segments * BLOCK, BLOCK).to(tl.float32)
        total += count * _deviation(shares, item, item < items, guess, plane, channels, images, segments, BATCH)
    rest = tl.sum(total) / size
    squares = tl.zeros([MERGED], tl.float32)
    for start in range(0, items, MERGED):
        item = start + tl.arange(0, MERGED)
        count = tl.minimum(pixels - item % segments * BLOCK, BLOCK).to(tl.float32)
        apart = _deviation(shares, item, item < items, guess, plane, channels, images, segments, BATCH) - rest
        square = _load(_share(shares, item, 2, plane, channels, images, segments, BATCH), 0, item < items)
        squares += tl.where(item < items, square + count * apart * apart, 0.0)
    return guess, rest, tl.sum(squares) / size


@triton.jit
def _modulated(x, gamma, beta, index, inside, mean, rest, rstd):
    """The normalised input, one plus gamma, and what the activation sees."""
    normalised = (_load(x, index, inside) - mean - rest) * rstd
    factor = 1.0 + _load(gamma, index, inside)
    return normalised, factor, normalised * factor + _load(beta, index, inside)


@triton.jit(do_not_specialize=["widths", "channels", "images", "segments"])
def _spade_modulate_kernel(
    x, gamma, beta, y, shares, means, rstds, variances, widths, channels, images, pixels, segments, x_stride_n, x_stride_c,
    gamma_stride_n, gamma_stride_c, beta_stride_n, beta_stride_c, slope, eps, BATCH: tl.constexpr, GIVEN: tl.constexpr,
    BLOCK: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    # Statistics are merged from shares and written to means, rstds (and variances), or GIVEN there.
    plane, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    channel = plane % channels
    statistics = channel if BATCH else plane
    first = segment + (plane // channels if BATCH else 0) == 0
    if channel >= active_channels(widths, channels, 0):
        if variances is not None:
            # Running statistics take these over: nothing may look like a value there.
            tl.store(means + statistics, 0.0, mask=first)
            tl.store(variances + statistics, 0.0, mask=first)
        return
    rest = 0.0
    if GIVEN:
        mean, rstd = tl.load(means + statistics).to(tl.float32), tl.load(rstds + statistics).to(tl.float32)
    else:
        mean, rest, variance = _merged_moments(shares, plane, channels, images, pixels, segments, BATCH, BLOCK, MERGED)
        rstd = tl.rsqrt(variance + eps)
        tl.store(means + statistics, mean + rest, mask=first)
        tl.store(rstds + statistics, rstd, mask=first)
        if variances is not None:
            tl.store(variances + statistics, variance, mask=first)
    index = segment * BLOCK + tl.arange(0, BLOCK)
    inside = index < pixels
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    gamma += plane_offset(plane, channels, gamma_stride_n, gamma_stride_c)
    beta += plane_offset(plane, channels, beta_stride_n, beta_stride_c)
    _, _, value = _modulated(x, gamma, beta, index, inside, mean, rest, rstd)
    value = tl.where(value > 0.0, value, value * slope)
    tl.store(y + plane.to(tl.int64) * pixels + index, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["widths", "channels", "images", "segments"])
def _spade_modulate_backward_kernel(
    grad, x, gamma, beta, means, rstds, shares, grad_x, grad_gamma, grad_beta, widths, channels, images, pixels, segments,
    grad_stride_n, grad_stride_c, x_stride_n, x_stride_c, gamma_stride_n, gamma_stride_c, beta_stride_n, beta_stride_c, slope,
    BATCH: tl.constexpr, GIVEN: tl.constexpr, SUMS: tl.constexpr, BLOCK: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    # With SUMS: shares [2, N, C, segments] of the sums over the gradient by the normalised input, and over its product with
    # that input. Without: the gradients, which need those sums unless the statistics were GIVEN.
    plane, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    channel = plane % channels
    if channel >= active_channels(widths, channels, 0):
        return
    statistics = channel if BATCH else plane
    mean, rstd = tl.load(means + statistics).to(tl.float32), tl.load(rstds + statistics).to(tl.float32)
    index = segment * BLOCK + tl.arange(0, BLOCK)
    inside = index < pixels
    grad += plane_offset(plane, channels, grad_stride_n, grad_stride_c)
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    gamma += plane_offset(plane, channels, gamma_stride_n, gamma_stride_c)
    beta += plane_offset(plane, channels, beta_stride_n, beta_stride_c)
    normalised, factor, value = _modulated(x, gamma, beta, index, inside, mean, 0.0, rstd)
    gradient = _load(grad, index, inside)
    gradient = tl.where(value > 0.0, gradient, gradient * slope)
    inner = gradient * factor
    if SUMS:
        target = _share(shares, segment, 0, plane, channels, images, segments, False)
        tl.store(target, tl.sum(inner))
        tl.store(target + images * channels * segments, tl.sum(inner * normalised))
    else:
        if not GIVEN:
            items = segments * images if BATCH else segments
            gradients, products = tl.zeros([MERGED], tl.float32), tl.zeros([MERGED], tl.float32)
            for start in range(0, items, MERGED):
                item = start + tl.arange(0, MERGED)
                gradients += _load(_share(shares, item, 0, plane, channels, images, segments, BATCH), 0, item < items)
                products += _load(_share(shares, item, 1, plane, channels, images, segments, BATCH), 0, item < items)
            size = pixels * (images if BATCH else 1) * 1.0
            inner -= tl.sum(gradients) / size + normalised * (tl.sum(products) / size)
        index += plane.to(tl.int64) * pixels
        tl.store(grad_x + index, (rstd * inner).to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_gamma + index, (gradient * normalised).to(grad_gamma.dtype.element_ty), mask=inside)
        tl.store(grad_beta + index, gradient.to(grad_beta.dtype.element_ty), mask=inside)


class SpadeModulateTriton(torch.autograd.Function):
    """Forward and backward through the Triton kernels.

    Args:
        x, gamma, beta: [N, C, H, W].
        mean, rstd: [C_max >= C], constants, or None for the statistics of ``x``.
        batch: whether those are of all images together.
        slope: of the activation below zero.
        eps: added to variances.
        widths: None, and all channels of ``x`` are active; or one int32 on the device, the channels that take part. Those
            beyond are neither read nor written, but for their batch mean and variance, which are zero.

    Returns:
        y, and where statistics of the batch were computed their mean and biased variance, [C] float32, else None twice.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor | None, rstd: Tensor | None, batch: bool, slope: float,
        eps: float, widths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        x, gamma, beta = dense_planes(x), dense_planes(gamma), dense_planes(beta)
        images, channels, height, width = x.shape
        given = mean is not None
        # Constants are those of a channel, like the batch's.
        batch = batch or given
        y, variance = x.new_empty(x.shape), None
        shares = None
        options = blocking(images, height * width, batch)
        segments = triton.cdiv(height * width, options["BLOCK"])
        sizes = channels, images, height * width, segments
        if given:
            mean, rstd = mean.contiguous(), rstd.contiguous()
        else:
            mean, rstd = (x.new_empty((channels,) if batch else (images, channels), dtype=torch.float32) for _ in range(2))
            shares = mean.new_empty((3, images, channels, segments))
            variance = torch.empty_like(mean) if batch else None
        if images:
            grid = (images * channels * segments,)
            with guard(x):
                if not given:
                    moment_options = {name: value for name, value in options.items() if name != "MERGED"}
                    _spade_moments_kernel[grid](x, shares, widths, *sizes, *x.stride()[:2], **moment_options)
                _spade_modulate_kernel[grid](
                    x, gamma, beta, y, shares, mean, rstd, variance, widths, *sizes, *x.stride()[:2], *gamma.stride()[:2],
                    *beta.stride()[:2], slope, eps, BATCH=batch, GIVEN=given, **options,
                )  # fmt: skip
        ctx.save_for_backward(x, gamma, beta, mean, rstd, widths)
        ctx.settings = batch, given, slope
        if variance is None:
            return y, None, None
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, mean, rstd, widths = ctx.saved_tensors
        batch, given, slope = ctx.settings
        grad = dense_planes(grad)
        images, channels, height, width = x.shape
        options = blocking(images, height * width, batch)
        segments = triton.cdiv(height * width, options["BLOCK"])
        grad_x, grad_gamma, grad_beta = (x.new_empty(x.shape) for _ in range(3))
        shares = None if given else x.new_empty((2, images, channels, segments), dtype=torch.float32)
        if images:
            with guard(x):
                for sums in (False,) if given else (True, False):
                    _spade_modulate_backward_kernel[(images * channels * segments,)](
                        grad, x, gamma, beta, mean, rstd, shares, grad_x, grad_gamma, grad_beta, widths, channels, images,
                        height * width, segments, *grad.stride()[:2], *x.stride()[:2], *gamma.stride()[:2], *beta.stride()[:2],
                        slope, BATCH=batch, GIVEN=given, SUMS=sums, **options,
                    )  # fmt: skip
        return grad_x, grad_gamma, grad_beta, None, None, None, None, None, None
