"""The operators, forward and backward, against stock PyTorch at the shapes of the released networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.cases import OpCase, op_cases
from benchmarks.schema import Row, conditions, percentiles
from benchmarks.training_cases import ResblockCase, SpadeCase, training_cases
from gancomp.testing import assert_accurate, peak_allocated

SECONDS = 0.6
"""About how long the rounds of one benchmark take together."""

OURS = "gancomp-cpu"
Case = OpCase | ResblockCase | SpadeCase

CASES: list[tuple[Case, str]] = [(case, mode) for case in op_cases() for mode in ("forward", "backward")]
CASES += [(case, mode) for case in training_cases() for mode in ("forward", "training")]


def calls(case: Case, mode: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """The contenders, checked against the reference: functions that run what is timed and return its results.

    ``forward`` is without gradients, ``backward`` what follows it for them, ``training`` both passes.
    """
    tensors = case.inputs()
    grad = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))

    def contender(function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Callable[[], tuple[Tensor, ...]]:
        mine = [tensor.to(dtype).requires_grad_(mode != "forward") for tensor in tensors]
        if mode == "forward":
            return lambda: (function(*mine),)

        def training() -> tuple[Tensor, ...]:
            y = function(*mine)
            return y.detach(), *torch.autograd.grad(y, mine, grad.to(dtype))

        if mode == "training":
            return training
        y = function(*mine)
        return lambda: torch.autograd.grad(y, mine, grad.to(dtype), retain_graph=True)

    exact = contender(case.exact, torch.float64)()
    contenders = {"stock": contender(case.stock), OURS: contender(partial(case.gancomp, backend="cpu"))}
    for index, (ours, stock, truth) in enumerate(zip(contenders[OURS](), contenders["stock"](), exact, strict=True)):
        assert_accurate(ours, stock, truth, f"{case} {mode}, result {index}")
    return contenders


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


@pytest.mark.parametrize(("case", "mode"), CASES, ids=str)
def test_op(case, mode, benchmark, rows):
    contenders = calls(case, mode)
    once = sum(min(milliseconds(call) for _ in range(3)) for call in contenders.values())
    rounds = min(max(int(SECONDS * 1e3 / once), 5), 200)
    # pytest-benchmark times gancomp; its set-up of every round is a timed call of stock PyTorch, so that the two alternate.
    stock: list[float] = []
    benchmark.pedantic(
        contenders[OURS], setup=lambda: stock.append(milliseconds(contenders["stock"])), rounds=rounds, warmup_rounds=2
    )
    if benchmark.disabled:
        return
    times = {"stock": stock[-rounds:], OURS: [seconds * 1e3 for seconds in benchmark.stats.stats.data]}
    measured = {(provider, "time", "ms"): values for provider, values in times.items()}
    measured[OURS, "speedup", "x"] = [a / b for a, b in zip(times["stock"], times[OURS], strict=True)]
    if mode == "training":
        for provider, call in contenders.items():
            measured[provider, "memory", "MB"] = [peak_allocated(call) / 1e6]
    where = asdict(conditions(torch.get_num_threads()))
    for (provider, metric, unit), values in measured.items():
        rows.append(
            Row(
                kernel=case.op, provider=provider, mode=mode, metric=metric, unit=unit, x=case.size, config=case.options,
                **percentiles(values), **where,
            )
        )  # fmt: skip
