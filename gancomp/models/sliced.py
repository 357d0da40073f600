"""Generators that hold narrower ones: every weight of theirs is the first channels of the wide one's.

Source: GAN Compression, section 3.2 (weight sharing by prefix slices).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gancomp.errors import ConfigError
from gancomp.models.base import Generator, network_to_bytes


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
        raise NotImplementedError

    def slices(self, config: Any) -> dict[str, Tensor]:
        """Views of the first channels of every tensor, as many as ``config`` says: the state of that network, by name.

        Raises:
            ConfigError: another structure, or a width above the network's own.
        """
        check_sub_config(config, self.config)
        network: Any = type(self)
        rule, widths = _dimensions(network, self.config), tuple(config.widths.values())
        return {
            name: tensor[tuple(slice(0, widths[size - _MARK] if size >= _MARK else size) for size in rule[name])]
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
        """Channel counts of :meth:`forward_features`, by layer name."""
        raise NotImplementedError


# Above every width that there is: stands for one in a shape.
_MARK = 2**28


@functools.lru_cache(maxsize=16)
def _dimensions(build: Callable[[Any], Generator], structure: SlicedConfig) -> dict[str, torch.Size]:
    """The shape of every tensor of networks of this structure, by name; ``_MARK + i`` is the i-th of their widths.

    They are read off a network of such widths, which exists without data.
    """
    marked = structure.with_widths(range(_MARK, _MARK + len(structure.widths)))
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(marked).state_dict().items()}


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
