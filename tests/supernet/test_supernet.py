"""The supernet: the active sub-network is the extracted one, nothing is copied, what is inactive does not matter."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import gancomp
from gancomp.checkpoints import load_supernet
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.supernet import SPACES, SearchSpace, Supernet
from gancomp.testing import allocations, images

from ..models import published

SPACE = SearchSpace.parse("12,8,4;12,8;16,12,4;12,8;12,4;8,4;8,4;12,4", 8)
VARIANTS = [
    {},
    {"separable": False},
    {"norm": "none"},
    {"padding": "replicate"},
    {"padding": "zero", "separable": False},
    {"in_channels": 1, "out_channels": 2},
]


def make(n_blocks: int = 4, **fields) -> Supernet:
    supernet = Supernet(SPACE, n_blocks, **{"separable": True, **fields})
    published.randomised(supernet)
    return supernet


def some_configs(count: int = 6) -> list[tuple[int, ...]]:
    rng = random.Random(3)
    return [SPACE.largest, SPACE.smallest, *(SPACE.sample(rng) for _ in range(count))]


@pytest.mark.parametrize("fields", VARIANTS)
def test_active_sub_network_is_the_extracted_one(fields: dict) -> None:
    supernet = make(**fields)
    x = images(2, supernet.generator.config.in_channels, 16, 20).tanh()
    for config in some_configs():
        supernet.set(config)
        extracted = supernet.extract(config)
        assert supernet.active == config
        assert extracted.config == replace(ResnetConfig.from_channels(config, 4), **{"separable": True, **fields}), (
            "the widths that the configuration says"
        )
        image, features = supernet.forward_features(x)
        alone, features_alone = extracted.forward_features(x)
        assert torch.equal(image, alone)
        assert torch.equal(supernet(x), alone)
        assert features.keys() == features_alone.keys()
        assert all(torch.equal(features[name], features_alone[name]) for name in features)


def test_extracted_weights_are_prefix_slices_and_copies() -> None:
    supernet = make()
    small = supernet.extract(SPACE.smallest)
    full = supernet.generator.state_dict()
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, full[name][tuple(slice(0, size) for size in tensor.shape)]), name
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4, f"{name} owns its memory"
    assert not {p.untyped_storage().data_ptr() for p in small.parameters()} & {
        p.untyped_storage().data_ptr() for p in supernet.parameters()
    }


@pytest.mark.parametrize("fields", VARIANTS)
def test_the_file_of_a_sub_network_without_building_it(fields: dict, tmp_path) -> None:
    supernet = make(**fields)
    for config in some_configs(2):
        supernet.extract(config).save(tmp_path / "cut.safetensors")
        assert supernet.extract_bytes(config) == (tmp_path / "cut.safetensors").read_bytes()
    assert supernet.active == SPACE.largest


def test_choosing_copies_and_allocates_nothing() -> None:
    supernet = make()
    before = {name: (p.data_ptr(), p.shape) for name, p in supernet.named_parameters()}
    configs = some_configs(20)
    assert allocations(lambda: [supernet.set(config) for config in configs]) == []
    assert {name: (p.data_ptr(), p.shape) for name, p in supernet.named_parameters()} == before


def poison_inactive(supernet: Supernet, config: tuple[int, ...]) -> None:
    """Fill everything outside the slices of ``config`` with NaN."""
    shapes = published.shapes(supernet.extract(config))
    with torch.no_grad():
        for name, parameter in supernet.generator.named_parameters():
            if not parameter.requires_grad:  # a bias before a norm
                assert name.endswith("bias")
                continue
            active = tuple(slice(0, size) for size in shapes[name])
            kept = parameter[active].clone()
            parameter.fill_(float("nan"))
            parameter[active] = kept


@pytest.mark.parametrize("fields", VARIANTS)
def test_inactive_channels_do_not_matter(fields: dict) -> None:
    """Neither to the image nor to gradients, and their own gradients are zero, not absent."""
    for config in some_configs(2)[1:]:
        supernet = make(**fields)
        extracted = supernet.extract(config)
        poison_inactive(supernet, config)
        supernet.set(config)
        x = images(2, supernet.generator.config.in_channels, 16, 20).tanh()
        y, alone = supernet(x), extracted(x)
        assert torch.equal(y, alone)
        y.square().mean().backward()
        alone.square().mean().backward()
        expected = {name: parameter.grad for name, parameter in extracted.named_parameters()}
        for name, parameter in supernet.generator.named_parameters():
            if not parameter.requires_grad:  # a bias before a norm
                assert name.endswith("bias")
                continue
            active = tuple(slice(0, size) for size in expected[name].shape)
            assert torch.equal(parameter.grad[active], expected[name]), name
            outside = parameter.grad.clone()
            outside[active] = 0
            assert torch.equal(outside, torch.zeros_like(parameter)), name


def test_gradients_of_several_sub_networks_add_up() -> None:
    """The sandwich rule runs several sub-networks before one backward pass."""
    supernet = make().double()
    x = images(1, 3, 16, 16, dtype=torch.float64).tanh()
    configs = some_configs(1)
    singles = []
    for config in configs:
        supernet.set(config)
        supernet(x).square().sum().backward()
        singles.append({name: p.grad.clone() for name, p in supernet.named_parameters() if p.requires_grad})
        supernet.zero_grad()
    outputs = []
    for config in configs:
        supernet.set(config)
        outputs.append(supernet(x))
    sum(y.square().sum() for y in outputs).backward()
    for name in singles[0]:
        torch.testing.assert_close(supernet.get_parameter(name).grad, sum(single[name] for single in singles))


def test_sampling_makes_the_sample_active() -> None:
    supernet, rng = make(), random.Random(0)
    for _ in range(5):
        config = supernet.sample(rng, 2.0)
        assert supernet.active == config
        assert torch.equal(supernet(torch.zeros(1, 3, 8, 8)), supernet.extract(config)(torch.zeros(1, 3, 8, 8)))


def test_supernet_is_the_published_one_at_its_largest() -> None:
    with torch.device("meta"):
        supernet = Supernet(SPACES["channels-48"])
        mobile = published.resnet(48, separable=True)
    assert published.shapes(supernet.generator) == published.shapes(mobile)
    assert supernet.active == (48,) * 8


@pytest.mark.parametrize("n_blocks", [1, 2, 6])
def test_other_depths(n_blocks: int) -> None:
    space = SearchSpace.parse("8,4", 5 + min(3, n_blocks))
    supernet = Supernet(space, n_blocks)
    supernet.set(space.smallest)
    x = images(1, 3, 16, 16).tanh()
    assert torch.equal(supernet(x), supernet.extract(space.smallest)(x))


def test_file_holds_weights_and_space(tmp_path) -> None:
    supernet = make(padding="zero", in_channels=1)
    supernet.set(SPACE.smallest)
    supernet.save(tmp_path / "supernet.safetensors", {"stage": "test"})
    again = load_supernet(tmp_path / "supernet.safetensors")
    assert again.space == SPACE
    assert not again.training
    x = images(1, 1, 16, 16).tanh()
    for config in some_configs(2):
        supernet.set(config)
        again.set(config)
        assert torch.equal(supernet(x), again(x))
    assert gancomp.load_generator(tmp_path / "supernet.safetensors").config == supernet.generator.config


def test_a_generator_file_is_no_supernet(tmp_path) -> None:
    path = tmp_path / "g.safetensors"
    make().generator.save(path)
    with pytest.raises(CheckpointError, match=r"g\.safetensors: holds no supernet"):
        load_supernet(path)
    torch.save(make().generator.state_dict(), tmp_path / "g.pth")
    with pytest.raises(CheckpointError, match=r"g\.pth: holds no supernet"):
        load_supernet(tmp_path / "g.pth")


@pytest.mark.parametrize(
    "space",
    [
        {"name": "mine"},
        {"name": "mine", "choices": [[8, 4]] * 7},
        {"name": "mine", "choices": [[8, 4]] * 8},
        {"name": "mine", "choices": [["8"]] * 8},
        {"name": "mine", "choices": 5},
        ["mine"],
    ],
)
def test_damaged_space(tmp_path, space) -> None:
    make().generator.save(tmp_path / "s.safetensors", space=space)
    with pytest.raises(CheckpointError, match=r"s\.safetensors: "):
        load_supernet(tmp_path / "s.safetensors")


def test_errors() -> None:
    with pytest.raises(ConfigError, match="space 'channels-32': has 8 slots, a generator of 2 blocks has 7"):
        Supernet(SPACES["channels-32"], 2)
    with pytest.raises(ConfigError, match="norm='batch': a supernet shares its weights between widths"):
        Supernet(SPACE, 4, norm="batch")
    with pytest.raises(ConfigError, match=r"expected the largest widths of space '12,8,4;.*'"):
        Supernet(SPACE, 4, ResnetGenerator(ResnetConfig.from_channels(SPACE.smallest, 4)))
    supernet = make()
    for call in (supernet.set, supernet.extract, supernet.extract_bytes):
        with pytest.raises(ConfigError, match="5 is not allowed in slot 0"):
            call((5, *SPACE.largest[1:]))
    assert supernet.active == SPACE.largest, "a wrong configuration changes nothing"


def test_generators_are_cut_and_set_by_widths_too() -> None:
    full = published.randomised(ResnetGenerator(ResnetConfig.uniform(8, 2, norm="batch"))).eval()
    small = full.extract(ResnetConfig.uniform(4, 2, norm="batch"))
    assert torch.equal(small.model[5].running_var, full.model[5].running_var[:8])
    slices = full.slices(small.config)
    assert slices["model.12.weight"].shape == (16, 8, 3, 3), "a transposed convolution has its inputs first"
    assert slices["model.12.weight"].untyped_storage().data_ptr() == full.model[12].weight.untyped_storage().data_ptr()
    assert not small.training
    for other in ({"norm": "instance"}, {"norm": "batch", "separable": True}, {"norm": "batch", "padding": "zero"}):
        with pytest.raises(ConfigError, match="differs from its supernet"):
            full.extract(ResnetConfig.uniform(4, 2, **other))
    with pytest.raises(ConfigError, match="stem=12: above the supernet's 8"):
        full.set_widths(replace(full.config, stem=12))
    with pytest.raises(ConfigError, match=r"hidden\[1\]=33: above the supernet's 32"):
        full.set_widths(replace(full.config, hidden=(32, 33)))
