"""A few training steps in double precision against the same ones written out in stock PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gancomp.data import Batch
from gancomp.models import Network, ResnetConfig, ResnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage, TeacherStage, TrainOptions

from ..models import published

STEPS = 3
COMMON = {"batch_size": 2, "lr": 0.01, "ndf": 3, "d_layers": 1, "device": "cpu"}
SPACE = SearchSpace.parse("3,2;3,2;4,2;3;3,2;2,1;3", 7)
LAYERS = (9, 10, 11)  # after the last halving and after each of two blocks
DOUBLE = torch.float64


def batches() -> list[Batch]:
    images = torch.randn(STEPS, 2, 2, 3, 16, 16, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)).tanh()
    return [Batch(pair[0], pair[1], ("a", "b")) for pair in images]


def double(network: Network) -> Network:
    """Random weights in double precision."""
    return published.randomised(network).double()


LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # on real logits, on generated ones, and the generator's
    "hinge": (lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), lambda x: -x),
    "lsgan": (lambda x: (x - 1) ** 2, lambda x: x**2, lambda x: (x - 1) ** 2),
    "vanilla": (lambda x: -F.logsigmoid(x), lambda x: -F.logsigmoid(-x), lambda x: -F.logsigmoid(x)),
}
RECONSTRUCTION = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


def adam(parameters) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), lr=0.01, betas=(0.5, 0.999))


def twin(network: Network, stock: nn.Module) -> nn.Module:
    """The published network with the weights of ours."""
    stock.double().load_state_dict(network.state_dict())
    return stock


def patch_twin(stage: TeacherStage | DistillStage) -> nn.Module:
    return twin(double(stage.adversary.network), published.Patch(6, 3, 1, "instance"))


def judge(discriminator: nn.Module, x: Tensor, fake: Tensor, mode: str) -> Tensor:
    return LOSSES[mode][2](discriminator(torch.cat([x, fake], 1))).mean()


def update_discriminator(discriminator: nn.Module, optimizer, batch: Batch, fakes: list[Tensor], mode: str) -> Tensor:
    on_real, on_fake, _ = LOSSES[mode]
    optimizer.zero_grad()
    real = on_real(discriminator(torch.cat([batch.input, batch.target], 1))).mean()
    fake = [on_fake(discriminator(torch.cat([batch.input, image.detach()], 1))).mean() for image in fakes]
    loss = 0.5 * real + 0.5 * sum(fake) / len(fake)
    loss.backward()
    optimizer.step()
    return loss.detach()


def assert_same_weights(ours: nn.Module, stock: nn.Module, allowed: float = 3e-5) -> None:
    """Equal but for the losses' single precision: to a thousandth of what three steps of Adam move a weight by."""
    for name, tensor in stock.state_dict().items():
        difference = (ours.state_dict()[name] - tensor).abs().max()
        assert difference < allowed, f"{name}: {difference}"


def assert_same_losses(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert not losses[name].requires_grad
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    "options",
    [
        {"gan_mode": "hinge"},
        {"gan_mode": "lsgan", "recon": "l2", "lambda_recon": 10.0},
        {"gan_mode": "vanilla", "recon": "smooth_l1", "lambda_gan": 0.5},
        {"lambda_gan": 0.0},
        {"lambda_recon": 0.0},
    ],
)
def test_teacher(options: dict) -> None:
    options = TrainOptions(**COMMON, **options)
    generator = double(ResnetGenerator(ResnetConfig.uniform(2, 2)))
    stock = twin(generator, published.resnet(2, 2))
    stage = TeacherStage(generator, options)
    adversarial = options.lambda_gan > 0
    assert adversarial == (stage.adversary is not None)
    discriminator = patch_twin(stage) if adversarial else None
    optimizer, optimizer_d = adam(stock.parameters()), adam(discriminator.parameters()) if adversarial else None
    for step, batch in enumerate(batches()):
        losses = stage.step(batch, step)
        fake = stock(batch.input)
        expected = {}
        if adversarial:
            expected["D"] = update_discriminator(discriminator, optimizer_d, batch, [fake], options.gan_mode)
        optimizer.zero_grad()
        expected["recon"] = RECONSTRUCTION[options.recon](fake, batch.target)
        loss = options.lambda_recon * expected["recon"]
        if adversarial:
            expected["G"] = judge(discriminator, batch.input, fake, options.gan_mode)
            loss = loss + options.lambda_gan * expected["G"]
        loss.backward()
        optimizer.step()
        assert_same_losses(losses, expected)
    assert_same_weights(generator, stock)
    if adversarial:
        assert_same_weights(stage.adversary.network, discriminator)


