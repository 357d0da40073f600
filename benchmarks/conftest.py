"""Collects the rows of a benchmark run, prints them, and writes them when everything passed."""

from __future__ import annotations

import pytest

from benchmarks.schema import Row, write_rows

_ROWS: pytest.StashKey[list[Row]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--csv", default=None, metavar="FILE", help="write the measured rows to this file if no benchmark fails")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """The rows measured so far: append to it."""
    return request.config.stash[_ROWS]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path, rows = session.config.getoption("--csv"), session.config.stash[_ROWS]
    if path is not None and exitstatus == 0:
        write_rows(path, rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    speedups = [row for row in config.stash[_ROWS] if row.metric == "speedup"]
    if not speedups:
        return
    terminalreporter.section("times of stock PyTorch over those of gancomp (paired)")
    for row in speedups:
        name = f"{row.kernel} {row.mode} {row.x} {row.config}"
        terminalreporter.write_line(f"{name:<72} {row.p50:6.2f}x  ({row.p20:.2f} to {row.p80:.2f})")
