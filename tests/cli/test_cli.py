"""The command line as a whole: verbs, help, exit statuses, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gancomp import ResnetConfig, ResnetGenerator, __version__, load_generator
from gancomp.cli import VERBS
from gancomp.pipeline import profile

from .conftest import TINY


def shell(command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(run, verb: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = run(verb, "--help")
    assert status == 0
    assert f"usage: gancomp {verb}" in out
    assert "MISSING" not in out
    assert err == ""


def test_no_arguments_shows_the_verbs(run) -> None:
    for arguments, expected in (((), 2), (("--help",), 0), (("-h",), 0), (("help",), 0)):
        status, out, _ = run(*arguments)
        assert status == expected
        assert all(f"\n  {verb} " in out for verb in [*VERBS, "info"])


def test_version(run) -> None:
    assert run("--version") == run("version") == (0, f"gancomp {__version__}\n", "")


def test_info_names_the_kernels(run) -> None:
    status, out, _ = run("info")
    assert status == 0
    assert "kernels:" in out


@pytest.mark.slow
def test_the_module_and_the_script_are_the_same_program() -> None:
    arguments = ["profile", "--config-str", "16_16_32_16_32_32_16_16", "--json"]
    script = Path(sys.executable).parent / "gancomp"
    if not script.exists():
        pytest.skip("gancomp is not installed beside this Python")
    by_module, by_script = (
        subprocess.run([*program, *arguments], capture_output=True, text=True, check=True).stdout
        for program in ([sys.executable, "-m", "gancomp"], [str(script)])
    )
    assert by_module == by_script
    assert json.loads(by_module) == {"params": 356867, "macs": 1845755904, "macs_published": 2525233152}


# profile, export and evaluate


def test_profile_json_is_exact(run) -> None:
    status, out, _ = run("profile", "--arch", "resnet", "--config-str", "16_16_32_16_32_32_16_16", "--json")
    assert status == 0
    assert json.loads(out) == {"params": 356867, "macs": 1845755904, "macs_published": 2525233152}


def test_profile_for_people(run) -> None:
    _, out, _ = run("profile", "--config-str", "16_16_32_16_32_32_16_16")
    assert out.splitlines() == [
        "parameters      356,867",
        "MACs            1,845,755,904 (1.85 G)",
        "MACs published  2,525,233,152 (2.53 G), transposed convolutions as the papers count them",
    ]
    _, out, _ = run("profile", "--config-str", "16_16_32_16_32_32_16_16", "--count-norm")
    assert out.splitlines()[2] == (
        "MACs published  2,546,204,672 (2.55 G), transposed convolutions as the papers count them, and norms"
    )


def test_profile_of_a_file_and_layers(run, tmp_path: Path) -> None:
    ResnetGenerator(ResnetConfig.uniform(4, 1)).save(tmp_path / "g.safetensors")
    status, out, _ = run("profile", "--model", tmp_path / "g.safetensors", "--size", "32", "--layers")
    assert status == 0
    assert "model.10.conv_block.6" in out
    assert "MACs published" in out
    _, out, _ = run("profile", "--model", tmp_path / "g.safetensors", "--size", "32", "--layers", "--json")
    values = json.loads(out)
    assert sum(layer["params"] for layer in values["layers"]) == values["params"]
    assert sum(layer["macs"] for layer in values["layers"]) == values["macs"]


def test_export_of_a_foreign_file(run, tmp_path: Path) -> None:
    generator = ResnetGenerator(ResnetConfig.uniform(4, 2)).eval()
    torch.save({f"module.{k}": v for k, v in generator.state_dict().items()}, tmp_path / "latest_net_G.pth")
    exported = tmp_path / "g.safetensors"
    status, out, _ = run("export", "--model", tmp_path / "latest_net_G.pth", "--out", exported)
    assert status == 0
    assert out.strip() == str(exported)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_generator(exported)(x), generator(x))


def test_evaluate(run, tmp_path: Path) -> None:
    ResnetGenerator(ResnetConfig.uniform(4, 1)).save(tmp_path / "g.safetensors")
    command = ["evaluate", "--model", tmp_path / "g.safetensors", *TINY]
    status, out, _ = run(*command, "--json", "--out", tmp_path / "scores.json")
    assert status == 0
    result = json.loads(out)
    assert result["scores"].keys() == {"l1", "psnr", "ssim", "fd_random"}
    assert result["protocol"]["images"] == 3
    assert json.loads((tmp_path / "scores.json").read_text()) == result
    _, out, _ = run(*command)
    lines = out.splitlines()
    for line, (name, value) in zip(lines, result["scores"].items(), strict=False):
        assert line.split() == [name, f"{value:.4f}"]
    assert "split test, images 3, size 32" in lines[-1]


# How it ends


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error() -> None:
    """``head`` closes the pipe: no complaint, whether it goes before the output or amid it."""
    for reader in ("head -1", "true"):
        done = shell(f"{sys.executable} -m gancomp profile --layers | {reader}; echo ${{PIPESTATUS[1]}}")
        assert done.stderr == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_is_one_line(run, monkeypatch, error: Exception) -> None:
    monkeypatch.setattr(profile, "run_profile", lambda settings: (_ for _ in ()).throw(error))
    assert run("profile") == (1, "", "gancomp: error: out of memory; use a smaller batch_size, crop_size or ngf\n")


def test_errors_of_the_system_are_one_line(run, monkeypatch) -> None:
    for error, text in (
        (OSError(28, "No space left on device", "runs/state.pt"), "No space left on device: runs/state.pt"),
        (PermissionError(13, "Permission denied", "out"), "Permission denied: out"),
        (OSError("strange"), "strange"),
    ):
        monkeypatch.setattr(profile, "run_profile", lambda settings, error=error: (_ for _ in ()).throw(error))
        assert run("profile") == (1, "", f"gancomp: error: {text}\n")


def test_a_mistake_of_the_program_is_not_hidden(run, monkeypatch) -> None:
    monkeypatch.setattr(profile, "run_profile", lambda settings: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run("profile")


def test_an_interrupt_outside_of_training(run, monkeypatch) -> None:
    monkeypatch.setattr(profile, "run_profile", lambda settings: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("profile") == (130, "", "gancomp: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_exits_130_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "gancomp", "train", "--out", str(tmp_path / "run"), *TINY, "--model.ngf", "4",
        "--model.n-blocks", "1", "--train.ndf", "4", "--train.d-layers", "1", "--train.batch-size", "1",
        "--train.log-every", "1", "--train.steps", "100000",
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


def test_importing_the_command_line_is_light() -> None:
    """No plotting, no TensorBoard, no Triton and no CUDA before a verb needs them."""
    code = (
        "import sys, gancomp.cli, torch\n"
        "print([m for m in ('matplotlib', 'tensorboard', 'triton', 'tyro', 'scipy') if m in sys.modules], "
        "torch.cuda.is_initialized())"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[] False"
