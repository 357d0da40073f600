"""The multi-scale discriminator against stock layers, its spectral norm, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import MultiscaleConfig, MultiscaleDiscriminator, build_network, seeded_generator
from gancomp.nn import init_weights
from gancomp.testing import images

from . import published


def stock_maps(state: dict[str, Tensor], scale: int, x: Tensor, *, layers: int, norm: bool) -> list[Tensor]:
    """The maps of one scale, from the paper's appendix: 4x4 convolutions, InstanceNorm from the second to the last but one."""
    for _ in range(scale):
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    maps = []
    for i in range(layers + 1):
        weight, bias = (state.get(f"scales.{scale}.{i}.0.{kind}") for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride=1 if i >= layers - 1 else 2, padding=2)
        if norm and 0 < i < layers:
            x = F.instance_norm(x)
        if i < layers:
            x = F.leaky_relu(x, 0.2)
        maps.append(x)
    return maps


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize(("layers", "scales"), [(4, 2), (3, 3), (2, 1)])
def test_equals_stock_layers(layers: int, scales: int, norm: str) -> None:
    config = MultiscaleConfig(in_channels=5, ndf=3, n_layers=layers, n_scales=scales, norm=norm, spectral=False)
    network = published.randomised(MultiscaleDiscriminator(config)).double()
    x = images(2, 5, 40, 56, dtype=torch.float64)
    maps = network(x)
    assert [len(scale) for scale in maps] == [layers + 1] * scales
    for index, scale in enumerate(maps):
        expected = stock_maps(network.state_dict(), index, x, layers=layers, norm=norm == "instance")
        for ours, theirs in zip(scale, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert scale[-1].shape[1] == 1


def test_widths() -> None:
    with torch.device("meta"):
        network = MultiscaleDiscriminator(MultiscaleConfig(spectral=False))
    weights = {name: tuple(p.shape) for name, p in network.named_parameters() if name.startswith("scales.1") and p.dim() == 4}
    assert weights == {
        "scales.1.0.0.weight": (64, 39, 4, 4),
        "scales.1.1.0.weight": (128, 64, 4, 4),
        "scales.1.2.0.weight": (256, 128, 4, 4),
        "scales.1.3.0.weight": (512, 256, 4, 4),
        "scales.1.4.0.weight": (1, 512, 4, 4),
    }


def test_every_weight_has_norm_one_and_learns() -> None:
    """The largest singular value of every weight that is used is 1, whatever the one that is trained is."""
    network = MultiscaleDiscriminator(MultiscaleConfig(in_channels=3, ndf=4))
    init_weights(network, seeded_generator(0), std=0.5)
    x = images(2, 3, 32, 32)
    for _ in range(60):
        network(x)
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 2 * 5
    network.eval()
    for conv in convs:
        assert torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=2e-2)
        assert conv.parametrizations.weight.original.std().item() == pytest.approx(0.5, rel=0.35), "initialised as asked"
    sum(maps[-1].square().mean() for maps in network(x)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_its_file_rebuilds_it(tmp_path) -> None:
    from gancomp.checkpoints import load_network

    network = published.randomised(MultiscaleDiscriminator(MultiscaleConfig(in_channels=4, ndf=2))).eval()
    network.save(tmp_path / "d.safetensors")
    again = load_network(tmp_path / "d.safetensors")
    assert isinstance(again, MultiscaleDiscriminator)
    assert again.config == network.config
    x = images(1, 4, 32, 48)
    for ours, theirs in zip(again(x), network(x), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert type(copy.deepcopy(again)) is type(build_network(network.config_dict())) is MultiscaleDiscriminator


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 3, 64, 64), r"expected \[N, 4, H, W\]"), ((1, 4, 64, 15), "needs sides of at least 16")]
)
def test_wrong_input(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiscaleDiscriminator(MultiscaleConfig(in_channels=4, ndf=2))(torch.zeros(shape))


@pytest.mark.parametrize(
    "fields", [{"in_channels": 0}, {"ndf": 0}, {"n_layers": 1}, {"n_scales": 0}, {"norm": "batch"}, {"spectral": "yes"}]
)
def test_wrong_fields(fields: dict) -> None:
    with pytest.raises(ConfigError, match=f"multiscale: {next(iter(fields))}="):
        MultiscaleConfig(**fields)
