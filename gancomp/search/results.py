"""The results file: one readable line per evaluated configuration, written as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gancomp.errors import RunError
from gancomp.io import append_jsonl, read_jsonl

Record = dict[str, Any]


class ResultsFile:
    """An append-only JSON-lines file that a search continues.

    Its lines have a ``kind``: the ``header`` first; ``result`` with ``config_str``, ``cost``, ``metrics``, ``origin``,
    ``generation`` and ``seconds`` of an evaluated configuration, and a ``note`` where it has no score; ``cost`` with
    ``config_str`` and ``cost`` where the cost was measured, also of configurations that turned out too slow, so that a
    continued search decides as it did before.

    Args:
        path: of the file; continued where it exists, else made with the first line that follows the header.
        header: what the results depend on; a file of another header is refused.

    Raises:
        RunError: the file is damaged or belongs to another search.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._results: dict[str, Record] = {}
        self._costs: dict[str, dict[str, float]] = {}
        self._pending: Mapping[str, Any] | None = None
        lines = read_jsonl(path)
        if not lines:
            self._pending = header
            return
        if lines[0].pop("kind", None) != "header":
            raise RunError(f"{path}: is not a results file of a search")
        # Through JSON, so that a tuple equals the list it was written as.
        if difference := _difference(lines[0], json.loads(json.dumps(header))):
            raise RunError(f"{path}: {difference}; use another folder")
        for number, line in enumerate(lines[1:], start=2):
            kind = line.pop("kind", None)
            if kind not in ("result", "cost") or not {"config_str", "cost"} <= line.keys():
                raise RunError(f"{path}: line {number} is not a line of a search")
            self._costs[line["config_str"]] = line["cost"]
            if kind == "result":
                self._results[line["config_str"]] = line

    def __len__(self) -> int:
        return len(self._results)

    def result(self, config_str: str) -> Record | None:
        """The record of a configuration, if it was evaluated."""
        return self._results.get(config_str)

    def cost(self, config_str: str) -> dict[str, float] | None:
        """The cost of a configuration, if the file has it."""
        return self._costs.get(config_str)

    def add_cost(self, config_str: str, cost: dict[str, float]) -> None:
        """Write a measured cost and flush it to the disk."""
        self._append({"kind": "cost", "config_str": config_str, "cost": cost})
        self._costs[config_str] = cost

    def add_result(self, record: Record) -> None:
        """Write the record of an evaluated configuration and flush it to the disk."""
        self._append({"kind": "result", **record})
        self._results[record["config_str"]] = record

    def _append(self, line: dict[str, Any]) -> None:
        if self._pending is not None:
            append_jsonl(self.path, {"kind": "header", **self._pending})
            self._pending = None
        append_jsonl(self.path, line)


def _difference(before: Any, now: Any, name: str = "") -> str | None:
    """The first difference of two JSON values in words, or None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *[key for key in now if key not in before]]:
            inner = f"{name}.{key}" if name else key
            if key not in before or key not in now:
                return f"was begun {'with' if key in before else 'without'} {inner}"
            if difference := _difference(before[key], now[key], inner):
                return difference
        return None
    return None if before == now else f"was begun with {name}={before!r}, now {now!r}"
