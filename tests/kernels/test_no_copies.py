"""Choosing a sub-network copies nothing: forward and backward ask PyTorch for new memory, and launch kernels."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

from gancomp.kernels.separable_resblock import SeparableResblockTriton  # noqa: E402
from gancomp.kernels.sliced_conv import REFLECT, SlicedConv2dTriton, SlicedConvTranspose2dTriton  # noqa: E402
from gancomp.kernels.spade import SpadeModulateTriton  # noqa: E402

HARMLESS = {"new_empty", "empty", "empty_like", "detach", "slice"}
OPS = ["sliced_conv2d", "sliced_conv_transpose2d", "separable_resblock", "spade_modulate"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Dispatched(TorchDispatchMode):
    """Names of all of PyTorch's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        # The interpreter views the memory of every argument, and writes it back to itself as bytes.
        if not (INTERPRETED and (name == "set_" or (name == "copy_" and args[0].dtype == torch.uint8))):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def calls(device):
    """By op: a function that calls it on the first of wider tensors, and those tensors."""

    def leaves(*shapes):
        return [torch.randn(shape, device=device).requires_grad_() for shape in shapes]

    yield (
        lambda x, w, b: SlicedConv2dTriton.apply(x[:, :3], w, b, 2, 1, 1, REFLECT),
        leaves((2, 5, 4, 4), (4, 6, 3, 3), (4,)),
    )
    yield (
        lambda x, w, b: SlicedConvTranspose2dTriton.apply(x[:, :3], w, b, 2, 2, 1, 1),
        leaves((2, 5, 3, 3), (6, 4, 3, 3), (4,)),
    )
    mask = torch.ones(2, 2, 3, 3, dtype=torch.uint8, device=device)
    yield (
        lambda x, *weights: SeparableResblockTriton.apply(x[:, :2], *weights, mask, 1.0, 2, 1e-5),
        leaves((2, 4, 3, 3), (3, 1, 3, 3), (4, 3, 1, 1), (4, 1, 3, 3), (3, 4, 1, 1)),
    )
    yield (
        lambda x, both: SpadeModulateTriton.apply(x[:, :2], both[:, :2], both[:, 2:4], None, None, True, 0.2, 1e-5)[0],
        leaves((2, 4, 3, 3), (2, 4, 3, 3)),
    )


@pytest.mark.parametrize("op", range(4), ids=OPS)
def test_nothing_is_copied(op, device):
    call, leaves = list(calls(device))[op]
    # The counts of channels are put on the device once.
    grad = torch.randn_like(call(*leaves))
    with Dispatched() as dispatched:
        y = call(*leaves)
    assert dispatched.names <= HARMLESS, "forward"
    node = y.grad_fn
    with torch.no_grad(), Dispatched() as dispatched:
        gradients = node.apply(grad)
    assert dispatched.names <= HARMLESS, "backward"
    assert all(gradient is not None for gradient in gradients[: len(leaves)])


def test_counts_made_for_inference_serve_training(device):
    """Counts that no other test uses are first asked for where tensors cannot be kept for the backward pass."""
    x, weight = torch.randn(1, 7, 2, 2, device=device), torch.randn(11, 7, 1, 1, device=device, requires_grad=True)
    with torch.inference_mode():
        SlicedConv2dTriton.apply(x, weight, None, 11, 1, 0, REFLECT)
    SlicedConv2dTriton.apply(x, weight, None, 11, 1, 0, REFLECT).sum().backward()
    assert weight.grad.shape == weight.shape
