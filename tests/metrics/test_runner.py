"""Generators and candidates of a search, run by the engine as by PyTorch."""

from __future__ import annotations

import random

import pytest
import torch

import gancomp.metrics.runner as module
from gancomp.data import DataConfig, open_dataset
from gancomp.engine import Engine
from gancomp.errors import BackendError, CheckpointError, ConfigError, NotFiniteError
from gancomp.metrics import Evaluator, Runner, load_extractor, random_images
from gancomp.metrics.contenders import Truth, eager_form, torch_threads
from gancomp.models import ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.supernet import SearchSpace, Supernet

from ..models import published

CPU = torch.device("cpu")
SPACE = SearchSpace.parse("12,8,4;12,8;16,12,4;12,8;12,4;8,4;8,4;12,4", 8)
X = random_images((3, 3, 32, 40))
TORCH = Runner(CPU, reason="a test")


def supernet(**fields) -> Supernet:
    made = Supernet(SPACE, 4, **{"separable": True, **fields})
    published.randomised(made)
    return made.eval()


def some_configs(count: int = 3) -> list[tuple[int, ...]]:
    rng = random.Random(1)
    return [SPACE.largest, SPACE.smallest, *(SPACE.sample(rng) for _ in range(count))]


def generator(norm: str = "instance") -> ResnetGenerator:
    made = ResnetGenerator(ResnetConfig.uniform(8, 1, norm=norm))
    published.randomised(made)
    return made.eval()


@pytest.mark.parametrize("fields", [{}, {"separable": False}, {"norm": "none"}, {"padding": "zero"}])
def test_candidates_give_the_images_of_their_sub_networks(fields: dict) -> None:
    net = supernet(**fields)
    engine = Runner.choose(net.extract(SPACE.smallest))
    assert engine.isa
    made = {config: engine.candidate(net, config) for config in some_configs()}
    for config, run in made.items():
        assert isinstance(run, Engine)
        truth = Truth(eager_form(net.extract(config)), X)
        assert truth.check(run(X), "engine").reason is None
        with torch.inference_mode():
            assert truth.check(TORCH.candidate(net, config)(X), "PyTorch").reason is None
        assert net.active == config, "PyTorch runs the active sub-network, the engine leaves it"


def test_candidates_and_generators_take_images_of_any_size() -> None:
    net, x = supernet(), random_images((2, 3, 21, 34))
    cut = net.extract(SPACE.smallest)
    with torch.inference_mode():
        expected = cut.translate(x)
        for runner in (Runner.choose(cut), TORCH):
            for run in (runner.candidate(net, SPACE.smallest), runner.images(cut)):
                torch.testing.assert_close(run(x), expected, rtol=0, atol=1e-4)


def test_a_candidate_touches_no_file(monkeypatch) -> None:
    net = supernet()
    runner = Runner.choose(net.extract(SPACE.smallest))
    monkeypatch.setattr("builtins.open", lambda *arguments, **options: pytest.fail("a file is opened"))
    monkeypatch.setattr("os.open", lambda *arguments, **options: pytest.fail("a file is opened"))
    runner.candidate(net, SPACE.largest)


