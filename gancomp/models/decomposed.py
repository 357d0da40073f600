"""The dense ResNet generator with some groups of its layers decomposed: what a study of their sensitivity compares.

Source: GAN Compression, section 3.2 (which convolutions can be decomposed without harm).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models.base import Generator, register_network, seeded_generator
from gancomp.models.resnet import ResnetBlock, ResnetConfig, ResnetGenerator
from gancomp.nn import InstanceNormAct, SlicedConv2d, init_weights


def layer_groups(n_blocks: int) -> dict[str, tuple[int, ...]]:
    """The groups of layers of a ResNet generator, by name: indices into its ``model``.

    The ends (``stem``, ``head``: 7x7), the strided convolutions (``down``, ``up``), the residual blocks, of three or more their
    thirds, and all layers.
    """
    blocks = tuple(range(10, 10 + n_blocks))
    groups = {"stem": (1,), "down": (4, 7)}
    if blocks:
        groups["blocks"] = blocks
    if n_blocks >= 3:
        for part in range(3):
            groups[f"blocks-{part + 1}"] = tuple(index for index in blocks if (index - 10) * 3 // n_blocks == part)
    groups |= {"up": (10 + n_blocks, 13 + n_blocks), "head": (17 + n_blocks,)}
    return {**groups, "all": tuple(sorted({index for layers in groups.values() for index in layers}))}


@dataclass(frozen=True)
class DecomposedConfig(ResnetConfig):
    """A dense ResNet's configuration, and which groups of its layers are decomposed (:func:`layer_groups`)."""

    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = layer_groups(self.n_blocks)
        if unknown := [name for name in self.groups if name not in known]:
            raise ConfigError(
                f"groups={','.join(unknown)!r}: a generator of {self.n_blocks} blocks has the groups {', '.join(known)}"
            )
        if self.separable:
            raise ConfigError("separable=True: its blocks are decomposed already; expected a dense generator")

    @property
    def dense(self) -> ResnetConfig:
        """The generator without any layer decomposed."""
        return ResnetConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ResnetConfig)})


@register_network("resnet_decomposed", DecomposedConfig)
class DecomposedResnet(Generator):
    """A :class:`ResnetGenerator` of which groups of layers are decomposed into a depthwise and a pointwise convolution.

    As in the published separable blocks, an InstanceNorm is between the two; not so in the head, where it would give all images
    one mean colour. The depthwise convolution keeps kernel and stride.
    """

    config: DecomposedConfig
    size_multiple = ResnetGenerator.size_multiple

    def __init__(self, config: DecomposedConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ResnetGenerator(config.dense)
        layers, groups = self.network.model, layer_groups(config.n_blocks)
        for index in sorted({index for name in config.groups for index in groups[name]}):
            layer = layers[index]
            if isinstance(layer, ResnetBlock):
                hidden = config.hidden[index - 10]
                layers[index] = ResnetBlock(config.stream, hidden, dataclasses.replace(config.dense, separable=True))
            else:
                layers[index] = _decomposed(layer, norm=index not in groups["head"])

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Layers whose outputs distillation uses: those of the dense generator."""
        return tuple(f"network.{name}" for name in self.network.feature_layers)

    def forward(self, x: Tensor) -> Tensor:
        """As of :class:`ResnetGenerator`."""
        return self.network(x)


def decompose(dense: ResnetGenerator, groups: Sequence[str], seed: int) -> DecomposedResnet:
    """A generator of which ``groups`` are decomposed and start at random; it has copies of all other weights of ``dense``.

    Raises:
        ConfigError: a group that there is not, or a generator that is not dense.
    """
    decomposed = DecomposedResnet(DecomposedConfig(**vars(dense.config), groups=tuple(groups)))
    generator = seeded_generator(seed)
    init_weights(decomposed, generator)
    head = decomposed.network.model[-2]
    if isinstance(head, nn.Sequential):
        # Where no norm sets the scale again, what it puts out is as large as what it takes, or nothing would come through.
        weight: Any = head[0].weight
        nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5, generator=generator)
    own = decomposed.network.state_dict()
    with torch.no_grad():
        for name, tensor in dense.state_dict().items():
            if name in own:
                own[name].copy_(tensor)
    return decomposed


def _decomposed(layer: Any, *, norm: bool) -> nn.Sequential:
    """A depthwise convolution of the geometry of ``layer``, a dense one, an InstanceNorm if asked, and a pointwise one."""
    channels = layer.in_channels
    # No bias: the norm would take it away, and without one the pointwise convolution's does what it would.
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": channels, "bias": False}
    depthwise: nn.Module
    if isinstance(layer, nn.ConvTranspose2d):
        geometry["output_padding"] = layer.output_padding
        depthwise = nn.ConvTranspose2d(channels, channels, layer.kernel_size[0], **geometry)
    else:
        depthwise = nn.Conv2d(channels, channels, layer.kernel_size, padding_mode=layer.padding_mode, **geometry)
    pointwise = SlicedConv2d(channels, layer.out_channels, 1, bias=layer.bias is not None, before_norm=layer.before_norm)
    return nn.Sequential(depthwise, InstanceNormAct(channels) if norm else nn.Identity(), pointwise)
