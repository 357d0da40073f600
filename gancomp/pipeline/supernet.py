"""``gancomp supernet``: distil a teacher into a once-for-all supernet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gancomp.checkpoints import load_network
from gancomp.data import DataConfig, ImageDataset, stack_pairs
from gancomp.errors import ConfigError
from gancomp.models import (
    Generator,
    MultiscaleDiscriminator,
    PatchDiscriminator,
    ResnetGenerator,
    SlicedGenerator,
    SpadeConfig,
    seeded_generator,
)
from gancomp.models.resnet import hidden_slots
from gancomp.models.sliced import check_sub_config
from gancomp.nn import init_weights
from gancomp.pipeline.settings import (
    Discriminator,
    Method,
    begin,
    check_discriminator,
    check_target,
    load_teacher,
    open_split,
    provenance,
)
from gancomp.supernet import SearchSpace, Supernet, transfer_weights
from gancomp.train import DistillOptions, DistillStage, GauganOptions, StageFolder, fit


@dataclass(frozen=True)
class SupernetRun:
    """Distil a teacher into a supernet that holds every sub-generator of a search space."""

    teacher: str
    """The teacher: any generator file `load_generator` takes."""
    out: str
    """Folder of the run; the same command goes on from what is there."""
    method: Method = "pix2pix"
    """The teacher's method, `pix2pix`, `cyclegan` or `gaugan`: sets the defaults of everything else to its published ones."""
    discriminator: str = ""
    """The teacher's discriminator to inherit; by default `discriminator.safetensors` beside the teacher, if it is there."""
    space: str = "channels-48"
    """`channels-32`, `-48`, `-64-cycleGAN`, `-64-pix2pix`, or channels like `32,24,16` (lists per slot are joined by `;`)."""
    separable: bool = True
    """Decompose the residual blocks' convolutions into depthwise and pointwise ones."""
    data: DataConfig = field(default_factory=DataConfig)
    gaugan: GauganOptions = field(default_factory=GauganOptions)
    train: DistillOptions = field(default_factory=DistillOptions)


def find_discriminator(path: str, teacher: str | Path) -> Path | None:
    """The discriminator file to inherit: the one given, or the one beside the teacher if there is one.

    Beside ``generator_BtoA.safetensors`` it is ``discriminator_BtoA.safetensors``: that of the other direction judges other
    images.
    """
    if path:
        return Path(path)
    stem = Path(teacher).stem
    name = stem.replace("generator", "discriminator", 1) if stem.startswith("generator_") else "discriminator"
    beside = Path(teacher).parent / f"{name}.safetensors"
    return beside if beside.exists() else None


def load_discriminator(path: Path | None) -> Discriminator | None:
    """Load a discriminator, or None for no path.

    Raises:
        ConfigError: the file holds another network.
    """
    if path is None:
        return None
    network = load_network(path)
    if not isinstance(network, PatchDiscriminator | MultiscaleDiscriminator):
        raise ConfigError(f"discriminator={str(path)!r}: holds a {network.arch!r} network, expected 'patch' or 'multiscale'")
    return network


def new_supernet(space: str, teacher: Generator, separable: bool) -> Supernet:
    """A supernet of a space for a teacher, its weights not yet initialised: of the teacher's own architecture if that can be
    one, else a ResNet for its channels, of its blocks and padding.
    """
    if isinstance(teacher, SlicedGenerator) and not isinstance(teacher, ResnetGenerator):
        parsed = SearchSpace.parse(space, teacher.config.slots, teacher.arch)
        if len(parsed.choices) != teacher.config.slots:
            raise ConfigError(
                f"space={space!r}: has {len(parsed.choices)} slots, this {teacher.arch} generator has {teacher.config.slots}"
            )
        config = teacher.config.with_channels(parsed.largest)
        if isinstance(config, SpadeConfig):
            config = dataclasses.replace(config, separable=separable)
        return Supernet.around(type(teacher)(config), parsed)
    resnet = teacher.config if isinstance(teacher, ResnetGenerator) else None
    n_blocks = 9 if resnet is None else resnet.n_blocks
    return Supernet(
        SearchSpace.parse(space, slots=5 + hidden_slots(n_blocks)),
        n_blocks,
        separable=separable,
        padding="reflect" if resnet is None else resnet.padding,
        in_channels=teacher.config.in_channels,
        out_channels=teacher.config.out_channels,
    )


def build_supernet(run: SupernetRun, teacher: Generator, train: ImageDataset) -> Supernet:
    """A supernet for ``teacher``, started from its weights where it is wide enough (:func:`inherits`), else at random."""
    supernet = new_supernet(run.space, teacher, run.separable)
    init_weights(supernet, seeded_generator(run.train.seed))
    if run.train.init != "teacher" or not inherits(teacher, supernet.generator):
        return supernet
    if isinstance(teacher, ResnetGenerator):
        count = min(len(train), 8)
        images = stack_pairs([train.load(i * len(train) // count) for i in range(count)]).input
        transfer_weights(teacher, supernet.generator, calibration=images)
    elif isinstance(teacher, SlicedGenerator):
        supernet.generator.load_state_dict(teacher.slices(supernet.generator.config))
    return supernet


def inherits(teacher: Generator, student: Generator) -> bool:
    """Whether the student can start from the teacher's weights: a teacher of its architecture, as wide everywhere."""
    if isinstance(teacher, SlicedGenerator) and not isinstance(teacher, ResnetGenerator):
        try:
            check_sub_config(student.config, teacher.config)
        except ConfigError:
            return False
        return type(teacher) is type(student)
    if not isinstance(teacher, ResnetGenerator) or not isinstance(student, ResnetGenerator):
        return False
    if teacher.config.n_blocks != student.config.n_blocks:
        return False
    names = ("stem", "down", "stream", "up", "last")
    wide = all(getattr(teacher.config, name) >= getattr(student.config, name) for name in names)
    return wide and all(a >= b for a, b in zip(teacher.config.hidden, student.config.hidden, strict=True))


def run_supernet(run: SupernetRun, *, progress: bool = True, stop_at: int | None = None) -> Path:
    """Train the supernet; returns the path of ``supernet.safetensors``.

    Raises:
        GancompError: wrong settings, unusable files or data, a run folder of other settings, an interrupt.
    """
    folder = StageFolder(run.out)
    teacher = load_teacher(run.teacher, run.data)
    discriminator = find_discriminator(run.discriminator, run.teacher) if run.train.lambda_gan > 0 else None
    inherited = load_discriminator(discriminator)
    check_target(run.data, run.train)
    check_discriminator(run.data, run.train, inherited)
    train = open_split(run.data, "train", teacher)
    val = open_split(run.data, "val", teacher)
    with torch.random.fork_rng(devices=[]):
        supernet = build_supernet(run, teacher, train)
    stage = DistillStage(supernet, teacher, run.train, inherited, "supernet", run.gaugan)
    begin(folder, "supernet", run)
    record = provenance("supernet", run, teacher=Path(run.teacher), discriminator=discriminator)
    fit(stage, train, val, folder, record, progress=progress, stop_at=stop_at)
    return folder / "supernet.safetensors"
