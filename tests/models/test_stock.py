"""The baseline of speed figures: the same generator in stock layers."""

from __future__ import annotations

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.models.stock import stock_generator
from gancomp.testing import images

from . import published


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "batch"},
        {"norm": "instance_affine"},
        {"norm": "none"},
        {"padding": "replicate"},
        {"padding": "zero"},
        {"separable": True},
        {"separable": True, "padding": "zero", "norm": "batch"},
    ],
)
def test_same_images(options: dict, training: bool) -> None:
    ours = published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 2, **options))).double().train(training)
    stock = stock_generator(ours)
    assert all(type(module).__module__.startswith("torch.nn") for module in stock.modules() if not list(module.children()))
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in stock.parameters()}, "it has weights of its own"
    x = images(2, 3, 16, 20, dtype=torch.float64).tanh()
    torch.testing.assert_close(ours(x), stock(x))


def test_other_architectures() -> None:
    with pytest.raises(ConfigError, match="arch='unet': a stock form is known for resnet and spade only"):
        stock_generator(UnetGenerator(UnetConfig(2, 5)))
