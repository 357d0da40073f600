"""The U-Net generator of pix2pix, with the tensor names of its published checkpoints.

Source: pix2pix (Isola et al. 2017), appendix 6.1.1: C64-C128-C256-C512-... with skips; LeakyReLU 0.2 going down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models.base import Generator, check_choice, check_range, register_network
from gancomp.nn import make_norm


@dataclass(frozen=True)
class UnetConfig:
    """A U-Net of ``n_levels`` halvings (7 for 128x128 images, 8 for 256x256) and base width ``ngf``."""

    ngf: int = 64
    n_levels: int = 8
    in_channels: int = 3
    out_channels: int = 3
    norm: str = "batch"
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("ngf", "in_channels", "out_channels"):
            check_range("unet", name, getattr(self, name), 1)
        check_range("unet", "n_levels", self.n_levels, 5, 12)
        check_choice("unet", "norm", self.norm, ("instance", "instance_affine", "batch", "none"))
        check_range("unet", "dropout", self.dropout, 0.0, 0.99)


class UnetLevel(nn.Module):
    """One halving and its mirror: ``concat(skip, up(level(down(skip))))`` with ``skip = leaky_relu(x)``.

    The skip carries the activated tensor because the published network activates it in place. ``level`` is the next one
    inside, or None for the innermost, which has no norm after its down-convolution.
    """

    def __init__(self, outer: int, inner: int, level: UnetLevel | None, config: UnetConfig, *, drop: bool) -> None:
        super().__init__()
        bias = config.norm != "batch"
        down = nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=bias)
        up = nn.ConvTranspose2d(inner if level is None else 2 * inner, outer, 4, stride=2, padding=1, bias=bias)
        middle = [] if level is None else [make_norm(config.norm, inner), level]
        # The Identity holds the published index of the LeakyReLU, which ``forward`` applies.
        self.model = nn.Sequential(nn.Identity(), down, *middle, nn.ReLU(), up, make_norm(config.norm, outer))
        if drop:
            self.model.append(nn.Dropout(config.dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [N, outer, H, W] to [N, 2 outer, H, W]."""
        skip = F.leaky_relu(x, 0.2)
        return torch.cat([skip, self.model(skip)], dim=1)


class UnetOutermost(nn.Module):
    """The first and last layer of the U-Net: image in, image out, no norm and no skip."""

    def __init__(self, level: UnetLevel, config: UnetConfig) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(config.in_channels, config.ngf, 4, stride=2, padding=1, bias=config.norm != "batch"),
            level,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * config.ngf, config.out_channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map the image [N, C_in, H, W] to [N, C_out, H, W]."""
        return self.model(x)


@register_network("unet", UnetConfig)
class UnetGenerator(Generator):
    """The pix2pix U-Net; H and W must be multiples of ``2 ** n_levels``.

    Dropout is active in training only. A network trained with BatchNorm and used on batch statistics (pix2pix's own test
    mode) equals one with ``instance_affine`` norm at batch size one.
    """

    config: UnetConfig

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        self.size_multiple = 2**config.n_levels
        ngf = config.ngf
        level = UnetLevel(8 * ngf, 8 * ngf, None, config, drop=False)
        for _ in range(config.n_levels - 5):
            level = UnetLevel(8 * ngf, 8 * ngf, level, config, drop=config.dropout > 0)
        for factor in (4, 2, 1):
            level = UnetLevel(factor * ngf, 2 * factor * ngf, level, config, drop=False)
        self.model = UnetOutermost(level, config)

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """What the convolutions give, normalised: going down from half the image's size to a pixel or so, and up again."""
        down, up = ["model.model.0"], []
        name = "model.model.1"
        for level in range(2, self.config.n_levels + 1):
            innermost = level == self.config.n_levels
            down.append(f"{name}.model.{1 if innermost else 2}")
            up.append(f"{name}.model.{4 if innermost else 6}")
            name += ".model.3"
        return (*down, *reversed(up))

    def forward(self, x: Tensor) -> Tensor:
        """Translate ``x`` [N, in_channels, H, W] in [-1, 1] into [N, out_channels, H, W] in [-1, 1]."""
        multiple = self.size_multiple
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x of shape {list(x.shape)}: expected [N, {self.config.in_channels}, H, W]")
        if x.shape[2] % multiple or x.shape[3] % multiple or min(x.shape[2:]) == 0:
            raise ConfigError(f"x of shape {list(x.shape)}: height and width must be multiples of {multiple}")
        return self.model(x)
