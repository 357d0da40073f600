"""InstanceNorm with what follows it folded in: ReLU and the residual addition."""

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

OP = "instance_norm_act"


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise every plane of ``x``, scale and shift it, apply ReLU and add the residual, in one pass.

    ``y = act(weight * (x - mean) / sqrt(var + eps) + bias) + residual`` with mean and biased variance over (h, w) of each
    image and channel; ``act`` is ReLU or the identity.

    Args:
        x: [N, C, H, W]; may be a channel slice of a wider tensor, read where it lies.
        weight: [C_max >= C] scale, its first C entries used; None for one. In the dtype of ``x``, or float32 beside 16 bits.
        bias: [C_max >= C] shift, its first C entries used; None for zero.
        relu: whether ``act`` is ReLU.
        residual: [N, C, H, W] added last, or None.
        eps: added to the variance.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        [N, C, H, W], contiguous. Gradients of ``weight`` and ``bias`` have their full length, zero in the unused part.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot run the call.

    Source: Ulyanov et al. 2016, "Instance normalization".
    """
    x, weight, bias, residual = unify_under_autocast(x, weight, bias, images=(residual,))
    _validate(x, weight, bias, residual, eps)
    chosen = choose(OP, backend, _verdicts(x, weight, bias, residual), x)
    if chosen == "reference":
        return reference.instance_norm_act(x, weight, bias, residual, relu, eps)
    if chosen == "cuda":
        return cuda.InstanceNormActCuda.apply(x, weight, bias, residual, relu, eps)
    if chosen == "triton":
        from gancomp.kernels.instance_norm_act import InstanceNormActTriton

        return InstanceNormActTriton.apply(x, weight, bias, residual, relu, eps)
    return InstanceNormActCpu.apply(x, weight, bias, residual, relu, eps)


def explain(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> str:
    """Which backend runs this call and why the others do not."""
    x, weight, bias, residual = unify_under_autocast(x, weight, bias, images=(residual,))
    _validate(x, weight, bias, residual, eps)
    return describe(OP, backend, _verdicts(x, weight, bias, residual), x)


def _verdicts(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Verdicts:
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return {
        "cuda": lambda: cuda_verdict(**tensors),
        "triton": lambda: triton_verdict(**tensors),
        "cpu": lambda: cpu_verdict(**tensors),
        "reference": lambda: None,
    }


def _validate(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(f"{OP}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W]")
    if 0 in x.shape[1:]:
        raise ConfigError(f"{OP}: x of shape {list(x.shape)} has an empty plane")
    if not eps > 0:
        raise ConfigError(f"{OP}: eps={eps}, expected a number above 0")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] < x.shape[1]):
            raise ConfigError(f"{OP}: {name} of shape {list(vector.shape)}, expected at least [{x.shape[1]}]")
    if residual is not None and residual.shape != x.shape:
        raise ConfigError(f"{OP}: residual of shape {list(residual.shape)}, expected {list(x.shape)} as x")
    if residual is not None and (residual.device != x.device or residual.dtype != x.dtype):
        raise ConfigError(f"{OP}: residual is {residual.dtype} on {residual.device}, x is {x.dtype} on {x.device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not parameter_fits(tensor, x):
            raise ConfigError(f"{OP}: {name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}")


class InstanceNormActCpu(torch.autograd.Function):
    """Forward and backward through the native kernels.

    Kept for the backward pass: the input (which the graph holds anyway) and two numbers per plane; the output is not, so the
    next op may be the only one that needs it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, relu: bool, eps: float
    ) -> Tensor:
        y, mean, rstd = torch.ops.gancomp.instance_norm_act(x, weight, bias, residual, relu, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.relu, ctx.has_residual = relu, residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.gancomp.instance_norm_act_backward(
            grad, x, weight, bias, mean, rstd, ctx.relu
        )
        return (
            grad_x,
            grad_weight if weight is not None else None,
            grad_bias if bias is not None else None,
            grad if ctx.has_residual else None,
            None,
            None,
        )


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::instance_norm_act")
    def _forward(x, weight, bias, residual, relu, eps):
        mean = x.new_empty(x.shape[:2], dtype=torch.float64)
        return x.new_empty(x.shape), mean, x.new_empty(x.shape[:2])

    @torch.library.register_fake("gancomp::instance_norm_act_backward")
    def _backward(grad, x, weight, bias, mean, rstd, relu):
        shapes = [(0,) if vector is None else vector.shape for vector in (weight, bias)]
        return x.new_empty(x.shape), x.new_empty(shapes[0]), x.new_empty(shapes[1])


if native_library().reason is None:
    _register_fakes()
