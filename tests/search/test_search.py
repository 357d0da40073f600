"""The search on analytic objectives whose optimum is known."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from gancomp.errors import ConfigError, NotFiniteError, RunError
from gancomp.models.channels import Config, format_config, parse_config
from gancomp.search import Limits, SearchOptions, SearchResult, check_reachable, search
from gancomp.search.evolution import Candidates
from gancomp.supernet import SPACES, SearchSpace

SMALL = SearchSpace.parse("8,4,2;8,4;8,6,4;4,2", 4)
LARGE = SPACES["channels-64-pix2pix"]


def macs(config: Config) -> dict[str, float]:
    """Like a network's: products of neighbouring widths."""
    return {"macs": float(sum(a * b for a, b in itertools.pairwise(config)) + sum(config))}


def error(config: Config) -> dict[str, float]:
    """Falls with every width, most with the middle ones, with an interaction and no symmetry."""
    weights = [1.0, 2.5, 4.0, 3.0, 1.5, 2.0, 1.2, 0.7]
    terms = [weight / channels for weight, channels in zip(weights, config, strict=False)]
    return {"fd": 100 * sum(terms) + 400 * terms[0] * terms[-1], "l1": sum(terms)}


def allowed(space: SearchSpace, limits: Limits) -> list[Config]:
    return [config for config in space if limits.allows(macs(config))]


class Search:
    """One search with a log of what was evaluated."""

    def __init__(self, path: Path, space: SearchSpace = SMALL, limit: float = math.inf, **options) -> None:
        self.path, self.space = path, space
        self.limits = Limits(macs=limit) if limit < math.inf else Limits()
        self.options = SearchOptions(**options)
        self.evaluated: list[Config] = []
        self.stop_at: int | None = None
        self.cost: Callable[[Config], Mapping[str, float]] = macs
        self.score: Callable[[Config], Mapping[str, float]] = error

    def evaluate(self, config: Config) -> Mapping[str, float]:
        if len(self.evaluated) == self.stop_at:
            raise KeyboardInterrupt
        self.evaluated.append(config)
        return self.score(config)

    def __call__(self, **call) -> SearchResult:
        call = {"objective_key": "fd", "header": {"weights_sha256": "abc"}, "progress": False, **call}
        return search(self.space, self.evaluate, self.cost, self.limits, self.options, results_path=self.path, **call)

    def lines(self) -> list[dict]:
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "search" / "results.jsonl"


def configs(result: SearchResult) -> list[Config]:
    return [parse_config(record["config_str"]) for record in result.records]


# Brute force


def test_brute_force_evaluates_what_is_allowed_once(path):
    run = Search(path, limit=120, method="brute")
    result = run()
    expected = allowed(SMALL, run.limits)
    assert 1 < len(expected) < SMALL.size
    assert run.evaluated == configs(result) == expected
    assert parse_config(result.best["config_str"]) == min(expected, key=lambda c: error(c)["fd"])
    assert result.best["metrics"] == error(parse_config(result.best["config_str"]))
    assert result.best["cost"] == macs(parse_config(result.best["config_str"]))
    assert {record["origin"] for record in result.records} == {"brute"}


def test_brute_force_maximizes(path):
    run = Search(path, limit=120, method="brute")
    best = run(maximize=True).best
    assert parse_config(best["config_str"]) == max(allowed(SMALL, run.limits), key=lambda c: error(c)["fd"])


@pytest.mark.parametrize("space", [SMALL, LARGE])
def test_brute_force_on_a_sample(path, space):
    limit = sum(macs(space.smallest).values()) * 3
    run = Search(path, space, limit, method="brute", samples=9)
    found = configs(run())
    assert len(set(found)) == len(found) == 9
    assert all(config in space and run.limits.allows(macs(config)) for config in found)
    again = Search(path.with_name("again.jsonl"), space, limit, method="brute", samples=9)
    other = Search(path.with_name("other.jsonl"), space, limit, method="brute", samples=9, seed=1)
    assert configs(again()) == found
    assert configs(other()) != found


