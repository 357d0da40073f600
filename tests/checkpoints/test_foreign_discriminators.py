"""Discriminators of other projects: built here from stock layers, loaded, and compared with their own forward pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import gancomp
from gancomp.checkpoints import load_network
from gancomp.errors import CheckpointError
from gancomp.models import DiscriminatorConfig
from gancomp.testing import assert_accurate, images

from ..models import published


def load(tmp_path: Path, state: object) -> nn.Module:
    torch.save(state, tmp_path / "latest_net_D.pth")
    return load_network(tmp_path / "latest_net_D.pth")


def assert_same_scores(ours: nn.Module, stock: nn.Module, channels: int) -> None:
    for training in (False, True):
        x = images(2, channels, max(ours.config.min_size, 16), 96).tanh()
        networks = [ours, stock, copy.deepcopy(stock).double()]
        with torch.no_grad():
            scores = [network.train(training)(x.to(next(network.parameters()).dtype)) for network in networks]
        assert_accurate(*scores)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("n_layers", [0, 1, 3, 5])
@pytest.mark.parametrize("channels", [6, 3])
def test_patch_discriminators(tmp_path: Path, channels: int, n_layers: int, norm: str) -> None:
    """Of pairs (pix2pix) and of single images (CycleGAN); BatchNorm stays, because they go on training."""
    stock = published.randomised(published.Patch(channels, 2, n_layers, norm))
    ours = load(tmp_path, {f"module.{name}": tensor for name, tensor in stock.state_dict().items()})
    assert ours.config == DiscriminatorConfig(channels, 2, n_layers, norm)
    assert_same_scores(ours, stock, channels)


def test_without_norm(tmp_path: Path) -> None:
    stock = published.randomised(published.Patch(6, 2, 2, "none"))
    state = stock.state_dict()
    for name in ("model.2.bias", "model.5.bias"):
        state.pop(name).zero_()
    ours = load(tmp_path, state)
    assert ours.config.norm == "none"
    assert_same_scores(ours, stock, 6)


def test_old_running_statistics_are_dropped(tmp_path: Path) -> None:
    stock = published.randomised(published.Patch(6, 2, 2, "instance"))
    state = stock.state_dict()
    for name, module in stock.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state |= {f"{name}.running_mean": torch.randn(module.num_features), f"{name}.running_var": torch.rand(4)}
    assert len(state) > len(stock.state_dict())
    assert_same_scores(load(tmp_path, state), stock, 6)


def test_neither_is_taken_for_the_other(tmp_path: Path) -> None:
    torch.save(published.Patch(6, 2, 3, "instance").state_dict(), tmp_path / "latest_net_D.pth")
    with pytest.raises(CheckpointError) as caught:
        gancomp.load_generator(tmp_path / "latest_net_D.pth")
    assert str(caught.value) == f"{tmp_path / 'latest_net_D.pth'}: holds a 'patch' network, expected a generator"


@pytest.mark.parametrize(
    ("mangle", "message"),
    [
        (lambda s: s.pop("model.2.weight"), "convolutions at indices [0, 5, 8]: expected those of a patch"),
        (lambda s: s.update({"model.8.weight": torch.zeros(9, 8, 4, 4)}), "last convolution has 9 outputs: expected a patch"),
        (lambda s: s.update({"model.5.weight": torch.zeros(8, 3, 4, 4)}), "size mismatch for model.5.weight"),
        (lambda s: s.update({"model.0.weight": torch.zeros(2, 6, 3, 3)}), "size mismatch for model.0.weight"),
        (lambda s: s.update({"model.0.weight": torch.zeros(2)}), "tensor model.0.weight has shape [2]: expected 4 dimensions"),
        (lambda s: s.update({"model.3.weight": torch.zeros(4)}), "norm='instance_affine': expected one of instance, batch"),
        (lambda s: s.update({"head.weight": torch.zeros(4)}), 'Unexpected key(s) in state_dict: "head.weight"'),
        (lambda s: s.pop("model.2.bias"), 'Missing key(s) in state_dict: "model.2.bias"'),
        (lambda s: s.pop("model.5.bias"), 'Missing key(s) in state_dict: "model.5.bias"'),
    ],
)
def test_strange_ones(tmp_path: Path, mangle, message: str) -> None:
    state = published.Patch(6, 2, 2, "instance").state_dict()
    mangle(state)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, state)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'latest_net_D.pth'}: ")
    assert "\n" not in str(caught.value)
