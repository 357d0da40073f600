"""The engine's C++ tests, threads meeting in every way they may, under ThreadSanitizer."""

from __future__ import annotations

import re

import pytest

from .native import build, run


@pytest.mark.slow
def test_no_data_race() -> None:
    folder = build("sanitize-thread", "test_engine", "-DGANCOMP_FUZZ=ON", "-DGANCOMP_SANITIZE=thread")
    done = run(folder / "test_engine")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert re.fullmatch(r"[1-9]\d* checks, 0 failed\n", done.stdout)
