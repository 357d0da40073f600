"""The exponential moving average of the weights, against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gancomp.train.average import WeightAverage


def test_average_follows_its_formula() -> None:
    network = nn.BatchNorm2d(2)
    average = WeightAverage(network, 0.9)
    expected: dict[str, torch.Tensor] = {}
    for step in range(5):
        with torch.no_grad():
            for tensor in (network.weight, network.bias, network.running_mean):
                tensor.copy_(torch.randn(2))
        average.update(network)
        for name in ("weight", "bias", "running_mean"):
            now = getattr(network, name).detach().double()
            # The first weights stand for all that came before them.
            expected[name] = now if step == 0 else 0.9 * expected[name] + 0.1 * now
    kept = average.of(network)
    assert kept is not network
    for name, value in expected.items():
        torch.testing.assert_close(getattr(kept, name).double(), value, rtol=1e-6, atol=1e-6)
    assert all(torch.isfinite(tensor).all() for tensor in kept.state_dict().values())


def test_off() -> None:
    network = nn.Conv2d(1, 1, 1)
    average = WeightAverage(network, 0.0)
    average.update(network)
    assert average.of(network) is network
    assert average.modules() == {}


def test_a_saved_average_goes_on() -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        network = nn.Conv2d(2, 2, 1)
        average = WeightAverage(network, 0.8)
        for step in range(6):
            if step == stop:
                saved = average.modules()["average"].state_dict()
                average = WeightAverage(network, 0.8)
                average.modules()["average"].load_state_dict(saved)
            with torch.no_grad():
                network.weight.add_(torch.randn(2, 2, 1, 1))
            average.update(network)
        return average.of(network).weight

    assert torch.equal(run(None), run(3))


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_constant_weights_stay(decay: float) -> None:
    network = nn.Conv2d(1, 1, 1)
    average = WeightAverage(network, decay)
    for _ in range(10):
        average.update(network)
    torch.testing.assert_close(average.of(network).weight, network.weight)
