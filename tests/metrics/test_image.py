"""Distances between images against formulas of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gancomp.data import to_uint8
from gancomp.errors import ConfigError
from gancomp.metrics import l1, psnr, ssim


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_l1_is_the_mean_on_the_scale_of_the_networks() -> None:
    a, b = images(3, 2, 5, 7), images(3, 2, 5, 7, seed=1)
    assert l1(a, b).tolist() == pytest.approx([float(np.abs(x - y).mean()) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert l1(torch.full((1, 3, 2, 2), -1.0), torch.ones(1, 3, 2, 2)).tolist() == [2.0]


@pytest.mark.parametrize("levels", [1, 5, 255])
def test_psnr_of_a_constant_difference(levels: int) -> None:
    low = torch.full((2, 3, 4, 4), -1.0)
    high = low + 2 * (levels + 0.5) / 255
    assert psnr(high, low).tolist() == pytest.approx([20 * math.log10(255 / levels)] * 2)


def test_psnr_sees_the_8_bit_images() -> None:
    a, b = images(4, 3, 6, 5), images(4, 3, 6, 5, seed=1)
    for n in range(4):
        error = np.mean((to_uint8(a[n]).numpy().astype(float) - to_uint8(b[n]).numpy().astype(float)) ** 2)
        assert float(psnr(a, b)[n]) == pytest.approx(10 * math.log10(255**2 / error), rel=1e-12)
    just_below = torch.zeros(1, 1, 2, 2)
    assert psnr(just_below, just_below + 1e-5).tolist() == [math.inf]
    assert psnr(a, a).tolist() == [math.inf] * 4


def ssim_of(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, equation 13 and section III.C, window by window."""
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line)
    window /= window.sum()
    scores = []
    for channel in range(x.shape[0]):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                a, b = (image[channel, top : top + 11, left : left + 11] for image in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                scores.append(
                    (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )  # fmt: skip
    return float(np.mean(scores))


def test_ssim_window_by_window() -> None:
    a = images(3, 2, 14, 17)
    b = (a + 0.4 * images(3, 2, 14, 17, seed=1)).clamp(-1, 1)
    b[1] = images(2, 14, 17, seed=2)
    b[2] = 0.3
    expected = [ssim_of(*(((image[n].double() + 1) / 2).numpy() for image in (a, b))) for n in range(3)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] > 0.8 > 0.2 > expected[1]


def test_ssim_is_symmetric_and_1_for_equal_images() -> None:
    a, b = images(2, 3, 20, 11), images(2, 3, 20, 11, seed=1)
    assert ssim(a, a).tolist() == [1.0, 1.0]
    assert torch.equal(ssim(a, b), ssim(b, a))


@pytest.mark.parametrize("metric", [l1, psnr, ssim])
def test_wrong_images_are_refused(metric) -> None:
    a = images(2, 3, 12, 12)
    for other in (images(2, 3, 12, 13), images(2, 1, 12, 12), images(3, 12, 12)):
        with pytest.raises(ConfigError, match="expected two equal"):
            metric(a, other)
    for bad in (math.nan, math.inf):
        broken = a.clone()
        broken[1, 2, 3, 4] = bad
        for pair in ((a, broken), (broken, a)):
            with pytest.raises(ConfigError, match="not finite"):
                metric(*pair)


def test_ssim_needs_room_for_its_window() -> None:
    assert ssim(images(1, 1, 11, 11), images(1, 1, 11, 11)).shape == (1,)
    with pytest.raises(ConfigError, match="10x30: this metric needs sides of at least 11"):
        ssim(images(1, 1, 10, 30), images(1, 1, 10, 30))
