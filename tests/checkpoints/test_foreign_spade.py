"""Files of SPADE and of GAN Compression's GauGAN: every layout is built from stock layers and compared with its own forward."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import Assumptions, convert_state, load_subnetwork, load_supernet
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import Generator, SpadeConfig
from gancomp.pipeline.convert import ConvertRun, run_convert
from gancomp.testing import assert_accurate

from ..models import published
from ..models.published_spade import Spade, label_map, one_hot

LABELS = 4
UNIFORM = (1,) * 8
SUB = (2, 1, 3, 2, 2, 3, 1, 2)


def stock_of(channels: tuple[int, ...] = UNIFORM, labels: int = LABELS, **options) -> Spade:
    return published.randomised(Spade(channels, labels, **options)).eval()


def load(tmp_path: Path, state: object, **assume) -> Generator:
    torch.save(state, tmp_path / "latest_net_G.pth")
    return gancomp.load_generator(tmp_path / "latest_net_G.pth", Assumptions(**assume))


def assert_same_images(ours: Generator, stock: nn.Module, size: int = 64) -> None:
    """In floating point and in integers."""
    config = ours.config
    labels = label_map(2, config.label_nc, size, size, edges=config.instance_edges)
    x = one_hot(labels, config.label_nc)
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(x.double())
        assert_accurate(ours(x), stock(x), exact)
        assert_accurate(ours(labels), stock(x), exact)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("separable", [False, True], ids=["full", "mobile"])
def test_gan_compression(tmp_path: Path, separable: bool, norm: str) -> None:
    stock = stock_of(separable=separable, norm=norm)
    ours = load(tmp_path, stock.state_dict(), upsampling="more")
    assert ours.config == SpadeConfig.uniform(
        1, separable=separable, norm=norm, label_nc=LABELS - 1, crop_size=256, aspect_ratio=1.0
    )
    assert not ours.training
    assert_same_images(ours, stock)


@pytest.mark.parametrize("spectral", ["hook", "parametrization"])
@pytest.mark.parametrize("upsampling", ["normal", "more", "most"])
def test_spade(tmp_path: Path, upsampling: str, spectral: str) -> None:
    """Its label maps are made 128 wide at any base width; here 6. Spectral norm is in both of PyTorch's styles."""
    stock = stock_of((2,) * 8, upsampling=upsampling, spectral=spectral, hidden=6)
    keys = {name.split("conv_0.", 1)[1] for name in stock.state_dict() if name.startswith("head_0.conv_0.")}
    assert keys == {"bias", *{
        "hook": ("weight_orig", "weight_u", "weight_v"),
        "parametrization": ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
    }[spectral]}  # fmt: skip
    for _ in range(3):
        with torch.no_grad():
            stock.train()(torch.randn(2, LABELS, 128, 128))
    assume = {} if upsampling == "most" else {"upsampling": upsampling}
    ours = load(tmp_path, {f"module.{name}": tensor for name, tensor in stock.eval().state_dict().items()}, **assume)
    assert (ours.config.upsampling, ours.config.stream, set(ours.config.embed)) == (upsampling, 32, {6})
    assert ours.config.channels is None
    assert_same_images(ours, stock, 128)


def test_spectral_norm_that_kept_one_vector(tmp_path: Path) -> None:
    """PyTorch 0.4 saved no ``weight_v``."""
    stock = stock_of(spectral="hook")
    with torch.no_grad():
        for _ in range(20):
            stock.train()(torch.randn(2, LABELS, 64, 64))
    state = {name: tensor for name, tensor in stock.eval().state_dict().items() if not name.endswith("weight_v")}
    ours = load(tmp_path, state, upsampling="more")
    x = one_hot(label_map(1, 3, 64, 64), 3)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("missing", ["up_1.conv_s.weight_u", "head_0.conv_1.weight_u"])
def test_spectral_norm_without_its_vectors(missing: str) -> None:
    state = stock_of(spectral="hook").state_dict()
    del state[missing]
    with pytest.raises(CheckpointError, match="is under spectral norm, but the vectors that go with it are missing"):
        convert_state(state)


@pytest.mark.parametrize("wide", [None, 3, 5])
def test_compressed_with_statistics_of_the_supernets_width(tmp_path: Path, wide: int | None) -> None:
    stock = stock_of(SUB, separable=True, statistics=wide)
    state = stock.state_dict()
    assert len(state["up_1.norm_0.param_free_norm.running_mean"]) == (8 * wide if wide else 16)
    ours = load(tmp_path, state, upsampling="more")
    assert ours.config == SpadeConfig.from_channels(SUB, label_nc=LABELS - 1, crop_size=256, aspect_ratio=1.0)
    assert ours.config.config_str == "2_1_3_2_2_3_1_2"
    assert_same_images(ours, stock)
    found = convert_state(state).found
    assert found == (
        "SPADE generator with separable modulations, configuration 2_1_3_2_2_3_1_2, 3 classes and edges, upsampling normal, "
        "BatchNorm on running statistics" + (", statistics of the supernet's width cut" if wide else "")
    )


