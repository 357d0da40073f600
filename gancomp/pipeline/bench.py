"""``gancomp bench``: how long a generator takes on this machine, and where the engine's time goes."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tyro.conf import Positional

from gancomp.engine import Engine, Step
from gancomp.errors import ConfigError, RunError
from gancomp.io import write_json
from gancomp.metrics import Latency, Roofline, engine_on, measure_latency, measure_roofline
from gancomp.metrics.contenders import (
    Call,
    Truth,
    eager_call,
    eager_form,
    example_image,
    onnxruntime_call,
    onnxruntime_reason,
    torch_threads,
)
from gancomp.models.base import check_range
from gancomp.pipeline.settings import hardware, open_generator
from gancomp.version import __version__

# Long enough for the threads of the last contender to stop looking for work.
_PAUSE = 0.02


@dataclass(frozen=True)
class BenchRun:
    """Time a generator on this machine: the engine, eager PyTorch, and ONNX Runtime where it is installed.

    Outputs are checked against float64 before anything is timed. The contenders take turns in one process.
    """

    model: Positional[str]
    """A generator file, or a supernet with `config_str`."""
    config_str: str = ""
    """The configuration of a supernet."""
    size: int = 256
    """Side of the square image in pixels."""
    threads: str = ""
    """Numbers of threads, such as `1,2`; empty: one, and all processors."""
    batch: str = "1,8"
    """Numbers of images in a call."""
    rounds: int = 30
    """Timed calls of each contender."""
    seconds: float = 20.0
    """No further round of a table row starts after this time."""
    precision: Literal["f32", "int8"] = "f32"
    """`int8` times the engine in 8 bits too."""
    out: str = ""
    """Write `bench.json` and `bench.png` to this folder."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_range("bench", "size", self.size, 16, 16384)
        check_range("bench", "rounds", self.rounds, 1)
        check_range("bench", "seconds", self.seconds, 0.0)
        self.numbers_of_threads()
        _numbers("batch", self.batch, 4096)

    def numbers_of_threads(self) -> list[int]:
        """The numbers of threads to time with, smallest first."""
        return _numbers("threads", self.threads, 256) if self.threads else sorted({1, _processors()})


def run_bench(run: BenchRun, *, progress: bool = True) -> dict[str, Any]:
    """Measure; returns what ``--json`` prints: ``latency``, ``steps``, ``roofline``, ``checks``, and what they depend on.

    Raises:
        ConfigError: the settings do not fit the generator.
        CheckpointError: the file cannot be used, or the engine does not run its network.
        RunError: an output of the engine or of PyTorch is off: then no time is told.
    """
    generator = open_generator(run.model, run.config_str, "time")
    if run.size % generator.size_multiple:
        raise ConfigError(f"size={run.size}: this generator needs a multiple of {generator.size_multiple}")
    eager = eager_form(generator).eval()
    image = example_image(generator, (1, generator.config.in_channels, run.size, run.size))
    engine = engine_on(generator, threads=run.numbers_of_threads()[-1])
    _say("checking the outputs against float64", progress)
    truth = Truth(eager, image)
    bench = _Bench(run, engine, eager, truth, image)
    if run.precision == "int8":
        bench.int8 = engine_on(generator, threads=engine.threads, precision="int8")
    for threads in run.numbers_of_threads():
        for count in _numbers("batch", run.batch, 4096):
            _say(f"timing {threads} thread{'s' * (threads > 1)}, {count} image{'s' * (count > 1)}", progress)
            with torch_threads(threads):
                bench.time(threads, count)
    steps = engine.profile(image, runs=max(3, min(run.rounds, 20)))
    rooflines = {threads: measure_roofline(engine.isa, threads) for threads in run.numbers_of_threads()}
    result = {
        "model": Path(run.model).name,
        "config_str": run.config_str,
        "size": [run.size, run.size],
        "parameters": engine.parameters,
        "macs": engine.macs(run.size, run.size),
        "isa": engine.isa,
        "hardware": hardware(),
        "software": {"gancomp": __version__, "torch": torch.__version__},
        "checks": bench.checks,
        "latency": bench.rows,
        "roofline": [dataclasses.asdict(roofline) for roofline in rooflines.values()],
        "steps": {"threads": engine.threads, "batch": 1, "rows": step_rows(steps, rooflines[engine.threads])},
        "notes": bench.notes,
    }
    if run.out:
        write_json(Path(run.out) / "bench.json", result)
        _plot(Path(run.out) / "bench.png", result)
    return result


