"""PatchGAN discriminators, of one scale and of several.

Sources: pix2pix (Isola et al. 2017), section 3.2.2 and appendix 6.1.2; for several scales pix2pixHD (Wang et al. 2018), section
3.2, and GauGAN (Park et al. 2019), appendix A; spectral normalization (Miyato et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gancomp.errors import ConfigError
from gancomp.models.base import Network, check_choice, check_range, register_network
from gancomp.nn import WinogradConv2d, make_norm


@dataclass(frozen=True)
class DiscriminatorConfig:
    """A patch discriminator of ``n_layers`` stride-2 layers (3: the 70x70 PatchGAN; 0: the 1x1 PixelGAN).

    ``in_channels`` is 6 for pairs of RGB images (input and output concatenated).
    """

    in_channels: int = 6
    ndf: int = 128
    n_layers: int = 3
    norm: str = "instance"

    def __post_init__(self) -> None:
        check_range("patch", "in_channels", self.in_channels, 1)
        check_range("patch", "ndf", self.ndf, 1)
        check_range("patch", "n_layers", self.n_layers, 0, 6)
        check_choice("patch", "norm", self.norm, ("instance", "batch", "none"))

    @property
    def min_size(self) -> int:
        """Smallest image side that gives a score: each of the last two convolutions takes one pixel from the map's side."""
        return 1 if self.n_layers == 0 else 3 * 2**self.n_layers


@register_network("patch", DiscriminatorConfig)
class PatchDiscriminator(Network):
    """4x4 convolutions with LeakyReLU 0.2 that score overlapping patches; every score is a logit.

    Tensor names are the published ones: ``model.0, 2, 5, 8, ...`` (PixelGAN: ``net.0, 2, 5``).
    """

    config: DiscriminatorConfig

    @property
    def judges_images_alone(self) -> bool:
        """Whether a score depends on one image alone; it does not where statistics are those of a batch."""
        return self.config.norm != "batch"

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        bias = config.norm != "batch"
        ndf = config.ndf
        if config.n_layers == 0:
            self.net = nn.Sequential(
                nn.Conv2d(config.in_channels, ndf, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
                make_norm(config.norm, 2 * ndf),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * ndf, 1, 1, bias=bias),
            )
            return
        layers: list[nn.Module] = [WinogradConv2d(config.in_channels, ndf, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for depth in range(1, config.n_layers + 1):
            inputs, width = width, ndf * min(2**depth, 8)
            stride = 2 if depth < config.n_layers else 1
            layers += [
                WinogradConv2d(inputs, width, stride=stride, padding=1, bias=bias),
                make_norm(config.norm, width),
                nn.LeakyReLU(0.2),
            ]
        self.model = nn.Sequential(*layers, WinogradConv2d(width, 1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Score ``x`` [N, in_channels, H, W] in [-1, 1]; returns logits [N, 1, H', W']."""
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x of shape {list(x.shape)}: expected [N, {self.config.in_channels}, H, W]")
        if min(x.shape[2:]) < self.config.min_size:
            raise ConfigError(
                f"x of shape {list(x.shape)}: a discriminator of {self.config.n_layers} layers "
                f"needs sides of at least {self.config.min_size}"
            )
        return self.net(x) if self.config.n_layers == 0 else self.model(x)


@dataclass(frozen=True)
class MultiscaleConfig:
    """Equal patch discriminators of ``n_layers`` convolutions and a last one, each on an image half as large as the one before.

    ``in_channels`` is 39 for pairs of a Cityscapes label map (35 classes and edges) and an RGB image.
    """

    in_channels: int = 39
    ndf: int = 64
    n_layers: int = 4
    n_scales: int = 2
    norm: str = "instance"
    spectral: bool = True

    def __post_init__(self) -> None:
        check_range("multiscale", "in_channels", self.in_channels, 1)
        check_range("multiscale", "ndf", self.ndf, 1)
        check_range("multiscale", "n_layers", self.n_layers, 2, 6)
        check_range("multiscale", "n_scales", self.n_scales, 1, 5)
        check_choice("multiscale", "norm", self.norm, ("instance", "none"))
        check_choice("multiscale", "spectral", self.spectral, (True, False))

    @property
    def min_size(self) -> int:
        """Smallest image side of which the last map of the smallest scale is not one pixel alone."""
        return 2 ** (self.n_scales + self.n_layers - 2)


@register_network("multiscale", MultiscaleConfig)
class MultiscaleDiscriminator(Network):
    """4x4 convolutions with LeakyReLU 0.2 at every scale; all maps are returned, for the feature matching loss.

    At every scale: ``n_layers`` convolutions of ndf, 2 ndf, 4 ndf, 8 ndf channels, all but the last with stride 2, and then one
    of a single channel, a logit per patch. With ``spectral`` every weight is divided by its largest singular value.
    """

    config: MultiscaleConfig
    scales: nn.ModuleList

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = nn.ModuleList([self._scale() for _ in range(config.n_scales)])

    def _scale(self) -> nn.ModuleList:
        config = self.config

        def conv(inputs: int, outputs: int, stride: int, *, bias: bool = True) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=2, bias=bias)
            return spectral_norm(layer) if config.spectral else layer

        layers, width = [nn.Sequential(conv(config.in_channels, config.ndf, 2), nn.LeakyReLU(0.2))], config.ndf
        for depth in range(1, config.n_layers):
            inputs, width = width, config.ndf * min(2**depth, 8)
            stride = 2 if depth < config.n_layers - 1 else 1
            # InstanceNorm takes away what a bias adds.
            inner = conv(inputs, width, stride, bias=config.norm == "none")
            layers.append(nn.Sequential(inner, make_norm(config.norm, width), nn.LeakyReLU(0.2)))
        return nn.ModuleList([*layers, nn.Sequential(conv(width, 1, 1))])

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """Score ``x`` [N, in_channels, H, W].

        Returns:
            For every scale, the largest first, the maps of its layers; the last is the logits [N, 1, H', W'].
        """
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x of shape {list(x.shape)}: expected [N, {self.config.in_channels}, H, W]")
        if min(x.shape[2:]) < self.config.min_size:
            raise ConfigError(f"x of shape {list(x.shape)}: this discriminator needs sides of at least {self.config.min_size}")
        scores: list[list[Tensor]] = []
        for index, scale in enumerate(self.scales):
            # The average is of what lies in the image.
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) if index else x
            maps = [x]
            for layer in scale.children():
                maps.append(layer(maps[-1]))
            scores.append(maps[1:])
        return scores
