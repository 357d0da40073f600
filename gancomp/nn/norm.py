"""Normalisation with what follows it folded in: ReLU and the residual addition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp import ops
from gancomp.errors import ConfigError


class InstanceNormAct(nn.Module):
    """InstanceNorm2d, then ReLU if asked, then the residual if given; one fused op.

    Without affine parameters (the default, as published) it holds no tensors and serves any channel count. With them, the
    first ``x.shape[1]`` entries are used. Statistics are those of the image in training and inference alike.
    """

    def __init__(self, channels: int, *, relu: bool = False, affine: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.relu, self.eps = channels, relu, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise ``x`` [N, C, H, W] per image and channel."""
        return ops.instance_norm_act(x, self.weight, self.bias, relu=self.relu, residual=residual, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, relu={self.relu}, affine={self.weight is not None}"


class BatchNormAct(nn.BatchNorm2d):
    """BatchNorm2d, then ReLU if asked, then the residual if given."""

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise ``x`` [N, C, H, W] with batch statistics (training) or running ones (inference)."""
        y = super().forward(x)
        y = F.relu(y) if self.relu else y
        return y if residual is None else y + residual


class ModulatedNorm(nn.Module):
    """SPADE's norm without parameters, with the modulation and the activation that follow it; one fused op.

    ``batch`` normalises by the statistics of the batch in training and by running ones in inference, and holds the tensors
    of ``nn.BatchNorm2d(affine=False)``, whose first ``x.shape[1]`` entries are used. ``instance`` normalises by the image's own
    statistics in training and inference alike, and holds no tensors. Source: Park et al. 2019, equations 1 to 3.

    Attributes:
        tracks: whether training moves the running statistics. A supernet turns it off: those of one sub-network are wrong for
            every other.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, norm: str, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.norm, self.eps, self.momentum, self.tracks = channels, norm, eps, momentum, True
        if norm == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor, slope: float = 1.0) -> Tensor:
        """``leaky((x - mean) / sqrt(var + eps) * (1 + gamma) + beta, slope)``; all three images are [N, C, H, W]."""
        if self.norm == "instance":
            return ops.spade_modulate(x, gamma, beta, slope=slope, eps=self.eps)
        if not self.training:
            rstd = torch.rsqrt(self.running_var + self.eps)
            return ops.spade_modulate(x, gamma, beta, self.running_mean, rstd, norm="batch", slope=slope, eps=self.eps)
        y, mean, variance = ops.spade_modulate(x, gamma, beta, norm="batch", slope=slope, eps=self.eps)
        if self.tracks:
            self._track(mean, variance, x.numel() // x.shape[1])
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of ``count`` values, its variance without bias."""
        channels = mean.shape[0]
        unbiased = variance * (count / max(count - 1, 1))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            running[:channels].lerp_(value.to(running.dtype), self.momentum)
        self.num_batches_tracked += 1

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Make these the statistics of inference for inputs of as many channels as they have entries."""
        self.running_mean[: mean.shape[0]] = mean.to(self.running_mean)
        self.running_var[: mean.shape[0]] = variance.to(self.running_var)

    def extra_repr(self) -> str:
        return f"{self.channels}, norm={self.norm}"


class NoNormAct(nn.Module):
    """ReLU if asked, then the residual if given: the ``norm="none"`` member of the family."""

    def __init__(self, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the activation to ``x`` [N, C, H, W]."""
        y = F.relu(x) if self.relu else x
        return y if residual is None else y + residual


def make_norm(norm: str, channels: int, *, relu: bool = False) -> nn.Module:
    """Make the norm of a name for ``channels`` channels: ``instance``, ``instance_affine``, ``batch`` or ``none``.

    Raises:
        ConfigError: the name is none of these.
    """
    if norm == "instance":
        return InstanceNormAct(channels, relu=relu)
    if norm == "instance_affine":
        return InstanceNormAct(channels, relu=relu, affine=True)
    if norm == "batch":
        return BatchNormAct(channels, relu=relu)
    if norm == "none":
        return NoNormAct(relu=relu)
    raise ConfigError(f"norm={norm!r}: expected instance, instance_affine, batch or none")
