"""Search spaces: the published ones, their text form, and how configurations are drawn."""

from __future__ import annotations

import collections
import random

import pytest

from gancomp.errors import ConfigError
from gancomp.supernet import SPACES, SearchSpace

FULL = (64, 56, 48, 40, 32, 24, 16)


@pytest.mark.parametrize(
    ("name", "choices", "size"),
    [
        ("channels-48", [(48, 32)] * 2 + [(48, 40, 32)] * 4 + [(48, 32, 24, 16)] * 2, 5_184),
        ("channels-32", [(32, 24, 16)] * 8, 6_561),
        ("channels-64-cycleGAN", [(64, 48, 32, 24, 16)] * 8, 390_625),
        ("channels-64-pix2pix", [FULL] * 8, 5_764_801),
    ],
)
def test_published_spaces(name: str, choices: list[tuple[int, ...]], size: int) -> None:
    space = SearchSpace.parse(name)
    assert space is SPACES[name]
    assert space.choices == tuple(choices)
    assert space.size == size
    assert space.largest == tuple(options[0] for options in choices)
    assert space.smallest == tuple(options[-1] for options in choices)


@pytest.mark.parametrize("name", ["channels-48", "channels-32"])
def test_iteration_visits_every_configuration_once(name: str) -> None:
    space = SPACES[name]
    everything = list(space)
    assert len(everything) == len(set(everything)) == space.size
    assert everything[0] == space.largest
    assert everything[-1] == space.smallest
    assert all(config in space for config in everything[:: space.size // 100])


def test_text_form() -> None:
    assert SearchSpace.parse("16,32, 24,16", 3).choices == ((32, 24, 16),) * 3
    assert SearchSpace.parse("8;16,8;4", 3).choices == ((8,), (16, 8), (4,))
    assert SearchSpace.parse("8,4").name == "8,4"


@pytest.mark.parametrize(
    ("text", "slots", "message"),
    [
        ("channels-47", 8, "expected one of channels-32, channels-48, channels-64-cycleGAN, channels-64-pix2pix, spade-"),
        ("", 8, "expected one of"),
        ("32,,16", 8, "expected one of"),
        ("32_24_16", 8, "expected one of"),
        ("32,2.5", 8, "expected one of"),
        ("32,-16", 8, "expected one of"),
        ("32;16", 8, "has 2 slots, expected 8"),
        ("32,0", 8, "slot 0 is (32, 0): expected distinct positive channel counts, largest first"),
    ],
)
def test_text_that_is_no_space(text: str, slots: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace.parse(text, slots)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("choices", [(), ((8,), ()), ((8, 16),), ((8, 8),), ((8, 4), (4, -4))])
def test_wrong_choices(choices: tuple) -> None:
    with pytest.raises(ConfigError, match="space 'mine'"):
        SearchSpace("mine", choices)


def test_membership_and_validation() -> None:
    space = SearchSpace("mine", ((8, 4), (6, 2)))
    assert (8, 2) in space
    assert space.validate([8, 2]) == (8, 2)
    for stranger in ((8, 4), (8,), (8, 2, 2), [8, 2], "82", None):
        assert stranger not in space
    with pytest.raises(ConfigError, match=r"config_str='8_4': 4 is not allowed in slot 1 of space 'mine' \(allowed: 6, 2\)"):
        space.validate((8, 4))
    with pytest.raises(ConfigError, match="config_str='8': has 1 numbers, space 'mine' has 2 slots"):
        space.validate((8,))


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0, 0.5])
def test_distribution_of_samples(weight: float) -> None:
    """Independent slots; option j, counted from the largest, with a probability proportional to ``weight**j``."""
    space = SearchSpace("mine", ((32, 24, 16), (8, 4)))
    rng, draws = random.Random(1), 20_000
    counts = collections.Counter(space.sample(rng, weight) for _ in range(draws))
    first = [weight**j / sum(weight**i for i in range(3)) for j in range(3)]
    second = [weight**j / (1 + weight) for j in range(2)]
    # Pearson's statistic over all six pairs: above 20.5 (5 degrees of freedom) once in a thousand seeds.
    expected = {
        (a, b): draws * p * q for a, p in zip((32, 24, 16), first, strict=True) for b, q in zip((8, 4), second, strict=True)
    }
    assert counts.keys() <= expected.keys()
    assert sum((counts[pair] - mean) ** 2 / mean for pair, mean in expected.items()) < 20.5


def test_samples_follow_from_the_seed() -> None:
    space = SPACES["channels-64-pix2pix"]
    draw = [[space.sample(random.Random(seed), 2.0) for _ in range(3)] for seed in (5, 5, 6)]
    assert draw[0] == draw[1] != draw[2]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_wrong_weight(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight="):
        SPACES["channels-32"].sample(random.Random(0), weight)
