"""Costs against the published tables of released models, against stock layers and against measured facts."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from gancomp.errors import ConfigError
from gancomp.metrics import Runner, random_images
from gancomp.models import ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.models.stock import stock_generator
from gancomp.nn import SlicedConv2d, SlicedConvTranspose2d, SlicedDepthwiseConv2d
from gancomp.search import CostModel, Limits, profile_module
from gancomp.supernet import SPACES, SearchSpace, Supernet

SHAPE = (1, 3, 256, 256)
parse, uniform = ResnetConfig.parse, ResnetConfig.uniform

# Released generators at 256x256: parameters, MACs as published, the same with InstanceNorms, true MACs; a text is a printed
# figure in millions (parameters) or billions (MACs).
RELEASED = [
    ("teacher", uniform(64), 11_378_179, 56_799_264_768, None, "49.6"),
    ("mobile 64", uniform(64, separable=True), 1_987_075, "18.314", None, "11.07"),
    ("mobile 96", uniform(96, separable=True), 4_418_307, "40.155", None, None),
    ("mobile 48", uniform(48, separable=True), 1_130_883, "10.565", None, "6.49"),
    ("mobile 32", uniform(32, separable=True), 514_307, "4.929", None, "3.12"),
    ("horse2zebra", parse("16_16_32_16_32_32_16_16"), 356_867, 2_525_233_152, "2.546", "1.846"),
    ("horse2zebra fast", parse("16_16_24_16_32_64_16_24"), 355_235, 2_618_425_344, "2.641", "1.939"),
    ("horse2zebra paper", parse("24_24_24_32_20_16"), 341_627, 2_649_096_192, "2.670", None),
    ("edges2shoes", parse("32_32_48_32_48_48_16_16"), 822_051, 4_961_599_488, 4_993_843_200, "4.056"),
    ("edges2shoes fast", parse("24_24_40_56_24_56_16_40"), 702_835, 4_831_838_208, "4.863", "3.699"),
    ("edges2shoes paper", parse("32_32_40_48_16_32", legacy=True), 699_875, 4_777_967_616, "4.809", "3.759"),
    ("cityscapes", parse("32_32_48_32_32_48_24_24"), 780_819, 5_560_074_240, "5.592", "4.031"),
    ("cityscapes fast", parse("16_24_48_56_40_48_24_16"), 886_307, 5_418_516_480, "5.451", "4.060"),
    ("cityscapes fast, as printed", parse("32_32_48_32_64_40_16_32"), "0.867", None, "5.61", None),
    ("cityscapes paper", parse("48_32_40_40_24_32"), 707_347, 5_633_212_416, "5.665", "4.104"),
    ("cityscapes paper, legacy", parse("48_32_40_40_24_32", legacy=True), 707_347, 5_633_212_416, "5.665", "4.104"),
    ("map2sat", parse("32_32_48_32_48_32_16_16"), 746_211, 4_652_531_712, "4.683", "3.747"),
    ("map2sat fast", parse("16_16_40_40_40_64_24_16"), 719_507, 4_539_678_720, "4.570", "3.351"),
    ("map2sat fast, as printed", parse("32_32_48_40_32_32_16_16"), "0.708", None, "4.53", None),
    ("uniform 16", parse("16_16_16_16_16_16_16_16"), 137_347, 1_407_713_280, "1.4206", "0.955"),
    ("uniform 12", parse("12_12_12_12_12_12_12_12"), 80_547, "0.8576", None, "0.603"),
    ("uniform 8", parse("8_8_8_8_8_8_8_8"), 38_723, "0.4396", None, "0.326"),
    ("other 1", parse("32_32_40_40_40_64_16_16"), "0.756", None, "4.612", None),
    ("other 2", parse("32_32_48_40_64_40_16_32"), None, None, None, None),
    ("other 3", parse("24_16_32_16_32_64_16_24"), None, None, "3.310", None),
    ("other 4", parse("32_32_40_48_48_48_24_24"), None, None, None, None),
]


def by_hand(config: ResnetConfig) -> tuple[int, int, int, int]:
    """Parameters, MACs as published, the same with InstanceNorms, and true MACs, to the unit, by multiplication."""
    full, half, quarter = 256 * 256, 128 * 128, 64 * 64
    rows = [  # weights, bias, positions as published, true positions, whether a norm follows
        (3 * config.stem * 49, config.stem, full, full, True),
        (config.stem * config.down * 9, config.down, half, half, True),
        (config.down * config.stream * 9, config.stream, quarter, quarter, True),
        (config.stream * config.up * 9, config.up, half, quarter, True),
        (config.up * config.last * 9, config.last, full, half, True),
        (config.last * 3 * 49, 3, full, full, False),
    ]
    for hidden in config.hidden:
        for inputs, outputs in ((config.stream, hidden), (hidden, config.stream)):
            if config.separable:
                rows += [(inputs * 9, inputs, quarter, quarter, True), (inputs * outputs, outputs, quarter, quarter, True)]
            else:
                rows += [(inputs * outputs * 9, outputs, quarter, quarter, True)]
    params, published, norms, true = 0, 0, 0, 0
    for weights, bias, positions, true_positions, norm in rows:
        params += weights + bias
        published += weights * positions
        true += weights * true_positions
        norms += bias * positions if norm else 0
    return params, published, published + norms, true


def assert_figure(value: int, figure: int | str | None, unit: float = 1e9) -> None:
    """Equal to an exact number, or to a printed one in its digits."""
    if isinstance(figure, str):
        assert f"{value / unit:.{len(figure.split('.')[1])}f}" == figure
    elif figure is not None:
        assert value == figure


@pytest.mark.parametrize(
    ("config", "params", "published", "with_norm", "true"), [pytest.param(*row[1:], id=row[0]) for row in RELEASED]
)
def test_released_models(config, params, published, with_norm, true):
    with torch.device("meta"):
        generator = ResnetGenerator(config)
    profile = profile_module(generator, SHAPE)
    profile_with_norm = profile_module(generator, SHAPE, count_norm=True)
    counts = (profile.params, profile.macs_published, profile_with_norm.macs_published, profile.macs)
    assert counts == by_hand(config)
    assert_figure(profile.params, params, 1e6)
    assert_figure(profile.macs_published, published)
    assert_figure(profile_with_norm.macs_published, with_norm)
    assert_figure(profile.macs, true)
    assert sum(layer.params for layer in profile.layers) == profile.params
    assert sum(layer.macs for layer in profile.layers) == profile.macs


def test_unet_of_pix2pix():
    with torch.device("meta"):
        profile = profile_module(UnetGenerator(UnetConfig(64, 8)), SHAPE)
    assert f"{profile.params / 1e6:.3f}" == "54.414"
    # The outermost down-convolution: 128 x 128 outputs of 64 channels, 3 x 4 x 4 products each.
    assert profile.layers[0].macs == 128 * 128 * 64 * 3 * 16
    assert sum(layer.params for layer in profile.layers) == profile.params  # the norms' parameters are listed too


@pytest.mark.parametrize(
    "options", [{}, {"norm": "batch"}, {"norm": "instance_affine"}, {"separable": False}, {"padding": "zero"}]
)
def test_equal_to_stock_layers(options):
    generator = ResnetGenerator(parse("8_8_12_8_16_8_4_6", 4, **options))
    ours = profile_module(generator, (2, 3, 32, 40), count_norm=True)
    stock = profile_module(stock_generator(generator), (2, 3, 32, 40), count_norm=True)
    assert (ours.params, ours.macs, ours.macs_published) == (stock.params, stock.macs, stock.macs_published)


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "published"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (2, 6, 8, 8), 2 * 8 * 4 * 4 * 3 * 9, None),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), (1, 6, 5, 5), 6 * 25 * 4 * 9, 4 * 100 * 6 * 9),
        (nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2), (1, 6, 5, 5), 6 * 25 * 2 * 16, 4 * 100 * 3 * 16),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 3, 2, 2), 3 * 12 * 5, None),
        (SlicedDepthwiseConv2d(8), (1, 5, 6, 7), 5 * 42 * 9, None),
        (SlicedDepthwiseConv2d(8, "replicate"), (1, 8, 6, 7), 8 * 42 * 9, None),
    ],
)
def test_layers_by_hand(layer, shape, macs, published):
    profile = profile_module(layer, shape)
    assert (profile.macs, profile.macs_published) == (macs, published or macs)


def test_counts_the_channels_that_flow():
    conv, up = SlicedConv2d(8, 8, 3, padding=1), SlicedConvTranspose2d(8, 8, 2, stride=2)
    conv.active_out_channels, up.active_out_channels = 5, 3
    profile = profile_module(nn.Sequential(conv, up), (1, 2, 4, 4))
    assert [layer.macs for layer in profile.layers] == [5 * 16 * 2 * 9, 5 * 16 * 3 * 4]
    assert profile.layers[1].macs_published == 3 * 64 * 5 * 4


def test_a_layer_used_twice_runs_twice_and_is_stored_once():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    profile = profile_module(nn.Sequential(conv, conv), (1, 4, 2, 2))
    assert (profile.params, profile.macs) == (16, 2 * 4 * 4 * 4)
    assert [layer.params for layer in profile.layers] == [16, 0]


def test_module_is_left_as_it_is():
    generator = ResnetGenerator(uniform(4, 2)).train()
    before = copy.deepcopy(generator.state_dict())
    profile_module(generator, (1, 3, 16, 16))
    assert generator.training
    assert not any(module._forward_hooks for module in generator.modules())
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert generator(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
def test_needs_no_kernel(monkeypatch, backend):
    expected = profile_module(ResnetGenerator(uniform(4, 2, separable=True)), (1, 3, 16, 16))
    monkeypatch.setenv("GANCOMP_BACKEND", backend)
    with torch.device("meta"):
        generator = ResnetGenerator(uniform(4, 2, separable=True))
    assert profile_module(generator, (1, 3, 16, 16)) == expected


def test_runs_for_real_what_has_no_shape_rule():
    class OnlyReal(nn.Conv2d):
        def forward(self, x):
            if x.is_meta:
                raise NotImplementedError("no kernel for meta tensors")
            return super().forward(x)

    assert profile_module(OnlyReal(3, 4, 1), (1, 3, 5, 5)).macs == 25 * 12
    with torch.device("meta"):
        assert profile_module(OnlyReal(3, 4, 1), (1, 3, 5, 5)).macs == 25 * 12


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 3, 0, 16), (1, 4, 16, 16), (1, 3, 18, 16)])
def test_bad_input_shape(shape):
    with pytest.raises(ConfigError, match="shape"):
        profile_module(ResnetGenerator(uniform(4, 1)), shape)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    space = SearchSpace.parse("12,8,4;12,8;16,12;12,8;12;8,4;8,4;12,4", 8)
    return Supernet(space, 4)


def counts(profile) -> dict[str, float]:
    return {"macs": profile.macs, "macs_published": profile.macs_published, "params": profile.params}


@pytest.mark.parametrize("name", SPACES)
def test_cost_model_of_published_spaces(name):
    with torch.device("meta"):
        supernet = Supernet(SPACES[name])
    cost, rng = CostModel(supernet, SHAPE), random.Random(0)
    for config in (supernet.space.largest, supernet.space.smallest, supernet.space.sample(rng), supernet.space.sample(rng)):
        assert cost(config) == counts(profile_module(supernet.extract(config), SHAPE))


@pytest.mark.parametrize("fields", [{}, {"separable": False}, {"norm": "none"}, {"in_channels": 5, "out_channels": 2}])
def test_cost_model_everywhere(supernet, fields):
    net = Supernet(supernet.space, 4, **{"separable": True, **fields})
    net.set(net.space.smallest)
    shape = (2, net.generator.config.in_channels, 16, 24)
    cost = CostModel(net, shape)
    for config in random.Random(1).sample(list(net.space), 12):
        assert cost(config) == counts(profile_module(net.extract(config), shape))
    assert net.active == net.space.smallest


def test_cost_model_refuses_strangers(supernet):
    cost = CostModel(supernet, (1, 3, 16, 16))
    with pytest.raises(ConfigError, match="slot 1"):
        cost((12, 10, 16, 12, 12, 8, 8, 12))
    with pytest.raises(ConfigError, match="shape"):
        CostModel(supernet, (1, 3, 18, 16))


def test_latency_is_measured_once_per_configuration_and_threads(supernet, monkeypatch):
    import gancomp.search.cost as module

    measured = []

    def measure(contenders, **options):
        measured.append(contenders["generator"]().shape)
        return real(contenders, **options)

    real = module.measure_latency
    monkeypatch.setattr(module, "measure_latency", measure)
    cost = CostModel(supernet, (1, 3, 16, 16), runner=Runner(torch.device("cpu"), reason="a test"), rounds=3)
    first = cost(supernet.space.smallest)
    assert first["latency_ms"] > 0
    assert cost(supernet.space.smallest) == first
    assert measured == [(1, 3, 16, 16)]
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    cost(supernet.space.smallest)
    assert len(measured) == 2


def test_latency_is_that_of_the_runner(supernet, monkeypatch):
    import gancomp.search.cost as module

    timed = []

    def measure(contenders, **options):
        timed.append(contenders["generator"]())
        return real(contenders, **options)

    real = module.measure_latency
    monkeypatch.setattr(module, "measure_latency", measure)
    engine, config = Runner.choose(supernet.extract(supernet.space.smallest)), supernet.space.largest
    for runner in (engine, Runner(torch.device("cpu"))):
        CostModel(supernet, (1, 3, 16, 16), runner=runner, rounds=1)(config)
    x = random_images((1, 3, 16, 16))
    with torch.inference_mode():
        expected = engine.candidate(supernet, config)(x), supernet.extract(config).eval()(x)
    assert not torch.equal(*expected), "they differ in the last bits"
    assert all(torch.equal(a, b) for a, b in zip(timed, expected, strict=True))


def test_latency_of_a_sub_network_that_is_not_finite(supernet):
    broken = copy.deepcopy(supernet)
    with torch.no_grad():
        broken.generator.model[1].weight[-1] = float("nan")
    runner = Runner.choose(broken.extract(broken.space.smallest))
    assert CostModel(broken, (1, 3, 16, 16), runner=runner, rounds=1)(broken.space.largest)["latency_ms"] > 0
    assert broken.generator.model[1].weight[-1].isnan().all(), "left as it is"


def test_latency_is_not_measured_beyond_other_limits(supernet):
    limits = Limits(macs=CostModel(supernet, (1, 3, 16, 16))(supernet.space.smallest)["macs"], latency_ms=1e4)
    cost = CostModel(supernet, (1, 3, 16, 16), runner=Runner(torch.device("cpu")), rounds=1, limits=limits)
    assert "latency_ms" not in cost(supernet.space.largest)
    assert "latency_ms" in cost(supernet.space.smallest)
    assert not limits.allows(cost(supernet.space.largest))
