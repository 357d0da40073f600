"""Search spaces: which channel counts each slot of a supernet may take.

A *configuration* is a tuple of base channel counts, one per slot, written ``16_16_32_16_32_32_16_16``. A slot's base
count is multiplied by the architecture (the residual stream of a ResNet generator has four times its slot's count).
Source: GAN Compression, section 3.2; the named spaces are those of the published recipes.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gancomp.errors import ConfigError
from gancomp.models.channels import Config, format_config


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every slot, each sorted from the largest to the smallest."""

    name: str
    choices: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for slot, options in enumerate(self.choices):
            if not options or list(options) != sorted(set(options), reverse=True) or options[-1] < 1:
                raise ConfigError(
                    f"space {self.name!r}: slot {slot} is {options}: expected distinct positive channel counts, largest first"
                )
        if not self.choices:
            raise ConfigError(f"space {self.name!r}: expected at least one slot")

    @classmethod
    def parse(cls, text: str, slots: int = 8, arch: str = "resnet") -> SearchSpace:
        """Make a space from a published name (``channels-48``) or from text.

        Text is one list for all slots (``32,24,16``) or one list per slot joined by ``;`` (``32,16;32,16;...``). Equal names
        were published for other spaces of SPADE generators: those are called ``spade-channels-48`` and so on, and with the arch
        ``spade`` the short name is enough.
        """
        for name in (f"{arch}-{text}", text):
            if name in SPACES:
                return SPACES[name]
        groups = text.split(";")
        if len(groups) == 1:
            groups = groups * slots
        parts = [[part.strip() for part in group.split(",")] for group in groups]
        # int() would read the digits of "32_24_16" as one number.
        if not all(part.isascii() and part.isdecimal() and len(part) < 7 for group in parts for part in group):
            names = ", ".join(sorted(SPACES))
            raise ConfigError(f"space={text!r}: expected one of {names}, or channel lists like '32,24,16'")
        choices = tuple(tuple(sorted({int(part) for part in group}, reverse=True)) for group in parts)
        if len(choices) != slots:
            raise ConfigError(f"space={text!r}: has {len(choices)} slots, expected {slots}")
        return cls(text, choices)

    def __contains__(self, config: object) -> bool:
        return (
            isinstance(config, tuple)
            and len(config) == len(self.choices)
            and all(channels in options for channels, options in zip(config, self.choices, strict=True))
        )

    def validate(self, config: Sequence[int]) -> Config:
        """Return ``config`` as a tuple, or raise a ConfigError that names the slot that is wrong."""
        config = tuple(config)
        if len(config) != len(self.choices):
            raise ConfigError(
                f"config_str={format_config(config)!r}: has {len(config)} numbers, "
                f"space {self.name!r} has {len(self.choices)} slots"
            )
        for slot, (channels, options) in enumerate(zip(config, self.choices, strict=True)):
            if channels not in options:
                allowed = ", ".join(map(str, options))
                raise ConfigError(
                    f"config_str={format_config(config)!r}: {channels} is not allowed in slot {slot} "
                    f"of space {self.name!r} (allowed: {allowed})"
                )
        return config

    @property
    def size(self) -> int:
        """Number of configurations."""
        return math.prod(len(options) for options in self.choices)

    @property
    def largest(self) -> Config:
        """The largest choice in every slot: the widths of the supernet."""
        return tuple(options[0] for options in self.choices)

    @property
    def smallest(self) -> Config:
        """The smallest choice in every slot."""
        return tuple(options[-1] for options in self.choices)

    def __iter__(self) -> Iterator[Config]:
        return itertools.product(*self.choices)

    def sample(self, rng: random.Random, weight: float = 1.0) -> Config:
        """Draw one configuration, independently per slot.

        ``weight`` > 1 favours small channel counts: option j of L (largest first) is drawn with a probability proportional
        to ``weight**j``, the geometric rule of the published search.
        """
        if not 0 < weight < math.inf:
            raise ConfigError(f"weight={weight}: expected a number above 0")
        return tuple(rng.choices(options, weights=[weight**j for j in range(len(options))])[0] for options in self.choices)


def _space(name: str, *choices: Sequence[int]) -> SearchSpace:
    return SearchSpace(name, tuple(tuple(options) for options in choices))


_FULL = (64, 56, 48, 40, 32, 24, 16)
SPACES: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        _space("channels-48", (48, 32), (48, 32), *[(48, 40, 32)] * 4, *[(48, 32, 24, 16)] * 2),
        _space("channels-32", *[(32, 24, 16)] * 8),
        _space("channels-64-cycleGAN", *[(64, 48, 32, 24, 16)] * 8),
        _space("channels-64-pix2pix", *[_FULL] * 8),
        _space("spade-channels-48", *[(48, 40, 32)] * 5, *[(48, 40, 32, 24)] * 3),
        _space("spade-channels-64", *[(64, 48, 40, 32)] * 5, *[(64, 48, 40, 32, 24)] * 3),
        _space("spade-channels-64-coco", *[(64, 48, 40, 32, 24)] * 8),
        _space("spade-channels-64_2", *[_FULL] * 8),
    )
}
