"""The residual block of depthwise-separable convolutions with InstanceNorms in between, as one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gancomp.errors import ConfigError
from gancomp.ops import cuda, reference
from gancomp.ops.backend import (
    Verdicts,
    choose,
    cpu_verdict,
    cuda_verdict,
    describe,
    native_library,
    parameter_fits,
    triton_verdict,
    unify_under_autocast,
)

OP = "separable_resblock"
WEIGHTS = ("depthwise1", "pointwise1", "depthwise2", "pointwise2")


def separable_resblock(
    x: Tensor,
    depthwise1: Tensor,
    pointwise1: Tensor,
    depthwise2: Tensor,
    pointwise2: Tensor,
    *,
    hidden: int | None = None,
    dropout: float = 0.0,
    eps: float = 1e-5,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> Tensor:
    """Two depthwise-separable convolutions over the first channels of full weights, and the residual added.

    ``h = dropout(relu(IN(P1(IN(D1(x))))))``, ``y = x + IN(P2(IN(D2(h))))``: D is a depthwise 3x3 convolution of the image
    extended by reflection, P a pointwise (1x1) one, IN normalises every plane with its mean and biased variance. Biases do not
    exist: a norm takes them off again.

    Args:
        x: [N, C, H, W] with H, W >= 2; may be a channel slice of a wider tensor, read where it lies.
        depthwise1: [C_max >= C, 1, 3, 3].
        pointwise1: [H_max >= hidden, C_max >= C, 1, 1].
        depthwise2: [H_max >= hidden, 1, 3, 3].
        pointwise2: [C_max >= C, H_max >= hidden, 1, 1].
        hidden: channels between the two convolutions; all of ``pointwise1`` by default.
        dropout: probability of zeroing an element of h; the others are multiplied by 1 / (1 - dropout). The caller says 0
            outside training.
        eps: added to every variance.
        generator: random source of the dropout; PyTorch's own by default.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        [N, C, H, W], contiguous. Gradients of the weights have their full shape, zero in the unused part.

    Raises:
        ConfigError: shapes, dtypes, devices or numbers do not fit.
        BackendError: the named backend cannot run the call.

    Source: GAN Compression, section 3.2, with the norms inside the convolutions that the released models have.
    """
    x, *weights = unify_under_autocast(x, depthwise1, pointwise1, depthwise2, pointwise2, convolution=True)
    hidden = _validate(x, weights, hidden, dropout, eps)
    chosen = choose(OP, backend, _verdicts(x, weights), x)
    mask = None
    if dropout > 0:
        mask = torch.empty((x.shape[0], hidden, *x.shape[2:]), dtype=torch.uint8, device=x.device)
        mask.bernoulli_(1 - dropout, generator=generator)
    arguments = (x, *weights, mask, 1 / (1 - dropout), hidden, eps)
    if chosen == "reference":
        return reference.separable_resblock(*arguments)
    if chosen == "cuda":
        return cuda.SeparableResblockCuda.apply(*arguments)
    if chosen == "triton":
        from gancomp.kernels.separable_resblock import SeparableResblockTriton

        return SeparableResblockTriton.apply(*arguments)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        return SeparableResblockCpu.apply(*arguments)
    return torch.ops.gancomp.separable_resblock(*arguments, False)[0]


def explain(
    x: Tensor,
    depthwise1: Tensor,
    pointwise1: Tensor,
    depthwise2: Tensor,
    pointwise2: Tensor,
    *,
    hidden: int | None = None,
    dropout: float = 0.0,
    eps: float = 1e-5,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> str:
    """Which backend runs this call and why the others do not."""
    x, *weights = unify_under_autocast(x, depthwise1, pointwise1, depthwise2, pointwise2, convolution=True)
    _validate(x, weights, hidden, dropout, eps)
    return describe(OP, backend, _verdicts(x, weights), x)


def _verdicts(x: Tensor, weights: list[Tensor]) -> Verdicts:
    tensors = {"x": x, **dict(zip(WEIGHTS, weights, strict=True))}
    return {
        "cuda": lambda: cuda_verdict(**tensors),
        "triton": lambda: triton_verdict(**tensors),
        "cpu": lambda: cpu_verdict(**tensors),
        "reference": lambda: None,
    }


def _validate(x: Tensor, weights: list[Tensor], hidden: int | None, dropout: float, eps: float) -> int:
    """Check the arguments; returns the hidden channels."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(f"{OP}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W]")
    channels = x.shape[1]
    if min(x.shape[2:]) < 2 or channels == 0:
        raise ConfigError(f"{OP}: x of shape {list(x.shape)}: expected channels, and height and width of at least 2")
    pointwise1 = weights[1]
    if pointwise1.dim() != 4 or pointwise1.shape[0] == 0:
        raise ConfigError(f"{OP}: pointwise1 of shape {list(pointwise1.shape)}, expected [hidden, C, 1, 1]")
    hidden = pointwise1.shape[0] if hidden is None else hidden
    if not 1 <= hidden <= pointwise1.shape[0]:
        raise ConfigError(f"{OP}: hidden={hidden}, expected 1 to {pointwise1.shape[0]} (the channels of pointwise1)")
    expected = ([channels, 1, 3, 3], [hidden, channels, 1, 1], [hidden, 1, 3, 3], [channels, hidden, 1, 1])
    for name, weight, (rows, columns, *kernel) in zip(WEIGHTS, weights, expected, strict=True):
        shape = list(weight.shape)
        fits = len(shape) == 4 and shape[0] >= rows and shape[1] >= columns and shape[2:] == kernel
        if not fits or (kernel == [3, 3] and shape[1] != 1):
            raise ConfigError(f"{OP}: {name} of shape {shape}, expected at least {[rows, columns, *kernel]}")
        if not parameter_fits(weight, x):
            raise ConfigError(f"{OP}: {name} is {weight.dtype} on {weight.device}, x is {x.dtype} on {x.device}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{OP}: dropout={dropout}, expected at least 0 and below 1")
    if not eps > 0:
        raise ConfigError(f"{OP}: eps={eps}, expected a number above 0")
    return hidden


