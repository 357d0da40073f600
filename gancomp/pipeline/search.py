"""``gancomp search``: the best configuration of a supernet under a budget, without retraining."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from gancomp.checkpoints import load_supernet
from gancomp.data import DataConfig
from gancomp.errors import ConfigError
from gancomp.io import sha256_file, write_json
from gancomp.metrics import HIGHER_IS_BETTER, SEGMENTATION, Evaluator, Runner
from gancomp.models import Generator
from gancomp.models.channels import Config, parse_config
from gancomp.pipeline.evaluate import EvaluateOptions, make_evaluator
from gancomp.pipeline.settings import Method, begin, calibration_maps, hardware, load_teacher, provenance
from gancomp.search import Budget, CostModel, SearchOptions, SearchResult, check_reachable, profile_module, search
from gancomp.train import StageFolder


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What the chosen generator may cost at most; several limits hold together."""

    budget: str = ""
    """Reduction of the teacher's multiply-accumulates: `10x` allows a tenth of them."""
    macs: str = ""
    """True multiply-accumulates per image: `2.5e9`, `2.5G`, `500M`."""
    params: str = ""
    """Parameters: `0.5M`."""
    latency_ms: float = 0.0
    """Measured milliseconds per image (median, batch 1) on this machine; `evaluate.runner` says in what."""

    def limits(self) -> dict[str, str | float]:
        """The limits that were given, by name."""
        values = {name: getattr(self, name) for name in ("budget", "macs", "params", "latency_ms")}
        return {name: value for name, value in values.items() if value}

    def parse_budget(self) -> Budget:
        """The limits as numbers.

        Raises:
            ConfigError: a limit cannot be read, or none is given.
        """
        return Budget.parse(ratio=self.budget, macs=self.macs, params=self.params, latency_ms=self.latency_ms)


@dataclass(frozen=True, kw_only=True)
class SearchRun(BudgetOptions):
    """Find the best configuration of a supernet under a budget."""

    supernet: str
    """`supernet.safetensors` of a supernet run."""
    out: str
    """Folder of the results; the same command goes on from what is there."""
    teacher: str = ""
    """The teacher's generator file: needed for a budget like `10x`, and for image distances of unpaired images."""
    method: Method = "pix2pix"
    """The teacher's method, `pix2pix`, `cyclegan` or `gaugan`: sets the defaults of everything else to its published ones."""
    search: SearchOptions = field(default_factory=SearchOptions)
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)


def selection_evaluator(
    data: DataConfig, options: EvaluateOptions, generator: Generator, teacher: str | Path = ""
) -> Evaluator:
    """The evaluator by which a search chooses: of the validation split, and of no test image.

    Raises:
        GancompError: unusable settings, files or data.
    """
    kept = [split for split in options.reference_splits() if split != "test"]
    return make_evaluator(data, "val", replace(options, reference="+".join(kept)), generator, teacher)


def check_objective(evaluator: Evaluator, objective: str, *, teacher: bool = False) -> None:
    """Find out before a search, or all training before it, that the evaluator can compute its objective.

    Args:
        evaluator: of the validation split.
        objective: name of a metric.
        teacher: whether there will be a teacher for unpaired images to be compared with.

    Raises:
        ConfigError: it cannot.
    """
    name = f"search.objective={objective!r}"
    if objective not in evaluator.metrics and not (teacher and objective not in SEGMENTATION):
        lacking = (
            "needs a segmentation network (evaluate.segmenter)"
            if objective in SEGMENTATION
            else "unpaired images are compared with the teacher's; give one, or use 'fd'"
        )
        raise ConfigError(f"{name}: {lacking}")
    if objective == "fd" and min(len(evaluator.dataset), evaluator.reference_images) < 2:
        raise ConfigError(
            f"{name}: a Frechet distance needs at least 2 images, the validation split has {len(evaluator.dataset)}; "
            "add images (val/), or use another objective such as 'l1'"
        )


def run_search(run: SearchRun, *, progress: bool = True) -> SearchResult:
    """Search; writes ``results.jsonl``, ``pareto.png`` and ``chosen.json`` to the folder.

    A configuration with batch statistics is evaluated by its own; ``chosen.safetensors`` is the best one with them.

    Raises:
        GancompError: wrong settings, unusable files or data, an unreachable budget, a folder of another search.
    """
    folder = StageFolder(run.out)
    supernet = load_supernet(run.supernet)
    teacher = load_teacher(run.teacher, run.data) if run.teacher else None
    evaluator = selection_evaluator(run.data, run.evaluate, supernet.generator, run.teacher)
    shape = (1, run.data.input_channels, *run.data.crop)
    teacher_profile = None if teacher is None else profile_module(teacher, shape)
    limits = run.parse_budget().resolve(teacher_profile)
    smallest = supernet.generator.extract(supernet.network_config(supernet.space.smallest))
    runner = Runner.choose(smallest, evaluator.device, run.evaluate.runner)
    cost = CostModel(supernet, shape, runner=runner if limits.latency_ms else None)
    check_reachable(supernet.space, cost, limits)
    objective = run.search.objective
    key = evaluator.fd_name if objective == "fd" else objective
    check_objective(evaluator, objective)
    wanted = [name for name in dict.fromkeys(("l1", objective)) if name in evaluator.metrics]

    maps: list[torch.Tensor] = []
    if supernet.batch_norms:
        maps = calibration_maps(run.data, run.evaluate.calibration, evaluator.device)
        supernet.to(evaluator.device)

    def evaluate(config: Config) -> dict[str, float]:
        supernet.calibrate(config, maps)
        return evaluator.evaluate(runner.candidate(supernet, config), wanted)

    begin(folder, "search", run)
    header = {"supernet_sha256": sha256_file(run.supernet), **evaluator.protocol()}
    if supernet.batch_norms:
        header["calibration_images"] = len(maps)
    if limits.latency_ms:
        # Scores are equal in everything that runs them, up to rounding. Times are not: what they depend on must not change.
        header["latency"] = {**hardware(), **runner.facts()}
    result = search(
        supernet.space,
        evaluate,
        cost,
        limits,
        run.search,
        objective_key=key,
        maximize=objective in HIGHER_IS_BETTER,
        results_path=folder / "results.jsonl",
        header=header,
        progress=progress,
    )
    _plot(run, result, key, objective in HIGHER_IS_BETTER, limits.macs, folder)
    inputs = {"supernet": Path(run.supernet), "teacher": Path(run.teacher) if run.teacher else None}
    record = provenance("search", run, **inputs)
    if supernet.batch_norms:
        best = parse_config(result.best["config_str"])
        supernet.calibrate(best, maps)
        supernet.extract(best).save(folder / "chosen.safetensors", record)
    write_json(folder / "chosen.json", {**result.best, "objective": key, "provenance": record})
    folder.finish({"stage": "search", "config_str": result.best["config_str"], "evaluated": len(result.records)})
    return result


def _plot(run: SearchRun, result: SearchResult, key: str, maximize: bool, limit: float, folder: StageFolder) -> None:
    from gancomp.report.plots import pareto_plot

    try:
        pareto_plot(
            folder / "pareto.png",
            result.records,
            result.best,
            cost_key="macs",
            objective_key=key,
            maximize=maximize,
            limit=limit or None,
            cost_label="multiply-accumulates per image",
            objective_label=f"{key} on the validation split",
        )
    except ConfigError as error:
        # A machine without a plotting library still gets its result.
        print(f"search: no Pareto plot ({error})")
