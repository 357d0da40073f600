"""What makes a stage resumable: its folder, its saved state, and the mark that it is done.

A stage folder holds ``run.yaml`` (the resolved settings), ``state.pt`` (everything that changes while it trains),
``log.jsonl``, ``samples/`` and, when finished, its products and ``done.json``. Every file is written whole or not at all.
Random numbers are a function of seed and step, so no random state has to be kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from gancomp.errors import RunError, first_line
from gancomp.io import LEFTOVERS, atomic_path, read_json, write_json, write_text


class StageFolder:
    """One stage of a run on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.state_path = self.path / "state.pt"
        self.log_path = self.path / "log.jsonl"
        self.samples = self.path / "samples"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def done(self) -> dict[str, Any] | None:
        """What :meth:`finish` recorded, or None while the stage is unfinished."""
        path = self.path / "done.json"
        return read_json(path) if path.exists() else None

    def open(self, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        """Create the folder, or check that it belongs to a run of the same settings.

        Args:
            settings: of the run, resolved.
            defaults: what settings were before they could be set: a run that was begun without one had this value.

        Raises:
            RunError: it was begun with other settings; the message names the first difference.
        """
        import yaml

        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"out={str(self.path)!r}: is a file, expected a folder or a new name")
        file = self.path / "run.yaml"
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        if file.exists():
            try:
                before = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.YAMLError:
                raise RunError(f"{file}: damaged; remove the folder {self.path} to start again") from None
            if difference := first_difference(_filled(before, defaults or {}), yaml.safe_load(text)):
                raise RunError(f"{self.path}: was begun with {difference}; use the same settings or another folder")
            for leftover in self.path.rglob(LEFTOVERS):
                leftover.unlink()
            return
        if self.path.exists() and any(not path.match(LEFTOVERS) for path in self.path.iterdir()):
            raise RunError(f"out={str(self.path)!r}: the folder is not empty and holds no run; choose another one")
        write_text(file, text)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the stage done; what is needed only to resume it is removed."""
        write_json(self.path / "done.json", dict(record))
        self.state_path.unlink(missing_ok=True)


def _filled(before: Any, defaults: Mapping[str, Any]) -> Any:
    """``before`` with the settings that it lacks from ``defaults``, groups too."""
    if not isinstance(before, Mapping):
        return before
    known = {name: _filled(value, defaults[name]) for name, value in before.items() if isinstance(defaults.get(name), Mapping)}
    return {**defaults, **before, **known}


def first_difference(before: Any, now: Any, name: str = "") -> str | None:
    """Describe the first setting in which two nested mappings differ, or None."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            if key not in before or key not in now:
                side = "without" if key not in before else "with"
                return f"{inner} {side} a value, now the other way round"
            if found := first_difference(before[key], now[key], inner):
                return found
        return None
    return None if before == now else f"{name or 'settings'}={before!r}, now {now!r}"


class Stateful(Protocol):
    """Whatever changes while a stage trains: networks, optimizers, the loss scale."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


def save_state(path: Path, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write the step and the state of every part; after a crash either the old or the new state is there."""
    state = {"step": step, "parts": {name: part.state_dict() for name, part in parts.items()}}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch hides the system's error (a full disk) behind its own.
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from None
            raise RunError(f"{path}: the training state cannot be written ({first_line(error)})") from None


def load_state(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore what :func:`save_state` wrote into the given parts; returns the number of steps done (0: no state yet).

    Raises:
        RunError: the file is damaged or belongs to other networks.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        return int(state["step"])
    except Exception as error:
        # Damaged files end in any kind of exception, some without a text.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(f"{path}: cannot be resumed from ({reason}); remove it to start again") from None
