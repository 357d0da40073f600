"""Distillation: sampling, adaptors, the inherited discriminator, teachers of other kinds, products."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gancomp
from gancomp.checkpoints import load_network, load_supernet
from gancomp.data import Batch
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import DiscriminatorConfig, PatchDiscriminator, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage, StageFolder, TeacherStage, TrainOptions

from ..models import published

SPACE = SearchSpace.parse("4,2", 7)


def options(**fields) -> DistillOptions:
    return DistillOptions(**{"batch_size": 2, "ndf": 2, "d_layers": 1, "device": "cpu", "lr": 0.01, **fields})


def teacher(ngf: int = 3, n_blocks: int = 2, **fields) -> ResnetGenerator:
    return published.randomised(ResnetGenerator(ResnetConfig.uniform(ngf, n_blocks, **fields)))


def supernet(**fields) -> Supernet:
    return published.randomised(Supernet(SPACE, 2, **fields), seed=1)


def batch(inputs: int = 3, outputs: int = 3, size: int = 16) -> Batch:
    return Batch(torch.randn(2, inputs, size, size).tanh(), torch.randn(2, outputs, size, size).tanh(), ("a", "b"))


def test_sandwich_is_the_largest_the_smallest_and_a_random_one() -> None:
    stage = DistillStage(supernet(), teacher(), options(sampling="sandwich"))
    triples = [stage.configurations(step) for step in range(300)]
    assert all(triple[:2] == [SPACE.largest, SPACE.smallest] for triple in triples)
    assert len({triple[2] for triple in triples}) > 100, "of 128"


@pytest.mark.parametrize(("sampling", "large"), [("uniform", 1 / 2), ("weighted", 1 / 4)])
def test_one_configuration_a_step(sampling, large: float) -> None:
    """With weight 3 the smaller of two choices is three times as likely."""
    stage = DistillStage(supernet(), teacher(), options(sampling=sampling, sample_weight=3.0))
    draws = [stage.configurations(step) for step in range(1000)]
    assert all(len(configs) == 1 and configs[0] in SPACE for configs in draws)
    counts = collections.Counter(channels for configs in draws for channels in configs[0])
    # 7000 draws: five standard deviations.
    assert abs(counts[4] / 7000 - large) < 5 * (large * (1 - large) / 7000) ** 0.5


def test_configurations_follow_from_seed_and_step() -> None:
    first, second = (DistillStage(supernet(), teacher(), options()) for _ in range(2))
    other = DistillStage(supernet(), teacher(), options(seed=5))
    first.configurations(3)
    assert [first.configurations(step) for step in range(20)] == [second.configurations(step) for step in range(20)]
    assert [first.configurations(step) for step in range(20)] != [other.configurations(step) for step in range(20)]


def test_adaptors_map_the_students_channels_to_the_teachers() -> None:
    stage = DistillStage(supernet(), teacher(ngf=5), options())
    assert published.shapes(stage.adaptors) == {
        f"{layer}.{kind}": shape for layer in range(3) for kind, shape in (("weight", (20, 16, 1, 1)), ("bias", (20,)))
    }
    trained = {id(p) for group in stage.optimizers["student"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in (*stage.student.parameters(), *stage.adaptors.parameters())}


def test_the_teacher_is_frozen() -> None:
    master = teacher(norm="batch").train()
    before = {name: tensor.clone() for name, tensor in master.state_dict().items()}
    stage = DistillStage(supernet(), master, options())
    stage.step(batch(), 0)
    assert not master.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in master.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in master.state_dict().items())


def test_discriminator_is_inherited() -> None:
    mine = published.randomised(PatchDiscriminator(DiscriminatorConfig(6, ndf=5, n_layers=2))).eval()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    stage = DistillStage(supernet(), teacher(), options(), mine)
    assert stage.adversary.network is mine
    assert mine.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.modules["discriminator"].state_dict().items())
    stage.step(batch(), 0)
    assert not any(torch.equal(p, before[name]) for name, p in mine.named_parameters() if name.endswith("weight"))


def test_discriminator_of_other_channels() -> None:
    with pytest.raises(ConfigError, match="takes 4 channels, input and output together have 6, the output alone 3"):
        DistillStage(supernet(), teacher(), options(), PatchDiscriminator(DiscriminatorConfig(4, ndf=2)))


def test_without_adversarial_loss_there_is_no_discriminator(tmp_path: Path) -> None:
    given = PatchDiscriminator(DiscriminatorConfig(6, ndf=2))
    stage = DistillStage(supernet(), teacher(), options(lambda_gan=0.0), given)
    assert stage.step(batch(), 0).keys() == {"recon", "distill"}
    assert stage.modules.keys() == {"student", "adaptors"}
    stage.write_products(StageFolder(tmp_path), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adaptors.safetensors", "supernet.safetensors"]


def test_unet_teacher_without_feature_distillation() -> None:
    unet = published.randomised(UnetGenerator(UnetConfig(2, 5)))
    stage = DistillStage(supernet(), unet, options(lambda_distill=0.0, target="teacher"))
    data = batch(size=32)
    with torch.no_grad():
        distance = (stage.student(data.input) - unet(data.input)).abs().mean()
    configs = {step: stage.configurations(step)[0] for step in range(200)}
    step = next(step for step, config in configs.items() if config == SPACE.largest)
    losses = stage.step(data, step)
    assert losses.keys() == {"D", "G", "recon"}
    assert losses["recon"].item() == pytest.approx(distance.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teacher(in_channels=1), "teacher: has in_channels=1, the student 3; they must be equal"),
        (lambda: teacher(out_channels=1), "teacher: has out_channels=1, the student 3; they must be equal"),
    ],
)
def test_teachers_that_do_not_fit(make, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillStage(supernet(), make(), options())
    assert message in str(caught.value)


def test_device_is_checked() -> None:
    with pytest.raises(ConfigError, match="device='tpu'"):
        DistillStage(supernet(), teacher(), options(device="tpu"))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_preview_shows_both_ends_of_the_supernet(ema: float) -> None:
    stage = DistillStage(supernet(), teacher(), options(ema=ema))
    data = batch()
    stage.step(data, 0)
    with torch.no_grad():
        images = stage.preview(data)
        assert list(images) == ["input", "teacher", "largest", "smallest", "ground truth"]
        kept = stage.average.of(stage.student)
        for caption, config in (("largest", SPACE.largest), ("smallest", SPACE.smallest)):
            assert torch.equal(images[caption], kept.extract(config)(data.input))
        assert torch.equal(images["teacher"], stage.teacher(data.input))
    assert stage.student.training


def test_preview_of_one_generator() -> None:
    stage = DistillStage(supernet().extract(SPACE.smallest), teacher(), options())
    with torch.no_grad():
        assert list(stage.preview(batch())) == ["input", "teacher", "student", "ground truth"]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_products_of_a_supernet(tmp_path: Path, ema: float) -> None:
    stage = DistillStage(supernet(), teacher(), options(ema=ema))
    for step in range(3):
        stage.step(batch(), step)
    stage.write_products(StageFolder(tmp_path), {"stage": "supernet"})
    kept = stage.average.of(stage.student)
    assert (kept is stage.student) == (ema == 0)
    again = load_supernet(tmp_path / "supernet.safetensors")
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in again.state_dict().items())
    discriminator = load_network(tmp_path / "discriminator.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(discriminator.parameters(), stage.adversary.network.parameters(), strict=True))
    adaptors = load_file(tmp_path / "adaptors.safetensors")
    assert all(torch.equal(adaptors[name], tensor) for name, tensor in stage.adaptors.state_dict().items())


def test_products_of_one_generator(tmp_path: Path) -> None:
    student = supernet().extract(SPACE.smallest)
    stage = DistillStage(student, teacher(), options(), name="finetune")
    stage.write_products(StageFolder(tmp_path), {})
    assert gancomp.load_generator(tmp_path / "generator.safetensors").config == student.config


def test_adaptors_are_inherited_by_their_first_inputs(tmp_path: Path) -> None:
    whole = DistillStage(supernet(), teacher(), options())
    whole.write_products(StageFolder(tmp_path), {})
    part = DistillStage(supernet().extract(SPACE.smallest), teacher(), options(seed=9), name="finetune")
    part.inherit_adaptors(tmp_path / "adaptors.safetensors")
    for name, tensor in part.adaptors.state_dict().items():
        expected = whole.adaptors.state_dict()[name]
        assert torch.equal(tensor, expected[:, :8] if tensor.dim() == 4 else expected)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda t: t.pop("0.bias"),
        lambda t: t.update({"3.bias": torch.zeros(12)}),
        lambda t: t.update({"0.weight": torch.zeros(8, 16, 1, 1)}),
        lambda t: t.update({"0.weight": torch.zeros(12, 4, 1, 1)}),
        lambda t: t.update({"0.bias": torch.zeros(12, 1)}),
    ],
)
def test_adaptors_of_another_teacher(tmp_path: Path, mangle) -> None:
    stage = DistillStage(supernet().extract(SPACE.smallest), teacher(), options())
    tensors = {name: tensor.clone() for name, tensor in stage.adaptors.state_dict().items()}
    mangle(tensors)
    save_file(tensors, tmp_path / "adaptors.safetensors")
    with pytest.raises(CheckpointError, match=r"adaptors\.safetensors: the adaptors are those of another teacher"):
        stage.inherit_adaptors(tmp_path / "adaptors.safetensors")


# -- the teacher's own stage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_products_of_a_teacher(tmp_path: Path, ema: float) -> None:
    stage = TeacherStage(teacher(norm="batch", dropout=0.5), TrainOptions(ndf=2, d_layers=1, device="cpu", ema=ema))
    for step in range(3):
        stage.step(batch(), step)
    with torch.no_grad():
        images = stage.preview(batch())
        assert list(images) == ["input", "teacher", "ground truth"]
        assert stage.generator.training
    stage.write_products(StageFolder(tmp_path), {})
    kept, again = stage.average.of(stage.generator), gancomp.load_generator(tmp_path / "generator.safetensors")
    assert again.config == stage.generator.config
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert (tmp_path / "discriminator.safetensors").exists()


def test_unet_trains() -> None:
    unet = published.randomised(UnetGenerator(UnetConfig(2, 5, in_channels=1, out_channels=2)))
    stage = TeacherStage(unet, TrainOptions(ndf=2, d_layers=1, device="cpu", lambda_gan=0.0, lr=0.01))
    data = batch(1, 2, 32)
    first = stage.step(data, 0)["recon"]
    for step in range(1, 20):
        last = stage.step(data, step)["recon"]
    assert last < 0.9 * first


def test_initial_discriminator_follows_from_the_seed() -> None:
    networks = [TeacherStage(teacher(), TrainOptions(ndf=2, device="cpu", seed=seed)).adversary.network for seed in (1, 1, 2)]
    assert torch.equal(networks[0].model[0].weight, networks[1].model[0].weight)
    assert not torch.equal(networks[0].model[0].weight, networks[2].model[0].weight)
    assert networks[0].config == DiscriminatorConfig(6, 2, 3)


# -- discriminators that see the image alone -------------------------------------------------------------------------------


def test_a_discriminator_of_the_image_alone() -> None:
    """Its channels tell: it is given images and no inputs, with a new one as the options say."""
    seen: list[int] = []
    mine = PatchDiscriminator(DiscriminatorConfig(3, ndf=2, n_layers=1))
    mine.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    stage = DistillStage(supernet(), teacher(), options(conditional=True), mine)
    assert not stage.adversary.conditional
    stage.step(batch(), 0)
    assert set(seen) == {3}
    fresh = DistillStage(supernet(), teacher(), options(conditional=False))
    assert fresh.adversary.network.config.in_channels == 3
    both = DistillStage(supernet(), teacher(), options(conditional=False), PatchDiscriminator(DiscriminatorConfig(6, ndf=2)))
    assert both.adversary.conditional


def test_unpaired_images_have_no_ground_truth_to_show() -> None:
    stage = DistillStage(supernet(), teacher(), options(target="teacher", conditional=False))
    images = batch()
    unpaired = Batch(images.input, images.target, images.names, paired=False)
    with torch.no_grad():
        assert list(stage.preview(unpaired)) == ["input", "teacher", "largest", "smallest"]
