"""Images per second of the data loader (decoding, resizing, cropping, flipping, batching) beside what a training step takes.

    python -m benchmarks.loader [--root FOLDER] [--csv FILE]

Without a folder it reads the real edges2shoes pairs (benchmarks/cases.py says where they are looked for), or the embedded set.
The step is that of the supernet at 256x256 with its discriminator (benchmarks/supernet_step.py), alone on all threads; a loader
in the background takes its share of them, so what matters is by how much it is faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from benchmarks.cases import shared_file
from benchmarks.schema import Row, conditions, percentiles, write_rows
from benchmarks.supernet_step import OURS, SPACE, Step, milliseconds
from gancomp.data import DataConfig, ImageDataset, open_dataset, train_batches
from gancomp.errors import GancompError
from gancomp.supernet import SearchSpace


def loader_speeds(dataset: ImageDataset, batch: int, workers: int, rounds: int, images: int) -> list[float]:
    """Images per second of every round of ``images`` images; before them every image is loaded once."""
    for index in range(len(dataset)):
        dataset.load(index)
    batches = train_batches(dataset, batch, seed=0, workers=workers)
    count = max(1, images // batch)
    try:
        # What the workers have made ahead is not timed.
        for _ in islice(batches, 4):
            pass
        speeds = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in islice(batches, count):
                pass
            speeds.append(count * batch / (time.perf_counter() - start))
        return speeds
    finally:
        batches.close()


def step_speeds(batch: int, rounds: int) -> list[float]:
    """Images per second that the smallest network's step takes: it is the hungriest."""
    step, config = Step(OURS, batch, "whole"), SearchSpace.parse(SPACE).smallest
    times = [milliseconds(lambda: step.run(config)) for _ in range(rounds + 1)]
    return [1e3 * batch / taken for taken in times[1:]]


def measure(root: str, batch: int, workers: Sequence[int], rounds: int, images: int, step_threads: int) -> list[Row]:
    """Rows of the loader with and without cache for every number of workers, and of the step (none for 0 threads)."""
    rows = []

    def add(kernel: str, speeds: list[float], threads: int, mode: str, config: str) -> None:
        spread: dict[str, Any] = percentiles(speeds)
        rows.append(
            Row(
                kernel=kernel,
                provider="gancomp",
                mode=mode,
                metric="throughput",
                unit="images/s",
                x=f"{batch}x3x256x256",
                config=config,
                **spread,
                **asdict(conditions(threads)),
            )
        )

    for cache in (0, 2048):
        config = DataConfig(root=root, cache_mb=cache, max_images=images)
        for count in workers:
            torch.set_num_threads(1)
            speeds = loader_speeds(open_dataset(config, "train"), batch, count, rounds, images)
            name = root.rstrip("/").rpartition("/")[2]
            add("loader", speeds, max(1, count), "cache" if cache else "decode", f"{name}, {count} workers")
    if step_threads:
        torch.set_num_threads(step_threads)
        add("supernet step", step_speeds(batch, rounds), step_threads, "training", f"{SPACE}, smallest, with discriminator")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'':14} {'':9} {'images/s':>9} {'p20':>7} {'p80':>7}  "]
    lines += [f"{row.kernel:14} {row.mode:9} {row.p50:9.1f} {row.p20:7.1f} {row.p80:7.1f}  {row.config}" for row in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write rows where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="", help="folder of pairs")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", default="0,1,2", help="numbers of loading threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=200, help="images of a round")
    parser.add_argument("--step-threads", type=int, default=2, help="threads of the training step; 0 leaves it out")
    parser.add_argument("--csv", default="", help="file to write")
    options = parser.parse_args(arguments)
    root = options.root or str(shared_file("data/edges2shoes") or "synthetic")
    workers = [int(count) for count in options.workers.split(",")]
    try:
        rows = measure(root, options.batch, workers, options.rounds, options.images, options.step_threads)
        print(table(rows))
        if options.csv:
            write_rows(options.csv, rows)
    except GancompError as error:
        print(f"loader: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
