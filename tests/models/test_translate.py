"""Images of any size: padded by reflection below and on the right, and cut back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gancomp.data import DataConfig, open_dataset
from gancomp.errors import ConfigError
from gancomp.metrics import Evaluator, load_extractor
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator


class Recorder(Generator):
    """Gives back what it is given, and keeps it."""

    arch = "recorder"

    def __init__(self, size_multiple: int) -> None:
        super().__init__()
        self.size_multiple = size_multiple
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x * 2


@pytest.mark.parametrize("multiple", [1, 4, 32, 256])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (5, 64), (1, 2), (2, 3), (250, 333), (256, 512)])
def test_padding_is_numpys_reflection_at_the_end(multiple: int, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    generator = Recorder(multiple)
    y = generator.translate(x)
    assert torch.equal(y, x * 2)
    missing = [-side % multiple for side in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *[(0, count) for count in missing]], mode="reflect")
    assert np.array_equal(generator.seen[0].numpy(), expected)


def test_images_that_fit_are_passed_on_as_they_are() -> None:
    x = torch.rand(1, 3, 8, 12)
    generator = Recorder(4)
    generator.translate(x)
    assert generator.seen[0] is x


@pytest.mark.parametrize(
    "generator", [ResnetGenerator(ResnetConfig.uniform(2, 1)), UnetGenerator(UnetConfig(1, 5))], ids=["resnet", "unet"]
)
def test_the_networks_take_any_size(generator: Generator) -> None:
    generator.eval()
    x = torch.rand(1, 3, 33, 18) * 2 - 1
    with torch.inference_mode():
        y = generator.translate(x)
        whole = generator.translate(torch.nn.functional.pad(x, (0, 14, 0, 31), mode="reflect"))
    assert y.shape == x.shape
    if generator.size_multiple == 32:
        assert torch.equal(y, whole[..., :33, :18])


def test_gradients_come_through_the_padding() -> None:
    x = torch.rand(1, 1, 3, 2, requires_grad=True)
    Recorder(4).translate(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0)), "what is cut off has no part in the result"


def test_what_the_network_refuses_stays_refused() -> None:
    generator = ResnetGenerator(ResnetConfig.uniform(2, 1))
    with pytest.raises(ConfigError, match=r"x of shape \[1, 4, 20, 20\]"):
        generator.translate(torch.zeros(1, 4, 17, 18))
    with pytest.raises(ConfigError, match="at least 8"):
        generator.translate(torch.zeros(1, 3, 3, 3))


def test_evaluation_scores_images_of_any_size() -> None:
    dataset = open_dataset(DataConfig(load_size=36, crop_size=36, synthetic_test=2), "val")
    generator = Recorder(32)
    scores = Evaluator(dataset, load_extractor()).evaluate(generator, ["l1"])
    assert generator.seen[0].shape == (2, 3, 64, 64)
    expected = torch.stack([(dataset.load(i).input * 2 - dataset.load(i).target).abs().mean() for i in range(2)])
    assert scores["l1"] == pytest.approx(float(expected.mean()), rel=1e-5)
