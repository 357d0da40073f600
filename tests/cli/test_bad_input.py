"""Wrong input gets one clear line, a status of its own, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp import (
    DiscriminatorConfig,
    PatchDiscriminator,
    ResnetConfig,
    ResnetGenerator,
    SearchSpace,
    Supernet,
    UnetConfig,
    UnetGenerator,
)

from .conftest import TINY, TINY_TRAINING

EIGHT = "16_16_32_16_32_32_16_16"


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """The working folder, with one file of every kind of network."""
    torch.manual_seed(0)
    folder = tmp_path / "files"
    ResnetGenerator(ResnetConfig.uniform(8, 3)).save(folder / "teacher.safetensors")
    UnetGenerator(UnetConfig(4, 5)).save(folder / "unet.safetensors")
    PatchDiscriminator(DiscriminatorConfig(ndf=4, n_layers=1)).save(folder / "patch.safetensors")
    Supernet(SearchSpace.parse("8,4", 8), n_blocks=3, separable=True).save(folder / "supernet.safetensors")
    (folder / "text.safetensors").write_text("no weights")
    (folder / "text.pth").write_text("no weights")
    whole = (folder / "teacher.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    monkeypatch.chdir(folder)
    return folder


def one_line(run, folder: Path, arguments: list[str], message: str, status: int = 2) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found, out, err = run(*arguments)
    assert found == status, err
    assert err.startswith("gancomp: error: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres"], "unknown verb 'compres'"),
        (["profile", "--config-str", "16_16"], "config_str='16_16': has 2 numbers, a generator of 9 blocks takes 8 or 6"),
        (["profile", "--config-str", "16_x_16"], "config_str='16_x_16': expected positive integers"),
        (["profile", "--config-str", "16_-1_16"], "config_str='16_-1_16': expected positive integers"),
        (["profile", "--model", "none.pth"], "none.pth: no such file"),
        (["profile", "--model", "text.pth"], "text.pth: cannot be read as weights"),
        (["profile", "--model", "half.safetensors"], "half.safetensors: cannot be read as weights"),
        (["profile", "--model", "run"], "run: no such file"),
        (["profile", "--model", "patch.safetensors"], "patch.safetensors: holds a 'patch' network, expected a generator"),
        (["profile", "--model", "supernet.safetensors"], "supernet.safetensors is a supernet; say which configuration"),
        (["profile", "--size", "30"], "size=30: this generator needs a multiple of 4"),
        (["profile", "--size", "7"], "size=7: expected"),
        (["profile", "--ngf", "0"], "expected"),
        (["profile", "--arch", "unet", "--config-str", EIGHT], "arch='unet': config_str, separable and legacy describe"),
        (["train", "--out", "x", "--dataroot", "missing/folder"], "data.root='missing/folder': no such folder"),
        (["train", "--out", "x", "--train.lr", "0"], "lr=0.0: expected a number between"),
        (["train", "--out", "x", "--train.lr", "nan"], "lr=nan: expected a number between"),
        (["train", "--out", "x", "--crop-size", "30"], "data.crop_size=30: expected a multiple of 4"),
        (["train", "--out", "x", "--crop-size", "300"], "data.load_size=286: expected at least crop_size=300"),
        (["train", "--out", "x", "--train.device", "tpu"], "device='tpu'"),
        (["train", "--out", "x", "--train.amp", "bf16", "--train.device", "cpu"], "amp='bf16': mixed precision needs a GPU"),
        (["train", "--out", "run", *TINY, "--ngf", "4"], "out='run': the folder is not empty and holds no run"),
        (["train", "--out", "text.pth", *TINY, "--ngf", "4"], "out='text.pth': is a file, expected a folder"),
        (["train", "--config", "missing.yaml"], "config='missing.yaml': no such file"),
        (["compress", "--out", "x", "--budget", "ten"], "budget='ten': expected a reduction such as 10x"),
        (["compress", "--out", "x", "--minutes", "nan"], "minutes=nan: expected a number between"),
        (["compress", "--out", "x", "--minutes", "-1"], "minutes=-1.0: expected a number between"),
        (["compress", "--out", "x", "--minutes", "inf"], "minutes=inf: expected a number between"),
        (["compress", "--out", "x", "--latency-ms", "nan"], "latency_ms=nan"),
        (["compress", "--out", "x", "--teacher", "patch.safetensors", *TINY], "holds a 'patch' network, expected a generator"),
        (["compress", "--out", "x", "--teacher", "none.pth", *TINY], "none.pth: no such file"),
        (["supernet", "--out", "x", "--teacher", "half.safetensors", *TINY], "half.safetensors: cannot be read as weights"),
        (
            ["supernet", "--out", "x", "--teacher", "teacher.safetensors", "--discriminator", "unet.safetensors", *TINY],
            "holds a 'unet' network, expected 'patch'",
        ),
        (["search", "--out", "x", "--supernet", "teacher.safetensors", "--macs", "1G", *TINY], "holds no supernet"),
        (["search", "--out", "x", "--supernet", "supernet.safetensors", *TINY], "budget: give at least one of budget"),
        (["search", "--out", "x", "--supernet", "supernet.safetensors", "--macs", "1", *TINY], "macs <= 1 is out of reach"),
        (["search", "--out", "x", "--supernet", "supernet.safetensors", "--budget", "2x", *TINY], "relative to the teacher"),
        (["convert", "none.pth", "x.pth"], "out='x.pth': expected a file name ending in .safetensors"),
        (["convert", "none.pth", "x.safetensors"], "none.pth: no such file"),
        (["convert", "text.pth", "x.safetensors"], "text.pth: cannot be read as weights (a text file); expected a .safe"),
        (["convert", "half.safetensors", "x.safetensors"], "half.safetensors: cannot be read as weights"),
        (["convert", "teacher.safetensors", "x.safetensors"], "teacher.safetensors: is a file of this project already"),
        (["convert", "none.pth", "x.safetensors", "--assume.dropout", "2"], "assume: dropout=2.0: expected a number between"),
        (["export", "--model", "none.safetensors", "--out", "x.pth"], "expected a file name ending in .safetensors"),
        (["export", "--model", "supernet.safetensors", "--out", "x.safetensors"], "is a supernet; say which configuration"),
        (
            ["export", "--model", "supernet.safetensors", "--out", "x.safetensors", "--config-str", "8_8_8"],
            "config_str='8_8_8': has 3 numbers, space '8,4' has 8 slots",
        ),
        (
            ["export", "--model", "supernet.safetensors", "--out", "x.safetensors", "--config-str", "8_8_8_8_8_8_8_7"],
            "7 is not allowed in slot 7 of space '8,4' (allowed: 8, 4)",
        ),
        (
            ["export", "--model", "teacher.safetensors", "--out", "x.safetensors", "--config-str", "8_8_8_8_8_8_8_8"],
            "teacher.safetensors: holds no supernet",
        ),
        (["evaluate", "--model", "none.safetensors"], "none.safetensors: no such file"),
        (["evaluate", "--model", "text.safetensors", *TINY], "text.safetensors: cannot be read as weights"),
        (["evaluate", "--model", "teacher.safetensors", *TINY, "--data.in-channels", "1"], "data.in_channels=1: "),
        (["evaluate", "--model", "teacher.safetensors", *TINY, "--evaluate.batch-size", "0"], "evaluate.batch_size=0"),
        (["evaluate", "--model", "teacher.safetensors", *TINY, "--evaluate.features", "text.pth"], "text.pth: cannot be read"),
        (["evaluate", "--model", "teacher.safetensors", *TINY, "--out", "run"], "run: is there and is not a file"),
        (["evaluate", "--model", "teacher.safetensors", *TINY, "--data.synthetic-test", "1"], "at least 2 images, got 1"),
    ],
)  # fmt: skip
def test_one_line(run, here: Path, arguments: list[str], message: str) -> None:
    one_line(run, here, arguments, message)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train.lrr", "1"], "--train.lr"),
        (["--train.steps", "many"], "many"),
        (["--train.gan-mode", "wgan"], "hinge"),
        (["--train.steps"], "--train.steps"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flags(run, flags: list[str], words: str) -> None:
    status, out, err = run("train", "--out", "x", *flags)
    assert status == 2
    assert words in err
    assert "gancomp train --help" in err
    assert out == ""


def test_a_missing_flag_is_named(run) -> None:
    status, _, err = run("train")
    assert status == 2
    assert "--out" in err


# Folders of images


def train(folder: Path, *more: str) -> list[str]:
    return [
        "train", "--out", f"run-{folder.name}", "--dataroot", str(folder), "--load-size", "32", "--crop-size", "32",
        "--ngf", "4", "--model.n-blocks", "1", *TINY_TRAINING, *more,
    ]  # fmt: skip


def pairs(folder: Path, count: int = 12, width: int = 64, height: int = 32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_folders_that_cannot_be_used(run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    pairs(tmp_path / "one", 1)
    pairs(tmp_path / "unpaired" / "trainA", 12)
    pairs(tmp_path / "unpaired" / "trainB", 11)
    (tmp_path / "file").touch()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name, message in (
        ("empty", "no images found"),
        ("one", "has 1 training images, too few to hold out"),
        ("unpaired", "trainA has 12 images"),
        ("file", "is a file, expected a folder of images"),
    ):
        one_line(run, tmp_path, train(tmp_path / name), message)


def test_images_that_cannot_be_used_are_named(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = pairs(tmp_path / "small", width=60, height=30)
    odd = pairs(tmp_path / "odd", width=65)
    broken = pairs(tmp_path / "broken")
    (broken / "5.png").write_bytes((broken / "5.png").read_bytes()[:40])
    text = pairs(tmp_path / "text")
    (text / "5.png").write_text("no image")
    for folder, message in (
        (small, ".png: a side is 30x30, smaller than data.crop_size=32"),
        (odd, ".png: is 65 pixels wide; a side-by-side pair needs an even width"),
        (broken, "5.png: cannot be read as an image"),
        (text, "5.png: cannot be read as an image"),
    ):
        status, out, err = run(*train(folder, "--train.batch-size", "10"))
        assert status == 2
        assert message in err.splitlines()[-1]
        assert err.splitlines()[-1].startswith("gancomp: error: ")
        assert "Traceback" not in err
        assert out == ""


def test_images_of_other_kinds_train(run, tmp_path: Path, monkeypatch) -> None:
    """Grey, RGBA, 16-bit and palette images are taken as they are."""
    monkeypatch.chdir(tmp_path)
    folder = pairs(tmp_path / "data")
    for number, mode in enumerate(["L", "RGBA", "I;16", "P", "1", "LA"]):
        with Image.open(folder / f"{number}.png") as image:
            converted = (
                Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
                if mode == "I;16"
                else image.convert(mode)
            )
        converted.save(folder / f"{number}.png")
    status, out, err = run(*train(folder, "--train.batch-size", "10"))
    assert status == 0, err
    assert out.strip() == "run-data/generator.safetensors"
