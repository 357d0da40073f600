"""What the tensors of a file cannot tell is said by its user; what he says is folded into the weights, exactly."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import Assumptions
from gancomp.errors import CheckpointError, ConfigError
from gancomp.testing import assert_accurate, images

from ..models import published

# From [-1, 1] to the range that a network was trained on.
INTO = {"signed": lambda x: x, "unit": lambda x: (x + 1) / 2, "byte": lambda x: (x + 1) * 127.5}


def load(tmp_path: Path, network: nn.Module, *, biases: bool = True, **assume):
    torch.save(network.state_dict() if biases else published.without_biases(network), tmp_path / "net.pth")
    return gancomp.load_generator(tmp_path / "net.pth", Assumptions(**assume))


class Foreign(nn.Module):
    """A network of another value range, as a function of [-1, 1]: its images are scaled before it and after it."""

    def __init__(self, network: nn.Module, inputs: str, sigmoid: bool) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs
        if sigmoid:
            (network.model if isinstance(network.model, nn.Sequential) else network.model.model)[-1] = nn.Sigmoid()
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(INTO[self.inputs](x))
        return 2 * y - 1 if self.sigmoid else y


NETWORKS = {
    "instance": lambda: published.resnet(3, 2, dropout=None),
    "none": lambda: published.resnet(3, 1, norm="none"),
    "separable": lambda: published.resnet(3, 2, separable=True),
    "grey": lambda: published.resnet(3, 1, in_channels=1, out_channels=2),
}


@pytest.mark.parametrize("outputs", ["signed", "unit"])
@pytest.mark.parametrize("inputs", ["signed", "unit", "byte"])
@pytest.mark.parametrize("name", NETWORKS)
def test_value_ranges_of_resnets(tmp_path: Path, name: str, inputs: str, outputs: str) -> None:
    network = published.randomised(NETWORKS[name]()).eval()
    if inputs == "byte" and name == "none":
        with torch.no_grad():
            network.model[1].weight /= 100  # without a norm such values would leave nothing of the image but its signs
    ours = load(tmp_path, network, biases=name != "none", input_range=inputs, output_range=outputs)
    assert ours.config.norm == ("none" if name == "none" else "instance")
    stock = Foreign(network, inputs, outputs == "unit")
    x = images(2, ours.config.in_channels, 16, 24).tanh()
    with torch.no_grad():
        assert_accurate(ours(x), stock(x), copy.deepcopy(stock).double()(x.double()))


@pytest.mark.parametrize("batch_stats", [True, False])
def test_value_ranges_and_batch_norm(tmp_path: Path, batch_stats: bool) -> None:
    network = published.randomised(published.resnet(3, 2, norm="batch", dropout=None)).train(batch_stats)
    ours = load(tmp_path, network, input_range="unit", output_range="unit", batch_stats=batch_stats)
    assert ours.config.norm == ("instance_affine" if batch_stats else "batch")
    stock = Foreign(network, "unit", True)
    x = images(1, 3, 16, 24).tanh()
    with torch.no_grad():
        assert_accurate(ours(x), stock(x), copy.deepcopy(stock).double()(x.double()))


def test_a_unet_that_ends_in_a_sigmoid(tmp_path: Path) -> None:
    network = published.randomised(published.Unet(1, 5, norm="instance")).eval()
    ours = load(tmp_path, network, output_range="unit")
    stock = Foreign(network, "signed", True)
    x = images(1, 3, 32, 64).tanh()
    with torch.no_grad():
        assert_accurate(ours(x), stock(x), copy.deepcopy(stock).double()(x.double()))


def test_dropout_is_kept_for_those_who_train_on(tmp_path: Path) -> None:
    for network in (published.resnet(2, 1), published.Unet(1, 6)):
        assert load(tmp_path, network).config.dropout == 0.0
        ours = load(tmp_path, network, dropout=0.5)
        assert ours.config.dropout == 0.5
        x = images(1, 3, 64, 64).tanh()
        assert torch.equal(ours(x), ours(x)), "nothing drops out at inference"
        assert not torch.equal(ours.train()(x), ours(x))


@pytest.mark.parametrize(
    ("network", "assume", "message"),
    [
        (published.resnet(2, 1, dropout=None), {"dropout": 0.5}, "dropout=0.5: the generator's blocks have no dropout layers"),
        (published.Unet(1, 5), {"input_range": "unit"}, "input_range='unit': a U-Net pads its image with zeros"),
        (published.Patch(6, 2, 1, "instance"), {"input_range": "unit"}, "input_range='unit': a discriminator is no generator"),
        (published.Patch(6, 2, 1, "batch"), {"output_range": "unit"}, "output_range='unit': a discriminator is no generator"),
        (published.Patch(6, 2, 1, "instance"), {"dropout": 0.1}, "dropout=0.1: a discriminator is no generator"),
    ],
)
def test_assumptions_that_a_network_cannot_fulfil(tmp_path: Path, network: nn.Module, assume: dict, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, network, **assume)
    assert str(caught.value).startswith(f"{tmp_path / 'net.pth'}: {message}")


def test_wrong_assumptions() -> None:
    for assume, message in (
        ({"dropout": 1.0}, "assume: dropout=1.0: expected a number between 0.0 and 0.99"),
        ({"input_range": "int"}, "assume: input_range='int': expected one of signed, unit, byte"),
        ({"output_range": "byte"}, "assume: output_range='byte': expected one of signed, unit"),
    ):
        with pytest.raises(ConfigError) as caught:
            Assumptions(**assume)
        assert str(caught.value) == message


def test_files_of_this_project_need_no_assumption(tmp_path: Path) -> None:
    """They carry their configuration, so nothing is assumed and nothing folded."""
    generator = gancomp.ResnetGenerator(gancomp.ResnetConfig.uniform(2, 1, norm="batch"))
    generator.save(tmp_path / "g.safetensors")
    ours = gancomp.load_generator(tmp_path / "g.safetensors", Assumptions(input_range="unit"))
    assert ours.config == generator.config
    assert torch.equal(ours.model[1].weight, generator.model[1].weight)
