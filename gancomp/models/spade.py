"""GauGAN's SPADE generator: label maps in, photographs out, at any widths, dense or with separable modulations.

Tensor names are those of the published checkpoints. Source: Park et al. 2019, "Semantic image synthesis with
spatially-adaptive normalization", sections 3 and A; GAN Compression, section 4.1 and the released configurations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models.base import check_choice, check_range, register_network
from gancomp.models.channels import format_config, parse_config
from gancomp.models.sliced import SlicedGenerator
from gancomp.nn import LabelConv2d, ModulatedNorm, SeparableConv2d, SlicedConv2d, label_taps, one_hot_labels, random_labels

SLOPE = 0.2
# Halvings between the image and the smallest map.
_HALVINGS = {"normal": 5, "more": 6, "most": 7}
_UP = (8, 4, 2, 1)


@dataclass(frozen=True)
class SpadeConfig:
    """Every width of a SPADE generator, in real channels.

    ``stream`` is the width of the first map and of what the first three blocks add to, ``inner`` that inside them, ``up`` the
    output widths of the following ones (four; five with ``upsampling='most'``). ``embed[i]`` is the width that block i gives
    to the label map before it makes scales and shifts of it. ``separable`` decomposes the convolutions that make those.

    The label map has ``label_nc`` classes, and an edge channel behind if ``instance_edges``. ``upsampling`` says how often the
    smallest map is doubled: 5, 6 or 7 times. Nothing else depends on the size of the images; ``crop_size`` (their width in
    pixels) and ``aspect_ratio`` (width over height) record what the network was trained on.
    """

    stream: int = 1024
    inner: tuple[int, ...] = (1024,) * 3
    up: tuple[int, ...] = (512, 256, 128, 64)
    embed: tuple[int, ...] = (128,) * 7
    label_nc: int = 35
    instance_edges: bool = True
    out_channels: int = 3
    upsampling: str = "more"
    crop_size: int = 512
    aspect_ratio: float = 2.0
    separable: bool = False
    norm: str = "batch"

    def __post_init__(self) -> None:
        for name in ("stream", "label_nc", "out_channels", "crop_size"):
            check_range("spade", name, getattr(self, name), 1)
        check_choice("spade", "upsampling", self.upsampling, tuple(_HALVINGS))
        check_choice("spade", "norm", self.norm, ("batch", "instance"))
        check_choice("spade", "instance_edges", self.instance_edges, (True, False))
        check_range("spade", "aspect_ratio", self.aspect_ratio, 1e-3, 1e3)
        blocks = len(_UP) + (self.upsampling == "most")
        for name, count in (("inner", 3), ("up", blocks), ("embed", 3 + blocks)):
            widths = getattr(self, name)
            if len(widths) != count:
                raise ConfigError(f"spade: {name}={widths}: expected {count} widths with upsampling={self.upsampling!r}")
            for width in widths:
                check_range("spade", name, width, 1)

    @classmethod
    def uniform(cls, ngf: int, *, separable: bool = False, **fields) -> SpadeConfig:
        """The plain network of base width ``ngf``: 16 ngf channels down to ngf, label maps of width 2 ngf."""
        check_range("spade", "ngf", ngf, 1)
        return cls.from_channels((ngf,) * 8, separable=separable, **fields)

    @classmethod
    def from_channels(cls, channels: Sequence[int], *, separable: bool = True, **fields) -> SpadeConfig:
        """Widths from the eight base channel counts of a configuration.

        Stream 16 c0; the first three blocks 16 c1, 16 c2 and 16 c3 inside; the following ones 8 c4, 4 c5, 2 c6 and c7, and half
        of c7 the last of ``upsampling='most'``. A block's label maps have twice its count.

        Raises:
            ConfigError: wrong number of channel counts.
        """
        channels = tuple(channels)
        for count in channels:
            check_range("spade", "config_str", count, 1)
        if len(channels) != 8:
            raise ConfigError(f"config_str={format_config(channels)!r}: has {len(channels)} numbers, a SPADE generator takes 8")
        up = [factor * count for factor, count in zip(_UP, channels[4:], strict=True)]
        embed = [2 * count for count in channels[1:]]
        if fields.get("upsampling") == "most":
            up.append(max(channels[7] // 2, 1))
            embed.append(2 * channels[7])
        return cls(
            stream=16 * channels[0],
            inner=tuple(16 * count for count in channels[1:4]),
            up=tuple(up),
            embed=tuple(embed),
            separable=separable,
            **fields,
        )

    @classmethod
    def parse(cls, text: str, **options) -> SpadeConfig:
        """As :meth:`from_channels`, from a ``config_str``."""
        return cls.from_channels(parse_config(text), **options)

    def with_channels(self, channels: Sequence[int]) -> SpadeConfig:
        """The same network at the widths of a configuration; see :meth:`from_channels`."""
        return self.with_widths([*SpadeConfig.from_channels(channels, upsampling=self.upsampling).widths.values()])

    @property
    def widths(self) -> dict[str, int]:
        """Every width that a sub-network may have less of, by name."""
        lists = {f"{name}[{i}]": width for name in ("inner", "up", "embed") for i, width in enumerate(getattr(self, name))}
        return {"stream": self.stream, **lists}

    def with_widths(self, widths: Sequence[int]) -> SpadeConfig:
        """The same network at other widths, in the order of :attr:`widths`."""
        first, second = 1 + len(self.inner), 1 + len(self.inner) + len(self.up)
        parts = (tuple(widths[1:first]), tuple(widths[first:second]), tuple(widths[second:]))
        return dataclasses.replace(self, stream=widths[0], inner=parts[0], up=parts[1], embed=parts[2])

    @property
    def slots(self) -> int:
        """How many base channel counts a configuration has."""
        return 8

    @property
    def channels(self) -> tuple[int, ...] | None:
        """The base channel counts that give these widths, or None where no configuration does."""
        scaled = [(self.stream, 16), *((width, 16) for width in self.inner), *zip(self.up, _UP, strict=False)]
        channels = tuple(max(width // factor, 1) for width, factor in scaled)
        return channels if self.with_channels(channels) == self else None

    @property
    def config_str(self) -> str | None:
        """The channel counts as text, or None where no configuration gives these widths."""
        return None if self.channels is None else format_config(self.channels)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input: the classes, and the edge channel."""
        return self.label_nc + self.instance_edges

    @property
    def size_multiple(self) -> int:
        """What heights and widths of the images are multiples of."""
        return 2 ** _HALVINGS[self.upsampling]

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width of the images it was trained on: multiples of :attr:`size_multiple`, as near as can be."""
        width = max(self.crop_size // self.size_multiple, 1)
        return max(round(width / self.aspect_ratio), 1) * self.size_multiple, width * self.size_multiple


class Spade(nn.Module):
    """A norm whose scale and shift two convolutions make of the label map, and the activation behind it."""

    def __init__(self, channels: int, embed: int, config: SpadeConfig) -> None:
        super().__init__()

        def conv() -> nn.Module:
            if config.separable:
                return SeparableConv2d(embed, channels, "zeros")
            return SlicedConv2d(embed, channels, 3, padding=1)

        self.param_free_norm = ModulatedNorm(channels, config.norm)
        self.mlp_shared = nn.Sequential(LabelConv2d(config.label_nc, embed, edges=config.instance_edges), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = conv(), conv()

    def forward(self, x: Tensor, labels: Tensor, slope: float) -> Tensor:
        """Normalise and modulate ``x`` [N, C, H, W] by the label map of its size (an image, or label taps)."""
        embedded = self.mlp_shared(labels)
        return self.param_free_norm(x, self.mlp_gamma(embedded), self.mlp_beta(embedded), slope)

    def use(self, channels: int, embed: int) -> None:
        """Use the first channels."""
        self.mlp_shared[0].active_out_channels = embed
        self.mlp_gamma.active_out_channels = self.mlp_beta.active_out_channels = channels


class SpadeBlock(nn.Module):
    """``s(x) + conv(act(spade(conv(act(spade(x))))))``; ``s`` is a modulated 1x1 convolution if ``shortcut``, else nothing."""

    def __init__(self, inputs: int, inner: int, outputs: int, embed: int, config: SpadeConfig, *, shortcut: bool) -> None:
        super().__init__()
        self.conv_0 = SlicedConv2d(inputs, inner, 3, padding=1)
        self.conv_1 = SlicedConv2d(inner, outputs, 3, padding=1)
        self.norm_0 = Spade(inputs, embed, config)
        self.norm_1 = Spade(inner, embed, config)
        self.conv_s = SlicedConv2d(inputs, outputs, 1, bias=False) if shortcut else None
        self.norm_s = Spade(inputs, embed, config) if shortcut else None

    def inside(self, x: Tensor, labels: Tensor) -> Tensor:
        """The first half: what the second norm is given, [N, inner, H, W]."""
        return self.conv_0(self.norm_0(x, labels, SLOPE))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Refine ``x`` [N, inputs, H, W] into [N, outputs, H, W]."""
        skip = x if self.conv_s is None or self.norm_s is None else self.conv_s(self.norm_s(x, labels, 1.0))
        return skip + self.conv_1(self.norm_1(self.inside(x, labels), labels, SLOPE))

    def use(self, inputs: int, inner: int, outputs: int, embed: int) -> None:
        """Use the first channels."""
        self.conv_0.active_out_channels, self.conv_1.active_out_channels = inner, outputs
        self.norm_0.use(inputs, embed)
        self.norm_1.use(inner, embed)
        if self.conv_s is not None and self.norm_s is not None:
            self.conv_s.active_out_channels = outputs
            self.norm_s.use(inputs, embed)


