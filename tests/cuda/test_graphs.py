"""A supernet's training step in tensors of one size: the numbers of the step by narrow tensors; and its capture."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from gancomp.data import Batch
from gancomp.errors import BackendError, ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator, seeded_generator
from gancomp.nn import init_weights
from gancomp.ops import backend, cuda
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage, graphs, wide
from gancomp.train.graphs import WARM_UP, GraphedDistillStage
from gancomp.train.wide import Kernels

SPACE = SearchSpace.parse("4,3,2", 7)
KERNELS = Kernels(
    "cuda",
    cuda.InstanceNormActCuda,
    cuda.SlicedConv2dCuda,
    cuda.SlicedConvTranspose2dCuda,
    cuda.SeparableResblockCuda,
)


def options(**fields) -> DistillOptions:
    return DistillOptions(**{"batch_size": 2, "ndf": 2, "d_layers": 1, "lr": 1e-3, **fields})


def stage(kind: type[DistillStage], options: DistillOptions, dropout: float = 0.0, **fields) -> DistillStage:
    supernet = Supernet(SPACE, 2, dropout=dropout)
    teacher = ResnetGenerator(ResnetConfig.uniform(3, 2))
    for network, seed in ((supernet, 1), (teacher, 2)):
        init_weights(network, seeded_generator(seed), std=0.3)
    return kind(supernet, teacher, options, **fields)


def batches(count: int, device: str, size: int = 16):
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        images = [torch.randn(2, 3, size, size, generator=generator).tanh().to(device) for _ in range(2)]
        yield Batch(*images, ("a", "b"))


def parameters(stage: DistillStage) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in stage.student.state_dict().items()}


@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
def test_a_wide_step_is_a_narrow_step(sampling, built, monkeypatch):
    """Three steps, each with other sub-networks: losses and weights."""
    monkeypatch.setattr(cuda, "_ops", built.ops)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("gancomp.train.graphs.find_kernels", lambda x: KERNELS)
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    settings = options(device="cpu", sampling=sampling)
    narrow, ours = stage(DistillStage, settings), stage(GraphedDistillStage, settings, capture=False)
    for step, batch in enumerate(batches(3, "cpu")):
        expected, losses = narrow.step(batch, step), ours.step(batch, step)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5, msg=f"step {step}: {name}")
    assert narrow.student.active == ours.student.active
    before = parameters(stage(DistillStage, settings))
    changed = 0
    for name, weight in parameters(ours).items():
        # Biases before a norm have gradients of rounding alone, which Adam makes steps of full size.
        if weight.dim() == 4:
            torch.testing.assert_close(weight, parameters(narrow)[name], rtol=0, atol=2e-4, msg=name)
            changed += int(not torch.equal(weight, before[name]))
    assert changed >= 14
    built.free()


def test_gradients_of_a_wide_step(built, monkeypatch):
    """Those of one sub-network, before an optimizer: equal, and zero where no channel is active."""
    monkeypatch.setattr(cuda, "_ops", built.ops)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr("gancomp.train.graphs.find_kernels", lambda x: KERNELS)
    monkeypatch.setenv("GANCOMP_BACKEND", "reference")
    settings = options(device="cpu", lambda_gan=0.0)
    narrow, ours = stage(DistillStage, settings), stage(GraphedDistillStage, settings, capture=False)
    config = SPACE.sample(random.Random(3))
    ours._wide.set([ours.student.network_config(config)])
    (batch,) = batches(1, "cpu")
    for one in (narrow, ours):
        image, adapted = one._study(batch.input, 0, config)
        (image.square().mean() + sum(feature.square().mean() for feature in adapted)).backward()
    for (name, mine), (_, theirs) in zip(ours.student.named_parameters(), narrow.student.named_parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        gradient = torch.zeros_like(mine) if mine.grad is None else mine.grad
        scale = float(expected.abs().max())
        if scale > 1e-6:  # biases before a norm have gradients of rounding alone
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * scale, msg=name)
            assert torch.equal(gradient == 0, expected == 0), f"{name}: inactive channels"
    built.free()


def test_what_cannot_be_captured_is_refused(built, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be captured: the device is cpu"):
        stage(GraphedDistillStage, options(device="cpu"))
    with pytest.raises(BackendError, match=r"no kernels that read channel counts .*x is on cpu"):
        stage(GraphedDistillStage, options(device="cpu"), capture=False)
    monkeypatch.setattr("gancomp.train.graphs.find_kernels", lambda x: KERNELS)
    supernet, teacher = Supernet(SPACE, 2, padding="zero"), ResnetGenerator(ResnetConfig.uniform(3, 2))
    with pytest.raises(ConfigError, match="padding='zero'"):
        GraphedDistillStage(supernet, teacher, options(device="cpu"), capture=False)
    graphed = stage(GraphedDistillStage, options(device="cpu"), capture=False)
    monkeypatch.setattr(cuda, "_ops", built.ops)
    (first,), (second,) = batches(1, "cpu"), batches(1, "cpu", 20)
    graphed.step(first, 0)
    with pytest.raises(ConfigError, match="the captured step is for"):
        graphed.step(second, 1)
    built.free()


def test_a_stage_is_captured_where_it_can_be(monkeypatch):
    """As far as the choice sees it, on a machine with a GPU."""
    supernet, teacher = Supernet(SPACE, 2), ResnetGenerator(ResnetConfig.uniform(3, 2))
    unnormed = Supernet(SPACE, 2, norm="none")
    assert type(graphs.distill_stage(supernet, teacher, options(device="cpu"))) is DistillStage
    monkeypatch.setattr(DistillOptions, "torch_device", lambda self: torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", lambda *shape, device: torch.zeros(shape))
    for cuda_reason, triton_reason, expected in (
        (None, "unasked", None),
        ("no build", None, None),
        ("no build", "no compiler", "cuda: no build; triton: no compiler"),
    ):
        monkeypatch.setattr(wide.backend, "cuda_verdict", lambda x, reason=cuda_reason: reason)
        monkeypatch.setattr(wide.backend, "triton_verdict", lambda x, reason=triton_reason: reason)
        assert graphs.capture_verdict(supernet, options()) == expected
    assert "loss scale" in str(graphs.capture_verdict(supernet, options(amp="fp16")))
    assert "norm='none'" in str(graphs.capture_verdict(unnormed, options()))
    monkeypatch.setattr(wide.backend, "cuda_verdict", lambda x: backend.Fault("a broken library"))
    with pytest.raises(BackendError, match="a broken library"):
        graphs.capture_verdict(supernet, options())


def test_triton_stands_in_for_cuda(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(wide.backend, "cuda_verdict", lambda x: "no CUDA kernels")
    monkeypatch.setattr(wide.backend, "triton_verdict", lambda x: None)
    assert wide.find_kernels(torch.empty(1, 3, 8, 8)).name == "triton"
    monkeypatch.setenv("GANCOMP_BACKEND", "cuda")
    with pytest.raises(BackendError, match="cuda: no CUDA kernels"):
        wide.find_kernels(torch.empty(1, 3, 8, 8))


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_replayed_steps_are_eager_steps(sampling, amp, monkeypatch):
    """Also those before and of the capture; sub-networks, batches and learning rates change from step to step."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings = options(device="cuda", sampling=sampling, amp=amp, ema=0.9)
    eager, graphed = stage(DistillStage, settings), stage(GraphedDistillStage, settings)
    tolerance = 1e-3 if amp == "off" else 5e-2
    for step, batch in enumerate(batches(WARM_UP + 4, "cuda")):
        for one in (eager, graphed):
            for optimizer in one.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = 1e-4 / (step + 1)
        expected, losses = eager.step(batch, step), graphed.step(batch, step)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=tolerance, atol=tolerance, msg=f"step {step}: {name}")
    assert graphed._graph is not None
    for name, weight in parameters(graphed).items():
        if weight.dim() == 4:
            torch.testing.assert_close(weight, parameters(eager)[name], rtol=0, atol=5e-4, msg=name)


@pytest.mark.gpu
def test_a_replay_allocates_nothing(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    graphed = stage(GraphedDistillStage, options(device="cuda"), dropout=0.5)
    for step, batch in enumerate(batches(WARM_UP + 2, "cuda")):
        graphed.step(batch, step)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for step, batch in enumerate(batches(3, "cuda")):
        graphed.step(batch, step)
    # The batches themselves, and the channel counts on their way: nothing of the size of an image of the network.
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before <= 3 * 4
