"""Supernets with batch statistics: every sub-network is the one built on its own, and is calibrated over all images."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import load_supernet
from gancomp.errors import ConfigError
from gancomp.models import SpadeConfig, SpadeGenerator
from gancomp.search import profile_module
from gancomp.search.cost import CostModel
from gancomp.supernet import SPACES, SearchSpace, Supernet, calibrate
from gancomp.supernet.calibrate import Moments
from gancomp.testing import allocations, images

from ..models import published
from ..models.published_spade import Spade, label_map, one_hot

SPACE = SearchSpace.parse("3,2;3,1;2,1;3,2;3,2,1;3,2;4,2;4,3,2")
CLASSES = 3


def make(norm: str = "batch", *, separable: bool = True, upsampling: str = "normal") -> Supernet:
    config = SpadeConfig.from_channels(
        SPACE.largest, label_nc=CLASSES, norm=norm, separable=separable, upsampling=upsampling, crop_size=32, aspect_ratio=1.0
    )
    return Supernet.around(published.randomised(SpadeGenerator(config)), SPACE)


def some_configs(count: int = 3) -> list[tuple[int, ...]]:
    rng = random.Random(3)
    return [SPACE.largest, SPACE.smallest, *(SPACE.sample(rng) for _ in range(count))]


def alone(supernet: Supernet, config: tuple[int, ...]) -> Spade:
    """The sub-network in stock layers, with the first channels of every weight."""
    full = supernet.generator.config
    stock = Spade(config, full.in_channels, norm=full.norm, separable=full.separable, upsampling=full.upsampling)
    state = supernet.generator.state_dict()
    cut = {name: state[name][tuple(slice(0, size) for size in tensor.shape)] for name, tensor in stock.state_dict().items()}
    stock.load_state_dict(cut)
    return stock


def batches() -> list[Tensor]:
    """Calibration images that differ from batch to batch, the last one smaller."""
    return [label_map(n, CLASSES, 32, 32, seed=seed) for seed, n in enumerate((3, 3, 2))]


def sizes_of_batches(stock: Spade) -> dict[str, int]:
    """Filled in by a forward pass, which leaves the statistics of its batch: values per channel, by the name of the norm."""
    sizes: dict[str, int] = {}
    for name, module in stock.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.register_forward_hook(lambda _, x, y, name=name: sizes.update({name: y.numel() // y.shape[1]}))
    return sizes


def in_one(maps: list[Tensor]) -> Tensor:
    return one_hot(torch.cat(maps), CLASSES).double()


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_sub_network_in_training_is_the_one_built_alone(norm: str, separable: bool) -> None:
    """The image by the batch's statistics, and the gradients, zero beyond the widths in use."""
    supernet = make(norm, separable=separable).double()
    x = in_one(batches()[:1])
    for config in some_configs(2):
        stock = alone(supernet, config).double()
        supernet.set(config)
        supernet.zero_grad()
        y, expected = supernet(x), stock(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
        for name, parameter in supernet.generator.named_parameters():
            if not parameter.requires_grad:  # a bias before a norm
                continue
            wanted = torch.zeros_like(parameter)
            if name in gradients:
                wanted[tuple(slice(0, size) for size in gradients[name].shape)] = gradients[name]
            torch.testing.assert_close(parameter.grad, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_training_leaves_the_running_statistics_alone() -> None:
    supernet = make()
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(batches()[0])
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.named_buffers())


def test_choosing_copies_nothing() -> None:
    supernet = make()
    assert allocations(lambda: [supernet.set(config) for config in some_configs(10)]) == []


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("upsampling", ["normal", "more"])
def test_calibrated_statistics_are_those_of_one_batch_of_everything(upsampling: str, separable: bool) -> None:
    """Of all norms, also of those behind other norms; and inference is what training on that batch was."""
    supernet = make(separable=separable, upsampling=upsampling).double().eval()
    maps = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in batches()]
    everything = in_one(maps)
    for config in some_configs(1)[1:]:
        stock = alone(supernet, config).double()
        sizes = sizes_of_batches(stock)
        with torch.no_grad():
            expected = stock(everything)
        supernet.calibrate(config, iter(maps))
        assert supernet.active == supernet.calibrated == config
        extracted = supernet.extract(config)
        found = extracted.state_dict()
        assert len(sizes) == 3 * 2 + 4 * 3
        for name, count in sizes.items():
            statistics = stock.get_submodule(name)
            torch.testing.assert_close(found[f"{name}.running_mean"], statistics.running_mean)
            # PyTorch keeps the unbiased variance, and normalises by the biased one.
            torch.testing.assert_close(found[f"{name}.running_var"], statistics.running_var * (count - 1) / count)
        with torch.no_grad():
            torch.testing.assert_close(extracted.eval()(everything), expected)
            assert torch.equal(supernet(everything), extracted(everything))
            by_parts = torch.cat([supernet(x) for x in maps])
        torch.testing.assert_close(by_parts, expected, msg="an image does not depend on those beside it")


