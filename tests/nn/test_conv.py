"""Convolutions over the first channels of their weight: results, gradients, padding, and weights left where they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gancomp.nn import SeparableConv2d, SlicedConv2d, SlicedConvTranspose2d, SlicedDepthwiseConv2d, init_weights, make_norm
from gancomp.testing import images

MODES = {"reflect": "reflect", "replicate": "replicate", "zeros": "constant"}


def poison(parameter: nn.Parameter, *active: int) -> None:
    """Fill all but the first ``active`` entries of every dimension with NaN."""
    with torch.no_grad():
        kept = parameter[tuple(slice(0, n) for n in active)].clone()
        parameter.fill_(float("nan"))
        parameter[tuple(slice(0, n) for n in active)] = kept


def assert_gradient_is_of_the_slice(parameter: nn.Parameter, expected: torch.Tensor) -> None:
    """Full shape, the slice's gradient inside, exactly zero outside."""
    active = tuple(slice(0, n) for n in expected.shape)
    torch.testing.assert_close(parameter.grad[active], expected)
    outside = parameter.grad.clone()
    outside[active] = 0
    assert torch.equal(outside, torch.zeros_like(parameter))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 8), (4, 8), (6, 5), (1, 1)])
def test_sliced_conv(mode: str, inputs: int, outputs: int) -> None:
    conv = SlicedConv2d(6, 8, 3, stride=2, padding=1, padding_mode=mode).double()
    assert conv.active_out_channels == 8
    poison(conv.weight, outputs, inputs)
    poison(conv.bias, outputs)
    conv.active_out_channels = outputs
    x = images(2, inputs, 7, 9, dtype=torch.float64)
    y = conv(x)
    weight, bias = conv.weight[:outputs, :inputs].detach().clone(), conv.bias[:outputs].detach().clone()
    for leaf in (weight, bias):
        leaf.requires_grad_()
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), MODES[mode]), weight, bias, stride=2)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_gradient_is_of_the_slice(conv.weight, weight.grad)
    assert_gradient_is_of_the_slice(conv.bias, bias.grad)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 8), (4, 8), (6, 5), (1, 1)])
def test_sliced_transposed_conv(inputs: int, outputs: int) -> None:
    conv = SlicedConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1).double()
    poison(conv.weight, inputs, outputs)
    poison(conv.bias, outputs)
    conv.active_out_channels = outputs
    x = images(2, inputs, 4, 5, dtype=torch.float64)
    y = conv(x)
    assert y.shape == (2, outputs, 8, 10)
    weight, bias = conv.weight[:inputs, :outputs].detach().clone(), conv.bias[:outputs].detach().clone()
    for leaf in (weight, bias):
        leaf.requires_grad_()
    expected = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_gradient_is_of_the_slice(conv.weight, weight.grad)
    assert_gradient_is_of_the_slice(conv.bias, bias.grad)


def test_transposed_conv_has_one_output_size() -> None:
    with pytest.raises(TypeError, match="output_size is not supported"):
        SlicedConvTranspose2d(2, 2, 3)(torch.zeros(1, 2, 4, 4), [6, 6])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("channels", [5, 3, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sliced_depthwise_conv(mode: str, channels: int, dtype: torch.dtype) -> None:
    conv = SlicedDepthwiseConv2d(5, mode).to(dtype)
    poison(conv.weight, channels)
    poison(conv.bias, channels)
    x = images(2, channels, 6, 7, dtype=dtype)
    y = conv(x)
    weight, bias = conv.weight[:channels].detach().clone(), conv.bias[:channels].detach().clone()
    for leaf in (weight, bias):
        leaf.requires_grad_()
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), MODES[mode]), weight, bias, groups=channels)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_gradient_is_of_the_slice(conv.weight, weight.grad)
    assert_gradient_is_of_the_slice(conv.bias, bias.grad)


def test_no_weight_is_copied_when_channels_are_chosen() -> None:
    for conv in (SlicedConv2d(4, 6, 3), SlicedConvTranspose2d(4, 6, 3), SeparableConv2d(4, 6)):
        before = {name: parameter.data_ptr() for name, parameter in conv.named_parameters()}
        conv.active_out_channels = 2
        assert conv(torch.zeros(1, 3, 8, 8)).shape[1] == 2
        assert {name: parameter.data_ptr() for name, parameter in conv.named_parameters()} == before


def test_separable_conv_is_depthwise_norm_pointwise() -> None:
    separable = SeparableConv2d(4, 6).double()
    separable.active_out_channels = 5
    assert separable.conv[2].active_out_channels == separable.active_out_channels == 5
    x = images(2, 3, 6, 8, dtype=torch.float64)
    depthwise, _, pointwise = separable.conv
    middle = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), depthwise.weight[:3], depthwise.bias[:3], groups=3)
    expected = F.conv2d(F.instance_norm(middle), pointwise.weight[:5, :3], pointwise.bias[:5])
    torch.testing.assert_close(separable(x), expected)


@torch.no_grad()
def test_initial_weights() -> None:
    network = nn.Sequential(
        SlicedConv2d(64, 64, 3), SlicedConvTranspose2d(64, 64, 3), nn.BatchNorm2d(4096), make_norm("instance_affine", 4096)
    )
    init_weights(network, torch.Generator().manual_seed(7))
    for conv in network[:2]:
        assert abs(float(conv.weight.std()) - 0.02) < 0.0005
        assert abs(float(conv.weight.mean())) < 0.0005
        assert not conv.bias.any()
    for norm in network[2:]:
        assert abs(float(norm.weight.mean()) - 1) < 0.002
        assert abs(float(norm.weight.std()) - 0.02) < 0.002
        assert not norm.bias.any()


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (SeparableConv2d(4, 4) for _ in range(3))
    init_weights(first, torch.Generator().manual_seed(7))
    torch.randn(5)
    init_weights(second, torch.Generator().manual_seed(7))
    init_weights(other, torch.Generator().manual_seed(8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv[0].weight, other.conv[0].weight)
