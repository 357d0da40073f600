"""Contests between peers on a machine that does other things too.

Every contestant lives in a process of its own with its own thread pool and runs when it is told to. They take turns in short
slices, in a random order in every round; a round in which other processes took processor time is dropped; what is quoted is
the ratio within a round. Nobody is timed before his output has been checked.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import PEERS, Peer
from gancomp.errors import RunError, first_line
from gancomp.metrics.contenders import LOWEST_PSNR
from gancomp.metrics.image import psnr
from gancomp.models import Generator
from gancomp.models.stock import stock_generator
from gancomp.testing import tolerance, with_winograd

QUIET = 0.1
"""A slice is quiet if other processes had less than this many processors during it."""

# Runtimes of others may sum less carefully than gancomp may (OpenVINO does, in InstanceNorm). What must show is another network
# or another precision, and bfloat16 is off by thousands of times.
_SLACK = 4
_EQUAL = 100.0  # dB, where images are equal to the last bit of their bytes
_SHORTEST = 0.2  # seconds of a slice, for the system's clock of 100 ticks a second to say something
_PAUSE = 0.02  # seconds between slices, for the threads of the last one to stop spinning


@dataclass(frozen=True)
class Slice:
    """Consecutive calls: milliseconds each, and how many processors other processes had meanwhile.

    The latter is None where the system does not tell, or the slice is shorter than its clock resolves (0.2 s).
    """

    times: tuple[float, ...]
    foreign: float | None


class Contestant:
    """A peer in its own process, prepared and with its first output at hand.

    Args:
        peer: a name of ``PEERS``.
        model: a file that ``gancomp.load_generator`` reads.
        image: [N, C, H, W] float32.
        threads: how many it may use.

    Raises:
        RunError: it cannot run here, or failed to prepare; the message gives the reason.
    """

    def __init__(self, peer: str, model: Path, image: Tensor, threads: int) -> None:
        self.peer = PEERS[peer]
        if (reason := self.peer.available()) is not None:
            raise RunError(f"{peer}: {reason}")
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, str(model), image.numpy(), threads))
        self._process.start()
        theirs.close()
        self.output: np.ndarray = self._answer()

    def run(self, calls: int) -> Slice:
        """One slice of ``calls`` timed calls; several follow an untimed one that brings caches and threads back.

        Raises:
            RunError: the process failed.
        """
        return self._answer(calls)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _answer(self, calls: int | None = None) -> Any:
        try:
            if calls is not None:
                self._connection.send(calls)
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = "its process ended"
        if isinstance(answer, str):
            self.close()
            raise RunError(f"{self.peer.name}: {answer}")
        return answer


def _serve(connection: Connection, peer: str, model: str, image: np.ndarray, threads: int) -> None:
    """The contestant's process: answers every number of calls with a slice until the other end closes."""
    try:
        torch.set_num_threads(threads)
        call = PEERS[peer].prepare(Path(model), torch.from_numpy(image))
        connection.send(call())
        while True:
            calls = connection.recv()
            if calls > 1:
                call()
            connection.send(run_slice(call, calls))
    except EOFError:
        return
    except Exception as error:
        # Whatever a runtime throws is an answer: the parent names the peer and goes on or stops.
        connection.send(f"{type(error).__name__}: {first_line(error)}")


def run_slice(call: Callable[[], object], calls: int) -> Slice:
    """One slice of ``calls`` timed calls in this process."""
    times = []
    before, own, began = _busy_seconds(), time.process_time(), time.perf_counter()
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    wall, own = time.perf_counter() - began, time.process_time() - own
    after = _busy_seconds()
    if before is None or after is None or wall < _SHORTEST:
        return Slice(tuple(times), None)
    return Slice(tuple(times), max(0.0, after - before - own) / wall)


