"""The engine against stock PyTorch layers in float64, on every instruction set; and what must be equal to the last bit."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gancomp
from gancomp import _C, Engine
from gancomp.data import to_tensor, to_uint8
from gancomp.models import ResnetConfig, UnetConfig
from gancomp.search import profile_module
from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import images

from ..models import published
from .networks import CONFIGS, SPADES, Case, build, make_case

ISAS = _C.supported_isas()
every_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> Case:
    """A network of CONFIGS by name, on a few images; the compressed ones on one that is larger."""
    name = request.param
    size, batch = ((64, 96), 1) if name.startswith("compressed") else ((48, 64), 3)
    return make_case(build(CONFIGS[name]), tmp_path_factory.mktemp("engine") / "g.safetensors", size, batch)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Case:
    """A small network of every kind of layer, with three images of an odd size."""
    config = ResnetConfig(9, 17, 20, (33, 7), 18, 9, separable=True, in_channels=3, out_channels=3)
    return make_case(build(config), tmp_path_factory.mktemp("small") / "g.safetensors", (33, 50), 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A small dense network of which only the file matters."""
    path = tmp_path_factory.mktemp("file") / "g.safetensors"
    build(ResnetConfig.uniform(8, 1)).save(path)
    return path


@pytest.mark.parametrize("case", CONFIGS, indirect=True)
@every_isa
def test_same_images_as_stock_layers(case: Case, isa: str) -> None:
    engine = Engine(case.path, threads=2, isa=isa)
    assert engine.isa == isa
    case.check(engine)


@pytest.mark.parametrize("case", CONFIGS, indirect=True)
def test_costs_are_those_of_the_network(case: Case) -> None:
    engine, channels = Engine(case.path), case.generator.config.in_channels
    profile = profile_module(case.generator, (1, channels, 128, 256))
    assert engine.macs(128, 256) == profile.macs
    assert engine.parameters == case.generator.num_parameters()
    assert (engine.in_channels, engine.out_channels) == (channels, case.generator.config.out_channels)


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (31, 17), (16, 97), (250, 333)])
@pytest.mark.parametrize(
    "config",
    [ResnetConfig(9, 17, 20, (33,), 18, 9), UnetConfig(2, 6), SPADES["SPADE, separable"], SPADES["SPADE, dense"]],
    ids=["resnet", "unet", "spade", "spade dense"],
)
def test_any_size(config, size: tuple[int, int], tmp_path: Path) -> None:
    case = make_case(build(config), tmp_path / "g.safetensors", size)
    for isa in ISAS if size != (250, 333) else ISAS[:1]:
        case.check(Engine(case.path, threads=2, isa=isa))


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (45, 130)])
@pytest.mark.parametrize("config", [ResnetConfig.uniform(4, 1), UnetConfig(1, 7)], ids=["resnet", "unet"])
def test_padding_is_that_of_translate_index_by_index(config, size: tuple[int, int], tmp_path: Path) -> None:
    """The engine gives the same bits for the image and for the image that was padded for it, as far as that reaches."""
    generator = build(config)
    generator.save(tmp_path / "g.safetensors")
    engine, x, seen = Engine(tmp_path / "g.safetensors"), images(1, 3, *size).tanh(), []
    forward = generator.forward
    generator.forward = lambda x: seen.append(x) or forward(x)
    with torch.inference_mode():
        generator.translate(x)
    assert min(seen[0].shape[2:]) >= generator.size_multiple
    assert torch.equal(engine(x), engine(seen[0])[..., : size[0], : size[1]])


def test_a_supernets_file_runs_at_its_largest_widths(tmp_path: Path) -> None:
    supernet = Supernet(SearchSpace.parse("12,8,4"), 3)
    published.randomised(supernet.generator)
    supernet.set(supernet.space.smallest)
    supernet.save(tmp_path / "supernet.safetensors")
    case = make_case(gancomp.load_generator(tmp_path / "supernet.safetensors"), tmp_path / "g.safetensors", (48, 64))
    case.check(Engine(tmp_path / "supernet.safetensors"))


@every_isa
def test_any_number_of_threads_gives_the_same_bits(small: Case, isa: str) -> None:
    results = [Engine(small.path, threads=threads, isa=isa)(small.x.numpy()) for threads in (1, 2, 3, 16)]
    assert all(np.array_equal(result, results[0]) for result in results[1:])


@every_isa
def test_a_batch_gives_the_bits_of_its_images(small: Case, isa: str) -> None:
    engine = Engine(small.path, threads=2, isa=isa)
    together = engine(small.x.numpy())
    assert np.array_equal(together, np.stack([engine(image) for image in small.x.numpy()]))
    pixels = to_uint8(small.x).permute(0, 2, 3, 1).contiguous().numpy()
    assert np.array_equal(engine(pixels), np.stack([engine(image) for image in pixels]))


