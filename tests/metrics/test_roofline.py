"""What the machine does at most."""

from __future__ import annotations

import time

import pytest
import torch

from gancomp import _C
from gancomp.errors import ConfigError
from gancomp.metrics import measure_roofline


@pytest.mark.parametrize("isa", _C.supported_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set(isa: str, threads: int) -> None:
    most = measure_roofline(isa, threads, seconds=0.02)
    assert (most.isa, most.threads) == (isa, threads)
    assert 1e9 < most.flops < threads * 1e12
    assert 1e8 < most.memory_bytes < 1e13
    assert most.memory_bytes < 3 * most.cache_bytes


def test_no_matrix_product_is_faster() -> None:
    """Nothing that computes is above the peak, whose instruction set is the best of this processor."""
    most = measure_roofline(_C.supported_isas()[0], 1, seconds=0.5)
    a, times = torch.rand(512, 512), []
    for _ in range(30):
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    assert 2 * 512**3 / min(times) < 1.2 * most.flops


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="isa='mmx': this build or this processor lacks it"):
        measure_roofline("mmx", 1)
    for threads in (0, 257):
        with pytest.raises(ConfigError, match="threads: expected 1 to 256"):
            measure_roofline("portable", threads)
