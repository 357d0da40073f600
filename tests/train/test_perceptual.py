"""The perceptual distance against the same features by a stock sequence of layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gancomp.errors import CheckpointError
from gancomp.testing import images
from gancomp.train.perceptual import PerceptualDistance

WIDTHS = (2, 3, 4, 5, 6)


def stock(seed: int = 0) -> nn.Sequential:
    """VGG-19's feature layers with few channels, in torchvision's order."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    inputs = 3
    for width, convs in zip(WIDTHS, (2, 2, 4, 4, 4), strict=True):
        for _ in range(convs):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def save(network: nn.Sequential, path: Path) -> Path:
    torch.save({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def by_hand(network: nn.Sequential, a: Tensor, b: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    total = torch.zeros(())
    for depth, weight in ((1, 1 / 32), (6, 1 / 16), (11, 1 / 8), (20, 1 / 4), (29, 1)):
        x, y = (network[: depth + 1](((image + 1) / 2 - mean) / std) for image in (a, b))
        assert isinstance(network[depth], nn.ReLU)
        total = total + weight * (x - y).abs().mean()
    return total


def test_equals_the_stock_features(tmp_path: Path) -> None:
    network = stock()
    distance = PerceptualDistance(save(network, tmp_path / "vgg.pth"))
    a, b = (images(2, 3, 32, 48, seed=seed).tanh().requires_grad_() for seed in (1, 2))
    value, expected = distance(a, b), by_hand(network, a, b.detach())
    torch.testing.assert_close(value, expected)
    assert value > 0
    gradient, wanted = (torch.autograd.grad(v, a, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(gradient, wanted)
    assert torch.autograd.grad(value, b, allow_unused=True) == (None,)
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert distance(a, a) == 0


@pytest.mark.parametrize("name", ["features.0.weight", "features.28.weight", "features.19.bias"])
def test_another_network(tmp_path: Path, name: str) -> None:
    path = save(stock(), tmp_path / "vgg.pth")
    state = torch.load(path, weights_only=True)
    torch.save({key: tensor for key, tensor in state.items() if key != name}, path)
    with pytest.raises(CheckpointError, match=rf"{name.rpartition('.')[0]} does not fit a VGG-19"):
        PerceptualDistance(path)
