"""Adversarial and reconstruction losses. Sources: pix2pix (2017), LSGAN (2017), hinge GAN (Lim and Ye 2017)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

GanMode = Literal["hinge", "lsgan", "vanilla"]
ReconLoss = Literal["l1", "l2", "smooth_l1"]


def discriminator_loss(real: Tensor, fake: Tensor, mode: GanMode) -> Tensor:
    """Half the sum of the losses on real and generated logits.

    hinge: ``relu(1 - real) + relu(1 + fake)``; lsgan: ``(real - 1)^2 + fake^2``; vanilla: binary cross-entropy.
    """
    if mode == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if mode == "lsgan":
        return 0.5 * ((real - 1).square().mean() + fake.square().mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor, mode: GanMode) -> Tensor:
    """The generator's side: hinge ``-fake``; lsgan ``(fake - 1)^2``; vanilla: cross-entropy against "real"."""
    if mode == "hinge":
        return -fake.mean()
    if mode == "lsgan":
        return (fake - 1).square().mean()
    return F.softplus(-fake).mean()


def reconstruction_loss(output: Tensor, target: Tensor, kind: ReconLoss) -> Tensor:
    """Mean pixel distance between images in [-1, 1]."""
    if kind == "l1":
        return F.l1_loss(output, target)
    if kind == "l2":
        return F.mse_loss(output, target)
    return F.smooth_l1_loss(output, target)
