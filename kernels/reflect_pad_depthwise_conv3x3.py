"""Depthwise 3x3 with reflection by index: the padded image is never made, and no two programs write one place."""

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
    dense_planes,
    filter_row,
    fold,
    guard,
    plane_offset,
    reflect,
    sum_images,
)

# Few enough that the ten sums per pixel of the weight's gradient stay in registers.
_TILE_PIXELS = 512


def blocking(height: int, width: int) -> dict[str, Any]:
    """Compile-time options of all kernels: tiles of an image that are as wide as it pays."""
    columns = min(triton.next_power_of_2(width), 64)
    rows = min(triton.next_power_of_2(height), _TILE_PIXELS // columns)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": min(max(rows * columns // 128, 1), 4), **FLOAT_OPTIONS}


def _tiles(height: int, width: int, options: dict[str, Any]) -> int:
    return triton.cdiv(height, options["ROWS"]) * triton.cdiv(width, options["COLUMNS"])


@triton.jit
def _load(pointer, inside):
    return tl.load(pointer, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _total(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit
def _tile(plane_and_tile, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Plane number, rows [ROWS, 1] and columns [1, COLUMNS] of a program's tile."""
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    plane, tile = plane_and_tile // tiles, plane_and_tile % tiles
    rows = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return plane, rows, columns


@triton.jit(do_not_specialize=["widths", "channels"])
def _reflect_pad_depthwise_conv3x3_kernel(
    x, weight, bias, y, widths, channels, height, width, stride_n, stride_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    plane, rows, columns = _tile(tl.program_id(0), height, width, ROWS, COLUMNS)
    channel = plane % channels
    if channel >= active_channels(widths, channels, 0):
        return
    inside = (rows < height) & (columns < width)
    x += plane_offset(plane, channels, stride_n, stride_c)
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    if bias is not None:
        value += tl.load(bias + channel).to(tl.float32)
    for u in tl.static_range(3):
        for v in tl.static_range(3):
            tap = tl.load(weight + channel * 9 + 3 * u + v).to(tl.float32)
            from_row, from_column = reflect(rows + (u - 1), height), reflect(columns + (v - 1), width)
            value += tap * _load(x + from_row * width + from_column, inside)
    y += plane.to(tl.int64) * height * width
    tl.store(y + rows * width + columns, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["widths", "channels"])
def _reflect_pad_depthwise_conv3x3_backward_input_kernel(
    grad, weight, grad_x, widths, channels, height, width, stride_n, stride_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    plane, rows, columns = _tile(tl.program_id(0), height, width, ROWS, COLUMNS)
    channel = plane % channels
    if channel >= active_channels(widths, channels, 0):
        return
    inside = (rows < height) & (columns < width)
    grad += plane_offset(plane, channels, stride_n, stride_c)
    weight += channel * 9
    k00, k01, k02 = filter_row(weight)
    k10, k11, k12 = filter_row(weight + 3)
    k20, k21, k22 = filter_row(weight + 6)
    value = tl.zeros([ROWS, COLUMNS], tl.float32)
    for down in tl.static_range(-1, 2):
        k0 = fold(k00, k10, k20, rows, height, down)
        k1 = fold(k01, k11, k21, rows, height, down)
        k2 = fold(k02, k12, k22, rows, height, down)
        for right in tl.static_range(-1, 2):
            row, column = rows + down, columns + right
            exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            value += fold(k0, k1, k2, columns, width, right) * _load(grad + row * width + column, exists)
    grad_x += plane.to(tl.int64) * height * width
    tl.store(grad_x + rows * width + columns, value.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["widths", "channels", "planes"])
def _reflect_pad_depthwise_conv3x3_backward_weight_kernel(
    grad, x, partials, widths, channels, planes, height, width, grad_stride_n, grad_stride_c, x_stride_n, x_stride_c,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)
    if plane % channels >= active_channels(widths, channels, 0):
        return
    grad += plane_offset(plane, channels, grad_stride_n, grad_stride_c)
    x += plane_offset(plane, channels, x_stride_n, x_stride_c)
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for top in range(0, height, ROWS):
        row = top + tl.arange(0, ROWS)[:, None]
        above, below = x + reflect(row - 1, height) * width, x + reflect(row + 1, height) * width
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)[None, :]
            before, after = reflect(column - 1, width), reflect(column + 1, width)
            inside = (row < height) & (column < width)
            gradient = _load(grad + row * width + column, inside)
            s0 += gradient * _load(above + before, inside)
            s1 += gradient * _load(above + column, inside)
            s2 += gradient * _load(above + after, inside)
            s3 += gradient * _load(x + row * width + before, inside)
            s4 += gradient * _load(x + row * width + column, inside)
            s5 += gradient * _load(x + row * width + after, inside)
            s6 += gradient * _load(below + before, inside)
            s7 += gradient * _load(below + column, inside)
            s8 += gradient * _load(below + after, inside)
            s9 += gradient
    partials += plane
    tl.store(partials, _total(s0))
    tl.store(partials + planes, _total(s1))
    tl.store(partials + planes * 2, _total(s2))
    tl.store(partials + planes * 3, _total(s3))
    tl.store(partials + planes * 4, _total(s4))
    tl.store(partials + planes * 5, _total(s5))
    tl.store(partials + planes * 6, _total(s6))
    tl.store(partials + planes * 7, _total(s7))
    tl.store(partials + planes * 8, _total(s8))
    tl.store(partials + planes * 9, _total(s9))


class ReflectPadDepthwiseConv3x3Triton(torch.autograd.Function):
    """Forward and backward through the Triton kernels.

    With ``widths``, one int32 on the device, only so many channels take part; those beyond are neither read nor written.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, widths: Tensor | None = None) -> Tensor:
        x, weight = dense_planes(x), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        images, channels, height, width = x.shape
        y = x.new_empty(x.shape)
        if images:
            options = blocking(height, width)
            with guard(x):
                _reflect_pad_depthwise_conv3x3_kernel[(images * channels * _tiles(height, width, options),)](
                    x, weight, bias, y, widths, channels, height, width, *x.stride()[:2], **options
                )
        ctx.save_for_backward(x, weight, bias, widths)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, widths = ctx.saved_tensors
        grad = dense_planes(grad)
        images, channels, height, width = x.shape
        options = blocking(height, width)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        with guard(x):
            if needs_x:
                grad_x = x.new_empty(x.shape)
                if images:
                    grid = (images * channels * _tiles(height, width, options),)
                    _reflect_pad_depthwise_conv3x3_backward_input_kernel[grid](
                        grad, weight, grad_x, widths, channels, height, width, *grad.stride()[:2], **options
                    )
            if needs_weight or needs_bias:
                partials = x.new_empty((10, images, channels), dtype=torch.float32)
                if images:
                    _reflect_pad_depthwise_conv3x3_backward_weight_kernel[(images * channels,)](
                        grad, x, partials, widths, channels, images * channels, height, width, *grad.stride()[:2],
                        *x.stride()[:2], **options,
                    )  # fmt: skip
                grad_weight = sum_images(partials[:9], weight, widths) if needs_weight else None
                grad_bias = sum_images(partials[9:], bias, widths) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None
