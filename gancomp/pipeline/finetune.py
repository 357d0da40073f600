"""``gancomp finetune`` and ``gancomp export``: one configuration, trained further or as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gancomp.checkpoints import load_subnetwork
from gancomp.data import DataConfig
from gancomp.models.channels import parse_config
from gancomp.pipeline.settings import (
    Method,
    begin,
    calibration_maps,
    check_discriminator,
    check_target,
    check_weights_name,
    load_teacher,
    open_generator,
    open_split,
    provenance,
)
from gancomp.pipeline.supernet import find_discriminator, load_discriminator
from gancomp.train import DistillOptions, DistillStage, GauganOptions, StageFolder, fit


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tune one configuration of a supernet under its teacher."""

    supernet: str
    """`supernet.safetensors` of a supernet run (adaptors and discriminator beside it are inherited), or a published one."""
    teacher: str
    """The teacher's generator file."""
    config_str: str
    """The configuration, e.g. `16_16_32_16_32_32_16_16`."""
    out: str
    """Folder of the run; the same command goes on from what is there."""
    method: Method = "pix2pix"
    """The teacher's method, `pix2pix`, `cyclegan` or `gaugan`: sets the defaults of everything else to its published ones."""
    discriminator: str = ""
    """The discriminator to inherit; by default the one beside the supernet, if it is there."""
    calibration: int = 64
    """Training images over which the result's batch statistics are taken (gaugan)."""
    data: DataConfig = field(default_factory=DataConfig)
    gaugan: GauganOptions = field(default_factory=GauganOptions)
    train: DistillOptions = field(default_factory=DistillOptions)


def run_finetune(run: FinetuneRun, *, progress: bool = True, stop_at: int | None = None) -> Path:
    """Fine-tune; returns the path of ``generator.safetensors``.

    Raises:
        GancompError: wrong settings, unusable files or data, a run folder of other settings, an interrupt.
    """
    folder = StageFolder(run.out)
    teacher = load_teacher(run.teacher, run.data)
    # Batch statistics of other widths soon give way to those of training.
    student = load_subnetwork(run.supernet, parse_config(run.config_str), calibrated=False)
    discriminator = find_discriminator(run.discriminator, run.supernet) if run.train.lambda_gan > 0 else None
    inherited = load_discriminator(discriminator)
    check_target(run.data, run.train)
    check_discriminator(run.data, run.train, inherited)
    train, val = open_split(run.data, "train", teacher), open_split(run.data, "val", teacher)
    stage = DistillStage(
        student,
        teacher,
        run.train,
        inherited,
        "finetune",
        run.gaugan,
        lambda: calibration_maps(run.data, run.calibration, stage.device),
    )
    adaptors = Path(run.supernet).parent / "adaptors.safetensors"
    if run.train.lambda_distill > 0 and adaptors.exists():
        stage.inherit_adaptors(adaptors)
    begin(folder, "finetune", run)
    record = provenance("finetune", run, teacher=Path(run.teacher), supernet=Path(run.supernet), discriminator=discriminator)
    fit(stage, train, val, folder, record, progress=progress, stop_at=stop_at)
    return folder / "generator.safetensors"


@dataclass(frozen=True)
class ExportRun:
    """Write one generator to a single `.safetensors` file that carries its configuration."""

    model: str
    """A supernet, also a published one, or any generator file (one of another project is converted)."""
    out: str
    """The file to write, ending in `.safetensors`."""
    config_str: str = ""
    """The configuration to cut out of a supernet."""


def run_export(run: ExportRun) -> Path:
    """Export; returns the path written.

    Raises:
        ConfigError: a configuration for what is no supernet, or none for a supernet; a name of another ending.
        CheckpointError: the model cannot be loaded.
    """
    check_weights_name(run.out)
    generator = open_generator(run.model, run.config_str, "cut out of it")
    generator.save(run.out, provenance("export", run, model=Path(run.model)))
    return Path(run.out)