@every_isa
@pytest.mark.parametrize("channels", [(3, 3), (1, 1), (7, 6)], ids=str)
def test_bytes_are_the_floats_of_the_data_sets(tmp_path: Path, isa: str, channels: tuple[int, int]) -> None:
    """uint8 in and out is ``to_uint8`` of what the floats of ``to_tensor`` become, bit by bit, for every value there is."""
    inputs, outputs = channels
    build(ResnetConfig.uniform(8, 1, in_channels=inputs, out_channels=outputs)).save(tmp_path / "g.safetensors")
    engine = Engine(tmp_path / "g.safetensors", isa=isa)
    pixels = np.random.default_rng(0).permutation(np.arange(32 * 48 * inputs) % 256).astype(np.uint8).reshape(32, 48, inputs)
    planes = torch.cat([to_tensor(Image.fromarray(pixels[:, :, c])) for c in range(inputs)])
    expected = to_uint8(engine(planes)).permute(1, 2, 0)
    assert np.array_equal(engine(pixels), expected.numpy())


@every_isa
def test_not_a_number_is_not_hidden(small: Case, isa: str) -> None:
    x = small.x[0].numpy().copy()
    x[0, 7, 9] = np.nan
    assert np.isnan(Engine(small.path, isa=isa)(x)).all(), "a norm spreads it over the plane, as in PyTorch"


def test_another_size_and_back(small: Case) -> None:
    engine = Engine(small.path, threads=2)
    first, rng = engine(small.x.numpy()), np.random.default_rng(0)
    for size in ((16, 16), (64, 20), (33, 50), (100, 90)):
        engine(rng.random((1, 3, *size), np.float32))
        assert np.array_equal(engine(small.x.numpy()), first)


def test_several_engines_in_one_process(small: Case, file: Path) -> None:
    engines = [Engine(path, threads=threads) for path in (small.path, file) for threads in (1, 2)]
    engines += [engines[0].another(threads=2), engines[2].another(threads=1)]
    first = [engine(small.x.numpy()) for engine in engines]
    for _ in range(3):
        for engine, expected in zip(engines, first, strict=True):
            assert np.array_equal(engine(small.x.numpy()), expected)
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[4])
    assert np.array_equal(first[2], first[5])
    assert not np.array_equal(first[0], first[2])
    del engines[0], engines[1]
    assert np.array_equal(engines[2](small.x.numpy()), first[4]), "the weights outlive the engine that read them"


def test_calls_from_many_threads(small: Case) -> None:
    engine, rng = Engine(small.path, threads=2), np.random.default_rng(0)
    inputs = [rng.random((1 + i % 2, 3, 16 + i % 3, 20), np.float32) for i in range(12)]
    inputs += [rng.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(4)]
    expected = [engine(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for result, wanted in zip(pool.map(engine, inputs), expected, strict=True):
                assert np.array_equal(result, wanted)
        engines = [engine.another(threads=1) for _ in inputs]
        for result, wanted in zip(pool.map(lambda e, x: e(x), engines, inputs), expected, strict=True):
            assert np.array_equal(result, wanted)


def test_python_runs_meanwhile(small: Case) -> None:
    """The interpreter is free while an engine computes: this thread's clock goes on ticking inside the call."""
    engine, spans = Engine(small.path, threads=1), []
    image = np.zeros((8, 3, 160, 160), np.float32)

    def call() -> None:
        begin = time.perf_counter()
        engine(image)
        spans.append((begin, time.perf_counter()))

    ticks, thread = [], threading.Thread(target=call)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    begin, end = spans[0]
    assert sum(begin < tick < end for tick in ticks) >= 3


@pytest.mark.skipif("avx512vnni" not in ISAS, reason="this processor has no 8-bit dot products")
@pytest.mark.parametrize(("channels", "quantized"), [(1342, True), (1343, False)])
def test_sums_of_bytes_fit_their_32_bits(tmp_path: Path, channels: int, quantized: bool) -> None:
    build(ResnetConfig(2, 2, 2, (), 2, channels)).save(tmp_path / "g.safetensors")
    steps = Engine(tmp_path / "g.safetensors", precision="int8")._native.steps()
    assert (steps[-1][0] == f"int8 head 7x7 {channels}->3") == quantized


def test_profile_accounts_for_the_run(small: Case) -> None:
    engine = Engine(small.path, threads=2)
    steps = engine.profile(small.x[:1], runs=3)
    assert steps[0].name == "conv 7x7 3->9"
    assert [step.name for step in steps].count("depthwise 3x3 33") == 1
    assert sum(step.macs for step in steps) == engine.macs(36, 52), "no step here saves products"
    assert all(step.ms >= 0 and step.bytes > 0 for step in steps)
    assert sum(step.ms for step in steps) > 0
    twice = engine.profile(small.x[:1].repeat(2, 1, 1, 1), runs=3)
    assert [step.macs for step in twice] == [step.macs for step in steps]


def test_workspace_grows_with_the_image_and_the_threads(small: Case) -> None:
    one, two = Engine(small.path, threads=1), Engine(small.path, threads=2)
    assert 0 < one.workspace(64, 64) < one.workspace(128, 128) < 8 * one.workspace(64, 64)
    assert one.workspace(64, 64) < two.workspace(64, 64)
    largest = max(9 * 128 * 128, 17 * 64 * 64) * 4
    assert one.workspace(128, 128) >= largest, "the widest activation has to lie somewhere"
