"""The emulation itself: that it notices what would go wrong on a GPU, and that its instructions compute what a GPU's do."""

from __future__ import annotations

import pytest
import torch

from .conftest import ORDERS

NO_FAULT, NO_BARRIER, HALF_A_BARRIER, HALF_A_WARP, READS_BEYOND, SHARED_BEYOND = range(6)
MULTIPLY, ROUND = {torch.float16: 6, torch.bfloat16: 7, torch.float32: 8}, 9


@pytest.fixture(params=ORDERS)
def emulated(request, built):
    built.order(request.param)
    yield built
    built.order("ascending")
    built.free()


def test_threads_take_turns(emulated):
    numbers = torch.arange(64.0)
    assert emulated.faulty(NO_FAULT, numbers) is None
    assert torch.equal(numbers, torch.arange(64.0).view(32, 2).flip(1).flatten())


def test_a_missing_barrier_shows(emulated):
    """Some threads read what their neighbour has not written yet, in every order: NaN."""
    numbers = torch.arange(64.0)
    assert emulated.faulty(NO_BARRIER, numbers) is None
    assert numbers.isnan().sum() == 32


@pytest.mark.parametrize("kind", [HALF_A_BARRIER, HALF_A_WARP])
def test_a_barrier_that_some_threads_miss_is_an_error(kind, emulated):
    assert "a barrier that not all threads reach" in str(emulated.faulty(kind, torch.zeros(64)))


def test_an_access_beyond_the_memory_is_an_error(emulated):
    assert "access beyond a fence" in str(emulated.faulty(READS_BEYOND, emulated.fence(torch.zeros(64), at_end=True)))
    assert "access beyond a fence" in str(emulated.faulty(SHARED_BEYOND, torch.zeros(64)))
    assert emulated.faulty(NO_FAULT, torch.zeros(64)) is None, "the next launch is not disturbed"


@pytest.mark.parametrize("dtype", MULTIPLY, ids=str)
def test_the_matrix_instruction(dtype, built):
    """In whole numbers, which every type holds: the layout of its operands over the warp."""
    depth = 8 if dtype == torch.float32 else 16
    left, right = torch.randint(-8, 9, (16, depth)).float(), torch.randint(-8, 9, (depth, 8)).float()
    numbers = torch.zeros(512)
    numbers[: left.numel()], numbers[256 : 256 + right.numel()] = left.flatten(), right.flatten()
    assert built.faulty(MULTIPLY[dtype], numbers) is None
    assert torch.equal(numbers[384:].view(16, 8), left @ right)


def test_tf32_has_ten_bits(built):
    numbers = torch.zeros(512)
    numbers[0], numbers[256] = 1 + 2**-10 + 2**-11, 1  # halfway, away from zero
    assert built.faulty(MULTIPLY[torch.float32], numbers) is None
    assert numbers[384] == 1 + 2**-9


def test_rounding_to_16_bits_is_pytorchs(built):
    bits = torch.randint(-(2**31), 2**31, (4096,)).to(torch.int32)
    values = torch.cat(
        [
            bits.view(torch.float32),
            torch.randn(4096),
            torch.randn(2048) * 1e-6,
            torch.tensor([0.0, -0.0, 65504, 65520, -65519.9]),
        ]
    )
    values = torch.cat([values, values])
    expected = torch.cat([values[: len(values) // 2].half().float(), values[len(values) // 2 :].bfloat16().float()])
    assert built.faulty(ROUND, values) is None
    assert torch.equal(values.nan_to_num(nan=1.25), expected.nan_to_num(nan=1.25))
    assert torch.equal(values.isnan(), expected.isnan())
