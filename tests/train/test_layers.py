"""Which layers of teachers and students of different architectures pair up."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.data import Batch
from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage
from gancomp.train.graphs import capture_verdict
from gancomp.train.layers import LayerPair, make_adaptors, pair_layers

from ..models import published


def resnet(ngf: int = 3, n_blocks: int = 9, **fields) -> ResnetGenerator:
    return published.randomised(ResnetGenerator(ResnetConfig.uniform(ngf, n_blocks, **fields)))


def unet(levels: int = 5, **fields) -> UnetGenerator:
    return published.randomised(UnetGenerator(UnetConfig(2, levels, **fields)), seed=1)


def options(**fields) -> DistillOptions:
    return DistillOptions(**{"batch_size": 2, "ndf": 2, "d_layers": 1, "device": "cpu", "lr": 0.01, **fields})


def test_equal_architectures_pair_layer_by_layer() -> None:
    pairs = pair_layers(resnet(5), resnet(3), options())
    assert pairs == [LayerPair(name, name, 20, 12) for name in ("model.9", "model.12", "model.15", "model.18")]


def test_teachers_of_other_numbers_of_blocks() -> None:
    """Features lie after the last halving and after every third of the blocks, wherever that is."""
    pairs = pair_layers(resnet(n_blocks=9), resnet(n_blocks=6), options())
    assert [(pair.teacher, pair.student) for pair in pairs] == [
        ("model.9", "model.9"), ("model.12", "model.11"), ("model.15", "model.13"), ("model.18", "model.15"),
    ]  # fmt: skip
    fewer = pair_layers(resnet(n_blocks=0), resnet(n_blocks=9), options())
    assert [(pair.teacher, pair.student) for pair in fewer] == [("model.9", "model.18")], "the last of the student's"


@pytest.mark.parametrize("levels", [5, 7])
def test_a_unet_pairs_where_its_size_is_the_resnets(levels: int) -> None:
    """A quarter of the image's side: once on its way down and once on its way up."""
    pairs = pair_layers(unet(levels), resnet(), options())
    assert [(pair.teacher, pair.student) for pair in pairs] == [
        ("model.model.1.model.2", "model.9"), ("model.model.1.model.3.model.6", "model.18"),
    ]  # fmt: skip
    assert [(pair.teacher_channels, pair.student_channels) for pair in pairs] == [(4, 12)] * 2


@pytest.mark.parametrize(("norm", "dropout"), [("batch", 0.5), ("instance", 0.0), ("none", 0.5)])
def test_a_unets_features_are_what_stock_pytorch_computes(norm: str, dropout: float) -> None:
    network = unet(6, norm=norm, dropout=dropout).eval()
    x = torch.randn(1, 3, 64, 64).tanh()
    with torch.no_grad():
        image, features = network.forward_features(x)
        assert torch.equal(image, network(x))
    assert list(features) == list(network.feature_layers)
    assert [tuple(f.shape[1:]) for f in features.values()] == [
        (2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2), (16, 1, 1),
        (16, 2, 2), (16, 4, 4), (8, 8, 8), (4, 16, 16), (2, 32, 32),
    ]  # fmt: skip
    weights = network.state_dict()

    def normed(y: Tensor, name: str) -> Tensor:
        if norm == "none":
            return y
        if norm == "instance":
            return F.instance_norm(y)
        tensors = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *tensors)

    first = F.conv2d(x, weights["model.model.0.weight"], weights.get("model.model.0.bias"), stride=2, padding=1)
    second = F.conv2d(
        F.leaky_relu(first, 0.2), weights["model.model.1.model.1.weight"], weights.get("model.model.1.model.1.bias"),
        stride=2, padding=1,
    )  # fmt: skip
    assert torch.allclose(features["model.model.0"], first, atol=1e-5)
    assert torch.allclose(features["model.model.1.model.2"], normed(second, "model.model.1.model.2"), atol=1e-4)
    up = features["model.model.1.model.3.model.6"]
    skip = torch.cat([F.leaky_relu(features["model.model.1.model.2"], 0.2), up], 1)
    last = F.conv_transpose2d(
        F.relu(skip), weights["model.model.1.model.5.weight"], weights.get("model.model.1.model.5.bias"), stride=2, padding=1
    )
    assert torch.allclose(features["model.model.1.model.6"], normed(last, "model.model.1.model.6"), atol=1e-4)


