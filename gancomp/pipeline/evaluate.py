"""``gancomp evaluate``: scores of a generator on a split, with their protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gancomp.data import DataConfig
from gancomp.data.config import SPLITS, Split
from gancomp.errors import ConfigError
from gancomp.io import sha256_file, write_json
from gancomp.metrics import Evaluator, Runner, TeacherImages, load_extractor, load_segmenter
from gancomp.models import SpadeGenerator
from gancomp.models.base import check_range
from gancomp.pipeline.settings import Method, calibration_maps, load_teacher, open_generator, open_split, pick_device
from gancomp.supernet import calibrate


@dataclass(frozen=True)
class EvaluateOptions:
    """How scores are computed."""

    features: str = ""
    """MobileNetV2 file or `.pt2` program for the Frechet distance; empty: an embedded seeded network (`fd_random`)."""
    batch_size: int = 8
    """Images per forward pass."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`."""
    runner: Literal["auto", "engine", "torch"] = "auto"
    """What runs generators, and is timed: `engine` (on a CPU), `torch`, or `auto` for the engine where it can."""
    reference: str = ""
    """Splits whose output side the Frechet distance is to, such as `train+val+test`; empty: the split that is scored."""

    segmenter: str = ""
    """Segmentation network (an ESPNet's state dict or a `.pt2` program) for mean IoU on label maps; empty: none."""
    calibration: int = 64
    """Training images over which the batch statistics of a sub-network are taken (GauGAN)."""

    def __post_init__(self) -> None:
        check_range("evaluate", "calibration", self.calibration, 1)

    def reference_splits(self) -> list[Split]:
        """The splits of ``reference``.

        Raises:
            ConfigError: it names no splits, or one twice.
        """
        names = self.reference.split("+") if self.reference else []
        if len(set(names)) < len(names) or not set(names) <= set(SPLITS):
            raise ConfigError(f"evaluate.reference={self.reference!r}: expected some of train, val, test, joined by +")
        return [split for split in SPLITS if split in names]


@dataclass(frozen=True)
class EvaluateRun:
    """Score a generator on a split of a data set."""

    model: str
    """A generator file, or a supernet with `config_str`."""
    config_str: str = ""
    """The configuration of a supernet."""
    teacher: str = ""
    """For unpaired images: the teacher's generator file, whose images the image distances are to."""
    method: Method = "pix2pix"
    """The teacher's method, `pix2pix`, `cyclegan` or `gaugan`: sets the defaults of everything else to its published ones."""
    split: Literal["val", "test", "train"] = "test"
    """Which images."""
    out: str = ""
    """Write scores and protocol to this JSON file too."""
    json: bool = False
    """Print JSON."""
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)


def make_evaluator(
    data: DataConfig, split: Split, options: EvaluateOptions, generator: Any, teacher: str | Path = ""
) -> Evaluator:
    """The evaluator of a split for generators like ``generator``; with unpaired images, by a teacher's file.

    Raises:
        GancompError: unusable settings, files or data.
    """
    if options.batch_size < 1:
        raise ConfigError(f"evaluate.batch_size={options.batch_size}: expected at least 1")
    extractor = load_extractor(options.features or None)
    dataset = open_split(data, split, generator, any_size=True)
    references = [open_split(data, name, generator, any_size=True) for name in options.reference_splits()]
    device = pick_device(options.device)
    compared = None
    if teacher and data.unpaired:
        network = load_teacher(teacher, data)
        compared = TeacherImages(Runner.choose(network, device, options.runner).images(network), sha256_file(teacher))
    return Evaluator(
        dataset,
        extractor,
        options.batch_size,
        device,
        references=references,
        teacher=compared,
        segmenter=load_segmenter(options.segmenter) if options.segmenter else None,
    )


def run_evaluate(run: EvaluateRun) -> dict[str, Any]:
    """Scores and protocol of the generator.

    Raises:
        GancompError: unusable files, data or settings.
    """
    generator = open_generator(run.model, run.config_str, "evaluate", calibrated=False)
    evaluator = make_evaluator(run.data, run.split, run.evaluate, generator, run.teacher)
    if run.config_str and isinstance(generator, SpadeGenerator):
        calibrate(generator.to(evaluator.device), calibration_maps(run.data, run.evaluate.calibration, evaluator.device))
    runner = Runner.choose(generator, evaluator.device, run.evaluate.runner)
    protocol = {**evaluator.protocol(), **runner.facts(), "weights_sha256": sha256_file(run.model)}
    result = {"scores": evaluator.evaluate(runner.images(generator)), "protocol": protocol}
    if run.out:
        write_json(run.out, result)
    return result
