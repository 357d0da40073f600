"""SPADE's modulation: a norm whose scale and shift differ from pixel to pixel, with the activation folded in."""

from __future__ import annotations

from typing import Any, Literal, overload

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

OP = "spade_modulate"
NORMS = ("instance", "batch")

Norm = Literal["instance", "batch"]


@overload
def spade_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: None = None, rstd: None = None, *, norm: Literal["batch"],
    slope: float = 1.0, eps: float = 1e-5, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip
@overload
def spade_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: None = None, rstd: None = None, *, norm: Literal["instance"] = "instance",
    slope: float = 1.0, eps: float = 1e-5, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def spade_modulate(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor, *, norm: Norm = "instance",
    slope: float = 1.0, eps: float = 1e-5, backend: str = "auto",
) -> Tensor: ...  # fmt: skip


def spade_modulate(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    *,
    norm: Norm = "instance",
    slope: float = 1.0,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Normalise ``x``, scale and shift it pixel by pixel, and apply a leaky ReLU, in one pass.

    ``y = leaky((x - mean) * rstd * (1 + gamma) + beta, slope)``

    Args:
        x, gamma, beta: [N, C, H, W]; may be channel slices of wider tensors, read where they lie.
        mean, rstd: [C_max >= C] mean and 1 / standard deviation of every channel, their first C entries used: constants (those
            of evaluation). None for the statistics of ``x``, through which gradients flow.
        norm: what the statistics of ``x`` are of: ``instance``, every plane; ``batch``, every channel in all images.
        slope: of the activation below zero, at least 0: 1 for no activation, 0.2 is GauGAN's, 0 ReLU.
        eps: added to the variance.
        backend: ``auto``, ``cuda``, ``triton``, ``cpu`` or ``reference``; a named one never falls back.

    Returns:
        y [N, C, H, W], contiguous. With the statistics of a batch: (y, mean [C], biased variance [C]), the last two without
        gradients, for running statistics.

    Raises:
        ConfigError: shapes, dtypes, devices or numbers do not fit.
        BackendError: the named backend cannot run the call.

    Source: Park et al. 2019, "Semantic image synthesis with spatially-adaptive normalization", equations 1 to 3.
    """
    x, mean, rstd, gamma, beta = unify_under_autocast(x, mean, rstd, images=(gamma, beta))
    _validate(x, gamma, beta, mean, rstd, norm, slope, eps)
    chosen = choose(OP, backend, _verdicts(x, gamma, beta, mean, rstd), x)
    arguments = (x, gamma, beta, mean, rstd, norm == "batch", slope, eps)
    if chosen == "reference":
        y, batch_mean, variance = reference.spade_modulate(*arguments)
    elif chosen == "cuda":
        y, batch_mean, variance = cuda.SpadeModulateCuda.apply(*arguments)
    elif chosen == "triton":
        from gancomp.kernels.spade import SpadeModulateTriton

        y, batch_mean, variance = SpadeModulateTriton.apply(*arguments)
    else:
        y, batch_mean, variance = SpadeModulateCpu.apply(*arguments)
    return y if batch_mean is None or variance is None else (y, batch_mean, variance)


def explain(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    *,
    norm: Norm = "instance",
    slope: float = 1.0,
    eps: float = 1e-5,
    backend: str = "auto",
) -> str:
    """Which backend runs this call and why the others do not."""
    x, mean, rstd, gamma, beta = unify_under_autocast(x, mean, rstd, images=(gamma, beta))
    _validate(x, gamma, beta, mean, rstd, norm, slope, eps)
    return describe(OP, backend, _verdicts(x, gamma, beta, mean, rstd), x)


def _verdicts(x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor | None, rstd: Tensor | None) -> Verdicts:
    tensors = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "rstd": rstd}
    return {
        "cuda": lambda: cuda_verdict(**tensors),
        "triton": lambda: triton_verdict(**tensors),
        "cpu": lambda: cpu_verdict(**tensors),
        "reference": lambda: None,
    }


def _validate(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    norm: str,
    slope: float,
    eps: float,
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ConfigError(f"{OP}: x is {x.dtype} {list(x.shape)}, expected floating point [N, C, H, W]")
    if 0 in x.shape[1:]:
        raise ConfigError(f"{OP}: x of shape {list(x.shape)} has an empty plane")
    if norm not in NORMS:
        raise ConfigError(f"{OP}: norm={norm!r}, expected {' or '.join(NORMS)}")
    if (mean is None) != (rstd is None):
        raise ConfigError(f"{OP}: mean and rstd are given together or not at all")
    if norm == "batch" and mean is None and x.shape[0] == 0:
        raise ConfigError(f"{OP}: x of shape {list(x.shape)} has no images to take statistics of")
    if not slope >= 0:
        raise ConfigError(f"{OP}: slope={slope}, expected at least 0")
    if not eps > 0:
        raise ConfigError(f"{OP}: eps={eps}, expected a number above 0")
    for name, image in (("gamma", gamma), ("beta", beta)):
        if image.shape != x.shape:
            raise ConfigError(f"{OP}: {name} of shape {list(image.shape)}, expected {list(x.shape)} as x")
        if image.device != x.device or image.dtype != x.dtype:
            raise ConfigError(f"{OP}: {name} is {image.dtype} on {image.device}, x is {x.dtype} on {x.device}")
    for name, vector in (("mean", mean), ("rstd", rstd)):
        if vector is None:
            continue
        if vector.dim() != 1 or vector.shape[0] < x.shape[1]:
            raise ConfigError(f"{OP}: {name} of shape {list(vector.shape)}, expected at least [{x.shape[1]}]")
        if not parameter_fits(vector, x):
            raise ConfigError(f"{OP}: {name} is {vector.dtype} on {vector.device}, x is {x.dtype} on {x.device}")


class SpadeModulateCpu(torch.autograd.Function):
    """Forward and backward through the native kernels; gives y, and the batch's mean and variance where they were taken.

    Kept for the backward pass: x, gamma, and y for the sign that the activation saw, which the next layer keeps anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor | None,
        rstd: Tensor | None,
        batch: bool,
        slope: float,
        eps: float,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y, used_mean, used_rstd, variance = torch.ops.gancomp.spade_modulate(x, gamma, beta, mean, rstd, batch, slope, eps)
        ctx.save_for_backward(x, gamma, y if slope != 1 else None, used_mean, used_rstd)
        ctx.settings = batch or mean is not None, mean is not None, slope
        if not batch or mean is not None:
            return y, None, None
        of_batch = used_mean[0].float(), variance[0]
        ctx.mark_non_differentiable(*of_batch)
        return y, *of_batch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients = torch.ops.gancomp.spade_modulate_backward(grad, *ctx.saved_tensors, *ctx.settings)
        wanted = [grad if need else None for need, grad in zip(ctx.needs_input_grad[:3], gradients, strict=True)]
        return *wanted, *[None] * 5


def _register_fakes() -> None:
    """Shapes and strides of the native ops for tracing; they must equal the real ones exactly."""

    @torch.library.register_fake("gancomp::spade_modulate")
    def _forward(x, gamma, beta, mean, rstd, batch, slope, eps):
        given = mean is not None
        sets, channels = 1 if batch or given else x.shape[0], x.shape[1]
        statistics = x.new_empty((sets, channels), dtype=torch.float64), x.new_empty((sets, channels))
        return x.new_empty(x.shape), *statistics, x.new_empty((0 if given else sets, channels))

    @torch.library.register_fake("gancomp::spade_modulate_backward")
    def _backward(grad, x, gamma, y, mean, rstd, per_channel, constant, slope):
        return tuple(x.new_empty(x.shape) for _ in range(3))


if native_library().reason is None:
    _register_fakes()