def test_draws_from_a_listed_space_are_uniform():
    limits = Limits(macs=120)
    counts = dict.fromkeys(allowed(SMALL, limits), 0)
    for seed in range(3000):
        candidates = Candidates(SMALL, lambda config: limits.allows(macs(config)), listed=True, seed=seed)
        counts[candidates.fresh(random.Random(seed))] += 1
    mean = 3000 / len(counts)
    chi2 = sum((count - mean) ** 2 / mean for count in counts.values())
    assert chi2 < len(counts) + 4 * math.sqrt(2 * len(counts))


def test_a_sample_larger_than_what_is_allowed_is_everything(path):
    run = Search(path, limit=120, method="brute", samples=1000)
    assert set(configs(run())) == set(allowed(SMALL, run.limits))
    assert len(run.evaluated) == len(set(run.evaluated))


# Evolution


def test_evolution_beats_random_search_at_equal_evaluations(tmp_path):
    evolved, drawn = [], []
    for seed in range(3):
        limit = 0.25 * macs(LARGE.largest)["macs"]
        common = {"space": LARGE, "limit": limit, "seed": seed}
        run = Search(tmp_path / f"e{seed}.jsonl", **common, population=16, generations=7, large=0.0)
        evolved.append(run().best["metrics"]["fd"])
        assert len(run.evaluated) == len(set(run.evaluated)) == 112
        run = Search(tmp_path / f"r{seed}.jsonl", **common, method="brute", samples=112)
        drawn.append(run().best["metrics"]["fd"])
        assert len(run.evaluated) == 112
    assert all(e < d for e, d in zip(evolved, drawn, strict=True))
    best = optimum(limit)
    assert min(evolved + drawn) >= best
    assert sum(e - best for e in evolved) < 0.5 * sum(d - best for d in drawn)


def optimum(limit: float) -> float:
    """The best of all 7^8 configurations of ``LARGE`` within the limit, by trying every one: see `macs` and `error`."""
    slots = np.meshgrid(*[np.array(options, dtype=np.float64) for options in LARGE.choices], indexing="ij", sparse=True)
    cost = sum(a * b for a, b in itertools.pairwise(slots)) + sum(slots)
    scores = error(slots)["fd"]
    place = np.unravel_index(np.where(cost <= limit, scores, np.inf).argmin(), scores.shape)
    config = tuple(options[k] for options, k in zip(LARGE.choices, place, strict=True))
    assert macs(config)["macs"] <= limit
    assert error(config)["fd"] == pytest.approx(scores[place])
    return float(scores[place])


def test_generations(path):
    limit = 0.25 * macs(LARGE.largest)["macs"]
    run = Search(path, LARGE, limit, population=16, generations=4, mutation_ratio=0.25, large=0.25)
    records = run().records
    by_generation = [[r["origin"] for r in records if r["generation"] == g] for g in range(4)]
    assert by_generation[0] == ["large"] * 4 + ["random"] * 12
    for origins in by_generation[1:]:
        assert origins == ["mutation"] * 4 + ["crossover"] * 12
    assert all(r["cost"]["macs"] <= limit for r in records)


def test_large_configurations_cannot_grow(path):
    limit = 0.25 * macs(LARGE.largest)["macs"]
    run = Search(path, LARGE, limit, population=6, generations=1, large=1.0)
    for config in configs(run()):
        for slot, options in enumerate(LARGE.choices):
            place = options.index(config[slot])
            if place:
                assert macs((*config[:slot], options[place - 1], *config[slot + 1 :]))["macs"] > limit


def test_the_last_generation_is_selected_from(path):
    run = Search(path, LARGE, population=4, generations=3)
    run.score = lambda config: {"fd": -float(len(run.evaluated))}
    result = run()
    assert result.best == result.records[-1]
    assert result.best["generation"] == 2


def test_children_come_from_the_best(path):
    run = Search(path, LARGE, population=20, generations=2, parent_ratio=0.1, mutation_ratio=0.0, large=0.0)
    records = run().records
    first = sorted(records[:20], key=lambda r: r["metrics"]["fd"])
    a, b = (parse_config(r["config_str"]) for r in first[:2])
    children = [parse_config(r["config_str"]) for r in records[20:] if r["origin"] == "crossover"]
    assert children
    assert all(channels in pair for child in children for channels, pair in zip(child, zip(a, b, strict=True), strict=True))


