"""Kernels against stock PyTorch in float64; what stock PyTorch does in the kernels' dtype measures the error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gancomp.testing import assert_accurate, forward_backward, unchanged

from .conftest import Machine

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(
    kernel: Callable[..., Tensor],
    stock: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    *,
    machine: Machine,
    measure: torch.dtype | None = None,
) -> list[Tensor]:
    """Compare the output and all gradients; returns those of the kernel.

    Args:
        kernel: the function under test.
        stock: the same in stock PyTorch, for tensors of one dtype.
        tensors: the image first; parameters may be of float32 beside an image of 16 bits.
        grad: of the output.
        machine: where the kernel runs.
        measure: dtype whose rounding the kernel may show, by default that of the image.
    """
    measure = measure or tensors[0].dtype
    ours = [None if t is None else machine.place(t) for t in tensors]
    our_grad = machine.place(grad)
    with unchanged(*ours, our_grad):
        actual = forward_backward(kernel, our_grad, *ours)
    theirs = forward_backward(stock, our_grad.to(measure), *(None if t is None else t.to(measure) for t in ours))
    exact = forward_backward(stock, grad.double(), *(None if t is None else t.double() for t in tensors))
    names = ["y", *[f"gradient {index}" for index, t in enumerate(tensors) if t is not None]]
    for name, got, measured, expected in zip(names, actual, theirs, exact, strict=True):
        assert_accurate(got.cpu(), measured.to(got.dtype).cpu(), expected, name)
    assert actual[0].is_contiguous()
    assert [g.dtype for g in actual[1:]] == [t.dtype for t in tensors if t is not None]
    return actual


def poisoned(narrow: Tensor, spare: int) -> Tensor:
    """An image tensor with ``spare`` further channels of NaN: what lies where no channel is active."""
    return torch.cat([narrow, narrow.new_full((narrow.shape[0], spare, *narrow.shape[2:]), float("nan"))], 1)


def restored(wide: Tensor, channels: int) -> Tensor:
    """The first channels of a result of which the others must be as they were allocated: full of NaN."""
    assert bool(wide[:, channels:].isnan().all()), "an inactive channel was written"
    return wide[:, :channels]


def run(machine: Machine, kernel: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """``forward_backward`` where the kernels run; the results on the CPU."""
    placed = [None if tensor is None else machine.place(tensor) for tensor in tensors]
    return [result.cpu() for result in forward_backward(kernel, machine.place(grad), *placed)]
