"""The front against its definition."""

from __future__ import annotations

import random

import pytest

from gancomp.search import pareto_front


def record(name: str, macs: float, score: float | None) -> dict:
    return {"config_str": name, "cost": {"macs": macs}, "metrics": {"fd": score}}


def names(front: list[dict]) -> list[str]:
    return [r["config_str"] for r in front]


def test_by_hand():
    records = [record("a", 3, 1.0), record("b", 1, 3.0), record("c", 2, 3.0), record("d", 2, 2.0), record("e", 4, 1.0)]
    assert names(pareto_front(records, "macs", "fd")) == ["b", "d", "a"]
    assert names(pareto_front(records, "macs", "fd", maximize=True)) == ["b"]


def test_equals_appear_once_and_unknown_scores_never():
    records = [record("b", 1, 2.0), record("a", 1, 2.0), record("c", 0.5, None)]
    assert names(pareto_front(records, "macs", "fd")) == ["a"]
    assert pareto_front([], "macs", "fd") == []


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed, maximize):
    rng = random.Random(seed)
    records = [record(f"{i:02}", rng.randrange(12), float(rng.randrange(12))) for i in range(40)]
    front = pareto_front(records, "macs", "fd", maximize)
    sign = -1 if maximize else 1

    def point(r: dict) -> tuple[float, float]:
        return r["cost"]["macs"], sign * r["metrics"]["fd"]

    def beaten(r: dict) -> bool:
        return any(a <= point(r)[0] and b <= point(r)[1] and (a, b) != point(r) for a, b in map(point, records))

    assert {point(r) for r in front} == {point(r) for r in records if not beaten(r)}
    assert len({point(r) for r in front}) == len(front)
    assert [r["cost"]["macs"] for r in front] == sorted(r["cost"]["macs"] for r in front)
