"""``gancomp sensitivity``: which layers of a ResNet generator can be decomposed, and at what price.

Source: GAN Compression, section 3.2, which found that the residual blocks carry most of the cost and bear being decomposed, and
that the down- and upsampling layers bear it less. Each group is decomposed in turn, and every variant trains in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from gancomp.checkpoints import load_generator
from gancomp.data import DataConfig
from gancomp.errors import ConfigError
from gancomp.io import read_json, sha256_file, write_json, write_text
from gancomp.metrics import HIGHER_IS_BETTER, Evaluator, Runner, generator_call, measure_latency
from gancomp.models import Generator, ResnetGenerator, seeded_generator
from gancomp.models.decomposed import DecomposedConfig, decompose, layer_groups
from gancomp.models.stock import stock_generator
from gancomp.nn import init_weights
from gancomp.pipeline.evaluate import EvaluateOptions, make_evaluator
from gancomp.pipeline.settings import (
    Method,
    TeacherModel,
    begin,
    check_discriminator,
    check_target,
    hardware,
    load_teacher,
    open_split,
    provenance,
)
from gancomp.pipeline.supernet import find_discriminator, load_discriminator
from gancomp.search import profile_module
from gancomp.train import DistillOptions, DistillStage, Stage, StageFolder, TeacherStage, fit
from gancomp.version import __version__

DENSE = "dense"
"""The variant of which nothing is decomposed."""


@dataclass(frozen=True)
class SensitivityRun:
    """Decompose each group of a dense ResNet generator's layers in turn, train every variant alike, and compare them."""

    out: str
    """Folder of the run; the same command goes on from what is there."""
    groups: str = ""
    """Some of `stem,down,blocks,blocks-1,blocks-2,blocks-3,up,head,all`; empty: each of them. `dense` always takes part."""
    teacher: str = ""
    """A dense ResNet's generator file: its architecture is studied, and it teaches. Empty: variants train on pairs."""
    discriminator: str = ""
    """The teacher's discriminator to inherit; by default `discriminator.safetensors` beside the teacher, if it is there."""
    method: Method = "pix2pix"
    """The teacher's method, `pix2pix` or `cyclegan`: sets the defaults of everything else to its published ones."""
    objective: Literal["fd", "l1", "psnr", "ssim"] = "fd"
    """The score, on the validation split, that is drawn."""
    data: DataConfig = field(default_factory=DataConfig)
    model: TeacherModel = field(default_factory=TeacherModel)
    train: DistillOptions = field(default_factory=lambda: DistillOptions(steps=2000))
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)

    def variants(self, n_blocks: int) -> list[str]:
        """The dense generator and the groups that are decomposed in turn, in the order of the layers.

        Raises:
            ConfigError: a group that a generator of so many blocks does not have, or one twice.
        """
        known = list(layer_groups(n_blocks))
        names = self.groups.replace(" ", "").split(",") if self.groups else known
        if len(set(names)) < len(names) or not set(names) <= set(known):
            raise ConfigError(
                f"groups={self.groups!r}: expected some of {', '.join(known)} (of a generator of {n_blocks} blocks), each once"
            )
        return [DENSE, *(name for name in known if name in names)]


def run_sensitivity(run: SensitivityRun, *, progress: bool = True) -> dict[str, Any]:
    """Train, score and time every variant; writes ``sensitivity.json``, ``.md`` and ``.png``, and a folder per variant.

    Returns:
        What ``sensitivity.json`` holds: ``variants``, ``objective``, and what their numbers depend on.

    Raises:
        GancompError: wrong settings, unusable files or data, a run folder of other settings, an interrupt.
    """
    folder, result_path = StageFolder(run.out), Path(run.out) / "sensitivity.json"
    dense, teacher = _networks(run)
    names = run.variants(dense.config.n_blocks)
    _check(run, teacher)
    evaluator = make_evaluator(run.data, "val", run.evaluate, dense, run.teacher)
    metrics = _metrics(run, evaluator)
    runner = Runner.choose(decompose(dense, [], run.train.seed), evaluator.device, run.evaluate.runner)
    begin(folder, "sensitivity", run)
    if folder.done is not None and result_path.exists():
        return dict(read_json(result_path))
    scores: dict[str, dict[str, float]] = {}
    networks: dict[str, Generator] = {}
    for number, name in enumerate(names, start=1):
        if progress:
            print(f"== {name} ({number} of {len(names)})", file=sys.stderr, flush=True)
        path = _train(run, name, dense, teacher, progress)
        networks[name] = load_generator(path)
        scores[name] = _scores(path, networks[name], evaluator, runner, metrics)
    key = evaluator.fd_name if run.objective == "fd" else run.objective
    result = {
        "objective": {"key": key, "maximize": key in HIGHER_IS_BETTER},
        "variants": _rows(run, networks, scores, evaluator.device),
        "protocol": evaluator.protocol(),
        "latency": {"of": "stock PyTorch layers, one image, median", "device": evaluator.device.type, **hardware()},
        "software": {"gancomp": __version__, "torch": torch.__version__},
    }
    write_json(result_path, result)
    write_text(folder / "sensitivity.md", sensitivity_table(result))
    _plot(folder / "sensitivity.png", result)
    folder.finish({"stage": "sensitivity", "variants": names})
    return result


