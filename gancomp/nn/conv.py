"""Convolutions that hold the full weight and use the first channels of it.

The number of input channels used is that of the tensor they are given; the number of output channels is
``active_out_channels``, a plain integer. Choosing a sub-network therefore changes a few integers and nothing else.
Source: GAN Compression, section 3.2 (weight sharing by prefix slices).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gancomp import ops
from gancomp.errors import ConfigError
from gancomp.nn.norm import InstanceNormAct


class SlicedConv2d(nn.Conv2d):
    """A dense 2-D convolution over the first channels of its weight.

    ``y = conv2d(x, weight[:active_out_channels, :x.shape[1]], bias[:active_out_channels])``

    Args:
        before_norm: an InstanceNorm follows, which takes away what a bias adds: it is kept for the checkpoint's sake, but
            neither added nor trained.
        args, kwargs: those of ``nn.Conv2d``, without groups and dilation.
    """

    def __init__(self, *args: Any, before_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.active_out_channels, self.before_norm = self.out_channels, before_norm
        self.geometry = _geometry(self)
        _train_bias(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` [N, C_in <= in_channels, H, W] into [N, active_out_channels, H', W']."""
        stride, padding = self.geometry
        return ops.sliced_conv2d(
            x,
            self.weight,
            None if self.before_norm else self.bias,
            out_channels=self.active_out_channels,
            stride=stride,
            padding=padding,
            padding_mode=self.padding_mode,
        )


class SlicedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed 2-D convolution over the first channels of its weight (stored [in, out, k, k]).

    Arguments as of :class:`SlicedConv2d`.
    """

    def __init__(self, *args: Any, before_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.active_out_channels, self.before_norm = self.out_channels, before_norm
        self.geometry = _geometry(self)
        _train_bias(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample ``x`` [N, C_in <= in_channels, H, W] into [N, active_out_channels, H', W']."""
        if output_size is not None:
            raise TypeError("output_size is not supported: the output size follows from output_padding")
        stride, padding = self.geometry
        return ops.sliced_conv_transpose2d(
            x,
            self.weight,
            None if self.before_norm else self.bias,
            out_channels=self.active_out_channels,
            stride=stride,
            padding=padding,
            output_padding=self.output_padding[0],
        )


class WinogradConv2d(nn.Conv2d):
    """A 4x4 convolution of stride 1 or 2, by Winograd's method where that is faster (:func:`gancomp.ops.winograd_conv2d`).

    Arguments are those of ``nn.Conv2d`` after the kernel's size, without groups, dilation and padding modes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 4, stride=stride, padding=padding, bias=bias)
        self.geometry = _geometry(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` [N, in_channels, H, W] into [N, out_channels, H', W']."""
        stride, padding = self.geometry
        return ops.winograd_conv2d(x, self.weight, self.bias, stride=stride, padding=padding)


def _train_bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    if layer.bias is not None:
        layer.bias.requires_grad_(not layer.before_norm)


def _geometry(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """Stride and padding, which must be equal in both directions."""
    (stride, other), padding = layer.stride, layer.padding
    plain = layer.groups == 1 and layer.dilation == (1, 1) and len({*layer.output_padding}) == 1
    if not plain or stride != other or isinstance(padding, str) or len({*padding}) != 1:
        raise ConfigError(f"{layer}: expected one group, no dilation, and stride and padding equal in both directions")
    return stride, int(padding[0])


class SlicedDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution (stride 1, size-preserving) over the first ``x.shape[1]`` channels.

    ``before_norm`` as of :class:`SlicedConv2d`.
    """

    def __init__(self, channels: int, padding_mode: str = "reflect", *, before_norm: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels, padding_mode=padding_mode)
        self.before_norm = before_norm
        _train_bias(self)

    def forward(self, x: Tensor) -> Tensor:
        """Filter ``x`` [N, C <= channels, H, W] channel by channel into the same shape."""
        channels = x.shape[1]
        bias = None if self.before_norm or self.bias is None else self.bias
        if self.padding_mode == "reflect":
            return ops.reflect_pad_depthwise_conv3x3(x, self.weight, bias)
        bias = None if bias is None else bias[:channels]
        if self.padding_mode == "zeros":
            return F.conv2d(x, self.weight[:channels], bias, padding=1, groups=channels)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return F.conv2d(x, self.weight[:channels], bias, groups=channels)


class SeparableConv2d(nn.Module):
    """Depthwise 3x3, InstanceNorm, pointwise 1x1: the decomposed convolution of the compressed ResBlocks.

    Keys are those of the published checkpoints: ``conv.0`` depthwise, ``conv.1`` norm (no tensors), ``conv.2`` pointwise.
    Source: GAN Compression, section 3.2 (decomposition), with the norm between the two parts as published.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding_mode: str = "reflect", *, before_norm: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            SlicedDepthwiseConv2d(in_channels, padding_mode, before_norm=True),
            InstanceNormAct(in_channels),
            SlicedConv2d(in_channels, out_channels, 1, before_norm=before_norm),
        )

    @property
    def active_out_channels(self) -> int:
        return self.conv[2].active_out_channels

    @active_out_channels.setter
    def active_out_channels(self, channels: int) -> None:
        self.conv[2].active_out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [N, C_in, H, W] to [N, active_out_channels, H, W]."""
        return self.conv(x)


def init_weights(module: nn.Module, generator: torch.Generator, std: float = 0.02) -> None:
    """Initialise as the field does: conv weights N(0, std), biases 0, affine norm scales N(1, std).

    Args:
        module: changed in place.
        generator: the random source, so that two runs of one seed start equal.
        std: standard deviation (no unit).
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            # A weight under spectral norm is computed from this one.
            weight = child.parametrizations.weight.original if is_parametrized(child, "weight") else child.weight
            nn.init.normal_(weight, 0.0, std, generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d | InstanceNormAct) and child.weight is not None:
            nn.init.normal_(child.weight, 1.0, std, generator=generator)
            nn.init.zeros_(child.bias)