def test_calibration_does_not_depend_on_the_batches() -> None:
    supernet = make().eval()
    images_alone = [x for batch in batches() for x in batch.split(1)]
    states = []
    for maps in (batches(), images_alone, images_alone[::-1], [torch.cat(batches())]):
        supernet.calibrate(SPACE.smallest, maps)
        states.append(supernet.extract(SPACE.smallest).state_dict())
    for state in states[1:]:
        for name, tensor in state.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, states[0][name], rtol=1e-4, atol=1e-5)


def test_moments_do_not_cancel() -> None:
    """A mean that is large beside the deviation: float32 sums of squares would lose every digit."""
    x = images(6, 2, 9, 7, mean=3000.0, dtype=torch.float64)
    moments = Moments()
    for part in x.float().split([1, 3, 2]):
        moments.add(part)
    torch.testing.assert_close(moments.mean, x.float().double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.variance, x.float().double().var((0, 2, 3), correction=0), rtol=1e-3, atol=0)


def test_statistics_of_one_configuration_are_not_used_for_another() -> None:
    supernet = make()
    x, small, large = batches()[0], SPACE.smallest, SPACE.largest
    with pytest.raises(ConfigError, match=r"config_str='3_3_2_3_3_3_4_4': its batch statistics are not known .* of none"):
        supernet.extract(large)
    supernet.eval()
    with pytest.raises(ConfigError, match="calibrate it first"):
        supernet(x)
    supernet.calibrate(small, batches())
    image = supernet(x)
    supernet.set(large)
    for call in (lambda: supernet(x), lambda: supernet.forward_features(x), lambda: supernet.extract_bytes(large)):
        with pytest.raises(ConfigError, match="the supernet has those of 2_1_1_2_1_2_2_2"):
            call()
    supernet.set(small)
    assert torch.equal(supernet(x), image), "they hold while other widths are looked at"
    supernet.train()
    supernet.eval()
    with pytest.raises(ConfigError, match="calibrate it first"):
        supernet(x)


def test_instance_norm_needs_no_calibration() -> None:
    supernet = make("instance").eval()
    extracted = supernet.extract(SPACE.smallest)
    supernet.set(SPACE.smallest)
    x = batches()[0]
    assert torch.equal(supernet(x), extracted(x))
    calibrate(supernet.generator, [])


def test_nothing_to_calibrate_on() -> None:
    supernet = make()
    with pytest.raises(ConfigError, match="got no images"):
        supernet.calibrate(SPACE.smallest, [])
    with pytest.raises(ConfigError, match="expected integer labels"):
        supernet.calibrate(SPACE.smallest, [torch.zeros(1, 3, 32, 32, dtype=torch.int64)])
    assert supernet.calibrated is None


