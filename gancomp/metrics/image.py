"""Distances between images: per-image values for batches [N, C, H, W] in [-1, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gancomp.data.images import to_uint8
from gancomp.errors import ConfigError


def _check(output: Tensor, target: Tensor, smallest: int = 1) -> None:
    if output.dim() != 4 or output.shape != target.shape:
        raise ConfigError(f"images of shapes {list(output.shape)} and {list(target.shape)}: expected two equal [N, C, H, W]")
    if min(output.shape[2:]) < smallest:
        raise ConfigError(f"images of {output.shape[2]}x{output.shape[3]}: this metric needs sides of at least {smallest}")
    if not (torch.isfinite(output).all() and torch.isfinite(target).all()):
        raise ConfigError("images: contain values that are not finite")


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference on the [-1, 1] scale; returns [N]."""
    _check(output, target)
    return (output - target).abs().mean(dim=(1, 2, 3))


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of the 8-bit images a user would save: ``10 log10(255^2 / MSE)``.

    Equal images give infinity. Returns [N].
    """
    _check(output, target)
    error = (to_uint8(output).double() - to_uint8(target).double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Structural similarity on the [0, 1] scale, averaged over channels and the valid region; returns [N].

    11x11 Gaussian window of standard deviation 1.5, K1 = 0.01, K2 = 0.03. Source: Wang et al. 2004.

    Raises:
        ConfigError: sides below 11 pixels.
    """
    _check(output, target, smallest=11)
    x, y = ((images.double() + 1) / 2 for images in (output, target))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.mean(dim=(1, 2, 3)).float()


_GAUSS = [math.exp(-((tap - 5) ** 2) / (2 * 1.5**2)) for tap in range(11)]
_TAPS = [value / sum(_GAUSS) for value in _GAUSS]


def _blur(images: Tensor) -> Tensor:
    """Filter ``images`` [N, C, H, W] with the window of :func:`ssim`; returns [N, C, H - 10, W - 10].

    Sums of shifted images: convolutions of float64 take ten times as long.
    """
    for dim in (2, 3):
        size = images.shape[dim] - 10
        shifted = [images.narrow(dim, tap, size) for tap in range(11)]
        images = _TAPS[0] * shifted[0]
        for weight, image in zip(_TAPS[1:], shifted[1:], strict=True):
            images.add_(image, alpha=weight)
    return images
