"""Slow, obvious implementations of every op: the specification, in any floating dtype, differentiable by plain autograd.

16-bit inputs are computed in float32 and rounded once, as every backend does it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, relu: bool, eps: float
) -> Tensor:
    """``act(weight * (x - mean) / sqrt(var + eps) + bias) + residual``, statistics per (n, c) over (h, w), variance biased."""
    channels, dtype = x.shape[1], x.dtype
    x, weight, bias, residual = _wide(x, weight, bias, residual)
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(dim=(2, 3), keepdim=True) + eps)
    if weight is not None:
        y = y * weight[:channels].view(1, -1, 1, 1)
    if bias is not None:
        y = y + bias[:channels].view(1, -1, 1, 1)
    if relu:
        y = torch.relu(y)
    return (y if residual is None else y + residual).to(dtype).contiguous()


def reflect_pad_depthwise_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``y[n, c, i, j] = bias[c] + sum_uv weight[c, 0, u, v] * x[n, c, r(i + u - 1), r(j + v - 1)]`` with r the reflection."""
    (channels, height, width), dtype = x.shape[1:], x.dtype
    x, weight, bias = _wide(x, weight, bias)
    rows, columns = _reflected(height, x.device), _reflected(width, x.device)
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for u in range(3):
        for v in range(3):
            shifted = x[:, :, rows[u : u + height]][:, :, :, columns[v : v + width]]
            y = y + weight[:channels, 0, u, v].view(1, -1, 1, 1) * shifted
    return (y if bias is None else y + bias[:channels].view(1, -1, 1, 1)).to(dtype)


def sliced_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int, padding_mode: str
) -> Tensor:
    """``conv2d(pad(x), weight[:out_channels, :C], bias[:out_channels], stride)``, the slice made a tensor of its own."""
    weight = weight[:out_channels, : x.shape[1]].to(x.dtype)
    bias = None if bias is None else bias[:out_channels].to(x.dtype)
    if padding_mode == "zeros":
        return F.conv2d(x, weight, bias, stride, padding).contiguous()
    return F.conv2d(F.pad(x, [padding] * 4, mode=padding_mode), weight, bias, stride).contiguous()


def sliced_conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_channels: int, stride: int, padding: int, output_padding: int
) -> Tensor:
    """``conv_transpose2d(x, weight[:C, :out_channels], bias[:out_channels], stride, padding, output_padding)``."""
    weight = weight[: x.shape[1], :out_channels].to(x.dtype)
    bias = None if bias is None else bias[:out_channels].to(x.dtype)
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding).contiguous()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """``conv2d(x, weight, bias, stride, padding)``, the parameters in the dtype of ``x`` or, under autocast, as that has it."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight, bias, stride, padding)


def separable_resblock(
    x: Tensor, depthwise1: Tensor, pointwise1: Tensor, depthwise2: Tensor, pointwise2: Tensor, mask: Tensor | None,
    scale: float, hidden: int, eps: float,
) -> Tensor:  # fmt: skip
    """``h = relu(IN(P1(IN(D1(x))))) * mask * scale``, ``y = x + IN(P2(IN(D2(h))))``, by the ops above and matrix products."""
    dtype = x.dtype
    x, depthwise1, pointwise1, depthwise2, pointwise2 = _wide(x, depthwise1, pointwise1, depthwise2, pointwise2)

    def half(image: Tensor, depthwise: Tensor, pointwise: Tensor, channels: int, relu: bool, residual: Tensor | None) -> Tensor:
        filtered = instance_norm_act(reflect_pad_depthwise_conv3x3(image, depthwise, None), None, None, None, False, eps)
        mixed = torch.einsum("oi,nihw->nohw", pointwise[:channels, : image.shape[1], 0, 0], filtered)
        return instance_norm_act(mixed, None, None, residual, relu, eps)

    h = half(x, depthwise1, pointwise1, hidden, True, None)
    if mask is not None:
        h = h * (mask.to(h.dtype) * scale)
    return half(h, depthwise2, pointwise2, x.shape[1], False, x).to(dtype)


def spade_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor | None, rstd: Tensor | None, batch: bool, slope: float, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``y = leaky((x - mean) * rstd * (1 + gamma) + beta, slope)``, and mean and biased variance of a batch, or None twice."""
    channels, dtype = x.shape[1], x.dtype
    x, gamma, beta, mean, rstd = _wide(x, gamma, beta, mean, rstd)
    of_batch: tuple[Tensor | None, Tensor | None] = (None, None)
    if mean is None:
        dims = (0, 2, 3) if batch else (2, 3)
        centred = x - x.mean(dim=dims, keepdim=True)
        variance = centred.square().mean(dim=dims, keepdim=True)
        normalised = centred / torch.sqrt(variance + eps)
        if batch:
            of_batch = x.mean(dim=dims).detach(), variance.flatten().detach()
    else:
        constants = [vector[:channels].detach().to(x.dtype).view(1, -1, 1, 1) for vector in (mean, rstd)]
        normalised = (x - constants[0]) * constants[1]
    value = normalised * (1 + gamma) + beta
    y = torch.where(value > 0, value, value * slope)
    return y.to(dtype).contiguous(), *of_batch


def _wide(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _reflected(size: int, device: torch.device) -> Tensor:
    """Indices of a line of ``size`` padded by one on both sides by reflection: 1, 0, 1, ..., size - 1, size - 2."""
    return torch.tensor([1, *range(size), size - 2], device=device)
