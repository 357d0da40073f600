"""Whether a backend computes on the GPU at hand what it is specified to: asked once, before ``auto`` relies on it.

A kernel that is right in an emulation, an interpreter or on another GPU can still be wrong here: another architecture, driver
or compiler. A few small calls, forward and backward, are compared with the reference; that takes milliseconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from gancomp.errors import first_line

Call = Callable[..., Tensor]

# How much further than the reference in the same dtype a kernel may be off, and how much of the values on top (both as root
# mean squares): products in TF32 lose a thousandth. What is wrong is off by the values themselves.
_FACTOR, _SHARE = 4.0, 2.0**-7


@functools.cache
def verdict(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels of a backend must not be relied on for this op, or None.

    Args:
        op: name of the op.
        backend: ``cuda`` or ``triton``.
        device: where they run.
        dtype: of the images.
    """
    plain = torch.autocast(device.type, enabled=False)
    with unset_fake_temporarily(), torch.inference_mode(False), torch.enable_grad(), plain:
        for number, (call, tensors) in enumerate(_cases(op)):
            try:
                wrong = _compare(call, [tensor.to(device) for tensor in tensors], backend, dtype)
            except RuntimeError as error:
                wrong = first_line(error)
            if wrong is not None:
                return f"call {number} of its check on {device} in {str(dtype).removeprefix('torch.')}: {wrong}"
    return None


def _compare(call: Call, tensors: list[Tensor], backend: str, dtype: torch.dtype) -> str | None:
    """How far results and gradients are off, where that is too far."""
    generator = torch.Generator().manual_seed(1)

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        y = call(*leaves, backend=backend)
        grad = torch.randn(y.shape, generator=generator.manual_seed(1)).to(y)
        return [y, *torch.autograd.grad(y, leaves, grad)]

    exact, expected, found = run("reference", torch.float64), run("reference", dtype), run(backend, dtype)
    for index, (truth, measure, result) in enumerate(zip(exact, expected, found, strict=True)):
        error, usual, size = (_rms(values.double()) for values in (result.double() - truth, measure.double() - truth, truth))
        if not error <= _FACTOR * usual + _SHARE * size:
            what = "the result" if index == 0 else f"the gradient of tensor {index - 1}"
            return f"{what} is off by {error:.2g} where values are {size:.2g} (root mean squares)"
    return None


def _rms(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def _cases(op: str) -> list[tuple[Call, list[Tensor]]]:
    """Small calls of an op, with the tensors that have gradients. Full weights are larger than what is used of them."""
    from gancomp import ops

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def options(function: Any, **settings: Any) -> Call:
        return lambda *tensors, backend: function(*tensors, **settings, backend=backend)

    def norm(x: Tensor, *rest: Tensor, backend: str) -> Tensor:
        weight, bias, residual = rest or (None, None, None)
        return ops.instance_norm_act(x, weight, bias, residual=residual, relu=residual is None, backend=backend)

    conv, transposed = ops.sliced_conv2d, ops.sliced_conv_transpose2d
    cases: dict[str, list[tuple[Call, list[Tensor]]]] = {
        "instance_norm_act": [
            (norm, [normal(2, 5, 9, 13)]),
            (norm, [normal(2, 5, 9, 13), normal(7), normal(7), normal(2, 5, 9, 13)]),
        ],
        "reflect_pad_depthwise_conv3x3": [
            (options(ops.reflect_pad_depthwise_conv3x3), [normal(2, 5, 9, 13), normal(7, 1, 3, 3), normal(7)])
        ],
        "sliced_conv2d": [
            (options(conv, out_channels=18, stride=2, padding=1), [normal(2, 5, 11, 14), normal(21, 7, 3, 3), normal(21)]),
            (options(conv, padding=3, padding_mode="reflect"), [normal(1, 20, 9, 20), normal(3, 24, 7, 7), normal(3)]),
            (options(conv, out_channels=40), [normal(2, 36, 8, 9), normal(48, 36, 1, 1)]),
        ],
        "sliced_conv_transpose2d": [
            (
                options(transposed, out_channels=18, stride=2, padding=1, output_padding=1),
                [normal(2, 5, 7, 9), normal(7, 21, 3, 3), normal(21)],
            )
        ],
        "separable_resblock": [
            (
                options(ops.separable_resblock, hidden=20),
                [normal(2, 18, 9, 12), normal(24, 1, 3, 3), normal(28, 24, 1, 1), normal(28, 1, 3, 3), normal(24, 28, 1, 1)],
            )
        ],
        "spade_modulate": [
            (options(ops.spade_modulate, slope=0.2), [normal(2, 5, 9, 12) for _ in range(3)]),
            (
                lambda *tensors, backend: ops.spade_modulate(*tensors, norm="batch", slope=0.2, backend=backend)[0],
                [normal(2, 5, 9, 12) for _ in range(3)],
            ),
        ],
    }
    return cases[op]
