"""Bar plots of results files: `python -m benchmarks.plot benchmarks/results/ops-cpu.csv ops-cpu.png`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.schema import Row, read_rows
from gancomp.errors import ConfigError
from gancomp.report.plots import Percentiles, bars_plot


def panels(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Percentiles]]]:
    """The measured times by kernel and mode, by case, by provider. The median speedup of a case is part of its name."""
    speedups = {(row.kernel, row.mode, row.x, row.config): row.p50 for row in rows if row.metric == "speedup"}
    drawn: dict[str, dict[str, dict[str, Percentiles]]] = {}
    for row in rows:
        if row.metric != "time":
            continue
        speedup = speedups.get((row.kernel, row.mode, row.x, row.config))
        case = f"{row.x} {row.config}" + (f"  {speedup:.1f}x" if speedup is not None else "")
        bars = drawn.setdefault(f"{row.kernel}, {row.mode}", {}).setdefault(case, {})
        bars[row.provider] = (row.p20, row.p50, row.p80)
    return drawn


def main(arguments: Sequence[str]) -> None:
    """Draw the times of a results file.

    Raises:
        ConfigError: not two arguments, or no time in the file.
    """
    if len(arguments) != 2:
        raise ConfigError("usage: python -m benchmarks.plot RESULTS.csv PLOT.png")
    rows = [row for row in read_rows(arguments[0]) if row.metric in ("time", "speedup")]
    units = sorted({row.unit for row in rows if row.metric == "time"})
    where = sorted({f"{row.device}, {row.threads} threads" for row in rows})
    bars_plot(Path(arguments[1]), panels(rows), label=f"{', '.join(units)} per call, median and 20-80 % ({'; '.join(where)})")


if __name__ == "__main__":
    main(sys.argv[1:])
