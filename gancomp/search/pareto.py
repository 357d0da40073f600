"""Trade-offs between cost and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pareto_front(
    records: Sequence[dict[str, Any]], cost_key: str, objective_key: str, maximize: bool = False
) -> list[dict[str, Any]]:
    """The records that no other one beats in cost and objective together, from the cheapest to the dearest."""
    sign = -1.0 if maximize else 1.0
    ordered = sorted(records, key=lambda r: (r["cost"][cost_key], sign * r["metrics"][objective_key], r["config_str"]))
    front: list[dict[str, Any]] = []
    for record in ordered:
        if not front or sign * record["metrics"][objective_key] < sign * front[-1]["metrics"][objective_key]:
            front.append(record)
    return front
