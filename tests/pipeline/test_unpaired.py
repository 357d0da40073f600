"""CycleGAN from two folders of images to a compressed generator, in both directions."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import gancomp
from gancomp.checkpoints import load_network, read_metadata
from gancomp.cli import main
from gancomp.errors import ConfigError, RunError
from gancomp.io import read_json, read_jsonl, sha256_file
from gancomp.models import DiscriminatorConfig, PatchDiscriminator
from gancomp.pipeline.compress import CompressRun, run_compress
from gancomp.pipeline.evaluate import EvaluateOptions, EvaluateRun, run_evaluate
from gancomp.pipeline.methods import settings_of
from gancomp.pipeline.search import SearchRun, run_search
from gancomp.pipeline.supernet import SupernetRun, find_discriminator, run_supernet
from gancomp.pipeline.train import TrainRun, run_train
from gancomp.search import SearchOptions

STEPS = {"batch_size": 2, "ndf": 4, "d_layers": 1, "log_every": 1, "save_every": 2, "sample_every": 0}


@pytest.fixture(scope="module")
def zebras(tmp_path_factory) -> Path:
    """Two folders of unequal counts and names; side B is darker."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        for letter, number, scale in (("A", count, 1.0), ("B", count + 3, 0.5)):
            folder = root / f"{split}{letter}"
            folder.mkdir()
            for index in range(number):
                pixels = rng.integers(0, 256, (40, 44, 3)) * scale
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{letter}{index}.png")
    return root


def mini(out: Path, root: Path, **changes) -> CompressRun:
    settings = {
        "out": str(out),
        "budget": "4x",
        "space": "8,4",
        "data": {"root": str(root), "load_size": 36, "crop_size": 32},
        "model": {"ngf": 8, "n_blocks": 3},
        "train": {"steps": 3, **STEPS},
        "supernet": {"steps": 3, **STEPS},
        "search": {"population": 3, "generations": 2, "objective": "l1"},
        "finetune": {"steps": 2, **STEPS},
    }
    return settings_of(CompressRun, "cyclegan", **{**settings, **changes})


def distil(run: CompressRun) -> Path:
    """The supernet of a run that has a teacher."""
    settings = SupernetRun(
        run.teacher, str(Path(run.out) / "supernet"), discriminator=run.discriminator, space=run.space, data=run.data,
        train=run.supernet,
    )  # fmt: skip
    return run_supernet(settings, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, zebras: Path) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("cyclegan") / "run"
    run_compress(mini(out, zebras), progress=False)
    return out


def test_products(finished: Path) -> None:
    names = {path.name for path in (finished / "teacher").glob("*.safetensors")}
    assert names == {f"{kind}{ending}.safetensors" for kind in ("generator", "discriminator") for ending in ("", "_BtoA")}
    student = gancomp.load_generator(finished / "student.safetensors")
    assert student.config.separable
    assert load_network(finished / "supernet/discriminator.safetensors").config.in_channels == 3
    with Image.open(next((finished / "teacher/samples").iterdir())) as picture:
        assert picture.width > 6 * 128, "both cycles"


def test_the_discriminator_is_the_target_domains(finished: Path) -> None:
    record = json.loads(read_metadata(finished / "supernet/supernet.safetensors")["gancomp.provenance"])
    assert record["inputs"]["discriminator"] == sha256_file(finished / "teacher/discriminator.safetensors")


def test_scores_and_their_protocol(finished: Path, zebras: Path) -> None:
    record = read_json(finished / "evaluation.json")
    assert record["scores"]["teacher"]["l1"] == 0
    assert record["scores"]["student"]["l1"] > 0
    protocol = record["protocol"]
    assert protocol["images"] == 3, "the input side of the test split"
    assert protocol["reference"] == "train+val+test of the output side"
    assert protocol["reference_images"] == 11 + 5 + 6
    assert protocol["teacher_sha256"] == sha256_file(finished / "teacher/generator.safetensors")
    header, *records = read_jsonl(finished / "search/results.jsonl")
    assert header["teacher_sha256"] == protocol["teacher_sha256"]
    assert len(records) >= 3
    text = (finished / "report.html").read_text()
    assert "ground truth</" not in text
    assert "image distances are to the teacher&#x27;s output" in text
    assert "cyclegan" in text


