"""A user's generator, which the library does not know, becomes a supernet and is compressed: the example and its page."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import gancomp
from gancomp.errors import ConfigError
from gancomp.io import read_json
from gancomp.models import ChannelsConfig, SlicedGenerator, register_generator
from gancomp.models.base import _REGISTRY
from gancomp.nn import InstanceNormAct, SlicedConv2d, SlicedConvTranspose2d, init_weights
from gancomp.pipeline.supernet import SupernetRun, build_supernet
from gancomp.search import CostModel, profile_module
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples/own_generator/own_generator.py"
SPACE = SearchSpace.parse("8,4", 4)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """What is made known here is forgotten afterwards."""
    before = dict(_REGISTRY)
    register_generator("fork of the tests", ForkConfig)(Fork)
    yield
    _REGISTRY.clear()
    _REGISTRY.update(before)


@pytest.fixture(scope="module")
def example(known: None) -> Iterator[ModuleType]:
    """The example, imported once: it makes its generator known."""
    spec = importlib.util.spec_from_file_location("own_generator", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def widest(example: ModuleType, **fields) -> SlicedGenerator:
    generator = example.Hourglass(example.HourglassConfig((8, 8, 8, 8), **fields))
    init_weights(generator, torch.Generator().manual_seed(0), std=0.1)
    return generator


def test_it_takes_fewer_than_sixty_lines() -> None:
    lines = [line for line in FILE.read_text().splitlines() if line.strip()]
    assert len(lines) < 60


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs/own-generator.md").read_text()
    (block,) = re.findall(r"^```python\n(\"\"\"A generator.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block == FILE.read_text()


@pytest.mark.parametrize("config", [SPACE.largest, SPACE.smallest, (4, 8, 4, 8), (8, 4, 8, 4)])
def test_a_sub_network_is_a_network_of_its_own(example: ModuleType, config: tuple[int, ...]) -> None:
    """The active slices paint what the generator cut out of them paints, and it has the cost that is told."""
    supernet = Supernet.around(widest(example), SPACE).eval()
    supernet.set(config)
    small = supernet.extract(config)
    assert small.config.channels == config
    assert small.stem[0].weight.shape == (config[0], 3, 7, 7)
    assert small.body[0][0].weight.shape == (config[2], config[1], 3, 3)
    x = torch.randn(2, 3, 16, 16).tanh()
    with torch.inference_mode():
        assert torch.allclose(supernet(x), small(x), atol=1e-5)
    cost = CostModel(supernet, (1, 3, 16, 16))(config)
    profile = profile_module(small, (1, 3, 16, 16))
    assert (cost["params"], cost["macs"]) == (profile.params, profile.macs)


def test_files_hold_it(example: ModuleType, tmp_path: Path) -> None:
    supernet = Supernet.around(widest(example), SPACE)
    supernet.save(tmp_path / "supernet.safetensors")
    again = gancomp.load_supernet(tmp_path / "supernet.safetensors")
    assert isinstance(again.generator, example.Hourglass)
    assert again.space == SPACE
    (tmp_path / "small.safetensors").write_bytes(again.extract_bytes(SPACE.smallest))
    small = gancomp.load_generator(tmp_path / "small.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(small.parameters(), supernet.extract(SPACE.smallest).parameters(), strict=True)
    )


def test_a_step_of_distillation(example: ModuleType) -> None:
    teacher, supernet = widest(example), Supernet.around(widest(example), SPACE)
    options = DistillOptions(batch_size=1, ndf=2, d_layers=1, device="cpu", sampling="sandwich")
    stage = DistillStage(supernet, teacher, options)
    assert [pair.teacher for pair in stage.layers] == ["down", "body.1", "body.3"]
    before = {name: tensor.clone() for name, tensor in supernet.generator.named_parameters()}
    x = torch.randn(1, 3, 16, 16).tanh()
    losses = stage.step(gancomp.data.Batch(x, x, ("a",)), 0)
    assert all(value.isfinite() for value in losses.values())
    moved = [name for name, tensor in supernet.generator.named_parameters() if not torch.equal(tensor, before[name])]
    assert {name for name in before if name.endswith("weight")} <= set(moved)


class Images:
    """What is asked of a data set here."""

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(("space", "inherited"), [("8,4", True), ("16,4", False)])
def test_it_starts_from_its_teachers_first_channels(example: ModuleType, space: str, inherited: bool) -> None:
    teacher = widest(example)
    supernet = build_supernet(SupernetRun("", "", space=space), teacher, Images())  # type: ignore[arg-type]
    assert isinstance(supernet.generator, example.Hourglass)
    same = [torch.equal(a, b) for a, b in zip(supernet.generator.parameters(), teacher.parameters(), strict=True)]
    assert all(same) == inherited


@pytest.mark.slow
def test_one_command_compresses_it(example: ModuleType, tmp_path: Path, capsys) -> None:
    example.Hourglass(example.HourglassConfig((16, 16, 16, 16))).save(tmp_path / "hourglass.safetensors")
    steps = [
        f"--{stage}.{name}={value}"
        for stage in ("supernet", "finetune")
        for name, value in (("steps", 2), ("batch-size", 1), ("ndf", 2), ("d-layers", 1), ("sample-every", 0))
    ]
    out = tmp_path / "run"
    arguments = [
        "compress", "--teacher", str(tmp_path / "hourglass.safetensors"), "--out", str(out), "--space", "16,8,4",
        "--budget", "3x",
        "--load-size", "36", "--crop-size", "32", "--data.synthetic-train", "6", "--data.synthetic-test", "3",
        "--search.population", "3", "--search.generations", "1", "--search.objective", "l1", *steps,
    ]  # fmt: skip
    assert example.main(arguments) == 0, capsys.readouterr().err
    student = gancomp.load_generator(out / "student.safetensors")
    assert isinstance(student, example.Hourglass)
    teacher = profile_module(gancomp.load_generator(tmp_path / "hourglass.safetensors"), (1, 3, 32, 32))
    assert 3 * profile_module(student, (1, 3, 32, 32)).macs <= teacher.macs
    assert read_json(out / "search/chosen.json")["config_str"] == "_".join(map(str, student.config.channels))
    assert (out / "report.html").exists()


# -- other shapes of networks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForkConfig(ChannelsConfig):
    channels: tuple[int, ...] = (4, 6)


class Fork(SlicedGenerator):
    """Widths that are multiples, and a layer that takes two others' channels together."""

    def __init__(self, config: ForkConfig) -> None:
        super().__init__()
        self.config = config
        a, b = config.channels
        self.left, self.right = SlicedConv2d(3, 2 * a, 3, padding=1), SlicedConv2d(3, b, 1)
        self.norm = InstanceNormAct(2 * a, relu=True, affine=True)
        self.up = SlicedConvTranspose2d(2 * a + b, a, 3, stride=2, padding=1, output_padding=1)
        self.down = SlicedConv2d(a, 3, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.down(self.up(torch.cat([self.norm(self.left(x)), self.right(x)], 1))))


