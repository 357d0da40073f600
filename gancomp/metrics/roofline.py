"""What this machine does at most: the measure of every speed."""

from __future__ import annotations

from dataclasses import dataclass

from gancomp.errors import ConfigError


@dataclass(frozen=True)
class Roofline:
    """The most that ``threads`` cores do per second with an instruction set."""

    isa: str
    threads: int
    flops: float
    """float32 operations; a multiply-add counts as two."""
    cache_bytes: float
    """Bytes read and written by copies within the second-level cache."""
    memory_bytes: float
    """Bytes read and written by copies in memory."""


def measure_roofline(isa: str, threads: int, *, seconds: float = 0.3) -> Roofline:
    """Measure multiply-adds in registers, and copies, on ``threads`` cores at once; the best of many short runs.

    Args:
        isa: instruction set of the kernels; one of ``gancomp._C.supported_isas()``.
        threads: cores to use.
        seconds: for each of the three.

    Raises:
        ConfigError: an instruction set that is not there, or a number of threads out of range.
    """
    from gancomp import _C

    try:
        return Roofline(isa, threads, **_C.measure_roofline(isa, threads, seconds))
    except ValueError as error:
        raise ConfigError(str(error)) from None
