"""The whole compression: products, resume, interrupts, budgets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import gancomp
from gancomp.checkpoints import read_metadata, read_weights
from gancomp.data import DataConfig
from gancomp.errors import CheckpointError, ConfigError, DataError, RunError
from gancomp.io import read_json, read_jsonl
from gancomp.pipeline.compress import run_compress
from gancomp.search import profile_module
from gancomp.train import TrainOptions

from .conftest import mini

PRODUCTS = (
    "teacher/generator.safetensors",
    "teacher/discriminator.safetensors",
    "supernet/supernet.safetensors",
    "supernet/adaptors.safetensors",
    "finetune/generator.safetensors",
    "student.safetensors",
)


def test_products(finished: Path) -> None:
    for name in (
        *PRODUCTS,
        "evaluation.json",
        "report.html",
        "search/results.jsonl",
        "search/pareto.png",
        "search/chosen.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.tmp"))
    assert not list(finished.rglob("state.pt")), "a finished stage keeps no state to resume from"


def test_student_is_within_the_budget_and_self_describing(finished: Path) -> None:
    student = gancomp.load_generator(finished / "student.safetensors")
    teacher = gancomp.load_generator(finished / "teacher/generator.safetensors")
    costs = [profile_module(network, (1, 3, 32, 32)).macs for network in (teacher, student)]
    assert costs[0] >= 4 * costs[1]
    assert student.config.config_str == read_json(finished / "search/chosen.json")["config_str"]
    assert student.config.separable
    record = json.loads(read_metadata(finished / "student.safetensors")["gancomp.provenance"])
    assert record["stage"] == "finetune"
    assert len(record["inputs"]["supernet"]) == 64
    with torch.inference_mode():
        assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_chosen_is_the_best_record(finished: Path) -> None:
    header, *records = read_jsonl(finished / "search/results.jsonl")
    assert header["kind"] == "header"
    assert len({record["config_str"] for record in records}) == len(records)
    best = min(records, key=lambda record: (record["metrics"]["l1"], record["cost"]["macs"]))
    assert read_json(finished / "search/chosen.json")["config_str"] == best["config_str"]


def test_report_is_self_contained(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    sources: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(value for name, value in attributes if name in ("src", "href") and value)
            assert tag != "script"

    Parser().feed(text)
    assert len(sources) >= 6 * 4, "images of input, teacher, student and ground truth"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert str(finished) not in text, "a report tells nothing about folders"
    evaluation = read_json(finished / "evaluation.json")
    assert f"{evaluation['latency_ms']['student, gancomp']['p50']:.2f}" in text
    assert "student.safetensors" in text
    assert evaluation["latency_ms"].keys() == {
        f"{network}, {form}" for network in ("teacher", "student") for form in ("eager", "gancomp", "engine")
    }
    assert evaluation["latency_notes"] == []
    assert f"{evaluation['latency_ms']['student, engine']['p50']:.2f}" in text
    assert "ms in the engine" in text
    assert "fd_random" in text
    assert "not FID" in text


def test_same_command_again_changes_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors") if path.name != "student.safetensors"}
    run_compress(mini(finished), progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_in_the_same_folder_are_refused(finished: Path) -> None:
    with pytest.raises(RunError, match=r"was begun with space='8,4', now '8,4,2'"):
        run_compress(mini(finished, space="8,4,2"), progress=False)


def test_a_finished_run_may_be_moved(finished: Path, tmp_path: Path) -> None:
    """The stages' records name each other's files relative to the run."""
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    before = _digests(moved)
    run_compress(mini(moved), progress=False)
    assert _digests(moved) == before
    settings = json.loads(read_metadata(moved / "student.safetensors")["gancomp.provenance"])["settings"]
    assert not {"out", "teacher", "supernet"} & settings.keys(), "where the files lay is not said"


def _digests(folder: Path) -> dict[str, str]:
    """Weights only: provenance holds no times, but hashes of files are the strongest comparison there is."""
    digests = {}
    for name in PRODUCTS:
        tensors, _ = read_weights(folder / name)
        digests[name] = {key: tensor.tolist() for key, tensor in tensors.items()}
    return digests


def _search_lines(folder: Path) -> list[dict]:
    records = read_jsonl(folder / "search/results.jsonl")
    return [{key: value for key, value in record.items() if key not in ("seconds", "supernet_sha256")} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_any_moment_it_ends_with_the_same_files(finished: Path, tmp_path: Path, signal_number: int) -> None:
    out = tmp_path / "run"
    script = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from conftest import mini\n"
        "from gancomp.pipeline.compress import run_compress\n"
        "run_compress(mini(Path(sys.argv[1])), progress=False)\n"
    )
    command = [sys.executable, "-c", script, str(out), str(Path(__file__).parent)]
    # Wait for one file after the other to appear, and stop the run right then.
    for milestone in ("teacher/state.pt", "supernet/state.pt", "search/results.jsonl", "finetune/run.yaml"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        while not (out / milestone).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal_number)
        process.wait(timeout=60)
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    assert _digests(out) == _digests(finished)
    assert _search_lines(out) == _search_lines(finished)
    for stage in ("teacher", "supernet", "finetune"):
        lines = [
            [{k: v for k, v in r.items() if k != "seconds"} for r in read_jsonl(f / stage / "log.jsonl")]
            for f in (out, finished)
        ]
        assert lines[0] == lines[1]
    assert (out / "report.html").exists()


def test_from_a_trained_teacher(finished: Path, tmp_path: Path) -> None:
    run = mini(tmp_path / "run", teacher=str(finished / "teacher/generator.safetensors"), finetuning=False)
    run_compress(run, progress=False)
    assert not (tmp_path / "run/teacher").exists()
    assert not (tmp_path / "run/finetune").exists()
    student = gancomp.load_generator(tmp_path / "run/student.safetensors")
    full = gancomp.load_supernet(tmp_path / "run/supernet/supernet.safetensors")
    expected = full.extract(student.config.channels)
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), expected.state_dict().values(), strict=True))


def test_budget_out_of_reach_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"out of reach; the smallest configuration of space '8,4', 4_4_4_4_4_4_4_4, costs macs"
    ):
        run_compress(mini(tmp_path / "run", budget="1000x"), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "ten"}, "budget='ten': expected a reduction such as 10x"),
        ({"budget": "0.5x"}, "budget='0.5x'"),
        ({"macs": "-3"}, "macs='-3': expected a number above 0"),
        ({"space": "8,nine"}, "space='8,nine': expected one of channels-32"),
        ({"teacher": "missing.pth"}, "missing.pth: no such file"),
        ({"train": TrainOptions(d_layers=4)}, "a discriminator of 4 layers (train.d_layers) needs at least 48"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(gancomp.GancompError) as caught:
        run_compress(mini(tmp_path / "run", **changes), progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unusable_data_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = mini(tmp_path / "run")
    with pytest.raises(DataError, match="no images found"):
        run_compress(replace(run, data=DataConfig(root=str(tmp_path / "empty"), load_size=36, crop_size=32)), progress=False)


def test_what_search_and_report_lack_is_found_before_training(tmp_path: Path) -> None:
    def refused(message: str, **changes) -> None:
        with pytest.raises((ConfigError, DataError, CheckpointError), match=message):
            run_compress(replace(mini(tmp_path / "run"), **changes), progress=False)
        assert not (tmp_path / "run").exists()

    start = mini(tmp_path / "run")
    refused("objective='miou': needs a segmentation network", search=replace(start.search, objective="miou"))
    refused("nope.pth", evaluate=replace(start.evaluate, features="nope.pth"))
    refused("reference='train,test': expected some of", evaluate=replace(start.evaluate, reference="train,test"))
    refused("belongs to a trained teacher", discriminator="nope.pth")
    one = replace(start.data, max_images=1)
    refused(
        "a Frechet distance needs at least 2 images, the validation split has 1",
        data=one,
        search=replace(start.search, objective="fd"),
    )


def test_minutes_become_steps_once(tmp_path: Path) -> None:
    run = mini(tmp_path / "run", minutes=0.05)
    run_compress(run, progress=False)
    plan = read_json(tmp_path / "run/plan.json")
    assert all(plan["steps"][stage] >= 1 for stage in ("train", "supernet", "finetune"))
    assert read_json(tmp_path / "run/teacher/done.json")["steps"] == plan["steps"]["train"]
    run_compress(run, progress=False)
    assert read_json(tmp_path / "run/plan.json") == plan


@pytest.mark.slow
def test_miniature_on_real_images(shared: Path, tmp_path: Path) -> None:
    for name, direction in (("facades", "BtoA"), ("edges2shoes", "AtoB")):
        data = DataConfig(root=str(shared / "data" / name), direction=direction, load_size=36, crop_size=32, max_images=12)
        run = mini(tmp_path / name, data=data)
        assert run_compress(run, progress=False).exists()
        scores = read_json(tmp_path / name / "evaluation.json")["scores"]
        assert scores["student"].keys() == {"l1", "psnr", "ssim", "fd_random"}


def test_grey_images(tmp_path: Path) -> None:
    data = DataConfig(load_size=36, crop_size=32, synthetic_train=8, synthetic_test=2, in_channels=1, out_channels=1)
    run_compress(mini(tmp_path / "run", data=data), progress=False)
    assert gancomp.load_generator(tmp_path / "run/student.safetensors").config.in_channels == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Files above a size cannot be written, as on a full disk: one line, a failing status, and the old state intact."""
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "from gancomp.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = [
        "train", "--out", str(tmp_path / "run"), "--data.load-size", "36", "--data.crop-size", "32",
        "--data.synthetic-train", "8", "--data.synthetic-test", "2", "--model.ngf", "8", "--model.n-blocks", "1",
        "--train.steps", "2", "--train.ndf", "8", "--train.batch-size", "1",
    ]  # fmt: skip
    environment = {**os.environ, "GANCOMP_BACKEND": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("gancomp: error: ")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not (tmp_path / "run/state.pt").exists()
