"""GauGAN's losses against the papers' formulas, one training step of teacher and supernet, and what does not go together."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.data import Batch, DataConfig, ImageDataset, Pair
from gancomp.errors import ConfigError
from gancomp.models import (
    DiscriminatorConfig,
    MultiscaleConfig,
    MultiscaleDiscriminator,
    PatchDiscriminator,
    ResnetConfig,
    ResnetGenerator,
    SpadeConfig,
    SpadeGenerator,
    seeded_generator,
)
from gancomp.nn import init_weights
from gancomp.supernet import SearchSpace, Supernet
from gancomp.testing import images
from gancomp.train import DistillOptions, DistillStage, GauganOptions, StageFolder, TeacherStage, TrainOptions, fit
from gancomp.train.adversary import Adversary, Precision
from gancomp.train.gaugan import GauganAdversary, feature_matching, make_adversary

from ..models.published_spade import label_map, one_hot
from .test_perceptual import by_hand, save, stock

CLASSES = 3
OPTIONS = TrainOptions(lr=1e-4, beta1=0.0, lambda_recon=0.0, ndf=4, d_layers=2, batch_size=2, device="cpu", steps=4)
DISTILL = DistillOptions(**{**vars(OPTIONS), "lambda_distill": 10.0})
CPU = torch.device("cpu")


def generator(seed: int = 0, **fields) -> SpadeGenerator:
    config = SpadeConfig.uniform(2, label_nc=CLASSES, upsampling="normal", crop_size=32, aspect_ratio=1.0, **fields)
    network = SpadeGenerator(config)
    init_weights(network, seeded_generator(seed), std=0.2)
    return network


def batch(n: int = 2, seed: int = 0) -> Batch:
    labels = label_map(n, CLASSES, 32, 32, seed=seed).to(torch.uint8)
    return Batch(labels, images(n, 3, 32, 32, seed=seed).tanh(), tuple(map(str, range(n))))


def adversary(**gaugan) -> GauganAdversary:
    made = GauganAdversary.create(generator(), OPTIONS, GauganOptions(**gaugan), CPU, Precision(OPTIONS, CPU))
    assert made is not None
    return made


def judged(network: MultiscaleDiscriminator, labels: Tensor, image: Tensor) -> list[list[Tensor]]:
    return network(torch.cat([one_hot(labels, CLASSES), image], 1))


def test_feature_matching_by_hand() -> None:
    fake, real = ([[images(2, c, 5, 5, seed=c + k) for c in (2, 3, 1)] for k in (0, 10)] for _ in range(2))
    real = [[tensor * 1.3 + 0.1 for tensor in scale] for scale in real]
    expected = sum((a - b).abs().mean() for s, t in zip(fake, real, strict=True) for a, b in zip(s[:2], t[:2], strict=True)) / 2
    torch.testing.assert_close(feature_matching(fake, real), expected)


def test_the_generators_terms(tmp_path) -> None:
    """Hinge: the mean of minus the logits over the scales; maps against those of the real image; VGG features."""
    path = save(stock(), tmp_path / "vgg.pth")
    judge = adversary(vgg=str(path), lambda_feat=7.0, lambda_vgg=3.0)
    data, fake = batch(), images(2, 3, 32, 32, seed=9).tanh().requires_grad_()
    judge.network.eval()  # spectral norm stays as it is
    terms = judge.terms(data.input, fake, data.target)
    assert {name: weight for name, (weight, _) in terms.items()} == {"G": 1.0, "feat": 7.0, "vgg": 3.0}
    maps, wanted = judged(judge.network, data.input, fake), judged(judge.network, data.input, data.target)
    torch.testing.assert_close(terms["G"][1], -(maps[0][-1].mean() + maps[1][-1].mean()) / 2)
    torch.testing.assert_close(terms["feat"][1], feature_matching(maps, wanted))
    torch.testing.assert_close(terms["vgg"][1], by_hand(stock(), fake, data.target))
    sum(value for _, value in terms.values()).backward()
    assert fake.grad.abs().sum() > 0


def test_the_discriminators_step() -> None:
    """Hinge on every scale, the mean over scales and generated images; only its own weights move."""
    judge = adversary()
    data, fakes = batch(), [images(2, 3, 32, 32, seed=s).tanh().requires_grad_() for s in (7, 8)]
    before = copy.deepcopy(judge.network)
    real = judged(before, data.input, data.target)
    losses = []
    for fake in fakes:
        for good, bad in zip(real, judged(before, data.input, fake), strict=True):
            losses.append(0.5 * (F.relu(1 - good[-1]).mean() + F.relu(1 + bad[-1]).mean()))
    loss = judge.train_step(data.input, data.target, fakes)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=5e-2, atol=1e-3)
    assert all(fake.grad is None for fake in fakes)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), judge.network.parameters(), strict=True)]
    assert all(moved)
    assert not any(parameter.requires_grad for parameter in judge.network.parameters())


class Maps(ImageDataset):
    """One label map and its photograph, four times."""

    paired = True

    def __init__(self) -> None:
        super().__init__(DataConfig(labels=CLASSES, edges=True, load_size=32, crop_size=32), "train", [*"abcd"])

    @property
    def target_count(self) -> int:
        return 4

    def load_target(self, index: int) -> Tensor:
        return batch().target[0]

    def load(self, index: int, rng: object = None) -> Pair:
        return Pair(batch().input[0], batch().target[0], self.names[index])


def test_time_scales_differ(tmp_path) -> None:
    """The discriminator learns four times as fast at every step of the schedule, before and after a break."""
    rates: list[tuple[float, float]] = []

    class Watched(TeacherStage):
        def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
            rates.append(tuple(self.optimizers[name].param_groups[0]["lr"] for name in ("generator", "discriminator")))
            return super().step(batch, step)

    for stop in (2, None):
        folder = StageFolder(tmp_path / "run")
        folder.open({"verb": "train"})
        fit(
            Watched(generator(), OPTIONS, GauganOptions(lr_ratio=4.0)), Maps(), Maps(), folder, {}, progress=False, stop_at=stop
        )
    assert [slow for slow, _ in rates] == pytest.approx([OPTIONS.learning_rate(step) for step in range(4)])
    assert [fast for _, fast in rates] == pytest.approx([4 * slow for slow, _ in rates])
    assert (folder / "generator.safetensors").exists()
    assert (folder / "discriminator.safetensors").exists()


def test_a_teachers_step() -> None:
    stage = TeacherStage(generator(), OPTIONS, GauganOptions())
    before = copy.deepcopy(stage.generator)
    losses = stage.step(batch(), 0)
    assert losses.keys() == {"D", "recon", "G", "feat"}
    assert all(value.isfinite() for value in losses.values())
    same = [name for name, p in before.named_parameters() if torch.equal(p, stage.generator.get_parameter(name))]
    assert [name for name in same if before.get_parameter(name).requires_grad] == []
    assert int(stage.generator.head_0.norm_0.param_free_norm.num_batches_tracked) == 1, "statistics move in training"
    columns = stage.preview(batch())
    assert list(columns) == ["input", "teacher", "ground truth"]
    assert stage.generator.training


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_supernets_step(norm: str, tmp_path) -> None:
    """Distillation at the three published layers; the sub-networks of a preview are calibrated on its own images."""
    teacher = generator(1, norm=norm)
    config = SpadeConfig.from_channels((2,) * 8, **{
        name: getattr(teacher.config, name) for name in ("label_nc", "upsampling", "crop_size", "aspect_ratio", "norm")
    })  # fmt: skip
    supernet = Supernet.around(SpadeGenerator(config), SearchSpace.parse("2,1"))
    init_weights(supernet, seeded_generator(2), std=0.2)
    stage = DistillStage(supernet, teacher, DISTILL, name="supernet", gaugan=GauganOptions())
    assert [(pair.teacher, pair.student) for pair in stage.layers] == [(n, n) for n in ("head_0", "G_middle_1", "up_1")]
    losses = stage.step(batch(), 0)
    assert losses.keys() == {"D", "recon", "G", "feat", "distill"}
    assert all(value.isfinite() for value in losses.values())
    columns = stage.preview(batch(3))
    assert list(columns) == ["input", "teacher", "largest", "smallest", "ground truth"]
    assert supernet.training
    assert supernet.calibrated is None
    alone = supernet.generator.extract(supernet.network_config(supernet.space.smallest)).train()
    torch.testing.assert_close(columns["smallest"], alone(batch(3).input).detach(), rtol=1e-3, atol=1e-4)


def test_distillation_is_the_mean_square_after_the_adaptors() -> None:
    teacher, student = generator(1), generator(2, separable=True)
    stage = DistillStage(student, teacher, DISTILL, gaugan=GauganOptions())
    data = batch()
    torch.manual_seed(0)
    copies = copy.deepcopy((student, stage.adaptors))
    losses = stage.update(data, [None])
    names = ("head_0", "G_middle_1", "up_1")
    _, guide = teacher.eval().forward_features(data.input, names)
    _, features = copies[0].train().forward_features(data.input, names)
    adapted = [adaptor(features[name]) for adaptor, name in zip(copies[1], names, strict=True)]
    expected = sum(F.mse_loss(ours, guide[name]) for ours, name in zip(adapted, names, strict=True))
    torch.testing.assert_close(losses["distill"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_which_adversary() -> None:
    precision = Precision(OPTIONS, CPU)
    assert isinstance(make_adversary(generator(), OPTIONS, None, CPU, precision), GauganAdversary)
    resnet = ResnetGenerator(ResnetConfig.uniform(2, 1))
    assert isinstance(make_adversary(resnet, OPTIONS, None, CPU, precision), Adversary)
    off = TrainOptions(lambda_gan=0.0, device="cpu")
    assert make_adversary(generator(), off, None, CPU, Precision(off, CPU)) is None


def test_what_is_inherited_must_fit() -> None:
    precision = Precision(OPTIONS, CPU)
    fits = MultiscaleDiscriminator(MultiscaleConfig(CLASSES + 1 + 3, 2, 2))
    made = GauganAdversary.create(generator(), OPTIONS, GauganOptions(), CPU, precision, fits)
    assert made is not None
    assert made.network is fits
    for wrong in (MultiscaleDiscriminator(MultiscaleConfig(9, 2, 2)), PatchDiscriminator(DiscriminatorConfig(7, 2, 1))):
        with pytest.raises(ConfigError, match="expected a multiscale one of 7 channels"):
            GauganAdversary.create(generator(), OPTIONS, GauganOptions(), CPU, precision, wrong)
    with pytest.raises(ConfigError, match="takes images of 3 channels, these have 1"):
        GauganAdversary.create(generator(out_channels=1), OPTIONS, GauganOptions(vgg="vgg.pth"), CPU, precision)


@pytest.mark.parametrize("fields", [{"lambda_feat": -1.0}, {"lambda_vgg": -1.0}, {"scales": 0}, {"lr_ratio": 0.0}])
def test_options_out_of_range(fields: dict) -> None:
    with pytest.raises(ConfigError, match=f"gaugan: {next(iter(fields))}="):
        GauganOptions(**fields)
