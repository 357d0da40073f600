"""The once-for-all supernet: one set of weights that holds every sub-generator of a search space.

Source: GAN Compression, section 3.2 ("decouple training and search").
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.models.channels import Config
from gancomp.models.resnet import hidden_slots
from gancomp.supernet.space import SearchSpace


class Supernet(nn.Module):
    """A generator at the largest widths of ``space``, of which any configuration can be made the active one.

    Args:
        space: the search space; its number of slots must fit the generator's blocks.
        n_blocks: residual blocks of the generator.
        generator: an existing generator at the space's largest widths; by default a new one.
        fields: other fields of :class:`ResnetConfig` (``in_channels``, ``separable``, ...).

    Raises:
        ConfigError: slots and blocks do not fit, or BatchNorm: its statistics differ from one sub-network to the next.
    """

    def __init__(self, space: SearchSpace, n_blocks: int = 9, generator: ResnetGenerator | None = None, **fields) -> None:
        super().__init__()
        slots = 5 + hidden_slots(n_blocks)
        if len(space.choices) != slots:
            raise ConfigError(
                f"space {space.name!r}: has {len(space.choices)} slots, a generator of {n_blocks} blocks has {slots}"
            )
        config = ResnetConfig.from_channels(space.largest, n_blocks, **fields)
        if config.norm not in ("instance", "none"):
            raise ConfigError(f"norm={config.norm!r}: a supernet shares its weights between widths, use 'instance' or 'none'")
        self.space = space
        self.generator = generator if generator is not None else ResnetGenerator(config)
        if self.generator.config != config:
            raise ConfigError(
                f"generator {self.generator.config}: expected the largest widths of space {space.name!r}: {config}"
            )
        self.active = space.largest

    @classmethod
    def around(cls, generator: ResnetGenerator, space: SearchSpace) -> Supernet:
        """The supernet that ``generator``, at the largest widths of ``space``, is the network of."""
        config = generator.config
        names = ("in_channels", "out_channels", "separable", "norm", "padding", "dropout")
        return cls(space, config.n_blocks, generator, **{name: getattr(config, name) for name in names})

    def resnet_config(self, config: Sequence[int]) -> ResnetConfig:
        """The widths of a configuration.

        Raises:
            ConfigError: the configuration is not in the space.
        """
        return self.generator.config.with_channels(self.space.validate(config))

    def set(self, config: Sequence[int]) -> None:
        """Make ``config`` the active sub-network: changes a few integers, copies nothing."""
        self.generator.set_widths(self.resnet_config(config))
        self.active = tuple(config)

    def sample(self, rng: random.Random, weight: float = 1.0) -> Config:
        """Draw a configuration from the space, make it active and return it."""
        config = self.space.sample(rng, weight)
        self.set(config)
        return config

    def extract(self, config: Sequence[int]) -> ResnetGenerator:
        """Copy the sub-network of ``config`` into a generator of its own."""
        return self.generator.extract(self.resnet_config(config))

    def extract_bytes(self, config: Sequence[int]) -> bytes:
        """The file of :meth:`extract`'s generator, in a fraction of the time that it takes to build one."""
        return self.generator.extract_bytes(self.resnet_config(config))

    def save(self, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
        """Write the shared weights and the search space to one ``.safetensors`` file."""
        space = {"name": self.space.name, "choices": self.space.choices}
        self.generator.save(path, provenance, space=space)

    def forward(self, x: Tensor) -> Tensor:
        """Run the active sub-network on ``x`` [N, in_channels, H, W] in [-1, 1]."""
        return self.generator(x)

    def forward_features(self, x: Tensor, layers: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the active sub-network and return its distillation features too; see :meth:`Generator.forward_features`."""
        return self.generator.forward_features(x, layers)
