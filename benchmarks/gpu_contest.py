"""Contests on a GPU: who takes part, turns in random order, times by events on the device."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.schema import Conditions, Row, percentiles
from gancomp.errors import first_line

TURN = 2e-3  # seconds of a contender's turn
Call = Callable[[], object]


@dataclass
class Contest:
    """Contenders that do the same: calls that are ready to be timed, and who is missing and why."""

    kernel: str
    mode: str
    x: str
    config: str
    calls: dict[str, Call] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Call]) -> None:
        """Add a contender if it can be made and runs."""
        try:
            call = make()
            call()
            synchronize()
        except Exception as error:
            self.missing[name] = f"{type(error).__name__}: {first_line(error)}"[:200]
        else:
            self.calls[name] = call

    def run(self, seconds: float, rng: random.Random) -> None:
        """Time all contenders for about so long, in milliseconds a call."""
        counts = {name: max(1, round(TURN / (milliseconds(call, 3) / 1e3))) for name, call in self.calls.items()}
        names, ends = list(self.calls), time.perf_counter() + seconds
        self.times = {name: [] for name in names}
        while names and (len(self.times[names[0]]) < 5 or (time.perf_counter() < ends and len(self.times[names[0]]) < 200)):
            rng.shuffle(names)
            for name in names:
                self.times[name].append(milliseconds(self.calls[name], counts[name]))
        self.calls.clear()

    def rows(self, where: Conditions) -> Iterator[Row]:
        """The times in the table of all benchmarks."""
        for name, values in self.times.items():
            fields: dict[str, Any] = {**percentiles(values), **asdict(where)}
            yield Row(
                kernel=self.kernel, provider=name, mode=self.mode, metric="time", unit="ms", x=self.x, config=self.config,
                **fields,
            )  # fmt: skip


def synchronize() -> None:
    """Wait for the device, where there is one to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Call, count: int) -> float:
    """Milliseconds of a call, as the mean of ``count`` in a row."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) * 1e3 / count
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def captured(call: Call) -> Call:
    """The call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
