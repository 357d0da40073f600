"""The kernels' tests, run by Triton's interpreter: it must be chosen before the kernels are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

FOLDER = Path(__file__).parent


def _run(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / f"test_{name}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def runs(request):
    """By name, the tests that were asked for: they run side by side, for the interpreter uses one processor."""
    asked = [item.callspec.params["name"] for item in request.session.items if item.path == Path(__file__)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(_run, name) for name in asked}


# The longest first.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "separable_resblock",
        "sliced_conv",
        "spade",
        "reflect_pad_depthwise_conv3x3",
        "instance_norm_act",
        "no_copies",
        "wide_step",
    ],
)
def test_kernels_pass_in_the_interpreter(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    run = runs[name].result()
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout, run.stdout[-8000:]
