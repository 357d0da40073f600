"""The checks of gancomp.testing fail when they should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gancomp.testing import (
    LAYOUTS,
    WinogradConv2d,
    allocations,
    assert_accurate,
    forward_backward,
    images,
    laid_out,
    peak_allocated,
    poisoned_outputs,
    tolerance,
    unchanged,
    with_inactive,
    with_padding_apart,
    with_winograd,
)


def test_layouts_hold_the_same_values_at_other_addresses():
    values = images(2, 3, 4, 5)
    made = {layout: images(2, 3, 4, 5, layout=layout) for layout in LAYOUTS}
    assert all(torch.equal(tensor, values) for tensor in made.values())
    assert made["contiguous"].is_contiguous()
    assert made["contiguous"].data_ptr() % 64 == 0
    assert made["offset"].is_contiguous()
    assert made["offset"].data_ptr() % 16 != 0
    assert made["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert made["permuted"].transpose(2, 3).is_contiguous()
    assert made["channel_slice"].stride() == (6 * 20, 20, 5, 1)
    assert made["crop"].stride() == (3 * 28, 28, 7, 1)
    with pytest.raises(ValueError, match="layout='sparse'"):
        laid_out(values, "sparse")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_round_an_input_is_nan(layout):
    x = images(2, 3, 4, 5, layout=layout)
    whole = torch.empty(0).set_(x.untyped_storage())
    assert int(whole.isfinite().sum()) == x.numel()
    assert whole[0].isnan()
    assert whole[-1].isnan()


def test_images_depend_on_the_seed_alone():
    assert torch.equal(images(1, 2, 3, 4, seed=5), images(1, 2, 3, 4, seed=5))
    assert not torch.equal(images(1, 2, 3, 4, seed=5), images(1, 2, 3, 4, seed=6))
    assert float(images(1, 1, 64, 64, mean=100.0).mean()) == pytest.approx(100.0, abs=0.1)


def test_full_weights_end_in_nan():
    full = with_inactive(torch.ones(2, 1, 3, 3), spare=4)
    assert full.shape == (6, 1, 3, 3)
    assert torch.equal(full[:2], torch.ones(2, 1, 3, 3))
    assert full[2:].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_to_an_input_or_beyond_it_are_seen(layout):
    x = images(1, 2, 3, 4, layout=layout)
    with unchanged(x, None):
        x.clone().zero_()
    with pytest.raises(AssertionError, match="the memory of input 0 was written to"), unchanged(x):
        x[0, 0, 0, 0] += 1
    beyond = torch.empty(0).set_(x.untyped_storage())
    with pytest.raises(AssertionError, match="the memory of input 1 was written to"), unchanged(images(1, 1, 1, 1), x):
        beyond[-1] = 0


def test_uninitialised_memory_is_poisoned_inside_alone():
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_outputs():
        assert torch.empty(1000).isnan().all()
        assert images(1, 1, 2, 2).new_empty(3, 3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_the_tolerance_is_twice_pytorchs_error_and_one_rounding():
    exact = torch.tensor([4.0, 1.0], dtype=torch.float64)
    stock = torch.tensor([4.0, 1.25])
    assert tolerance(stock, exact) == 2 * 0.25 + 4 * 2.0**-23
    assert_accurate(torch.tensor([4.5, 1.0]), stock, exact)
    with pytest.raises(AssertionError, match=r"y: error 0\.51, allowed 0\.5, largest value 4"):
        assert_accurate(torch.tensor([4.51, 1.0]), stock, exact, "y")


@pytest.mark.parametrize(
    "actual", [torch.tensor([4.0, float("nan")]), torch.tensor([4.0]), torch.tensor([4.0, 1.0], dtype=torch.float64)]
)
def test_nan_other_shapes_and_other_types_are_not_accurate(actual):
    with pytest.raises(AssertionError):
        assert_accurate(actual, torch.tensor([4.0, 1.25]), torch.tensor([4.0, 1.0], dtype=torch.float64))


def test_a_useless_reference_is_refused():
    for exact in (torch.tensor([1.0]), torch.tensor([float("nan")], dtype=torch.float64)):
        with pytest.raises(ValueError, match="the reference is not finite float64"):
            assert_accurate(torch.tensor([1.0]), torch.tensor([1.0]), exact)


def test_forward_and_backward():
    x, w = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    y, grad_x, grad_w = forward_backward(lambda x, none, w: x * w, torch.tensor([1.0, 10.0]), x, None, w)
    assert y.tolist() == [10.0, 21.0]
    assert grad_x.tolist() == [5.0, 70.0]
    assert grad_w.tolist() == [2.0, 30.0]
    assert x.grad is None


def test_allocations_are_counted():
    x = torch.zeros(100)
    assert allocations(lambda: x[10:].view(9, 10)) == []
    assert allocations(lambda: (x.clone(), torch.empty(10, dtype=torch.float64))) == [400, 80]


def test_the_peak_of_allocations():
    def function() -> torch.Tensor:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(700)
        return second.sum() + third.sum()

    assert peak_allocated(function) == 6000


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(12, 16), (13, 11), (3, 3)])
def test_winograds_convolution_is_the_convolution(size, bias):
    conv = nn.Conv2d(5, 7, 3, bias=bias).double()
    x = images(2, 5, *size, dtype=torch.float64)
    expected, y = conv(x), WinogradConv2d(conv)(x)
    assert y.shape == expected.shape
    assert (y - expected).abs().max() < 1e-13 * expected.abs().max()


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 14), (8, 5), (4, 4)])
def test_winograds_4x4_convolution_is_the_convolution(size, stride, padding):
    conv = nn.Conv2d(5, 7, 4, stride, padding).double()
    x, grad = images(2, 5, *size, dtype=torch.float64), images(*conv(images(2, 5, *size, dtype=torch.float64)).shape).double()
    expected = forward_backward(conv, grad, x)
    weight_gradient = torch.autograd.grad(conv(x), conv.weight, grad)[0]
    winograd = WinogradConv2d(conv)
    actual = forward_backward(winograd, grad, x)
    pairs = [*zip(actual, expected, strict=True), (torch.autograd.grad(winograd(x), conv.weight, grad)[0], weight_gradient)]
    assert all((one - other).abs().max() < 1e-13 * other.abs().max() for one, other in pairs)


def test_winograds_convolution_loses_digits():
    """Why it is a measure of its own: the direct sum's error does not allow for it."""
    conv, x = nn.Conv2d(64, 64, 3), images(1, 64, 34, 34)
    with torch.no_grad():
        direct, y = conv(x), WinogradConv2d(conv)(x)
        exact = conv.double()(x.double())
    assert 2 * tolerance(direct, exact) < (y.double() - exact).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"kernel_size": 1},
        {"kernel_size": 4, "stride": 3},
        {"kernel_size": 4, "stride": (1, 2)},
        {"kernel_size": 4, "dilation": 2},
        {"kernel_size": 4, "padding_mode": "reflect", "padding": 1},
    ],
    ids=str,
)
def test_winograds_method_is_for_few_kinds_of_convolution(options):
    conv = nn.Conv2d(32, 32, **{"kernel_size": 3, **options})
    with pytest.raises(ValueError, match="expected a 3x3 convolution of stride 1 without padding, or a 4x4 one"):
        WinogradConv2d(conv)
    assert with_winograd(nn.Sequential(conv))[0] is conv


def test_padding_gets_a_layer_of_its_own():
    inner = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 40, 3, padding=1), nn.Conv2d(40, 8, 1), nn.Conv2d(8, 8, 3))
    network = nn.Sequential(nn.Conv2d(3, 32, 3, 2, padding=1), inner)
    x = images(2, 3, 13, 17)
    expected = network(x)
    apart = with_padding_apart(network)
    assert torch.equal(apart(x), expected)
    assert [type(layer) for layer in (apart[0], *inner)] == [nn.Sequential, nn.ReLU, nn.Sequential, nn.Conv2d, nn.Conv2d]
    assert isinstance(with_winograd(apart)[1][1][1], WinogradConv2d)


def test_convolutions_with_many_channels_are_replaced_at_any_depth():
    inner = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 40, 3), nn.Conv2d(40, 31, 3))
    network = with_winograd(nn.Sequential(nn.Conv2d(3, 32, 3), inner))
    assert [type(layer) for layer in (network[0], *inner)] == [nn.Conv2d, nn.ReLU, WinogradConv2d, nn.Conv2d]
    assert isinstance(with_winograd(nn.Sequential(nn.Conv2d(3, 32, 3)), fewest=3)[0], WinogradConv2d)
