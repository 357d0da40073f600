"""Whole networks on this processor against everything else that runs them: `make bench-cpu`.

Every network, number of threads and batch is a contest (contest.py): outputs are checked, then all contenders take turns.
Beside that: the peak rates of the processor, what every step of the engine takes, and how soon a fresh process has an image.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import NETS, photographs, weighted
from benchmarks.contest import (
    Contestant,
    Rounds,
    Truth,
    Verdict,
    calls_of_a_slice,
    interleave,
    paired_ratios,
    quiet_rounds,
    times,
)
from benchmarks.peers import PEERS, installed
from benchmarks.schema import Row, conditions, percentiles, write_rows
from benchmarks.startup import measure_starts
from gancomp import _C, Engine
from gancomp.errors import RunError
from gancomp.metrics.roofline import measure_roofline

OURS = "engine"
"""Whose time is compared with everybody's."""
ALONE = "engine, one image"
"""In a contest of batches: the engine with the first image."""
BATCH = 8
BATCHED_NETS = ("C1", "C2")
BATCHED_PEERS = ("engine", "engine-int8", "eager", "onnxruntime", "openvino-f32")
SLOW_TO_PREPARE = ("compile", "compile-max")
STARTED_NET = "C1"
_MODULES = ("onnxruntime", "openvino", "onnx")


@dataclass(frozen=True)
class Options:
    """What is measured, and in about how many minutes."""

    nets: tuple[str, ...] = tuple(NETS)
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = tuple(PEERS)
    batches: bool = True
    starts: int = 7
    rounds: int = 30
    minutes: float = 23.0
    side: int = 256


@dataclass(frozen=True)
class Match:
    """One contest: a network, its threads, its batch, and who takes part."""

    net: str
    threads: int
    batch: int
    peers: tuple[str, ...]

    @property
    def weight(self) -> float:
        """Of its share of the time that is left; a call of the teacher takes half a second."""
        return 3.0 if self.net == "teacher" else 1.0


def matches(options: Options) -> list[Match]:
    """The contests of a run, in their order."""
    found = []
    for net in options.nets:
        for threads in options.threads:
            found.append(Match(net, threads, 1, options.peers))
            if options.batches and net in BATCHED_NETS:
                found.append(Match(net, threads, BATCH, tuple(peer for peer in options.peers if peer in BATCHED_PEERS)))
    return found


