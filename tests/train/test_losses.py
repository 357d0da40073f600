"""Every adversarial and reconstruction loss against its formula, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gancomp.train.losses import discriminator_loss, generator_loss, reconstruction_loss

REAL, FAKE = [2.0, 0.5, -1.0], [-2.0, 0.5, 1.0]


def entropy(logit: float, real: bool) -> float:
    """Binary cross-entropy of a logit against "real" or "generated"."""
    chance = 1 / (1 + math.exp(-logit))
    return -math.log(chance if real else 1 - chance)


@pytest.mark.parametrize(
    ("mode", "discriminator", "generator"),
    [
        ("hinge", 0.5 * ((0 + 0.5 + 2) + (0 + 1.5 + 2)) / 3, (2 - 0.5 - 1) / 3),
        ("lsgan", 0.5 * ((1 + 0.25 + 4) + (4 + 0.25 + 1)) / 3, (9 + 0.25 + 0) / 3),
        (
            "vanilla",
            0.5 * (sum(entropy(r, True) for r in REAL) + sum(entropy(f, False) for f in FAKE)) / 3,
            sum(entropy(f, True) for f in FAKE) / 3,
        ),
    ],
)
def test_adversarial_losses(mode, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor(REAL).view(1, 1, 1, 3), torch.tensor(FAKE).view(1, 1, 3, 1)
    assert discriminator_loss(real, fake, mode).item() == pytest.approx(discriminator)
    assert generator_loss(fake, mode).item() == pytest.approx(generator)


@pytest.mark.parametrize("mode", ["hinge", "lsgan", "vanilla"])
def test_losses_push_the_right_way(mode) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator_loss(real, fake, mode).backward()
    assert (real.grad < 0).all()
    assert mode == "lsgan" or (fake.grad > 0).all()
    fake.grad = None
    generator_loss(fake, mode).backward()
    assert (fake.grad < 0).all(), "a generator wants to be taken for real"


def test_vanilla_stays_finite() -> None:
    extreme = torch.tensor([200.0])
    assert discriminator_loss(-extreme, extreme, "vanilla").item() == pytest.approx(200)
    assert generator_loss(-extreme, "vanilla").item() == pytest.approx(200)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("l1", (0 + 0.5 + 2 + 3) / 4),
        ("l2", (0 + 0.25 + 4 + 9) / 4),
        ("smooth_l1", (0 + 0.125 + 1.5 + 2.5) / 4),  # quadratic below a distance of 1, linear above
    ],
)
def test_reconstruction_losses(kind, value: float) -> None:
    output, target = torch.tensor([0.0, 0.5, -1.0, 3.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert reconstruction_loss(output, target, kind).item() == pytest.approx(value)
