"""The same generator written the obvious way in stock PyTorch layers: the baseline of every speed figure.

One layer per operation as a user would write it, except that ReLU is not in place: after InstanceNorm, which returns a view,
an in-place ReLU costs extra copies in the backward pass, and a baseline must not be slower than it need be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models.base import Generator
from gancomp.models.resnet import ResnetBlock, ResnetGenerator
from gancomp.nn import BatchNormAct, InstanceNormAct, SeparableConv2d

_PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}


class StockBlock(nn.Module):
    """``x + layers(x)``."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``x`` [N, C, H, W]."""
        return x + self.layers(x)


def stock_generator(generator: Generator) -> nn.Module:
    """Rebuild ``generator`` from stock ``torch.nn`` layers, with copies of its weights; equal up to rounding.

    Raises:
        ConfigError: not a ResNet generator.
    """
    if not isinstance(generator, ResnetGenerator):
        raise ConfigError(f"arch={generator.arch!r}: a stock form is known for resnet only")
    layers: list[nn.Module] = []
    for layer in generator.model:
        layers += [StockBlock(nn.Sequential(*_block(layer)))] if isinstance(layer, ResnetBlock) else _stock(layer)
    return nn.Sequential(*layers).train(generator.training)


def _block(block: ResnetBlock) -> list[nn.Module]:
    return [stock for layer in block.conv_block for stock in _stock(layer)]


def _stock(layer: nn.Module) -> list[nn.Module]:
    if isinstance(layer, nn.Identity):
        return []
    if isinstance(layer, SeparableConv2d):
        return [stock for part in layer.conv for stock in _stock(part)]
    if isinstance(layer, nn.Conv2d):
        plain = isinstance(layer.padding_mode, str) and layer.padding_mode == "zeros"
        conv = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding if plain else 0,
            groups=layer.groups,
            bias=layer.bias is not None,
        )
        pads = [] if plain or not any(layer.padding) else [_PADS[layer.padding_mode](layer.padding[0])]
        return [*pads, _copy(layer, conv)]
    if isinstance(layer, nn.ConvTranspose2d):
        size = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        return [_copy(layer, nn.ConvTranspose2d(*size, layer.output_padding, bias=layer.bias is not None))]
    relu: list[nn.Module] = [nn.ReLU()] if getattr(layer, "relu", False) else []
    if isinstance(layer, InstanceNormAct):
        norm = nn.InstanceNorm2d(layer.channels, layer.eps, affine=layer.weight is not None)
        return [_copy(layer, norm), *relu]
    if isinstance(layer, BatchNormAct):
        return [_copy(layer, nn.BatchNorm2d(layer.num_features)), *relu]
    return relu if hasattr(layer, "relu") else [layer]


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> nn.Module:
    # Assigned rather than copied in, so that device and dtype are the source's.
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()}, assign=True)
    return target.train(source.training)
