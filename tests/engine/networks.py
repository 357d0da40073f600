"""Networks to run through the engine, with their results in stock PyTorch layers in float32 and float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gancomp.engine import Engine
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, SpadeConfig, SpadeGenerator, UnetConfig, UnetGenerator
from gancomp.testing import WinogradConv2d, assert_accurate, images, with_padding_apart, with_winograd

from ..models import published
from ..models.published_spade import Spade, label_map, one_hot

RESNETS = {
    "compressed CycleGAN": ResnetConfig.parse("16_16_32_16_32_32_16_16"),
    "compressed pix2pix": ResnetConfig.parse("32_32_48_32_48_48_16_16"),
    "mobile": ResnetConfig.uniform(12, 9, separable=True),
    "dense": ResnetConfig.uniform(10, 6),
    "narrow dense": ResnetConfig.uniform(6, 3),
    "no blocks": ResnetConfig.uniform(8, 0),
    "one block": ResnetConfig.uniform(8, 1, separable=True),
    "odd widths": ResnetConfig(5, 7, 11, (9, 3, 13), 6, 7),
    "odd widths, separable": ResnetConfig(17, 33, 35, (9, 47, 13), 31, 19, separable=True),
    "wide and odd": ResnetConfig(3, 33, 49, (65, 34), 17, 1),
    "one channel": ResnetConfig.uniform(8, 2, separable=True, in_channels=1, out_channels=1),
    "seven channels in": ResnetConfig.uniform(6, 2, in_channels=7),
    "seven channels out": ResnetConfig.uniform(8, 1, in_channels=2, out_channels=7),
    "twenty channels": ResnetConfig.uniform(4, 1, in_channels=20, out_channels=18),
    **{
        f"{norm}, {padding}, {'separable' if separable else 'dense'}": ResnetConfig.uniform(
            6, 2, norm=norm, padding=padding, separable=separable
        )
        for norm, padding, separable in (
            ("instance", "replicate", True),
            ("instance", "zero", False),
            ("instance_affine", "reflect", True),
            ("instance_affine", "zero", False),
            ("batch", "reflect", False),
            ("batch", "replicate", True),
            ("none", "zero", True),
            ("none", "reflect", False),
            ("none", "replicate", True),
        )
    },
}
UNETS = {
    "U-Net 5": UnetConfig(ngf=4, n_levels=5),
    "U-Net 6, instance": UnetConfig(ngf=3, n_levels=6, norm="instance"),
    "U-Net 7": UnetConfig(ngf=2, n_levels=7),
    "U-Net 5, affine": UnetConfig(ngf=17, n_levels=5, norm="instance_affine", in_channels=1, out_channels=2),
    "U-Net 5, no norm": UnetConfig(ngf=5, n_levels=5, norm="none", in_channels=7, out_channels=5),
}
SPADES = {
    "SPADE, separable": SpadeConfig.parse("2_1_3_2_2_3_1_2", label_nc=4),
    "SPADE, separable, instance": SpadeConfig.parse(
        "1_2_1_3_5_2_3_1", label_nc=3, instance_edges=False, norm="instance", upsampling="normal", out_channels=2
    ),
    "SPADE, separable, wide": SpadeConfig.parse("3_3_2_3_4_5_17_33", label_nc=5, upsampling="normal"),
    "SPADE, dense": SpadeConfig.parse("2_1_3_2_2_3_1_2", label_nc=2, separable=False, instance_edges=False),
    "SPADE, dense, instance": SpadeConfig.parse(
        "2_1_2_1_4_2_9_18", label_nc=4, separable=False, norm="instance", upsampling="most", out_channels=7
    ),
    "SPADE, dense, wide": SpadeConfig.parse("2_2_2_2_4_8_17_33", label_nc=4, separable=False, upsampling="normal"),
}
CONFIGS: dict[str, Any] = {**RESNETS, **UNETS, **SPADES}
_MODELS = {ResnetConfig: ResnetGenerator, UnetConfig: UnetGenerator, SpadeConfig: SpadeGenerator}


def build(config: Any, seed: int = 1) -> Generator:
    """The generator of a configuration, with values in every tensor that show whether it is used."""
    generator = _MODELS[type(config)](config)
    published.randomised(generator, seed)
    if isinstance(generator, SpadeGenerator):
        with torch.no_grad():
            for name, tensor in generator.named_parameters():
                # Scales far from one, layer after layer, would make errors of any size of the last digits.
                if "mlp_gamma" in name and (tensor.dim() == 1 or not name.endswith("conv.0.weight")):
                    tensor *= 0.3
    return generator.eval()


def stock(generator: Generator) -> nn.Module:
    """The published network with the weights of ``generator``."""
    c = generator.config
    network: nn.Module
    if isinstance(c, UnetConfig):
        network = published.Unet(c.ngf, c.n_levels, c.in_channels, c.out_channels, c.norm, c.dropout)
    elif isinstance(c, SpadeConfig):
        options = {name: getattr(c, name) for name in ("upsampling", "norm", "separable", "out_channels")}
        network = Spade(c.channels, c.in_channels, **options)
    else:
        options = {name: getattr(c, name) for name in ("in_channels", "out_channels", "norm", "padding", "separable")}
        network = published.Resnet(c.stem, c.down, c.stream, c.hidden, c.up, c.last, **options)
    network.load_state_dict(generator.state_dict())
    return network.eval()


def example(config: Any, size: tuple[int, int], batch: int) -> Tensor:
    """Images of noise, or the one-hot images of label maps."""
    if not isinstance(config, SpadeConfig):
        return images(batch, config.in_channels, *size).tanh()
    return one_hot(labels_of(config, size, batch), config.label_nc)


def labels_of(config: SpadeConfig, size: tuple[int, int], batch: int) -> Tensor:
    """The integers of the label maps of :func:`example`."""
    rounded = [-(-side // 4) * 4 for side in size]
    maps = label_map(batch, config.label_nc, rounded[0], rounded[1], edges=config.instance_edges)
    return maps[..., : size[0], : size[1]].contiguous()


@torch.inference_mode()
def run_any_size(network: nn.Module, x: Tensor, multiple: int) -> Tensor:
    """Run on ``x``, padded at its ends by numpy's reflection to a multiple, and cut the result back."""
    missing = [-side % multiple for side in x.shape[2:]]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *[(0, count) for count in missing]], mode="reflect")
    return network(torch.from_numpy(padded))[..., : x.shape[2], : x.shape[3]]


