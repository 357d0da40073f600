"""A student starts from its teacher's most important channels."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.supernet import transfer_weights
from gancomp.supernet.transfer import importance, separate
from gancomp.testing import images

from ..models import published

NARROW = ResnetConfig(stem=3, down=5, stream=8, hidden=(6, 4, 7), up=5, last=3)
WIDE = ResnetConfig(stem=5, down=8, stream=12, hidden=(9, 7, 10), up=9, last=6)


def make(config: ResnetConfig, seed: int = 0) -> ResnetGenerator:
    """A generator in float64 of random weights."""
    return published.randomised(ResnetGenerator(config), seed).double().eval()


def picture(n: int = 2, channels: int = 3) -> torch.Tensor:
    return images(n, channels, 16, 20, dtype=torch.float64).tanh()


def embed(narrow: ResnetGenerator, config: ResnetConfig) -> ResnetGenerator:
    """A wider generator that computes the same: its channels are those of ``narrow`` at random places, and zeros elsewhere.

    A channel of zero weights is constant, so InstanceNorm makes it zero.
    """
    source = torch.Generator().manual_seed(4)

    def places(have: int, want: int) -> torch.Tensor:
        return torch.randperm(want, generator=source)[:have]

    small = narrow.config
    at = {name: places(getattr(small, name), getattr(config, name)) for name in ("stem", "down", "stream", "up", "last")}
    at |= {"in": torch.arange(config.in_channels), "out": torch.arange(config.out_channels)}
    inner = [places(a, b) for a, b in zip(small.hidden, config.hidden, strict=True)]
    n = config.n_blocks
    path = [(1, "in", "stem"), (4, "stem", "down"), (7, "down", "stream")]
    path += [(10 + n, "stream", "up"), (13 + n, "up", "last"), (17 + n, "last", "out")]
    routes = {f"model.{index}": (at[inputs], at[outputs]) for index, inputs, outputs in path}
    for block, hidden in enumerate(inner):
        for conv, a, b in ((1, at["stream"], hidden), (6, hidden, at["stream"])):
            stem = f"model.{10 + block}.conv_block.{conv}"
            parts = {".conv.0": (None, a), ".conv.2": (a, b)} if config.separable else {"": (a, b)}
            routes |= {stem + part: route for part, route in parts.items()}
    wide = ResnetGenerator(config).double().eval()
    state = {name: torch.zeros_like(tensor) for name, tensor in wide.state_dict().items()}
    for name, tensor in narrow.state_dict().items():
        layer, kind = name.rsplit(".", 1)
        inputs, outputs = routes[layer]
        if kind == "bias" or inputs is None:
            state[name][outputs] = tensor
        elif layer in (f"model.{10 + n}", f"model.{13 + n}"):
            state[name][inputs[:, None], outputs] = tensor
        else:
            state[name][outputs[:, None], inputs] = tensor
    wide.load_state_dict(state)
    return wide


@pytest.mark.parametrize("separable", [False, True])
def test_unimportant_channels_are_left_behind_and_the_rest_stays_aligned(separable: bool) -> None:
    """Through stem, residual stream, blocks and transposed convolutions the student computes what its teacher does."""
    narrow = make(replace(NARROW, separable=separable))
    teacher = embed(narrow, replace(WIDE, separable=separable))
    x = picture()
    torch.testing.assert_close(teacher(x), narrow(x))
    student = make(narrow.config, seed=1)
    transfer_weights(teacher, student)
    torch.testing.assert_close(student(x), narrow(x))


@pytest.mark.parametrize(
    "fields",
    [{}, {"separable": True}, {"norm": "none"}, {"padding": "zero"}, {"in_channels": 1, "out_channels": 4}, {"hidden": ()}],
)
def test_a_student_as_wide_as_its_teacher_computes_the_same(fields: dict) -> None:
    teacher = make(replace(NARROW, **fields))
    student = make(teacher.config, seed=1)
    before = copy.deepcopy(teacher.state_dict())
    transfer_weights(teacher, student)
    x = picture(channels=teacher.config.in_channels)
    torch.testing.assert_close(student(x), teacher(x))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("separable", [False, True])
def test_most_important_channels_come_first(separable: bool) -> None:
    """So that any prefix of the student is a good slice: importance is the L1 norm of the filter that makes a channel."""
    teacher, student = make(replace(WIDE, separable=separable)), make(replace(NARROW, separable=separable), seed=1)
    transfer_weights(teacher, student)
    scores = teacher.model[1].weight.abs().sum((1, 2, 3))
    chosen = scores.argsort(descending=True)[: NARROW.stem]
    assert torch.equal(student.model[1].weight, teacher.model[1].weight[chosen])
    assert torch.equal(student.model[1].bias, teacher.model[1].bias[chosen])
    # The next layer ranks by what it has left of its inputs.
    scores = teacher.model[4].weight[:, chosen].abs().sum((1, 2, 3))
    chosen_next = scores.argsort(descending=True)[: NARROW.down]
    assert torch.equal(student.model[4].weight, teacher.model[4].weight[chosen_next][:, chosen])
    ranked = [student.model[index].weight for index in (1, 4, 7)]
    ranked += [block.conv_block[1].conv[2].weight if separable else block.conv_block[1].weight for block in student.blocks]
    if not separable:
        for weight in ranked:
            norms = weight.abs().sum((1, 2, 3))
            assert torch.equal(norms, norms.sort(descending=True).values)
    for index in (13, 16):
        norms = student.model[index].weight.abs().sum((0, 2, 3))
        assert torch.equal(norms, norms.sort(descending=True).values)


def test_separable_channels_are_ranked_by_the_filters_they_amount_to() -> None:
    teacher, student = make(replace(WIDE, separable=True)), make(replace(WIDE, separable=True), seed=1)
    transfer_weights(teacher, student)
    for block in student.blocks:
        depthwise, _, pointwise = block.conv_block[1].conv
        dense = pointwise.weight * depthwise.weight.transpose(0, 1)
        norms = dense.abs().sum((1, 2, 3))
        assert torch.equal(norms, norms.sort(descending=True).values)


def test_importance() -> None:
    weight = torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]], [[[-4.0, 0.0]], [[5.0, 1.0]]], [[[0.0, 0.0]], [[1.0, -1.0]]]])
    assert importance(weight).tolist() == [6.0, 10.0, 2.0]
    assert importance(weight, out_dim=1).tolist() == [7.0, 11.0]


def test_separation_is_the_best_of_rank_one() -> None:
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    depthwise, pointwise = separate(weight)
    assert depthwise.shape == (4, 1, 3, 3)
    assert pointwise.shape == (6, 4, 1, 1)
    torch.testing.assert_close(depthwise.square().sum((1, 2, 3)), torch.ones(4, dtype=torch.float64))
    product = pointwise * depthwise[:, 0]
    for channel in range(4):
        matrix = weight[:, channel].reshape(6, 9)
        error = (matrix - product[:, channel].reshape(6, 9)).square().sum()
        # Eckart and Young: what no matrix of rank one can do without, here through the eigenvalues of the Gram matrix.
        eigenvalues = torch.linalg.eigvalsh(matrix @ matrix.T)
        torch.testing.assert_close(error, eigenvalues[:-1].sum())


def test_separation_of_rank_one_is_exact() -> None:
    weight = torch.randn(5, 3, 1, 1, dtype=torch.float64) * torch.randn(3, 3, 3, dtype=torch.float64)
    depthwise, pointwise = separate(weight)
    torch.testing.assert_close(pointwise * depthwise[:, 0], weight)


def rank_one_teacher() -> ResnetGenerator:
    """A dense generator whose blocks' filters are products of a depthwise and a pointwise one."""
    teacher = make(NARROW)
    with torch.no_grad():
        for block in teacher.blocks:
            for conv in (block.conv_block[1], block.conv_block[6]):
                outputs, inputs = conv.weight.shape[:2]
                factors = [torch.randn(size, dtype=torch.float64) for size in ((outputs, inputs, 1, 1), (inputs, 3, 3))]
                conv.weight.copy_(factors[0] * factors[1])
    return teacher


