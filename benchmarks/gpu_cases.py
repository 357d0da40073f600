"""The operators of the supernet's training step at the shapes it has, for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import ops


@dataclass(frozen=True)
class GpuCase:
    """A call of an operator: its input [N, C, H, W] and the shapes of its other tensors."""

    op: str
    shape: tuple[int, int, int, int]
    others: tuple[tuple[int, ...], ...]
    options: str
    stock: Callable[..., Tensor]
    ours: Callable[..., Callable[..., Tensor]]

    @property
    def x(self) -> str:
        """The input's shape, e.g. ``1x128x64x64``."""
        return "x".join(map(str, self.shape))

    def tensors(self) -> list[Tensor]:
        """The tensors of the call, the image first."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator) for shape in (self.shape, *self.others)]

    def gancomp(self, backend: str) -> Callable[..., Tensor]:
        """The call through one backend."""
        return self.ours(backend)


def _norm(n: int, c: int, side: int) -> GpuCase:
    return GpuCase(
        "instance_norm_act", (n, c, side, side), (), "relu",
        lambda x: F.relu(F.instance_norm(x)),
        lambda backend: lambda x: ops.instance_norm_act(x, relu=True, backend=backend),
    )  # fmt: skip


def _depthwise(n: int, c: int, side: int) -> GpuCase:
    return GpuCase(
        "reflect_pad_depthwise_conv3x3", (n, c, side, side), ((c, 1, 3, 3),), "plain",
        lambda x, w: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w, groups=c),
        lambda backend: lambda x, w: ops.reflect_pad_depthwise_conv3x3(x, w, backend=backend),
    )  # fmt: skip


def _conv(n: int, c: int, out: int, kernel: int, stride: int, reflect: bool, side: int) -> GpuCase:
    padding, spare = kernel // 2, 16 if out > 3 else 0

    def stock(x: Tensor, w: Tensor) -> Tensor:
        if reflect:
            return F.conv2d(F.pad(x, (padding,) * 4, mode="reflect"), w[:out, :c], stride=stride)
        return F.conv2d(x, w[:out, :c], stride=stride, padding=padding)

    def ours(backend: str) -> Callable[..., Tensor]:
        mode = "reflect" if reflect else "zeros"
        return lambda x, w: ops.sliced_conv2d(
            x, w, out_channels=out, stride=stride, padding=padding, padding_mode=mode, backend=backend
        )

    weight = (out + spare, c + (0 if c == 3 else 16), kernel, kernel)
    return GpuCase("sliced_conv2d", (n, c, side, side), (weight,), f"{kernel}x{kernel} to {out} stride {stride}", stock, ours)


def _transpose(n: int, c: int, out: int, side: int) -> GpuCase:
    return GpuCase(
        "sliced_conv_transpose2d", (n, c, side, side), ((c + 16, out + 16, 3, 3),), f"3x3 to {out} stride 2",
        lambda x, w: F.conv_transpose2d(x, w[:c, :out], stride=2, padding=1, output_padding=1),
        lambda backend: lambda x, w: ops.sliced_conv_transpose2d(
            x, w, out_channels=out, stride=2, padding=1, output_padding=1, backend=backend
        ),
    )  # fmt: skip


def _block(n: int, c: int, hidden: int, side: int) -> GpuCase:
    def half(x: Tensor, depthwise: Tensor, pointwise: Tensor, out: int) -> Tensor:
        channels = x.shape[1]
        y = F.instance_norm(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), depthwise[:channels], groups=channels))
        return F.instance_norm(F.conv2d(y, pointwise[:out, :channels]))

    def stock(x: Tensor, d1: Tensor, p1: Tensor, d2: Tensor, p2: Tensor) -> Tensor:
        return x + half(F.relu(half(x, d1, p1, hidden)), d2, p2, c)

    weights = (c + 16, 1, 3, 3), (hidden + 16, c + 16, 1, 1), (hidden + 16, 1, 3, 3), (c + 16, hidden + 16, 1, 1)
    return GpuCase(
        "separable_resblock", (n, c, side, side), weights, f"hidden {hidden}", stock,
        lambda backend: lambda x, *weights: ops.separable_resblock(x, *weights, hidden=hidden, backend=backend),
    )  # fmt: skip


def _spade(n: int, c: int, h: int, w: int) -> GpuCase:
    return GpuCase(
        "spade_modulate", (n, c, h, w), ((n, c, h, w), (n, c, h, w)), "instance, slope 0.2",
        lambda x, gamma, beta: F.leaky_relu(F.instance_norm(x) * (1 + gamma) + beta, 0.2),
        lambda backend: lambda x, gamma, beta: _first(ops.spade_modulate(x, gamma, beta, slope=0.2, backend=backend)),
    )  # fmt: skip


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def op_cases(side: int) -> list[GpuCase]:
    """The operators for images of ``side`` pixels, those that take most of the step first."""
    quarter, half = side // 4, side // 2
    return [
        _block(1, 128, 128, quarter),
        _block(16, 128, 128, quarter),
        _block(1, 192, 96, quarter),
        _conv(1, 48, 3, 7, 1, True, side),
        _conv(1, 3, 48, 7, 1, True, side),
        _conv(1, 48, 96, 3, 2, False, side),
        _transpose(1, 128, 96, quarter),
        _norm(1, 48, side),
        _norm(1, 128, quarter),
        _depthwise(1, 128, quarter),
        _conv(1, 128, 128, 1, 1, False, quarter),
        _conv(16, 48, 96, 3, 2, False, half),
        _spade(1, 128, quarter, half),
    ]
