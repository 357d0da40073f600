"""Configurations: tuples of base channel counts, and their text form ``16_16_32_16_32_32_16_16``."""

from __future__ import annotations

from collections.abc import Sequence

from gancomp.errors import ConfigError

Config = tuple[int, ...]


def parse_config(text: str) -> Config:
    """Parse ``"16_16_32"`` into ``(16, 16, 32)``.

    Raises:
        ConfigError: a part is not a positive integer.
    """
    parts = text.strip().split("_")
    if not all(part.isascii() and part.isdecimal() and len(part) < 7 and int(part) > 0 for part in parts):
        raise ConfigError(f"config_str={text!r}: expected positive integers joined by '_', e.g. 16_16_32_16_32_32_16_16")
    return tuple(int(part) for part in parts)


def format_config(config: Sequence[int]) -> str:
    """Write a configuration as its ``config_str``."""
    return "_".join(str(channels) for channels in config)
