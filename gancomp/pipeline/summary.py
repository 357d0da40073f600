"""The end of ``compress``: scores on the test split, measured latency, and the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gancomp.checkpoints import load_generator, load_supernet
from gancomp.data import paint_labels, stack_pairs, to_image
from gancomp.errors import ConfigError, GancompError
from gancomp.io import read_json, read_jsonl, sha256_file, write_json
from gancomp.metrics import (
    SEGMENTATION,
    Latency,
    Runner,
    engine_call,
    engine_on,
    generator_call,
    measure_latency,
)
from gancomp.metrics.contenders import Truth, eager_form, example_image
from gancomp.models import Generator, ResnetGenerator
from gancomp.models.channels import parse_config
from gancomp.pipeline.evaluate import make_evaluator
from gancomp.pipeline.settings import hardware, open_split
from gancomp.report import ReportData, Stage, Table, write_report
from gancomp.report.plots import curves_plot
from gancomp.search import Profile, SearchResult, profile_module
from gancomp.train import StageFolder
from gancomp.version import __version__

if TYPE_CHECKING:
    from gancomp.pipeline.compress import CompressRun

_COMMAND = """import gancomp
generator = gancomp.load_generator("student.safetensors")  # in PyTorch"""
_ENGINE = """
engine = gancomp.Engine("student.safetensors")  # on a CPU, without PyTorch"""
_LABELS = {"l1": "L1 (lower is better)", "psnr": "PSNR, dB (higher is better)", "ssim": "SSIM (higher is better)"}
_FORMS = {"engine": "the engine", "gancomp": "gancomp", "eager": "the same"}
_SEEN = {"miou": "mean IoU (higher is better)", "accuracy": "pixel accuracy (higher is better)"}
# The losses that are drawn, of whichever stage has them.
_LOSSES = ("recon", "distill", "G", "D", "cycle_A", "cycle_B", "G_A", "G_B", "D_A", "D_B", "feat", "vgg")


def write_summary(run: CompressRun, folder: StageFolder, teacher: Path, supernet: Path, found: SearchResult) -> Path:
    """Evaluate teacher and student on the test split, time them, and write ``evaluation.json`` and ``report.html``."""
    path = folder / "report.html"
    student_path = folder / "student.safetensors"
    record_path = folder / "evaluation.json"
    networks: dict[str, Generator] = {"teacher": load_generator(teacher)}
    if run.finetuning:
        calibrated = folder / "search" / "chosen.safetensors"
        config = parse_config(found.best["config_str"])
        before = load_generator(calibrated) if calibrated.exists() else load_supernet(supernet).extract(config)
        networks["before fine-tuning"] = before
    networks["student"] = load_generator(student_path)
    digest = sha256_file(student_path)
    record = read_json(record_path) if record_path.exists() else {}
    if record.get("student_sha256") != digest:
        record = {"student_sha256": digest, **_measure(run, networks, teacher)}
        write_json(record_path, record)
    shape = (1, run.data.input_channels, *run.data.crop)
    profiles = {name: profile_module(network, shape) for name, network in networks.items()}
    write_report(path, _report(run, folder, networks, profiles, found, record))
    return path


def _measure(run: CompressRun, networks: dict[str, Generator], teacher: Path) -> dict[str, Any]:
    evaluator = make_evaluator(run.data, "test", run.evaluate, networks["teacher"], teacher)
    several = min(len(evaluator.dataset), evaluator.reference_images) > 1
    metrics = [name for name in ("l1", "psnr", "ssim", *["fd"] * several, *SEGMENTATION) if name in evaluator.metrics]
    scores = {}
    for name, network in networks.items():
        runner = Runner.choose(network, evaluator.device, run.evaluate.runner)
        scores[name] = evaluator.evaluate(runner.images(network), metrics)
    shape = (1, run.data.input_channels, *run.data.crop)
    times, notes = _time(networks, shape, evaluator.device)
    return {
        "scores": scores,
        "protocol": evaluator.protocol(),
        "latency_ms": {name: vars(latency) for name, latency in times.items()},
        "latency_notes": notes,
        "hardware": hardware(),
    }


