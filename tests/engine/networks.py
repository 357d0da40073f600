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
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.testing import assert_accurate, images, with_winograd

from ..models import published

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
CONFIGS: dict[str, Any] = {**RESNETS, **UNETS}


def build(config: Any, seed: int = 1) -> Generator:
    """The generator of a configuration, with values in every tensor that show whether it is used."""
    generator = ResnetGenerator(config) if isinstance(config, ResnetConfig) else UnetGenerator(config)
    published.randomised(generator, seed)
    return generator.eval()


def stock(generator: Generator) -> nn.Module:
    """The published network with the weights of ``generator``."""
    c = generator.config
    network: nn.Module
    if isinstance(c, UnetConfig):
        network = published.Unet(c.ngf, c.n_levels, c.in_channels, c.out_channels, c.norm, c.dropout)
    else:
        options = {name: getattr(c, name) for name in ("in_channels", "out_channels", "norm", "padding", "separable")}
        network = published.Resnet(c.stem, c.down, c.stream, c.hidden, c.up, c.last, **options)
    network.load_state_dict(generator.state_dict())
    return network.eval()


@torch.inference_mode()
def run_any_size(network: nn.Module, x: Tensor, multiple: int) -> Tensor:
    """Run on ``x``, padded at its ends by numpy's reflection to a multiple, and cut the result back."""
    missing = [-side % multiple for side in x.shape[2:]]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *[(0, count) for count in missing]], mode="reflect")
    return network(torch.from_numpy(padded))[..., : x.shape[2], : x.shape[3]]


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
    x = images(batch, generator.config.in_channels, *size).tanh()
    double = copy.deepcopy(network).double()
    exact = run_any_size(double, x.double(), multiple)
    float32 = run_any_size(network, x, multiple)
    dense = isinstance(generator, ResnetGenerator) and not generator.config.separable
    winograd = run_any_size(with_winograd(network), x, multiple) if dense else None
    return Case(generator, path, x, exact, float32, winograd)
