"""``gancomp compress``: every stage, from images or a trained teacher to a compressed generator and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gancomp.checkpoints import load_generator
from gancomp.data import DataConfig, train_batches
from gancomp.errors import ConfigError
from gancomp.io import atomic_path, read_json, write_json
from gancomp.models.base import check_range
from gancomp.pipeline.evaluate import EvaluateOptions, make_evaluator
from gancomp.pipeline.finetune import ExportRun, FinetuneRun, run_export, run_finetune
from gancomp.pipeline.search import BudgetOptions, SearchRun, check_objective, run_search, selection_evaluator
from gancomp.pipeline.settings import Method, TeacherModel, begin, check_discriminator, check_target, load_teacher, open_split
from gancomp.pipeline.summary import write_summary
from gancomp.pipeline.supernet import (
    SupernetRun,
    build_supernet,
    find_discriminator,
    load_discriminator,
    new_supernet,
    run_supernet,
)
from gancomp.pipeline.train import TrainRun, run_train, teacher_stage
from gancomp.search import CostModel, SearchOptions, check_reachable, profile_module
from gancomp.train import CycleOptions, DistillOptions, DistillStage, GauganOptions, Stage, StageFolder, TrainOptions


@dataclass(frozen=True, kw_only=True)
class CompressRun(BudgetOptions):
    """Compress a generator: teacher, supernet, search, fine-tuning, export, evaluation and report, each resumable.

    Without a limit (`budget`, `macs`, `params`, `latency_ms`) the budget is 10x.
    """

    out: str
    """Folder of the run; the same command goes on from what is there."""
    method: Method = "pix2pix"
    """`pix2pix`, `cyclegan` or `gaugan`; sets the defaults of everything else to the method's published ones."""
    teacher: str = ""
    """A trained teacher's generator file; empty to train one."""
    discriminator: str = ""
    """That teacher's discriminator; by default `discriminator.safetensors` beside it, if it is there."""
    minutes: float = 0.0
    """Training time in all: sets the stages' steps from this machine's measured speed; 0 takes their own `steps`."""
    space: str = "channels-48"
    """Search space of the supernet; see `gancomp supernet --help`."""
    separable: bool = True
    """Depthwise-separable residual blocks in the student (GauGAN: the convolutions of its scales and shifts)."""
    data: DataConfig = field(default_factory=DataConfig)
    model: TeacherModel = field(default_factory=TeacherModel)
    train: TrainOptions = field(default_factory=TrainOptions)
    cyclegan: CycleOptions = field(default_factory=CycleOptions)
    gaugan: GauganOptions = field(default_factory=GauganOptions)
    supernet: DistillOptions = field(default_factory=lambda: DistillOptions(sampling="sandwich"))
    search: SearchOptions = field(default_factory=SearchOptions)
    finetune: DistillOptions = field(default_factory=lambda: DistillOptions(steps=5000))
    finetuning: bool = True
    """Fine-tune the chosen configuration; without, its slices of the supernet are exported as they are."""
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)

    def __post_init__(self) -> None:
        check_range("compress", "minutes", self.minutes, 0.0, 1e6)

    def teacher_run(self, out: str = "") -> TrainRun:
        """The settings by which the teacher is trained."""
        return TrainRun(
            out,
            method=self.method,
            data=self.data,
            model=self.model,
            train=self.train,
            cyclegan=self.cyclegan,
            gaugan=self.gaugan,
        )


# Shares of the training time, measured in steps that cost different times: the teacher bounds what the student can learn.
_SHARES = {"train": 0.45, "supernet": 0.37, "finetune": 0.18}


def run_compress(run: CompressRun, *, progress: bool = True) -> Path:
    """Run every stage that is not done yet; returns the path of ``report.html``.

    The folder ends with ``student.safetensors``, ``evaluation.json``, ``report.html`` and a folder per stage.

    Raises:
        GancompError: wrong settings, unusable files or data, an unreachable budget, a folder of another run, an interrupt.
    """
    if not run.limits():
        run = replace(run, budget="10x")
    run.parse_budget()
    folder = StageFolder(run.out)
    # Every split is opened before hours of training depend on it.
    for split in ("train", "val", "test"):
        open_split(run.data, split)
    _check_training(run)
    _check_budget(run)
    _check_scores(run)
    begin(folder, "compress", run)
    run = planned(run, folder)
    teacher, discriminator = Path(run.teacher), run.discriminator
    if not run.teacher:
        _announce("teacher", progress)
        teacher = run_train(run.teacher_run(str(folder / "teacher")), progress=progress)
    _announce("supernet", progress)
    supernet = run_supernet(
        SupernetRun(
            str(teacher),
            str(folder / "supernet"),
            method=run.method,
            discriminator=discriminator,
            space=run.space,
            separable=run.separable,
            data=run.data,
            gaugan=run.gaugan,
            train=run.supernet,
        ),
        progress=progress,
    )
    _announce("search", progress)
    found = run_search(
        SearchRun(
            supernet=str(supernet),
            out=str(folder / "search"),
            teacher=str(teacher),
            method=run.method,
            search=run.search,
            data=run.data,
            evaluate=run.evaluate,
            **run.limits(),  # type: ignore[arg-type]
        ),
        progress=progress,
    )
    config_str = found.best["config_str"]
    chosen = folder / "search" / "chosen.safetensors"
    if run.finetuning:
        _announce(f"fine-tuning {config_str}", progress)
        chosen = run_finetune(
            FinetuneRun(
                str(supernet),
                str(teacher),
                config_str,
                str(folder / "finetune"),
                method=run.method,
                calibration=run.evaluate.calibration,
                data=run.data,
                gaugan=run.gaugan,
                train=run.finetune,
            ),
            progress=progress,
        )
    if run.finetuning or chosen.exists():
        with atomic_path(folder / "student.safetensors") as temporary:
            temporary.write_bytes(chosen.read_bytes())
    else:
        run_export(ExportRun(str(supernet), str(folder / "student.safetensors"), config_str))
    _announce("report", progress)
    return write_summary(run, folder, teacher, supernet, found)


