"""The discriminator's update: real and generated pairs in one pass where their scores do not depend on each other."""

from __future__ import annotations

import copy

import pytest
import torch

from gancomp.models import DiscriminatorConfig, PatchDiscriminator
from gancomp.testing import images
from gancomp.train import TrainOptions
from gancomp.train.adversary import Adversary, Precision
from gancomp.train.losses import discriminator_loss

from ..models import published


@pytest.mark.parametrize(
    ("norm", "n_layers", "passes"), [("instance", 1, 1), ("none", 1, 1), ("instance", 0, 1), ("batch", 1, 3)]
)
def test_one_pass_gives_what_several_do(norm: str, n_layers: int, passes: int) -> None:
    network = published.randomised(PatchDiscriminator(DiscriminatorConfig(4, 3, n_layers, norm))).double()
    stock, options = copy.deepcopy(network), TrainOptions(device="cpu", lr=0.01)
    adversary = Adversary(network, options, Precision(options, torch.device("cpu")), conditional=True)
    calls = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    condition, real, *fakes = (images(2, 2, 8, 10, dtype=torch.float64, seed=seed) for seed in range(4))
    loss = adversary.train_step(condition, real, fakes)
    assert calls == [6 // passes] * passes

    optimizer = torch.optim.Adam(stock.parameters(), lr=0.01, betas=(options.beta1, options.beta2))
    logits = stock(torch.cat([condition, real], 1)).float()
    losses = [discriminator_loss(logits, stock(torch.cat([condition, fake], 1)).float(), options.gan_mode) for fake in fakes]
    expected = torch.stack(losses).mean()
    expected.backward()
    optimizer.step()
    torch.testing.assert_close(loss, expected.detach())
    for one, other in zip(network.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), check_dtype=True, atol=3e-5, rtol=0)
