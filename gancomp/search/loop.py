"""The search: proposes, evaluates, writes down, and goes on where a killed one stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gancomp.errors import ConfigError, NotFiniteError, RunError
from gancomp.models.channels import Config, format_config
from gancomp.search.budget import Limits
from gancomp.search.evolution import Candidates, SearchOptions, brute_force, evolve
from gancomp.search.pareto import pareto_front
from gancomp.search.results import Record, ResultsFile
from gancomp.supernet.space import SearchSpace
from gancomp.train.log import Progress

Cost = Callable[[Config], Mapping[str, float]]


@dataclass(frozen=True)
class SearchResult:
    """The chosen record, the trade-off of MACs and objective, and every evaluated record."""

    best: Record
    front: list[Record]
    records: list[Record]


def search(
    space: SearchSpace,
    evaluate: Callable[[Config], Mapping[str, float]],
    cost: Cost,
    limits: Limits,
    options: SearchOptions,
    *,
    objective_key: str,
    maximize: bool = False,
    results_path: Path,
    header: Mapping[str, Any] | None = None,
    seeds: Sequence[Config] = (),
    progress: bool = True,
    on_result: Callable[[Record], None] | None = None,
) -> SearchResult:
    """Find the configuration with the best objective within the limits.

    An interrupt leaves a file from which the same call goes on; it ends with the records of an uninterrupted search.

    Args:
        space: the configurations.
        evaluate: scores of a configuration, by name; called once per configuration, ever. A ``NotFiniteError`` is a score that
            is not finite, and its text the ``note`` of the record.
        cost: cost of a configuration, with at least ``macs`` and what the limits name. Where it has a measured ``latency_ms``,
            every cost that decided something is written down too.
        limits: configurations beyond them are never evaluated.
        options: method and its parameters.
        objective_key: which score decides; ties go to fewer MACs. A score that is not finite loses to all others.
        maximize: whether a higher score is better.
        results_path: JSON-lines file, appended to after every evaluation and continued where it exists.
        header: what else the scores depend on (weights, data); stored, and checked when a search goes on.
        seeds: configurations to evaluate first.
        progress: show progress on stderr.
        on_result: called with every new record.

    Raises:
        ConfigError: no configuration is within the limits, or a seed is not.
        RunError: the results file belongs to another search, or no score is finite.
    """
    facts = {
        "space": {"name": space.name, "choices": space.choices},
        "limits": limits.to_dict(),
        "objective": {"key": objective_key, "maximize": maximize},
        "search": _method_facts(options),
        "seeds": [format_config(space.validate(config)) for config in seeds],
    }
    results = ResultsFile(results_path, {**facts, **(header or {})})
    check_reachable(space, lambda config: results.cost(format_config(config)) or cost(config), limits)

    def cost_of(config: Config) -> dict[str, float]:
        config_str = format_config(config)
        known = results.cost(config_str)
        if known is None:
            known = dict(cost(config))
            if "latency_ms" in known:
                results.add_cost(config_str, known)
        return known

    if missing := limits.to_dict().keys() - cost_of(space.smallest).keys():
        raise ConfigError(f"limits: {', '.join(sorted(missing))} is limited, but the cost does not tell it")
    for config in map(tuple, seeds):
        if not limits.allows(cost_of(config)):
            raise ConfigError(f"seeds: {format_config(config)} costs {_words(cost_of(config))}, allowed is {limits.describe()}")

    sign = -1.0 if maximize else 1.0

    def rank(record: Record) -> tuple[float, float, str]:
        score = record["metrics"][objective_key]
        return math.inf if score is None else sign * score, record["cost"]["macs"], record["config_str"]

    best: Record | None = None
    done: list[Record] = []

    def record_of(config: Config, origin: str, generation: int) -> Record:
        nonlocal best
        config_str = format_config(config)
        record = results.result(config_str)
        if record is None:
            begin = time.perf_counter()
            note = {}
            try:
                metrics = {name: _finite(value) for name, value in evaluate(config).items()}
            except NotFiniteError as error:
                metrics, note = {objective_key: None}, {"note": str(error)}
            if objective_key not in metrics:
                raise ConfigError(f"objective_key={objective_key!r}: the scores have {', '.join(metrics)}")
            record = {
                "config_str": config_str,
                "cost": cost_of(config),
                "metrics": metrics,
                "origin": origin,
                "generation": generation,
                "seconds": round(time.perf_counter() - begin, 3),
                **note,
            }
            results.add_result(record)
            if on_result is not None:
                on_result(record)
        done.append(record)
        best = record if best is None else min(best, record, key=rank)
        score = best["metrics"][objective_key]
        bar.update(len(done), f"best {best['config_str']} {objective_key}={'nan' if score is None else format(score, '.4g')}")
        return record

    # Listing a space asks for the cost of every configuration, which must not be a measurement.
    listed = "latency_ms" not in cost_of(space.smallest)
    candidates = Candidates(space, lambda config: limits.allows(cost_of(config)), listed=listed, seed=options.seed)
    planned = options.population * options.generations if options.method == "evolution" else options.samples
    bar = Progress(min(planned or candidates.count, candidates.count), len(results), "search", enabled=progress)
    try:
        if options.method == "evolution":
            evolve(candidates, options, [tuple(config) for config in seeds], record_of, rank)
        else:
            brute_force(candidates, options, [tuple(config) for config in seeds], record_of)
    finally:
        bar.close()
    if best is None or best["metrics"][objective_key] is None:
        raise RunError(f"{results_path}: no configuration has a finite {objective_key}")
    return SearchResult(best, pareto_front(done, "macs", objective_key, maximize), done)


def _method_facts(options: SearchOptions) -> dict[str, Any]:
    """The options that change the records."""
    evolution = ("population", "generations", "parent_ratio", "mutation_ratio", "mutate_prob", "large")
    names = ("method", *(("samples",) if options.method == "brute" else evolution), "seed")
    return {name: getattr(options, name) for name in names}


def _finite(value: float) -> float | None:
    """``value`` as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def _words(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in cost.items())


def check_reachable(space: SearchSpace, cost: Cost, limits: Limits) -> None:
    """Raise a ConfigError that says what the smallest configuration costs, if that is beyond the limits."""
    smallest = cost(space.smallest)
    if not limits.allows(smallest):
        raise ConfigError(
            f"budget: {limits.describe()} is out of reach; the smallest configuration of space {space.name!r}, "
            f"{format_config(space.smallest)}, costs {_words(smallest)}"
        )