def sensitivity_table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, a row per variant."""
    variants = result["variants"]
    scores = list(variants[0]["scores"])
    names = ["decomposed", "layers", "parameters", "MACs", "of dense", "ms", *scores]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    for row in variants:
        numbers = [str(row["layers"]), f"{row['params']:,}", f"{row['macs']:,}", f"{row['macs_share']:.1%}"]
        lines.append([row["variant"], *numbers, f"{row['ms']:.2f}", *(f"{row['scores'][name]:.4g}" for name in scores)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _networks(run: SensitivityRun) -> tuple[ResnetGenerator, Generator | None]:
    """The dense generator that every variant starts from, and the teacher if there is one."""
    if run.method == "gaugan" or run.data.labels:
        raise ConfigError(f"method={run.method!r}: the groups of layers are those of a ResNet; expected pix2pix or cyclegan")
    if not run.teacher:
        if run.data.unpaired or run.train.target == "teacher":
            raise ConfigError("teacher='': without one, variants train on pairs, to the ground truth; give a generator file")
        return _dense(run.model.build(run.data, run.train.seed), f"model.arch={run.model.arch!r}"), None
    teacher = _dense(load_teacher(run.teacher, run.data), f"teacher={run.teacher!r}")
    dense = ResnetGenerator(teacher.config)
    if run.train.init == "teacher":
        dense.load_state_dict(teacher.state_dict())
    else:
        init_weights(dense, seeded_generator(run.train.seed))
    return dense, teacher


def _dense(generator: Generator, setting: str) -> ResnetGenerator:
    if not isinstance(generator, ResnetGenerator) or generator.config.separable:
        kind = "separable resnet" if isinstance(generator, ResnetGenerator) else generator.arch
        raise ConfigError(f"{setting}: is a {kind} generator; expected a dense resnet, whose layers can be decomposed")
    return generator


def _check(run: SensitivityRun, teacher: Generator | None) -> None:
    """Find out before any training that data, teacher and options go together."""
    if teacher is None and run.discriminator:
        raise ConfigError(f"discriminator={run.discriminator!r}: is inherited from a teacher, and none is given")
    if teacher is not None:
        check_target(run.data, run.train)
    check_discriminator(run.data, run.train, load_discriminator(_discriminator(run)))
    for split in ("train", "val"):
        open_split(run.data, split, teacher)


def _discriminator(run: SensitivityRun) -> Path | None:
    return find_discriminator(run.discriminator, run.teacher) if run.teacher and run.train.lambda_gan > 0 else None


def _metrics(run: SensitivityRun, evaluator: Evaluator) -> list[str]:
    several = min(len(evaluator.dataset), evaluator.reference_images) > 1
    if run.objective == "fd" and not several:
        raise ConfigError("objective='fd': a Frechet distance needs two validation images at least; use 'l1'")
    return [name for name in ("l1", "psnr", "ssim", *["fd"] * several) if name in evaluator.metrics]


def _train(run: SensitivityRun, name: str, dense: ResnetGenerator, teacher: Generator | None, progress: bool) -> Path:
    """Train a variant, or go on where it was; returns its generator's file."""
    folder = StageFolder(Path(run.out) / name)
    begin(folder, "sensitivity", run)
    if folder.done is None:
        # Seeds apart from that of the weights that all variants share, which those of decomposed layers must not repeat.
        variant = decompose(dense, [] if name == DENSE else [name], run.train.seed + 1)
        discriminator = _discriminator(run)
        stage: Stage
        if teacher is None:
            stage = TeacherStage(variant, run.train)
            stage.name = name
        else:
            # Each variant goes on with the teacher's discriminator as it was.
            stage = DistillStage(variant, teacher, run.train, load_discriminator(discriminator), name)
        inputs = {"teacher": Path(run.teacher) if run.teacher else None, "discriminator": discriminator}
        record = provenance("sensitivity", run, **inputs)
        fit(stage, open_split(run.data, "train"), open_split(run.data, "val"), folder, record, progress=progress)
    return folder / "generator.safetensors"


def _scores(path: Path, network: Generator, evaluator: Evaluator, runner: Runner, metrics: Sequence[str]) -> dict[str, float]:
    """The scores of a trained variant; kept beside it, with what they depend on."""
    kept, facts = path.with_name("scores.json"), {"weights_sha256": sha256_file(path), "protocol": evaluator.protocol()}
    record = read_json(kept) if kept.exists() else {}
    if {name: record.get(name) for name in facts} != facts:
        record = {**facts, "scores": evaluator.evaluate(runner.images(network), metrics)}
        write_json(kept, record)
    return dict(record["scores"])


def _rows(
    run: SensitivityRun, networks: Mapping[str, Generator], scores: Mapping[str, dict[str, float]], device: torch.device
) -> list[dict[str, Any]]:
    """Costs and scores of every variant, the dense one first."""
    shape = (1, run.data.input_channels, *run.data.crop)
    # The package's own layers are faster for some groups only: all are timed as stock layers, in turns.
    calls = {name: generator_call(stock_generator(network), shape, device) for name, network in networks.items()}
    times = measure_latency(calls, seconds=60.0)
    profiles = {name: profile_module(network, shape) for name, network in networks.items()}
    return [
        {
            "variant": name,
            "layers": _count(networks[name]),
            "params": profiles[name].params,
            "macs": profiles[name].macs,
            "macs_published": profiles[name].macs_published,
            "macs_share": round(profiles[name].macs / profiles[DENSE].macs, 6),
            "ms": round(times[name].p50, 4),
            "scores": scores[name],
        }
        for name in networks
    ]


def _count(network: Generator) -> int:
    """How many convolutions of a variant are decomposed; a residual block has two."""
    config: DecomposedConfig = network.config
    groups = layer_groups(config.n_blocks)
    return sum(2 if index in groups.get("blocks", ()) else 1 for name in config.groups for index in groups[name])


def _plot(path: Path, result: Mapping[str, Any]) -> None:
    from gancomp.report.plots import sensitivity_plot

    try:
        sensitivity_plot(path, result)
    except ConfigError as error:
        # A machine without a plotting library still gets its result.
        print(f"no plot: {error}", file=sys.stderr)
