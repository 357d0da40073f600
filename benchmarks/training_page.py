"""docs/performance-training.md, written from a results file: `python -m benchmarks.training_page`.

The text is in performance-training.md.in; every table is a function here.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page import ROOT, Results, conditions, number, table
from benchmarks.schema import Row, read_rows
from benchmarks.supernet_step import OURS, STOCK
from gancomp.io import write_text

RESULTS = ROOT / "benchmarks/results/supernet.csv"
PAGE = ROOT / "docs/performance-training.md"
TEMPLATE = Path(__file__).with_name("performance-training.md.in")

PARTS = {"student": "without a discriminator", "whole": "with the discriminator", "evaluation": "forwards only"}
TARGETS = {("student", 2): 2.0, ("whole", 2): 1.5}
MEMORY_TARGET = 0.7


def steps(results: Results) -> str:
    """Times and paired ratios of every part, batch and number of threads."""
    lines = []
    for ratio in results.all(metric="speedup"):
        where = {"mode": ratio.mode, "x": ratio.x, "threads": ratio.threads, "metric": "time"}
        stock, ours = results.one(provider=STOCK, **where), results.one(provider=OURS, **where)
        if stock is None or ours is None:
            continue
        target = TARGETS.get((ratio.mode, ratio.threads))
        missed = ", missed" if target and ratio.p50 < target else ""
        verdict = f" (target {target}x{missed})" if target else ""
        cells = [PARTS[ratio.mode], ratio.x.partition("x")[0], str(ratio.threads), number(stock.p50), number(ours.p50)]
        lines.append([*cells, f"{ratio.p50:.2f}x{verdict}", f"{ratio.p20:.2f} to {ratio.p80:.2f}"])
    return table(["step", "images", "threads", "stock, ms", "gancomp, ms", "times as fast", "20-80 % of the turns"], lines)


def memory(results: Results) -> str:
    """Peak memory of the student's part."""
    lines = []
    for ours in results.all(metric="peak memory", provider=OURS):
        stock = results.one(metric="peak memory", provider=STOCK, x=ours.x, threads=ours.threads)
        if stock is None:
            continue
        share = ours.p50 / stock.p50
        missed = ", missed" if share > MEMORY_TARGET else ""
        cells = [ours.x.partition("x")[0], str(ours.threads), f"{stock.p50:.0f}", f"{ours.p50:.0f}"]
        lines.append([*cells, f"{share:.2f}x (target {MEMORY_TARGET}x{missed})"])
    return table(["images", "threads", "stock, MB", "gancomp, MB", "share"], lines)


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    results = Results(rows)
    tables = {"conditions": conditions(results), "steps": steps(results), "memory": memory(results)}
    return string.Template(TEMPLATE.read_text()).substitute(tables)


if __name__ == "__main__":
    write_text(PAGE, page(read_rows(RESULTS)))
