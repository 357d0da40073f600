"""The supernet and its discriminator as they are written in stock PyTorch: weights narrowed to the active channels, then
``F.conv2d`` and ``F.instance_norm``. The baseline of the training step; ReLU is not in place, which after InstanceNorm would
cost it copies.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.models.resnet import ResnetBlock
from gancomp.nn import InstanceNormAct, SlicedConv2d, SlicedConvTranspose2d, WinogradConv2d
from gancomp.nn.conv import SlicedDepthwiseConv2d


def _pad(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, int]:
    """The padded input and the zero padding that is left to the convolution."""
    size = int(layer.padding[0])
    if layer.padding_mode == "zeros" or size == 0:
        return x, size
    return F.pad(x, [size] * 4, mode=layer.padding_mode), 0


class _Conv(SlicedConv2d):
    def forward(self, x: Tensor) -> Tensor:
        padded, padding = _pad(self, x)
        out = self.active_out_channels
        bias = None if self.bias is None else self.bias[:out]
        return F.conv2d(padded, self.weight[:out, : x.shape[1]], bias, self.stride, padding)


class _ConvTranspose(SlicedConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        out = self.active_out_channels
        bias = None if self.bias is None else self.bias[:out]
        weight = self.weight[: x.shape[1], :out]
        stride, padding = self.geometry
        return F.conv_transpose2d(x, weight, bias, stride, padding, self.output_padding)


class _Depthwise(SlicedDepthwiseConv2d):
    def forward(self, x: Tensor) -> Tensor:
        padded, padding = _pad(self, x)
        channels = x.shape[1]
        bias = None if self.bias is None else self.bias[:channels]
        return F.conv2d(padded, self.weight[:channels], bias, padding=padding, groups=channels)


class _Norm(InstanceNormAct):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.instance_norm(x, eps=self.eps)
        y = F.relu(y) if self.relu else y
        return y if residual is None else residual + y


class _Block(ResnetBlock):
    def forward(self, x: Tensor) -> Tensor:
        _, conv1, norm1, _, dropout, _, conv2, norm2 = self.conv_block
        return norm2(conv2(dropout(norm1(conv1(x)))), residual=x)


_STOCK: dict[type[nn.Module], type[nn.Module]] = {
    SlicedConv2d: _Conv,
    SlicedConvTranspose2d: _ConvTranspose,
    SlicedDepthwiseConv2d: _Depthwise,
    InstanceNormAct: _Norm,
    ResnetBlock: _Block,
    WinogradConv2d: nn.Conv2d,
}


def make_stock(module: nn.Module) -> None:
    """Make the layers inside run stock PyTorch functions, in place; weights stay."""
    for child in module.modules():
        child.__class__ = _STOCK.get(type(child), type(child))
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d) and child.bias is not None:
            child.bias.requires_grad_(True)