def test_calibration_undoes_the_inner_norms_of_a_separable_student() -> None:
    """On the calibration image itself the student of a separable teacher is exact: the inner norm takes the standard deviation
    out, which the pointwise weight has taken in, and the mean, which the next norm removes anyway."""
    teacher, x = rank_one_teacher(), picture(1)
    student, untouched = (make(replace(NARROW, separable=True), seed=1) for _ in range(2))
    transfer_weights(teacher, student, calibration=x)
    torch.testing.assert_close(student(x), teacher(x))
    transfer_weights(teacher, untouched)
    assert (untouched(x) - teacher(x)).abs().mean() > 1e-3
    assert not any(module._forward_pre_hooks for module in student.modules())
    # Of several images it is the mean standard deviation.
    several = picture(5)
    transfer_weights(teacher, student, calibration=several)
    first, _, pointwise = student.blocks[0].conv_block[1].conv
    deviations = (first(student.model[:10](several)).var((2, 3), correction=0) + 1e-5).sqrt()
    uncalibrated = untouched.blocks[0].conv_block[1].conv[2]
    torch.testing.assert_close(pointwise.weight, uncalibrated.weight * deviations.mean(0).view(1, -1, 1, 1))


def test_dense_student_of_a_separable_teacher() -> None:
    teacher, student = make(replace(NARROW, separable=True)), make(NARROW, seed=1)
    transfer_weights(teacher, student)
    depthwise, _, pointwise = teacher.blocks[0].conv_block[1].conv
    dense = (pointwise.weight * depthwise.weight.transpose(0, 1)).flatten(1).sort().values
    ours = student.blocks[0].conv_block[1].weight.flatten(1).sort().values
    torch.testing.assert_close(ours.sort(0).values, dense.sort(0).values)


