"""Measured time of generators: contenders interleaved in one process, percentiles in milliseconds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gancomp.engine import Engine
from gancomp.errors import ConfigError
from gancomp.nn.labels import random_labels


@dataclass(frozen=True)
class Latency:
    """Percentiles of single calls, in milliseconds, over ``calls`` calls."""

    p50: float
    p95: float
    best: float
    calls: int


def measure_latency(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    seconds: float = 10.0,
    pause: float = 0.0,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time callables against each other, one call each per round in a random order.

    Args:
        contenders: by name; on a GPU they must synchronise themselves.
        rounds: calls of each.
        warmup: uncounted calls of each before.
        seconds: no further round starts after this time, once three are done.
        pause: seconds before each call. Thread pools of different libraries disturb each other: their threads go on looking
            for work for some milliseconds, on the cores that the next contender needs.
        seed: of the order within a round.

    Raises:
        ConfigError: no contender, or fewer than one round.
    """
    if not contenders or rounds < 1:
        raise ConfigError(f"measure_latency: {len(contenders)} contenders, rounds={rounds}; expected at least one of each")
    for call in contenders.values():
        for _ in range(warmup):
            call()
    names, rng = list(contenders), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - began > seconds:
            break
        rng.shuffle(names)
        for name in names:
            if pause > 0:
                time.sleep(pause)
            start = time.perf_counter_ns()
            contenders[name]()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: _summary(sorted(values)) for name, values in times.items()}


def _summary(values: list[float]) -> Latency:
    last = len(values) - 1
    return Latency(p50=values[round(0.5 * last)], p95=values[round(0.95 * last)], best=values[0], calls=len(values))


def generator_call(generator: torch.nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> Callable[[], object]:
    """A call of ``generator`` on one fixed random input, finished when it returns.

    The input is an image [N, C, H, W], or what the generator's own ``example`` gives in its place.
    """
    x = getattr(generator, "example", random_images)(shape).to(device)
    generator = generator.to(device).eval()

    def call() -> object:
        with torch.inference_mode():
            y = generator(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return y

    return call


def engine_call(engine: Engine, shape: tuple[int, int, int, int]) -> Callable[[], Tensor]:
    """A call of an engine on the input of :func:`generator_call`."""
    x = random_labels(shape, engine.classes, edges=engine.edges) if engine.classes else random_images(shape)
    return lambda: engine(x)


def random_images(shape: tuple[int, ...]) -> Tensor:
    """One fixed random input [N, C, H, W] in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