def reordered(network: nn.Module) -> nn.Module:
    """Let every dense convolution add up its input channels from the last to the first, in place; returns the network."""
    for layer in network.modules():
        tensor = layer.products if hasattr(layer, "products") else getattr(layer, "weight", None)
        if isinstance(layer, WinogradConv2d) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            tensor.data = tensor.data.flip(1)
            layer.register_forward_pre_hook(lambda _, args: (args[0].flip(1),))
    return network


@dataclass(frozen=True)
class Case:
    """A network, images, and what PyTorch makes of them."""

    generator: Generator
    path: Path
    x: Tensor
    exact: Tensor
    float32: Tensor
    winograd: Tensor | None

    def check(self, engine: Engine) -> None:
        """Run the engine, into NaN, and compare."""
        out = np.full(self.exact.shape, np.nan, np.float32)
        y = engine(self.x.numpy(), out=out)
        assert y is out
        steps = [name for name, *_ in engine._native.steps()]
        by_winograd = any(name.startswith("winograd") for name in steps)
        measure = self.winograd if by_winograd and self.winograd is not None else self.float32
        assert_accurate(torch.from_numpy(y), measure, self.exact)


def make_case(generator: Generator, path: Path, size: tuple[int, int], batch: int = 1) -> Case:
    """Save the generator to ``path`` and run it in stock layers on images of a size."""
    generator.save(path)
    network, multiple = stock(generator), generator.size_multiple
    x = example(generator.config, size, batch)
    double = copy.deepcopy(network).double()
    exact = run_any_size(double, x.double(), multiple)
    float32 = run_any_size(network, x, multiple)
    winograd = None
    if isinstance(generator, SpadeGenerator):
        # Norms of maps of a few pixels make much of the last digits: of several orders of the sums the worst is the measure.
        by_winograd = with_winograd(with_padding_apart(copy.deepcopy(network)))
        orders = (reordered(copy.deepcopy(network)), by_winograd, reordered(copy.deepcopy(by_winograd)))
        results = [run_any_size(other, x, multiple) for other in orders]
        winograd = max(results, key=lambda y: float((y - exact).abs().max()))
    elif isinstance(generator, ResnetGenerator) and not generator.config.separable:
        winograd = run_any_size(with_winograd(network), x, multiple)
    return Case(generator, path, x, exact, float32, winograd)