class _Bench:
    """The measured rows, and the checks before them."""

    def __init__(self, run: BenchRun, engine: Engine, eager: torch.nn.Module, truth: Truth, image: torch.Tensor) -> None:
        self.run, self.engine, self.eager, self.truth, self.image = run, engine, eager, truth, image
        self.int8: Engine | None = None
        self.rows: list[dict[str, Any]] = []
        self.checks: dict[str, str] = {}
        self.notes: list[str] = []

    def time(self, threads: int, count: int) -> None:
        """Check and time every contender with so many threads on so many images."""
        calls = self._contenders(threads, count)
        for name in list(calls):
            verdict = self.truth.check(calls[name](), name, lower_precision=name.endswith("int8"))
            self.checks.setdefault(name, verdict.found)
            if verdict.reason is None:
                continue
            if name in ("engine", "eager"):
                raise RunError(f"{name}, {threads} threads, {count} images: {verdict.reason}; no time is told")
            self._note(f"{name} is left out: {verdict.reason}")
            del calls[name]
        times = measure_latency(calls, rounds=self.run.rounds, seconds=self.run.seconds, pause=_PAUSE)
        self.rows += [_row(threads, count, name, latency, times["eager"]) for name, latency in times.items()]

    def _contenders(self, threads: int, count: int) -> dict[str, Call]:
        x = self.image.repeat(count, 1, 1, 1)
        calls: dict[str, Call] = {"eager": eager_call(self.eager, x)}
        reason = onnxruntime_reason()
        if reason is None:
            try:
                calls["ONNX Runtime"] = onnxruntime_call(self.eager, x, threads)
            except RunError as error:
                reason = str(error)
        if reason is not None:
            self._note(f"ONNX Runtime is left out: {reason}")
        for name, engine in (("engine, int8", self.int8), ("engine", self.engine)):
            if engine is not None:
                calls[name] = _engine_call(engine.another(threads=threads), x)
        return calls

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _engine_call(engine: Engine, x: torch.Tensor) -> Call:
    return lambda: engine(x)


def _row(threads: int, count: int, name: str, latency: Latency, eager: Latency) -> dict[str, Any]:
    return {
        "threads": threads,
        "batch": count,
        "contender": name,
        **{key: round(value, 4) for key, value in vars(latency).items()},
        "images_per_second": round(1e3 * count / latency.p50, 2),
        "times_eager": round(eager.p50 / latency.p50, 3),
    }


def step_rows(steps: list[Step], roofline: Roofline) -> list[dict[str, Any]]:
    """The engine's steps, those of one name together, with their rates and their share of what the machine does at most."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.name, []).append(step)
    total = sum(step.ms for step in steps)
    rows = []
    for name, members in groups.items():
        ms = sum(step.ms for step in members)
        macs, moved = sum(step.macs for step in members), sum(step.bytes for step in members)
        flops = 2e3 * macs / ms if ms > 0 else 0.0
        rows.append(
            {
                "name": name,
                "calls": len(members),
                "ms": round(ms, 4),
                "share_of_time": round(ms / total, 4) if total > 0 else 0.0,
                "macs": macs,
                "gflops": round(flops / 1e9, 2),
                "share_of_peak": round(flops / roofline.flops, 4),
                "gbytes_per_second": round(1e-6 * moved / ms, 2) if ms > 0 else 0.0,
            }
        )
    return rows


def _plot(path: Path, result: Mapping[str, Any]) -> None:
    from gancomp.report.plots import bench_plot

    try:
        bench_plot(path, result)
    except ConfigError as error:
        # A machine without a plotting library still gets its result.
        print(f"no plot: {error}", file=sys.stderr)


def _numbers(name: str, text: str, high: int) -> list[int]:
    """Numbers such as ``1,2,8``, smallest first.

    Raises:
        ConfigError: not such a list, or a number out of range.
    """
    parts = text.replace(" ", "").split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 and 1 <= int(part) <= high for part in parts):
        raise ConfigError(f"{name}={text!r}: expected whole numbers from 1 to {high}, such as 1,2")
    return sorted({int(part) for part in parts})


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str, progress: bool) -> None:
    if progress:
        print(f"== {text}", file=sys.stderr, flush=True)
