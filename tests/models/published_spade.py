"""GauGAN's generator and discriminator in stock PyTorch layers, written from the paper's equations: the oracle of their tests.

Nothing of gancomp is used here. Names of layers are those of the published files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALVINGS = {"normal": 5, "more": 6, "most": 7}
SPECTRAL = {
    "": lambda layer: layer,
    "hook": nn.utils.spectral_norm,
    "parametrization": nn.utils.parametrizations.spectral_norm,
}


class PlaneNorm(nn.Module):
    """InstanceNorm without parameters; PyTorch's refuses maps of one pixel, of which zeros become."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.conv = nn.Sequential(depthwise, PlaneNorm(), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Modulation(nn.Module):
    """``statistics``: channels of the norm; where they are more than ``channels``, zeros are appended for it."""

    def __init__(self, channels: int, labels: int, hidden: int, norm: str, separable: bool, statistics: int) -> None:
        super().__init__()
        self.extra = statistics - channels
        batch = norm == "batch"
        self.param_free_norm = nn.BatchNorm2d(statistics, affine=False) if batch else PlaneNorm()
        self.mlp_shared = nn.Sequential(nn.Conv2d(labels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = (
            Separable(hidden, channels) if separable else nn.Conv2d(hidden, channels, 3, padding=1) for _ in range(2)
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        hidden = self.mlp_shared(F.interpolate(labels, x.shape[2:], mode="nearest"))
        normalised = self.param_free_norm(F.pad(x, (0, 0, 0, 0, 0, self.extra)))[:, : x.shape[1]]
        return normalised * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Block(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, hidden: int, up: bool, wide: tuple[int, int], **options) -> None:
        super().__init__()
        spectral = SPECTRAL[options.pop("spectral")]
        self.conv_0 = spectral(nn.Conv2d(inputs, inner, 3, padding=1))
        self.conv_1 = spectral(nn.Conv2d(inner, outputs, 3, padding=1))
        if up:
            self.conv_s = spectral(nn.Conv2d(inputs, outputs, 1, bias=False))
        options["hidden"] = hidden
        self.norm_0 = Modulation(inputs, statistics=wide[0], **options)
        self.norm_1 = Modulation(inner, statistics=wide[1], **options)
        if up:
            self.norm_s = Modulation(inputs, statistics=wide[0], **options)
        self.up = up

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        skip = self.conv_s(self.norm_s(x, labels)) if self.up else x
        y = self.conv_0(F.leaky_relu(self.norm_0(x, labels), 0.2))
        return skip + self.conv_1(F.leaky_relu(self.norm_1(y, labels), 0.2))


class Spade(nn.Module):
    """The generator of eight base channel counts; ``statistics``: the base width that its norms' statistics have."""

    def __init__(
        self,
        channels: tuple[int, ...],
        labels: int,
        *,
        hidden: int | None = None,
        upsampling: str = "more",
        norm: str = "batch",
        separable: bool = False,
        spectral: str = "",
        statistics: int | None = None,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        options = {"labels": labels, "norm": norm, "separable": separable, "spectral": spectral}
        stream, wide = 16 * channels[0], 16 * (statistics or 0)
        self.fc = nn.Conv2d(labels, stream, 3, padding=1)
        for name, c in zip(("head_0", "G_middle_0", "G_middle_1"), channels[1:4], strict=True):
            norms = (wide or stream, wide or 16 * c)
            self.add_module(name, Block(stream, 16 * c, stream, hidden or 2 * c, False, norms, **options))
        width = stream
        factors = [(f"up_{i}", 8 / 2**i, c) for i, c in enumerate(channels[4:])]
        if upsampling == "most":
            factors.append(("up_4", 0.5, channels[7]))
        for name, factor, c in factors:
            made = int(factor * c)
            norms = (wide or width, wide // 2 or made)
            self.add_module(name, Block(width, made, made, hidden or 2 * c, True, norms, **options))
            width, wide = made, wide // 2
        self.conv_img = nn.Conv2d(width, out_channels, 3, padding=1)

    def features(self, labels: Tensor) -> dict[str, Tensor]:
        size = [side // 2 ** HALVINGS[self.upsampling] for side in labels.shape[2:]]
        x = self.fc(F.interpolate(labels, size, mode="nearest"))
        maps = {}
        for name, block in self.named_children():
            if name in ("fc", "conv_img"):
                continue
            if name != "head_0" and (name, self.upsampling) != ("G_middle_1", "normal"):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            maps[name] = x = block(x, labels)
        return maps

    def forward(self, labels: Tensor) -> Tensor:
        *_, last = self.features(labels).values()
        return torch.tanh(self.conv_img(F.leaky_relu(last, 0.2)))


def label_map(n: int, classes: int, height: int, width: int, *, edges: bool = True, seed: int = 0) -> Tensor:
    """Integers [N, 1 or 2, H, W]: blobs of classes, and edges 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (n, 1, height // 4, width // 4), generator=generator)
    labels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = torch.rand(labels.shape, generator=generator) < 0.2
    labels = torch.where(noise, torch.randint(classes, labels.shape, generator=generator), labels)
    return torch.cat([labels, torch.randint(2, labels.shape, generator=generator)], 1) if edges else labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """What a label map stands for, pixel by pixel: float32 [N, classes (+ 1), H, W]."""
    image = torch.stack([(labels[:, 0] == c) for c in range(classes)], 1).float()
    return torch.cat([image, labels[:, 1:].float()], 1)
