"""Convolutions over the first channels of a full weight, dense and transposed, as implicit matrix products.

Two kernels do the work. One gathers: an output pixel is the sum over taps and input channels, which is a convolution forwards,
and with the taps in reverse and one program per phase of the stride a transposed one; each is the other's gradient by its
input. The second multiplies two images pixel by pixel: the gradient of either weight.

How many channels take part is read from ``widths``, two int32 in the memory of the device: (output, input). Grids are sized
for all channels the tensors have, and programs beyond the active ones return at once, so a captured launch serves every
choice. Inactive channels of weights and images are never read, those of results never written.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.kernels.common import (
    FLOAT_OPTIONS,
    channel_counts,
    dense_planes,
    guard,
    plane_offset,
    product_options,
    sum_images,
)

ZEROS, REFLECT, REPLICATE = 0, 1, 2

# Images with fewer channels are multiplied tap by tap and channel by channel at once, or most of a tile would be empty.
_FEWEST_CHANNELS = 16
_SUM_BLOCK = 4096
_TILE_BLOCK = 1024
# Programs that fill a GPU of 132 multiprocessors twice: the gradient of a weight is split until there are as many.
_PROGRAMS = 264


def _block(size: int, largest: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), largest)


def blocking(out_channels: int, in_channels: int, taps: int, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time options of the gathering kernel, from the sizes of the full weight and of one phase of the output."""
    flat = in_channels < _FEWEST_CHANNELS and taps > 1
    return {
        "FLAT": flat,
        "BLOCK_OUT": _block(out_channels, 64),
        # The addresses of single taps take registers that a deeper tile would need.
        "BLOCK_IN": 16 if flat else _block(in_channels, 32),
        "BLOCK_PIXELS": _block(pixels, 64),
        **product_options(dtype),
    }


