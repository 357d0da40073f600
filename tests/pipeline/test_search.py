"""`gancomp search` in the engine and in PyTorch: the same choice, times of one kind in a file, sub-networks that are broken."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gancomp.cli import main
from gancomp.data import DataConfig
from gancomp.engine import Engine
from gancomp.errors import RunError
from gancomp.io import read_json, read_jsonl
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.pipeline.evaluate import EvaluateOptions, EvaluateRun, run_evaluate
from gancomp.pipeline.search import SearchRun, run_search
from gancomp.pipeline.settings import hardware
from gancomp.search import SearchOptions, SearchResult
from gancomp.supernet import SearchSpace, Supernet

from ..models import published

SPACE = SearchSpace.parse("12,8;8;12,8;8;8;8;8;8,4", 8)
DATA = DataConfig(load_size=32, crop_size=32, synthetic_train=4, synthetic_test=4)


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    net = Supernet(SPACE, 3, separable=True)
    published.randomised(net)
    net.save(tmp_path / "supernet.safetensors")
    return tmp_path / "supernet.safetensors"


def found(supernet: Path, out: str, runner: str = "auto", objective: str = "fd", **limits: Any) -> SearchResult:
    run = SearchRun(
        supernet=str(supernet),
        out=str(supernet.parent / out),
        search=SearchOptions(method="brute", objective=objective),  # type: ignore[arg-type]
        data=DATA,
        evaluate=EvaluateOptions(runner=runner),  # type: ignore[arg-type]
        **(limits or {"macs": "1G"}),
    )
    return run_search(run, progress=False)


def isa() -> str:
    return Engine(ResnetGenerator(ResnetConfig.uniform(4, 1)).to_bytes()).isa


@pytest.mark.parametrize("objective", ["fd", "l1", "psnr"])
def test_the_engine_chooses_what_pytorch_chooses(supernet: Path, objective: str) -> None:
    engine, stock = (found(supernet, name, name, objective) for name in ("engine", "torch"))
    key = "fd_random" if objective == "fd" else objective
    ranked = [
        [record["config_str"] for record in sorted(result.records, key=lambda record: record["metrics"][key])]
        for result in (engine, stock)
    ]
    assert ranked[0] == ranked[1]
    assert len(ranked[0]) == SPACE.size == 8
    assert engine.best["config_str"] == stock.best["config_str"]
    assert [record["config_str"] for record in engine.front] == [record["config_str"] for record in stock.front]
    for ours, theirs in zip(engine.records, stock.records, strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-3)
    assert engine.records != stock.records, "they differ in the last digits: not the same computation"


def test_evaluate_scores_a_candidate_as_the_search_did(supernet: Path) -> None:
    best = found(supernet, "found").best
    run = EvaluateRun(str(supernet), best["config_str"], split="val", data=DATA)
    result, stock = (run_evaluate(replace(run, evaluate=EvaluateOptions(runner=name))) for name in ("auto", "torch"))
    assert result["scores"] | best["metrics"] == result["scores"], "to the last bit"
    assert {"runner": "engine", "isa": isa(), "threads": 1, "precision": "f32"}.items() <= result["protocol"].items()
    assert stock["protocol"]["runner"] == "torch"
    assert stock["scores"] == pytest.approx(result["scores"], rel=1e-3)


# Times


def test_the_header_tells_what_times_are_of(supernet: Path) -> None:
    found(supernet, "timed", latency_ms=1e4)
    header, *lines = read_jsonl(supernet.parent / "timed/results.jsonl")
    facts = header["latency"]
    assert (facts["runner"], facts["isa"], facts["threads"], facts["precision"]) == ("engine", isa(), 1, "f32")
    assert facts["processor"]
    assert all(line["cost"]["latency_ms"] > 0 for line in lines)
    found(supernet, "stock", "torch", latency_ms=1e4)
    assert read_jsonl(supernet.parent / "stock/results.jsonl")[0]["latency"]["runner"] == "torch"
    found(supernet, "untimed")
    header, *lines = read_jsonl(supernet.parent / "untimed/results.jsonl")
    assert "latency" not in header
    assert not any("latency_ms" in line["cost"] for line in lines)


def test_times_of_two_kinds_are_never_mixed(supernet: Path, monkeypatch) -> None:
    result = found(supernet, "timed", latency_ms=1e4)
    path = supernet.parent / "timed/results.jsonl"
    content = path.read_text()

    def refused(message: str, runner: str = "auto") -> None:
        before = path.read_bytes()
        with pytest.raises(RunError, match=message):
            found(supernet, "timed", runner, latency_ms=1e4)
        assert path.read_bytes() == before

    refused(r"was begun with evaluate\.runner='auto', now 'torch'", "torch")
    monkeypatch.setenv("GANCOMP_BACKEND", "cpu")
    refused(r"was begun with latency\.runner='engine', now 'torch'; use another folder")
    monkeypatch.delenv("GANCOMP_BACKEND")
    torch.set_num_threads(2)
    refused(r"was begun with latency\.threads=1, now 2; use another folder")
    torch.set_num_threads(1)
    for name, value in (("isa", isa()), ("processor", hardware()["processor"])):
        path.write_text(content.replace(f'"{name}": "{value}"', f'"{name}": "another"'))
        refused(rf"was begun with latency\.{name}='another', now '{re.escape(value)}'; use another folder")
    path.write_text(content)
    assert found(supernet, "timed", latency_ms=1e4) == result


def test_scores_without_times_go_on_anywhere(supernet: Path, monkeypatch) -> None:
    result = found(supernet, "untimed", objective="l1")
    path = supernet.parent / "untimed/results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    torch.set_num_threads(2)
    again = found(supernet, "untimed", objective="l1")
    assert again.best["config_str"] == result.best["config_str"]
    assert again.records[:3] == result.records[:3]


# Sub-networks that are not finite


@pytest.mark.parametrize("runner", ["engine", "torch"])
def test_a_broken_sub_network_does_not_stop_a_search(tmp_path: Path, capsys, runner: str) -> None:
    net = Supernet(SPACE, 3, separable=True)
    published.randomised(net)
    with torch.no_grad():
        net.generator.model[1].weight[-1, 0, 0, 0] = float("nan")  # of the stem's last channel, which the narrow ones lack
    net.save(tmp_path / "supernet.safetensors")
    result = found(tmp_path / "supernet.safetensors", "found", runner, latency_ms=1e4)
    broken = [record for record in result.records if record["config_str"].startswith("12_")]
    whole = [record for record in result.records if record["config_str"].startswith("8_")]
    assert (len(broken), len(whole)) == (4, 4)
    assert result.best == min(whole, key=lambda record: record["metrics"]["fd_random"])
    assert all("note" not in record and record["metrics"]["l1"] > 0 for record in whole)
    for record in broken:
        assert record["metrics"] == {"fd_random": None}
        assert re.search("contains? values that are not finite", record["note"])
        assert record["cost"]["latency_ms"] > 0
    assert read_json(tmp_path / "found/chosen.json")["config_str"] == result.best["config_str"]
    capsys.readouterr()
    command = ["search", "--supernet", tmp_path / "supernet.safetensors", "--out", tmp_path / "told", "--macs", "1G"]
    options = ["--search.method", "brute", "--data.load-size", 32, "--data.crop-size", 32, "--evaluate.runner", runner]
    assert main([str(word) for word in (*command, *options, "--data.synthetic-test", 4)]) == 0
    assert f"4 of them are not finite, see {tmp_path / 'told' / 'results.jsonl'}" in capsys.readouterr().out


def test_evaluate_refuses_a_broken_generator(tmp_path: Path, capsys) -> None:
    generator = ResnetGenerator(ResnetConfig.uniform(4, 1))
    with torch.no_grad():
        generator.model[1].weight[0, 0, 0, 0] = float("nan")
    generator.save(tmp_path / "broken.safetensors")
    command = ["evaluate", "--model", tmp_path / "broken.safetensors", "--data.load-size", 32, "--data.crop-size", 32]
    assert main([str(word) for word in command]) == 2
    assert "the generator's output: contains values that are not finite" in capsys.readouterr().err


def test_results_are_readable_json(supernet: Path) -> None:
    found(supernet, "timed", latency_ms=1e4)
    for line in (supernet.parent / "timed/results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
