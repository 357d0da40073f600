"""Budgets: what the chosen generator may cost at most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from gancomp.errors import ConfigError
from gancomp.search.cost import Profile

_SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_number(name: str, text: str) -> float:
    """Read ``2.5e9``, ``2.5G`` or ``500M``.

    Raises:
        ConfigError: not such a number, or not above zero.
    """
    body = text.strip()
    factor = _SUFFIXES.get(body[-1:], 1.0)
    try:
        value = float(body[:-1] if factor != 1.0 else body) * factor
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={text!r}: expected a number above 0 such as 2.5e9, 2.5G or 500M")
    return value


def _check_limits(limits: Limits | Budget) -> None:
    for field in fields(limits):
        value = getattr(limits, field.name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{field.name}={value}: expected a number above 0, or 0 for no limit")


@dataclass(frozen=True)
class Limits:
    """Upper limits in numbers; 0 is no limit."""

    macs: float = 0.0
    params: float = 0.0
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        _check_limits(self)

    def to_dict(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit > 0}

    def allows(self, cost: Mapping[str, float]) -> bool:
        """Whether a cost is within every limit; a limit of something that ``cost`` does not have is not checked."""
        return all(cost.get(name, 0.0) <= limit for name, limit in self.to_dict().items())

    def describe(self) -> str:
        """The limits as text, e.g. ``macs <= 2.5e+09``."""
        return ", ".join(f"{name} <= {limit:.6g}" for name, limit in self.to_dict().items()) or "no limit"


@dataclass(frozen=True)
class Budget:
    """Limits as a user gives them; the ratio becomes MACs once the teacher is known."""

    ratio: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        _check_limits(self)
        if not any(getattr(self, field.name) for field in fields(self)):
            raise ConfigError("budget: give at least one of budget (such as 10x), macs, params, latency_ms")

    @classmethod
    def parse(cls, ratio: str = "", macs: str = "", params: str = "", latency_ms: float = 0.0) -> Budget:
        """Read a budget from text: ``ratio`` like ``10x``, ``macs`` and ``params`` like ``2.5G``.

        Raises:
            ConfigError: text that cannot be read, a ratio not above one, or no limit at all.
        """
        times = 0.0
        if ratio:
            try:
                times = float(ratio.strip().removesuffix("x"))
            except ValueError:
                times = math.nan
            if not 1 < times < math.inf or not ratio.strip().endswith("x"):
                raise ConfigError(
                    f"budget={ratio!r}: expected a reduction such as 10x, above 1x (or use macs, params, latency_ms)"
                )
        return cls(
            times, parse_number("macs", macs) if macs else 0.0, parse_number("params", params) if params else 0.0, latency_ms
        )

    def resolve(self, teacher: Profile | None) -> Limits:
        """The limits in numbers.

        Raises:
            ConfigError: a ratio without a teacher.
        """
        macs = self.macs
        if self.ratio:
            if teacher is None:
                raise ConfigError(f"budget={self.ratio:g}x: is relative to the teacher's MACs; name the teacher")
            share = teacher.macs / self.ratio
            macs = min(macs, share) if macs else share
        return Limits(macs, self.params, self.latency_ms)
