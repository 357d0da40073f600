"""PatchGAN and PixelGAN discriminators against the published ones, and how far they look."""

from __future__ import annotations

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.models import DiscriminatorConfig, PatchDiscriminator
from gancomp.testing import images

from . import published
from .compare import assert_same_network


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("n_layers", [0, 1, 2, 3, 4])
def test_equals_the_published_network(n_layers: int, norm: str) -> None:
    config = DiscriminatorConfig(in_channels=4, ndf=3, n_layers=n_layers, norm=norm)
    stock = published.randomised(published.Patch(4, 3, n_layers, norm))
    ours = PatchDiscriminator(config)
    assert published.shapes(ours) == published.shapes(stock)
    ours.load_state_dict(stock.state_dict())
    size = 4 * 2**n_layers
    assert_same_network(ours, stock, images(2, 4, size, size + 2**n_layers))


def test_published_names_and_widths() -> None:
    with torch.device("meta"):
        shapes = published.shapes(PatchDiscriminator(DiscriminatorConfig()))
    assert {name: shape for name, shape in shapes.items() if name.endswith("weight")} == {
        "model.0.weight": (128, 6, 4, 4),
        "model.2.weight": (256, 128, 4, 4),
        "model.5.weight": (512, 256, 4, 4),
        "model.8.weight": (1024, 512, 4, 4),
        "model.11.weight": (1, 1024, 4, 4),
    }


@pytest.mark.parametrize(("n_layers", "patch"), [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142)])
def test_patch_that_one_score_looks_at(n_layers: int, patch: int) -> None:
    network = PatchDiscriminator(DiscriminatorConfig(in_channels=1, ndf=1, n_layers=n_layers, norm="none"))
    x = torch.zeros(1, 1, 3 * patch + 8, 3 * patch + 8, requires_grad=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    scores = network(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [patch, patch]


@pytest.mark.parametrize(("n_layers", "smallest"), [(0, 1), (1, 6), (2, 12), (3, 24)])
def test_smallest_input(n_layers: int, smallest: int) -> None:
    config = DiscriminatorConfig(in_channels=2, ndf=2, n_layers=n_layers)
    network = PatchDiscriminator(config)
    assert config.min_size == smallest
    assert network(torch.zeros(1, 2, smallest, smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(ConfigError, match=f"needs sides of at least {smallest}"):
        network(torch.zeros(1, 2, smallest, smallest - 1))


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 3, 32, 32)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected \[N, 2, H, W\]"):
        PatchDiscriminator(DiscriminatorConfig(in_channels=2, ndf=2))(torch.zeros(shape))


@pytest.mark.parametrize("fields", [{"in_channels": 0}, {"ndf": 0}, {"n_layers": -1}, {"n_layers": 7}, {"norm": "spectral"}])
def test_wrong_fields(fields: dict) -> None:
    with pytest.raises(ConfigError, match=f"patch: {next(iter(fields))}="):
        DiscriminatorConfig(**fields)
