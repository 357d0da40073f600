"""``gancomp train``: a teacher generator, from pairs of images or from two sets of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gancomp.data import DataConfig
from gancomp.errors import ConfigError
from gancomp.pipeline.settings import Method, TeacherModel, begin, check_discriminator, open_split, provenance
from gancomp.train import CycleOptions, CycleStage, GauganOptions, Stage, StageFolder, TeacherStage, TrainOptions, fit


@dataclass(frozen=True)
class TrainRun:
    """Train a teacher generator: pix2pix on pairs, CycleGAN on two sets of images (both directions), GauGAN on label maps."""

    out: str
    """Folder of the run; the same command goes on from what is there."""
    method: Method = "pix2pix"
    """`pix2pix`, `cyclegan` or `gaugan`; sets the defaults of everything else to the method's published ones."""
    data: DataConfig = field(default_factory=DataConfig)
    model: TeacherModel = field(default_factory=TeacherModel)
    train: TrainOptions = field(default_factory=TrainOptions)
    cyclegan: CycleOptions = field(default_factory=CycleOptions)
    gaugan: GauganOptions = field(default_factory=GauganOptions)


def teacher_stage(run: TrainRun) -> Stage:
    """The training of a run's teacher, freshly initialised.

    Raises:
        ConfigError: settings that do not fit the method or each other.
    """
    if run.method == "pix2pix" and run.data.unpaired:
        raise ConfigError("method='pix2pix': trains on pairs, and data.unpaired is set; use cyclegan")
    check_discriminator(run.data, run.train)
    generator = run.model.build(run.data, run.train.seed)
    if run.method == "cyclegan":
        back = run.model.build(run.data.reversed(), run.train.seed + 3)
        return CycleStage(generator, back, run.train, run.cyclegan, run.data.direction)
    return TeacherStage(generator, run.train, run.gaugan)


def run_train(run: TrainRun, *, progress: bool = True, stop_at: int | None = None) -> Path:
    """Train the teacher; returns the path of ``generator.safetensors``, that of the run's direction.

    Raises:
        GancompError: wrong settings, unusable data, a run folder of other settings, an interrupt.
    """
    folder = StageFolder(run.out)
    stage = teacher_stage(run)
    train, val = open_split(run.data, "train"), open_split(run.data, "val")
    begin(folder, "train", run)
    fit(stage, train, val, folder, provenance("train", run), progress=progress, stop_at=stop_at)
    return folder / "generator.safetensors"
