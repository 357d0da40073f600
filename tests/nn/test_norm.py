"""Norms with ReLU and the residual folded in, against stock layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gancomp.errors import ConfigError
from gancomp.nn import BatchNormAct, InstanceNormAct, NoNormAct, make_norm
from gancomp.testing import images

DTYPE = torch.float64


def stock(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(norm, NoNormAct):
        return x
    if isinstance(norm, InstanceNormAct):
        scale, shift = (None, None) if norm.weight is None else (norm.weight[: x.shape[1]], norm.bias[: x.shape[1]])
        return F.instance_norm(x, weight=scale, bias=shift, eps=norm.eps)
    twin = nn.BatchNorm2d(norm.num_features).to(DTYPE).train(norm.training)
    twin.load_state_dict(norm.state_dict())
    return twin(x)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", ["instance", "instance_affine", "batch", "none"])
def test_norm_then_relu_then_residual(name: str, relu: bool, residual: bool) -> None:
    norm = make_norm(name, 4, relu=relu).to(DTYPE)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(4))
    x, extra = images(3, 4, 5, 6, dtype=DTYPE), images(3, 4, 5, 6, dtype=DTYPE, seed=1)
    for training in (True, False):
        norm.train(training)
        expected = stock(norm, x)
        expected = expected.relu() if relu else expected
        expected = expected + extra if residual else expected
        torch.testing.assert_close(norm(x, residual=extra if residual else None), expected)


def test_affine_instance_norm_uses_its_first_channels() -> None:
    norm = InstanceNormAct(6, affine=True).to(DTYPE)
    with torch.no_grad():
        norm.weight[:4] = torch.tensor([1.0, -2.0, 0.5, 3.0])
        norm.weight[4:] = norm.bias[4:] = float("nan")
    x = images(2, 4, 5, 5, dtype=DTYPE)
    y = norm(x)
    torch.testing.assert_close(y, stock(norm, x))
    y.square().sum().backward()
    assert norm.weight.grad[:4].all()
    assert not norm.weight.grad[4:].any()
    assert not norm.bias.grad[4:].any()


def test_batch_norm_keeps_running_statistics() -> None:
    ours, twin = BatchNormAct(3, relu=True).to(DTYPE), nn.BatchNorm2d(3).to(DTYPE)
    x = images(4, 3, 5, 5, dtype=DTYPE, mean=2.0)
    assert torch.equal(ours(x), twin(x).relu())
    for name, value in twin.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_plain_instance_norm_holds_no_tensors_and_serves_any_width() -> None:
    norm = make_norm("instance", 4)
    assert not norm.state_dict()
    for channels in (1, 4, 9):
        x = images(1, channels, 4, 4)
        torch.testing.assert_close(norm(x), F.instance_norm(x))


def test_unknown_norm() -> None:
    with pytest.raises(ConfigError, match="norm='layer': expected instance, instance_affine, batch or none"):
        make_norm("layer", 4)
