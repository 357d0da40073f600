"""Contests: every contestant in its own process, checked before it is timed, rounds with noise dropped."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

from benchmarks import contest
from benchmarks.cases import build
from benchmarks.contest import Contestant, Slice, Truth, interleave, paired_ratios, quiet_rounds, times
from benchmarks.peers import PEERS, Peer, installed, onnx_file
from gancomp import Engine
from gancomp.errors import RunError
from gancomp.models import ResnetConfig

# Of a smaller one the planes inside have so few pixels that one error of rounding says little about another.
IMAGE = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


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


@pytest.fixture(scope="module")
def truth(generator):
    return Truth(generator, IMAGE)


@pytest.mark.slow
def test_outputs_are_those_of_the_generator(pair, truth):
    verdicts = [truth.check(contestant.output, contestant.peer) for contestant in pair.values()]
    assert [verdict.reason for verdict in verdicts] == [None, None]
    assert max(verdict.error for verdict in verdicts) > 0
    assert min(verdict.psnr for verdict in verdicts) > 80


@pytest.mark.slow
def test_a_wrong_output_has_a_reason(pair, truth):
    eager, right = PEERS["eager"], pair["eager"].output
    assert re.fullmatch(r"its output is off by 0\.001, allowed is \S+", truth.check(right + np.float32(1e-3), eager).reason)
    bfloat16 = torch.from_numpy(right).bfloat16().float().numpy()
    assert truth.check(bfloat16, eager).reason.startswith("its output is off by")
    assert truth.check(bfloat16, PEERS["openvino"]).reason is None, "it chooses its precision itself"
    missing = truth.check(right[:, :2], eager)
    assert missing.reason == "its output is torch.float32 [1, 2, 48, 64], not torch.float32 [1, 3, 48, 64]"
    assert "not finite" in truth.check(np.full_like(right, np.nan), eager).reason


@pytest.mark.slow
def test_lower_precision_is_judged_by_its_images(pair, truth):
    right, int8 = pair["eager"].output, PEERS["engine-int8"]
    assert truth.check(right, int8).psnr == 100.0, "equal images"
    noise = np.random.default_rng(0).choice(np.float32([-1, 1]), right.shape)
    fine, coarse = truth.check(right + noise * np.float32(0.04), int8), truth.check(right + noise * np.float32(0.1), int8)
    assert fine.reason is None
    assert 33 < fine.psnr < 36, "20 log10(2 / 0.04) is 34"
    assert coarse.reason == f"its images have {coarse.psnr:.1f} dB against those of float32, 30 dB are needed"


@pytest.mark.slow
def test_engines_own_tolerance_is_tighter(pair, truth):
    off = pair["eager"].output + np.float32(0.7 * truth._allowed["stock"])
    assert truth.check(off, PEERS["eager"]).reason is None
    assert truth.check(off, PEERS["engine"]).reason.startswith("its output is off by")
    assert truth._allowed["algorithm"] == pytest.approx(truth._allowed["stock"] / 4), "no convolution here is Winograd's"


def test_measure_of_dense_networks_is_winograds(tmp_path):
    truth = Truth(build(ResnetConfig.uniform(8, 2)), IMAGE)
    assert truth._allowed["algorithm"] > 1.5 * truth._allowed["stock"] / 4


@pytest.mark.slow
def test_everybody_runs_in_every_round_in_its_own_process(pair):
    rounds = interleave(pair, {"eager": 4, "channels_last": 2}, rounds=3)
    assert [set(slices) for slices in rounds] == [{"eager", "channels_last"}] * 3
    assert {(name, len(one.times)) for slices in rounds for name, one in slices.items()} == {("eager", 4), ("channels_last", 2)}
    assert min(ms for slices in rounds for one in slices.values() for ms in one.times) > 0
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
    ghost = Peer("ghost", "", lambda model, image: lambda: image.numpy(), installed("torch", "no_such_runtime"))
    assert ghost.available() == "no_such_runtime is not installed (pip install 'gancomp[bench]')"
    monkeypatch.setitem(PEERS, "ghost", ghost)
    with pytest.raises(RunError, match="ghost: no_such_runtime"):
        Contestant("ghost", model, IMAGE, 1)


def test_engines_own_reason(model, monkeypatch):
    assert PEERS["engine"].available() is None
    monkeypatch.setattr("benchmarks.peers.Engine", lambda path, **options: Engine(path, isa="sse9", **options))
    assert PEERS["engine"].available().startswith("isa='sse9'")
    monkeypatch.setattr("benchmarks.peers.Engine", lambda path, *, threads=0: Engine(path, threads=threads))
    assert "unexpected keyword argument 'precision'" in PEERS["engine-int8"].available()


@pytest.mark.slow
def test_engine_peer_is_the_engine(model, truth):
    with Contestant("engine", model, IMAGE, 1) as contestant:
        assert truth.check(contestant.output, contestant.peer).reason is None
        assert np.array_equal(contestant.output, Engine(model, threads=1)(IMAGE.numpy()))


@pytest.mark.slow
def test_onnx_file_is_made_once_for_a_size(model):
    pytest.importorskip("onnxscript", reason="the exporter of PyTorch needs it (pip install 'gancomp[bench]')")
    path = onnx_file(model, IMAGE)
    assert path.name == "tiny.1x3x48x64.onnx"
    written = path.stat().st_mtime_ns
    assert onnx_file(model, IMAGE) == path
    assert path.stat().st_mtime_ns == written
    assert not list(path.parent.glob("*.data")), "the weights are in the file itself"


class Recorder:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, calls):
        self.log.append((self.name, calls))
        return Slice((1.0,) * calls, 0.0)


def test_turns_are_short_and_their_order_changes(monkeypatch):
    monkeypatch.setattr(contest, "_PAUSE", 0)
    log: list[tuple[str, int]] = []
    interleave({name: Recorder(name, log) for name in "abc"}, dict.fromkeys("abc", 5), rounds=20)
    orders = ["".join(name for name, _ in log[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 3
    assert {calls for _, calls in log} == {5}


def test_time_limit_keeps_three_rounds(monkeypatch):
    monkeypatch.setattr(contest, "_PAUSE", 0)
    assert len(interleave({"a": Recorder("a", [])}, {"a": 1}, rounds=50, seconds=0.0)) == 3


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


@pytest.mark.parametrize(("ms", "calls"), [(700, 1), (299, 2), (21, 15)])
def test_slices_are_as_long_as_the_clock_needs(ms, calls):
    log: list[tuple[str, int]] = []
    recorder = Recorder("a", log)
    recorder.run = lambda count: Slice((float(ms),) * count, None)
    assert contest.calls_of_a_slice(recorder) == calls


def test_foreign_load_is_seen(monkeypatch):
    if not os.path.exists("/proc/stat"):
        pytest.skip("the system does not tell")
    clock = iter([100.0, 100.5])
    monkeypatch.setattr(contest, "_busy_seconds", lambda: next(clock))
    ran = contest.run_slice(lambda: __import__("time").sleep(0.13), 2)
    assert len(ran.times) == 2
    assert 0.3 < ran.foreign < 0.5 / 0.26
    assert contest.run_slice.__globals__["_SHORTEST"] <= 0.26
