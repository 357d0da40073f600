"""The GPU's benchmark, run on a processor with tiny images: it must not fail for the first time on a lent machine."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks import gpu, gpu_contest
from benchmarks.gpu_contest import Contest
from benchmarks.schema import read_rows


@pytest.fixture
def short(monkeypatch):
    """Turns and contests of no length."""
    monkeypatch.setattr(gpu_contest, "TURN", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["ops", "net"])
def test_all_contests_run(part, short, tmp_path, monkeypatch, capsys):
    """Whoever needs a GPU is listed with the reason; PyTorch's own ops are timed."""
    if torch.cuda.is_available():
        pytest.skip("for processors; on a GPU, `make gpu-check` runs it")
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--side", "16", "--parts", part, "--seconds", "60"])
    gpu.main()
    rows = read_rows(tmp_path / "gpu.csv")
    names = {"ops": {"eager"}, "net": {"eager", "gancomp", "compile", "compile-dynamic", "compile-max-autotune"}}
    assert names[part] <= {row.provider for row in rows}
    text = (tmp_path / "gpu.md").read_text()
    assert "eager-graph: " in text
    if part == "ops":
        assert "gancomp-cuda: BackendError" in text
    assert "| eager |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_training_step_runs(short, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("for processors; on a GPU, `make gpu-check` runs it")
    from benchmarks import gpu_step

    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    monkeypatch.setattr(gpu_step, "SPACE", "8,4")
    (contest,) = gpu_step.step_contests(torch.device("cpu"), 32, (1,))
    assert contest.calls.keys() == {
        "eager", "gancomp", "channels_last static", "compile static", "compile-max-autotune static", "compile-dynamic",
    }  # fmt: skip
    assert contest.missing.keys() == {"gancomp-graph", "eager-graph static"}
    assert "this training step cannot be captured: the device is cpu" in contest.missing["gancomp-graph"]


def test_nobody_is_timed_whose_results_are_wrong(short):
    def wrong():
        raise AssertionError("result 0 is off by 1")

    contest = Contest("op", "forward", "1x1", "plain")
    contest.add("gancomp-cuda", wrong)
    contest.add("eager", lambda: lambda: None)
    contest.run(0.0, random.Random(0))
    assert contest.missing == {"gancomp-cuda": "AssertionError: result 0 is off by 1"}
    assert contest.times.keys() == {"eager"}
    assert len(contest.times["eager"]) == 5
