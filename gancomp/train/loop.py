"""The training loop every stage shares: batches in, losses out, state saved, pictures drawn, interrupts answered."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.data import Batch, ImageDataset, image_grid, paint_labels, stack_pairs, train_batches
from gancomp.errors import GancompError, RunError
from gancomp.io import atomic_path
from gancomp.train.adversary import Precision
from gancomp.train.log import Progress, TrainLog, format_losses
from gancomp.train.options import TrainOptions
from gancomp.train.state import StageFolder, Stateful, load_state, save_state


class Interrupted(GancompError):
    """The user or the system asked the run to stop; its state was saved and the same command goes on from it."""

    exit_code = 130


class Stage(ABC):
    """One kind of training: what a step does, what is kept, what it leaves behind."""

    name: str
    options: TrainOptions
    device: torch.device
    precision: Precision
    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def parts(self) -> dict[str, Stateful]:
        """All that a saved state has to hold, by name."""
        optimizers = {f"{name} optimizer": optimizer for name, optimizer in self.optimizers.items()}
        return {**self.modules, **optimizers, "loss scale": self.precision}

    @abstractmethod
    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Update the networks once; returns the losses by name."""

    @abstractmethod
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Images to look at, by column caption, for a batch of validation images."""

    @abstractmethod
    def write_products(self, folder: StageFolder, provenance: dict[str, Any]) -> None:
        """Write the stage's results."""


def fit(
    stage: Stage,
    train: ImageDataset,
    val: ImageDataset,
    folder: StageFolder,
    provenance: dict[str, Any],
    *,
    progress: bool = True,
    stop_at: int | None = None,
) -> bool:
    """Train ``stage`` to its last step, going on from the state in ``folder`` if there is one.

    Args:
        stage: networks, optimizers and the step.
        train: training images.
        val: images for the sample pictures.
        folder: opened stage folder.
        provenance: recorded in the products.
        progress: show progress on stderr.
        stop_at: save and return after this many steps in all (for time slices); None trains to the end.

    Returns:
        Whether the stage is finished.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
        RunError: a loss is not finite, or the saved state cannot be used.
    """
    if folder.done is not None:
        return True
    options = stage.options
    done = load_state(folder.state_path, stage.parts())
    last = options.steps if stop_at is None else min(stop_at, options.steps)
    log = TrainLog(folder.log_path, done, folder / "tensorboard")
    batches = train_batches(train, options.batch_size, options.seed, start_step=done, workers=options.workers)
    shown = _preview_batch(val)
    bar = Progress(options.steps, done, stage.name, enabled=progress)
    try:
        with _stop_requests() as stop, contextlib.closing(batches):
            stopping = False
            while done < last and not stopping:
                _seed_step(options.seed, done)
                for optimizer in stage.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = options.learning_rate(done) * group.get("lr_factor", 1.0)
                losses = stage.step(next(batches).to(stage.device), done)
                done += 1
                # Asked once a step: a request that comes after this line waits for the next step, which saves.
                stopping = stop.is_set()
                saving = done == last or done % options.save_every == 0 or stopping
                logging = done == options.steps or done % options.log_every == 0 or done == 1
                if saving or logging:
                    values = {name: float(value) for name, value in losses.items()}
                    _check_finite(values, done, folder)
                if logging:
                    log.scalars(done, {**values, "lr": options.learning_rate(done - 1)})
                    bar.update(done, format_losses(values))
                if done == options.steps or (options.sample_every and done % options.sample_every == 0):
                    _draw(stage, shown, done, folder, log)
                if saving:
                    save_state(folder.state_path, done, stage.parts())
            if stop.is_set():
                raise Interrupted(
                    f"{stage.name}: stopped at step {done} of {options.steps}; the same command goes on from there"
                )
        if done < options.steps:
            return False
        stage.write_products(folder, provenance)
        folder.finish({"stage": stage.name, "steps": done, "seconds": round(log.seconds, 1)})
        return True
    finally:
        bar.close()
        log.close()


def _seed_step(seed: int, step: int) -> None:
    """Seed torch (dropout) from the step, so that a resumed run draws what an unbroken one would."""
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)


def _check_finite(values: dict[str, float], step: int, folder: StageFolder) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(
                f"{folder.path}: loss {name} is {value} at step {step}; lower lr (the state saved before is still there)"
            )


def _preview_batch(val: ImageDataset, count: int = 4) -> Batch:
    spread = sorted({round(i * (len(val) - 1) / max(count - 1, 1)) for i in range(count)})
    return stack_pairs([val.load(index) for index in spread])


@torch.no_grad()
def _draw(stage: Stage, shown: Batch, step: int, folder: StageFolder, log: TrainLog) -> None:
    columns = stage.preview(shown.to(stage.device))
    columns = {caption: images if images.is_floating_point() else paint_labels(images) for caption, images in columns.items()}
    rows = [[images[i].float().cpu() for images in columns.values()] for i in range(len(shown.names))]
    picture = image_grid(rows, captions=list(columns))
    with atomic_path(folder.samples / f"step_{step:07d}.png") as temporary:
        picture.save(temporary, format="PNG")
    log.image(step, "samples", picture)


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag that is looked at between steps; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
