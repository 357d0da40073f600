"""The same generator written the obvious way in stock PyTorch layers: the baseline of every speed figure.

One layer per operation as a user would write it, except that ReLU is not in place: after InstanceNorm, which returns a view,
an in-place ReLU costs extra copies in the backward pass, and a baseline must not be slower than it need be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models.base import Generator
from gancomp.models.decomposed import DecomposedResnet
from gancomp.models.resnet import ResnetBlock, ResnetGenerator
from gancomp.models.spade import SLOPE, Spade, SpadeBlock, SpadeGenerator
from gancomp.nn import BatchNormAct, InstanceNormAct, ModulatedNorm, SeparableConv2d, one_hot_labels, random_labels

_PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}


class StockBlock(nn.Module):
    """``x + layers(x)``."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``x`` [N, C, H, W]."""
        return x + self.layers(x)


class StockSpade(nn.Module):
    """A norm without parameters, and its scale and shift from the label map."""

    def __init__(self, spade: Spade) -> None:
        super().__init__()
        self.norm, self.shared, self.gamma, self.beta = (
            nn.Sequential(*_stock(part)) for part in (spade.param_free_norm, spade.mlp_shared, spade.mlp_gamma, spade.mlp_beta)
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Modulate ``x`` [N, C, H, W] by the one-hot ``labels`` of any size."""
        embedded = self.shared(F.interpolate(labels, x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.gamma(embedded)) + self.beta(embedded)


class StockSpadeBlock(nn.Module):
    """SPADE's residual block."""

    def __init__(self, block: SpadeBlock) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = StockSpade(block.norm_0), StockSpade(block.norm_1)
        (self.conv_0,), (self.conv_1,) = _stock(block.conv_0), _stock(block.conv_1)
        if block.conv_s is not None and block.norm_s is not None:
            (self.conv_s,), self.norm_s = _stock(block.conv_s), StockSpade(block.norm_s)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Refine ``x`` [N, C, H, W]."""
        skip = self.conv_s(self.norm_s(x, labels)) if hasattr(self, "conv_s") else x
        y = self.conv_0(F.leaky_relu(self.norm_0(x, labels), SLOPE))
        return skip + self.conv_1(F.leaky_relu(self.norm_1(y, labels), SLOPE))


class StockSpadeGenerator(nn.Module):
    """GauGAN's generator; takes the one-hot image of a label map, or makes it of integers."""

    def __init__(self, generator: SpadeGenerator) -> None:
        super().__init__()
        (self.first,), (self.last,) = _stock(generator.fc), _stock(generator.conv_img)
        self.config = generator.config
        self.strides = [stride for _, _, stride in generator.blocks()]
        self.layers = nn.ModuleList([StockSpadeBlock(block) for _, block, _ in generator.blocks()])

    def forward(self, labels: Tensor) -> Tensor:
        """Paint ``labels`` [N, C, H, W]."""
        if not labels.is_floating_point():
            labels = one_hot_labels(labels, self.config.label_nc)
        stride = self.strides[0]
        x = self.first(F.interpolate(labels, scale_factor=1 / stride, mode="nearest"))
        for layer, wanted in zip(self.layers, self.strides, strict=True):
            if wanted < stride:
                x, stride = F.interpolate(x, scale_factor=2, mode="nearest"), wanted
            x = layer(x, labels)
        return torch.tanh(self.last(F.leaky_relu(x, SLOPE)))

    def example(self, shape: tuple[int, int, int, int]) -> Tensor:
        """The input of :meth:`SpadeGenerator.example`."""
        return random_labels(shape, self.config.label_nc, edges=self.config.instance_edges)


def stock_generator(generator: Generator) -> nn.Module:
    """Rebuild ``generator`` from stock ``torch.nn`` layers, with copies of its weights; equal up to rounding.

    Raises:
        ConfigError: not a ResNet or SPADE generator.
    """
    if isinstance(generator, SpadeGenerator):
        return StockSpadeGenerator(generator).train(generator.training)
    if isinstance(generator, DecomposedResnet):
        generator = generator.network
    if not isinstance(generator, ResnetGenerator):
        raise ConfigError(f"arch={generator.arch!r}: a stock form is known for resnet and spade only")
    layers: list[nn.Module] = []
    for layer in generator.model:
        layers += [StockBlock(nn.Sequential(*_block(layer)))] if isinstance(layer, ResnetBlock) else _stock(layer)
    return nn.Sequential(*layers).train(generator.training)


def _block(block: ResnetBlock) -> list[nn.Module]:
    return [stock for layer in block.conv_block for stock in _stock(layer)]


def _stock(layer: nn.Module) -> list[nn.Module]:
    if isinstance(layer, nn.Identity):
        return []
    if isinstance(layer, SeparableConv2d | nn.Sequential):
        parts = layer.conv if isinstance(layer, SeparableConv2d) else layer
        return [stock for part in parts for stock in _stock(part)]
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
        size = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.output_padding)
        return [_copy(layer, nn.ConvTranspose2d(*size, groups=layer.groups, bias=layer.bias is not None))]
    relu: list[nn.Module] = [nn.ReLU()] if getattr(layer, "relu", False) else []
    if isinstance(layer, InstanceNormAct):
        norm = nn.InstanceNorm2d(layer.channels, layer.eps, affine=layer.weight is not None)
        return [_copy(layer, norm), *relu]
    if isinstance(layer, ModulatedNorm):
        if layer.norm == "batch":
            return [_copy(layer, nn.BatchNorm2d(layer.channels, layer.eps, layer.momentum, affine=False))]
        return [nn.InstanceNorm2d(layer.channels, layer.eps)]
    if isinstance(layer, BatchNormAct):
        return [_copy(layer, nn.BatchNorm2d(layer.num_features)), *relu]
    return relu if hasattr(layer, "relu") else [layer]


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> nn.Module:
    # Assigned rather than copied in, so that device and dtype are the source's.
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()}, assign=True)
    return target.train(source.training)
