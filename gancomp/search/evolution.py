"""Which configurations are evaluated, and in which order: evolution, or every one (brute force).

Both are functions of the seed and of the results so far, and no configuration is proposed twice. A search that was killed is
therefore continued by running it again with the known results.
Source: GAN Compression, section 3.2 and supplementary (evolution over a once-for-all network); Real et al. 2019.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gancomp.models.base import check_choice, check_range
from gancomp.models.channels import Config, parse_config
from gancomp.search.results import Record
from gancomp.supernet.space import SearchSpace

# Spaces up to this size are listed, which makes draws uniform over what is allowed and finds the last allowed one.
LISTED = 50_000
# Draws in a row that bring nothing new before a source of configurations counts as dry.
PATIENCE = 500


@dataclass(frozen=True)
class SearchOptions:
    """How configurations are looked for."""

    method: Literal["evolution", "brute"] = "evolution"
    """`evolution`, or `brute` for every allowed configuration (or `samples` of them)."""
    objective: Literal["fd", "l1", "psnr", "ssim", "miou", "accuracy"] = "fd"
    """What the best configuration is best in, on the validation split; the last two need `evaluate.segmenter`."""
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
    large: float = 0.125
    """Fraction of the first generation that is as large as the limits allow; the papers have 0 (evolution)."""
    samples: int = 0
    """Evaluate a random sample of this size; 0 evaluates all (brute)."""
    seed: int = 233
    """Seed of every random choice."""

    def __post_init__(self) -> None:
        check_choice("search", "method", self.method, ("evolution", "brute"))
        check_choice("search", "objective", self.objective, ("fd", "l1", "psnr", "ssim", "miou", "accuracy"))
        for name, low, high in (
            ("population", 2, 100_000),
            ("generations", 1, 100_000),
            ("parent_ratio", 0.01, 1.0),
            ("mutation_ratio", 0.0, 1.0),
            ("mutate_prob", 0.001, 1.0),
            ("large", 0.0, 1.0),
            ("samples", 0, 10**9),
        ):
            check_range("search", name, getattr(self, name), low, high)


class Candidates:
    """The allowed configurations of a space that have not been taken yet.

    Args:
        space: the configurations.
        allows: whether a configuration is within the limits; true for the smallest one.
        listed: whether ``allows`` is cheap enough to be asked for every configuration.
        seed: of the order in which listed configurations are drawn.
    """

    def __init__(self, space: SearchSpace, allows: Callable[[Config], bool], *, listed: bool, seed: int) -> None:
        self.space, self.allows, self._listed = space, allows, listed
        self._taken: set[Config] = set()
        self._order: list[Config] | None = None
        if listed and space.size <= LISTED:
            self._order = [config for config in space if allows(config)]
            random.Random(f"order/{seed}").shuffle(self._order)
        self.count = space.size if self._order is None else len(self._order)  # an upper bound where not listed

    def take(self, config: Config | None) -> bool:
        """Take a configuration, if it is allowed and still there."""
        if config is None or config in self._taken or not self.allows(config):
            return False
        self._taken.add(config)
        return True

    def draw(self, make: Callable[[], Config]) -> Config | None:
        """Take the first of ``make``'s configurations that can be taken; None after many that cannot."""
        return next((config for config in (make() for _ in range(PATIENCE)) if self.take(config)), None)

    def fresh(self, rng: random.Random) -> Config | None:
        """Take a random one: uniform over all that are left where they are listed, by :meth:`shrunk` elsewhere."""
        if self._order is None:
            found = self.draw(lambda: self.shrunk(rng))
            if found is not None or not self._listed:
                return found
            # So few are left that draws miss them: list what is allowed after all.
            self._order = self._climb()
        while self._order:
            if self.take(config := self._order.pop()):
                return config
        return None

    def shrunk(self, rng: random.Random) -> Config:
        """A random configuration, its slots made smaller at random until it is allowed.

        Plain rejection would hardly ever meet a tight budget.
        """
        config = self.space.sample(rng)
        while not self.allows(config) and (smaller := self._neighbours(config, 1)):
            config = rng.choice(smaller)
        return config

    def grown(self, rng: random.Random) -> Config:
        """A random configuration that is as large as the limits allow: no slot can be one step larger."""
        config = self.shrunk(rng)
        while larger := [neighbour for neighbour in self._neighbours(config, -1) if self.allows(neighbour)]:
            config = rng.choice(larger)
        return config

    def _climb(self) -> list[Config]:
        """Every configuration that allowed ones lead to, one step at a time, from the smallest: with costs that grow with
        every width, all that are allowed."""
        found = [self.space.smallest]
        known = set(found)
        for config in found:
            larger = [c for c in self._neighbours(config, -1) if c not in known and self.allows(c)]
            found += larger
            known.update(larger)
        return found

    def _neighbours(self, config: Config, step: int) -> list[Config]:
        """The configurations with one slot ``step`` places further in its choices, which go from large to small."""
        found = []
        for slot, options in enumerate(self.space.choices):
            place = options.index(config[slot]) + step
            if 0 <= place < len(options):
                found.append((*config[:slot], options[place], *config[slot + 1 :]))
        return found


