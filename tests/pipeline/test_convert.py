"""``gancomp convert``, and what the other verbs do with foreign files as they are."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

import gancomp
from gancomp.checkpoints import Assumptions, load_network, load_supernet, read_metadata
from gancomp.cli import main
from gancomp.data import DataConfig
from gancomp.errors import CheckpointError, ConfigError
from gancomp.io import sha256_file
from gancomp.pipeline.convert import ConvertRun, run_convert
from gancomp.pipeline.evaluate import EvaluateRun, run_evaluate
from gancomp.pipeline.finetune import ExportRun, run_export
from gancomp.pipeline.profile import ProfileRun, run_profile
from gancomp.pipeline.supernet import SupernetRun, load_discriminator, run_supernet
from gancomp.testing import images
from gancomp.train import DistillOptions

from ..models import published

FOUR = "4_3_2_4_1_3_3_2"


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    """A published supernet of base width 4."""
    torch.save(published.randomised(published.resnet(4, separable=True)).state_dict(), tmp_path / "latest_net_G.pth")
    return tmp_path / "latest_net_G.pth"


def test_a_generator(tmp_path: Path) -> None:
    stock = published.randomised(published.resnet(2, 2, norm="batch"))
    torch.save(stock.state_dict(), tmp_path / "latest_net_G.pth")
    source, out = str(tmp_path / "latest_net_G.pth"), str(tmp_path / "new" / "g.safetensors")
    done = run_convert(ConvertRun(source, out, direction="BtoA"))
    assert done.path == tmp_path / "new" / "g.safetensors"
    assert done.found.startswith("ResNet generator of 2 dense blocks, base width 2, BatchNorm on the statistics of each image")
    ours, direct = gancomp.load_generator(done.path), gancomp.load_generator(tmp_path / "latest_net_G.pth")
    x = images(1, 3, 16, 16).tanh()
    assert torch.equal(ours(x), direct(x))
    record = json.loads(read_metadata(done.path)["gancomp.provenance"])
    assert (record["stage"], record["found"], record["settings"]["direction"]) == ("convert", done.found, "BtoA")
    assert record["settings"]["assume"]["batch_stats"] is True
    assert record["inputs"] == {"source": sha256_file(tmp_path / "latest_net_G.pth")}


def test_the_engine_runs_what_was_assumed(tmp_path: Path) -> None:
    """The assumptions are in the weights and the configuration: whoever loads the file need not know of them."""
    stock = published.randomised(published.resnet(2, 2, norm="batch", dropout=None))
    torch.save(stock.state_dict(), tmp_path / "g.pth")
    assume = Assumptions(input_range="unit", output_range="unit")
    done = run_convert(ConvertRun(str(tmp_path / "g.pth"), str(tmp_path / "g.safetensors"), assume=assume))
    x = images(1, 3, 32, 32).tanh()
    stock.model[-1] = torch.nn.Sigmoid()
    with torch.no_grad():
        expected = 2 * stock.train()((x + 1) / 2) - 1
    torch.testing.assert_close(torch.as_tensor(gancomp.Engine(done.path, threads=1)(x)), expected, rtol=0, atol=1e-4)


def test_a_discriminator_is_inherited(tmp_path: Path) -> None:
    stock = published.randomised(published.Patch(6, 2, 2, "batch"))
    torch.save(stock.state_dict(), tmp_path / "latest_net_D.pth")
    done = run_convert(ConvertRun(str(tmp_path / "latest_net_D.pth"), str(tmp_path / "d.safetensors")))
    assert done.found == "patch discriminator of 2 layers, base width 2, 6 input channels, BatchNorm on running statistics"
    x = images(1, 6, 32, 32)
    assert torch.equal(load_network(done.path)(x), stock.eval()(x))


# -- supernets -------------------------------------------------------------------------------------------------------------


def test_a_published_supernet_becomes_one_to_search_in(tmp_path: Path, supernet: Path) -> None:
    out = tmp_path / "supernet.safetensors"
    run_convert(ConvertRun(str(supernet), str(out), space="4,3,2,1"))
    ours = load_supernet(out)
    assert (ours.space.name, ours.space.largest) == ("4,3,2,1", (4,) * 8)
    cut = ours.extract(tuple(int(c) for c in FOUR.split("_")))
    expected = run_export(ExportRun(str(supernet), str(tmp_path / "cut.safetensors"), FOUR))
    again = run_export(ExportRun(str(out), str(tmp_path / "again.safetensors"), FOUR))
    for path in (expected, again):
        other = gancomp.load_generator(path)
        assert other.config == cut.config
        assert all(torch.equal(t, cut.state_dict()[name]) for name, t in other.state_dict().items())


def test_every_verb_cuts_a_published_supernet(tmp_path: Path, supernet: Path) -> None:
    config = gancomp.ResnetConfig.parse(FOUR)
    expected = sum(p.numel() for p in gancomp.ResnetGenerator(config).parameters())
    assert run_profile(ProfileRun(model=str(supernet), config_str=FOUR, size=32)).params == expected
    data = DataConfig(load_size=32, crop_size=32, synthetic_train=8, synthetic_test=3)
    scores = [
        run_evaluate(EvaluateRun(str(model), config_str, data=data))["scores"]
        for model, config_str in (
            (supernet, FOUR),
            (run_export(ExportRun(str(supernet), str(tmp_path / "cut.safetensors"), FOUR)), ""),
            (supernet, ""),
        )
    ]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("channels-48", "expected the largest widths of space 'channels-48'"),
        ("8,4", "expected the largest widths of space '8,4'"),
        ("4,2;4,2", "space='4,2;4,2': has 2 slots, expected 8"),
        ("four", "space='four': expected one of"),
    ],
)
def test_a_space_that_is_not_the_supernets(tmp_path: Path, supernet: Path, space: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_convert(ConvertRun(str(supernet), str(tmp_path / "s.safetensors"), space=space))
    assert message in str(caught.value)
    assert not (tmp_path / "s.safetensors").exists()


def test_a_space_for_what_is_no_resnet(tmp_path: Path) -> None:
    torch.save(published.Unet(1, 5).state_dict(), tmp_path / "u.pth")
    with pytest.raises(ConfigError, match=r"space='4,2': .*u\.pth holds a 'unet' network, of which there is no supernet"):
        run_convert(ConvertRun(str(tmp_path / "u.pth"), str(tmp_path / "s.safetensors"), space="4,2"))


# -- the page --------------------------------------------------------------------------------------------------------------


def test_commands_of_the_page(tmp_path: Path, monkeypatch, capsys) -> None:
    """docs/checkpoints.md, with the files it names; the comments below a command are what it prints."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    torch.save(published.resnet(64).state_dict(), tmp_path / "latest_net_G.pth")
    torch.save(published.resnet(32, separable=True).state_dict(), tmp_path / "supernet_net_G.pth")
    monkeypatch.chdir(tmp_path)
    lines = [
        line for block in re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    commands = [line for line in [*lines, *re.findall(r"`(gancomp convert [^`]+)`", page)] if " IN " not in line]
    ran = 0
    for number, command in enumerate(commands):
        if command.startswith(("gancomp convert ", "gancomp export ")) and len(command.split()) > 3:
            assert main(command.split()[1:]) == 0, command
            printed = capsys.readouterr().out
            after = itertools.takewhile(lambda line: line.startswith("# "), commands[number + 1 :])
            assert printed.startswith("".join(f"{line[2:]}\n" for line in after))
            ran += 1
    assert ran == 3


# -- the command line ------------------------------------------------------------------------------------------------------


def test_the_verb(tmp_path: Path, capsys) -> None:
    torch.save(published.resnet(2, 1, dropout=None).state_dict(), tmp_path / "g.pth")
    out = tmp_path / "g.safetensors"
    flags = ["--direction", "BtoA", "--assume.no-batch-stats", "--assume.input-range", "byte"]
    assert main(["convert", str(tmp_path / "g.pth"), str(out), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ResNet generator of 1 dense blocks, base width 2, InstanceNorm, without dropout layers", str(out)]
    settings = json.loads(read_metadata(out)["gancomp.provenance"])["settings"]
    assert settings["direction"] == "BtoA"
    assert settings["assume"] == {
        "batch_stats": False,
        "dropout": 0.0,
        "input_range": "byte",
        "output_range": "signed",
        "upsampling": "auto",
        "edges": "auto",
        "crop_size": 0,
        "aspect_ratio": 0.0,
    }


def test_wrong_files_are_one_line_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    cases = {
        "page.pth": (b"\n<!DOCTYPE html><html></html>", "(a web page, as of a failed download); expected a .safe"),
        "photo.pth": (b"\x89PNG\r\n\x1a\n" + bytes(50), "(a PNG image); expected"),
        "notes.pth": ("größer als\tvorher\n".encode() * 40, "(a text file); expected"),
        "none.pth": (None, "no such file"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert main(["convert", str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"gancomp: error: {tmp_path / name}: ")
        assert message in captured.err
        assert len(captured.err.splitlines()) == 1
        assert not (tmp_path / "out.safetensors").exists()


def test_other_refusals(tmp_path: Path, supernet: Path) -> None:
    with pytest.raises(ConfigError, match=r"out='.*g\.pth': expected a file name ending in \.safetensors"):
        run_convert(ConvertRun(str(supernet), str(tmp_path / "g.pth")))
    own = run_export(ExportRun(str(supernet), str(tmp_path / "own.safetensors")))
    with pytest.raises(CheckpointError, match=r"own\.safetensors: is a file of this project already"):
        run_convert(ConvertRun(str(own), str(tmp_path / "again.safetensors")))


# -- training from foreign files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_supernet_is_distilled_from_foreign_files(tmp_path: Path, norm: str) -> None:
    """Teacher and discriminator as pytorch-CycleGAN-and-pix2pix left them, by the names it gave them."""
    torch.save(published.randomised(published.resnet(4, 3, norm=norm)).state_dict(), tmp_path / "latest_net_G.pth")
    discriminator = published.randomised(published.Patch(6, 4, 1, norm))
    torch.save(discriminator.state_dict(), tmp_path / "latest_net_D.pth")
    run = SupernetRun(
        str(tmp_path / "latest_net_G.pth"),
        str(tmp_path / "run"),
        discriminator=str(tmp_path / "latest_net_D.pth"),
        space="4,2",
        data=DataConfig(load_size=32, crop_size=32, synthetic_train=8, synthetic_test=3),
        train=DistillOptions(steps=1, batch_size=2, lr=1e-5, log_every=1, sample_every=0),
    )
    supernet = load_supernet(run_supernet(run, progress=False))
    assert supernet.generator.config.n_blocks == 3
    inherited = load_network(tmp_path / "run" / "discriminator.safetensors")
    assert inherited.config.norm == norm
    for name, tensor in discriminator.named_parameters():
        torch.testing.assert_close(inherited.state_dict()[name], tensor, rtol=0, atol=1e-4)


def test_a_generator_is_no_discriminator(tmp_path: Path) -> None:
    torch.save(published.resnet(2, 1).state_dict(), tmp_path / "latest_net_G.pth")
    with pytest.raises(ConfigError, match=r"latest_net_G\.pth': holds a 'resnet' network, expected 'patch'"):
        load_discriminator(tmp_path / "latest_net_G.pth")
