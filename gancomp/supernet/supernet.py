"""The once-for-all supernet: one set of weights that holds every sub-generator of a search space.

Source: GAN Compression, section 3.2 ("decouple training and search").
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import ResnetConfig, ResnetGenerator, SlicedGenerator
from gancomp.models.channels import Config, format_config
from gancomp.models.resnet import hidden_slots
from gancomp.nn import InstanceNormAct, ModulatedNorm
from gancomp.supernet.calibrate import calibrate
from gancomp.supernet.space import SearchSpace


class Supernet(nn.Module):
    """A generator at the largest widths of ``space``, of which any configuration can be made the active one.

    Batch statistics differ from one sub-network to the next. Where the generator has such norms, training uses those of the
    batch, and a configuration is evaluated or extracted after :meth:`calibrate` has taken its own.

    Args:
        space: the search space; its number of slots must fit the generator's blocks.
        n_blocks: residual blocks of a new generator.
        generator: an existing generator at the space's largest widths; by default a new ResNet generator.
        fields: other fields of a new generator's :class:`ResnetConfig` (``in_channels``, ``separable``, ...).

    Raises:
        ConfigError: slots and blocks do not fit, or a ResNet generator with BatchNorm.
    """

    # A SlicedGenerator, of the class that was given.
    generator: Any

    def __init__(self, space: SearchSpace, n_blocks: int = 9, generator: SlicedGenerator | None = None, **fields) -> None:
        super().__init__()
        if generator is None:
            slots, owner = 5 + hidden_slots(n_blocks), f"a generator of {n_blocks} blocks"
        else:
            slots, owner = generator.config.slots, f"this {generator.arch} generator"
        if len(space.choices) != slots:
            raise ConfigError(f"space {space.name!r}: has {len(space.choices)} slots, {owner} has {slots}")
        if generator is None:
            config = ResnetConfig.from_channels(space.largest, n_blocks, **fields)
        else:
            config = generator.config.with_channels(space.largest)
        if isinstance(config, ResnetConfig) and config.norm not in ("instance", "none"):
            raise ConfigError(f"norm={config.norm!r}: a supernet shares its weights between widths, use 'instance' or 'none'")
        self.space = space
        self.generator = generator if generator is not None else ResnetGenerator(config)
        if self.generator.config != config:
            raise ConfigError(
                f"generator {self.generator.config}: expected the largest widths of space {space.name!r}: {config}"
            )
        for name, module in self.generator.named_modules():
            plain = isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(module, InstanceNormAct)
            if plain and (module.affine or module.track_running_stats):
                raise ConfigError(
                    f"layer {name!r} ({type(module).__name__}): has numbers per channel, which differ from width to width; use "
                    "gancomp.nn.InstanceNormAct"
                )
        self.active = space.largest
        self.calibrated: Config | None = None
        norms = [module for module in self.modules() if isinstance(module, ModulatedNorm) and module.norm == "batch"]
        self.batch_norms = bool(norms)
        for norm in norms:
            norm.tracks = False

    @classmethod
    def around(cls, generator: SlicedGenerator, space: SearchSpace) -> Supernet:
        """The supernet that ``generator``, at the largest widths of ``space``, is the network of."""
        return cls(space, generator=generator)

    def network_config(self, config: Sequence[int]) -> Any:
        """The widths of a configuration: the generator's own configuration with less of them.

        Raises:
            ConfigError: the configuration is not in the space.
        """
        return self.generator.config.with_channels(self.space.validate(config))

    def calibrate(self, config: Sequence[int], batches: Iterable[Tensor]) -> None:
        """Make ``config`` active and take its batch statistics over all ``batches``; see :func:`calibrate`.

        They hold until the supernet is trained or another configuration is calibrated.

        Raises:
            ConfigError: the configuration is not in the space, or the batches do not fit.
        """
        self.set(config)
        self.calibrated = None
        if self.batch_norms:
            calibrate(self.generator, batches)
        self.calibrated = self.active

    def check_calibrated(self, config: Sequence[int]) -> None:
        """Raise a ConfigError where inference by ``config`` needs statistics that are not its own."""
        if self.batch_norms and self.calibrated != tuple(config):
            have = "of none" if self.calibrated is None else f"of {format_config(self.calibrated)}"
            raise ConfigError(
                f"config_str={format_config(config)!r}: its batch statistics are not known (the supernet has those {have}); "
                "calibrate it first (gancomp search does, and leaves the chosen one as chosen.safetensors)"
            )

    def train(self, mode: bool = True) -> Self:
        """As of every module; statistics taken before are forgotten, since the weights change."""
        if mode:
            self.calibrated = None
        return super().train(mode)

    def set(self, config: Sequence[int]) -> None:
        """Make ``config`` the active sub-network: changes a few integers, copies nothing."""
        self.generator.set_widths(self.network_config(config))
        self.active = tuple(config)

    def sample(self, rng: random.Random, weight: float = 1.0) -> Config:
        """Draw a configuration from the space, make it active and return it."""
        config = self.space.sample(rng, weight)
        self.set(config)
        return config

    def extract(self, config: Sequence[int]) -> Any:
        """Copy the sub-network of ``config`` into a generator of its own, of the supernet's class.

        Raises:
            ConfigError: it is not in the space, or not calibrated.
        """
        self.check_calibrated(config)
        return self.generator.extract(self.network_config(config))

    def extract_bytes(self, config: Sequence[int]) -> bytes:
        """The file of :meth:`extract`'s generator, in a fraction of the time that it takes to build one."""
        self.check_calibrated(config)
        return self.generator.extract_bytes(self.network_config(config))

    def save(self, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None) -> None:
        """Write the shared weights and the search space to one ``.safetensors`` file."""
        space = {"name": self.space.name, "choices": self.space.choices}
        self.generator.save(path, provenance, space=space)

    def forward(self, x: Tensor) -> Tensor:
        """Run the active sub-network on ``x`` [N, in_channels, H, W] in [-1, 1].

        Raises:
            ConfigError: in inference, it is not calibrated.
        """
        if not self.training:
            self.check_calibrated(self.active)
        return self.generator(x)

    def forward_features(self, x: Tensor, layers: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the active sub-network and return its distillation features too; see :meth:`Generator.forward_features`."""
        if not self.training:
            self.check_calibrated(self.active)
        return self.generator.forward_features(x, layers)
