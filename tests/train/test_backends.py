"""The kernels train as the reference does: twenty steps of distillation give the same losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gancomp.data import Batch
from gancomp.models import ResnetConfig, ResnetGenerator, seeded_generator
from gancomp.nn import init_weights
from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import WinogradConv2d, assert_accurate
from gancomp.train.distill import DistillStage
from gancomp.train.options import DistillOptions

STEPS = 20


def losses(dtype: torch.dtype, ndf: int, *, measure: bool = False) -> dict[str, Tensor]:
    """Every loss of every step, [STEPS] each; weights, images and sub-networks are the same in every run.

    ``measure``: the discriminator's wide convolutions are by Winograd's method in stock PyTorch, as the kernels compute them.
    """
    teacher = ResnetGenerator(ResnetConfig.uniform(8, 3))
    supernet = Supernet(SearchSpace.parse("12,8,4"), n_blocks=3, separable=True)
    for seed, network in enumerate((teacher, supernet)):
        init_weights(network, seeded_generator(seed), std=0.1)
    options = DistillOptions(steps=STEPS, batch_size=2, ndf=ndf, d_layers=1, lr=1e-4, device="cpu")
    stage = DistillStage(supernet, teacher, options)
    for module in (stage.student, stage.teacher, stage.adaptors, stage.adversary.network):
        module.to(dtype)
    layers = stage.adversary.network.model
    for name, layer in layers.named_children():
        if measure and isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= 64:
            setattr(layers, name, WinogradConv2d(layer))
    generator = torch.Generator().manual_seed(0)
    history: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        x, target = (torch.rand(2, 3, 32, 32, generator=generator).to(dtype) * 2 - 1 for _ in range(2))
        history.append(stage.step(Batch(x, target, ("a", "b")), step))
    return {name: torch.stack([entry[name] for entry in history]).to(dtype) for name in history[0]}


# From 64 on the discriminator is computed by Winograd's method.
@pytest.mark.parametrize("ndf", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_twenty_steps(monkeypatch: pytest.MonkeyPatch, ndf: int) -> None:
    ours = losses(torch.float32, ndf)
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    stock, exact = losses(torch.float32, ndf, measure=True), losses(torch.float64, ndf)
    assert ours.keys() == exact.keys() == {"recon", "G", "D", "distill"}
    for name, values in exact.items():
        assert values[0] != values[-1]
        assert_accurate(ours[name], stock[name], values, name)
