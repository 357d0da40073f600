"""Choosing a sub-network copies and allocates nothing: not when it is chosen, not forwards, not backwards."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import allocations, images

COPIES = (
    "aten::copy_",
    "aten::clone",
    "aten::contiguous",
    "aten::slice",
    "aten::slice_backward",
    "aten::cat",
    "aten::_to_copy",
)


@pytest.fixture
def supernet() -> Supernet:
    return Supernet(SearchSpace.parse("16,12,8"), n_blocks=3, separable=True)


def step(supernet: Supernet, x: torch.Tensor, grad: torch.Tensor) -> None:
    supernet(x).backward(grad)


def profiled(supernet: Supernet, backend: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often every op runs in one step of a sub-network: forwards, backwards, gradients accumulated anew."""
    monkeypatch.setenv("GANCOMP_BACKEND", backend)
    x = images(2, 3, 32, 32).tanh()
    grad = images(2, 3, 32, 32, seed=1)
    supernet.set(supernet.space.sample(random.Random(1)))
    step(supernet, x, grad)
    supernet.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(supernet, x, grad)
    return {event.key: event.count for event in profile.key_averages()}


def test_choosing_allocates_nothing_and_moves_no_weight(supernet):
    before = {name: (p.data_ptr(), p._version) for name, p in supernet.named_parameters()}
    configs = [supernet.space.sample(random.Random(seed)) for seed in range(5)]
    assert allocations(lambda: [supernet.set(config) for config in configs]) == []
    assert {name: (p.data_ptr(), p._version) for name, p in supernet.named_parameters()} == before


def test_a_step_copies_and_slices_nothing(supernet, monkeypatch):
    counts = profiled(supernet, "cpu", monkeypatch)
    assert counts["gancomp::sliced_conv2d"] == 4
    assert counts["gancomp::sliced_conv_transpose2d"] == 2
    assert counts["gancomp::separable_resblock"] == 3
    assert {name: counts[name] for name in COPIES if name in counts} == {}


def test_the_obvious_way_is_caught(supernet, monkeypatch):
    """The test above can fail: narrowed weights copy in both directions."""
    counts = profiled(supernet, "reference", monkeypatch)
    assert counts["aten::copy_"] > 0
    assert counts["aten::slice_backward"] > 0


def test_memory_does_not_grow_with_what_is_inactive(supernet):
    """Forwards, a narrow sub-network of a wide supernet allocates what it does on its own."""
    config = supernet.space.smallest
    alone = supernet.extract(config)
    supernet.set(config)
    x = images(1, 3, 32, 32).tanh()

    def sizes(network: nn.Module) -> list[int]:
        with torch.no_grad():
            network(x)
            return allocations(lambda: network(x))

    assert sizes(supernet) == sizes(alone)
