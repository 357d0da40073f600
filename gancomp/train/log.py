"""Where training writes its numbers and pictures. No logger can stop a run: one that fails is dropped with one warning."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from gancomp.io import append_jsonl, read_jsonl, write_text


class TrainLog:
    """JSON lines always; TensorBoard too where it is installed.

    Args:
        path: the ``.jsonl`` file; lines of steps after ``start_step`` are those of a run that was killed and are dropped.
        start_step: steps done when the run goes on.
        tensorboard: folder of the event files, or None for none.
    """

    def __init__(self, path: Path, start_step: int = 0, tensorboard: Path | None = None) -> None:
        self.path = path
        records = read_jsonl(path)
        kept = [record for record in records if record["step"] <= start_step]
        if len(kept) < len(records):
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        self._began = time.perf_counter()
        self._writer = self._open_tensorboard(tensorboard, start_step) if tensorboard else None

    @staticmethod
    def _open_tensorboard(folder: Path, start_step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        try:
            return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
        except Exception as error:
            warnings.warn(f"TensorBoard is off: {error}", stacklevel=2)
            return None

    @property
    def seconds(self) -> float:
        """Training time so far, across resumed runs."""
        return self._seconds_before + time.perf_counter() - self._began

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log the values of one step."""
        append_jsonl(self.path, {"step": step, **values, "seconds": round(self.seconds, 3)})
        self._to_tensorboard(lambda writer: [writer.add_scalar(name, v, step) for name, v in values.items()])

    def image(self, step: int, name: str, picture: Any) -> None:
        """Log a PIL picture to TensorBoard."""

        def add(writer: Any) -> None:
            import numpy

            writer.add_image(name, numpy.asarray(picture), step, dataformats="HWC")

        self._to_tensorboard(add)

    def _to_tensorboard(self, write: Any) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except Exception as error:
            warnings.warn(f"TensorBoard is off from here on: {error}", stacklevel=3)
            self._writer = None

    def close(self) -> None:
        """Flush the event files."""
        self._to_tensorboard(lambda writer: writer.close())


class Progress:
    """A progress bar with rate and time left on a terminal; elsewhere a line every half minute."""

    def __init__(self, total: int, done: int, label: str, *, enabled: bool = True, interval: float = 30.0) -> None:
        self.total, self.label, self.interval, self.enabled = total, label, interval, enabled
        self._first, self._began, self._last = done, time.perf_counter(), time.perf_counter()
        self._bar = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, unit="step", dynamic_ncols=True)

    def update(self, done: int, note: str) -> None:
        """Show that ``done`` steps are done, with a short note."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.perf_counter()
        if self.enabled and (now - self._last >= self.interval or done == self.total):
            self._last = now
            rate = (done - self._first) / max(now - self._began, 1e-9)
            left = (self.total - done) / rate if rate else 0.0
            print(
                f"{self.label}: {done}/{self.total} steps, {rate:.2f}/s, {left:.0f} s left, {note}", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()


def format_losses(values: dict[str, float]) -> str:
    """A short text of the losses for the progress bar."""
    return " ".join(f"{name}={value:.3g}" for name, value in values.items())