def test_a_unet_teaches_a_resnet_by_its_features() -> None:
    """The loss is the adaptors' distance at exactly the paired layers."""
    teacher, student = unet(norm="instance"), resnet(n_blocks=3, separable=True)
    settings = options(target="teacher", lambda_gan=0.0, lambda_distill=5.0)
    before = copy.deepcopy(student)
    stage = DistillStage(student, teacher, settings)
    adaptors = copy.deepcopy(stage.adaptors)
    x = torch.randn(2, 3, 32, 32).tanh()
    losses = stage.step(Batch(x, x, ("a", "b")), 0)
    with torch.no_grad():
        _, theirs = teacher.forward_features(x, ["model.model.1.model.2", "model.model.1.model.3.model.6"])
        _, ours = before.forward_features(x, ["model.9", "model.12"])
        expected = sum(
            F.mse_loss(F.conv2d(mine, adaptor.weight, adaptor.bias), wanted)
            for adaptor, mine, wanted in zip(adaptors, ours.values(), theirs.values(), strict=True)
        )
    assert losses["distill"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_unet_teaches_a_supernet() -> None:
    supernet = Supernet(SearchSpace.parse("4,2", 8), 3)
    supernet.set(supernet.space.smallest)
    stage = DistillStage(published.randomised(supernet), unet(), options(target="teacher"))
    assert [pair.student_channels for pair in stage.layers] == [16, 16], "those of the largest configuration"
    x = torch.randn(2, 3, 32, 32).tanh()
    first = [stage.step(Batch(x, x, ("a", "b")), step)["distill"] for step in range(20)]
    assert first[-1] < first[0]


def test_named_layers() -> None:
    settings = options(teacher_layers="model.model.0, model.model.1.model.2", student_layers="model.5,model.12")
    student = resnet(n_blocks=3)
    pairs = pair_layers(unet(), student, settings)
    assert pairs == [
        LayerPair("model.model.0", "model.5", 2, 6), LayerPair("model.model.1.model.2", "model.12", 4, 12)
    ]  # fmt: skip
    assert published.shapes(make_adaptors(pairs, 0))["0.weight"] == (2, 6, 1, 1)
    stage = DistillStage(student, unet(), settings)
    assert stage.step(Batch(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), ("a",)), 0)["distill"].isfinite()


def test_one_layer_may_teach_several() -> None:
    names = "model.model.1.model.2,model.model.1.model.2"
    pairs = pair_layers(unet(), resnet(n_blocks=3), options(teacher_layers=names, student_layers="model.9,model.12"))
    assert [pair.teacher for pair in pairs] == ["model.model.1.model.2"] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"teacher_layers": "model.model.0", "student_layers": "model.9"},
            "teacher_layers, student_layers: for an image of 32x32 the teacher's model.model.0 (16x16) and the student's "
            "model.9 (8x8) differ in size; only layers of equal sizes can be paired",
        ),
        (
            {"teacher_layers": "model.model.0", "student_layers": "model.99"},
            "layer 'model.99': this resnet generator has none of that name; did you mean 'model.9'?",
        ),
        (
            {"teacher_layers": "model.model.1.modle.2", "student_layers": "model.9"},
            "layer 'model.model.1.modle.2': this unet generator has none of that name; did you mean 'model.model.1.model.2'?",
        ),
        ({"teacher_layers": "x", "student_layers": "model.10.conv_block.1"}, "layer 'x': this unet generator has none"),
    ],
)
def test_names_that_do_not_fit(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillStage(resnet(n_blocks=3), unet(), options(**fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_inside_of_a_residual_block_has_no_output_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"layer 'model\.10\.conv_block\.1': this resnet generator has none of that name"):
        resnet(n_blocks=1).forward_features(torch.zeros(1, 3, 16, 16), ["model.10.conv_block.1"])


@pytest.mark.parametrize(
    "fields",
    [
        {"teacher_layers": "a"}, {"student_layers": "a"}, {"teacher_layers": "a,b", "student_layers": "a"},
        {"teacher_layers": "a,b", "student_layers": "a,a"},
    ],
)  # fmt: skip
def test_as_many_of_one_as_of_the_other(fields: dict) -> None:
    with pytest.raises(ConfigError, match="expected as many of both, the student's different ones"):
        options(**fields)


def test_no_sizes_in_common(monkeypatch) -> None:
    """Both networks' layers are listed with their sizes."""
    monkeypatch.setattr(UnetGenerator, "feature_layers", ("model.model.0", "model.model.1.model.6"))
    with pytest.raises(ConfigError) as caught:
        DistillStage(resnet(n_blocks=1), unet(), options())
    assert str(caught.value) == (
        "teacher: for an image of 32x32 offers features at model.model.0 (16x16), model.model.1.model.6 (16x16); the student "
        "at model.9 (8x8), model.10 (8x8); no sizes are equal: name layers with teacher_layers and student_layers, or set "
        "lambda_distill to 0"
    )
    DistillStage(resnet(n_blocks=1), unet(), options(lambda_distill=0.0))


def test_pairing_changes_neither_mode_nor_statistics() -> None:
    teacher = unet(norm="batch").train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = resnet(n_blocks=1).train()
    pair_layers(teacher, student, options())
    assert teacher.training
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_step_of_other_layers_is_not_captured(monkeypatch) -> None:
    """Its adaptors would take other channel counts than the residual stream's."""
    supernet = Supernet(SearchSpace.parse("4,2", 7), 2)
    settings = options(teacher_layers="model.model.0", student_layers="model.5")
    monkeypatch.setattr(DistillOptions, "torch_device", lambda self: torch.device("cuda"))
    assert "student_layers names model.5, whose channels are not the residual stream's" in capture_verdict(supernet, settings)


def test_features_that_are_changed_in_place_are_refused() -> None:
    generator = UnetGenerator(UnetConfig(2, 5))
    layer = next(name for name, module in generator.named_modules() if isinstance(module, torch.nn.ReLU))
    before = f"{layer.rpartition('.')[0]}.{int(layer.rpartition('.')[2]) - 1}"
    x = torch.zeros(1, 3, 32, 32)
    generator.forward_features(x, [before])
    generator.get_submodule(layer).inplace = True
    with pytest.raises(ConfigError, match=f"layer '{before}': what follows changes its output in place"):
        generator.forward_features(x, [before])