def _check_training(run: CompressRun) -> None:
    """Find out before any training that the method, the images and every stage's options go together.

    Raises:
        ConfigError: they do not.
        CheckpointError: a file of the teacher cannot be used.
    """
    inherited = None
    if run.teacher:
        load_teacher(run.teacher, run.data)
        if run.supernet.lambda_gan > 0:
            inherited = load_discriminator(find_discriminator(run.discriminator, run.teacher))
    else:
        if run.discriminator:
            raise ConfigError(f"discriminator={run.discriminator!r}: belongs to a trained teacher; give that one too (teacher)")
        teacher_stage(run.teacher_run())
    for options in (run.supernet, *[run.finetune] * run.finetuning):
        check_target(run.data, options)
        # A teacher that is trained here leaves a discriminator, which has been checked.
        if run.teacher or run.train.lambda_gan == 0:
            check_discriminator(run.data, options, inherited)


def _check_scores(run: CompressRun) -> None:
    """Find out before any training that search and report can score the images, by every label map among them.

    Raises:
        GancompError: a setting, file or image cannot be used.
    """
    teacher = load_generator(run.teacher) if run.teacher else run.model.build(run.data, run.train.seed)
    check_objective(selection_evaluator(run.data, run.evaluate, teacher), run.search.objective, teacher=True)
    make_evaluator(run.data, "test", run.evaluate, teacher)
    for split in ("val", "test") if run.data.labels else ():
        images = open_split(run.data, split)
        for index in range(len(images)):
            images.load(index)


def _check_budget(run: CompressRun) -> None:
    """Find out before any training that the budget is out of reach of the search space.

    Raises:
        ConfigError: the smallest configuration costs more than the budget allows.
    """
    shape = (1, run.data.input_channels, *run.data.crop)
    teacher = load_generator(run.teacher) if run.teacher else run.model.build(run.data, run.train.seed)
    limits = replace(run.parse_budget().resolve(profile_module(teacher, shape)), latency_ms=0.0)
    with torch.device("meta"):
        supernet = new_supernet(run.space, teacher, run.separable)
    check_reachable(supernet.space, CostModel(supernet, shape), limits)


def _announce(stage: str, progress: bool) -> None:
    if progress:
        print(f"== {stage}", flush=True)


def planned(run: CompressRun, folder: StageFolder) -> CompressRun:
    """The run with its steps set from ``minutes``; the plan is kept so that a resumed run trains as long."""
    if run.minutes <= 0:
        return run
    path = folder / "plan.json"
    if not path.exists():
        write_json(path, _plan(run))
    steps = read_json(path)["steps"]
    return replace(
        run,
        train=replace(run.train, steps=steps["train"]),
        supernet=replace(run.supernet, steps=steps["supernet"]),
        finetune=replace(run.finetune, steps=steps["finetune"]),
    )


def _plan(run: CompressRun) -> dict[str, Any]:
    """Time a few steps of every stage on this machine and share ``minutes`` out."""
    shares = {name: share for name, share in _SHARES.items() if _trains(run, name)}
    if not shares:
        raise ConfigError(f"minutes={run.minutes}: there is nothing to train")
    data = open_split(run.data, "train")
    teacher = load_generator(run.teacher) if run.teacher else run.model.build(run.data, run.train.seed)
    settings = SupernetRun("", "", space=run.space, separable=run.separable, data=run.data, train=run.supernet)
    supernet = build_supernet(settings, teacher, data)
    smallest = supernet.generator.extract(supernet.network_config(supernet.space.smallest))
    stages: dict[str, Stage] = {
        "supernet": DistillStage(supernet, teacher, run.supernet, gaugan=run.gaugan),
        "finetune": DistillStage(smallest, teacher, run.finetune, name="finetune", gaugan=run.gaugan),
    }
    if "train" in shares:
        stages["train"] = teacher_stage(run.teacher_run())
    total = sum(shares.values())
    seconds = {name: _step_seconds(stages[name], data) for name in shares}
    steps = {name: max(1, int(run.minutes * 60 * share / total / seconds[name])) for name, share in shares.items()}
    return {"minutes": run.minutes, "seconds_per_step": seconds, "steps": {**dict.fromkeys(_SHARES, 1), **steps}}


def _trains(run: CompressRun, stage: str) -> bool:
    return {"train": not run.teacher, "supernet": True, "finetune": run.finetuning}[stage]


def _step_seconds(stage: Stage, data: Any, steps: int = 4) -> float:
    batches = train_batches(data, stage.options.batch_size, stage.options.seed)
    times = []
    for step in range(steps + 1):
        batch = next(batches).to(stage.device)
        begin = time.perf_counter()
        losses = stage.step(batch, step)
        float(next(iter(losses.values())))
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[steps // 2]
