"""``gancomp bench``: what it measures, what it refuses to tell, what it prints and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from gancomp.cli import main
from gancomp.engine import Step
from gancomp.errors import ConfigError, RunError
from gancomp.io import read_json
from gancomp.metrics import Roofline
from gancomp.models import ResnetConfig, ResnetGenerator, SpadeConfig, UnetConfig, UnetGenerator
from gancomp.pipeline import bench
from gancomp.pipeline.bench import BenchRun, run_bench, step_rows
from gancomp.search import profile_module
from gancomp.supernet import SearchSpace, Supernet

from ..engine import networks
from ..models import published

QUICK = {"size": 32, "rounds": 2, "threads": "2,1", "batch": "3,1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "g.safetensors"
    published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 2, separable=True))).save(path)
    return path


@pytest.fixture(autouse=True)
def _short(monkeypatch) -> None:
    """No ONNX Runtime, whether it is installed or not, and a short look at the machine."""
    monkeypatch.setattr(bench, "onnxruntime_reason", lambda: "onnxruntime is not installed")
    monkeypatch.setattr(bench, "measure_roofline", lambda isa, threads: Roofline(isa, threads, threads * 1e11, 2e11, 2e10))


def test_result(model: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    result = run_bench(BenchRun(str(model), out=str(tmp_path / "out"), **QUICK), progress=False)
    assert torch.get_num_threads() == before
    assert [(row["threads"], row["batch"], row["contender"]) for row in result["latency"]] == [
        (threads, batch, name) for threads in (1, 2) for batch in (1, 3) for name in ("eager", "engine")
    ]
    for row in result["latency"]:
        assert 0 < row["best"] <= row["p50"] <= row["p95"]
        assert row["calls"] == 2
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50"], rel=1e-2)
    profile = profile_module(ResnetGenerator(ResnetConfig.uniform(4, 2, separable=True)), (1, 3, 32, 32))
    assert (result["macs"], result["parameters"], result["size"]) == (profile.macs, profile.params, [32, 32])
    assert sum(row["macs"] for row in result["steps"]["rows"]) == profile.macs
    assert sum(row["share_of_time"] for row in result["steps"]["rows"]) == pytest.approx(1, abs=1e-2)
    assert [most["threads"] for most in result["roofline"]] == [1, 2]
    assert result["checks"].keys() == {"eager", "engine"}
    assert result["notes"] == ["ONNX Runtime is left out: onnxruntime is not installed"]
    assert result["model"] == "g.safetensors", "no folders"
    assert read_json(tmp_path / "out" / "bench.json") == json.loads(json.dumps(result))
    with Image.open(tmp_path / "out" / "bench.png") as plot:
        assert plot.width > 500
        assert len(set(plot.convert("RGB").resize((200, 200)).get_flattened_data())) > 20


def test_a_network_of_label_maps(tmp_path: Path) -> None:
    config = SpadeConfig.parse("1_1_1_1_1_1_1_2", label_nc=3, upsampling="normal")
    networks.build(config).save(tmp_path / "g.safetensors")
    result = run_bench(BenchRun(str(tmp_path / "g.safetensors"), **QUICK | {"size": 64}), progress=False)
    assert {row["contender"] for row in result["latency"]} == {"eager", "engine"}
    names = " ".join(row["name"] for row in result["steps"]["rows"])
    assert "label statistics 2" in names
    assert "label modulate 2->16" in names


@pytest.mark.parametrize("who", ["engine", "eager"])
def test_no_time_of_a_wrong_output(model: Path, monkeypatch, who: str) -> None:
    monkeypatch.setattr(bench, "measure_latency", lambda *args, **options: pytest.fail("timed in spite of it"))
    function = "_engine_call" if who == "engine" else "eager_call"
    honest = getattr(bench, function)
    monkeypatch.setattr(bench, function, lambda *args: lambda: honest(*args)() + 1e-3)
    with pytest.raises(RunError, match=rf"{who}, 1 threads, 1 images: its output is off by .*; no time is told"):
        run_bench(BenchRun(str(model), **QUICK), progress=False)


def test_others_with_a_wrong_output_are_left_out(model: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "onnxruntime_reason", lambda: None)
    monkeypatch.setattr(bench, "onnxruntime_call", lambda module, x, threads: lambda: module(x).detach() * 0.5)
    result = run_bench(BenchRun(str(model), **QUICK), progress=False)
    assert {row["contender"] for row in result["latency"]} == {"eager", "engine"}
    assert len(result["notes"]) == 1
    assert result["notes"][0].startswith("ONNX Runtime is left out: its output is off by")
    monkeypatch.setattr(bench, "onnxruntime_call", lambda module, x, threads: lambda: module(x).detach())
    result = run_bench(BenchRun(str(model), **QUICK), progress=False)
    assert {row["contender"] for row in result["latency"]} == {"eager", "ONNX Runtime", "engine"}


def test_other_networks(tmp_path: Path) -> None:
    published.randomised(UnetGenerator(UnetConfig(2, 5, norm="instance"))).save(tmp_path / "unet.safetensors")
    result = run_bench(BenchRun(str(tmp_path / "unet.safetensors"), size=32, rounds=1, threads="1", batch="1"), progress=False)
    assert {row["contender"] for row in result["latency"]} == {"eager", "engine"}
    torch.save(ResnetGenerator(ResnetConfig.uniform(4, 1)).state_dict(), tmp_path / "latest_net_G.pth")
    foreign = run_bench(BenchRun(str(tmp_path / "latest_net_G.pth"), size=32, rounds=1, threads="1", batch="1"), progress=False)
    assert foreign["latency"]
    Supernet(SearchSpace.parse("8,4"), 3).save(tmp_path / "supernet.safetensors")
    run = BenchRun(
        str(tmp_path / "supernet.safetensors"), config_str="8_4_8_4_8_8_4_8", size=32, rounds=1, threads="1", batch="1"
    )
    assert run_bench(run, progress=False)["config_str"] == "8_4_8_4_8_8_4_8"
    with pytest.raises(ConfigError, match="is a supernet; say which configuration to time"):
        run_bench(BenchRun(str(tmp_path / "supernet.safetensors")), progress=False)


def test_steps_of_one_name_are_one_row() -> None:
    steps = [Step("stem", 1.0, 2_000_000, 500), Step("block", 2.0, 1_000_000, 800), Step("block", 1.0, 1_000_000, 400)]
    rows = step_rows([*steps, Step("copy", 0.0, 0, 0)], Roofline("portable", 1, 8e9, 1e11, 1e10))
    assert [(row["name"], row["calls"], row["ms"], row["macs"]) for row in rows] == [
        ("stem", 1, 1.0, 2_000_000), ("block", 2, 3.0, 2_000_000), ("copy", 1, 0.0, 0),
    ]  # fmt: skip
    assert (rows[0]["gflops"], rows[0]["share_of_peak"], rows[0]["share_of_time"]) == (4.0, 0.5, 0.25)
    assert rows[1]["gflops"] == pytest.approx(4 / 3, abs=0.01)
    assert rows[1]["gbytes_per_second"] == pytest.approx(1200 / 3e-3 / 1e9, abs=1e-2)
    assert rows[2]["gflops"] == rows[2]["gbytes_per_second"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "bench: size=15: expected a whole number between 16 and 16384"),
        ({"rounds": 0}, "bench: rounds=0: expected a whole number at least 1"),
        ({"seconds": -1.0}, "bench: seconds=-1.0: expected a number at least 0.0"),
        ({"threads": "0"}, "threads='0': expected whole numbers from 1 to 256, such as 1,2"),
        ({"threads": "1,257"}, "threads='1,257': expected whole numbers from 1 to 256"),
        ({"batch": ""}, "batch='': expected whole numbers from 1 to 4096"),
        ({"batch": "1;2"}, "batch='1;2': expected whole numbers"),
    ],
)
def test_wrong_settings(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BenchRun("g.safetensors", **options)
    assert message in str(caught.value)


def test_numbers_are_sorted_and_threads_default_to_one_and_all(monkeypatch) -> None:
    assert BenchRun("g", threads="4, 1,4").numbers_of_threads() == [1, 4]
    monkeypatch.setattr(bench, "_processors", lambda: 6)
    assert BenchRun("g").numbers_of_threads() == [1, 6]
    monkeypatch.setattr(bench, "_processors", lambda: 1)
    assert BenchRun("g").numbers_of_threads() == [1]


def test_a_size_that_the_network_does_not_take(model: Path) -> None:
    with pytest.raises(ConfigError, match="size=33: this generator needs a multiple of 4"):
        run_bench(BenchRun(str(model), size=33), progress=False)


def test_the_command_line(model: Path, capsys) -> None:
    arguments = ["bench", str(model), "--size", "32", "--threads", "1", "--batch", "1", "--rounds", "1"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("g.safetensors: ")
    assert [line.split()[:3] for line in lines if line.strip().startswith("1 ")] == [["1", "1", "eager"], ["1", "1", "engine"]]
    assert any(line.startswith("conv 7x7 3->4") for line in lines)
    assert "checking the outputs" in shown.err
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [32, 32]
