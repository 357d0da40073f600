"""``gancomp demo``: the whole compression on the embedded data, small enough for a laptop's CPU."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from gancomp.data import DataConfig
from gancomp.pipeline.compress import CompressRun, run_compress
from gancomp.pipeline.settings import TeacherModel
from gancomp.search import SearchOptions
from gancomp.train import DistillOptions, TrainOptions


@dataclass(frozen=True)
class DemoRun:
    """Train, compress and report a small generator on the embedded edges->shapes set at 64x64, in minutes on two cores."""

    out: str = "demo"
    """Folder of the run; the same command goes on from what is there."""
    seed: int = 233
    """Seed of data, weights and every random choice."""


def demo_settings(run: DemoRun) -> CompressRun:
    """The settings of the demo, as those of ``gancomp compress``."""
    base = DistillOptions(
        batch_size=4, ndf=32, seed=run.seed, log_every=20, sample_every=200, save_every=100, workers=1, lr=5e-4
    )
    common = {f.name: getattr(base, f.name) for f in fields(TrainOptions)}
    return CompressRun(
        out=run.out,
        budget="8x",
        space="24,16,12",
        data=DataConfig(load_size=64, crop_size=64, seed=run.seed),
        model=TeacherModel(ngf=32, n_blocks=6),
        train=replace(TrainOptions(**common), steps=600),
        supernet=replace(base, steps=400, sampling="sandwich"),
        search=SearchOptions(population=12, generations=3, objective="l1", seed=run.seed),
        finetune=replace(base, steps=200),
    )


def run_demo(run: DemoRun, *, progress: bool = True) -> Path:
    """Run the demo; returns the path of ``report.html``."""
    return run_compress(demo_settings(run), progress=progress)