@pytest.mark.parametrize("limit", [math.inf, 120, 60])
@pytest.mark.parametrize("method", ["evolution", "brute"])
def test_a_small_space_is_exhausted(path, method, limit):
    run = Search(path, limit=limit, method=method, population=10, generations=50)
    result = run()
    expected = allowed(SMALL, run.limits)
    assert sorted(configs(result)) == sorted(expected)
    assert parse_config(result.best["config_str"]) == min(expected, key=lambda c: error(c)["fd"])


@pytest.mark.parametrize("method", ["evolution", "brute"])
def test_a_space_of_one_configuration(path, method):
    run = Search(path, SearchSpace.parse("8;4;2", 3), method=method)
    result = run()
    assert run.evaluated == [(8, 4, 2)]
    assert result.front == [result.best]


def test_only_the_smallest_of_a_large_space_is_allowed(path):
    run = Search(path, LARGE, macs(LARGE.smallest)["macs"], population=4, generations=3)
    assert configs(run()) == [LARGE.smallest]


def test_a_tight_budget_in_a_large_space_is_met_by_all_that_meet_it(path):
    limit = 1.2 * macs(LARGE.smallest)["macs"]
    # Three steps up in any slot are beyond it; the first and the last slot cost least.
    near = SearchSpace("near", tuple(options[-3:] for options in LARGE.choices))
    assert macs((*LARGE.smallest[:-1], 40))["macs"] > limit
    expected = {config for config in near if macs(config)["macs"] <= limit}
    assert 10 < len(expected) < 200
    run = Search(path, LARGE, limit, population=16, generations=20)
    assert set(configs(run())) == expected
    assert len(run.evaluated) == len(expected)


def test_seeds_of_the_random_choices(tmp_path):
    runs = [
        Search(tmp_path / f"{i}.jsonl", LARGE, population=6, generations=3, seed=seed)() for i, seed in enumerate((5, 5, 6))
    ]
    assert configs(runs[0]) == configs(runs[1])
    assert configs(runs[0]) != configs(runs[2])


@pytest.mark.parametrize("method", ["evolution", "brute"])
def test_given_configurations_come_first(path, method):
    given = [(2, 4, 6, 2), (4, 4, 4, 2), (2, 4, 6, 2)]
    run = Search(path, limit=120, method=method, population=4, generations=2, samples=4)
    records = run(seeds=given).records
    assert [r["config_str"] for r in records[:2]] == ["2_4_6_2", "4_4_4_2"]
    assert [r["origin"] for r in records].count("seeded") == 2
    assert len(run.evaluated) == len(set(run.evaluated)) == (8 if method == "evolution" else 4)


# What can go wrong


def test_unreachable_budget_says_what_the_smallest_costs(path):
    smallest = format_config(SMALL.smallest)
    with pytest.raises(ConfigError, match=rf"macs <= 20 is out of reach.*{smallest}, costs macs 44"):
        Search(path, limit=20)()
    assert not path.exists()
    with pytest.raises(ConfigError, match="out of reach"):
        check_reachable(SMALL, macs, Limits(macs=20))
    check_reachable(SMALL, macs, Limits(macs=44))


def test_a_limit_that_the_cost_does_not_tell(path):
    run = Search(path)
    run.limits = Limits(latency_ms=3)
    with pytest.raises(ConfigError, match="latency_ms is limited"):
        run()


def test_bad_seeds(path):
    with pytest.raises(ConfigError, match="slot 0"):
        Search(path)(seeds=[(3, 4, 6, 2)])
    with pytest.raises(ConfigError, match=r"8_8_8_4.*allowed is macs <= 60"):
        Search(path, limit=60)(seeds=[(8, 8, 8, 4)])
    assert not path.exists()


def test_unknown_objective(path):
    with pytest.raises(ConfigError, match=r"objective_key='ssim'.*fd, l1"):
        Search(path)(objective_key="ssim")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_score_that_is_not_finite_loses(path, bad, maximize):
    run = Search(path, limit=120, population=8, generations=10)
    run.score = lambda config: {"fd": bad if config[0] == 8 else error(config)["fd"]}
    result = run(maximize=maximize)
    pick = max if maximize else min
    finite = [config for config in allowed(SMALL, run.limits) if config[0] != 8]
    assert parse_config(result.best["config_str"]) == pick(finite, key=lambda c: error(c)["fd"])
    assert all(r["metrics"]["fd"] is not None for r in result.front)
    assert any(r["metrics"]["fd"] is None for r in result.records)
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()


