"""Settings that several verbs share, and what every run records about itself."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gancomp.checkpoints import load_generator, load_subnetwork, metadata_json, read_metadata
from gancomp.data import DataConfig, ImageDataset, open_dataset
from gancomp.errors import ConfigError
from gancomp.io import sha256_file
from gancomp.models import (
    DiscriminatorConfig,
    Generator,
    MultiscaleConfig,
    MultiscaleDiscriminator,
    PatchDiscriminator,
    ResnetConfig,
    ResnetGenerator,
    SpadeConfig,
    SpadeGenerator,
    UnetConfig,
    UnetGenerator,
    seeded_generator,
)
from gancomp.models.channels import parse_config
from gancomp.nn import init_weights
from gancomp.train import DistillOptions, StageFolder, TrainOptions
from gancomp.version import __version__

Method = Literal["pix2pix", "cyclegan", "gaugan"]
"""Kinds of training; :mod:`gancomp.pipeline.methods` has the defaults of each."""


@dataclass(frozen=True)
class TeacherModel:
    """The teacher's architecture."""

    arch: Literal["resnet", "unet", "spade"] = "resnet"
    """`resnet` (CycleGAN, pix2pix, GAN Compression), `unet` (pix2pix) or `spade` (GauGAN)."""
    ngf: int = 64
    """Base width."""
    n_blocks: int = 9
    """Residual blocks (resnet)."""
    n_levels: int = 8
    """Halvings (unet): 8 for 256x256 images, 7 for 128x128."""
    upsampling: Literal["normal", "more", "most"] = "more"
    """How often the smallest map is doubled: 5, 6 or 7 times (spade)."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation."""
    padding: Literal["reflect", "replicate", "zero"] = "reflect"
    """Padding of the residual blocks and the 7x7 convolutions (resnet)."""
    dropout: float = 0.0
    """Dropout rate inside the blocks (resnet) or in the middle levels (unet) while training."""
    separable: bool = False
    """Depthwise-separable residual blocks (spade: modulations): the "mobile" teacher of GAN Compression."""

    def build(self, data: DataConfig, seed: int) -> Generator:
        """The initialised generator for the channels of ``data``."""
        inputs, outputs = data.in_channels, data.out_channels
        generator: Generator
        if (self.arch == "spade") != (data.labels > 0):
            raise ConfigError(f"arch={self.arch!r}, data.labels={data.labels}: label maps are what a spade takes, and it alone")
        if self.arch == "resnet":
            config = ResnetConfig.uniform(
                self.ngf,
                self.n_blocks,
                separable=self.separable,
                in_channels=inputs,
                out_channels=outputs,
                norm=self.norm,
                padding=self.padding,
                dropout=self.dropout,
            )
            generator = ResnetGenerator(config)
        elif self.arch == "unet":
            generator = UnetGenerator(UnetConfig(self.ngf, self.n_levels, inputs, outputs, self.norm, self.dropout))
        elif self.arch == "spade":
            generator = SpadeGenerator(
                SpadeConfig.uniform(
                    self.ngf,
                    separable=self.separable,
                    label_nc=data.labels,
                    instance_edges=data.edges,
                    out_channels=outputs,
                    upsampling=self.upsampling,
                    crop_size=data.crop_size,
                    aspect_ratio=data.aspect_ratio,
                    norm=self.norm,
                )
            )
        else:
            raise ConfigError(f"arch={self.arch!r}: expected resnet, unet or spade")
        _check_crop(data, generator, f"this {self.arch}")
        init_weights(generator, seeded_generator(seed))
        return generator


def open_split(
    data: DataConfig, split: Literal["train", "val", "test"], generator: Generator | None = None, *, any_size: bool = False
) -> ImageDataset:
    """Open a split, after checking that ``generator`` takes such images; with ``any_size`` it is used by its ``translate``.

    Raises:
        ConfigError: channels or size do not fit the generator.
        DataError: the folder cannot be used.
    """
    if generator is not None:
        check_channels(data, generator)
        if not any_size:
            _check_crop(data, generator, "the generator")
    return open_dataset(data, split)


