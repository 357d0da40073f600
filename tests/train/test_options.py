"""Options: the learning rate's course, devices, and values that are refused."""

from __future__ import annotations

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.train import DistillOptions, TrainOptions


def test_rate_is_constant_then_falls_linearly_to_zero() -> None:
    options = TrainOptions(steps=10, lr=1.0, decay_start=0.6)
    rates = [options.learning_rate(step) for step in range(11)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("decay_start", "rates"),
    [(0.0, [1, 0.75, 0.5, 0.25]), (1.0, [1, 1, 1, 1]), (0.5, [1, 1, 1, 0.5])],
)
def test_decay_begins_where_it_is_told(decay_start: float, rates: list[float]) -> None:
    options = TrainOptions(steps=4, lr=1.0, decay_start=decay_start)
    assert [options.learning_rate(step) for step in range(4)] == pytest.approx(rates)


def test_a_single_step_has_the_full_rate() -> None:
    assert TrainOptions(steps=1, lr=3e-4).learning_rate(0) == 3e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "train: steps=0: expected a whole number between 1"),
        ({"steps": 1.5}, "train: steps=1.5: expected a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"beta1": 1.0}, "beta1=1.0"),
        ({"decay_start": 1.5}, "decay_start=1.5: expected a number between 0.0 and 1.0"),
        ({"gan_mode": "wgan"}, "gan_mode='wgan': expected one of hinge, lsgan, vanilla"),
        ({"recon": "vgg"}, "recon='vgg': expected one of l1, l2, smooth_l1"),
        ({"lambda_gan": -1.0}, "lambda_gan=-1.0"),
        ({"lambda_recon": float("inf")}, "lambda_recon=inf"),
        ({"d_layers": 7}, "d_layers=7"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"amp": "fp8"}, "amp='fp8': expected one of off, bf16, fp16"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": -1}, "workers=-1"),
        ({"sample_every": -1}, "sample_every=-1"),
        ({"lambda_distill": -0.5}, "distill: lambda_distill=-0.5"),
        ({"sampling": "largest"}, "sampling='largest': expected one of uniform, weighted, sandwich"),
        ({"sample_weight": 0.0}, "sample_weight=0.0"),
        ({"target": "both"}, "target='both': expected one of truth, teacher"),
        ({"init": "zero"}, "init='zero': expected one of teacher, random"),
    ],
)
def test_values_that_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillOptions(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_serve_where_fractions_are_allowed() -> None:
    assert TrainOptions(lambda_gan=0, lambda_recon=10, ema=0).lambda_recon == 10


@pytest.mark.parametrize("name", ["tpu", "meta", "cpu:x", "cuda:99"])
def test_devices_that_are_not_here(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{name}'"):
        TrainOptions(device=name).torch_device()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_needs_a_gpu(amp) -> None:
    with pytest.raises(ConfigError, match=f"amp='{amp}': mixed precision needs a GPU; use 'off' on the CPU"):
        TrainOptions(device="cpu", amp=amp).torch_device()


def test_automatic_device() -> None:
    assert TrainOptions().torch_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