@pytest.mark.parametrize("objective", ["l1", "psnr", "fd"])
def test_scores_rank_candidates_as_in_pytorch(objective: str) -> None:
    net = supernet()
    dataset = open_dataset(DataConfig(load_size=32, crop_size=32, synthetic_test=5), "val")
    evaluator = Evaluator(dataset, load_extractor(), batch_size=2)
    key = evaluator.fd_name if objective == "fd" else objective
    configs = list(dict.fromkeys(some_configs(7)))
    scores = [
        [evaluator.evaluate(runner.candidate(net, config), [objective])[key] for config in configs]
        for runner in (Runner.choose(net.extract(SPACE.smallest)), TORCH)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    apart = min(abs(a - b) for i, a in enumerate(scores[1]) for b in scores[1][:i])
    assert apart > 10 * max(abs(a - b) for a, b in zip(*scores, strict=True)), "the scores could be told apart"
    order = [sorted(range(len(configs)), key=found.__getitem__) for found in scores]
    assert order[0] == order[1]


@pytest.mark.parametrize("number", [1, 2])
def test_threads_are_pytorchs(number: int) -> None:
    net = supernet()
    runner = Runner.choose(net.extract(SPACE.smallest))
    with torch_threads(number):
        facts = {
            "runner": "engine",
            "isa": Engine(net.extract_bytes(SPACE.smallest)).isa,
            "threads": number,
            "precision": "f32",
        }
        assert runner.facts() == facts
        assert runner.candidate(net, SPACE.smallest).threads == number
        assert runner.images(net.extract(SPACE.smallest)).threads == number
        assert TORCH.facts() == {"runner": "torch", "device": "cpu", "threads": number, "reason": "a test"}


def test_what_is_chosen(monkeypatch) -> None:
    assert Runner.choose(generator()).isa == Engine(generator().to_bytes()).isa
    assert Runner.choose(UnetGenerator(UnetConfig(2, 5)), wanted="engine").isa
    assert Runner.choose(generator(), wanted="torch") == Runner(CPU, reason="asked for")
    gpu = Runner.choose(generator(), "cuda")
    assert (gpu.isa, gpu.device.type, gpu.reason) == ("", "cuda", "the engine does not run on cuda")
    with pytest.raises(ConfigError, match="evaluate: runner='engine': the engine does not run on cuda"):
        Runner.choose(generator(), "cuda", "engine")
    with pytest.raises(ConfigError, match="evaluate: runner='onnx': expected one of auto, engine, torch"):
        Runner.choose(generator(), wanted="onnx")  # type: ignore[arg-type]
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    assert Runner.choose(generator()) == Runner(CPU, reason="GANCOMP_BACKEND=reference")
    assert Runner.choose(generator(), wanted="engine").isa


def test_a_network_that_the_engine_does_not_run(monkeypatch) -> None:
    foreign = generator()
    monkeypatch.setattr(type(foreign), "arch", "transformer")
    runner = Runner.choose(foreign)
    assert runner.isa == ""
    assert "transformer" in runner.reason
    with torch.inference_mode():
        assert torch.equal(runner.images(foreign.train())(X), foreign(X)), "in evaluation mode"
    assert not foreign.training
    with pytest.raises(ConfigError, match=r"runner='engine': .*transformer"):
        Runner.choose(foreign, wanted="engine")


def test_without_the_native_library(monkeypatch) -> None:
    def fail(*arguments, **options):
        raise BackendError("the engine needs the native library")

    monkeypatch.setattr(module, "Engine", fail)
    assert Runner.choose(generator()).reason == "the engine needs the native library"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sub_network_that_is_not_finite(value: float) -> None:
    net = supernet()
    with torch.no_grad():
        net.generator.model[1].weight[-1] = value  # the stem's last channel
    narrow = (8, *SPACE.largest[1:])
    runner = Runner.choose(net.extract(SPACE.smallest))
    assert runner.candidate(net, narrow)(X).isfinite().all()
    with pytest.raises(NotFiniteError, match="the weights of 12_12_16_12_12_8_8_12: contain values that are not finite"):
        runner.candidate(net, SPACE.largest)
    evaluator = Evaluator(open_dataset(DataConfig(load_size=16, crop_size=16, synthetic_test=2), "val"), load_extractor())
    with pytest.raises(NotFiniteError, match="output: contains values that are not finite"):
        evaluator.evaluate(TORCH.candidate(net, SPACE.largest), ["l1"])


def test_other_troubles_of_the_engine_are_not_hidden(monkeypatch) -> None:
    net = supernet()
    runner = Runner.choose(net.extract(SPACE.smallest))
    monkeypatch.setattr(type(net.generator), "arch", "transformer")
    with pytest.raises(CheckpointError, match="transformer"):
        runner.candidate(net, SPACE.smallest)


@pytest.mark.parametrize("runner", [Runner.choose(ResnetGenerator(ResnetConfig.uniform(4, 1))), TORCH])
def test_timed_calls_run_the_generator(runner: Runner) -> None:
    made = generator()
    with torch.inference_mode():
        expected = made(random_images((2, 3, 16, 16)))
    y = runner.timed(made, (2, 3, 16, 16))()
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