def check_channels(data: DataConfig, generator: Generator) -> None:
    """Raise a ConfigError unless ``generator`` takes and gives images, or label maps, like those of ``data``."""
    config = generator.config
    if isinstance(config, SpadeConfig):
        if (config.label_nc, config.instance_edges) != (data.labels, data.edges):
            raise ConfigError(
                f"data.labels={data.labels}, edges={data.edges}: the generator takes {config.label_nc} labels "
                f"{'and edges' if config.instance_edges else 'without edges'}"
            )
    elif data.labels:
        raise ConfigError(f"data.labels={data.labels}: the generator takes images, not label maps")
    elif data.in_channels != config.in_channels:
        raise ConfigError(f"data.in_channels={data.in_channels}: the generator has {config.in_channels}")
    if data.out_channels != config.out_channels:
        raise ConfigError(f"data.out_channels={data.out_channels}: the generator has {config.out_channels}")


def _check_crop(data: DataConfig, generator: Generator, owner: str) -> None:
    multiple = generator.size_multiple
    if any(side % multiple for side in data.crop):
        size = f"crop_size={data.crop_size}" + (f", height {data.crop[0]}" if data.labels else "")
        hint = "; data.aspect_ratio and model.upsampling (normal: 32) decide" if data.labels else ""
        raise ConfigError(f"data.{size}: {owner} needs a multiple of {multiple}{hint}")


