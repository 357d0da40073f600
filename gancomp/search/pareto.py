"""Trade-offs between cost and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pareto_front(
    records: Sequence[dict[str, Any]], cost_key: str, objective_key: str, maximize: bool = False
) -> list[dict[str, Any]]:
    """The records that no other one beats in cost and objective together, from the cheapest to the dearest.

    Args:
        records: ``{config_str, cost, metrics}`` of each configuration; one whose score is None (not finite) is left out.
        cost_key: which cost should be small.
        objective_key: which score should be small, or large with ``maximize``.
        maximize: the direction of the score.
    """
    sign = -1.0 if maximize else 1.0
    front: list[dict[str, Any]] = []
    least = float("inf")
    known = [record for record in records if record["metrics"][objective_key] is not None]
    for record in sorted(known, key=lambda r: (r["cost"][cost_key], sign * r["metrics"][objective_key], r["config_str"])):
        score = sign * record["metrics"][objective_key]
        if score < least:
            front.append(record)
            least = score
    return front