class SharedWeights:
    """The supernet written the slow way: stock sub-networks of any widths, run on slices of one set of weights."""

    def __init__(self, full: nn.Module, separable: bool) -> None:
        self.full, self.separable = full, separable

    def __call__(self, c: tuple[int, ...], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = (4 * c[3], 4 * c[4])
        network = published.Resnet(c[0], 2 * c[1], 4 * c[2], hidden, 2 * c[5], c[6], separable=self.separable).double()
        slices = {
            name: self.full.get_parameter(name)[tuple(slice(0, size) for size in tensor.shape)]
            for name, tensor in network.state_dict().items()
        }
        return with_features(network, lambda: functional_call(network, slices, (x,)))


def with_features(network: nn.Module, call: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What ``call`` returns, and the outputs of the distilled layers of ``network`` meanwhile."""
    features: list[Tensor] = []
    for layer in LAYERS:
        network.model[layer].register_forward_hook(lambda _, __, output: features.append(output))
    return call(), features


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "sandwich"},
        {"sampling": "uniform", "target": "teacher", "gan_mode": "lsgan"},
        {"sampling": "weighted", "sample_weight": 3.0, "lambda_gan": 0.0, "lambda_distill": 7.0},
        {"sampling": "sandwich", "lambda_distill": 0.0, "target": "teacher", "recon": "l2"},
    ],
)
def test_supernet(options: dict, separable: bool) -> None:
    options = DistillOptions(**COMMON, **options)
    teacher = double(ResnetGenerator(ResnetConfig.uniform(2, 2)))
    stock_teacher = twin(teacher, published.resnet(2, 2))
    supernet = Supernet(SPACE, 2, separable=separable)
    double(supernet.generator)
    stock = twin(supernet.generator, published.Resnet(3, 6, 16, (12, 12), 4, 3, separable=separable))
    stage = DistillStage(supernet, teacher, options)
    adaptors = copy.deepcopy(stage.adaptors.double())
    adversarial, distilling = options.lambda_gan > 0, options.lambda_distill > 0
    assert len(adaptors) == (3 if distilling else 0)
    discriminator = patch_twin(stage) if adversarial else None
    # Adam hides how large a loss is; it is tested with the teacher.
    optimizer = torch.optim.SGD([*stock.parameters(), *adaptors.parameters()], lr=1e-4)
    trained = stage.optimizers["student"].param_groups[0]["params"]
    stage.optimizers["student"] = torch.optim.SGD(trained, lr=1e-4)
    optimizer_d = adam(discriminator.parameters()) if adversarial else None
    run = SharedWeights(stock, separable)
    for step, batch in enumerate(batches()):
        configs = stage.configurations(step)
        losses = stage.step(batch, step)
        with torch.no_grad():
            wanted, guide = with_features(stock_teacher, lambda batch=batch: stock_teacher(batch.input))
        outputs = [run(config, batch.input) for config in configs]
        expected = {}
        if adversarial:
            images = [image for image, _ in outputs]
            expected["D"] = update_discriminator(discriminator, optimizer_d, batch, images, options.gan_mode)
        target = batch.target if options.target == "truth" else wanted
        mean = dict.fromkeys(["recon", *["G"] * adversarial, *["distill"] * distilling], torch.zeros((), dtype=DOUBLE))
        for image, features in outputs:
            mean["recon"] = mean["recon"] + RECONSTRUCTION[options.recon](image, target) / len(configs)
            if adversarial:
                mean["G"] = mean["G"] + judge(discriminator, batch.input, image, options.gan_mode) / len(configs)
            if distilling:
                distances = [
                    F.mse_loss(F.conv2d(ours, adaptor.weight[:, : ours.shape[1]], adaptor.bias), theirs)
                    for adaptor, ours, theirs in zip(adaptors, features, guide, strict=True)
                ]
                mean["distill"] = mean["distill"] + sum(distances) / len(configs)
        weights = {"recon": options.lambda_recon, "G": options.lambda_gan, "distill": options.lambda_distill}
        optimizer.zero_grad()
        sum(weights[name] * value for name, value in mean.items()).backward()
        optimizer.step()
        assert_same_losses(losses, expected | mean)
    assert_same_weights(supernet.generator, stock, 1e-7)
    assert_same_weights(stage.adaptors, adaptors, 1e-7)
    assert_same_weights(teacher, stock_teacher)
    if adversarial:
        assert_same_weights(stage.adversary.network, discriminator)


def test_one_configuration() -> None:
    """Fine-tuning is the same step with one network."""
    options = DistillOptions(**COMMON)
    teacher = double(ResnetGenerator(ResnetConfig.uniform(2, 2)))
    supernet = Supernet(SPACE, 2)
    double(supernet.generator)
    student = supernet.extract(SPACE.smallest)
    single = Supernet(SearchSpace("one", tuple((c,) for c in SPACE.smallest)), 2, copy.deepcopy(student), separable=True)
    finetuning, reference = DistillStage(student, teacher, options, name="finetune"), DistillStage(single, teacher, options)
    for network in (finetuning.adaptors, finetuning.adversary.network, reference.adaptors, reference.adversary.network):
        network.double()
    assert finetuning.configurations(0) == [None]
    assert reference.configurations(0) == [SPACE.smallest]
    for step, batch in enumerate(batches()):
        losses, expected = finetuning.step(batch, step), reference.step(batch, step)
        assert all(torch.equal(losses[name], value) for name, value in expected.items())
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), single.parameters(), strict=True))