Evaluate = Callable[[Config, str, int], Record]
Rank = Callable[[Record], tuple]


def evolve(
    candidates: Candidates, options: SearchOptions, seeds: Sequence[Config], evaluate: Evaluate, rank: Rank
) -> list[Record]:
    """Evaluate a first generation and then children of the best so far, until the generations or the candidates end.

    Args:
        candidates: consumed.
        options: population, generations, parents, mutation and crossover.
        seeds: evaluated first.
        evaluate: gives the record of ``(config, origin, generation)``.
        rank: sort key of records, the best first.

    Returns:
        The records in the order of evaluation. The last generation competes like all others.
    """
    records: list[Record] = []
    mutants = round(options.mutation_ratio * options.population)
    for generation in range(options.generations):
        rng = random.Random(f"evolution/{options.seed}/{generation}")
        best = sorted(records, key=rank)[: max(2, round(options.parent_ratio * options.population))]
        parents = [parse_config(record["config_str"]) for record in best]
        makers: dict[str, Callable[[], Config]] = {
            "large": functools.partial(candidates.grown, rng),
            "mutation": functools.partial(_mutate, parents, candidates.space, options.mutate_prob, rng),
            "crossover": functools.partial(_cross, parents, rng),
        }
        if generation == 0:
            for config in seeds:
                if candidates.take(config):
                    records.append(evaluate(config, "seeded", 0))
            rest = max(0, options.population - len(records))
            large = min(rest, round(options.large * options.population))
            plan = ["large"] * large + ["random"] * (rest - large)
        else:
            plan = ["mutation"] * mutants + ["crossover"] * (options.population - mutants)
        for origin in plan:
            chosen = candidates.draw(makers[origin]) if origin in makers else None
            if chosen is None:
                # Parents that have become alike have no new children: fresh blood fills the generation.
                chosen, origin = candidates.fresh(rng), "random"
            if chosen is None:
                return records
            records.append(evaluate(chosen, origin, generation))
    return records


def _mutate(parents: Sequence[Config], space: SearchSpace, probability: float, rng: random.Random) -> Config:
    parent = rng.choice(parents)
    return tuple(
        rng.choice(options) if rng.random() < probability else channels
        for channels, options in zip(parent, space.choices, strict=True)
    )


def _cross(parents: Sequence[Config], rng: random.Random) -> Config:
    couple = rng.sample(parents, min(2, len(parents)))
    return tuple(rng.choice(pair) for pair in zip(*couple, strict=True))


def brute_force(candidates: Candidates, options: SearchOptions, seeds: Sequence[Config], evaluate: Evaluate) -> list[Record]:
    """Evaluate every candidate, largest first, or ``options.samples`` random ones; the seeds before all others."""
    records = [evaluate(config, "seeded", 0) for config in seeds if candidates.take(config)]
    if not options.samples:
        return records + [evaluate(config, "brute", 0) for config in candidates.space if candidates.take(config)]
    rng = random.Random(f"brute/{options.seed}")
    while len(records) < options.samples and (config := candidates.fresh(rng)) is not None:
        records.append(evaluate(config, "brute", 0))
    return records
