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
