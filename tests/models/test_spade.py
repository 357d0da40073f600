"""The SPADE generator against stock layers, in both forms of its input; its configuration; the published names and numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from gancomp import ops
from gancomp.errors import ConfigError
from gancomp.models import SpadeConfig, SpadeGenerator, build_network
from gancomp.models.stock import stock_generator
from gancomp.search import profile_module
from gancomp.testing import assert_accurate

from . import published
from .compare import assert_same_network
from .published_spade import Spade, label_map, one_hot

TEXT = "2_1_3_2_2_3_1_2"
CHANNELS = (2, 1, 3, 2, 2, 3, 1, 2)
VARIANTS = [
    {},
    {"upsampling": "normal", "separable": True},
    {"upsampling": "most", "norm": "instance"},
    {"norm": "instance", "separable": True, "out_channels": 2},
]


def pair(classes: int = 4, *, edges: bool = True, **options) -> tuple[SpadeGenerator, Spade]:
    """Our generator and the stock one with the same random weights."""
    stock = published.randomised(Spade(CHANNELS, classes + edges, **options))
    options.setdefault("separable", False)
    ours = SpadeGenerator(SpadeConfig.parse(TEXT, label_nc=classes, instance_edges=edges, **options))
    assert published.shapes(ours) == published.shapes(stock)
    ours.load_state_dict(stock.state_dict())
    return ours, stock


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_equals_the_stock_network(options: dict, training: bool) -> None:
    """Image, gradients, and in training the running statistics that are left behind."""
    ours, stock = pair(**options)
    size = ours.size_multiple
    x = one_hot(label_map(2, 4, size, size if size > 64 else 2 * size), 4)
    assert_same_network(ours.train(training), stock.train(training), x)


@pytest.mark.parametrize("options", [{}, {"separable": True, "upsampling": "normal", "edges": False}], ids=str)
def test_integer_labels_paint_what_their_one_hot_image_does(options: dict) -> None:
    ours, stock = pair(**options)
    ours.eval(), stock.eval()
    labels = label_map(2, 4, 64, 128, edges=options.get("edges", True))
    x = one_hot(labels, 4)
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(x.double())
        for dtype in (torch.uint8, torch.int32, torch.int64):
            assert_accurate(ours(labels.to(dtype)), stock(x), exact)
        assert_accurate(ours(x), stock(x), exact)


def test_integer_labels_give_the_same_gradients() -> None:
    ours, _ = pair(separable=True)
    labels = label_map(2, 4, 64, 64)
    gradients = []
    for x in (labels, one_hot(labels, 4).double()):
        network = copy.deepcopy(ours).double()
        network(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=lambda text, name=name: f"{name}: {text}")


def test_features_are_those_of_the_layers() -> None:
    ours, stock = pair()
    x = one_hot(label_map(2, 4, 64, 64), 4).double()
    image, features = ours.double().forward_features(x)
    expected = stock.double().features(x)
    assert ours.feature_layers == tuple(features) == ("head_0", "G_middle_1", "up_1")
    assert {name: f.shape[1] for name, f in features.items()} == ours.feature_channels() == {
        "head_0": 32, "G_middle_1": 32, "up_1": 12
    }  # fmt: skip
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name])
    torch.testing.assert_close(image, stock(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_stock_form(options: dict, training: bool) -> None:
    ours, _ = pair(**options)
    ours = ours.double().train(training)
    stock = stock_generator(ours)
    assert all(type(module).__module__.startswith("torch.nn") for module in stock.modules() if not list(module.children()))
    assert not {id(p) for p in ours.parameters()} & {id(p) for p in stock.parameters()}, "it has weights of its own"
    # PyTorch's InstanceNorm takes no maps of one pixel.
    size = 2 * ours.size_multiple
    x = one_hot(label_map(1, 4, size, size), 4).double()
    torch.testing.assert_close(stock(x), ours(x))


def test_modulation_is_one_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three per block, with the batch's statistics in training and the running ones at inference."""
    ours, _ = pair()
    calls = []
    fused = ops.spade_modulate
    monkeypatch.setattr(ops, "spade_modulate", lambda *args, **kwargs: calls.append(len(args)) or fused(*args, **kwargs))
    labels = label_map(2, 4, 64, 64)
    for training, arguments in ((True, 3), (False, 5)):
        calls.clear()
        ours.train(training)(labels)
        assert calls == [arguments] * (3 * 2 + 4 * 3)


@pytest.mark.parametrize("shape", [(70, 64), (64, 100), (1, 3), (200, 130)])
def test_any_size_is_translated(shape: tuple[int, int]) -> None:
    ours, _ = pair()
    labels = label_map(1, 4, 256, 256)[..., : shape[0], : shape[1]]
    image = ours.eval().translate(labels)
    assert image.shape == (1, 3, *shape)
    torch.testing.assert_close(image, ours.translate(one_hot(labels, 4)))


def test_configuration_goes_through_its_json_form() -> None:
    ours, _ = pair(upsampling="most", separable=True)
    again = build_network(ours.config_dict())
    assert isinstance(again, SpadeGenerator)
    assert again.config == ours.config
    assert published.shapes(again) == published.shapes(ours)


