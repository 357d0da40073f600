"""The stages one after the other by hand, as verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gancomp import load_generator, load_supernet
from gancomp.search import profile_module

from .conftest import TINY, TINY_TRAINING


@pytest.mark.slow
def test_every_stage_by_its_verb(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def done(*arguments: str) -> list[str]:
        status, out, err = run(*arguments)
        assert status == 0, err
        return out.splitlines()

    common = [*TINY, *TINY_TRAINING]
    assert done("train", "--out", "t", "--ngf", "8", "--model.n-blocks", "3", *common) == ["t/generator.safetensors"]
    teacher = "t/generator.safetensors"
    assert done("supernet", "--teacher", teacher, "--out", "s", "--space", "8,4", *common) == ["s/supernet.safetensors"]
    search = ["search", "--supernet", "s/supernet.safetensors", "--teacher", teacher, "--out", "f", "--budget", "4x", *TINY]
    options = ["--search.population", "4", "--search.generations", "2", "--search.objective", "l1"]
    first, second, third = done(*search, *options)
    config_str = first.removeprefix("config_str ")
    assert json.loads(Path("f/chosen.json").read_text())["config_str"] == config_str
    assert "macs" in second
    assert "l1" in second
    assert third == "8 configurations evaluated; f/pareto.png"
    assert done(*search, *options) == [first, second, third], "the same command finds its results"
    shared = ["--supernet", "s/supernet.safetensors", "--teacher", teacher, "--config-str", config_str]
    assert done("finetune", *shared, "--out", "g", *common) == ["g/generator.safetensors"]
    command = ["export", "--model", "s/supernet.safetensors", "--config-str", config_str, "--out", "cut.safetensors"]
    assert done(*command) == ["cut.safetensors"]

    cut, tuned = load_generator("cut.safetensors"), load_generator("g/generator.safetensors")
    expected = load_supernet("s/supernet.safetensors").extract(cut.config.channels)
    assert cut.config == tuned.config == expected.config
    assert all(torch.equal(a, b) for a, b in zip(cut.state_dict().values(), expected.state_dict().values(), strict=True))
    assert not torch.equal(cut.state_dict()["model.1.weight"], tuned.state_dict()["model.1.weight"])
    costs = [profile_module(network, (1, 3, 32, 32)).macs for network in (load_generator(teacher), tuned)]
    assert costs[0] >= 4 * costs[1]
    scores = json.loads(done("evaluate", "--model", "s/supernet.safetensors", "--config-str", config_str, *TINY, "--json")[0])
    assert scores["scores"] == json.loads(done("evaluate", "--model", "cut.safetensors", *TINY, "--json")[0])["scores"]