def calibration_maps(data: DataConfig, count: int, device: torch.device) -> list[torch.Tensor]:
    """Label maps of the training split over which batch statistics are taken, one by one, evenly spread and unaugmented."""
    train = open_dataset(data, "train")
    count = min(len(train), count)
    return [train.load(i * len(train) // count).input[None].to(device) for i in range(count)]


def open_generator(model: str, config_str: str, purpose: str, *, calibrated: bool = True) -> Generator:
    """The generator of a file; of a supernet, the one of a configuration.

    Args:
        model: a generator file, or a supernet.
        config_str: the configuration, for a supernet.
        purpose: what for, in words for the error.
        calibrated: as of :func:`gancomp.checkpoints.load_subnetwork`.

    Raises:
        ConfigError: a configuration for what is no supernet, or none for a supernet.
        CheckpointError: the file cannot be used.
    """
    if config_str:
        return load_subnetwork(model, parse_config(config_str), calibrated=calibrated)
    if "gancomp.space" in read_metadata(model):
        raise ConfigError(f"config_str='': {model} is a supernet; say which configuration to {purpose}")
    return load_generator(model)


def load_teacher(path: str | Path, data: DataConfig) -> Generator:
    """The teacher of a file, after checking that it was trained in the direction of ``data`` where its file says which.

    Raises:
        ConfigError: the other direction.
        CheckpointError: the file cannot be used.
    """
    direction = metadata_json(read_metadata(path), "gancomp.direction", path)
    if direction not in (None, data.direction):
        raise ConfigError(f"data.direction={data.direction!r}: {path} was trained in direction {direction}")
    return load_generator(path)


def _file_settings(run: Any) -> list[str]:
    """The settings of a run that name files which other stages may have made."""
    values = {name: getattr(run, name, None) for name in ("teacher", "supernet", "discriminator")}
    return [name for name, value in values.items() if isinstance(value, str) and value]


def begin(folder: StageFolder, verb: str, run: Any) -> None:
    """Open the folder of a verb's run; one begun when there were fewer settings goes on if the new ones have their defaults.

    Raises:
        RunError: the folder is one of another run.
    """
    inside = folder.path.resolve().parent
    # Where they belong to the same run as the folder, that run may be moved or spelled another way.
    near = {name: os.path.relpath(Path(getattr(run, name)).resolve(), inside) for name in _file_settings(run)}
    run = dataclasses.replace(run, **{name: path for name, path in near.items() if not path.startswith("..")})
    required = {
        field.name: getattr(run, field.name)
        for field in dataclasses.fields(run)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    defaults = plain(type(run)(**required), hide=("out",))
    folder.open({"verb": verb, **plain(run, hide=("out",))}, defaults)


def check_weights_name(out: str) -> None:
    """Raise a ConfigError unless ``out`` is the name of a ``.safetensors`` file."""
    if Path(out).suffix != ".safetensors":
        raise ConfigError(f"out={out!r}: expected a file name ending in .safetensors")


def check_target(data: DataConfig, options: DistillOptions) -> None:
    """Raise a ConfigError where the reconstruction loss asks for a ground truth that ``data`` does not have."""
    if data.unpaired and options.target == "truth":
        raise ConfigError("target='truth': data.unpaired is set, and without pairs there is no ground truth; use 'teacher'")


Discriminator = PatchDiscriminator | MultiscaleDiscriminator


def check_discriminator(data: DataConfig, options: TrainOptions, inherited: Discriminator | None = None) -> None:
    """Find out before a run begins that its discriminator, inherited or new, takes the images of ``data``.

    Raises:
        ConfigError: they are too small, or unpaired and it judges pairs.
    """
    if options.lambda_gan == 0:
        return
    if data.labels:
        _check_multiscale(data, options, inherited)
        return
    if isinstance(inherited, MultiscaleDiscriminator):
        raise ConfigError(
            "discriminator: is one of several scales, for label maps (data.labels); expected a patch discriminator"
        )
    conditional = options.conditional if inherited is None else inherited.config.in_channels != data.out_channels
    if data.unpaired and conditional:
        which = "conditional=True" if inherited is None else f"discriminator of {inherited.config.in_channels} channels"
        raise ConfigError(
            f"{which}: data.unpaired is set, and without pairs a discriminator sees the image alone "
            f"({data.out_channels} channels; --model cyclegan sets all of this)"
        )
    config = DiscriminatorConfig(n_layers=options.d_layers) if inherited is None else inherited.config
    if data.crop_size < config.min_size:
        raise ConfigError(
            f"data.crop_size={data.crop_size}: a discriminator of {config.n_layers} layers (train.d_layers) needs at least "
            f"{config.min_size}"
        )


def _check_multiscale(data: DataConfig, options: TrainOptions, inherited: Discriminator | None) -> None:
    if isinstance(inherited, PatchDiscriminator):
        raise ConfigError(
            f"discriminator: is a patch discriminator; label maps (data.labels={data.labels}) need one of several scales"
        )
    channels = data.input_channels + data.out_channels
    config = inherited.config if inherited is not None else MultiscaleConfig(channels, options.ndf, options.d_layers)
    if config.in_channels != channels:
        raise ConfigError(f"discriminator: takes {config.in_channels} channels, label map and image together have {channels}")
    if min(data.crop) < config.min_size:
        raise ConfigError(f"data.crop_size={data.crop_size}: the discriminator needs sides of at least {config.min_size}")


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    return TrainOptions(device=name).torch_device()


def provenance(stage: str, settings: Any, **inputs: Path | None) -> dict[str, Any]:
    """What a product carries about its making: version, stage, settings, hashes of the files it was made from."""
    return {
        "gancomp": __version__,
        "torch": torch.__version__,
        "stage": stage,
        # Which files they were say the hashes; where they lay is nobody's business.
        "settings": plain(settings, hide=("out", "config", *_file_settings(settings))),
        "inputs": {name: sha256_file(path) for name, path in inputs.items() if path is not None},
    }


def plain(value: Any, hide: tuple[str, ...] = ()) -> Any:
    """Settings as plain JSON/YAML values; the fields named in ``hide`` (where a run lies, not what it is) are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in hide]
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def hardware() -> dict[str, Any]:
    """The machine in words that tell nothing private: processor model, threads, accelerator."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
