"""The table of released models in docs/checkpoints.md: `gancomp profile` gives every row of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gancomp.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").partition("## The released models in numbers")[2].splitlines()
    if "`--" in line and line.startswith("|")
]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_table_is_found() -> None:
    """Of ResNets the teacher, its separable form at four widths, and every generator that was released; of GauGANs the same."""
    assert len(ROWS) >= 18 + 8
    assert sum("spade" in row[1] for row in ROWS) == 8
    assert sum(row[6] != "" for row in ROWS) >= 12 + 4
    assert all(len(row) == 7 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_row(row: list[str], capsys) -> None:
    _, flags, params, macs, published, with_norms, printed = row
    arguments = ["profile", *flags.strip("`").split(), "--json"]
    assert main(arguments) == 0
    expected = {"params": number(params), "macs": number(macs), "macs_published": number(published)}
    assert json.loads(capsys.readouterr().out) == expected
    assert main([*arguments, "--count-norm"]) == 0
    assert json.loads(capsys.readouterr().out) == {**expected, "macs_published": number(with_norms)}
    if printed:
        millions, billions = re.fullmatch(r"([\d.]+)M / ([\d.]+)G", printed).groups()
        assert f"{number(params) / 1e6:.{len(millions.partition('.')[2])}f}" == millions
        counts = {f"{number(count) / 1e9:.{len(billions.partition('.')[2])}f}" for count in (published, with_norms)}
        assert billions in counts
