"""The registry and the files that carry their own configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from torch import nn

import gancomp
from gancomp.errors import ConfigError
from gancomp.models import (
    Generator,
    Network,
    ResnetConfig,
    ResnetGenerator,
    base,
    build_network,
    config_from_dict,
    register_network,
)


def test_a_file_says_all_about_its_network(tmp_path) -> None:
    generator = ResnetGenerator(ResnetConfig.parse("4_4_4_2_3_4_4_2", 3))
    path = tmp_path / "made" / "on the way" / "g.safetensors"
    generator.save(path, {"stage": "test", "inputs": {"teacher": "00ff"}}, note=[1, 2])
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert json.loads(metadata["gancomp.config"]) == {
        "arch": "resnet", "stem": 4, "down": 8, "stream": 16, "hidden": [8, 12, 16], "up": 8, "last": 2, "in_channels": 3,
        "out_channels": 3, "separable": True, "norm": "instance", "padding": "reflect", "dropout": 0.0,
    }  # fmt: skip
    assert json.loads(metadata["gancomp.version"]) == gancomp.__version__
    assert json.loads(metadata["gancomp.provenance"]) == {"stage": "test", "inputs": {"teacher": "00ff"}}
    assert json.loads(metadata["gancomp.note"]) == [1, 2]
    assert names == generator.state_dict().keys()
    assert [file.name for file in path.parent.iterdir()] == ["g.safetensors"]


def test_configurations_survive_json() -> None:
    generator = ResnetGenerator(ResnetConfig.uniform(2, 2, norm="batch", padding="zero", dropout=0.5))
    arch, config = config_from_dict(json.loads(json.dumps(generator.config_dict())))
    assert (arch, config) == ("resnet", generator.config)
    again = build_network(generator.config_dict())
    assert isinstance(again, ResnetGenerator)
    assert again.state_dict().keys() == generator.state_dict().keys()
    assert again.num_parameters() == sum(tensor.numel() for tensor in generator.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "arch=None: expected one of multiscale, patch, resnet, resnet_decomposed, spade, unet"),
        ({"arch": "vae"}, "arch='vae': expected one of"),
        ({"arch": ["resnet"]}, "arch=['resnet']: expected one of"),
        ({"arch": "resnet", "depth": 3, "width": 2}, "config of resnet: unknown fields depth, width"),
        ({"arch": "resnet", "hidden": 5}, "config of resnet: 'int' object is not iterable"),
        ({"arch": "resnet", "hidden": [8, "8"]}, "resnet: hidden='8': expected a whole number at least 1"),
        ({"arch": "resnet", "stem": 16.5}, "resnet: stem=16.5: expected a whole number at least 1"),
        ({"arch": "unet", "n_levels": None}, "unet: n_levels=None: expected a whole number between 5 and 12"),
    ],
)
def test_damaged_configurations(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    assert message in str(caught.value)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="arch='resnet': already registered"):
        register_network("resnet", ResnetConfig)(ResnetGenerator)
    assert ResnetGenerator.arch == "resnet"


def test_a_users_own_generator_is_loaded_from_its_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @dataclass(frozen=True)
    class TinyConfig:
        width: int = 4
        in_channels: int = 3
        out_channels: int = 3

    @register_network("tiny", TinyConfig)
    class Tiny(Generator):
        def __init__(self, config: TinyConfig) -> None:
            super().__init__()
            self.config = config
            self.layers = nn.Sequential(nn.Conv2d(3, config.width, 1), nn.Conv2d(config.width, 3, 1), nn.Tanh())

        def forward(self, x):
            return self.layers(x)

    mine = Tiny(TinyConfig(width=7))
    mine.save(tmp_path / "mine.safetensors")
    again = gancomp.load_generator(tmp_path / "mine.safetensors")
    assert isinstance(again, Tiny)
    assert isinstance(again, Network)
    assert again.config == TinyConfig(width=7)
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(again(x), mine(x))
    with pytest.raises(ConfigError, match="tiny: this architecture offers no features"):
        again.forward_features(x)
