"""Files of this project: they come back bit for bit, and whatever is wrong with one is a single clear line."""

from __future__ import annotations

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import gancomp
from gancomp.checkpoints import load_network, read_metadata, read_weights
from gancomp.errors import CheckpointError
from gancomp.models import (
    DiscriminatorConfig,
    Network,
    PatchDiscriminator,
    ResnetConfig,
    ResnetGenerator,
    UnetConfig,
    UnetGenerator,
)
from gancomp.testing import images

from ..models import published

NETWORKS = {
    "resnet": lambda: ResnetGenerator(ResnetConfig.uniform(4, 2)),
    "compressed": lambda: ResnetGenerator(ResnetConfig.parse("4_3_2_4_5_3_2_3")),
    "legacy": lambda: ResnetGenerator(ResnetConfig.parse("4_3_2_4_5_3", legacy=True)),
    "batch": lambda: ResnetGenerator(ResnetConfig.uniform(4, 2, norm="batch")),
    "affine": lambda: ResnetGenerator(ResnetConfig.uniform(4, 1, norm="instance_affine", in_channels=1)),
    "zero": lambda: ResnetGenerator(ResnetConfig.uniform(4, 2, padding="zero", norm="none", dropout=0.25)),
    "unet": lambda: UnetGenerator(UnetConfig(2, 5)),
    "unet instance": lambda: UnetGenerator(UnetConfig(2, 5, norm="instance", dropout=0.0)),
    "patch": lambda: PatchDiscriminator(DiscriminatorConfig(3, ndf=2, n_layers=2)),
    "pixel": lambda: PatchDiscriminator(DiscriminatorConfig(3, ndf=2, n_layers=0, norm="batch")),
}


def make(name: str = "resnet") -> Network:
    return published.randomised(NETWORKS[name]()).eval()


def assert_one_line(caught: pytest.ExceptionInfo, path: object) -> None:
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("name", NETWORKS)
def test_comes_back_bit_for_bit(tmp_path, name: str) -> None:
    network = make(name)
    network.save(tmp_path / "n.safetensors", {"by": "test"})
    again = load_network(tmp_path / "n.safetensors")
    assert type(again) is type(network)
    assert again.config == network.config
    assert not again.training
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in again.state_dict().items())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in again.parameters())
    x = images(1, network.config.in_channels, 32, 32).tanh()
    assert torch.equal(again(x), network(x))


