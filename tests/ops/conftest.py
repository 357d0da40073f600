"""Fixtures of the operator tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gancomp import _C


@pytest.fixture(params=_C.built_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the native kernels of every instruction set of this build that this processor has."""
    if request.param not in _C.supported_isas():
        pytest.skip(f"this processor lacks {request.param}")
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(None)


@pytest.fixture(autouse=True)
def _automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests does not choose the backend."""
    monkeypatch.delenv("GANCOMP_BACKEND", raising=False)
