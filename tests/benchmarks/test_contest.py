"""Contests: every contestant in its own process, checked before it is timed, rounds with noise dropped."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from benchmarks import contest
from benchmarks.cases import build
from benchmarks.contest import Contestant, Slice, Truth, interleave, paired_ratios, quiet_rounds, times
from benchmarks.peers import PEERS, Peer
from gancomp.errors import RunError
from gancomp.models import ResnetConfig

IMAGE = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def generator():
    return build(ResnetConfig.uniform(4, 3, separable=True))


@pytest.fixture(scope="module")
def model(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("contest") / "tiny.safetensors"
    generator.save(path)
    return path


@pytest.fixture(scope="module")
def pair(model):
    with Contestant("eager", model, IMAGE, 1) as eager, Contestant("channels_last", model, IMAGE, 1) as channels_last:
        yield {"eager": eager, "channels_last": channels_last}


@pytest.mark.slow
def test_outputs_are_those_of_the_generator(pair, generator):
    errors = Truth(generator, IMAGE).check(list(pair.values()))
    assert set(errors) == {"eager", "channels_last"}
    assert max(errors.values()) > 0


@pytest.mark.slow
def test_a_wrong_output_stops_the_contest(pair, generator):
    truth, right = Truth(generator, IMAGE), pair["eager"].output
    try:
        pair["eager"].output = right + 1e-3
        with pytest.raises(RunError, match=r"eager: its output is off by 0\.001"):
            truth.check([pair["eager"]])
        pair["eager"].output = torch.from_numpy(right).bfloat16().float().numpy()
        with pytest.raises(RunError, match="eager: its output is off by"):
            truth.check([pair["eager"]])
        pair["eager"].output = right[:, :2]
        with pytest.raises(RunError, match=r"eager: output torch\.float32 \[1, 2, 16, 20\], not \[1, 3, 16, 20\]"):
            truth.check([pair["eager"]])
        pair["eager"].output = np.full_like(right, np.nan)
        with pytest.raises(RunError, match="eager: its output is off by nan"):
            truth.check([pair["eager"]])
    finally:
        pair["eager"].output = right


@pytest.mark.slow
def test_everybody_runs_in_every_round_in_its_own_process(pair):
    rounds = interleave(pair, calls=4, rounds=3)
    assert [set(slices) for slices in rounds] == [{"eager", "channels_last"}] * 3
    assert all(len(one.times) == 4 and min(one.times) > 0 for slices in rounds for one in slices.values())
    assert len({os.getpid(), *(contestant._process.pid for contestant in pair.values())}) == 3


@pytest.mark.slow
def test_a_contestant_that_fails_names_itself(model):
    with pytest.raises(RunError, match=r"eager: RuntimeError: .*channels"):
        Contestant("eager", model, IMAGE[:, :2], 1)
    with Contestant("eager", model, IMAGE, 1) as eager:
        eager._process.kill()
        with pytest.raises(RunError, match="eager: its process ended"):
            eager.run(1)


def test_an_absent_runtime_is_a_reason(model, monkeypatch):
    absent = Peer("ghost", "", lambda generator, image: lambda: image.numpy(), ("no_such_runtime",))
    assert absent.available() == "no_such_runtime is not installed (pip install 'gancomp[bench]')"
    assert Peer("ghost", "", absent.prepare, ("no-such-program()",)).available() == "no-such-program is not installed"
    monkeypatch.setitem(PEERS, "ghost", absent)
    with pytest.raises(RunError, match="ghost: no_such_runtime"):
        Contestant("ghost", model, IMAGE, 1)


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, calls):
        self.log.append((self.name, calls))
        return Slice((1.0,) * calls, 0.0)


def test_turns_are_short_and_their_order_changes(monkeypatch):
    monkeypatch.setattr(contest, "_PAUSE", 0)
    log: list[tuple[str, int]] = []
    interleave({name: Recorder(name, log) for name in "abc"}, calls=5, rounds=20)
    orders = ["".join(name for name, _ in log[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 3
    assert {calls for _, calls in log} == {5}


def test_time_limit_keeps_three_rounds(monkeypatch):
    monkeypatch.setattr(contest, "_PAUSE", 0)
    assert len(interleave({"a": Recorder("a", [])}, calls=1, rounds=50, seconds=0.0)) == 3


def one_round(a, b, foreign=0.0):
    return {"a": Slice(tuple(a), 0.0), "b": Slice(tuple(b), foreign)}


def test_rounds_with_foreign_load_are_dropped_whole():
    rounds = [one_round([1], [2], foreign) for foreign in (0.0, 0.5, None, 0.01)]
    assert quiet_rounds(rounds) == [rounds[0], rounds[2], rounds[3]]
    noisy = [one_round([1], [2], 0.5)] * 4
    assert quiet_rounds(noisy) == noisy


def test_ratios_are_paired():
    rounds = [one_round([2, 1, 3], [4, 4, 40]), one_round([20, 20, 20], [60, 10, 80])]
    assert paired_ratios(rounds, "b", "a") == [2.0, 3.0]
    assert times(rounds, "a") == [2, 1, 3, 20, 20, 20]


def test_foreign_load_is_seen(monkeypatch):
    if not os.path.exists("/proc/stat"):
        pytest.skip("the system does not tell")
    clock = iter([100.0, 100.5])
    monkeypatch.setattr(contest, "_busy_seconds", lambda: next(clock))
    ran = contest._slice(lambda: __import__("time").sleep(0.13), 2)
    assert len(ran.times) == 2
    assert 0.3 < ran.foreign < 0.5 / 0.26
    assert contest._slice.__globals__["_SHORTEST"] <= 0.26