def _busy_seconds() -> float | None:
    """Processor seconds that the whole machine has spent on anything but idling, or None where that cannot be read."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


Rounds = list[dict[str, Slice]]


def interleave(
    contestants: Mapping[str, Contestant],
    calls: Mapping[str, int],
    *,
    rounds: int,
    seconds: float = float("inf"),
    seed: int = 0,
) -> Rounds:
    """Let everybody run one slice of his number of calls in each of ``rounds`` rounds, in an order drawn anew from ``seed``.

    No further round starts after ``seconds``, once three are done.
    """
    names, rng, done = list(contestants), random.Random(seed), []
    began = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        rng.shuffle(names)
        slices = {}
        for name in names:
            time.sleep(_PAUSE)
            slices[name] = contestants[name].run(calls[name])
        done.append(slices)
    return done


def calls_of_a_slice(contestant: Contestant) -> int:
    """How many calls a slice needs to be as long as the system's clock resolves, with a margin."""
    return math.ceil(1.5 * _SHORTEST * 1e3 / contestant.run(1).times[0])


def quiet_rounds(rounds: Rounds) -> Rounds:
    """The rounds in which other processes left everybody alone; all of them if fewer than three were quiet."""
    quiet = [slices for slices in rounds if all(one.foreign is None or one.foreign < QUIET for one in slices.values())]
    return quiet if len(quiet) >= 3 else rounds


def times(rounds: Rounds, name: str) -> list[float]:
    """All times of a contestant's calls, in ms."""
    return [ms for slices in rounds for ms in slices[name].times]


def paired_ratios(rounds: Rounds, name: str, base: str) -> list[float]:
    """How many times as long ``name`` took as ``base``, by the medians of every round."""
    return [median(slices[name].times) / median(slices[base].times) for slices in rounds]


@dataclass(frozen=True)
class Verdict:
    """How far an output is off: the largest error against float64, and the worst image's PSNR in dB against PyTorch's.

    ``reason`` is why that is too far to be timed, or None.
    """

    error: float
    psnr: float
    reason: str | None


class Truth:
    """What every contestant's output is checked against: float64, and PyTorch's own errors as the measures.

    Args:
        generator: in evaluation mode.
        image: [N, C, H, W] float32.
    """

    def __init__(self, generator: Generator, image: Tensor) -> None:
        stock = stock_generator(generator)
        with torch.no_grad():
            self._eager = stock(image)
            with torch.autocast("cpu", torch.bfloat16):
                bfloat16 = stock(image).float()
            self._exact = copy.deepcopy(stock).double()(image.double())
            algorithm = with_winograd(stock)(image)
        self._allowed = {
            "stock": _SLACK * tolerance(self._eager, self._exact),
            "bfloat16": _SLACK * tolerance(bfloat16, self._exact),
            "algorithm": tolerance(algorithm, self._exact),
        }

    def check(self, output: np.ndarray, peer: Peer) -> Verdict:
        """Judge the output of a peer, whose ``measure`` says what is allowed. Fewer images are compared with the first ones.

        Runtimes of others may make four times the error that gancomp may (gancomp/testing.py).
        """
        exact, eager = self._exact[: len(output)], self._eager[: len(output)]
        y = torch.from_numpy(output)
        if y.shape != exact.shape or y.dtype != torch.float32 or not y.isfinite().all():
            found = f"{y.dtype} {list(y.shape)}" + ("" if y.isfinite().all() else " with values that are not finite")
            return Verdict(math.inf, -math.inf, f"its output is {found}, not {torch.float32} {list(exact.shape)}")
        error, quality = float((y.double() - exact).abs().max()), float(psnr(y, eager).min())
        reason = None
        if peer.measure == "psnr":
            if quality < LOWEST_PSNR:
                reason = f"its images have {quality:.1f} dB against those of float32, {LOWEST_PSNR:g} dB are needed"
        elif error > (allowed := self._allowed[peer.measure]):
            reason = f"its output is off by {error:.3g}, allowed is {allowed:.3g}"
        return Verdict(error, min(quality, _EQUAL), reason)
