"""The ARM kernels, on machines that are not ARM: cross-compiled, and run in an emulator."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.slow
def test_kernels_hold_on_arm(tmp_path: Path) -> None:
    """The C++ kernel tests, which compare NEON with loops in double precision."""
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is ARM: the C++ tests run the NEON kernels directly")
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(tmp_path),
        "-G",
        "Ninja",
        "-DGANCOMP_TESTS=ON",
        "-DCMAKE_SYSTEM_NAME=Linux",
    ]
    configure += [
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    configure += [f"-DCMAKE_C_COMPILER={COMPILER.removesuffix('g++')}gcc"]
    for command in (configure, ["cmake", "--build", str(tmp_path), "--target", "test_kernels"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    done = subprocess.run(
        [EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(tmp_path / "test_kernels")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "neon" in done.stdout
    assert ", 0 failed" in done.stdout
