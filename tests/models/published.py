"""The published networks in stock PyTorch layers, written from their descriptions: the oracle of models and checkpoints.

Nothing of gancomp is used here. Names and order of layers are those of the published files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": nn.ZeroPad2d}


def norm_layer(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    return nn.InstanceNorm2d(channels, affine=kind == "instance_affine", track_running_stats=kind == "instance_tracked")


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(inputs, inputs, 3, groups=inputs)
        self.conv = nn.Sequential(depthwise, nn.InstanceNorm2d(inputs), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, stream: int, hidden: int, norm: str, pad: str, separable: bool, dropout: float | None) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Module:
            return Separable(inputs, outputs) if separable else nn.Conv2d(inputs, outputs, 3, bias=norm != "batch")

        # Files of pytorch-CycleGAN-and-pix2pix have the dropout layer only where dropout is used.
        between = [] if dropout is None else [nn.Dropout(dropout)]
        self.conv_block = nn.Sequential(
            PADS[pad](1),
            conv(stream, hidden),
            norm_layer(norm, hidden),
            nn.ReLU(),
            *between,
            PADS[pad](1),
            conv(hidden, stream),
            norm_layer(norm, stream),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Resnet(nn.Module):
    """Two halvings, residual blocks, two doublings; ``hidden`` has one width per block."""

    def __init__(
        self,
        stem: int,
        down: int,
        stream: int,
        hidden: tuple[int, ...],
        up: int,
        last: int,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        norm: str = "instance",
        padding: str = "reflect",
        separable: bool = False,
        dropout: float | None = 0.0,
    ) -> None:
        super().__init__()
        bias = norm != "batch"

        def after(channels: int) -> list[nn.Module]:
            return [norm_layer(norm, channels), nn.ReLU()]

        self.model = nn.Sequential(
            PADS[padding](3),
            nn.Conv2d(in_channels, stem, 7, bias=bias),
            *after(stem),
            nn.Conv2d(stem, down, 3, stride=2, padding=1, bias=bias),
            *after(down),
            nn.Conv2d(down, stream, 3, stride=2, padding=1, bias=bias),
            *after(stream),
            *[Block(stream, width, norm, padding, separable, dropout) for width in hidden],
            nn.ConvTranspose2d(stream, up, 3, stride=2, padding=1, output_padding=1, bias=bias),
            *after(up),
            nn.ConvTranspose2d(up, last, 3, stride=2, padding=1, output_padding=1, bias=bias),
            *after(last),
            PADS[padding](3),
            nn.Conv2d(last, out_channels, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def resnet(ngf: int, n_blocks: int = 9, **options) -> Resnet:
    """The plain generator of base width ``ngf``."""
    return Resnet(ngf, 2 * ngf, 4 * ngf, (4 * ngf,) * n_blocks, 2 * ngf, ngf, **options)


class UnetPart(nn.Module):
    """pix2pix's recursive block. Its LeakyReLU works in place, so the skip carries the activated tensor."""

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: UnetPart | None,
        norm: str,
        dropout: float = 0.0,
        outermost: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.outermost = outermost is not None
        bias = norm != "batch"
        inputs, outputs = outermost or (outer, outer)
        down = nn.Conv2d(inputs, inner, 4, stride=2, padding=1, bias=bias)
        width = inner if inside is None else 2 * inner
        up = nn.ConvTranspose2d(width, outputs, 4, stride=2, padding=1, bias=bias or self.outermost)
        if self.outermost:
            layers = [down, inside, nn.ReLU(inplace=True), up, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2, inplace=True), down, nn.ReLU(inplace=True), up, norm_layer(norm, outer)]
        else:
            layers = [nn.LeakyReLU(0.2, inplace=True), down, norm_layer(norm, inner), inside]
            layers += [nn.ReLU(inplace=True), up, norm_layer(norm, outer)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Unet(nn.Module):
    def __init__(
        self, ngf: int, levels: int, in_channels: int = 3, out_channels: int = 3, norm: str = "batch", dropout: float = 0.5
    ) -> None:
        super().__init__()
        part = UnetPart(8 * ngf, 8 * ngf, None, norm)
        for _ in range(levels - 5):
            part = UnetPart(8 * ngf, 8 * ngf, part, norm, dropout)
        for outer in (4 * ngf, 2 * ngf, ngf):
            part = UnetPart(outer, 2 * outer, part, norm)
        self.model = UnetPart(out_channels, ngf, part, norm, outermost=(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Patch(nn.Module):
    """The discriminator of ``n`` stride-2 layers; 0 is the PixelGAN."""

    def __init__(self, in_channels: int, ndf: int, n: int, norm: str) -> None:
        super().__init__()
        bias = norm != "batch"
        if n == 0:
            self.net = nn.Sequential(
                nn.Conv2d(in_channels, ndf, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
                norm_layer(norm, 2 * ndf),
                nn.LeakyReLU(0.2),
                nn.Conv2d(2 * ndf, 1, 1, bias=bias),
            )
            return
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [ndf * min(2**i, 8) for i in range(n + 1)]
        for i in range(1, n + 1):
            layers += [nn.Conv2d(widths[i - 1], widths[i], 4, 2 if i < n else 1, 1, bias=bias)]
            layers += [norm_layer(norm, widths[i]), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Conv2d(widths[n], 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.net if hasattr(self, "net") else self.model)(x)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor a value that shows whether it is used: scales near one, statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.3 * noise.abs())
            elif tensor.dim() == 1:
                tensor.copy_(0.2 * noise + (1 if name.endswith(".weight") else 0))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return network


def without_biases(network: nn.Module) -> dict[str, Tensor]:
    """The state of a generator built without norm: only the last convolution and the parts of separable ones have biases.

    The biases left out become zero in ``network`` too.
    """
    state = network.state_dict()
    biases = [name for name in state if name.endswith(".bias") and not name.endswith((".conv.0.bias", ".conv.2.bias"))]
    with torch.no_grad():
        for name in biases[:-1]:
            state.pop(name).zero_()
    return state


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all saved tensors."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
