"""Measured times: contenders take turns, percentiles are what they say."""

from __future__ import annotations

import time

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.metrics import engine_call, generator_call, measure_latency
from gancomp.models import SpadeConfig, SpadeGenerator


class Clock:
    """Time that passes only when a contender says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: round(self.now * 1e9))

    def taking(self, *milliseconds: float):
        """A contender whose calls take these times, over and over."""
        calls = iter(())

        def call() -> None:
            nonlocal calls
            value = next(calls, None)
            if value is None:
                calls = iter(milliseconds)
                value = next(calls)
            self.now += value / 1e3

        return call


def test_contenders_take_turns_in_changing_order() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    found = measure_latency(contenders, rounds=12, warmup=3)
    assert order[:9] == list("aaabbbccc"), "warm-up is uncounted"
    rounds = ["".join(order[i : i + 3]) for i in range(9, len(order), 3)]
    assert len(rounds) == 12
    assert all(sorted(r) == list("abc") for r in rounds)
    assert len(set(rounds)) > 2
    assert {latency.calls for latency in found.values()} == {12}
    again: list[str] = []
    measure_latency({name: lambda name=name: again.append(name) for name in "abc"}, rounds=12, warmup=3)
    assert again == order


def test_percentiles_in_milliseconds(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    found = measure_latency(
        {"steady": clock.taking(2.0), "ramp": clock.taking(*range(1, 22))}, rounds=21, warmup=0, seconds=1e9
    )
    steady, ramp = found["steady"], found["ramp"]
    assert (steady.p50, steady.p95, steady.best) == pytest.approx((2, 2, 2))
    assert (ramp.p50, ramp.p95, ramp.best, ramp.calls) == pytest.approx((11, 20, 1, 21))


def test_slow_contenders_get_three_rounds(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    found = measure_latency({"slow": clock.taking(7000.0)}, rounds=50, warmup=0, seconds=10)
    assert found["slow"].calls == 3
    found = measure_latency({"slow": clock.taking(3000.0)}, rounds=50, warmup=0, seconds=10)
    assert found["slow"].calls == 4


def test_a_single_round(monkeypatch) -> None:
    found = measure_latency({"one": Clock(monkeypatch).taking(5.0)}, rounds=1, warmup=0)
    assert (found["one"].p50, found["one"].p95, found["one"].calls) == pytest.approx((5, 5, 1))


def test_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="0 contenders"):
        measure_latency({})
    with pytest.raises(ConfigError, match="rounds=0"):
        measure_latency({"a": lambda: None}, rounds=0)


def test_a_generators_call_is_one_inference() -> None:
    seen = []

    class Generator(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.clone(), self.training, torch.is_inference_mode_enabled()))
            return x

    module = Generator().train()
    call = generator_call(module, (2, 1, 4, 6), torch.device("cpu"))
    assert seen == [], "making the call runs nothing"
    assert call() is not None
    call()
    assert [(training, inference) for _, training, inference in seen] == [(False, True)] * 2
    assert seen[0][0].shape == (2, 1, 4, 6)
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][0].min() >= -1
    assert seen[0][0].max() <= 1
    assert seen[0][0].std() > 0.3


def test_pauses_are_not_counted(monkeypatch) -> None:
    clock = Clock(monkeypatch)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), setattr(clock, "now", clock.now + seconds)))
    found = measure_latency({"a": clock.taking(2.0), "b": clock.taking(3.0)}, rounds=4, warmup=1, seconds=1e9, pause=0.5)
    assert slept == [0.5] * 8
    assert (found["a"].p95, found["b"].best) == pytest.approx((2, 3))


@pytest.mark.parametrize("classes", [0, 3])
def test_an_engines_call_has_the_generators_input(classes: int) -> None:
    class Engine:
        edges = classes > 0

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return image

    Engine.classes = classes
    seen = []
    network = torch.nn.Identity()
    if classes:
        network.example = SpadeGenerator(SpadeConfig.parse("1_1_1_1_1_1_1_1", label_nc=classes)).example
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    generator_call(network, (2, 1, 4, 6), torch.device("cpu"))()
    assert torch.equal(engine_call(Engine(), (2, 1, 4, 6))(), seen[0])
