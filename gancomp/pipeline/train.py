"""``gancomp train``: a teacher generator from paired images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gancomp.data import DataConfig
from gancomp.pipeline.settings import TeacherModel, check_discriminator, open_split, plain, provenance
from gancomp.train import StageFolder, TeacherStage, TrainOptions, fit


@dataclass(frozen=True)
class TrainRun:
    """Train a teacher generator (pix2pix) on pairs of images."""

    out: str
    """Folder of the run; the same command goes on from what is there."""
    data: DataConfig = field(default_factory=DataConfig)
    model: TeacherModel = field(default_factory=TeacherModel)
    train: TrainOptions = field(default_factory=TrainOptions)


def run_train(run: TrainRun, *, progress: bool = True, stop_at: int | None = None) -> Path:
    """Train the teacher; returns the path of ``generator.safetensors``.

    Raises:
        GancompError: wrong settings, unusable data, a run folder of other settings, an interrupt.
    """
    folder = StageFolder(run.out)
    stage = TeacherStage(run.model.build(run.data, run.train.seed), run.train)
    train, val = open_split(run.data, "train"), open_split(run.data, "val")
    check_discriminator(run.data, run.train)
    folder.open({"verb": "train", **plain(run, hide=("out",))})
    fit(stage, train, val, folder, provenance("train", run), progress=progress, stop_at=stop_at)
    return folder / "generator.safetensors"
