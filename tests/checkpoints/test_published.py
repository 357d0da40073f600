"""A published checkpoint: GAN Compression's horse-to-zebra generator, on a real photo."""

from __future__ import annotations

import copy

import pytest
import torch

import gancomp
from gancomp.cli import main
from gancomp.data import read_image, to_tensor
from gancomp.errors import CheckpointError
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.search import profile_module
from gancomp.testing import assert_accurate

from ..models import published

CONFIG = "16_16_32_16_32_32_16_16"


@pytest.fixture(scope="module")
def path(shared):
    return shared / "weights/gan_compression/horse2zebra_compressed_latest_net_G.pth"


@pytest.fixture(scope="module")
def horse(shared) -> torch.Tensor:
    photo = sorted((shared / "data/horse2zebra/testA").iterdir())[0]
    return to_tensor(read_image(photo, 3))[None]


def test_configuration_is_recognised(path) -> None:
    generator = gancomp.load_generator(path)
    assert isinstance(generator, ResnetGenerator)
    assert generator.config == ResnetConfig.parse(CONFIG)
    assert generator.config.config_str == CONFIG
    profile = profile_module(generator, (1, 3, 256, 256))
    assert (profile.params, profile.macs_published) == (356_867, 2_525_233_152)


def test_same_image_as_stock_layers(path, horse) -> None:
    stock = published.Resnet(16, 32, 128, (64,) * 3 + (128,) * 6, 32, 16, separable=True)
    stock.load_state_dict(torch.load(path, weights_only=True))
    generator = gancomp.load_generator(path)
    with torch.no_grad():
        image = generator(horse)
        assert_accurate(image, stock(horse), copy.deepcopy(stock).double()(horse.double()))
    assert image.shape == horse.shape == (1, 3, 256, 256)
    assert (image - horse).abs().mean() > 0.05, "the horse was repainted"


def test_saved_by_us_it_paints_the_same(path, horse, tmp_path) -> None:
    generator = gancomp.load_generator(path)
    generator.save(tmp_path / "zebra.safetensors", {"from": "published"})
    again = gancomp.load_generator(tmp_path / "zebra.safetensors")
    assert again.config == generator.config
    original = torch.load(path, weights_only=True)
    assert again.state_dict().keys() == original.keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in original.items())
    with torch.no_grad():
        assert torch.equal(again(horse), generator(horse))


def test_converted_it_is_recognised_and_paints_the_same(path, horse, tmp_path, capsys) -> None:
    out = tmp_path / "zebra.safetensors"
    assert main(["convert", str(path), str(out)]) == 0
    found = f"ResNet generator of 9 separable blocks, configuration {CONFIG}, InstanceNorm, with dropout layers"
    assert capsys.readouterr().out.splitlines() == [found, str(out)]
    with torch.no_grad():
        expected = gancomp.load_generator(path)(horse)
        assert torch.equal(gancomp.load_generator(out)(horse), expected)


def test_a_compressed_generator_is_no_supernet(path, tmp_path, capsys) -> None:
    out = tmp_path / "x.safetensors"
    assert main(["export", "--model", str(path), "--config-str", "16_16_16_16_16_16_16_16", "--out", str(out)]) == 2
    assert f"{path}: holds no supernet; expected one of this project, or GAN Compression's" in capsys.readouterr().err
    assert not out.exists()


def test_other_published_weights_are_no_generators(shared) -> None:
    for name in ("espnet/espnet_p2q8_camvid.pth", "mobilenet_v2/mobilenet_v2_imagenet_bnfolded.pth", "lpips_v0.1/alex.pth"):
        with pytest.raises(CheckpointError, match="not a network of a known layout"):
            gancomp.load_generator(shared / "weights" / name)
