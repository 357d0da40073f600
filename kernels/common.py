"""What the kernels share: addresses of planes, active channels, the 3x3 filter's border, sums over the images of a batch."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gancomp.errors import BackendError

INTERPRETED = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter: decided by TRITON_INTERPRET when they are imported, not when they run."""

FLOAT_OPTIONS = {"enable_fp_fusion": True}
"""Launch options of every kernel, said explicitly because Triton's default changes with its version."""

SUM_OPTIONS = {"BLOCK": 256, **FLOAT_OPTIONS}


@triton.jit
def plane_offset(plane, channels, stride_n, stride_c):
    """Offset in elements of the plane-th (image, channel) pair; 64 bits wide, for a batch may pass 2^31 elements."""
    return (plane // channels).to(tl.int64) * stride_n + (plane % channels).to(tl.int64) * stride_c


@triton.jit
def active_channels(widths, channels, place):
    """How many channels take part: all of ``channels``, or where ``widths`` is given the number at ``place`` in it."""
    count = channels
    if widths is not None:
        count = tl.load(widths + place)
    return count


@triton.jit
def filter_row(weight):
    """Three neighbouring taps."""
    first, middle, last = tl.load(weight), tl.load(weight + 1), tl.load(weight + 2)
    return first.to(tl.float32), middle.to(tl.float32), last.to(tl.float32)


@triton.jit
def reflect(index, size):
    """Where a position in [-1, size] lies after reflection."""
    index = tl.where(index < 0, 1, index)
    return tl.where(index < size, index, size - 2)


@triton.jit
def fold(before, middle, after, position, size, SHIFT: tl.constexpr):
    """The factor of the output at ``position + SHIFT`` in the gradient at ``position``, on a line filtered with three taps.

    The padding at -1 is a copy of position 1 and that at ``size`` one of ``size - 2``: these two also get what the output at
    the end of the line took from the padding.
    """
    if SHIFT == -1:
        return after + tl.where(position == 1, before, 0.0)
    elif SHIFT == 0:
        return middle
    else:
        return before + tl.where(position == size - 2, after, 0.0)


@triton.jit(do_not_specialize=["widths", "images", "channels", "size", "place"])
def _sum_images_kernel(partials, total, widths, images, channels, size, place, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    # partials [TERMS, images, channels] -> total [size / TERMS, TERMS], zero where no channel is.
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, term = index // TERMS, index % TERMS
    active = channel < active_channels(widths, channels, place)
    value = tl.zeros([BLOCK], tl.float32)
    for image in range(0, images):
        value += tl.load(partials + (term * images + image) * channels + channel, mask=active, other=0.0)
    tl.store(total + index, value.to(total.dtype.element_ty), mask=index < size)


def sum_images(partials: Tensor, like: Tensor, widths: Tensor | None = None, place: int = 0) -> Tensor:
    """Add up the planes' contributions to a parameter, always in the same order.

    Args:
        partials: [terms, N, C] float32, contiguous: what each plane adds to each of a channel's scalars.
        like: the parameter, [C_max >= C, ...] with ``terms`` scalars per channel.
        widths: active channels on the device, or None where all C are.
        place: where in ``widths`` these are counted.

    Returns:
        The gradient: shape and dtype of ``like``, zero beyond the active channels.
    """
    terms, images, channels = partials.shape
    total = like.new_empty(like.shape)
    grid = (triton.cdiv(total.numel(), SUM_OPTIONS["BLOCK"]),)
    _sum_images_kernel[grid](partials, total, widths, images, channels, total.numel(), place, TERMS=terms, **SUM_OPTIONS)
    return total


@functools.cache
def channel_counts(device: torch.device, *counts: int) -> Tensor:
    """``counts`` in the memory of a device, where kernels read how many channels take part.

    Kept for good, because a captured graph may hold the address. What is not yet there cannot be put there during a capture.

    Raises:
        BackendError: a CUDA graph is being captured and these counts are new.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise BackendError(
            f"channel counts {counts} are first used while a CUDA graph is captured: run the step once before, or give "
            "the kernels a tensor of counts"
        )
    # A later call may be one of training, where no tensor made for inference can be kept.
    with torch.inference_mode(False):
        return torch.tensor(counts, dtype=torch.int32, device=device)


_DOT_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def product_options(dtype: torch.dtype) -> dict[str, Any]:
    """Launch options of kernels that multiply matrices of images in ``dtype``.

    float32 is multiplied as PyTorch's convolutions do it: in TF32 unless ``torch.backends.cudnn.allow_tf32`` is off. Triton's
    interpreter has no 16-bit products.
    """
    precision = "tf32" if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"
    return {"DOT": tl.float32 if INTERPRETED else _DOT_TYPES[dtype], "PRECISION": precision, "num_warps": 8, **FLOAT_OPTIONS}


def dense_planes(x: Tensor) -> Tensor:
    """``x`` with contiguous (h, w) planes: itself, also as a slice of a wider tensor; otherwise a copy."""
    height, width = x.shape[2:]
    if (x.stride(3) == 1 or width == 1) and (x.stride(2) == width or height == 1):
        return x
    return x.contiguous()


def guard(x: Tensor) -> torch.cuda.device_of:
    """Make the GPU of ``x`` the current one, on which Triton launches; does nothing for a tensor on the CPU."""
    return torch.cuda.device_of(x)
