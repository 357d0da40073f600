"""Ways to run a generator, and the check before any of them is timed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from gancomp.errors import CheckpointError, RunError
from gancomp.metrics import contenders, engine_on, random_images
from gancomp.metrics.contenders import Truth, eager_call, eager_form, onnxruntime_call, torch_threads
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator

from ..models import published

X = random_images((1, 3, 32, 32))


@pytest.fixture(scope="module", params=["resnet", "dense", "unet"])
def generator(request) -> Generator:
    made = {
        "resnet": lambda: ResnetGenerator(ResnetConfig.uniform(8, 2, separable=True)),
        "dense": lambda: ResnetGenerator(ResnetConfig.uniform(8, 1)),
        "unet": lambda: UnetGenerator(UnetConfig(2, 5)),
    }[request.param]()
    return published.randomised(made).eval()


def test_everybody_gives_the_same_images(generator: Generator) -> None:
    eager = eager_form(generator)
    truth = Truth(eager, X)
    batch = X.repeat(3, 1, 1, 1)
    for name, y in (("eager", eager_call(eager, batch)()), ("engine", engine_on(generator, threads=2)(batch))):
        assert y.shape == (3, 3, 32, 32)
        verdict = truth.check(y, name)
        assert verdict.reason is None
        assert verdict.found.startswith("off by ")


def test_onnx_runtime_gives_the_same_images(generator: Generator, recwarn) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    eager = eager_form(generator)
    y = onnxruntime_call(eager, X.repeat(2, 1, 1, 1), threads=1)()
    assert Truth(eager, X).check(y, "ONNX Runtime").reason is None
    assert not recwarn.list


def test_onnx_runtime_that_is_not_there_or_fails(monkeypatch) -> None:
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None if name == "onnx" else object())
    assert contenders.onnxruntime_reason() == "onnx is not installed"
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: object())
    assert contenders.onnxruntime_reason() is None
    pytest.importorskip("onnxruntime")
    with pytest.raises(RunError, match=r"^ONNX Runtime: "):
        onnxruntime_call(torch.nn.LSTM(1, 1), torch.zeros(0), threads=1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda y: y + 1e-4, "off by 1.0e-04"),
        (lambda y: y.double(), "torch.float64"),
        (lambda y: y[..., 1:], r"\[1, 3, 32, 31\]"),
        (lambda y: torch.where(y == y.max(), torch.nan, y), "not finite"),
        (lambda y: torch.cat([y, y.flip(3)]), "off by"),
    ],
)
def test_red_outputs(spoil, reason: str) -> None:
    eager = eager_form(published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 1))).eval())
    with torch.inference_mode():
        y: Tensor = spoil(eager(X))
    verdict = Truth(eager, X).check(y, "engine")
    assert verdict.reason is not None
    assert re.search(reason, verdict.reason)


def test_lower_precision_is_judged_by_its_looks() -> None:
    eager = eager_form(published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 1))).eval())
    truth = Truth(eager, X)
    coarse = (truth.float32 * 32).round() / 32
    assert truth.check(coarse, "engine, int8").reason is not None
    assert truth.check(coarse, "engine, int8", lower_precision=True).reason is None
    blurred = torch.nn.functional.avg_pool2d(truth.float32, 5, 1, 2)
    assert "30 dB are needed" in str(truth.check(blurred, "engine, int8", lower_precision=True).reason)
    assert truth.check(truth.float32, "engine, int8", lower_precision=True).found == "100.0 dB of the float32 image"


def test_the_engine_refuses_what_it_does_not_run(monkeypatch) -> None:
    generator = ResnetGenerator(ResnetConfig.uniform(4, 1))
    monkeypatch.setattr(type(generator), "arch", "transformer")
    with pytest.raises(CheckpointError, match="transformer"):
        engine_on(generator, threads=1)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == before