def _time(
    networks: dict[str, Generator], shape: tuple[int, int, int, int], device: torch.device
) -> tuple[dict[str, Latency], list[str]]:
    """Teacher and student in stock PyTorch layers, in this package's and, on a CPU, in the engine, against each other in one
    process; and why a row is missing.
    """
    contenders: dict[str, Callable[[], object]] = {}
    notes = []
    for name in ("teacher", "student"):
        network = networks[name].to(device).eval()
        eager = eager_form(network)
        contenders[f"{name}, eager"] = generator_call(eager, shape, device)
        if eager is not network:
            contenders[f"{name}, gancomp"] = generator_call(network, shape, device)
        if device.type != "cpu":
            continue
        try:
            engine = engine_on(network, threads=torch.get_num_threads())
            image = example_image(network, shape)
            reason = Truth(eager, image).check(engine(image), "engine").reason
        except GancompError as error:
            reason = str(error)
        if reason is None:
            contenders[f"{name}, engine"] = engine_call(engine, shape)
        else:
            notes.append(f"The {name} was not timed in the engine: {reason}.")
    return measure_latency(contenders, rounds=40, seconds=30.0, pause=0.02), notes


def _report(
    run: CompressRun,
    folder: StageFolder,
    networks: dict[str, Generator],
    profiles: dict[str, Profile],
    found: SearchResult,
    record: dict[str, Any],
) -> ReportData:
    before, after = profiles["teacher"], profiles["student"]
    latency = record["latency_ms"]
    base = latency["teacher, eager"]
    fastest = next(form for form in ("engine", "gancomp", "eager") if f"student, {form}" in latency)
    headline = [
        (f"{before.macs / after.macs:.1f}x", "fewer multiply-accumulates"),
        (f"{before.params / after.params:.1f}x", "fewer parameters"),
        _speed(base["p50"], latency[f"student, {fastest}"]["p50"], fastest),
    ]
    protocol = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["protocol"].items())
    notes = [
        "Latency is the measured time of one image in one process on the machine named below, contenders in turns. "
        "'Eager' is the same network in stock PyTorch layers, 'gancomp' in this package's, 'engine' without PyTorch.",
        *record.get("latency_notes", []),
    ]
    if not run.evaluate.features:
        notes.append(
            "fd_random is a Frechet distance on the features of a fixed random network. It compares the columns of this table "
            "with each other; it is not FID and cannot be compared with published numbers."
        )
    if run.data.unpaired:
        notes.append("Without pairs there is no ground truth: image distances are to the teacher's output.")
    if not run.teacher:
        notes.append(f"The teacher was trained here for {run.train.steps} steps; published teachers train far longer.")
    return ReportData(
        title="Compressed generator",
        subtitle=f"{_data_name(run)} at {run.data.crop_size}x{run.data.crop[0]}, configuration {found.best['config_str']}",
        headline=headline,
        captions=["input", *networks, *["ground truth"] * (not run.data.unpaired)],
        images=_images(run, networks),
        tables=[_costs(profiles), _latencies(latency), _scores(run, record["scores"], list(networks), protocol)],
        plots=[("Quality against cost of every configuration evaluated", (folder / "search" / "pareto.png").read_bytes())]
        if (folder / "search" / "pareto.png").exists()
        else [],
        curves=_curves(folder),
        stages=_stages(run, folder, found),
        facts=_facts(run, found, record),
        notes=notes,
        command=_COMMAND + _ENGINE * isinstance(networks["student"], ResnetGenerator),
    )


def _speed(before: float, after: float, form: str) -> tuple[str, str]:
    """The headline of latency: faster, or honestly slower."""
    times = f"{before:.1f} ms in eager PyTorch to {after:.1f} ms in {_FORMS[form]}"
    return (f"{before / after:.1f}x", f"faster: {times}") if after <= before else (f"{after / before:.1f}x", f"slower: {times}")


def _data_name(run: CompressRun) -> str:
    return "Embedded edges->shapes set" if run.data.root == "synthetic" else Path(run.data.root).name


