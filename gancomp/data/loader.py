"""Batches as a pure function of seed and step, so that a run that goes on at step k needs no saved state.

An epoch is a fresh permutation of the set; its last images that do not fill a batch are left out of that epoch. A set smaller
than one batch is repeated until the batch is full.
"""

from __future__ import annotations

import collections
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from gancomp.data.datasets import Batch, ImageDataset, Pair, stack_pairs
from gancomp.errors import ConfigError


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """The ``(epoch, index)`` of every image in the batch of a step."""
    per_epoch = max(1, size // batch_size)
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng((seed, 0, epoch)).permutation(size)
    if size < batch_size:
        order = np.resize(order, batch_size)
    return [(epoch, int(i)) for i in order[position * batch_size : (position + 1) * batch_size]]


def _load(dataset: ImageDataset, seed: int, epoch: int, index: int, repeat: int) -> Pair:
    return dataset.load(index, np.random.default_rng((seed, 1, epoch, index, repeat)))


def train_batches(
    dataset: ImageDataset, batch_size: int, seed: int, start_step: int = 0, workers: int = 0
) -> Generator[Batch, None, None]:
    """Endless augmented batches from step ``start_step`` on, the same for any number of workers.

    Args:
        dataset: training pairs.
        batch_size: images per batch.
        seed: of order and augmentation.
        start_step: the first batch's step.
        workers: threads that prepare the next batches while the current one is used (decoding and resizing release the
            interpreter); 0 prepares each batch when it is asked for.

    Raises:
        ConfigError: the set is empty.
        DataError: an image cannot be read.
    """
    if len(dataset) == 0:
        raise ConfigError(f"data: the {dataset.split} split is empty")

    def jobs(step: int) -> list[tuple[int, int, int]]:
        seen: collections.Counter[int] = collections.Counter()
        planned = []
        for epoch, index in batch_indices(len(dataset), batch_size, seed, step):
            planned.append((epoch, index, seen[index]))
            seen[index] += 1
        return planned

    step = start_step
    if workers == 0:
        while True:
            yield stack_pairs([_load(dataset, seed, *job) for job in jobs(step)])
            step += 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="gancomp-data")
    queue: collections.deque[list[Future[Pair]]] = collections.deque()
    try:
        while True:
            while len(queue) < 3:
                queue.append([pool.submit(_load, dataset, seed, *job) for job in jobs(step)])
                step += 1
            yield stack_pairs([future.result() for future in queue.popleft()])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def eval_batches(dataset: ImageDataset, batch_size: int = 8) -> Iterator[Batch]:
    """Every pair once, in order, unaugmented; the last batch may be short."""
    for begin in range(0, len(dataset), batch_size):
        yield stack_pairs([dataset.load(i) for i in range(begin, min(begin + batch_size, len(dataset)))])
