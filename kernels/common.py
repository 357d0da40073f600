"""What the kernels share: the addresses of planes and the parameter gradients, which are sums over the images of a batch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
"""Whether the kernels run in Triton's interpreter: decided by TRITON_INTERPRET when they are imported, not when they run."""

FLOAT_OPTIONS = {"enable_fp_fusion": True}
"""Launch options of every kernel, said explicitly because Triton's default changes with its version."""

SUM_OPTIONS = {"BLOCK": 256, **FLOAT_OPTIONS}


@triton.jit
def plane_offset(plane, channels, stride_n, stride_c):
    """Offset in elements of the plane-th (image, channel) pair; 64 bits wide, for a batch may pass 2^31 elements."""
    return (plane // channels).to(tl.int64) * stride_n + (plane % channels).to(tl.int64) * stride_c


@triton.jit(do_not_specialize=["images", "channels", "size"])
def _sum_images_kernel(partials, total, images, channels, size, TERMS: tl.constexpr, BLOCK: tl.constexpr):
    # partials [TERMS, images, channels] -> total [size / TERMS, TERMS], zero where no channel is.
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel, term = index // TERMS, index % TERMS
    active = channel < channels
    value = tl.zeros([BLOCK], tl.float32)
    for image in range(0, images):
        value += tl.load(partials + (term * images + image) * channels + channel, mask=active, other=0.0)
    tl.store(total + index, value.to(total.dtype.element_ty), mask=index < size)


def sum_images(partials: Tensor, like: Tensor) -> Tensor:
    """Add up the planes' contributions to a parameter, always in the same order.

    Args:
        partials: [terms, N, C] float32, contiguous: what each plane adds to each of a channel's scalars.
        like: the parameter, [C_max >= C, ...] with ``terms`` scalars per channel.

    Returns:
        The gradient: shape and dtype of ``like``, zero beyond channel C.
    """
    terms, images, channels = partials.shape
    total = like.new_empty(like.shape)
    grid = (triton.cdiv(total.numel(), SUM_OPTIONS["BLOCK"]),)
    _sum_images_kernel[grid](partials, total, images, channels, total.numel(), TERMS=terms, **SUM_OPTIONS)
    return total


def dense_planes(x: Tensor) -> Tensor:
    """``x`` with contiguous (h, w) planes: itself, also as a slice of a wider tensor; otherwise a copy."""
    height, width = x.shape[2:]
    if (x.stride(3) == 1 or width == 1) and (x.stride(2) == width or height == 1):
        return x
    return x.contiguous()


def guard(x: Tensor) -> torch.cuda.device_of:
    """Make the GPU of ``x`` the current one, on which Triton launches; does nothing for a tensor on the CPU."""
    return torch.cuda.device_of(x)
