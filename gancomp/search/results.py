"""The results file: one readable line per evaluated configuration, written as soon as it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gancomp.errors import RunError
from gancomp.io import append_jsonl, read_jsonl

Record = dict[str, Any]


class ResultsFile:
    """An append-only JSON-lines file: a header, then ``{config_str, cost, metrics, origin, generation, seconds}`` lines.

    Args:
        path: of the file; continued where it exists.
        header: what the evaluations depend on; a file of another header is refused.

    Raises:
        RunError: the file is damaged or belongs to another search.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._known: dict[str, Record] = {}
        lines = read_jsonl(path)
        if not lines:
            append_jsonl(path, {"kind": "header", **header})
            return
        before, *records = lines
        if before.pop("kind", None) != "header":
            raise RunError(f"{path}: is not a results file of a search")
        for key in [*before, *header]:
            if before.get(key) != header.get(key):
                raise RunError(f"{path}: was begun with {key}={before.get(key)!r}, now {header.get(key)!r}; use another folder")
        self._known = {record["config_str"]: record for record in records}

    @property
    def records(self) -> list[Record]:
        """Every line but the header, in the order of evaluation."""
        return list(self._known.values())

    def find(self, config_str: str) -> Record | None:
        """The line of a configuration, if it was evaluated."""
        return self._known.get(config_str)

    def add(self, record: Record) -> None:
        """Append a line and flush it to the disk."""
        append_jsonl(self.path, record)
        self._known[record["config_str"]] = record