class Sheet:
    """The rows of a run, and the conditions of the next ones."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._where: dict[str, Any] = {}

    def begin(self, threads: int) -> None:
        """What follows is measured from now on, with so many threads."""
        self._where = asdict(conditions(threads, *(name for name in _MODULES if installed(name)() is None)))

    def add(
        self, kernel: str, provider: str, metric: str, unit: str, values: Sequence[float], *, x: str = "", config: str = "",
        mode: str = "inference",
    ) -> None:  # fmt: skip
        """Add a measured quantity."""
        measured = {**percentiles(values), **self._where}
        self.rows.append(
            Row(kernel=kernel, provider=provider, mode=mode, metric=metric, unit=unit, x=x, config=config, **measured)
        )


class Bench:
    """A run of the benchmark; ``sheet`` holds what has been measured.

    Args:
        options: what to measure.
        folder: for the networks' files.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.sheet, self._folder = options, Sheet(), folder
        self._deadline = time.monotonic() + 60 * options.minutes
        self._networks = {net: weighted(net) for net in options.nets}
        self._truths: dict[tuple[str, int], Truth] = {}
        self.images, self.source = photographs(BATCH if options.batches else 1, options.side)

    def run(self) -> list[Row]:
        """Measure everything; returns the rows.

        Raises:
            RunError: an output of the engine is wrong, or a process failed while it was timed.
        """
        load = os.getloadavg()[0]
        self.sheet.begin(max(self.options.threads))
        self.sheet.add("machine", "other processes", "load", "processes", [load], config="average of the minute before the run")
        _say(f"{self.sheet.rows[0].device}; load average {load:.2f}")
        for threads in self.options.threads:
            self._peaks(threads)
        if STARTED_NET in self.options.nets and self.options.starts > 0:
            self._starts()
        left = matches(self.options)
        while left:
            share = left[0].weight / sum(match.weight for match in left)
            self._contest(left[0], (self._deadline - time.monotonic()) * share)
            if left[0].batch == 1:
                self._steps(left[0].net, left[0].threads)
            del left[0]
        return self.sheet.rows

    def _peaks(self, threads: int) -> None:
        self.sheet.begin(threads)
        for isa in {OURS: Engine(self._model(self.options.nets[0])).isa, "engine-avx2": "avx2"}.values():
            if isa not in _C.supported_isas():
                continue
            peaks = measure_roofline(isa, threads)
            self.sheet.add("machine", "roofline", "f32", "GFLOP/s", [peaks.flops / 1e9], x=isa, mode="peak")
            self.sheet.add("machine", "roofline", "cache", "GB/s", [peaks.cache_bytes / 1e9], x=isa, mode="peak")
            self.sheet.add("machine", "roofline", "memory", "GB/s", [peaks.memory_bytes / 1e9], x=isa, mode="peak")

    def _starts(self) -> None:
        threads = max(self.options.threads)
        self.sheet.begin(threads)
        starts = measure_starts(
            self._model(STARTED_NET), self.images[:1], threads, peers=self.options.peers, rounds=self.options.starts
        )
        for name, measured in starts.items():
            self.sheet.add(STARTED_NET, name, "start", "ms", [start.ms for start in measured], mode="start")
            self.sheet.add(STARTED_NET, name, "memory", "MB", [start.memory for start in measured], mode="start")
            _say(f"  {name}: first image after {median(start.ms for start in measured):.0f} ms")

    def _contest(self, match: Match, seconds: float) -> None:
        began = time.monotonic()
        image = self.images[: match.batch]
        size = "x".join(map(str, image.shape))
        self.sheet.begin(match.threads)
        _say(f"{match.net}, {threads_text(match.threads)}, batch {match.batch}")
        with ExitStack() as stack:
            contestants = self._prepare(match, image, size, stack)
            if match.batch > 1:
                contestants[ALONE] = stack.enter_context(Contestant(OURS, self._model(match.net), image[:1], match.threads))
            calls = {name: calls_of_a_slice(contestant) for name, contestant in contestants.items()}
            left = seconds - (time.monotonic() - began)
            rounds = interleave(contestants, calls, rounds=self.options.rounds, seconds=left)
        self._record(match, size, rounds)

    def _prepare(self, match: Match, image: Tensor, size: str, stack: ExitStack) -> dict[str, Contestant]:
        """The contestants that run here and whose output is right; the others are entered with the reason."""
        model, truth = self._model(match.net), self._truth(match.net, image)
        ready: dict[str, Contestant] = {}
        for name in match.peers:
            try:
                contestant = stack.enter_context(Contestant(name, model, image, match.threads))
            except RunError as error:
                self._absent(match.net, name, size, str(error).removeprefix(f"{name}: "))
                continue
            verdict = truth.check(contestant.output, contestant.peer)
            if verdict.reason is None:
                ready[name] = contestant
            elif contestant.peer.measure == "algorithm":
                raise RunError(f"{match.net}, {threads_text(match.threads)}, {name}: {verdict.reason}")
            else:
                self._absent(match.net, name, size, verdict.reason)
            self._judged(match, name, size, verdict)
        for name in PEERS:
            if name not in match.peers and match.batch == 1:
                self._absent(match.net, name, size, "left out of this run")
        return ready

    def _absent(self, net: str, name: str, size: str, reason: str) -> None:
        self.sheet.add(net, name, "absent", "", [0.0], x=size, config=reason)
        _say(f"  {name}: {reason}")

    def _judged(self, match: Match, name: str, size: str, verdict: Verdict) -> None:
        # The output does not depend on the threads; an infinite error has its reason in words.
        if match.threads == self.options.threads[0] and verdict.error < float("inf"):
            self.sheet.add(match.net, name, "error", "", [verdict.error], x=size)
            self.sheet.add(match.net, name, "psnr", "dB", [verdict.psnr], x=size, config=self.source)

    def _record(self, match: Match, size: str, rounds: Rounds) -> None:
        quiet = quiet_rounds(rounds)
        names = [name for name in (*match.peers, ALONE) if name in quiet[0]]
        for name in names:
            if name != ALONE:
                self.sheet.add(match.net, name, "time", "ms", times(quiet, name), x=size)
        for name in names:
            if name == ALONE:
                ratios = [match.batch * ratio for ratio in paired_ratios(quiet, ALONE, OURS)]
                self.sheet.add(match.net, OURS, "speedup", "x", ratios, x=size, config="vs one image at a time")
            elif name.startswith(f"{OURS}-"):
                self.sheet.add(match.net, name, "speedup", "x", paired_ratios(quiet, OURS, name), x=size, config=f"vs {OURS}")
            elif name != OURS:
                self.sheet.add(match.net, OURS, "speedup", "x", paired_ratios(quiet, name, OURS), x=size, config=f"vs {name}")
        foreign = [one.foreign for slices in rounds for one in slices.values() if one.foreign is not None]
        if foreign:
            self.sheet.add(match.net, "other processes", "load", "processors", foreign, x=size)
        self.sheet.add(match.net, "contest", "rounds", "rounds", [len(rounds)], x=size, config="run")
        self.sheet.add(match.net, "contest", "rounds", "rounds", [len(quiet)], x=size, config="used")
        ours = median(times(quiet, OURS)) if OURS in names else None
        for name in names:
            ms = median(times(quiet, name))
            ratio = f"{ms / ours:7.2f}x {OURS}" if ours is not None else ""
            _say(f"  {name:<18} {ms:9.1f} ms {ratio}")
        busy = f"; other processes had {median(foreign):.2f} processors" if foreign else ""
        _say(f"  {len(quiet)} of {len(rounds)} rounds used{busy}")

    def _steps(self, net: str, threads: int) -> None:
        """What every kind of step of the engine takes; steps of one name are added up."""
        engine = Engine(self._model(net), threads=threads)
        image = self.images[:1].numpy()
        steps = sorted(engine.profile(image, runs=10), key=attrgetter("name"))
        first = threads == self.options.threads[0]
        size = "x".join(map(str, image.shape))
        if first:
            height, width = image.shape[2:]
            config = f"{self._networks[net][1]}, {self.source}"
            self.sheet.add(net, "network", "macs", "", [engine.macs(height, width)], x=size, config=config)
        for name, same in groupby(steps, key=attrgetter("name")):
            group = list(same)
            config = f"{len(group)} steps"
            self.sheet.add(net, OURS, "time", "ms", [sum(step.ms for step in group)], x=name, config=config, mode="step")
            if first:
                self.sheet.add(net, OURS, "macs", "", [sum(step.macs for step in group)], x=name, config=config, mode="step")
                self.sheet.add(net, OURS, "bytes", "", [sum(step.bytes for step in group)], x=name, config=config, mode="step")

    def _model(self, net: str) -> Path:
        path = self._folder / f"{net}.safetensors"
        if not path.exists():
            self._networks[net][0].save(path)
        return path

    def _truth(self, net: str, image: Tensor) -> Truth:
        key = (net, len(image))
        if key not in self._truths:
            self._truths[key] = Truth(self._networks[net][0], image)
        return self._truths[key]


