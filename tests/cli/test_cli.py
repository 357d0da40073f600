"""The command line: settings files, flags, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from PIL import Image

from gancomp.cli import VERBS, main
from gancomp.cli.parse import parse
from gancomp.errors import ConfigError
from gancomp.pipeline.compress import CompressRun
from gancomp.pipeline.train import TrainRun


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_profile_json_is_exact(capsys) -> None:
    status, out, _ = run(capsys, "profile", "--arch", "resnet", "--config-str", "16_16_32_16_32_32_16_16", "--json")
    assert status == 0
    assert json.loads(out) == {"params": 356867, "macs": 1845755904, "macs_published": 2525233152}


def test_profile_of_a_file_and_layers(capsys, tmp_path: Path) -> None:
    from gancomp.models import ResnetConfig, ResnetGenerator

    ResnetGenerator(ResnetConfig.uniform(4, 1)).save(tmp_path / "g.safetensors")
    status, out, _ = run(capsys, "profile", "--model", str(tmp_path / "g.safetensors"), "--size", "32", "--layers")
    assert status == 0
    assert "model.10.conv_block.6" in out
    assert "MACs published" in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gancomp", verb, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: gancomp {verb}" in done.stdout


def test_no_arguments_shows_the_verbs(capsys) -> None:
    status, out, _ = run(capsys)
    assert status == 2
    assert all(verb in out for verb in VERBS)


def test_info_names_the_kernels(capsys) -> None:
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert "kernels:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres"], "unknown verb 'compres'"),
        (["profile", "--config-str", "16_16"], "config_str='16_16': has 2 numbers, a generator of 9 blocks takes 8 or 6"),
        (["profile", "--config-str", "16_x_16"], "config_str='16_x_16': expected positive integers"),
        (["profile", "--model", "none.pth"], "none.pth: no such file"),
        (["profile", "--size", "30"], "size=30: this generator needs a multiple of 4"),
        (["train", "--out", "x", "--dataroot", "missing/folder"], "data.root='missing/folder': no such folder"),
        (["train", "--out", "x", "--train.lr", "0"], "lr=0.0: expected a number between"),
        (["train", "--out", "x", "--crop-size", "30"], "data.crop_size=30: expected a multiple of 4"),
        (["train", "--out", "x", "--train.device", "tpu"], "device='tpu'"),
        (["train", "--config", "missing.yaml"], "config='missing.yaml': no such file"),
        (["export", "--model", "none.safetensors", "--out", "x.pth"], "out='x.pth': expected a file name ending in .safetensors"),
        (["evaluate", "--model", "none.safetensors"], "none.safetensors: no such file"),
    ],
)
def test_wrong_input_is_one_line(capsys, tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("gancomp: error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_unknown_flag(capsys) -> None:
    status, _, err = run(capsys, "train", "--out", "x", "--train.lrr", "1")
    assert status == 2
    assert "--train.lr" in err


def test_flags_override_the_file_and_aliases_work(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("out: a\ndata: {root: x, direction: BtoA}\ntrain: {steps: 7, lr: 1e-3}\n")
    settings, show = parse(TrainRun, "train", ["--config", str(file), "--train.steps", "9", "--ngf=12", "--dataroot", "y"])
    assert not show
    assert (settings.out, settings.train.steps, settings.train.lr, settings.model.ngf) == ("a", 9, 1e-3, 12)
    assert (settings.data.root, settings.data.direction) == ("y", "BtoA")


def test_a_groups_own_defaults_survive_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("out: a\nsupernet: {steps: 3}\n")
    settings, _ = parse(CompressRun, "compress", ["--config", str(file)])
    assert settings.supernet.sampling == "sandwich"
    assert settings.supernet.steps == 3
    assert settings.finetune.steps == 5000


def test_printed_settings_read_back_equal(capsys, tmp_path: Path) -> None:
    status, out, _ = run(capsys, "compress", "--out", "a", "--macs", "2.5e9", "--space", "8,4", "--print-config")
    assert status == 0
    file = tmp_path / "run.yaml"
    file.write_text(out)
    assert yaml.safe_load(out)["verb"] == "compress"
    again, _ = parse(CompressRun, "compress", ["--config", str(file)])
    assert again == parse(CompressRun, "compress", ["--out", "a", "--macs", "2.5e9", "--space", "8,4"])[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outt: a\n", "unknown setting outt; did you mean out?"),
        ("out: a\ntrain: {stepss: 1}\n", "unknown setting train.stepss; did you mean train.steps?"),
        ("out: a\ntrain: {steps: many}\n", "train.steps='many': expected int"),
        ("out: a\ntrain: {gan_mode: wgan}\n", "train.gan_mode='wgan': expected one of hinge, lsgan, vanilla"),
        ("out: a\ntrain: 3\n", "train=3: expected settings of its own"),
        ("out: a\ndata: {flip: 3}\n", "data.flip=3: expected bool"),
        ("- a\n", "expected settings as"),
        ("a: [\n", "not YAML"),
        ("verb: supernet\n", "is a run file of `gancomp supernet`"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(TrainRun, "train", ["--config", str(file)])
    assert message in str(caught.value)


def test_optional_and_text_values(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Inner:
        size: int = 1

    @dataclass(frozen=True)
    class Settings:
        name: str
        maybe: bool | None = None
        inner: Inner = field(default_factory=Inner)

    globals().update(Inner=Inner)
    file = tmp_path / "s.yaml"
    file.write_text("name: 12\nmaybe: true\ninner: {size: 2.0}\n")
    assert parse(Settings, "x", ["--config", str(file)])[0] == Settings("12", True, Inner(2))


def test_corrupt_image_is_named(capsys, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (64, 32)).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:40])
    status, _, err = run(
        capsys, "train", "--out", str(tmp_path / "run"), "--dataroot", str(tmp_path / "data"), "--load-size", "32", "--crop-size", "32",
        "--model.ngf", "4", "--model.n-blocks", "1", "--train.ndf", "4", "--train.batch-size", "10", "--train.d-layers", "1",
        "--train.steps", "4",
    )  # fmt: skip
    assert status == 2
    assert "5.png: cannot be read as an image" in err
    assert "Traceback" not in err


def test_export_of_a_foreign_file(capsys, tmp_path: Path) -> None:
    import torch

    from gancomp import load_generator
    from gancomp.models import ResnetConfig, ResnetGenerator

    generator = ResnetGenerator(ResnetConfig.uniform(4, 2)).eval()
    torch.save({f"module.{k}": v for k, v in generator.state_dict().items()}, tmp_path / "latest_net_G.pth")
    status, out, _ = run(capsys, "export", "--model", str(tmp_path / "latest_net_G.pth"), "--out", str(tmp_path / "g.safetensors"))
    assert status == 0
    assert out.strip() == str(tmp_path / "g.safetensors")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_generator(tmp_path / "g.safetensors")(x), generator(x))


def test_evaluate_json(capsys, tmp_path: Path) -> None:
    from gancomp.models import ResnetConfig, ResnetGenerator

    ResnetGenerator(ResnetConfig.uniform(4, 1)).save(tmp_path / "g.safetensors")
    status, out, _ = run(
        capsys, "evaluate", "--model", str(tmp_path / "g.safetensors"), "--load-size", "32", "--crop-size", "32",
        "--data.synthetic-test", "3", "--json", "--out", str(tmp_path / "scores.json"),
    )  # fmt: skip
    assert status == 0
    result = json.loads(out)
    assert result["scores"].keys() == {"l1", "psnr", "ssim", "fd_random"}
    assert result["protocol"]["images"] == 3
    assert json.loads((tmp_path / "scores.json").read_text()) == result


def test_ctrl_c_exits_130_and_the_run_goes_on(tmp_path: Path) -> None:
    import signal
    import time

    command = [
        sys.executable, "-m", "gancomp", "train", "--out", str(tmp_path / "run"), "--load-size", "32", "--crop-size", "32",
        "--data.synthetic-train", "8", "--data.synthetic-test", "2", "--model.ngf", "4", "--model.n-blocks", "1",
        "--train.ndf", "4", "--train.d-layers", "1", "--train.batch-size", "1", "--train.log-every", "1", "--train.steps", "100000",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while (not log.exists() or log.stat().st_size < 200) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "state.pt").exists()
