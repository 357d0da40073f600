"""Label convolutions as a gather, against the convolution of the one-hot image; edges of instances, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gancomp.errors import ConfigError
from gancomp.nn import LabelConv2d, instance_edges, label_taps, one_hot_labels

from ..models.published_spade import label_map, one_hot


@pytest.mark.parametrize("edges", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (1, 1), (1, 7), (5, 2)])
@pytest.mark.parametrize("active", [6, 4])
def test_a_gather_is_the_convolution(edges: bool, height: int, width: int, active: int) -> None:
    """Values, and gradients of the whole weight, of which what is not in use gets zero."""
    labels = label_map(2, 5, 8, 12, edges=edges)[..., :height, :width]
    layer = LabelConv2d(5, 6, edges=edges).double()
    layer.active_out_channels = active
    image = one_hot(labels, 5).double()
    expected = F.conv2d(image, layer.weight[:active], layer.bias[:active], padding=1)
    y = layer(label_taps(labels, 5))
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer(image), expected)
    mixing = torch.randn(y.shape, dtype=torch.float64)
    gathered = torch.autograd.grad((y * mixing).sum(), [layer.weight, layer.bias])
    convolved = torch.autograd.grad((expected * mixing).sum(), [layer.weight, layer.bias])
    for ours, theirs in zip(gathered, convolved, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_hot_image() -> None:
    for edges in (True, False):
        labels = label_map(2, 5, 8, 12, edges=edges)
        assert torch.equal(one_hot_labels(labels, 5), one_hot(labels, 5))
    labels[0, 0, 0, 0] = 5
    with pytest.raises(RuntimeError):
        one_hot_labels(labels, 5)


def test_edges_are_where_a_neighbour_is_of_another_instance() -> None:
    instances = torch.randint(3, (2, 1, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    expected = torch.zeros_like(instances)
    for n, _, y, x in torch.cartesian_prod(*map(torch.arange, instances.shape)).tolist():
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < 7 and 0 <= u < 9 and instances[n, 0, v, u] != instances[n, 0, y, x]:
                expected[n, 0, y, x] = 1
    assert 0 < expected.sum() < expected.numel()
    edges = instance_edges(instances)
    assert edges.dtype == torch.int32
    assert torch.equal(edges, expected)
    assert instance_edges(torch.ones(1, 1, 1, 1, dtype=torch.uint8)).item() == 0


def test_integers_that_are_no_taps() -> None:
    with pytest.raises(ConfigError, match=r"expected label taps \[N, H, W, 9\]"):
        LabelConv2d(5, 6, edges=False)(torch.zeros(1, 1, 8, 8, dtype=torch.int64))