def test_teacher_without_biases() -> None:
    """BatchNorm teachers have none where the student has one: it starts at zero."""
    teacher, student = make(replace(WIDE, norm="batch")), make(replace(NARROW, separable=True), seed=1)
    transfer_weights(teacher, student, calibration=picture(2))
    biases = {name: p for name, p in student.named_parameters() if name.endswith("bias")}
    assert not any(p.any() for name, p in biases.items() if name != "model.20.bias")
    assert torch.equal(biases["model.20.bias"], teacher.model[20].bias)


def test_the_students_parameters_stay_the_same_objects() -> None:
    teacher, student = make(WIDE), make(replace(NARROW, separable=True), seed=1)
    before = {name: (p, p.data_ptr(), p.requires_grad) for name, p in student.named_parameters()}
    transfer_weights(teacher, student, calibration=picture(1))
    for name, parameter in student.named_parameters():
        assert parameter is before[name][0]
        assert parameter.data_ptr() == before[name][1]
        assert parameter.requires_grad is before[name][2]
        assert parameter.is_leaf
        assert parameter.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_channels": 1}, "teacher has in_channels=3, student 1"),
        ({"out_channels": 1}, "teacher has out_channels=3, student 1"),
        ({"padding": "zero"}, "teacher has padding='reflect', student 'zero'"),
        ({"hidden": (4, 4)}, "teacher has n_blocks=3, student 2"),
        ({"stem": 6}, "student stem=6 is above the teacher's 5; initialise at random instead"),
        ({"last": 7}, "student last=7 is above the teacher's 6"),
        ({"hidden": (9, 8, 10)}, "student hidden[1]=8 is above the teacher's 7"),
    ],
)
def test_students_that_do_not_fit(fields: dict, message: str) -> None:
    student = make(replace(NARROW, **fields))
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ConfigError) as caught:
        transfer_weights(make(WIDE), student)
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
