"""`make bench` in small: one case is checked, timed against stock PyTorch, and written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.schema import read_rows

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), *filter(None, [os.environ.get("PYTHONPATH")])))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_one_case_is_measured(tmp_path):
    path = tmp_path / "ops.csv"
    run = bench("-k", "reflect_pad_depthwise_conv3x3-1x64x64x64", "--csv", str(path))
    assert run.returncode == 0, run.stdout[-4000:]
    rows = read_rows(path)
    measured = {(row.kernel, row.provider, row.mode, row.metric, row.unit, row.x) for row in rows}
    kernel, size = "reflect_pad_depthwise_conv3x3", "1x64x64x64"
    assert measured == {
        (kernel, provider, mode, metric, unit, size)
        for mode in ("forward", "backward")
        for provider, metric, unit in (("stock", "time", "ms"), ("gancomp-cpu", "time", "ms"), ("gancomp-cpu", "speedup", "x"))
    }
    assert all(row.p20 > 0 and row.threads >= 1 and row.config == "plain" for row in rows)
    assert "paired" in run.stdout


@pytest.mark.slow
def test_no_number_when_a_check_fails(tmp_path):
    path = tmp_path / "ops.csv"
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from benchmarks.cases import OpCase\n"
        "right = OpCase.gancomp\n"
        "OpCase.gancomp = lambda self, *tensors, backend: right(self, *tensors, backend=backend) * 1.001\n"
    )
    run = bench(
        "-k", "reflect_pad_depthwise_conv3x3-1x64x64x64-plain-forward", "--csv", str(path), "-p", "broken", path=tmp_path
    )
    assert run.returncode == 1, run.stdout[-4000:]
    assert "AssertionError: reflect_pad_depthwise_conv3x3-1x64x64x64-plain forward, result 0" in run.stdout
    assert "speedup" not in run.stdout
    assert not path.exists()
