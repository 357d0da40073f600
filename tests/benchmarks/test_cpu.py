"""`make bench-cpu` in small: what is measured, what is compared with what, and when nothing is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import contest, cpu
from benchmarks.cases import build
from benchmarks.contest import Slice, Truth
from benchmarks.cpu import Bench, Match, Options, matches, parse
from benchmarks.peers import PEERS
from benchmarks.schema import read_rows
from gancomp import Engine
from gancomp.errors import RunError
from gancomp.models import ResnetConfig
from gancomp.models.stock import stock_generator

TINY = build(ResnetConfig.uniform(4, 3, separable=True))
MS = {"engine": 40.0, "engine-avx2": 50.0, "eager": 120.0, "onnxruntime": 100.0}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The measured network is a small one, and the machine's peaks are known."""
    monkeypatch.setattr(cpu, "weighted", lambda net: (TINY, "random weights"))
    monkeypatch.setattr(contest, "_PAUSE", 0)


class Actor:
    """A contestant of a known speed, which depends on the number of images alone, and a right output."""

    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __init__(self, name, model, image, threads):
        if name in self.missing:
            raise RunError(f"{name}: is not installed")
        self.peer, self.ms = PEERS[name], MS[name] * len(image) ** 0.5
        with torch.no_grad():
            self.output = stock_generator(TINY)(image).numpy() + np.float32(0.3 if name in self.wrong else 0)

    def run(self, calls):
        return Slice((self.ms,) * calls, 0.05)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def bench(monkeypatch, tmp_path, actor=Actor, **options):
    monkeypatch.setattr(cpu, "Contestant", actor)
    defaults = {"nets": ("C1",), "threads": (1,), "peers": tuple(MS), "starts": 0, "rounds": 3, "side": 32}
    return Bench(Options(**{**defaults, **options}), tmp_path)


def found(rows, **wanted):
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_everything_is_compared_with_the_engine(monkeypatch, tmp_path):
    rows = bench(monkeypatch, tmp_path).run()
    one, batch = "1x3x32x32", "8x3x32x32"
    assert {row.provider: row.p50 for row in found(rows, metric="time", mode="inference", x=one)} == MS
    speedups = {(row.provider, row.config): row.p50 for row in found(rows, metric="speedup", x=one)}
    assert speedups == pytest.approx(
        {("engine", "vs eager"): 3.0, ("engine", "vs onnxruntime"): 2.5, ("engine-avx2", "vs engine"): 0.8}
    )
    speedups = {(row.provider, row.config): row.p50 for row in found(rows, metric="speedup", x=batch)}
    assert speedups == pytest.approx(
        {("engine", "vs eager"): 3.0, ("engine", "vs onnxruntime"): 2.5, ("engine", "vs one image at a time"): 8**0.5}
    )
    assert {row.config: row.p50 for row in found(rows, metric="rounds", x=one)} == {"run": 3, "used": 3}
    assert [row.p50 for row in found(rows, kernel="C1", metric="load", x=one)] == [0.05]
    errors = {row.provider: row.p50 for row in found(rows, metric="error", x=one)}
    assert set(errors) == set(MS)
    assert 0 < max(errors.values()) < 1e-5
    left_out = {row.provider: row.config for row in found(rows, metric="absent")}
    assert left_out == dict.fromkeys([*PEERS.keys() - MS.keys()], "left out of this run")


def test_steps_and_peaks(monkeypatch, tmp_path):
    rows = bench(monkeypatch, tmp_path, batches=False).run()
    engine = Engine(tmp_path / "C1.safetensors", threads=1)
    steps = engine.profile(np.zeros((1, 3, 32, 32), np.float32), runs=1)
    assert found(rows, metric="macs", provider="network")[0].p50 == engine.macs(32, 32)
    by_kind = found(rows, mode="step", metric="macs")
    assert {row.x for row in by_kind} == {step.name for step in steps}
    assert sum(row.p50 for row in by_kind) == sum(step.macs for step in steps)
    assert sum(int(row.config.split()[0]) for row in by_kind) == len(steps)
    assert {row.x for row in found(rows, mode="step", metric="time")} == {row.x for row in by_kind}
    peaks = {(row.metric, row.x): row.p50 for row in found(rows, mode="peak")}
    assert {metric for metric, isa in peaks if isa == engine.isa} == {"f32", "cache", "memory"}
    assert peaks["f32", engine.isa] > 1, "GFLOP/s of one core"


def test_a_wrong_engine_ends_the_run(monkeypatch, tmp_path):
    class Wrong(Actor):
        wrong = ("engine-avx2",)

    with pytest.raises(RunError, match=r"C1, 1 thread, engine-avx2: its output is off by 0\.3"):
        bench(monkeypatch, tmp_path, Wrong).run()


