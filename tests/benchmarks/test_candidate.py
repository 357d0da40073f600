"""`make bench-candidate` in small: what is timed, against what, and when nothing is written."""

from __future__ import annotations

import pytest

from benchmarks import candidate
from benchmarks.candidate import ENGINE, EVALUATION, IMAGES, SINGLE, STOCK, Bench, Options
from benchmarks.contest import Slice
from benchmarks.schema import Row, read_rows
from gancomp.errors import RunError
from gancomp.metrics import Runner
from gancomp.supernet import SPACES

TINY = Options(space="channels-32", threads=(1,), images=3, batch=2, side=32, candidates=2, rounds=3)
SMALLEST, LARGEST = "16_16_16_16_16_16_16_16", "32_32_32_32_32_32_32_32"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(candidate, "_PAUSE", 0)


def found(rows: list[Row], **wanted) -> list[Row]:
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def test_rows(tmp_path):
    numbers = {"threads": 1, "images": 3, "batch": 2, "side": 32, "candidates": 2, "rounds": 3}
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    candidate.main(["--space", "channels-32", *options, "--csv", str(tmp_path / "candidate.csv")])
    rows = read_rows(tmp_path / "candidate.csv")
    assert {row.x for row in rows if row.kernel != "machine"} == {"3x3x32x32"}
    for kernel in (IMAGES, EVALUATION):
        times = {(row.provider, row.config) for row in found(rows, kernel=kernel, metric="time")}
        assert times == {(name, config) for name in (ENGINE, STOCK, SINGLE) for config in (SMALLEST, LARGEST)}
        ratios = {row.config for row in found(rows, kernel=kernel, metric="speedup", provider=ENGINE)}
        assert ratios == {f"{config}, vs {rival}" for config in (SMALLEST, LARGEST, "all") for rival in (STOCK, SINGLE)}
    assert len(found(rows, kernel=IMAGES, metric="setup")) == 2
    assert len(found(rows, kernel="machine", metric="load")) == 1


def test_ratios_are_paired_and_every_call_does_its_work(monkeypatch):
    seen: list[int] = []

    def timed(call, calls: int) -> Slice:
        before = len(seen)
        call()
        batches = seen[before:]
        # By what it translated: stock PyTorch's two forms by their batches; the engine's images do not pass the hook.
        ms = {(): 10.0, (2, 1): 35.0, (1, 1, 1): 25.0}[tuple(batches)]
        return Slice((ms,) * calls, 0.05)

    original = candidate.stock_generator

    def watched(generator):
        stock = original(generator)
        stock.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        return stock

    monkeypatch.setattr(candidate, "run_slice", timed)
    monkeypatch.setattr(candidate, "stock_generator", watched)
    rows = Bench(TINY).run()
    for kernel in (IMAGES, EVALUATION):
        assert {row.p50 for row in found(rows, kernel=kernel, metric="speedup") if row.config.endswith(f"vs {STOCK}")} == {3.5}
        assert {row.p50 for row in found(rows, kernel=kernel, metric="speedup") if row.config.endswith("one by one")} == {2.5}
        assert {row.p50 for row in found(rows, kernel=kernel, metric="load")} == {0.05}


def test_a_wrong_image_is_not_timed(monkeypatch):
    right = Runner.candidate
    monkeypatch.setattr(Runner, "candidate", lambda self, net, config: lambda x: right(self, net, config)(x) + 1e-3)
    with pytest.raises(RunError, match=f"{SMALLEST}, engine: its output is off by"):
        Bench(TINY).run()


def test_candidates_are_the_extremes_and_random_ones():
    bench = Bench(Options(**{**vars(TINY), "candidates": 5, "rounds": 1}))
    rows = bench.run()
    configs = [row.config for row in found(rows, metric="setup")]
    assert configs[:2] == [SMALLEST, LARGEST]
    assert len(configs) == 5
    space = SPACES["channels-32"]
    assert all(space.validate(tuple(map(int, config.split("_")))) for config in configs)
