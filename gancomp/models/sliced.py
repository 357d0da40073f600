"""Generators that hold narrower ones: every weight of theirs is the first channels of the wide one's.

A generator of any architecture becomes a supernet by this protocol; docs/own-generator.md walks through one.

Source: GAN Compression, section 3.2 (weight sharing by prefix slices).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from gancomp.errors import ConfigError
from gancomp.models.base import Generator, check_range, network_to_bytes, register_network
from gancomp.nn import SlicedConv2d, SlicedConvTranspose2d


class SlicedConfig(Protocol):
    """What the configuration of a :class:`SlicedGenerator` offers beside its fields."""

    @property
    def widths(self) -> dict[str, int]:
        """Every width that a sub-network may have less of, by name."""

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same network at other widths, in the order of :attr:`widths`."""

    def with_channels(self, channels: Sequence[int]) -> Self:
        """The same network at the widths of base channel counts, one per slot of a search space."""

    @property
    def slots(self) -> int:
        """How many base channel counts there are."""


@dataclass(frozen=True)
class ChannelsConfig:
    """The configuration of a generator whose base channel counts are its widths as they are, one per slot.

    Subclasses give ``channels`` a default, and may have further fields.
    """

    channels: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        for channels in (*self.channels, self.in_channels, self.out_channels):
            check_range(type(self).__name__, "channels", channels, 1)

    @property
    def widths(self) -> dict[str, int]:
        """The channel counts, by their place."""
        return {f"channels[{slot}]": width for slot, width in enumerate(self.channels)}

    @property
    def slots(self) -> int:
        """How many channel counts there are."""
        return len(self.channels)

    def with_widths(self, widths: Sequence[int]) -> Self:
        """The same network with other channel counts."""
        return dataclasses.replace(self, channels=tuple(widths))

    def with_channels(self, channels: Sequence[int]) -> Self:
        """As :meth:`with_widths`.

        Raises:
            ConfigError: not as many as there are slots.
        """
        if len(channels) != self.slots:
            raise ConfigError(f"channels={tuple(channels)}: expected {self.slots} numbers")
        return self.with_widths(channels)


class SlicedGenerator(Generator):
    """A generator that can use the first channels of its weights, as many as the configuration of a narrower one says."""

    config: Any

    def set_widths(self, config: Any) -> None:
        """Make the network use the first channels of its weights, as many as ``config`` says; copies nothing.

        Raises:
            ConfigError: another structure, or a width above the network's own.
        """
        check_sub_config(config, self.config)
        self._use(config)

    def _use(self, config: Any) -> None:
        """Set the widths of the layers; by default those of the same name in the narrower network."""
        network: Any = type(self)
        for name, channels in _outputs(network, config).items():
            layer: Any = self.get_submodule(name)
            layer.active_out_channels = channels

    def slices(self, config: Any) -> dict[str, Tensor]:
        """Views of the first channels of every tensor, as many as ``config`` says: the state of that network, by name.

        Raises:
            ConfigError: another structure, or a width above the network's own.
        """
        check_sub_config(config, self.config)
        network: Any = type(self)
        rule, widths = _dimensions(network, self.config), tuple(config.widths.values())
        shapes = _shapes(network, config) if rule is None else rule
        return {
            name: tensor[tuple(slice(0, widths[size - _MARK] if size >= _MARK else size) for size in shapes[name])]
            for name, tensor in self.state_dict().items()
        }

    def extract(self, config: Any) -> Self:
        """Copy :meth:`slices` into a generator of its own."""
        state = {name: view.clone(memory_format=torch.contiguous_format) for name, view in self.slices(config).items()}
        with torch.device("meta"):
            small = type(self)(config)
        small.load_state_dict(state, assign=True)
        return small.train(self.training)

    def extract_bytes(self, config: Any) -> bytes:
        """The file of :meth:`extract`'s generator, in a fraction of the time that it takes to build one.

        Raises:
            ConfigError: as :meth:`slices`.
        """
        return network_to_bytes({"arch": self.arch, **dataclasses.asdict(config)}, self.slices(config), provenance={})

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Layers whose outputs distillation uses."""
        return tuple(self.feature_channels())

    def feature_channels(self) -> dict[str, int]:
        """Channel counts of :meth:`forward_features`, by layer name; none by default."""
        return {}


SlicedT = TypeVar("SlicedT", bound=SlicedGenerator)

# Above every width that there is: stands for one in a shape.
_MARK = 2**24


@functools.lru_cache(maxsize=16)
def _dimensions(build: Callable[[Any], Generator], structure: SlicedConfig) -> dict[str, torch.Size] | None:
    """The shape of every tensor of networks of this structure, by name; ``_MARK + i`` is the i-th of their widths.

    They are read off a network of such widths, which exists without data. None where some size is not one width, but a multiple
    or a sum.
    """
    marks = range(_MARK, _MARK + len(structure.widths))
    marked: Any = structure.with_widths(marks)
    shapes = _shapes(build, marked)
    plain = all(size < _MARK or size in marks for shape in shapes.values() for size in shape)
    return shapes if plain else None


@functools.lru_cache(maxsize=1024)
def _shapes(build: Callable[[Any], Generator], config: Any) -> dict[str, torch.Size]:
    """The shape of every tensor of a network, by name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(config).state_dict().items()}


@functools.lru_cache(maxsize=1024)
def _outputs(build: Callable[[Any], Generator], config: Any) -> dict[str, int]:
    """How many channels every sliced layer of a network puts out, by name; read off one without data."""
    with torch.device("meta"):
        modules = build(config).named_modules()
    return {name: module.out_channels for name, module in modules if isinstance(module, SlicedConv2d | SlicedConvTranspose2d)}


def register_generator(arch: str, config_class: type) -> Callable[[type[SlicedT]], type[SlicedT]]:
    """Class decorator: make a generator of your own known, so that files hold it, supernets are made of it and verbs take it.

    Args:
        arch: the name stored in files.
        config_class: a frozen dataclass with what :class:`SlicedConfig` asks for, such as one of :class:`ChannelsConfig`; the
            generator is built as ``generator_class(config)``, and keeps it as ``config``.

    Raises:
        ConfigError: the name is taken, or the classes are not such.
    """
    missing = [name for name in ("widths", "with_widths", "with_channels", "slots") if not hasattr(config_class, name)]
    if missing or not dataclasses.is_dataclass(config_class):
        raise ConfigError(
            f"config_class={config_class.__name__}: expected a frozen dataclass with widths, with_widths, with_channels and "
            "slots, such as a subclass of gancomp.ChannelsConfig"
        )

    def add(generator_class: type[SlicedT]) -> type[SlicedT]:
        if not issubclass(generator_class, SlicedGenerator):
            raise ConfigError(f"generator={generator_class.__name__}: expected a subclass of gancomp.SlicedGenerator")
        return register_network(arch, config_class)(generator_class)

    return add


def check_sub_config(config: SlicedConfig, full: SlicedConfig) -> None:
    """Raise a ConfigError unless ``config`` is ``full`` with equal or smaller widths."""
    limits = full.widths
    if (
        type(config) is not type(full)
        or config.widths.keys() != limits.keys()
        or config.with_widths([*limits.values()]) != full
    ):
        raise ConfigError(f"sub-network {config}: differs from its supernet {full} in more than widths")
    for name, width in config.widths.items():
        if width > limits[name]:
            raise ConfigError(f"{name}={width}: above the supernet's {limits[name]}")