def test_a_sub_network_of_a_published_supernet(tmp_path: Path) -> None:
    """A supernet's file is that of a separable generator; the configuration is its user's to know."""
    supernet = stock_of((3,) * 8, separable=True)
    torch.save(supernet.state_dict(), tmp_path / "super.pth")
    ours = load_subnetwork(tmp_path / "super.pth", SUB)
    stock = Spade(SUB, LABELS, separable=True, upsampling="normal").eval()
    full = supernet.state_dict()
    stock.load_state_dict({name: full[name][tuple(map(slice, t.shape))] for name, t in stock.state_dict().items()})
    assert_same_images(ours, stock)
    with pytest.raises(ConfigError, match="above the supernet's"):
        load_subnetwork(tmp_path / "super.pth", (4,) * 8)
    torch.save(stock.state_dict(), tmp_path / "sub.pth")
    with pytest.raises(CheckpointError, match="holds no supernet"):
        load_subnetwork(tmp_path / "sub.pth", UNIFORM)


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (36, {"label_nc": 35, "instance_edges": True, "upsampling": "more", "crop_size": 512, "aspect_ratio": 2.0}),
        (184, {"label_nc": 183, "instance_edges": True, "upsampling": "normal", "crop_size": 256, "aspect_ratio": 1.0}),
        (151, {"label_nc": 151, "instance_edges": False, "upsampling": "normal", "crop_size": 256, "aspect_ratio": 1.0}),
    ],
)
def test_published_label_maps_are_known_by_their_channels(labels: int, config: dict) -> None:
    state = stock_of(labels=labels).state_dict()
    assert convert_state(state).config == SpadeConfig.uniform(1, **config)
    said = Assumptions(upsampling="normal", edges="no", crop_size=320, aspect_ratio=1.5)
    assert convert_state(state, said).config == SpadeConfig.uniform(
        1, label_nc=labels, instance_edges=False, upsampling="normal", crop_size=320, aspect_ratio=1.5
    )
    assert convert_state(state, Assumptions(edges="yes", upsampling="more")).config.label_nc == labels - 1


@pytest.mark.parametrize(
    ("assume", "message"),
    [
        ({"dropout": 0.5}, "has no dropout layers"),
        ({"input_range": "unit"}, "takes labels"),
        ({"output_range": "unit"}, "ends in a tanh"),
    ],
)
def test_assumptions_that_it_cannot_fulfil(assume: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_state(stock_of().state_dict(), Assumptions(**assume))


def test_upsampling_that_the_tensors_contradict() -> None:
    with pytest.raises(ConfigError, match="upsampling='more': a generator with a block up_4 doubles its smallest map 7 times"):
        convert_state(stock_of((2,) * 8, upsampling="most").state_dict(), Assumptions(upsampling="more"))


def test_other_networks_take_no_label_maps() -> None:
    with pytest.raises(ConfigError, match="edges='no': this network takes no label maps"):
        convert_state(published.resnet(2, 1).state_dict(), Assumptions(edges="no"))


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = stock_of().state_dict() | {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return {name: tensor for name, tensor in state.items() if name not in tensors or tensors[name] is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: changed(**{"fc.weight": torch.zeros(256, 256)}), "start from an image encoder's code"),
        (lambda: changed(**{"fc.weight": torch.zeros(16, 4, 5, 5)}), "3x3 convolutions only"),
        (lambda: changed(**{"fc.weight": None}), "tensor fc.weight is missing"),
        (lambda: changed(**{"up_5.conv_0.weight": torch.zeros(1, 1, 3, 3)}), r"blocks up_N with N in \[0, 1, 2, 3, 5\]"),
        (lambda: changed(**{"up_2.conv_1.weight": None}), "up_2.conv_1.weight is missing"),
    ],
)
def test_what_is_no_spade_generator(state, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_state(state())


@pytest.mark.parametrize("name", ["up_3.norm_s.param_free_norm.running_mean", "head_0.norm_1.param_free_norm.running_var"])
def test_statistics_that_are_too_narrow(tmp_path: Path, name: str) -> None:
    state = changed(**{name: torch.ones(1)})
    with pytest.raises(CheckpointError, match="tensors do not fit a spade network"):
        load(tmp_path, state)


def test_statistics_without_their_count(tmp_path: Path) -> None:
    stock = stock_of()
    state = {name: tensor for name, tensor in stock.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert_same_images(load(tmp_path, state, upsampling="more"), stock)


def test_a_published_supernet_is_converted_with_its_space(tmp_path: Path) -> None:
    torch.save(stock_of((2,) * 8, separable=True).state_dict(), tmp_path / "super.pth")
    converted = run_convert(ConvertRun(str(tmp_path / "super.pth"), str(tmp_path / "s.safetensors"), space="2,1"))
    assert "separable modulations, base width 2" in converted.found
    supernet = load_supernet(converted.path)
    assert supernet.space.choices == ((2, 1),) * 8
    with pytest.raises(ConfigError, match="its batch statistics are not known"):
        supernet.extract(supernet.space.smallest)
    with pytest.raises(ConfigError, match="expected the largest widths of space 'spade-channels-48'"):
        run_convert(ConvertRun(str(tmp_path / "super.pth"), str(tmp_path / "s.safetensors"), space="channels-48"))