def threads_text(count: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count} thread" + "s" * (count > 1)


def _say(line: str) -> None:
    print(line, flush=True)


def parse(arguments: Sequence[str]) -> tuple[Options, Path | None]:
    """The options of a command line, and the file for the rows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description="Measure whole networks on this processor.")
    parser.add_argument("--nets", nargs="+", choices=NETS, help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="default: 1 and 2")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="default: all")
    parser.add_argument("--minutes", type=float, help="about how long the run takes; default: 23, quick 5")
    parser.add_argument("--quick", action="store_true", help="C1 with two threads and without torch.compile, where not told")
    parser.add_argument("--csv", type=Path, default=None, metavar="FILE", help="write the measured rows to this file")
    given = parser.parse_args(arguments)
    every = [name for name in PEERS if not (given.quick and name in SLOW_TO_PREPARE)]
    most = min(2, cores)
    threads = given.threads or ([most] if given.quick else [1, most])
    for count in threads:
        if not 1 <= count <= cores:
            parser.error(f"--threads {count}: expected 1 to {cores}, the processors of this machine")
    options = Options(
        nets=tuple(dict.fromkeys(given.nets or ([STARTED_NET] if given.quick else NETS))),
        threads=tuple(sorted(set(threads))),
        peers=tuple(dict.fromkeys(given.peers or every)),
        starts=3 if given.quick else 7,
        minutes=given.minutes or (5.0 if given.quick else 23.0),
    )
    return options, given.csv


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and write its rows, if nothing failed."""
    options, path = parse(arguments)
    torch.set_num_threads(max(options.threads))
    with tempfile.TemporaryDirectory() as folder:
        rows = Bench(options, Path(folder)).run()
    if path is not None:
        write_rows(path, rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RunError as error:
        sys.exit(f"error: {error}")
