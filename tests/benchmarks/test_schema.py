"""Results files, and the plot drawn from them."""

from __future__ import annotations

import csv
import dataclasses

import pytest
from PIL import Image

from benchmarks import plot
from benchmarks.schema import COLUMNS, Row, conditions, percentiles, read_rows, write_rows
from gancomp.errors import ConfigError, DataError

ROW = Row(
    kernel="conv", provider="stock", mode="forward", metric="time", unit="ms", x="1x2x3x4", p20=1.0, p50=2.5, p80=3.0,
    config="relu, odd", device='"CPU", 2 cores', threads=2, versions="torch=2", commit="abc", time="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def test_columns_are_those_of_the_rule():
    rule = "kernel, provider, mode, metric, unit, x, p20, p50, p80, config, device, threads, versions, commit, time"
    assert tuple(rule.split(", ")) == COLUMNS


def test_round_trip(tmp_path):
    rows = [ROW, dataclasses.replace(ROW, provider="other", p20=0.25, threads=1)]
    write_rows(tmp_path / "results.csv", rows)
    assert read_rows(tmp_path / "results.csv") == rows
    with open(tmp_path / "results.csv", newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)


@pytest.mark.parametrize("values", [(3.0, 2.0, 4.0), (1.0, 2.0, float("nan")), (1.0, 2.0, float("inf"))])
def test_percentiles_that_cannot_be(values):
    with pytest.raises(DataError, match="not ascending numbers"):
        dataclasses.replace(ROW, p20=values[0], p50=values[1], p80=values[2])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "results.csv"
    write_rows(path, [ROW])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("2.5", "fast")]) + "\n")
    with pytest.raises(DataError, match=r"results\.csv: line 2: .*fast"):
        read_rows(path)
    path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(DataError, match=r"results\.csv: columns"):
        read_rows(path)


def test_percentiles():
    assert percentiles(range(101)) == {"p20": 20.0, "p50": 50.0, "p80": 80.0}


def test_conditions():
    now = conditions(3, "numpy")
    assert now.threads == 3
    assert {part.partition("=")[0] for part in now.versions.split()} == {"gancomp", "torch", "python", "numpy"}
    assert now.time.endswith("+00:00")


def test_plot_groups_times_and_names_speedups(tmp_path):
    ours = dataclasses.replace(ROW, provider="ours", p20=0.5, p50=1.25, p80=1.5)
    speedup = dataclasses.replace(ours, metric="speedup", unit="x", p20=1.5, p50=2.0, p80=2.5)
    backward = dataclasses.replace(ROW, mode="backward")
    assert plot.panels([ROW, ours, speedup, backward]) == {
        "conv, forward": {"1x2x3x4 relu, odd  2.0x": {"stock": (1.0, 2.5, 3.0), "ours": (0.5, 1.25, 1.5)}},
        "conv, backward": {"1x2x3x4 relu, odd": {"stock": (1.0, 2.5, 3.0)}},
    }
    write_rows(tmp_path / "results.csv", [ROW, ours, speedup, backward])
    plot.main([str(tmp_path / "results.csv"), str(tmp_path / "plot.png")])
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x1F, 0x6F, 0xEB), (0xC3, 0xCA, 0xD4)} <= colours


def test_plot_of_nothing(tmp_path):
    write_rows(tmp_path / "results.csv", [])
    with pytest.raises(ConfigError, match="no measurement"):
        plot.main([str(tmp_path / "results.csv"), str(tmp_path / "plot.png")])
    assert not (tmp_path / "plot.png").exists()
