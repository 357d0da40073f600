"""Convolution of a label map without its one-hot image, and the edges of instances.

A 3x3 convolution of a one-hot image adds up nine columns of its weight, one per tap, so it is a gather: with 36 channels it
reads 36 times less than the convolution and multiplies nothing. Source: GauGAN's input is a one-hot label map with an edge
channel (Park et al. 2019, section 3; the edge channel is that of Wang et al. 2018, "pix2pixHD", section 3.4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.errors import ConfigError
from gancomp.nn.conv import SlicedConv2d

_TAPS = 9


def instance_edges(instances: Tensor) -> Tensor:
    """Where instances end: 1 at every pixel of which one of the four neighbours has another id, else 0.

    Args:
        instances: [N, 1, H, W] ids, of any integer dtype.

    Returns:
        [N, 1, H, W] of the same dtype.
    """
    edges = torch.zeros(instances.shape, dtype=torch.bool, device=instances.device)
    for dim in (2, 3):
        size = instances.shape[dim]
        if size > 1:
            differs = instances.narrow(dim, 1, size - 1) != instances.narrow(dim, 0, size - 1)
            edges.narrow(dim, 1, size - 1).logical_or_(differs)
            edges.narrow(dim, 0, size - 1).logical_or_(differs)
    return edges.to(instances.dtype)


def one_hot_labels(labels: Tensor, classes: int) -> Tensor:
    """The image that a label map stands for: ``classes`` channels of zeros and ones, and the edge channel if there is one.

    Args:
        labels: integers [N, 1, H, W], or [N, 2, H, W] with edges (0 or not 0) in the second channel.
        classes: labels are 0 to ``classes - 1``.

    Returns:
        float32 [N, classes, H, W], or [N, classes + 1, H, W].
    """
    image = F.one_hot(labels[:, 0].long(), classes).permute(0, 3, 1, 2).float()
    return image if labels.shape[1] == 1 else torch.cat([image, (labels[:, 1:] != 0).float()], 1)


def random_labels(shape: tuple[int, ...], classes: int, *, edges: bool) -> Tensor:
    """One fixed random label map, uint8 or int32 [N, 1 (+ 1), H, W], for timing; ``shape`` is that of its one-hot image."""
    n, _, height, width = shape
    random = torch.rand(n, 1 + edges, height, width, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([classes, 2][: 1 + edges]).view(1, -1, 1, 1)
    return (random * scale).floor().to(torch.uint8 if classes <= 256 else torch.int32)


def label_taps(labels: Tensor, classes: int) -> Tensor:
    """What :class:`LabelConv2d` gathers at every pixel: one row of its table for each of the nine taps.

    Args:
        labels: as of :func:`one_hot_labels`.
        classes: labels are 0 to ``classes - 1``.

    Returns:
        int32 [N, H, W, 9], shared by all convolutions of one size of a label map.
    """
    rows, outside = labels[:, 0].int(), classes
    if labels.shape[1] == 2:
        rows, outside = rows + classes * (labels[:, 1] != 0).int(), 2 * classes
    windows = F.pad(rows, (1, 1, 1, 1), value=outside).unfold(1, 3, 1).unfold(2, 3, 1)
    return windows.flatten(3) + torch.arange(0, _TAPS * (outside + 1), outside + 1, dtype=torch.int32, device=labels.device)


class LabelConv2d(SlicedConv2d):
    """A 3x3 convolution (stride 1, zeros padded) of a one-hot label map, with an edge channel behind if ``edges``.

    Args:
        classes: of the label map.
        out_channels: of the result; the first ``active_out_channels`` are made.
        edges: whether there is an edge channel.
    """

    def __init__(self, classes: int, out_channels: int, *, edges: bool) -> None:
        super().__init__(classes + edges, out_channels, 3, padding=1)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the image ``x`` [N, classes (+ 1), H, W], or what its :func:`label_taps` [N, H, W, 9] stand for.

        Returns:
            [N, active_out_channels, H, W]; equal for both but for rounding.
        """
        if x.is_floating_point():
            return super().forward(x)
        if x.dim() != 4 or x.shape[3] != _TAPS:
            raise ConfigError(f"x is {x.dtype} {list(x.shape)}: expected label taps [N, H, W, {_TAPS}]")
        y = F.embedding_bag(x.flatten(0, 2), self._table(), mode="sum")
        return y.view(*x.shape[:3], -1).permute(0, 3, 1, 2).contiguous()

    def _table(self) -> Tensor:
        """[9 taps x (labels + 1), out]: what a tap adds per label, without and with an edge, and zeros outside the image."""
        weight = self.weight[: self.active_out_channels].permute(2, 3, 1, 0).flatten(0, 1)  # [9, in, out]
        rows = weight[:, : self.classes]
        if self.in_channels > self.classes:
            rows = torch.cat([rows, rows + weight[:, self.classes :]], 1)
        assert self.bias is not None
        # The middle tap never lies outside: its rows carry the bias.
        middle = torch.zeros(_TAPS, 1, 1, dtype=weight.dtype, device=weight.device)
        middle[_TAPS // 2] = 1
        return F.pad(rows + middle * self.bias[: self.active_out_channels], (0, 0, 0, 1)).flatten(0, 1)
