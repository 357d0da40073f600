"""What a candidate of a search costs on this processor: `make bench-candidate`.

Its images over a validation set, and its whole evaluation with loading, L1 and Frechet distance; in the engine, as a search
does it, set-up included, against stock PyTorch. Both take turns in this process, as they would share it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.contest import Rounds, paired_ratios, quiet_rounds, run_slice, times
from benchmarks.cpu import Sheet, threads_text
from benchmarks.schema import Row, write_rows
from gancomp.data import DataConfig, eval_batches, open_dataset
from gancomp.errors import RunError
from gancomp.metrics import Evaluator, Runner, load_extractor
from gancomp.metrics.contenders import Truth, torch_threads
from gancomp.models.channels import Config, format_config
from gancomp.models.stock import stock_generator
from gancomp.supernet import SPACES, Supernet

ENGINE, STOCK, SINGLE = "engine", "stock", "stock, one by one"
"""Stock PyTorch is given the batches of the engine, and the images one by one, which it does sooner. Its sub-network stands
ready: cutting it out is not counted."""
IMAGES, EVALUATION = "candidate", "candidate, evaluated"
"""What is timed: the images alone; and with loading, L1 and Frechet distance."""
# Seconds between calls, for the threads of the last one to stop looking for work.
_PAUSE = 0.02


@dataclass(frozen=True)
class Options:
    """What is measured."""

    space: str = "channels-48"
    threads: tuple[int, ...] = (1, 2)
    images: int = 8
    batch: int = 8
    side: int = 256
    candidates: int = 4
    rounds: int = 5


class Bench:
    """A run of the benchmark: the same calls for every candidate and number of threads."""

    def __init__(self, options: Options) -> None:
        self.options, self.sheet = options, Sheet()
        torch.manual_seed(0)
        self._supernet = Supernet(SPACES[options.space], separable=True).eval()
        data = DataConfig(load_size=options.side, crop_size=options.side, synthetic_train=1, synthetic_test=options.images)
        self._dataset = open_dataset(data, "val")
        self._evaluators = {size: Evaluator(self._dataset, load_extractor(), size) for size in (options.batch, 1)}
        self._truths: dict[Config, Truth] = {}
        self._size = f"{options.images}x3x{options.side}x{options.side}"

    def run(self) -> list[Row]:
        """Measure everything; returns the rows.

        Raises:
            RunError: an output is wrong.
        """
        space, rng = self._supernet.space, random.Random(0)
        # The extremes, and what a search draws.
        configs = [space.smallest, space.largest, *(space.sample(rng) for _ in range(self.options.candidates - 2))]
        for threads in self.options.threads:
            self.sheet.begin(threads)
            self.sheet.add("machine", "other processes", "load", "processes", [os.getloadavg()[0]])
            with torch_threads(threads):
                every: dict[str, Rounds] = {IMAGES: [], EVALUATION: []}
                for config in configs[: self.options.candidates]:
                    for kernel, rounds in self._candidate(config).items():
                        self._record(kernel, format_config(config), rounds)
                        every[kernel] += rounds
                for kernel, rounds in every.items():
                    self._record(kernel, "all", rounds)
        return self.sheet.rows

    def _candidate(self, config: Config) -> dict[str, Rounds]:
        """The rounds of a candidate, by what is timed."""
        runner = Runner.choose(self._supernet.extract(config), wanted="engine")
        stock = stock_generator(self._supernet.extract(config))
        self._check(config, runner, stock)
        setups = [run_slice(lambda: runner.candidate(self._supernet, config), 1).times[0] for _ in range(9)]
        self.sheet.add(IMAGES, ENGINE, "setup", "ms", setups, x=self._size, config=format_config(config))
        batch = self.options.batch
        images: dict[str, Callable[[], object]] = {
            ENGINE: lambda: self._translate(runner.candidate(self._supernet, config), batch),
            STOCK: lambda: self._translate(stock, batch),
            SINGLE: lambda: self._translate(stock, 1),
        }
        metrics = ["l1", "fd"]
        evaluation: dict[str, Callable[[], object]] = {
            ENGINE: lambda: self._evaluators[batch].evaluate(runner.candidate(self._supernet, config), metrics),
            STOCK: lambda: self._evaluators[batch].evaluate(stock, metrics),
            SINGLE: lambda: self._evaluators[1].evaluate(stock, metrics),
        }
        return {IMAGES: self._interleave(images), EVALUATION: self._interleave(evaluation)}

    def _check(self, config: Config, runner: Runner, stock: torch.nn.Module) -> None:
        image = self._dataset.load(0).input[None]
        if config not in self._truths:
            self._truths[config] = Truth(stock, image)
        with torch.inference_mode():
            outputs = {ENGINE: runner.candidate(self._supernet, config)(image), STOCK: stock(image)}
        for name, output in outputs.items():
            if (reason := self._truths[config].check(output, name).reason) is not None:
                raise RunError(f"{format_config(config)}, {name}: {reason}")

    @torch.inference_mode()
    def _translate(self, run: Callable[[Tensor], Tensor], size: int) -> None:
        for batch in eval_batches(self._dataset, size):
            run(batch.input)

    def _interleave(self, calls: dict[str, Callable[[], object]]) -> Rounds:
        """Rounds in which everybody runs once, in an order drawn anew; one before them that is not counted."""
        names, rng, rounds = list(calls), random.Random(0), []
        for _ in range(self.options.rounds + 1):
            rng.shuffle(names)
            slices = {}
            for name in names:
                time.sleep(_PAUSE)
                slices[name] = run_slice(calls[name], 1)
            rounds.append(slices)
        return rounds[1:]

    def _record(self, kernel: str, config: str, rounds: Rounds) -> None:
        quiet = quiet_rounds(rounds)
        if config != "all":
            for name in rounds[0]:
                self.sheet.add(kernel, name, "time", "ms", times(quiet, name), x=self._size, config=config)
        foreign = [one.foreign for slices in quiet for one in slices.values() if one.foreign is not None]
        if foreign:
            self.sheet.add(kernel, "other processes", "load", "processors", [median(foreign)], x=self._size, config=config)
        for rival in (STOCK, SINGLE):
            ratios = paired_ratios(quiet, rival, ENGINE)
            self.sheet.add(kernel, ENGINE, "speedup", "x", ratios, x=self._size, config=f"{config}, vs {rival}")
            row = self.sheet.rows[-1]
            print(
                f"{threads_text(row.threads)}, {kernel}, {row.config}: {row.p50:.2f}x ({row.p20:.2f} to {row.p80:.2f}), "
                f"{len(quiet)} of {len(rounds)} rounds",
                flush=True,
            )


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and write its rows, if nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.candidate", description=__doc__)
    parser.add_argument("--space", choices=SPACES, default=Options.space, help="the supernet's search space")
    parser.add_argument("--threads", nargs="+", type=int, default=Options.threads, metavar="N")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the measured rows to this file")
    for name in ("images", "batch", "side", "candidates", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options, name), metavar="N")
    given = vars(parser.parse_args(arguments))
    path = given.pop("csv")
    rows = Bench(Options(**{**given, "threads": tuple(given["threads"])})).run()
    if path is not None:
        write_rows(path, rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RunError as error:
        sys.exit(f"error: {error}")