def weight_blocking(rows: int, columns: int, taps: int, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time options of the weight's gradient, from the sizes of the full weight and of the smaller image."""
    flat = columns < _FEWEST_CHANNELS and taps > 1
    return {
        "FLAT": flat,
        "BLOCK_ROWS": _block(rows, 64),
        "BLOCK_COLUMNS": _block(columns * taps if flat else columns, 64),
        "BLOCK_PIXELS": _block(pixels, 32),
        **product_options(dtype),
    }


@triton.jit
def _source(position, size, MODE: tl.constexpr):
    """Which position of a line the padded line shows at ``position``; with zeros that may be one that does not exist."""
    if MODE == 1:
        position = tl.where(position < 0, -position, position)
        position = tl.where(position < size, position, 2 * (size - 1) - position)
    elif MODE == 2:
        position = tl.minimum(tl.maximum(position, 0), size - 1)
    return position


@triton.jit(do_not_specialize=["widths", "y_channels", "padding", "tiles", "out_tiles", "place"])
def _sliced_conv2d_kernel(
    x, weight, bias, y, widths, height, width, x_stride_n, x_stride_c, y_channels, y_height, y_width, weight_stride_out,
    weight_stride_in, weight_stride_row, weight_stride_column, padding, tiles, out_tiles, place, KH: tl.constexpr,
    KW: tl.constexpr, STRIDE: tl.constexpr, MODE: tl.constexpr, TRANSPOSED: tl.constexpr, POINTWISE: tl.constexpr,
    FLAT: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_PIXELS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    out_channels, in_channels = tl.load(widths + place), tl.load(widths + 1 - place)
    program = tl.program_id(0)
    first_out = (program % out_tiles) * BLOCK_OUT
    if first_out >= out_channels:
        return
    program = program // out_tiles
    out, pixel = first_out + tl.arange(0, BLOCK_OUT), (program % tiles) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    program = program // tiles

    # Tap t of a line is the weight's row first + STEP * t, and output j reads position SCALE * j + origin + DIRECTION * t.
    # The outputs of a transposed convolution that meet the same rows are those of one phase: j * STRIDE + phase.
    PHASES: tl.constexpr = STRIDE if TRANSPOSED else 1
    STEP: tl.constexpr = STRIDE if TRANSPOSED else 1
    SCALE: tl.constexpr = 1 if TRANSPOSED else STRIDE
    DIRECTION: tl.constexpr = -1 if TRANSPOSED else 1
    image, phase = program // (PHASES * PHASES), program % (PHASES * PHASES)
    phase_row, phase_column = phase // PHASES, phase % PHASES
    if TRANSPOSED:
        first_row, first_column = (phase_row + padding) % STRIDE, (phase_column + padding) % STRIDE
        origin_row, origin_column = (phase_row + padding) // STRIDE, (phase_column + padding) // STRIDE
    else:
        first_row, first_column = 0, 0
        origin_row, origin_column = -padding, -padding
    taps_across = tl.cdiv(KW - first_column, STEP)
    taps = tl.cdiv(KH - first_row, STEP) * taps_across

    if POINTWISE:
        exists = pixel < y_height * y_width
        target = pixel
    else:
        across = tl.cdiv(y_width, PHASES)
        row, column = pixel // across, pixel % across
        y_row, y_column = row * PHASES + phase_row, column * PHASES + phase_column
        exists = (y_row < y_height) & (y_column < y_width)
        target = y_row * y_width + y_column
        row, column = row * SCALE + origin_row, column * SCALE + origin_column

    x += image.to(tl.int64) * x_stride_n
    weight += out[:, None].to(tl.int64) * weight_stride_out
    total = tl.zeros([BLOCK_OUT, BLOCK_PIXELS], tl.float32)
    blocks = tl.cdiv(in_channels, BLOCK_IN)
    steps = tl.cdiv(in_channels * taps, BLOCK_IN) if FLAT else blocks * taps
    for step in range(0, steps):
        if FLAT:
            term = step * BLOCK_IN + tl.arange(0, BLOCK_IN)
            channel, tap = term // taps, term % taps
            down, right = tap // taps_across, tap % taps_across
            cells = (first_row + STEP * down) * weight_stride_row + (first_column + STEP * right) * weight_stride_column
            weights = weight + (channel * weight_stride_in + cells)[None, :]
            rows, columns = row[None, :] + DIRECTION * down[:, None], column[None, :] + DIRECTION * right[:, None]
        else:
            channel, tap = (step % blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN), step // blocks
            down, right = tap // taps_across, tap % taps_across
            cell = (first_row + STEP * down) * weight_stride_row + (first_column + STEP * right) * weight_stride_column
            weights = weight + (channel * weight_stride_in + cell)[None, :]
        known = channel < in_channels
        values = tl.load(weights, mask=(out < out_channels)[:, None] & known[None, :], other=0.0)
        inside = exists[None, :] & known[:, None]
        if POINTWISE:
            source = pixel[None, :]
        else:
            if not FLAT:
                rows, columns = (row + DIRECTION * down)[None, :], (column + DIRECTION * right)[None, :]
            rows, columns = _source(rows, height, MODE), _source(columns, width, MODE)
            if MODE == 0:
                inside = inside & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            source = rows * width + columns
        pixels = tl.load(x + (channel[:, None].to(tl.int64) * x_stride_c + source), mask=inside, other=0.0)
        total = tl.dot(values.to(DOT), pixels.to(DOT), total, input_precision=PRECISION)

    if bias is not None:
        total += tl.load(bias + out, mask=out < out_channels, other=0.0).to(tl.float32)[:, None]
    y += (image.to(tl.int64) * y_channels + out[:, None]) * (y_height * y_width) + target[None, :]
    tl.store(y, total.to(y.dtype.element_ty), mask=(out < out_channels)[:, None] & exists[None, :])


@triton.jit
def _padded_position(position, fold, size, padding, MODE: tl.constexpr):
    """Where a padded line shows ``position`` for the fold-th time, and whether it does."""
    if MODE == 1:
        # Itself, mirrored before the start, mirrored after the end.
        shown = tl.where(fold == 0, position, tl.where(fold == 1, -position, 2 * (size - 1) - position))
        before, after = (shown < 0) & (shown >= -padding), (shown >= size) & (shown < size + padding)
        exists = tl.where(fold == 0, position == shown, tl.where(fold == 1, before, after))
    else:
        # Itself, then the ends as often as they are repeated.
        before = fold <= padding
        shown = tl.where(fold == 0, position, tl.where(before, -fold, size - 1 + fold - padding))
        exists = tl.where(fold == 0, position == shown, tl.where(before, position == 0, position == size - 1))
    return shown + padding, exists


@triton.jit(do_not_specialize=["widths", "channels", "padding", "folds", "place"])
def _fold_padding_kernel(
    padded, x, widths, channels, height, width, padding, folds, place, MODE: tl.constexpr, BLOCK: tl.constexpr
):
    # The gradient of padding: padded [N, C, H + 2p, W + 2p] -> x [N, C, H, W].
    tiles = tl.cdiv(height * width, BLOCK)
    plane, pixel = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    if plane % channels >= tl.load(widths + place):
        return
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    padded += plane.to(tl.int64) * ((height + 2 * padding) * (width + 2 * padding))
    value = tl.zeros([BLOCK], tl.float32)
    for fold in range(0, folds * folds):
        padded_row, row_exists = _padded_position(row, fold // folds, height, padding, MODE)
        padded_column, column_exists = _padded_position(column, fold % folds, width, padding, MODE)
        source = padded + padded_row * (width + 2 * padding) + padded_column
        value += tl.load(source, mask=inside & row_exists & column_exists, other=0.0).to(tl.float32)
    tl.store(x + plane.to(tl.int64) * (height * width) + pixel, value.to(x.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "widths",
        "rows",
        "columns",
        "padding",
        "tiles",
        "chunks",
        "chunks_per_split",
        "row_tiles",
        "column_tiles",
        "place",
    ]
)
def _sliced_conv2d_backward_weight_kernel(
    small, large, shares, widths, rows, columns, height, width, small_stride_n, small_stride_c, large_height, large_width,
    large_stride_n, large_stride_c, padding, tiles, chunks, chunks_per_split, row_tiles, column_tiles, place,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, MODE: tl.constexpr, POINTWISE: tl.constexpr, FLAT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # shares [splits, rows, taps, columns]: what some of the pixels q add to
    # weight[r, c, u, v] = sum_nq small[n, r, q] * large[n, c, STRIDE * q + (u, v) - padding].
    TAPS: tl.constexpr = KH * KW
    used_rows, used_columns = tl.load(widths + place), tl.load(widths + 1 - place)
    program = tl.program_id(0)
    first_row, program = (program % row_tiles) * BLOCK_ROWS, program // row_tiles
    first_column, program = (program % column_tiles) * BLOCK_COLUMNS, program // column_tiles
    if FLAT:
        term, split = first_column + tl.arange(0, BLOCK_COLUMNS), program
        tap, channel = term // used_columns, term % used_columns
        known = term < used_columns * TAPS
        if first_column >= used_columns * TAPS:
            return
        down, right = (tap // KW)[:, None] - padding, (tap % KW)[:, None] - padding
    else:
        tap, split = program % TAPS, program // TAPS
        channel = first_column + tl.arange(0, BLOCK_COLUMNS)
        known = channel < used_columns
        if first_column >= used_columns:
            return
        down, right = tap // KW - padding, tap % KW - padding
    if first_row >= used_rows:
        return
    member = first_row + tl.arange(0, BLOCK_ROWS)
    small_planes = small + member[:, None].to(tl.int64) * small_stride_c
    large_planes = large + channel[:, None].to(tl.int64) * large_stride_c
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for chunk in range(split * chunks_per_split, tl.minimum((split + 1) * chunks_per_split, chunks)):
        image, pixel = (chunk // tiles).to(tl.int64), (chunk % tiles) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        exists = pixel < height * width
        left = tl.load(
            small_planes + (image * small_stride_n + pixel[None, :]),
            mask=(member < used_rows)[:, None] & exists[None, :], other=0.0,
        )  # fmt: skip
        inside = known[:, None] & exists[None, :]
        if POINTWISE:
            source = pixel[None, :]
        else:
            from_row = _source((pixel // width * STRIDE)[None, :] + down, large_height, MODE)
            from_column = _source((pixel % width * STRIDE)[None, :] + right, large_width, MODE)
            if MODE == 0:
                inside = inside & (from_row >= 0) & (from_row < large_height)
                inside = inside & (from_column >= 0) & (from_column < large_width)
            source = from_row * large_width + from_column
        across = tl.load(large_planes + (image * large_stride_n + source), mask=inside, other=0.0)
        total = tl.dot(left.to(DOT), tl.trans(across.to(DOT)), total, input_precision=PRECISION)
    shares += (split.to(tl.int64) * rows + member[:, None]) * (TAPS * columns) + (tap * columns + channel)[None, :]
    tl.store(shares, total, mask=(member < used_rows)[:, None] & known[None, :])


@triton.jit(do_not_specialize=["widths", "splits", "rows", "columns", "full_columns", "size", "place"])
def _sum_shares_kernel(
    shares, weight, widths, splits, rows, columns, full_columns, size, stride_row, stride_column, stride_down, stride_right,
    place, TAPS: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # shares [splits, rows, TAPS, columns] -> weight [.., full_columns, taps], zero where a channel is inactive.
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tap, column, row = index % TAPS, index // TAPS % full_columns, index // TAPS // full_columns
    active = (row < tl.load(widths + place)) & (column < tl.load(widths + 1 - place))
    shares += (row.to(tl.int64) * TAPS + tap) * columns + column
    value = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, splits):
        value += tl.load(shares, mask=active, other=0.0)
        shares += rows * TAPS * columns
    target = row.to(tl.int64) * stride_row + column * stride_column + tap // KW * stride_down + tap % KW * stride_right
    tl.store(weight + target, value.to(weight.dtype.element_ty), mask=index < size)


@triton.jit(do_not_specialize=["widths", "channels", "segments", "place"])
def _plane_sums_kernel(x, sums, widths, channels, pixels, segments, stride_n, stride_c, place, BLOCK: tl.constexpr):
    # sums [N, segments, channels]: one program sums one segment of a plane.
    plane, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    channel = plane % channels
    if channel >= tl.load(widths + place):
        return
    index = segment * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + plane_offset(plane, channels, stride_n, stride_c) + index, mask=index < pixels, other=0.0)
    tl.store(sums + (plane // channels * segments + segment) * channels + channel, tl.sum(values.to(tl.float32)))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, int, int, int], widths: Tensor, out: int, stride: int,
    padding: int, mode: int = ZEROS, transposed: bool = False,
) -> Tensor:  # fmt: skip
    """Launch the gathering kernel.

    Args:
        x: [N, channels or more, H, W] with dense planes.
        weight: full, [out, in, kh, kw]; [in, out, kh, kw] for a transposed convolution.
        bias: full, contiguous, or None.
        shape: of the result, whose planes belong to ``x``, ``stride`` and ``padding``.
        widths: two int32 on the device of ``x``: active channels.
        out: which of the two counts output channels.
        stride, padding: of both directions.
        mode: what pads; transposed convolutions know zeros only.
        transposed: scatter instead of gather.

    Returns:
        ``shape``, contiguous; channels beyond the active ones are not written.
    """
    images, channels, height, width = shape
    y = x.new_empty(shape)
    if y.numel() == 0:
        return y
    out_dim = int(transposed)
    kernel_height, kernel_width = weight.shape[2:]
    phases = stride if transposed else 1
    pixels = triton.cdiv(height, phases) * triton.cdiv(width, phases)
    options = blocking(weight.shape[out_dim], weight.shape[1 - out_dim], kernel_height * kernel_width, pixels, x.dtype)
    tiles, out_tiles = triton.cdiv(pixels, options["BLOCK_PIXELS"]), triton.cdiv(channels, options["BLOCK_OUT"])
    with guard(x):
        _sliced_conv2d_kernel[(images * phases * phases * tiles * out_tiles,)](
            x, weight, bias, y, widths, *x.shape[2:], *x.stride()[:2], channels, height, width, weight.stride(out_dim),
            weight.stride(1 - out_dim), *weight.stride()[2:], padding, tiles, out_tiles, out, KH=kernel_height,
            KW=kernel_width, STRIDE=stride, MODE=mode, TRANSPOSED=transposed,
            POINTWISE=is_pointwise(weight, stride, padding), **options,
        )  # fmt: skip
    return y


def is_pointwise(weight: Tensor, stride: int, padding: int) -> bool:
    """Whether every output pixel sees the one input pixel at its place, so that planes are plain rows of a matrix."""
    return weight.shape[2:] == (1, 1) and stride == 1 and padding == 0


def weight_gradient(
    small: Tensor, large: Tensor, weight: Tensor, widths: Tensor, rows: int, stride: int, padding: int, mode: int = ZEROS
) -> Tensor:
    """The gradient of a full weight, zero in its inactive part.

    Args:
        small: [N, R, h, w] with dense planes: a convolution's gradient, or a transposed one's input.
        large: [N, C, H, W] with dense planes: the other of the two.
        weight: full, [R_max, C_max, kh, kw]; gives shape, dtype and strides.
        widths: two int32 on the device: active channels.
        rows: which of the two counts those of ``small``.
        stride, padding, mode: those of the convolution.
    """
    images, row_channels, height, width = small.shape
    column_channels, kernel_height, kernel_width = large.shape[1], *weight.shape[2:]
    taps = kernel_height * kernel_width
    options = weight_blocking(*weight.shape[:2], taps, height * width, small.dtype)
    per_tile = taps if options["FLAT"] else 1  # taps of one program

    def tiled(rows: int, columns: int) -> tuple[int, int]:
        return triton.cdiv(rows, options["BLOCK_ROWS"]), triton.cdiv(columns * per_tile, options["BLOCK_COLUMNS"])

    row_tiles, column_tiles = tiled(row_channels, column_channels)
    tiles = triton.cdiv(height * width, options["BLOCK_PIXELS"])
    chunks = images * tiles
    # The full weight decides, so that a sum does not depend on how its channels are given. At least four steps each, or adding
    # up the shares costs more than it saves.
    programs = math.prod(tiled(*weight.shape[:2])) * taps // per_tile
    per_split = max(triton.cdiv(chunks, triton.cdiv(_PROGRAMS, programs)), min(chunks, 4), 1)
    splits = triton.cdiv(chunks, per_split)
    shares = small.new_empty((splits, row_channels, taps, column_channels), dtype=torch.float32)
    gradient = torch.empty_like(weight)
    with guard(small):
        if splits:
            _sliced_conv2d_backward_weight_kernel[(splits * row_tiles * column_tiles * taps // per_tile,)](
                small, large, shares, widths, row_channels, column_channels, height, width, *small.stride()[:2],
                *large.shape[2:], *large.stride()[:2], padding, tiles, chunks, per_split, row_tiles, column_tiles, rows,
                KH=kernel_height, KW=kernel_width, STRIDE=stride, MODE=mode,
                POINTWISE=is_pointwise(weight, stride, padding), **options,
            )  # fmt: skip
        _sum_shares_kernel[(triton.cdiv(weight.numel(), _TILE_BLOCK),)](
            shares, gradient, widths, splits, row_channels, column_channels, weight.shape[1], weight.numel(),
            *gradient.stride(), rows, TAPS=taps, KW=kernel_width, BLOCK=_TILE_BLOCK, **FLOAT_OPTIONS,
        )  # fmt: skip
    return gradient


def _bias_gradient(grad: Tensor, bias: Tensor, widths: Tensor) -> Tensor:
    images, channels, height, width = grad.shape
    block = min(triton.next_power_of_2(height * width), _SUM_BLOCK)
    segments = triton.cdiv(height * width, block)
    sums = grad.new_empty((1, images * segments, channels), dtype=torch.float32)
    with guard(grad):
        if images:
            _plane_sums_kernel[(images * channels * segments,)](
                grad, sums, widths, channels, height * width, segments, *grad.stride()[:2], 0, BLOCK=block,
                **FLOAT_OPTIONS,
            )  # fmt: skip
        return sum_images(sums, bias, widths, 0)


def _fold_padding(padded: Tensor, x: Tensor, widths: Tensor, padding: int, mode: int) -> Tensor:
    images, channels, height, width = x.shape
    gradient = x.new_empty(x.shape)
    if images:
        block = min(triton.next_power_of_2(height * width), _TILE_BLOCK)
        with guard(x):
            _fold_padding_kernel[(images * channels * triton.cdiv(height * width, block),)](
                padded, gradient, widths, channels, height, width, padding, 3 if mode == REFLECT else 1 + 2 * padding,
                1, MODE=mode, BLOCK=block, **FLOAT_OPTIONS,
            )  # fmt: skip
    return gradient


class SlicedConv2dTriton(torch.autograd.Function):
    """Forward and backward through the Triton kernels; keeps the input and nothing else.

    Args:
        x: [N, C, H, W].
        weight, bias: full.
        out_channels: of the result: the active ones, or with ``widths`` the most that may be.
        stride, padding: of both directions.
        mode: ZEROS, REFLECT or REPLICATE.
        widths: None, and the channels of the shapes are active; or two int32 on the device, (output, input) channels that
            take part. Then channels beyond them are neither read nor written.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int, mode: int,
        widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x, bias = dense_planes(x), None if bias is None else bias.contiguous()
        widths = channel_counts(x.device, out_channels, x.shape[1]) if widths is None else widths
        height, width = (
            (size + 2 * padding - kernel) // stride + 1 for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
        )
        ctx.save_for_backward(x, weight, bias, widths)
        ctx.settings = stride, padding, mode
        return convolve(x, weight, bias, (x.shape[0], out_channels, height, width), widths, 0, stride, padding, mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, widths = ctx.saved_tensors
        stride, padding, mode = ctx.settings
        grad = dense_planes(grad)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        if needs_x and (mode == ZEROS or padding == 0):
            grad_x = convolve(grad, weight, None, x.shape, widths, 1, stride, padding, transposed=True)
        elif needs_x:
            images, channels, height, width = x.shape
            shape = images, channels, height + 2 * padding, width + 2 * padding
            padded = convolve(grad, weight, None, shape, widths, 1, stride, 0, transposed=True)
            grad_x = _fold_padding(padded, x, widths, padding, mode)
        if needs_weight:
            grad_weight = weight_gradient(grad, x, weight, widths, 0, stride, padding, mode)
        grad_bias = _bias_gradient(grad, bias, widths) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


class SlicedConvTranspose2dTriton(torch.autograd.Function):
    """Forward and backward through the Triton kernels; arguments as of :class:`SlicedConv2dTriton`.

    The weight is [I_max, O_max, kh, kw], and ``output_padding`` is added to the height and width of the result.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int,
        output_padding: int, widths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        x, bias = dense_planes(x), None if bias is None else bias.contiguous()
        widths = channel_counts(x.device, out_channels, x.shape[1]) if widths is None else widths
        height, width = (
            (size - 1) * stride - 2 * padding + kernel + output_padding
            for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
        )
        ctx.save_for_backward(x, weight, bias, widths)
        ctx.settings = stride, padding
        shape = x.shape[0], out_channels, height, width
        return convolve(x, weight, bias, shape, widths, 0, stride, padding, transposed=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, widths = ctx.saved_tensors
        stride, padding = ctx.settings
        grad = dense_planes(grad)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = convolve(grad, weight, None, x.shape, widths, 1, stride, padding) if needs_x else None
        grad_weight = weight_gradient(x, grad, weight, widths, 1, stride, padding) if needs_weight else None
        grad_bias = _bias_gradient(grad, bias, widths) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
