"""A method's defaults: where they hold, and what overrides them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gancomp.cli.parse import parse
from gancomp.errors import ConfigError
from gancomp.pipeline.compress import CompressRun
from gancomp.pipeline.evaluate import EvaluateRun
from gancomp.pipeline.finetune import FinetuneRun
from gancomp.pipeline.methods import method_defaults, settings_of
from gancomp.pipeline.search import SearchRun
from gancomp.pipeline.supernet import SupernetRun
from gancomp.pipeline.train import TrainRun
from gancomp.train import TrainOptions


def read(settings: type, verb: str, *arguments: str):
    return parse(settings, verb, list(arguments))[0]


def test_the_published_cyclegan() -> None:
    run = read(CompressRun, "compress", "--model", "cyclegan", "--out", "x")
    assert (run.method, run.data.unpaired, run.space) == ("cyclegan", True, "channels-32")
    for group in (run.train, run.supernet, run.finetune):
        assert (group.gan_mode, group.ndf, group.batch_size, group.conditional) == ("lsgan", 64, 1, False)
    for group in (run.supernet, run.finetune):
        assert (group.lambda_recon, group.lambda_distill, group.target) == (10.0, 0.01, "teacher")
    assert (run.cyclegan.lambda_A, run.cyclegan.lambda_B, run.cyclegan.lambda_identity, run.cyclegan.pool_size) == (
        10.0, 10.0, 0.5, 50,
    )  # fmt: skip
    assert run.evaluate.reference == "train+val+test"
    assert run.supernet.sampling == "sandwich", "the verb's own default stays"
    assert (run.model.arch, run.model.ngf, run.model.n_blocks) == ("resnet", 64, 9)


def test_pix2pix_is_what_it_was() -> None:
    plain = read(CompressRun, "compress", "--out", "x")
    assert plain == read(CompressRun, "compress", "--model", "pix2pix", "--out", "x") == CompressRun(out="x")
    assert (plain.method, plain.data.unpaired, plain.train) == ("pix2pix", False, TrainOptions())


@pytest.mark.parametrize(
    "arguments", [["--model", "cyclegan"], ["--model=cyclegan"], ["--method", "cyclegan"], ["--method=cyclegan"]]
)
def test_names_of_the_flag(arguments: list[str]) -> None:
    assert read(TrainRun, "train", *arguments, "--out", "x").train.gan_mode == "lsgan"


def test_the_last_flag_counts() -> None:
    run = read(TrainRun, "train", "--out", "x", "--model", "cyclegan", "--method=pix2pix")
    assert run == TrainRun("x")


def test_flags_and_file_override_a_methods_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("out: a\nmethod: cyclegan\ndata: {root: x}\ntrain: {gan_mode: hinge, steps: 3}\nspace: '8,4'\n")
    run = read(CompressRun, "compress", "--config", str(file), "--train.ndf", "7", "--supernet.target", "truth")
    assert (run.train.gan_mode, run.train.steps, run.train.ndf, run.train.batch_size) == ("hinge", 3, 7, 1)
    assert (run.supernet.target, run.supernet.gan_mode, run.space) == ("truth", "lsgan", "8,4")
    assert (run.data.root, run.data.unpaired) == ("x", True)
    assert read(CompressRun, "compress", "--config", str(file), "--data.no-unpaired").data.unpaired is False
    back = read(CompressRun, "compress", "--config", str(file), "--model", "pix2pix")
    assert (back.train.gan_mode, back.train.ndf, back.data.unpaired) == ("hinge", 128, False), "the flag's method counts"


def test_printed_settings_are_the_ones_used(run, tmp_path: Path) -> None:
    flags = ["--model", "cyclegan", "--out", "a", "--train.steps", "4"]
    status, out, _ = run("compress", *flags, "--print-config")
    assert status == 0
    printed = yaml.safe_load(out)
    assert (printed["method"], printed["train"]["gan_mode"], printed["cyclegan"]["pool_size"]) == ("cyclegan", "lsgan", 50)
    (tmp_path / "run.yaml").write_text(out)
    assert read(CompressRun, "compress", "--config", str(tmp_path / "run.yaml")) == read(CompressRun, "compress", *flags)


def test_every_stage_has_the_methods_defaults() -> None:
    common = ["--method", "cyclegan"]
    supernet = read(SupernetRun, "supernet", *common, "--teacher", "t", "--out", "x")
    assert (supernet.train.target, supernet.train.lambda_distill, supernet.space) == ("teacher", 0.01, "channels-32")
    finetune = read(FinetuneRun, "finetune", *common, "--supernet", "s", "--teacher", "t", "--config-str", "1", "--out", "x")
    assert (finetune.train.target, finetune.data.unpaired) == ("teacher", True)
    search = read(SearchRun, "search", *common, "--supernet", "s", "--out", "x")
    assert (search.evaluate.reference, search.data.unpaired) == ("train+val+test", True)
    evaluate = read(EvaluateRun, "evaluate", *common, "--model", "cyclegan")
    assert (evaluate.model, evaluate.method, evaluate.data.unpaired) == ("cyclegan", "cyclegan", True)
    assert not read(EvaluateRun, "evaluate", "--model", "cyclegan").data.unpaired, "there it is the generator's file"


def test_unknown_methods(run, tmp_path: Path) -> None:
    status, _, err = run("train", "--model", "stargan", "--out", "x")
    assert status == 2
    assert "pix2pix" in err
    assert "cyclegan" in err
    (tmp_path / "run.yaml").write_text("out: a\nmethod: stargan\n")
    with pytest.raises(ConfigError, match="method='stargan': expected one of pix2pix, cyclegan"):
        read(TrainRun, "train", "--config", str(tmp_path / "run.yaml"))
    (tmp_path / "run.yaml").write_text("out: a\nmethod: cyclegan\ntrain: 3\n")
    with pytest.raises(ConfigError, match="train=3: expected settings of its own"):
        read(TrainRun, "train", "--config", str(tmp_path / "run.yaml"))


def test_the_help_shows_the_methods_defaults(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    _, out, _ = run("train", "--model", "cyclegan", "--help")
    flat = " ".join(out.split())
    assert "lsgan" in flat.partition("--train.gan-mode")[2][:200]
    assert "--model for --method" in flat


def test_settings_of_a_method_in_a_program() -> None:
    run = settings_of(CompressRun, "cyclegan", out="x", data={"root": "zebras"}, train={"steps": 3}, space="8,4")
    flags = ["--model", "cyclegan", "--out", "x", "--dataroot", "zebras", "--train.steps", "3", "--space", "8,4"]
    assert run == read(CompressRun, "compress", *flags)
    taken = settings_of(TrainRun, "cyclegan", out="x", train=TrainOptions(steps=5))
    assert taken.train == TrainOptions(steps=5), "an object is taken as it is"
    assert settings_of(TrainRun, "pix2pix", out="x") == TrainRun("x")


def test_no_defaults_for_a_method_nobody_knows() -> None:
    assert method_defaults(TrainRun, "stargan") == method_defaults(TrainRun, "pix2pix") == {}
