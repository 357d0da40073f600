"""The one table that every measurement goes into: a CSV file with these columns, written whole or not at all."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from gancomp.errors import DataError
from gancomp.io import write_text
from gancomp.version import __version__


@dataclass(frozen=True)
class Conditions:
    """Where and when a measurement was made: the processor and its instruction sets, threads, versions, commit, UTC time."""

    device: str
    threads: int
    versions: str
    commit: str
    time: str


@dataclass(frozen=True)
class Row:
    """One measured quantity and its percentiles.

    ``kernel`` is an operator or a network, ``provider`` whose implementation, ``mode`` forward or backward or inference,
    ``metric`` what ``unit`` counts (``time`` in ms; ``speedup``, a paired ratio of times, in x), ``x`` the shape or size that
    varies, ``config`` everything else that distinguishes the case.
    """

    kernel: str
    provider: str
    mode: str
    metric: str
    unit: str
    x: str
    p20: float
    p50: float
    p80: float
    config: str
    device: str
    threads: int
    versions: str
    commit: str
    time: str

    def __post_init__(self) -> None:
        percentiles = (self.p20, self.p50, self.p80)
        if not all(math.isfinite(value) for value in percentiles) or sorted(percentiles) != list(percentiles):
            raise DataError(f"{self.kernel} {self.provider} {self.metric}: percentiles {percentiles} are not ascending numbers")


COLUMNS = tuple(field.name for field in fields(Row))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The three percentiles of a row: ``p20``, ``p50``, ``p80``."""
    low, middle, high = np.percentile(values, (20, 50, 80))
    return {"p20": float(low), "p50": float(middle), "p80": float(high)}


def conditions(threads: int, *modules: str) -> Conditions:
    """The conditions of measurements made now on this machine's processor; installed ``modules`` are named with versions."""
    versions = {"gancomp": __version__, "torch": torch.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in modules}
    return Conditions(
        device=_processor(),
        threads=threads,
        versions=" ".join(f"{name}={version}" for name, version in versions.items()),
        commit=_commit(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


# Of a processor's flags in /proc/cpuinfo: what kernels of inference may use.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "asimddp")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        # A virtual machine's name can hide the generation.
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    known = {*facts.get("flags", "").split(), *facts.get("features", "").split()}
    flags = [flag for flag in _FLAGS if flag in known]
    return ", ".join([name, f"{os.cpu_count()} cores", *([" ".join(flags)] if flags else [])])


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write a results file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(row).items()})
    write_text(path, text.getvalue())


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read a results file.

    Raises:
        DataError: other columns, or a value that is not what its column holds.
    """
    kinds = {"p20": float, "p50": float, "p80": float, "threads": int}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path}: columns {reader.fieldnames}, expected {', '.join(COLUMNS)}")
        try:
            return [Row(**{name: kinds.get(name, str)(value) for name, value in record.items()}) for record in reader]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}") from None