@register_network("spade", SpadeConfig)
class SpadeGenerator(SlicedGenerator):
    """A convolution of the label map at its smallest, then blocks that the label map modulates, with doublings between.

    The label map comes as its one-hot image, floating point [N, in_channels, H, W], or as integers: [N, 1, H, W] labels, or
    [N, 2, H, W] with edges (0 or not 0) behind, if the network has an edge channel. Both give equal images but for rounding;
    the integers take less time and memory. Heights and widths are multiples of ``size_multiple``.
    """

    config: SpadeConfig

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config, self.size_multiple = config, config.size_multiple
        self.fc = LabelConv2d(config.label_nc, config.stream, edges=config.instance_edges)
        for (name, _), widths in zip(_plan(config), _block_widths(config), strict=True):
            self.add_module(name, SpadeBlock(*widths, config, shortcut=name.startswith("up_")))
        self.conv_img = SlicedConv2d(config.up[-1], config.out_channels, 3, padding=1)

    def blocks(self) -> Iterator[tuple[str, SpadeBlock, int]]:
        """``(name, block, stride)``; a map is doubled before a block whose stride, in pixels of the image, is half the last."""
        stride = self.size_multiple
        for name, doubled in _plan(self.config):
            stride = stride // 2 if doubled else stride
            yield name, getattr(self, name), stride

    def forward(self, x: Tensor) -> Tensor:
        """Paint the label map ``x`` as [N, out_channels, H, W] in [-1, 1]."""
        self.check_input(x)
        last = self.size_multiple
        labels = self.labels_at(x, last)
        y = self.fc(labels)
        for _, block, stride in self.blocks():
            if stride < last:
                labels, y, last = self.labels_at(x, stride), double(y), stride
            y = block(y, labels)
        return torch.tanh(self.conv_img(F.leaky_relu(y, SLOPE)))

    def feature_channels(self) -> dict[str, int]:
        """Channel counts of :meth:`forward_features`, by layer name."""
        return {"head_0": self.config.stream, "G_middle_1": self.config.stream, "up_1": self.config.up[1]}

    def labels_at(self, x: Tensor, stride: int) -> Tensor:
        """The label map of every ``stride``-th pixel, as the label convolutions take it.

        Integers are gathered from at inference. Where gradients are wanted they become their one-hot image: the backward pass
        of a gather, which scatters, takes several times as long as that of the convolution.
        """
        x = x[..., ::stride, ::stride]
        if x.is_floating_point():
            return x
        classes = self.config.label_nc
        return one_hot_labels(x, classes).to(self.fc.weight.dtype) if torch.is_grad_enabled() else label_taps(x, classes)

    def example(self, shape: tuple[int, int, int, int]) -> Tensor:
        """One fixed random label map in integers, for timing; ``shape`` is that of its one-hot image."""
        return random_labels(shape, self.config.label_nc, edges=self.config.instance_edges)

    def check_input(self, x: Tensor) -> None:
        """Raise a ConfigError unless ``x`` fits the network. Labels on a GPU are not looked at, which would wait for it."""
        config, multiple = self.config, self.size_multiple
        channels = config.in_channels if x.is_floating_point() else 1 + config.instance_edges
        if x.dim() != 4 or x.shape[1] != channels:
            kind = "floating-point one-hot maps" if x.is_floating_point() else "integer labels"
            raise ConfigError(f"x of shape {list(x.shape)}: expected {kind} [N, {channels}, H, W]")
        if x.shape[2] % multiple or x.shape[3] % multiple or min(x.shape[2:]) == 0:
            raise ConfigError(f"x of shape {list(x.shape)}: height and width must be multiples of {multiple}")
        if not x.is_floating_point() and x.device.type == "cpu" and x.numel():
            low, high = (int(value) for value in torch.aminmax(x[:, 0].to(torch.int64)))
            if low < 0 or high >= config.label_nc:
                raise ConfigError(f"x: has labels from {low} to {high}, the generator knows 0 to {config.label_nc - 1}")

    def _use(self, config: SpadeConfig) -> None:
        self.fc.active_out_channels = config.stream
        for (_, block, _), widths in zip(self.blocks(), _block_widths(config), strict=True):
            block.use(*widths)


def double(x: Tensor) -> Tensor:
    """Every pixel of ``x`` [N, C, H, W] four times: [N, C, 2 H, 2 W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _plan(config: SpadeConfig) -> list[tuple[str, bool]]:
    """Names of the blocks, and whether the map is doubled before."""
    middle = [("head_0", False), ("G_middle_0", True), ("G_middle_1", config.upsampling != "normal")]
    return [*middle, *((f"up_{i}", True) for i in range(len(config.up)))]


def _block_widths(config: SpadeConfig) -> list[tuple[int, int, int, int]]:
    """Of every block: inputs, the width inside, outputs, and the width of its label maps."""
    widths = [(config.stream, inner, config.stream) for inner in config.inner]
    widths += [(before, after, after) for before, after in zip((config.stream, *config.up), config.up, strict=False)]
    return [(*triple, embed) for triple, embed in zip(widths, config.embed, strict=True)]