def test_a_candidate_that_is_not_finite_gets_a_note(path):
    def score(config: Config) -> Mapping[str, float]:
        if config[0] == 8:
            raise NotFiniteError(f"the weights of {format_config(config)}")
        return error(config)

    run = Search(path, limit=120, population=8, generations=10)
    run.score = score
    result = run()
    finite = [config for config in allowed(SMALL, run.limits) if config[0] != 8]
    assert parse_config(result.best["config_str"]) == min(finite, key=lambda c: error(c)["fd"])
    bad = [record for record in result.records if record["config_str"].startswith("8_")]
    assert len(bad) + len(finite) == len(result.records)
    assert all(r["metrics"] == {"fd": None} and r["note"] == f"the weights of {r['config_str']}" for r in bad)
    assert not any("note" in record for record in result.records if record not in bad)
    assert Search(path, limit=120, population=8, generations=10)() == result


def test_no_finite_score_at_all(path):
    run = Search(path, population=3, generations=1)
    run.score = lambda config: {"fd": math.nan}
    with pytest.raises(RunError, match="no configuration has a finite fd"):
        run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "grid"), ("objective", "fid"), ("population", 1), ("generations", 0), ("parent_ratio", 0.0),
        ("mutation_ratio", 1.5), ("mutate_prob", 0.0), ("large", -0.1), ("samples", -1), ("population", math.nan),
    ],
)  # fmt: skip
def test_bad_options(name, value):
    with pytest.raises(ConfigError, match=f"search: {name}="):
        SearchOptions(**{name: value})


# Going on


@pytest.mark.parametrize(
    "options", [{"population": 4, "generations": 3}, {"method": "brute", "samples": 6}, {"method": "brute", "samples": 0}]
)
def test_killed_anywhere_ends_as_if_uninterrupted(tmp_path, options):
    whole = Search(tmp_path / "whole.jsonl", limit=70, **options)
    expected = whole()
    total = len(whole.evaluated)
    for stop in range(total):
        run = Search(tmp_path / f"{stop}.jsonl", limit=70, **options)
        run.stop_at = stop
        with pytest.raises(KeyboardInterrupt):
            run()
        assert [line["kind"] for line in run.lines()] == ["header", *["result"] * stop] if stop else not run.path.exists()
        again = Search(run.path, limit=70, **options)
        result = again()
        assert again.lines() == whole.lines()
        assert run.evaluated + again.evaluated == whole.evaluated
        assert configs(result) == configs(expected)
        assert result.best["config_str"] == expected.best["config_str"]
    finished = Search(whole.path, limit=70, **options)
    assert finished() == expected
    assert finished.evaluated == []


def test_killed_while_writing(tmp_path):
    options = {"limit": 120, "population": 4, "generations": 2}
    whole = Search(tmp_path / "whole.jsonl", **options)
    whole()
    data = whole.path.read_bytes()
    for cut in range(0, len(data), 37):
        run = Search(tmp_path / f"{cut}.jsonl", **options)
        run.path.write_bytes(data[:cut])
        run()
        assert run.lines() == whole.lines()
        assert len(run.evaluated) == len(whole.evaluated) - max(0, data[:cut].count(b"\n") - 1)


def test_a_damaged_line_in_the_middle_is_refused(path):
    Search(path, population=4, generations=1)()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:-9] + "\n", *lines[3:]]))
    with pytest.raises(RunError, match="line 3 is damaged"):
        Search(path, population=4, generations=1)()


@pytest.mark.parametrize("line", [{"kind": "header"}, {"kind": "result", "cost": {}}, {"step": 3}])
def test_foreign_lines_are_refused(path, line):
    Search(path, population=4, generations=1)()
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(RunError, match="line 6 is not a line of a search"):
        Search(path, population=4, generations=1)()