def test_same_command_again_changes_nothing(finished: Path, zebras: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors") if path.name != "student.safetensors"}
    run_compress(mini(finished, zebras), progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_other_direction_of_the_same_teachers(finished: Path, zebras: Path, tmp_path: Path) -> None:
    back = str(finished / "teacher/generator_BtoA.safetensors")
    with pytest.raises(ConfigError, match=r"data.direction='AtoB': .*generator_BtoA.safetensors was trained in direction BtoA"):
        run_compress(mini(tmp_path / "wrong", zebras, teacher=back), progress=False)
    data = {"root": str(zebras), "load_size": 36, "crop_size": 32, "direction": "BtoA"}
    supernet = distil(mini(tmp_path, zebras, teacher=back, data=data))
    record = json.loads(read_metadata(supernet)["gancomp.provenance"])
    assert record["inputs"]["discriminator"] == sha256_file(finished / "teacher/discriminator_BtoA.safetensors")


def test_which_discriminator_lies_beside(tmp_path: Path) -> None:
    for name in ("discriminator.safetensors", "discriminator_BtoA.safetensors"):
        (tmp_path / name).touch()
    assert find_discriminator("", tmp_path / "generator.safetensors").name == "discriminator.safetensors"
    assert find_discriminator("", tmp_path / "supernet.safetensors").name == "discriminator.safetensors"
    assert find_discriminator("", tmp_path / "generator_BtoA.safetensors").name == "discriminator_BtoA.safetensors"
    (tmp_path / "discriminator_BtoA.safetensors").unlink()
    assert find_discriminator("", tmp_path / "generator_BtoA.safetensors") is None, "the other one judges other images"


def test_a_foreign_teacher_and_discriminator(finished: Path, zebras: Path, tmp_path: Path) -> None:
    """Plain state dicts, as pytorch-CycleGAN-and-pix2pix saves them: a discriminator of three channels sees the image alone."""
    teacher = gancomp.load_generator(finished / "teacher/generator.safetensors")
    torch.save(teacher.state_dict(), tmp_path / "latest_net_G_A.pth")
    judge = PatchDiscriminator(DiscriminatorConfig(3, ndf=4, n_layers=1))
    torch.save(judge.state_dict(), tmp_path / "latest_net_D_A.pth")
    run = mini(
        tmp_path,
        zebras,
        teacher=str(tmp_path / "latest_net_G_A.pth"),
        discriminator=str(tmp_path / "latest_net_D_A.pth"),
    )
    assert load_network(distil(run).parent / "discriminator.safetensors").config.in_channels == 3
    pairs = PatchDiscriminator(DiscriminatorConfig(6, ndf=4, n_layers=1))
    torch.save(pairs.state_dict(), tmp_path / "pairs.pth")
    with pytest.raises(ConfigError, match=r"discriminator of 6 channels: data\.unpaired is set"):
        run_compress(replace(run, out=str(tmp_path / "x"), discriminator=str(tmp_path / "pairs.pth")), progress=False)
    assert not (tmp_path / "x").exists()


def test_evaluate_with_and_without_a_teacher(finished: Path, zebras: Path) -> None:
    data = mini(Path("x"), zebras).data
    run = EvaluateRun(model=str(finished / "student.safetensors"), data=data)
    alone = run_evaluate(run)
    assert alone["scores"].keys() == {"fd_random"}
    assert alone["protocol"]["reference"] == "test of the output side"
    teacher = str(finished / "teacher/generator.safetensors")
    both = run_evaluate(replace(run, teacher=teacher, evaluate=EvaluateOptions(reference="train+val+test")))
    assert both["scores"] == pytest.approx(read_json(finished / "evaluation.json")["scores"]["student"], rel=1e-4)


@pytest.mark.parametrize("reference", ["all", "train+train", "train,test", "+"])
def test_unknown_references(finished: Path, zebras: Path, reference: str) -> None:
    run = EvaluateRun(model=str(finished / "student.safetensors"), data=mini(Path("x"), zebras).data)
    with pytest.raises(ConfigError) as caught:
        run_evaluate(replace(run, evaluate=EvaluateOptions(reference=reference)))
    assert str(caught.value) == f"evaluate.reference={reference!r}: expected some of train, val, test, joined by +"


def test_search_without_a_teacher(finished: Path, zebras: Path, tmp_path: Path) -> None:
    data = mini(Path("x"), zebras).data
    run = SearchRun(
        supernet=str(finished / "supernet/supernet.safetensors"), out=str(tmp_path / "s"), macs="1G", data=data,
        search=SearchOptions(population=2, generations=1, objective="l1"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="objective='l1': unpaired images are compared with the teacher's"):
        run_search(run, progress=False)
    found = run_search(replace(run, search=SearchOptions(population=2, generations=1)), progress=False)
    assert found.best["metrics"].keys() == {"fd_random"}


def test_what_does_not_go_together(zebras: Path, tmp_path: Path) -> None:
    run = mini(tmp_path / "run", zebras)
    wrong = [
        (replace(run, method="pix2pix"), "method='pix2pix': trains on pairs"),
        (replace(run, supernet=replace(run.supernet, target="truth")), "target='truth': data.unpaired is set"),
        (replace(run, train=replace(run.train, conditional=True)), "conditional=True: data.unpaired is set"),
        (
            replace(run, data=replace(run.data, in_channels=1)),
            "the identity loss needs as many input channels (1) as output channels (3)",
        ),
    ]
    for changed, message in wrong:
        with pytest.raises(ConfigError) as caught:
            run_compress(changed, progress=False)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_grey_inputs(zebras: Path, tmp_path: Path) -> None:
    data = {"root": str(zebras), "load_size": 36, "crop_size": 32, "in_channels": 1}
    run = mini(tmp_path, zebras, data=data, cyclegan={"lambda_identity": 0.0})
    teacher = run_train(run.teacher_run(str(tmp_path / "teacher")), progress=False)
    assert gancomp.load_generator(tmp_path / "teacher/generator_BtoA.safetensors").config.out_channels == 1
    supernet = gancomp.load_supernet(distil(replace(run, teacher=str(teacher))))
    assert supernet.generator.config.in_channels == 1


def test_a_run_begun_when_there_were_fewer_settings_goes_on(tmp_path: Path) -> None:
    """Settings that its run file lacks must have their defaults."""
    run = TrainRun(str(tmp_path / "run"), train=dataclasses.replace(TrainRun("").train, steps=2, **STEPS))
    run = replace(
        run,
        data=replace(run.data, load_size=36, crop_size=32, synthetic_train=4, synthetic_test=2),
        model=replace(run.model, ngf=4, n_blocks=1),
    )
    run_train(run, progress=False, stop_at=1)
    file = tmp_path / "run/run.yaml"
    settings = yaml.safe_load(file.read_text())
    for group, name in ((settings, "method"), (settings, "cyclegan"), (settings["data"], "unpaired")):
        del group[name]
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(RunError, match=r"was begun with cyclegan\.pool_size=50, now 7"):
        run_train(replace(run, cyclegan=replace(run.cyclegan, pool_size=7)), progress=False)
    assert run_train(run, progress=False).exists()


def test_one_command(zebras: Path, tmp_path: Path, capsys) -> None:
    common = ("--load-size", "36", "--crop-size", "32", "--ngf", "4", "--model.n-blocks", "1")
    steps = [f"--train.{name.replace('_', '-')}={value}" for name, value in {"steps": 2, **STEPS}.items()]
    out = str(tmp_path / "run")
    assert main(["train", "--model", "cyclegan", "--dataroot", str(zebras), "--out", out, *common, *steps]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run/generator.safetensors")


def test_real_images(shared: Path, tmp_path: Path) -> None:
    data = {"root": str(shared / "data/horse2zebra"), "load_size": 36, "crop_size": 32}
    run = mini(tmp_path, shared, data=data).teacher_run(str(tmp_path / "run"))
    teacher = str(run_train(run, progress=False))
    few = replace(run.data, max_images=6)
    result = run_evaluate(
        EvaluateRun(model=teacher, teacher=teacher, data=few, evaluate=EvaluateOptions(reference="train+test"))
    )
    assert result["scores"].keys() == {"l1", "psnr", "ssim", "fd_random"}
    assert (result["protocol"]["images"], result["protocol"]["reference_images"]) == (6, 12)