def test_saved_again_it_is_the_same_file(tmp_path) -> None:
    make().save(tmp_path / "a.safetensors", {"by": "test"})
    gancomp.load_generator(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors", {"by": "test"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_file_may_change_after_loading(tmp_path) -> None:
    path = tmp_path / "n.safetensors"
    network = make()
    network.save(path)
    again = gancomp.load_generator(path)
    path.write_bytes(bytes(path.stat().st_size))
    x = images(1, 3, 16, 16).tanh()
    assert torch.equal(again(x), network(x))


def test_memory_layout_of_the_saved_network_is_its_own_affair(tmp_path) -> None:
    network = make().to(memory_format=torch.channels_last)
    network.save(tmp_path / "n.safetensors")
    again = gancomp.load_generator(tmp_path / "n.safetensors")
    assert all(tensor.is_contiguous() for tensor in again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_as_float32(tmp_path, dtype: torch.dtype) -> None:
    network = make("batch").to(dtype)
    network.save(tmp_path / "n.safetensors")
    again = gancomp.load_generator(tmp_path / "n.safetensors")
    for name, tensor in again.state_dict().items():
        expected = network.state_dict()[name]
        assert tensor.dtype == (torch.float32 if expected.is_floating_point() else torch.int64)
        assert torch.equal(tensor, expected.to(tensor.dtype))


def test_metadata(tmp_path) -> None:
    make().save(tmp_path / "n.safetensors", {"by": "test"})
    metadata = read_metadata(tmp_path / "n.safetensors")
    assert json.loads(metadata["gancomp.provenance"]) == {"by": "test"}
    assert read_weights(tmp_path / "n.safetensors")[1] == metadata
    assert read_metadata(tmp_path / "n.pth") == {}
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(tmp_path / "none.safetensors")


def test_a_discriminator_is_no_generator(tmp_path) -> None:
    make("patch").save(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match=r"d\.safetensors: holds a 'patch' network, expected a generator"):
        gancomp.load_generator(tmp_path / "d.safetensors")


def test_no_such_file(tmp_path) -> None:
    for path in (tmp_path / "none.pth", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such file") as caught:
            gancomp.load_generator(path)
        assert_one_line(caught, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path) -> None:
    path = tmp_path / "n.safetensors"
    make().save(path)
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        gancomp.load_generator(path)


def damage(path, mangle) -> None:
    """Change the metadata or the tensors of a file that is otherwise whole."""
    tensors, metadata = load_file(path), read_metadata(path)
    mangle(tensors, metadata)
    save_file(tensors, path, metadata)


def set_config(**fields):
    def mangle(tensors, metadata):
        metadata["gancomp.config"] = json.dumps({**json.loads(metadata["gancomp.config"]), **fields})

    return mangle


@pytest.mark.parametrize(
    ("mangle", "message"),
    [
        (lambda t, m: m.update({"gancomp.config": "{"}), "metadata gancomp.config is not valid JSON"),
        (lambda t, m: m.update({"gancomp.config": "[1]"}), "metadata gancomp.config: expected an object, got list"),
        (set_config(arch="stylegan"), "arch='stylegan': expected one of"),
        (set_config(arch="unet"), "config of unet: unknown fields"),
        (set_config(colour=1), "config of resnet: unknown fields colour"),
        (set_config(stem="4"), "stem='4': expected a whole number"),
        (set_config(stem=4.0), "stem=4.0: expected a whole number"),
        (set_config(stem=8), "tensors do not fit a resnet network"),
        (set_config(hidden=[16]), "tensors do not fit a resnet network"),
        (set_config(norm="batch"), "tensors do not fit a resnet network (Missing key(s)"),
        (
            lambda t, m: t.pop("model.4.bias"),
            'tensors do not fit a resnet network (Missing key(s) in state_dict: "model.4.bias"',
        ),
        (lambda t, m: t.update({"model.99.weight": torch.zeros(3)}), 'Unexpected key(s) in state_dict: "model.99.weight"'),
        (lambda t, m: t.update({"model.4.bias": torch.zeros(7)}), "size mismatch for model.4.bias"),
    ],
)
def test_damaged_contents(tmp_path, mangle, message: str) -> None:
    path = tmp_path / "n.safetensors"
    make().save(path)
    damage(path, mangle)
    with pytest.raises(CheckpointError) as caught:
        gancomp.load_generator(path)
    assert message in str(caught.value)
    assert_one_line(caught, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"", b"x", b"hello, this is no network\n", b"<!DOCTYPE html><html></html>", bytes(1000)])
def test_files_that_are_something_else(tmp_path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"n{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as weights") as caught:
        gancomp.load_generator(path)
    assert_one_line(caught, path)


def files(tmp_path) -> dict[str, bytes]:
    """The same small network in every format there is."""
    network = make()
    network.save(tmp_path / "new.safetensors")
    torch.save(network.state_dict(), tmp_path / "zip.pth")
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}


def test_truncated_files(tmp_path) -> None:
    for name, data in files(tmp_path).items():
        for length in [*range(1, 40), *(len(data) * k // 16 for k in range(1, 16)), len(data) - 1]:
            path = tmp_path / f"cut-{name}"
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError) as caught:
                gancomp.load_generator(path)
            assert_one_line(caught, path)


@pytest.mark.filterwarnings("error")
def test_flipped_bytes_are_an_error_or_another_network_but_never_a_crash(tmp_path) -> None:
    rng = random.Random(0)
    outcomes = set()
    for name, data in files(tmp_path).items():
        head = 4000 if name == "new.safetensors" else len(data)
        for _ in range(60):
            changed = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                changed[rng.randrange(head)] = rng.randrange(256)
            path = tmp_path / f"flip-{name}"
            path.write_bytes(changed)
            try:
                loaded = gancomp.load_generator(path)
            except CheckpointError:
                outcomes.add("refused")
            else:
                assert loaded(torch.zeros(1, loaded.config.in_channels, 8, 8)).shape[2:] == (8, 8)
                outcomes.add("loaded")
    assert outcomes == {"refused", "loaded"}
