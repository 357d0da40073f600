"""One training step of the supernet against the same step in stock PyTorch: time of its parts, and peak memory.

Run: python -m benchmarks.supernet_step [--threads 1,2] [--batch 1,4] [--csv FILE]

Both contenders run the same code of gancomp.train; the stock one has layers that narrow the weights and call
torch.nn.functional (see benchmarks.stock_supernet). The teacher's outputs are at hand, as from a cache. They take turns,
configuration by configuration; what is quoted is the ratio within a turn.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.schema import Row, conditions, percentiles, write_rows
from benchmarks.stock_supernet import make_stock
from gancomp.data import Batch
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import tolerance
from gancomp.train.distill import DistillStage
from gancomp.train.options import DistillOptions

SIDE, SPACE, TEACHER = 256, "channels-48", ResnetConfig.uniform(64, separable=True)
STOCK, OURS = "stock", "gancomp-cpu"


class Step:
    """A distillation stage whose teacher has answered already; ``part`` is ``student`` (no discriminator) or ``whole``."""

    def __init__(self, provider: str, batch: int, part: str) -> None:
        torch.manual_seed(0)
        supernet = Supernet(SearchSpace.parse(SPACE), padding="reflect", separable=True)
        if provider == STOCK:
            make_stock(supernet)
        options = DistillOptions(steps=1000, batch_size=batch, lambda_gan=float(part == "whole"), device="cpu")
        self.student = supernet
        self.stage = DistillStage(supernet, ResnetGenerator(TEACHER), options)
        if provider == STOCK:
            make_stock(self.stage.adaptors)
            if self.stage.adversary is not None:
                make_stock(self.stage.adversary.network)
        generator = torch.Generator().manual_seed(1)
        images = [torch.rand(batch, 3, SIDE, SIDE, generator=generator) * 2 - 1 for _ in range(3)]
        features = {
            name: torch.randn(batch, TEACHER.stream, SIDE // 4, SIDE // 4, generator=generator)
            for name in ResnetGenerator(TEACHER).feature_layers
        }
        self.stage._teach = lambda x: (images[2], features)  # type: ignore[method-assign]
        self.batch = Batch(images[0], images[1], tuple(map(str, range(batch))))

    def run(self, config: tuple[int, ...]) -> dict[str, float]:
        """One step on a configuration; its losses."""
        self.stage.configurations = lambda step: [config]  # type: ignore[method-assign]
        return {name: float(value) for name, value in self.stage.step(self.batch, 0).items()}

    def evaluate(self, config: tuple[int, ...]) -> Tensor:
        """The student's images."""
        self.student.set(config)
        with torch.no_grad():
            return self.student(self.batch.input)


def check(ours: Step, stock: Step, config: tuple[int, ...]) -> None:
    """Both start from equal weights: the image must be right by the tolerance policy, or nothing is timed."""
    exact = copy.deepcopy(stock.student).double()
    exact.set(config)
    with torch.no_grad():
        truth = exact(stock.batch.input.double())
    images = {provider.stage: provider.evaluate(config) for provider in (ours, stock)}
    error = float((images[ours.stage].double() - truth).abs().max())
    allowed = tolerance(images[stock.stage], truth)
    if not error <= allowed:
        raise SystemExit(f"the student's image is off by {error:.3g}, allowed {allowed:.3g}: nothing is timed")


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def contest(part: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Times in milliseconds of every round, by provider."""
    steps = {provider: Step(provider, batch, "student" if part == "evaluation" else part) for provider in (STOCK, OURS)}
    space, rng = SearchSpace.parse(SPACE), random.Random(0)
    check(steps[OURS], steps[STOCK], space.largest)
    times: dict[str, list[float]] = {STOCK: [], OURS: []}
    for index in range(rounds + 2):
        config = space.sample(rng)
        order = list(steps)
        rng.shuffle(order)
        for provider in order:
            step = steps[provider]
            taken = milliseconds(lambda: step.evaluate(config) if part == "evaluation" else step.run(config))  # noqa: B023
            if index >= 2:
                times[provider].append(taken)
    return times


def peak_megabytes(provider: str, batch: int, threads: int) -> float:
    """How much memory the student's part of a step of the largest network takes at most, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.supernet_step", "--peak", provider, "--batch", str(batch)]
    # Freed tensors go back to the system at once, so that the resident memory is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def print_peak(provider: str, batch: int) -> None:
    """The child's side of :func:`peak_megabytes`."""
    step, space = Step(provider, batch, "student"), SearchSpace.parse(SPACE)
    step.run(space.smallest)  # allocates gradients and the optimizer's state
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    status = Path("/proc/self/status").read_text()
    before = int(status.split("VmRSS:")[1].split()[0])
    step.run(space.largest)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    print((peak - before) / 1024)


def main() -> None:
    """Measure, print a table, write rows where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--batch", default="1,4")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--parts", default="student,whole,evaluation")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--peak", choices=(STOCK, OURS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts, batches = ([int(number) for number in text.split(",")] for text in (arguments.threads, arguments.batch))
    if arguments.peak:
        torch.set_num_threads(counts[0])
        print_peak(arguments.peak, batches[0])
        return
    rows: list[Row] = []
    for threads, batch in product(counts, batches):
        torch.set_num_threads(threads)
        where, where_text = asdict(conditions(threads)), f"{threads} threads, batch {batch}"
        measured: dict[tuple[str, str, str, str], list[float]] = {}
        for part in arguments.parts.split(","):
            rounds = max(4, arguments.rounds // batch)
            times = contest(part, batch, rounds)
            ratios = [a / b for a, b in zip(times[STOCK], times[OURS], strict=True)]
            middle = {provider: f"{median(values):.1f} ms" for provider, values in times.items()}
            print(f"{where_text}, {part}: stock {middle[STOCK]}, gancomp {middle[OURS]}: {median(ratios):.2f}x", flush=True)
            measured |= {(provider, part, "time", "ms"): values for provider, values in times.items()}
            measured[OURS, part, "speedup", "x"] = ratios
        peaks = {provider: peak_megabytes(provider, batch, threads) for provider in (STOCK, OURS)}
        middle = {provider: f"{value:.0f} MB" for provider, value in peaks.items()}
        share = peaks[OURS] / peaks[STOCK]
        print(f"{where_text}, peak memory: stock {middle[STOCK]}, gancomp {middle[OURS]}: {share:.2f}x", flush=True)
        measured |= {(provider, "student", "peak memory", "MB"): [value] for provider, value in peaks.items()}
        for (provider, part, metric, unit), values in measured.items():
            case = {"kernel": "supernet step", "provider": provider, "mode": part, "metric": metric, "unit": unit}
            size = {"x": f"{batch}x3x{SIDE}x{SIDE}", "config": SPACE}
            fields: dict[str, Any] = case | size | percentiles(values) | where
            rows.append(Row(**fields))
    if arguments.csv is not None:
        write_rows(arguments.csv, rows)


if __name__ == "__main__":
    main()
