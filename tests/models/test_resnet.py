"""The ResNet generator against the published network in stock layers, its configurations, and what it refuses."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.models.channels import format_config, parse_config
from gancomp.testing import images

from . import published
from .compare import assert_same_network


def pair(config: ResnetConfig) -> tuple[ResnetGenerator, published.Resnet]:
    """Ours and the published network, with equal weights."""
    stock = published.randomised(published.Resnet(**asdict(config)))
    ours = ResnetGenerator(config)
    assert published.shapes(ours) == published.shapes(stock)
    ours.load_state_dict(stock.state_dict())
    return ours, stock


uniform = ResnetConfig.uniform


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name)
        for name, config in {
            "plain": uniform(4, 3),
            "no blocks": uniform(4, 0),
            "one block": uniform(3, 1),
            "six blocks": uniform(4, 6),
            "nine blocks": uniform(2, 9),
            "grey to five": uniform(4, 2, in_channels=1, out_channels=5),
            "batch": uniform(4, 2, norm="batch"),
            "affine": uniform(4, 2, norm="instance_affine"),
            "no norm": uniform(4, 2, norm="none"),
            "replicate": uniform(4, 2, padding="replicate"),
            "zero": uniform(4, 2, padding="zero"),
            "mobile": uniform(4, 3, separable=True),
            "mobile batch": uniform(4, 2, separable=True, norm="batch"),
            "mobile no norm": uniform(4, 2, separable=True, norm="none"),
            "mobile replicate": uniform(4, 2, separable=True, padding="replicate"),
            "mobile zero": uniform(4, 2, separable=True, padding="zero"),
            "compressed": ResnetConfig.parse("4_3_5_2_6_3_2_3"),
            "dropout": uniform(4, 2, dropout=0.5),
            "mobile dropout": uniform(4, 2, separable=True, dropout=0.3),
        }.items()
    ],
)
def test_equals_the_published_network(config: ResnetConfig, training: bool) -> None:
    ours, stock = pair(config)
    # Not square, and every image of the batch has statistics of its own.
    x = images(2, config.in_channels, 20, 28).tanh()
    assert_same_network(ours.train(training), stock.train(training), x)


def test_dropout_is_drawn_in_training_only() -> None:
    ours, _ = pair(uniform(4, 2, dropout=0.5))
    x = images(1, 3, 16, 16).tanh()
    assert not torch.equal(ours.train()(x), ours(x))
    assert torch.equal(ours.eval()(x), ours(x))


def names(*layers: int, blocks: tuple[str, ...]) -> set[str]:
    stems = [f"model.{layer}" for layer in layers] + [f"model.{10 + i}.conv_block.{part}" for i in range(9) for part in blocks]
    return {f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")}


def test_full_tensors_are_the_published_ones() -> None:
    with torch.device("meta"):
        shapes = published.shapes(ResnetGenerator(uniform(64)))
    assert len(shapes) == 48
    assert shapes.keys() == names(1, 4, 7, 19, 22, 26, blocks=("1", "6"))
    assert shapes["model.1.weight"] == (64, 3, 7, 7)
    assert shapes["model.4.weight"] == (128, 64, 3, 3)
    assert shapes["model.7.weight"] == (256, 128, 3, 3)
    assert all(shapes[f"model.{10 + i}.conv_block.{n}.weight"] == (256, 256, 3, 3) for i in range(9) for n in (1, 6))
    assert shapes["model.19.weight"] == (256, 128, 3, 3), "transposed: [in, out, 3, 3]"
    assert shapes["model.22.weight"] == (128, 64, 3, 3)
    assert shapes["model.26.weight"] == (3, 64, 7, 7)
    assert shapes["model.26.bias"] == (3,)


def test_mobile_tensors_are_the_published_ones() -> None:
    with torch.device("meta"):
        shapes = published.shapes(ResnetGenerator(ResnetConfig.parse("16_16_24_16_32_64_16_24")))
    assert len(shapes) == 84
    assert shapes.keys() == names(1, 4, 7, 19, 22, 26, blocks=("1.conv.0", "1.conv.2", "6.conv.0", "6.conv.2"))
    for block, hidden in zip(range(10, 19), [64] * 3 + [128] * 3 + [256] * 3, strict=True):
        stem = f"model.{block}.conv_block"
        assert shapes[f"{stem}.1.conv.0.weight"] == (96, 1, 3, 3)
        assert shapes[f"{stem}.1.conv.2.weight"] == (hidden, 96, 1, 1)
        assert shapes[f"{stem}.6.conv.0.weight"] == (hidden, 1, 3, 3)
        assert shapes[f"{stem}.6.conv.0.bias"] == (hidden,)
        assert shapes[f"{stem}.6.conv.2.weight"] == (96, hidden, 1, 1)
    assert shapes["model.4.weight"] == (32, 16, 3, 3)
    assert shapes["model.7.weight"] == (96, 32, 3, 3)
    assert shapes["model.19.weight"] == (96, 32, 3, 3)
    assert shapes["model.22.weight"] == (32, 24, 3, 3)
    assert shapes["model.26.weight"] == (3, 24, 7, 7)


def test_batch_norm_has_the_published_number_of_tensors() -> None:
    with torch.device("meta"):
        state = ResnetGenerator(uniform(8, norm="batch")).state_dict()
    assert len(state) == 140
    biases = [name for name in state if name.endswith(".bias") and state[name.replace(".bias", ".weight")].dim() == 4]
    assert biases == ["model.26.bias"], "BatchNorm takes the place of every other convolution's bias"


# -- features --------------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_published_distillation() -> None:
    ours, stock = (network.double() for network in pair(uniform(4, 9)))
    seen = {}
    for layer in (9, 12, 15, 18):
        stock.model[layer].register_forward_hook(lambda _, __, y, name=f"model.{layer}": seen.update({name: y}))
    x = images(1, 3, 16, 16, dtype=torch.float64).tanh()
    image, features = ours.forward_features(x)
    assert torch.equal(image, ours(x))
    stock(x)
    assert list(features) == list(seen) == list(ours.feature_layers)
    for name, value in features.items():
        assert value.shape == (1, 16, 4, 4)
        torch.testing.assert_close(value, seen[name])


@pytest.mark.parametrize(
    ("n_blocks", "layers"),
    [(0, [9]), (1, [9, 10]), (2, [9, 10, 11]), (3, [9, 10, 11, 12]), (4, [9, 11, 12, 13]), (6, [9, 11, 13, 15])],
)
def test_features_of_other_depths(n_blocks: int, layers: list[int]) -> None:
    generator = ResnetGenerator(uniform(2, n_blocks))
    assert generator.feature_layers == tuple(f"model.{layer}" for layer in layers)
    _, features = generator.forward_features(torch.zeros(1, 3, 16, 16))
    assert {name: value.shape[1] for name, value in features.items()} == generator.feature_channels()


# -- configurations --------------------------------------------------------------------------------------------------------


def test_eight_numbers() -> None:
    config = ResnetConfig.parse("1_2_3_4_5_6_7_8")
    assert (config.stem, config.down, config.stream, config.up, config.last) == (1, 4, 12, 14, 8)
    assert config.hidden == (16, 16, 16, 20, 20, 20, 24, 24, 24)
    assert config.separable
    assert config.n_blocks == 9
    assert config.config_str == "1_2_3_4_5_6_7_8"


def test_six_numbers() -> None:
    config = ResnetConfig.parse("1_2_3_4_5_6")
    assert config == ResnetConfig.parse("1_2_3_4_4_4_5_6")
    assert config.config_str == "1_2_3_4_4_4_5_6"


def test_six_numbers_of_the_first_released_models() -> None:
    config = ResnetConfig.parse("1_2_3_4_5_6", legacy=True)
    assert config.hidden == (16, 12, 12) * 3
    assert config.config_str is None, "no configuration of eight numbers has these widths"


@pytest.mark.parametrize(
    ("n_blocks", "hidden"),
    [(0, ()), (1, (4,)), (2, (4, 8)), (3, (4, 8, 12)), (4, (4, 4, 8, 12)), (6, (4, 4, 8, 8, 12, 12))],
)
def test_thirds_of_other_depths(n_blocks: int, hidden: tuple[int, ...]) -> None:
    inner = (1, 2, 3)[: min(3, n_blocks)]
    config = ResnetConfig.from_channels((9, 9, 9, *inner, 9, 9), n_blocks)
    assert config.hidden == hidden
    assert config.channels == (9, 9, 9, *inner, 9, 9)


def test_channels_and_widths_are_one_to_one() -> None:
    rng = random.Random(0)
    for _ in range(200):
        n_blocks = rng.randrange(13)
        channels = tuple(rng.randint(1, 9) for _ in range(5 + min(3, n_blocks)))
        config = ResnetConfig.from_channels(channels, n_blocks)
        assert config.channels == channels
        assert ResnetConfig.parse(config.config_str, n_blocks) == config


def test_widths_that_no_configuration_has() -> None:
    assert ResnetConfig(stem=8, down=15, stream=32, hidden=(32,) * 9, up=16, last=8).channels is None
    assert ResnetConfig(hidden=(256, 128) + (256,) * 7).config_str is None


def test_text_form() -> None:
    assert parse_config(" 16_8_24 ") == (16, 8, 24)
    assert format_config((16, 8, 24)) == "16_8_24"


@pytest.mark.parametrize(
    "text", ["", "16", "16_", "_16", "16__16", "16_a", "16_-8", "16_0_8", "16,8", "1.5_2", "1_9999999", "\uff11_2"]
)
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError, match="config_str="):
        ResnetConfig.parse(text)


@pytest.mark.parametrize(
    ("n_blocks", "numbers", "options", "allowed"),
    [
        (9, 7, {}, "8 or 6"),
        (9, 8, {"legacy": True}, "6"),
        (2, 8, {}, "7 or 6"),
        (1, 5, {}, "6"),
        (0, 6, {}, "5"),
    ],
)
def test_wrong_number_of_channel_counts(n_blocks: int, numbers: int, options: dict, allowed: str) -> None:
    text = "_".join(["8"] * numbers)
    with pytest.raises(ConfigError) as caught:
        ResnetConfig.parse(text, n_blocks, **options)
    assert str(caught.value) == (
        f"config_str={text!r}: has {numbers} numbers, a generator of {n_blocks} blocks takes {allowed}"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": 0}, "resnet: stem=0: expected a whole number at least 1"),
        ({"stem": 8.5}, "stem=8.5"),
        ({"stem": True}, "stem=True"),
        ({"hidden": (8, 0)}, "hidden=0"),
        ({"norm": "layer"}, "norm='layer': expected one of instance, instance_affine, batch, none"),
        ({"padding": "mirror"}, "padding='mirror': expected one of reflect, replicate, zero"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number between 0.0 and 0.99"),
        ({"dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResnetConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 18, 16), (1, 3, 16, 18), (1, 3, 4, 16), (1, 3, 0, 16)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    generator = ResnetGenerator(uniform(2, 1))
    for call in (generator, generator.forward_features):
        with pytest.raises(ConfigError, match=r"x of shape \["):
            call(torch.zeros(shape))


def test_smallest_input() -> None:
    ours, stock = pair(uniform(4, 2))
    x = images(1, 3, 8, 12).tanh()
    assert_same_network(ours, stock, x)
    assert ours(x[:0]).shape == (0, 3, 8, 12), "an empty batch is a batch"