@pytest.mark.parametrize("upsampling", ["normal", "more", "most"])
def test_channels_and_widths_are_one_to_one(upsampling: str) -> None:
    config = SpadeConfig.parse("32_40_40_32_40_24_32_24", upsampling=upsampling)
    assert config.channels == (32, 40, 40, 32, 40, 24, 32, 24)
    assert config.config_str == "32_40_40_32_40_24_32_24"
    assert config.with_channels(config.channels) == config
    assert config.with_widths([*config.widths.values()]) == config
    assert replace(config, embed=(99, *config.embed[1:])).channels is None
    assert replace(config, stream=513).config_str is None


def test_widths_of_a_configuration() -> None:
    config = SpadeConfig.parse("1_2_3_4_5_6_7_8", upsampling="most")
    assert (config.stream, config.inner, config.up) == (16, (32, 48, 64), (40, 24, 14, 8, 4))
    assert config.embed == (4, 6, 8, 10, 12, 14, 16, 16)
    assert SpadeConfig.uniform(64) == SpadeConfig(), "the defaults are those of Cityscapes"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (256, 512)),
        ({"upsampling": "normal", "crop_size": 256, "aspect_ratio": 1.0}, (256, 256)),
        ({"upsampling": "normal", "crop_size": 256, "aspect_ratio": 4 / 3}, (192, 256)),
        ({"upsampling": "most", "up": (8, 4, 2, 1, 1), "embed": (2,) * 8, "crop_size": 1024}, (512, 1024)),
        ({"crop_size": 16}, (64, 64)),
    ],
)
def test_native_size(fields: dict, size: tuple[int, int]) -> None:
    assert SpadeConfig(**fields).native_size == size


# The released models: parameters in thousands and convolution MACs in billions, as published.
TABLE = [
    ("", False, 64, {}, 93_048, 281.277),
    ("", True, 64, {}, 70_681, 118.60),
    ("32_40_40_32_40_24_32_24", True, 0, {}, 21_003, 31.114),
    ("32_32_32_48_32_24_24_32", True, 0, {}, 20_174, 31.155),
    ("32_32_48_32_32_32_32_24", True, 0, {}, 20_425, 31.608),
    ("", False, 64, "coco", 97_481, 191.14),
    ("40_32_32_40_32_40_24_24", True, 0, "coco", 25_986, 35.415),
]
COCO = {"label_nc": 183, "upsampling": "normal", "crop_size": 256, "aspect_ratio": 1.0}


@pytest.mark.parametrize(("text", "separable", "ngf", "data", "params", "macs"), TABLE)
def test_published_sizes(text: str, separable: bool, ngf: int, data, params: int, macs: float) -> None:
    fields = {"separable": separable, **(COCO if data else {})}
    config = SpadeConfig.parse(text, **fields) if text else SpadeConfig.uniform(ngf, **fields)
    with torch.device("meta"):
        generator = SpadeGenerator(config)
    assert round(generator.num_parameters() / 1e3) == params
    profile = profile_module(generator, (1, config.in_channels, *config.native_size))
    assert profile.macs == profile.macs_published, "there is no transposed convolution"
    digits = len(str(macs).split(".")[1])
    assert round(profile.macs / 1e9, digits) == macs


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 4, 64, 64), torch.float32, r"expected floating-point one-hot maps \[N, 5, H, W\]"),
        ((1, 1, 64, 64), torch.int64, r"expected integer labels \[N, 2, H, W\]"),
        ((2, 64, 64), torch.int64, "expected integer labels"),
        ((1, 5, 64, 96), torch.float32, "multiples of 64"),
        ((1, 2, 0, 64), torch.int64, "multiples of 64"),
    ],
)
def test_wrong_input(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pair()[0](torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("value", [-1, 4, 255])
def test_a_label_that_does_not_exist(value: int) -> None:
    labels = label_map(1, 4, 64, 64)
    labels[0, 0, 3, 5] = value
    with pytest.raises(ConfigError, match="the generator knows 0 to 3"):
        pair()[0](labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": 0}, "stream=0"),
        ({"inner": (8, 8)}, r"inner=\(8, 8\): expected 3 widths"),
        ({"up": (8, 4, 2, 1, 1)}, "expected 4 widths with upsampling='more'"),
        ({"upsampling": "most"}, "expected 5 widths with upsampling='most'"),
        ({"embed": (1,) * 6}, "expected 7 widths"),
        ({"up": (8, 4, 2, 0)}, "up=0"),
        ({"norm": "none"}, "norm='none'"),
        ({"upsampling": "few"}, "upsampling='few'"),
        ({"aspect_ratio": 0.0}, "aspect_ratio=0.0"),
        ({"instance_edges": 2}, "instance_edges=2"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpadeConfig(**fields)


@pytest.mark.parametrize("text", ["8_8_8_8_8_8", "8_8_8_8_8_8_8_8_8"])
def test_wrong_number_of_channel_counts(text: str) -> None:
    with pytest.raises(ConfigError, match="a SPADE generator takes 8"):
        SpadeConfig.parse(text)


@pytest.mark.parametrize("training", [True, False])
def test_mixed_precision(training: bool) -> None:
    """Under autocast the image is that of float32 but for 16-bit rounding, and gradients are there for all weights."""
    ours, _ = pair(separable=True, norm="instance")
    ours.train(training)
    labels = label_map(2, 4, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        image = ours(labels)
    assert (image.float() - ours(labels)).abs().mean() < 0.05
    image.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters() if p.requires_grad)
