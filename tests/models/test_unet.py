"""The U-Net generator against pix2pix's recursive network in stock layers."""

from __future__ import annotations

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.models import UnetConfig, UnetGenerator
from gancomp.testing import images

from . import published
from .compare import assert_same_network


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(UnetConfig(ngf=2, n_levels=5), id="batch"),
        pytest.param(UnetConfig(ngf=2, n_levels=5, norm="instance", dropout=0.0), id="instance"),
        pytest.param(UnetConfig(ngf=2, n_levels=5, norm="instance_affine"), id="affine"),
        pytest.param(UnetConfig(ngf=2, n_levels=5, norm="none"), id="no norm"),
        pytest.param(UnetConfig(ngf=2, n_levels=6, in_channels=1, out_channels=4), id="dropout"),
        pytest.param(UnetConfig(ngf=1, n_levels=7, dropout=0.0), id="seven levels"),
    ],
)
def test_equals_the_published_network(config: UnetConfig, training: bool) -> None:
    stock = published.Unet(config.ngf, config.n_levels, config.in_channels, config.out_channels, config.norm, config.dropout)
    published.randomised(stock)
    ours = UnetGenerator(config)
    assert published.shapes(ours) == published.shapes(stock)
    ours.load_state_dict(stock.state_dict())
    size = ours.size_multiple
    x = images(2, config.in_channels, size, 2 * size if config.n_levels == 5 else size).tanh()
    assert_same_network(ours.train(training), stock.train(training), x)


@pytest.mark.parametrize(
    ("norm", "levels", "tensors", "millions"),
    [("batch", 8, 82, "54.414"), ("instance", 8, 32, "54.410"), ("batch", 7, 70, "41.829"), ("instance", 7, 28, "41.826")],
)
def test_size_of_the_published_networks(norm: str, levels: int, tensors: int, millions: str) -> None:
    with torch.device("meta"):
        ours, stock = UnetGenerator(UnetConfig(64, levels, norm=norm)), published.Unet(64, levels, norm=norm)
    assert published.shapes(ours) == published.shapes(stock)
    assert len(ours.state_dict()) == tensors
    assert f"{ours.num_parameters() / 1e6:.3f}" == millions


def test_published_names() -> None:
    with torch.device("meta"):
        state = UnetGenerator(UnetConfig(64, 8)).state_dict()
    innermost = "model.model.1.model" + ".3.model" * 6
    assert state["model.model.0.weight"].shape == (64, 3, 4, 4)
    assert state["model.model.3.weight"].shape == (128, 3, 4, 4)
    assert state["model.model.3.bias"].shape == (3,), "the last layer has a bias with any norm"
    assert state["model.model.1.model.5.weight"].shape == (256, 64, 4, 4), "the skip doubles what goes up"
    assert {name.removeprefix(innermost) for name in state if name.startswith(innermost)} == {
        ".1.weight", ".3.weight", ".4.weight", ".4.bias", ".4.running_mean", ".4.running_var", ".4.num_batches_tracked",
    }  # fmt: skip


def test_dropout_is_in_the_middle_levels_only() -> None:
    network = UnetGenerator(UnetConfig(2, 8))
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Dropout)]
    assert len(names) == 3, "pix2pix: the three levels of eight times the base width around the innermost"
    assert not any(isinstance(module, torch.nn.Dropout) for module in UnetGenerator(UnetConfig(2, 8, dropout=0)).modules())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 48, 32), (1, 3, 32, 16), (1, 3, 0, 32)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"x of shape \["):
        UnetGenerator(UnetConfig(2, 5))(torch.zeros(shape))


@pytest.mark.parametrize("fields", [{"ngf": 0}, {"n_levels": 4}, {"n_levels": 13}, {"norm": "group"}, {"dropout": -0.1}])
def test_wrong_fields(fields: dict) -> None:
    with pytest.raises(ConfigError, match=f"unet: {next(iter(fields))}="):
        UnetConfig(**fields)
