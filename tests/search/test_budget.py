"""Budgets: what can be said, what it means, and what is refused."""

from __future__ import annotations

import math

import pytest

from gancomp.errors import ConfigError
from gancomp.search import Budget, Limits, Profile
from gancomp.search.budget import parse_number

TEACHER = Profile(params=11_000_000, macs=50_000_000_000, macs_published=56_800_000_000, layers=())


@pytest.mark.parametrize(
    ("text", "value"),
    [("2.5e9", 2.5e9), ("2.5G", 2.5e9), (" 500M ", 5e8), ("300k", 3e5), ("300K", 3e5), ("1T", 1e12), ("7", 7.0)],
)
def test_numbers(text, value):
    assert parse_number("macs", text) == value


@pytest.mark.parametrize("text", ["", "G", "2.5x", "-1G", "0", "0M", "nan", "inf", "1e400", "2,5G", "two"])
def test_bad_numbers(text):
    with pytest.raises(ConfigError, match=r"macs=.*expected a number above 0"):
        parse_number("macs", text)


def test_ratio_is_of_the_true_macs_of_the_teacher():
    assert Budget.parse("10x").resolve(TEACHER) == Limits(macs=5e9)
    assert Budget.parse(" 2.5x ").resolve(TEACHER) == Limits(macs=2e10)


def test_several_limits_hold_together():
    assert Budget.parse("10x", macs="6G", params="0.7M", latency_ms=20).resolve(TEACHER) == Limits(5e9, 7e5, 20)
    assert Budget.parse("10x", macs="4G").resolve(TEACHER) == Limits(4e9)
    assert Budget.parse(macs="4G").resolve(None) == Limits(4e9)


@pytest.mark.parametrize("ratio", ["10", "x", "0x", "1x", "-3x", "nanx", "infx", "ten x", "10 xx"])
def test_bad_ratios(ratio):
    with pytest.raises(ConfigError, match=r"budget=.*10x"):
        Budget.parse(ratio)


@pytest.mark.parametrize("make", [Budget, Budget.parse])
def test_no_limit_at_all(make):
    with pytest.raises(ConfigError, match="give at least one"):
        make()


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("make", [Budget, Limits])
@pytest.mark.parametrize("name", ["macs", "params", "latency_ms"])
def test_nonsense_values(make, name, value):
    with pytest.raises(ConfigError, match=f"{name}="):
        make(**{name: value})


def test_ratio_needs_a_teacher():
    with pytest.raises(ConfigError, match=r"10x.*teacher"):
        Budget.parse("10x").resolve(None)


def test_limits():
    limits = Limits(macs=100, latency_ms=5)
    assert limits.allows({"macs": 100, "params": 1e12, "latency_ms": 5})
    assert not limits.allows({"macs": 101, "latency_ms": 5})
    assert not limits.allows({"macs": 1, "latency_ms": 5.01})
    assert limits.allows({"macs": 1})
    assert Limits().allows({"macs": 1e30})
    assert limits.describe() == "macs <= 100, latency_ms <= 5"
    assert Limits().describe() == "no limit"
    assert limits.to_dict() == {"macs": 100, "latency_ms": 5}
