"""A supernet's training step by the Triton kernels, in tensors of one size, is that of the reference in narrow tensors."""

from __future__ import annotations

import pytest
import torch

from gancomp.data import Batch
from gancomp.models import ResnetConfig, ResnetGenerator, seeded_generator
from gancomp.nn import init_weights
from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import images
from gancomp.train import DistillOptions, DistillStage

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.gpu

from gancomp.kernels import instance_norm_act, separable_resblock, sliced_conv  # noqa: E402
from gancomp.train.graphs import GraphedDistillStage  # noqa: E402
from gancomp.train.wide import Kernels  # noqa: E402

KERNELS = Kernels(
    "triton", instance_norm_act.InstanceNormActTriton, sliced_conv.SlicedConv2dTriton, sliced_conv.SlicedConvTranspose2dTriton,
    separable_resblock.SeparableResblockTriton,
)  # fmt: skip
RATE = 1e-3


def stage(kind: type[DistillStage], device: torch.device, **fields) -> DistillStage:
    supernet = Supernet(SearchSpace.parse("4,3,2", 7), 2)
    teacher = ResnetGenerator(ResnetConfig.uniform(3, 2))
    for network, seed in ((supernet, 1), (teacher, 2)):
        init_weights(network, seeded_generator(seed), std=0.3)
    return kind(supernet, teacher, DistillOptions(ndf=2, d_layers=1, lr=RATE, device=str(device)), **fields)


def test_a_wide_step_is_a_narrow_step(device, monkeypatch):
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    monkeypatch.setattr("gancomp.train.graphs.find_kernels", lambda x: KERNELS)
    batch = Batch(*(images(1, 3, 16, 16, seed=seed).tanh().to(device) for seed in (1, 2)), ("a",))
    narrow, wide = stage(DistillStage, device), stage(GraphedDistillStage, device, capture=False)
    before = {name: weight.clone() for name, weight in wide.student.state_dict().items()}
    expected, losses = narrow.step(batch, 0), wide.step(batch, 0)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    # Adam's first step is as long as the rate, whatever the gradient's size: a weight that went elsewhere is far away.
    moved = 0
    for (name, ours), (_, theirs) in zip(wide.student.state_dict().items(), narrow.student.state_dict().items(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=RATE / 10, msg=name)
        moved += int(not torch.equal(ours, before[name]))
    assert moved > 10