@pytest.mark.parametrize("config", [(4, 6), (2, 6), (4, 3), (1, 2)])
def test_multiples_and_sums_of_widths(config: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    supernet = Supernet.around(Fork(ForkConfig()), SearchSpace("fork", ((4, 2, 1), (6, 3, 2)))).eval()
    supernet.set(config)
    small = supernet.extract(config)
    assert small.up.weight.shape == (2 * config[0] + config[1], config[0], 3, 3)
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(supernet(x), small(x), atol=1e-5)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)])
def test_norms_with_numbers_per_channel_are_named(norm: nn.Module) -> None:
    generator = Fork(ForkConfig())
    generator.norm = norm
    with pytest.raises(ConfigError, match=rf"layer 'norm' \({type(norm).__name__}\): has numbers per channel"):
        Supernet.around(generator, SearchSpace("fork", ((4, 2, 1), (6, 3, 2))))


def test_what_cannot_be_registered() -> None:
    @dataclass(frozen=True)
    class Bare:
        width: int = 3

    with pytest.raises(ConfigError, match=r"config_class=Bare: expected a frozen dataclass with widths, with_widths"):
        register_generator("bare", Bare)
    with pytest.raises(ConfigError, match=r"generator=Linear: expected a subclass of gancomp\.SlicedGenerator"):
        register_generator("bare", ForkConfig)(nn.Linear)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="arch='resnet': already registered"):
        register_generator("resnet", ForkConfig)(Fork)
    with pytest.raises(ConfigError, match=r"ForkConfig: channels=0: expected a whole number at least 1"):
        ForkConfig((0, 1))
    with pytest.raises(ConfigError, match=r"channels=\(1,\): expected 2 numbers"):
        ForkConfig().with_channels((1,))
    with pytest.raises(ConfigError, match=r"channels\[0\]=5: above the supernet's 4"):
        Fork(ForkConfig()).set_widths(ForkConfig((5, 6)))
    assert Fork.arch == "fork of the tests"
