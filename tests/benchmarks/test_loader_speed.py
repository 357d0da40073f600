"""The loader's benchmark: rows of its schema, cached and decoded, and a slow disk shows."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import loader
from benchmarks.schema import read_rows
from gancomp.data import DataConfig, open_dataset


def test_rows_and_table(tmp_path: Path, capsys) -> None:
    file = tmp_path / "loader.csv"
    arguments = [
        "--root",
        "synthetic",
        "--batch",
        "2",
        "--workers",
        "1",
        "--rounds",
        "2",
        "--images",
        "2",
        "--step-threads",
        "0",
    ]
    assert loader.main([*arguments, "--csv", str(file)]) == 0
    rows = read_rows(file)
    assert [(row.kernel, row.mode, row.unit) for row in rows] == [
        ("loader", "decode", "images/s"),
        ("loader", "cache", "images/s"),
    ]
    printed = capsys.readouterr().out
    assert all(row.config in printed for row in rows)
    assert rows[1].p50 > 2 * rows[0].p50, "an image of the embedded set takes longer to draw than to crop"


def test_speed_is_images_per_second() -> None:
    dataset = open_dataset(DataConfig(load_size=8, crop_size=8, synthetic_train=4), "train")
    load = dataset.load

    def slow(index, rng=None):
        time.sleep(0.01)
        return load(index, rng)

    dataset.load = slow
    speeds = loader.loader_speeds(dataset, 2, 0, rounds=2, images=8)
    assert len(speeds) == 2
    assert all(1 < speed <= 100 for speed in speeds)


def test_errors_are_one_line(capsys) -> None:
    assert loader.main(["--root", "gone"]) == 2
    assert capsys.readouterr().err == "loader: error: data.root='gone': no such folder\n"
