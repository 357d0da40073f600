"""The kernels' tests, run by Triton's interpreter: it must be chosen before the kernels are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["instance_norm_act", "no_copies", "reflect_pad_depthwise_conv3x3", "separable_resblock", "sliced_conv", "spade"]
)
def test_kernels_pass_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / f"test_{name}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout, run.stdout[-8000:]