@torch.inference_mode()
def _images(run: CompressRun, networks: dict[str, Generator], count: int = 6) -> list[list[Any]]:
    dataset = open_split(run.data, "test", networks["teacher"], any_size=True)
    picks = sorted({round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)})
    batch = stack_pairs([dataset.load(i) for i in picks])
    shown = batch.input if batch.input.is_floating_point() else paint_labels(batch.input)
    columns = [shown, *(network.cpu().eval()(batch.input) for network in networks.values())]
    if batch.paired:
        columns.append(batch.target)
    return [[to_image(column[i]) for column in columns] for i in range(len(picks))]


def _costs(profiles: dict[str, Profile]) -> Table:
    rows = [
        ("parameters", [f"{p.params:,}" for p in profiles.values()]),
        ("multiply-accumulates", [f"{p.macs:,}" for p in profiles.values()]),
        ("as the papers count them", [f"{p.macs_published:,}" for p in profiles.values()]),
    ]
    return Table("Cost", list(profiles), rows, "One image; the papers count a transposed convolution at every output pixel.")


def _latencies(latency: dict[str, dict[str, float]]) -> Table:
    rows = []
    for name, value in latency.items():
        rows.append((name, [f"{value['p50']:.2f}", f"{value['p95']:.2f}", str(value["calls"])]))
    return Table("Latency of one image, milliseconds", ["p50", "p95", "calls"], sorted(rows), "")


def _scores(run: CompressRun, scores: dict[str, dict[str, float]], names: list[str], protocol: str) -> Table:
    metrics = list(scores["teacher"])
    rows = []
    for metric in metrics:
        cells = [f"{scores[name][metric]:.4g}" for name in names]
        if run.data.unpaired and metric in _LABELS:
            # Its distance to itself tells nothing.
            cells[names.index("teacher")] = "-"
        rows.append(((_LABELS | _SEEN).get(metric, f"{metric} (lower is better)"), cells))
    return Table("Quality on the test split", names, rows, protocol)


def _curves(folder: StageFolder) -> list[tuple[str, bytes]]:
    curves = []
    for stage in ("teacher", "supernet", "finetune"):
        records = read_jsonl(folder / stage / "log.jsonl")
        series = {name: [(r["step"], r[name]) for r in records if name in r] for name in _LOSSES}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            try:
                curves.append((stage, curves_plot(series)))
            except ConfigError:
                return []
    return curves


def _stages(run: CompressRun, folder: StageFolder, found: SearchResult) -> list[Stage]:
    stages = []
    for name, options in (("teacher", run.train), ("supernet", run.supernet), ("finetune", run.finetune)):
        done = StageFolder(folder / name).done
        if done is not None:
            settings = f"batch {options.batch_size}, lr {options.learning_rate(0):g}, {options.gan_mode}, seed {options.seed}"
            stages.append(Stage(name, f"{done['steps']} steps", f"{done['seconds'] / 60:.1f} min", settings))
    seconds = sum(record["seconds"] for record in found.records)
    settings = f"{run.search.method}, objective {run.search.objective}, seed {run.search.seed}"
    stages.insert(
        len(stages) - int(run.finetuning),
        Stage("search", f"{len(found.records)} configurations", f"{seconds / 60:.1f} min", settings),
    )
    return stages


def _facts(run: CompressRun, found: SearchResult, record: dict[str, Any]) -> list[tuple[str, str]]:
    machine = record["hardware"]
    return [
        ("method", run.method),
        ("configuration", found.best["config_str"]),
        ("search space", run.space),
        ("budget", ", ".join(f"{name} {value}" for name, value in run.limits().items())),
        ("student.safetensors", f"sha256 {record['student_sha256']}"),
        ("data", f"{_data_name(run)}, fingerprint {record['protocol']['data']}"),
        ("machine", f"{machine['processor']}, {machine['threads']} threads, {machine['accelerator'] or 'no GPU'}"),
        ("software", f"gancomp {__version__}, torch {torch.__version__}"),
    ]