class SeparableResblockCpu(torch.autograd.Function):
    """Forward and backward through the native kernels.

    Kept for the backward pass: beside the input and the dropout's bytes, the outputs of the two pointwise convolutions and two
    numbers per plane. What lies between them is computed again from these, which takes less time than memory does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        depthwise1: Tensor,
        pointwise1: Tensor,
        depthwise2: Tensor,
        pointwise2: Tensor,
        mask: Tensor | None,
        scale: float,
        hidden: int,
        eps: float,
    ) -> Tensor:
        inputs = x, depthwise1, pointwise1, depthwise2, pointwise2, mask
        y, *kept = torch.ops.gancomp.separable_resblock(*inputs, scale, hidden, eps, True)
        ctx.save_for_backward(*inputs, *kept)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, z1, z2, statistics = ctx.saved_tensors
        needs_x, *needs_weight = ctx.needs_input_grad[:5]
        grad_x, *grad_weights = torch.ops.gancomp.separable_resblock_backward(
            grad, *inputs, ctx.scale, z1, z2, statistics, needs_x, any(needs_weight)
        )
        wanted = [grad if need else None for need, grad in zip(needs_weight, grad_weights, strict=True)]
        return grad_x if needs_x else None, *wanted, *[None] * 4


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::separable_resblock")
    def _forward(x, depthwise1, pointwise1, depthwise2, pointwise2, mask, scale, hidden, eps, keep):
        images, channels, *size = x.shape
        kept = images if keep else 0
        z1, z2 = x.new_empty((kept, hidden, *size)), x.new_empty((kept, channels, *size))
        return x.new_empty(x.shape), z1, z2, x.new_empty((kept, 2 * (channels + hidden), 2))

    @torch.library.register_fake("gancomp::separable_resblock_backward")
    def _backward(
        grad, x, depthwise1, pointwise1, depthwise2, pointwise2, mask, scale, z1, z2, statistics, needs_x, needs_weights
    ):
        weights = depthwise1, pointwise1, depthwise2, pointwise2
        return (
            x.new_empty(x.shape if needs_x else (0,)),
            *[x.new_empty(weight.shape if needs_weights else (0,)) for weight in weights],
        )


if native_library().reason is None:
    _register_fakes()