def test_a_whole_generator_is_calibrated_too() -> None:
    """And goes on training, or not, as before; its statistics move in training."""
    generator = published.randomised(SpadeGenerator(SpadeConfig.from_channels(SPACE.smallest, label_nc=CLASSES)))
    x = [label_map(2, CLASSES, 64, 64, seed=seed) for seed in range(2)]
    calibrate(generator, x)
    assert generator.training
    assert all(module.training for module in generator.modules())
    expected = copy.deepcopy(generator).train()(torch.cat(x))
    with torch.no_grad():
        torch.testing.assert_close(generator.eval()(torch.cat(x)), expected, rtol=1e-3, atol=1e-4)


def test_a_file_carries_space_and_weights(tmp_path) -> None:
    supernet = make()
    supernet.save(tmp_path / "supernet.safetensors")
    again = load_supernet(tmp_path / "supernet.safetensors")
    assert (again.space, again.generator.config) == (supernet.space, supernet.generator.config)
    for net in (supernet.eval(), again):
        net.calibrate(SPACE.smallest, batches())
    x = batches()[0]
    assert torch.equal(again(x), supernet(x))
    cut = again.extract(SPACE.smallest)
    assert again.extract_bytes(SPACE.smallest) == cut.to_bytes()
    cut.save(tmp_path / "cut.safetensors")
    assert torch.equal(gancomp.load_generator(tmp_path / "cut.safetensors")(x), supernet(x))
    assert cut.config == replace(SpadeConfig.from_channels(SPACE.smallest, upsampling="normal"), **{
        name: getattr(supernet.generator.config, name) for name in ("label_nc", "crop_size", "aspect_ratio")
    })  # fmt: skip


def test_costs_of_all_configurations() -> None:
    supernet = make()
    cost = CostModel(supernet, (1, 4, 32, 64))
    for config in some_configs(4):
        with torch.device("meta"):
            network = SpadeGenerator(supernet.network_config(config))
        profile = profile_module(network, (1, 4, 32, 64))
        assert cost(config) == {"macs": profile.macs, "macs_published": profile.macs_published, "params": profile.params}


@pytest.mark.parametrize(
    ("name", "size", "largest", "smallest"),
    [
        ("channels-48", 15_552, 48, (32,) * 5 + (24,) * 3),
        ("channels-64", 128_000, 64, (32,) * 5 + (24,) * 3),
        ("channels-64-coco", 390_625, 64, (24,) * 8),
        ("channels-64_2", 5_764_801, 64, (16,) * 8),
    ],
)
def test_published_spaces(name: str, size: int, largest: int, smallest: tuple[int, ...]) -> None:
    space = SearchSpace.parse(name, arch="spade")
    assert space is SPACES[f"spade-{name}"] is SearchSpace.parse(f"spade-{name}")
    assert (space.size, space.largest, space.smallest) == (size, (largest,) * 8, smallest)
    with torch.device("meta"):
        Supernet.around(SpadeGenerator(SpadeConfig.from_channels(space.largest)), space)


def test_other_names_are_those_of_all_architectures() -> None:
    assert SearchSpace.parse("channels-32", arch="spade") is SPACES["channels-32"]
    assert SearchSpace.parse("channels-48") is SPACES["channels-48"]


def test_what_fits_no_space() -> None:
    generator = make().generator
    with pytest.raises(ConfigError, match="has 7 slots, this spade generator has 8"):
        Supernet.around(generator, SearchSpace.parse("4,2", 7))
    with pytest.raises(ConfigError, match="expected the largest widths"):
        Supernet.around(generator, SearchSpace.parse("4,2"))
    with pytest.raises(ConfigError, match="in more than widths"):
        generator.set_widths(replace(generator.config, label_nc=9))
    with pytest.raises(ConfigError, match=r"up\[1\]=13: above the supernet's 12"):
        generator.set_widths(replace(generator.config, up=(24, 13, 8, 4)))