def test_what_is_wrong_or_missing_is_not_timed_and_says_why(monkeypatch, tmp_path):
    class Others(Actor):
        wrong, missing = ("eager",), ("onnxruntime",)

    rows = bench(monkeypatch, tmp_path, Others, batches=False).run()
    assert {row.provider for row in found(rows, metric="time", mode="inference")} == {"engine", "engine-avx2"}
    reasons = {row.provider: row.config for row in found(rows, metric="absent")}
    assert reasons["onnxruntime"] == "is not installed"
    assert reasons["eager"].startswith("its output is off by 0.3")


def test_time_is_shared_out_among_what_is_left(monkeypatch, tmp_path):
    given = {}

    def interleave(contestants, calls, *, rounds, seconds):
        given[len(given)] = seconds
        clock[0] += seconds
        return contest.interleave(contestants, calls, rounds=1)

    clock = [0.0]
    monkeypatch.setattr(cpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cpu, "interleave", interleave)
    run = bench(monkeypatch, tmp_path, nets=("mobile", "teacher"), peers=("engine", "eager"), batches=False, minutes=8.0)
    run.run()
    assert given == {0: pytest.approx(120.0), 1: pytest.approx(360.0)}


def test_matches():
    assert matches(Options(nets=("C1", "mobile"), threads=(1, 2), peers=("engine", "compile"))) == [
        Match("C1", 1, 1, ("engine", "compile")),
        Match("C1", 1, 8, ("engine",)),
        Match("C1", 2, 1, ("engine", "compile")),
        Match("C1", 2, 8, ("engine",)),
        Match("mobile", 1, 1, ("engine", "compile")),
        Match("mobile", 2, 1, ("engine", "compile")),
    ]


def test_options(monkeypatch, capsys):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda process: range(4), raising=False)
    full, path = parse([])
    assert (full.nets, full.threads, full.peers) == (("C1", "C2", "mobile", "teacher"), (1, 2), tuple(PEERS))
    assert path is None
    quick, path = parse(["--quick", "--csv", "out.csv"])
    assert (quick.nets, quick.threads, quick.minutes) == (("C1",), (2,), 5.0)
    assert set(PEERS) - set(quick.peers) == {"compile", "compile-max"}
    assert str(path) == "out.csv"
    told, _ = parse(["--quick", "--nets", "C2", "--threads", "4", "1", "--peers", "compile", "engine", "--minutes", "1"])
    assert told == Options(nets=("C2",), threads=(1, 4), peers=("compile", "engine"), starts=3, minutes=1.0)
    with pytest.raises(SystemExit):
        parse(["--threads", "5"])
    assert "--threads 5: expected 1 to 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_real_processes(monkeypatch, tmp_path):
    options = Options(nets=("C1",), threads=(1,), peers=("engine", "eager"), batches=False, starts=1, rounds=3, side=32)
    monkeypatch.setattr(cpu, "parse", lambda arguments: (options, tmp_path / "cpu.csv"))
    cpu.main([])
    rows = read_rows(tmp_path / "cpu.csv")
    times = {row.provider: row for row in found(rows, metric="time", mode="inference")}
    assert set(times) == {"engine", "eager"}
    assert all(row.p20 > 0 for row in times.values())
    (speedup,) = found(rows, metric="speedup")
    assert (speedup.provider, speedup.config) == ("engine", "vs eager")
    assert speedup.p50 == pytest.approx(times["eager"].p50 / times["engine"].p50, rel=1.0)
    starts = {(row.provider, row.metric): row.p50 for row in found(rows, mode="start")}
    assert starts["engine", "start"] < starts["eager", "start"], "PyTorch alone takes longer to import"
    assert 10 < starts["engine", "memory"] < starts["eager", "memory"] < 2000


def test_an_infinite_error_is_no_number(monkeypatch, tmp_path):
    class Empty(Actor):
        def __init__(self, name, *rest):
            super().__init__(name, *rest)
            if name == "eager":
                self.output = self.output[:, :1]

    rows = bench(monkeypatch, tmp_path, Empty, batches=False).run()
    assert "eager" not in {row.provider for row in found(rows, metric="error")}
    assert all(math.isfinite(row.p50) for row in rows)


def test_truths_are_computed_once(monkeypatch, tmp_path):
    made = []

    class Counted(Truth):
        def __init__(self, generator, image):
            made.append(len(image))
            super().__init__(generator, image)

    monkeypatch.setattr(cpu, "Truth", Counted)
    bench(monkeypatch, tmp_path, threads=(1, 2)).run()
    assert sorted(made) == [1, 8]