def test_a_file_of_something_else_is_refused(path):
    path.parent.mkdir()
    path.write_text('{"step": 1}\n')
    with pytest.raises(RunError, match="not a results file"):
        Search(path)()
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("change", "call", "message"),
    [
        ({"seed": 1}, {}, r"search.seed=233, now 1"),
        ({"population": 5}, {}, r"search.population=4, now 5"),
        ({"method": "brute"}, {}, r"search.method='evolution', now 'brute'"),
        ({"limit": 99}, {}, r"limits.macs=120.0, now 99"),
        ({"limit": math.inf}, {}, r"with limits.macs"),
        ({"space": SearchSpace.parse("8,4;8,4;8,6,4;4,2", 4)}, {}, r"space.name="),
        ({}, {"objective_key": "l1"}, r"objective.key='fd', now 'l1'"),
        ({}, {"maximize": True}, r"objective.maximize=False, now True"),
        ({}, {"seeds": [SMALL.smallest]}, r"seeds=\[\], now"),
        ({}, {"header": {"weights_sha256": "abd"}}, r"weights_sha256='abc', now 'abd'"),
        ({}, {"header": {"weights_sha256": "abc", "images": 3}}, r"without images"),
        ({}, {"header": {}}, r"with weights_sha256"),
    ],
)
def test_another_search_is_refused_by_its_first_difference(path, change, call, message):
    before = {"space": SMALL, "limit": 120.0, "population": 4, "generations": 2}
    Search(path, **before)()
    data = path.read_bytes()
    run = Search(path, **{**before, **change})
    with pytest.raises(RunError, match=message):
        run(**call)
    assert run.evaluated == []
    assert path.read_bytes() == data


def test_options_of_the_other_method_do_not_matter(path):
    Search(path, method="brute", samples=3)()
    assert Search(path, method="brute", samples=3, population=7, mutate_prob=0.9)().records


def test_new_records_are_announced(path):
    run = Search(path, population=4, generations=2)
    run.stop_at = 5
    announced: list[dict] = []
    with pytest.raises(KeyboardInterrupt):
        run(on_result=announced.append)
    assert len(announced) == 5
    result = Search(path, population=4, generations=2)(on_result=announced.append)
    assert announced == result.records


def test_progress(path, capsys):
    Search(path, population=4, generations=2)(progress=True)
    out = capsys.readouterr()
    assert out.out == ""
    assert "8/8" in out.err
    assert "best" in out.err


# Measured costs


class Stopwatch:
    """Latencies as if measured: never the same twice for one configuration, and a note of which were asked for."""

    def __init__(self, run: int = 0) -> None:
        self.run, self.asked = run, []

    def __call__(self, config: Config) -> dict[str, float]:
        self.asked.append(config)
        noise = random.Random(f"{config}/{self.run}/{len(self.asked)}").uniform(0.8, 1.25)
        return {**macs(config), "latency_ms": round(noise * macs(config)["macs"] / 10, 3)}


def timed(path: Path, stopwatch: Stopwatch, **options) -> Search:
    run = Search(path, population=5, generations=4, **options)
    run.limits = Limits(latency_ms=9.0)
    run.cost = stopwatch
    return run


@pytest.mark.parametrize("space", [SMALL, LARGE])
def test_each_latency_is_measured_once_and_kept(path, space):
    stopwatch = Stopwatch()
    run = timed(path, stopwatch, space=space)
    run.limits = Limits(latency_ms=0.3 * macs(space.largest)["macs"] / 10)
    result = run()
    # The smallest is asked for once more, by the check that precedes the file.
    assert len(stopwatch.asked) == len(set(stopwatch.asked)) + 1
    assert all(r["cost"]["latency_ms"] <= run.limits.latency_ms for r in result.records)
    costs = {line["config_str"]: line["cost"] for line in run.lines() if line["kind"] == "cost"}
    assert len(costs) == len(set(stopwatch.asked)) > len(result.records)
    assert all(r["cost"] == costs[r["config_str"]] for r in result.records)


def test_a_continued_search_decides_by_the_latencies_it_measured_before(tmp_path):
    for stop in (1, 4, 5, 7, 9):
        path = tmp_path / f"{stop}.jsonl"
        run = timed(path, Stopwatch())
        run.stop_at = stop
        with pytest.raises(KeyboardInterrupt):
            run()
        before = run.lines()
        known = {parse_config(line["config_str"]) for line in before[1:]}
        stopwatch = Stopwatch(run=1)
        again = timed(path, stopwatch)
        result = again()
        assert again.lines()[: len(before)] == before
        assert configs(result)[:stop] == run.evaluated
        assert run.evaluated + again.evaluated == configs(result)
        assert not known & set(stopwatch.asked)
