"""``gancomp profile``: parameters and multiply-accumulates of a generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gancomp.errors import ConfigError
from gancomp.models import (
    Generator,
    ResnetConfig,
    ResnetGenerator,
    SpadeConfig,
    SpadeGenerator,
    UnetConfig,
    UnetGenerator,
)
from gancomp.models.base import check_range
from gancomp.pipeline.settings import open_generator
from gancomp.search import Profile, profile_module

_SIZE = 256


@dataclass(frozen=True)
class ProfileRun:
    """Count parameters and multiply-accumulates of a file's generator, or of an architecture."""

    model: str = ""
    """A generator file, or a supernet with `config_str`; empty to describe an architecture by the options below."""
    arch: Literal["resnet", "unet", "spade"] = "resnet"
    """Architecture, where no file is given."""
    config_str: str = ""
    """Channel counts such as `16_16_32_16_32_32_16_16` (eight, or six as in the first released models)."""
    ngf: int = 64
    """Base width, where no `config_str` is given."""
    n_blocks: int = 9
    """Residual blocks."""
    separable: bool | None = None
    """Depthwise-separable blocks (spade: modulations); by default yes with a `config_str` and no without."""
    legacy: bool = False
    """With six numbers: only every third block has the searched width, as in the first released models."""
    in_channels: int = 3
    """Channels of the input image (resnet, unet)."""
    out_channels: int = 3
    """Channels of the output image."""
    labels: int = 35
    """Classes of the label map (spade); 35 are those of Cityscapes, 183 those of COCO."""
    edges: bool = True
    """Whether the label map has a channel for edges of instances (spade)."""
    upsampling: Literal["normal", "more", "most"] = "more"
    """How often the smallest map is doubled: 5, 6 or 7 times (spade)."""
    size: int = 0
    """Width of the image in pixels; 0 is 256, or for a spade what a file's generator was trained on, 512 without a file."""
    aspect_ratio: float = 0.0
    """Width of the image over its height; 0 is 1, or for a spade what goes with the width that 0 stands for."""
    count_norm: bool = False
    """Add one per output element of every InstanceNorm to the published MACs, as the first tables did."""
    layers: bool = False
    """List every layer too."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_range("profile", "size", self.size, 8 if self.size else 0, 16384)
        check_range("profile", "aspect_ratio", self.aspect_ratio, 0.0, 100.0)


def build(run: ProfileRun) -> Generator:
    """The generator that the options describe.

    Raises:
        ConfigError: options that do not fit together.
        CheckpointError: the file cannot be used.
    """
    if run.model:
        return open_generator(run.model, run.config_str, "profile", calibrated=False)
    channels = {"in_channels": run.in_channels, "out_channels": run.out_channels}
    with torch.device("meta"):
        if run.arch == "unet":
            if run.config_str or run.separable or run.legacy:
                raise ConfigError("arch='unet': config_str, separable and legacy describe other architectures")
            size = run.size or _SIZE
            levels = min(8, (size & -size).bit_length() - 1)
            return UnetGenerator(UnetConfig(run.ngf, levels, run.in_channels, run.out_channels))
        if run.arch == "spade":
            return _spade(run)
        if run.config_str:
            separable = run.separable is not False
            config = ResnetConfig.parse(run.config_str, run.n_blocks, legacy=run.legacy, separable=separable, **channels)
        else:
            config = ResnetConfig.uniform(run.ngf, run.n_blocks, separable=bool(run.separable), **channels)
        return ResnetGenerator(config)


def _spade(run: ProfileRun) -> SpadeGenerator:
    if run.legacy:
        raise ConfigError("arch='spade': legacy describes a resnet")
    fields = {
        "label_nc": run.labels,
        "instance_edges": run.edges,
        "out_channels": run.out_channels,
        "upsampling": run.upsampling,
    }
    if run.config_str:
        return SpadeGenerator(SpadeConfig.parse(run.config_str, separable=run.separable is not False, **fields))
    return SpadeGenerator(SpadeConfig.uniform(run.ngf, separable=bool(run.separable), **fields))


def input_size(run: ProfileRun, generator: Generator) -> tuple[int, int]:
    """Height and width of the image.

    Raises:
        ConfigError: the generator needs multiples of another number.
    """
    multiple = generator.size_multiple
    if isinstance(generator, SpadeGenerator) and not run.size and not run.aspect_ratio:
        return generator.config.native_size
    width = run.size or _SIZE
    height = round(width / (run.aspect_ratio or 1.0))
    if width % multiple or height % multiple or not height:
        size = f"size={width}" if height == width else f"size={width}, height {height}"
        raise ConfigError(f"{size}: this generator needs a multiple of {multiple}")
    return height, width


def run_profile(run: ProfileRun) -> Profile:
    """Profile the generator at the size of the options.

    Raises:
        GancompError: see :func:`build`.
    """
    generator = build(run)
    shape = (1, generator.config.in_channels, *input_size(run, generator))
    return profile_module(generator, shape, count_norm=run.count_norm)
