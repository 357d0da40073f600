"""Training: the shared loop and its stages."""

from gancomp.train.cyclegan import CycleStage
from gancomp.train.distill import DistillStage
from gancomp.train.loop import Interrupted, Stage, fit
from gancomp.train.options import CycleOptions, DistillOptions, GauganOptions, TrainOptions
from gancomp.train.state import StageFolder
from gancomp.train.teacher import TeacherStage

__all__ = [
    "CycleOptions",
    "CycleStage",
    "DistillOptions",
    "DistillStage",
    "GauganOptions",
    "Interrupted",
    "Stage",
    "StageFolder",
    "TeacherStage",
    "TrainOptions",
    "fit",
]
