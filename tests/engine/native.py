"""Builds the C++ parts of the tree with CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with the tools of this environment first on its path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=900)


def must(*command: object, cwd: Path | None = None) -> str:
    """Run a command that has to succeed; returns its output."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def build(folder: str, target: str, *options: str) -> Path:
    """Build a target of the project; returns the build folder.

    It is one of those of `make test-cpp` and `make test-sanitize`, with their options: what those built is not built again.
    """
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) is None:
            pytest.skip(f"{tool} is not installed")
    path = ROOT / "build" / folder
    must("cmake", "-S", ROOT, "-B", path, "-G", "Ninja", "-DGANCOMP_TESTS=ON", *options)
    must("cmake", "--build", path, "--target", target, "--", "--quiet")
    return path
