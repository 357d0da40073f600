"""ESPNet, a small segmentation network, with the tensor names of its published files (depth p = 2, q = 8).

Source: Mehta et al. 2018, "ESPNet: efficient spatial pyramid of dilated convolutions for semantic segmentation", section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DILATIONS = (1, 2, 4, 8, 16)
_EPS = 1e-3


class _Conv(nn.Module):
    """A convolution without bias, at its published place."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _NormAct(nn.Module):
    """BatchNorm and PReLU, behind a 3x3 convolution if ``inputs`` says of what."""

    def __init__(self, channels: int, inputs: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False) if inputs else nn.Identity()
        self.bn, self.act = nn.BatchNorm2d(channels, eps=_EPS), nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _Pyramid(nn.Module):
    """Reduce, then five 3x3 convolutions of growing dilation, whose running sums are put side by side."""

    def __init__(self, inputs: int, outputs: int, *, down: bool = False, residual: bool = False) -> None:
        super().__init__()
        width = outputs // 5
        first = outputs - 4 * width
        self.c1 = _Conv(inputs, width, 3, stride=2) if down else _Conv(inputs, width, 1)
        for dilation in _DILATIONS:
            self.add_module(f"d{dilation}", _Conv(width, first if dilation == 1 else width, 3, dilation=dilation))
        self.residual = residual
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=_EPS) if down else _NormAct(outputs)
        self.act: nn.Module = nn.PReLU(outputs) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        parts = [self.get_submodule(f"d{dilation}")(reduced) for dilation in _DILATIONS]
        for index in range(2, len(parts)):
            parts[index] = parts[index] + parts[index - 1]
        y = torch.cat(parts, 1)
        return self.act(self.bn(x + y if self.residual else y))


class _Encoder(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.level1 = _NormAct(16, inputs=3, stride=2)
        self.b1 = _NormAct(19)
        self.level2_0 = _Pyramid(19, 64, down=True)
        self.level2 = nn.ModuleList([_Pyramid(64, 64, residual=True) for _ in range(2)])
        self.b2 = _NormAct(131)
        self.level3_0 = _Pyramid(131, 128, down=True)
        self.level3 = nn.ModuleList([_Pyramid(128, 128, residual=True) for _ in range(8)])
        self.b3 = _NormAct(256)
        self.classifier = _Conv(256, classes, 1)


class EspNet(nn.Module):
    """The whole network.

    Args:
        classes: outputs.
        early: whether the last convolution sees the normalised first level with the image (as the file for CamVid) or the first
            level alone (Cityscapes).
    """

    def __init__(self, classes: int, *, early: bool) -> None:
        super().__init__()
        self.early = early
        self.encoder = _Encoder(classes)
        self.level3_C = _Conv(131, classes, 1)
        self.br = nn.BatchNorm2d(classes, eps=_EPS)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(classes, classes, 2, 2, bias=False))
        self.combine_l2_l3 = nn.Sequential(_NormAct(2 * classes), _Pyramid(2 * classes, classes))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(classes, classes, 2, 2, bias=False), _NormAct(classes))
        self.conv = _NormAct(classes, inputs=classes + (19 if early else 16))
        self.classifier = nn.ConvTranspose2d(classes, classes, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes, H, W] of normalised images [N, 3, H, W] whose sides are multiples of 8."""
        net = self.encoder
        half = F.avg_pool2d(x, 3, 2, 1)
        first = net.level1(x)
        early = net.b1(torch.cat([first, half], 1))
        entry = y = net.level2_0(early)
        for layer in net.level2:
            y = layer(y)
        middle = net.b2(torch.cat([y, entry, F.avg_pool2d(half, 3, 2, 1)], 1))
        entry = y = net.level3_0(middle)
        for layer in net.level3:
            y = layer(y)
        deep = net.classifier(net.b3(torch.cat([entry, y], 1)))
        joined = torch.cat([self.level3_C(middle), self.up_l3(self.br(deep))], 1)
        y = self.up_l2(self.combine_l2_l3(joined))
        return self.classifier(self.conv(torch.cat([y, early if self.early else first], 1)))
