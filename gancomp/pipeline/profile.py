"""``gancomp profile``: parameters and multiply-accumulates of a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gancomp.errors import ConfigError
from gancomp.models import Generator, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.models.base import check_range
from gancomp.pipeline.settings import open_generator
from gancomp.search import Profile, profile_module


@dataclass(frozen=True)
class ProfileRun:
    """Count parameters and multiply-accumulates of a file's generator, or of an architecture."""

    model: str = ""
    """A generator file, or a supernet with `config_str`; empty to describe an architecture by the options below."""
    arch: Literal["resnet", "unet"] = "resnet"
    """Architecture, where no file is given."""
    config_str: str = ""
    """Channel counts such as `16_16_32_16_32_32_16_16` (eight, or six as in the first released models)."""
    ngf: int = 64
    """Base width, where no `config_str` is given."""
    n_blocks: int = 9
    """Residual blocks."""
    separable: bool | None = None
    """Depthwise-separable blocks; by default yes with a `config_str` and no without."""
    legacy: bool = False
    """With six numbers: only every third block has the searched width, as in the first released models."""
    in_channels: int = 3
    """Channels of the input image."""
    out_channels: int = 3
    """Channels of the output image."""
    size: int = 256
    """Side of the square image in pixels."""
    count_norm: bool = False
    """Add one per output element of every InstanceNorm to the published MACs, as the first tables did."""
    layers: bool = False
    """List every layer too."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_range("profile", "size", self.size, 8, 16384)


def build(run: ProfileRun) -> Generator:
    """The generator that the options describe.

    Raises:
        ConfigError: options that do not fit together.
        CheckpointError: the file cannot be used.
    """
    if run.model:
        return open_generator(run.model, run.config_str, "profile")
    channels = {"in_channels": run.in_channels, "out_channels": run.out_channels}
    with torch.device("meta"):
        if run.arch == "unet":
            if run.config_str or run.separable or run.legacy:
                raise ConfigError("arch='unet': config_str, separable and legacy describe a resnet")
            levels = min(8, (run.size & -run.size).bit_length() - 1)
            return UnetGenerator(UnetConfig(run.ngf, levels, run.in_channels, run.out_channels))
        if run.config_str:
            separable = run.separable is not False
            config = ResnetConfig.parse(run.config_str, run.n_blocks, legacy=run.legacy, separable=separable, **channels)
        else:
            config = ResnetConfig.uniform(run.ngf, run.n_blocks, separable=bool(run.separable), **channels)
        return ResnetGenerator(config)


def run_profile(run: ProfileRun) -> Profile:
    """Profile the generator at ``size`` x ``size``.

    Raises:
        GancompError: see :func:`build`.
    """
    generator = build(run)
    if run.size % generator.size_multiple:
        raise ConfigError(f"size={run.size}: this generator needs a multiple of {generator.size_multiple}")
    shape = (1, generator.config.in_channels, run.size, run.size)
    return profile_module(generator, shape, count_norm=run.count_norm)
