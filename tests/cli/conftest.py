"""Running the command line inside the test's process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gancomp.cli import main

Run = Callable[..., tuple[int, str, str]]

# A training that takes a second or two.
TINY = (
    "--load-size", "32", "--crop-size", "32", "--data.synthetic-train", "8", "--data.synthetic-test", "3",
)  # fmt: skip
TINY_TRAINING = (
    "--train.ndf", "4", "--train.d-layers", "1", "--train.batch-size", "2", "--train.steps", "2", "--train.log-every", "1",
)  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line with arguments; returns exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
