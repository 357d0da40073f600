"""Search a supernet's configurations: evolution or brute force, resumable after every single evaluation.

Both are functions of seed and of the results known so far. A search that was killed replays its decisions: configurations
that are in the file are not evaluated again, so it arrives where it was and goes on.
Source: GAN Compression, section 3.2 and supplementary (evolution); Real et al. 2019 for the evolutionary scheme.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gancomp.errors import ConfigError
from gancomp.models.base import check_choice, check_range
from gancomp.models.channels import Config, format_config, parse_config
from gancomp.search.budget import Limits
from gancomp.search.pareto import pareto_front
from gancomp.search.results import Record, ResultsFile
from gancomp.supernet.space import SearchSpace
from gancomp.train.log import Progress

Evaluate = Callable[[Config], Mapping[str, float]]
Cost = Callable[[Config], Mapping[str, float]]


@dataclass(frozen=True)
class SearchOptions:
    """How configurations are looked for."""

    method: Literal["evolution", "brute"] = "evolution"
    """`evolution`, or `brute` for every allowed configuration (or `samples` of them)."""
    objective: Literal["fd", "l1", "psnr", "ssim"] = "fd"
    """What the best configuration is best in, on the validation split."""
    population: int = 32
    """Configurations of a generation (evolution)."""
    generations: int = 6
    """Generations, the random first one included (evolution)."""
    parent_ratio: float = 0.25
    """Fraction of the population that becomes parents (evolution)."""
    mutation_ratio: float = 0.5
    """Fraction of a new generation that comes from mutation; the rest comes from crossover (evolution)."""
    mutate_prob: float = 0.2
    """Probability that a slot changes in a mutation (evolution)."""
    samples: int = 0
    """Evaluate a random sample of this size; 0 evaluates all (brute)."""
    seed: int = 233
    """Seed of every random choice."""

    def __post_init__(self) -> None:
        check_choice("search", "method", self.method, ("evolution", "brute"))
        check_choice("search", "objective", self.objective, ("fd", "l1", "psnr", "ssim"))
        for name, low, high in (
            ("population", 2, 100_000),
            ("generations", 1, 100_000),
            ("parent_ratio", 0.01, 1.0),
            ("mutation_ratio", 0.0, 1.0),
            ("mutate_prob", 0.001, 1.0),
            ("samples", 0, 10**9),
        ):
            check_range("search", name, getattr(self, name), low, high)


@dataclass(frozen=True)
class SearchResult:
    """The chosen record, the trade-off of MACs and objective, and every evaluated record."""

    best: Record
    front: list[Record]
    records: list[Record]


@dataclass(frozen=True)
class _Proposal:
    config: Config
    origin: str
    generation: int


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    cost: Cost,
    limits: Limits,
    options: SearchOptions,
    *,
    objective_key: str,
    maximize: bool = False,
    results_path: Path,
    header: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SearchResult:
    """Find the configuration with the best objective within the limits.

    Args:
        space: the configurations.
        evaluate: scores of a configuration, by name; called once per configuration, ever.
        cost: cost of a configuration, with at least ``macs`` and what the limits name.
        limits: configurations beyond them are never evaluated.
        options: method and its parameters.
        objective_key: which score decides; ties go to fewer MACs.
        maximize: whether a higher score is better.
        results_path: JSON-lines file, appended to after every evaluation and continued where it exists.
        header: what else the scores depend on (weights, data); stored, and checked when a search goes on.
        progress: show progress on stderr.

    Raises:
        ConfigError: no configuration is within the limits.
        RunError: the results file belongs to another search.
    """
    check_reachable(space, cost, limits)
    choices = [list(group) for group in space.choices]
    facts = {"space": space.name, "choices": choices, "limits": limits.describe(), "objective": objective_key}
    results = ResultsFile(results_path, {**facts, **_method_facts(options), **(header or {})})
    sign = -1.0 if maximize else 1.0

    def rank(record: Record) -> tuple[float, float, str]:
        return sign * record["metrics"][objective_key], record["cost"]["macs"], record["config_str"]

    total = options.population * options.generations if options.method == "evolution" else options.samples or space.size
    bar = Progress(min(total, space.size), 0, "search", enabled=progress)
    seen: list[Record] = []
    propose = _evolve if options.method == "evolution" else _enumerate
    try:
        for proposal in propose(space, cost, limits, options, seen, rank):
            config_str = format_config(proposal.config)
            record = results.find(config_str)
            if record is None:
                begin = time.perf_counter()
                metrics = dict(evaluate(proposal.config))
                record = {
                    "config_str": config_str,
                    "cost": dict(cost(proposal.config)),
                    "metrics": metrics,
                    "origin": proposal.origin,
                    "generation": proposal.generation,
                    "seconds": round(time.perf_counter() - begin, 3),
                }
                results.add(record)
            seen.append(record)
            best = min(seen, key=rank)
            bar.update(len(seen), f"best {best['config_str']} {objective_key}={best['metrics'][objective_key]:.4g}")
    finally:
        bar.close()
    return SearchResult(min(seen, key=rank), pareto_front(seen, "macs", objective_key, maximize), seen)


def _method_facts(options: SearchOptions) -> dict[str, Any]:
    names = ["method", "seed", "samples"] if options.method == "brute" else [
        "method", "seed", "population", "generations", "parent_ratio", "mutation_ratio", "mutate_prob",
    ]  # fmt: skip
    return {name: getattr(options, name) for name in names}


def check_reachable(space: SearchSpace, cost: Cost, limits: Limits) -> None:
    """Raise a ConfigError unless the smallest configuration is within the limits."""
    smallest = cost(space.smallest)
    if not limits.allows(smallest):
        have = ", ".join(f"{name} {value:.6g}" for name, value in smallest.items())
        raise ConfigError(
            f"budget: {limits.describe()} is out of reach; the smallest configuration of space {space.name!r}, "
            f"{format_config(space.smallest)}, costs {have}"
        )


def _enumerate(
    space: SearchSpace, cost: Cost, limits: Limits, options: SearchOptions, seen: list[Record], rank: Callable
) -> Iterator[_Proposal]:
    """Every allowed configuration, or a seeded sample of them."""
    if not options.samples or options.samples >= space.size:
        yield from (_Proposal(config, "brute", 0) for config in space if limits.allows(cost(config)))
        return
    rng = random.Random(f"brute/{options.seed}")
    taken: set[Config] = set()
    for config in _fresh(lambda: _sample_within(space, cost, limits, rng), taken, cost, limits, options.samples):
        yield _Proposal(config, "brute", 0)


def _evolve(
    space: SearchSpace, cost: Cost, limits: Limits, options: SearchOptions, seen: list[Record], rank: Callable
) -> Iterator[_Proposal]:
    """A random generation, then generations from the best so far; no configuration twice."""
    taken: set[Config] = set()
    first = random.Random(f"evolution/{options.seed}/0")
    for config in _fresh(lambda: _sample_within(space, cost, limits, first), taken, cost, limits, options.population):
        yield _Proposal(config, "random", 0)
    for generation in range(1, options.generations):
        rng = random.Random(f"evolution/{options.seed}/{generation}")
        keep = max(2, round(options.parent_ratio * options.population))
        # Everything evaluated so far competes, the last generation included.
        parents = [parse_config(record["config_str"]) for record in sorted(seen, key=rank)[:keep]]

        def mutate(rng: random.Random = rng, parents: list[Config] = parents) -> Config:
            parent = rng.choice(parents)
            return tuple(
                rng.choice(options_) if rng.random() < options.mutate_prob else channels
                for channels, options_ in zip(parent, space.choices, strict=True)
            )

        def cross(rng: random.Random = rng, parents: list[Config] = parents) -> Config:
            a, b = rng.choice(parents), rng.choice(parents)
            return tuple(rng.choice(pair) for pair in zip(a, b, strict=True))

        mutants = round(options.mutation_ratio * options.population)
        for origin, make, count in (("mutation", mutate, mutants), ("crossover", cross, options.population - mutants)):
            made = 0
            for config in _fresh(make, taken, cost, limits, count):
                made += 1
                yield _Proposal(config, origin, generation)
            # A population that has converged gives no new children: fresh blood fills the generation.
            for config in _fresh(lambda rng=rng: _sample_within(space, cost, limits, rng), taken, cost, limits, count - made):
                yield _Proposal(config, "random", generation)


def _sample_within(space: SearchSpace, cost: Cost, limits: Limits, rng: random.Random) -> Config:
    """A random configuration, its slots made smaller at random until it is within the limits.

    Plain rejection would hardly ever hit a tight budget; the smallest configuration is allowed, so this always ends.
    """
    config = list(space.sample(rng))
    while not limits.allows(cost(tuple(config))):
        slot = rng.choice([i for i, options in enumerate(space.choices) if config[i] != options[-1]])
        options = space.choices[slot]
        config[slot] = options[options.index(config[slot]) + 1]
    return tuple(config)


def _fresh(
    make: Callable[[], Config], taken: set[Config], cost: Cost, limits: Limits, count: int, patience: int = 200
) -> Iterator[Config]:
    """Up to ``count`` new allowed configurations; gives up after ``patience`` vain tries in a row."""
    made = vain = 0
    while made < count and vain < patience:
        config = make()
        if config in taken or not limits.allows(cost(config)):
            vain += 1
            continue
        taken.add(config)
        made, vain = made + 1, 0
        yield config
