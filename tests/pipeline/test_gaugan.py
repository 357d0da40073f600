"""GauGAN through the verbs: one command from label maps to a student, its statistics its own wherever it is scored or saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gancomp
from gancomp.checkpoints import load_supernet
from gancomp.cli import main
from gancomp.data import DataConfig, open_dataset
from gancomp.errors import ConfigError
from gancomp.models import SpadeConfig, SpadeGenerator
from gancomp.models.channels import parse_config
from gancomp.pipeline.evaluate import EvaluateOptions, EvaluateRun, make_evaluator, run_evaluate
from gancomp.pipeline.finetune import ExportRun, run_export
from gancomp.pipeline.methods import settings_of
from gancomp.pipeline.profile import ProfileRun, run_profile
from gancomp.pipeline.search import SearchRun, run_search
from gancomp.pipeline.settings import calibration_maps, check_channels, check_discriminator
from gancomp.pipeline.train import TrainRun, teacher_stage
from gancomp.search import SearchOptions
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import TrainOptions

CLASSES = 3
DATA = {"labels": CLASSES, "edges": False, "load_size": 68, "crop_size": 64, "aspect_ratio": 1.0}


class Red(nn.Module):
    """Three classes by the red of a pixel."""

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, :1].float()
        return torch.cat([85 - red, 40 - (red - 128).abs(), red - 170], 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        (root / split).mkdir()
        (root / f"{split}_labels").mkdir()
        for number in range(count):
            labels = rng.integers(0, CLASSES, (4, 4)).repeat(18, 0).repeat(18, 1).astype(np.uint8)
            photograph = np.stack([100 * labels, 255 - 90 * labels, np.full_like(labels, 60)], 2)
            Image.fromarray(photograph).save(root / split / f"{number}.png")
            Image.fromarray(labels).save(root / f"{split}_labels" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "red.pt2"
    example = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    dynamic = {"images": {0: torch.export.Dim("n")}}
    torch.export.save(torch.export.export(Red(), (example,), dynamic_shapes=dynamic), path)
    return path


@pytest.fixture(scope="module")
def run(root: Path, segmenter: Path, tmp_path_factory) -> Path:
    """A whole compression in a dozen steps."""
    out = tmp_path_factory.mktemp("run") / "streets"
    steps = [f"--{stage}.{key}={value}" for stage in ("train", "supernet", "finetune") for key, value in (
        ("steps", 2), ("batch-size", 2), ("ndf", 2), ("d-layers", 2), ("log-every", 1), ("sample-every", 1),
    )]  # fmt: skip
    arguments = [
        "compress", "--model", "gaugan", "--dataroot", str(root), "--out", str(out), "--ngf", "2", "--space", "2,1",
        "--data.labels", str(CLASSES), "--data.no-edges", "--load-size", "68", "--crop-size", "64", "--data.aspect-ratio", "1",
        "--model.upsampling", "normal", "--budget", "1.5x", "--search.population", "3", "--search.generations", "1",
        "--search.objective", "miou", "--evaluate.segmenter", str(segmenter), "--evaluate.calibration", "4", *steps,
    ]  # fmt: skip
    assert main(arguments) == 0
    return out


@pytest.mark.slow
def test_what_a_run_leaves(run: Path) -> None:
    student = gancomp.load_generator(run / "student.safetensors")
    assert isinstance(student, SpadeGenerator)
    assert student.config.separable
    assert (student.config.label_nc, student.config.instance_edges, student.config.native_size) == (CLASSES, False, (64, 64))
    teacher = gancomp.load_generator(run / "teacher" / "generator.safetensors")
    assert teacher.config == SpadeConfig.uniform(
        2, label_nc=CLASSES, instance_edges=False, upsampling="normal", crop_size=64, aspect_ratio=1.0
    )
    record = json.loads((run / "evaluation.json").read_text())
    assert record["scores"].keys() == {"teacher", "before fine-tuning", "student"}
    for scores in record["scores"].values():
        assert {"l1", "psnr", "ssim", "fd_random", "miou", "accuracy"} == scores.keys()
        assert 0 <= scores["miou"] <= 1
    assert record["protocol"]["segmenter"] == "red"
    results = [json.loads(line) for line in (run / "search" / "results.jsonl").read_text().splitlines()]
    assert results[0]["calibration_images"] == 4
    assert "mean IoU (higher is better)" in (run / "report.html").read_text()
    for stage, columns in (("teacher", 3), ("supernet", 5), ("finetune", 4)):
        picture = Image.open(sorted((run / stage / "samples").iterdir())[-1])
        assert picture.width > columns * 64


@pytest.mark.slow
def test_the_chosen_one_has_its_own_statistics(run: Path, root: Path) -> None:
    """Those over the calibration images, whichever configurations were looked at after it."""
    text = json.loads((run / "search" / "chosen.json").read_text())["config_str"]
    chosen = gancomp.load_generator(run / "search" / "chosen.safetensors")
    assert chosen.config.config_str == text
    supernet = load_supernet(run / "supernet" / "supernet.safetensors")
    data = DataConfig(root=str(root), **DATA)
    supernet.calibrate(parse_config(text), calibration_maps(data, 4, torch.device("cpu")))
    expected = supernet.extract(parse_config(text)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in chosen.state_dict().items())


@pytest.mark.slow
def test_a_supernets_configuration_in_the_other_verbs(run: Path, root: Path, segmenter: Path, tmp_path: Path) -> None:
    """Evaluated after calibration, profiled without; not exported without."""
    supernet, text = run / "supernet" / "supernet.safetensors", "2_1_2_1_2_1_2_1"
    options = EvaluateOptions(segmenter=str(segmenter), calibration=4)
    data = DataConfig(root=str(root), **DATA)
    found = run_evaluate(EvaluateRun(str(supernet), text, split="val", data=data, evaluate=options))["scores"]
    net = load_supernet(supernet)
    net.calibrate(parse_config(text), calibration_maps(data, 4, torch.device("cpu")))
    net.extract(parse_config(text)).save(tmp_path / "cut.safetensors")
    again = run_evaluate(EvaluateRun(str(tmp_path / "cut.safetensors"), split="val", data=data, evaluate=options))["scores"]
    assert found == pytest.approx(again)
    assert (
        run_profile(ProfileRun(model=str(supernet), config_str=text)).params == net.extract(parse_config(text)).num_parameters()
    )
    with pytest.raises(ConfigError, match="its batch statistics are not known"):
        run_export(ExportRun(str(supernet), str(tmp_path / "no.safetensors"), text))


def test_published_defaults() -> None:
    """Those of Cityscapes."""
    run = settings_of(TrainRun, "gaugan", out="x")
    assert (run.data.labels, run.data.edges, run.data.crop, run.model.arch, run.model.norm) == (
        35,
        True,
        (256, 512),
        "spade",
        "batch",
    )
    assert (run.train.lr, run.train.beta1, run.train.beta2, run.train.lambda_recon) == (1e-4, 0.0, 0.999, 0.0)
    assert (run.gaugan.lr_ratio, run.gaugan.lambda_feat, run.gaugan.lambda_vgg, run.gaugan.vgg) == (4.0, 10.0, 10.0, "")
    assert settings_of(TrainRun, "pix2pix", out="x") == TrainRun("x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"arch": "resnet"}}, "label maps are what a spade takes, and it alone"),
        ({"data": {"labels": 0, "edges": False, "aspect_ratio": 1.0}}, "label maps are what a spade takes, and it alone"),
        ({"data": {"crop_size": 500}}, r"crop_size=500, height 250: this spade needs a multiple of 64"),
        ({"data": {"crop_size": 32, "aspect_ratio": 4.0}}, "the discriminator needs sides of at least 16"),
        ({"model": {"norm": "none"}}, "norm='none': expected one of batch, instance"),
    ],
)
def test_settings_that_do_not_fit(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        teacher_stage(
            settings_of(TrainRun, "gaugan", out="x", **{"train": {"ndf": 2, "device": "cpu"}, "model": {"ngf": 1}, **values})
        )


def test_networks_that_do_not_fit_the_label_maps(root: Path) -> None:
    from gancomp.models import (
        DiscriminatorConfig,
        MultiscaleConfig,
        MultiscaleDiscriminator,
        PatchDiscriminator,
        ResnetConfig,
        ResnetGenerator,
    )

    data = DataConfig(root=str(root), **DATA)
    spade = SpadeGenerator(SpadeConfig.uniform(1, label_nc=CLASSES))
    with pytest.raises(ConfigError, match=r"data\.labels=3, edges=False: the generator takes 3 labels and edges"):
        check_channels(data, spade)
    with pytest.raises(ConfigError, match="takes images, not label maps"):
        check_channels(data, ResnetGenerator(ResnetConfig.uniform(1, 0)))
    with pytest.raises(ConfigError, match=r"data\.labels=0, edges=False: the generator takes 3 labels"):
        check_channels(DataConfig(), spade)
    options = TrainOptions(ndf=2, d_layers=2)
    check_discriminator(data, options, MultiscaleDiscriminator(MultiscaleConfig(CLASSES + 3, 2, 2)))
    with pytest.raises(ConfigError, match="takes 9 channels, label map and image together have 6"):
        check_discriminator(data, options, MultiscaleDiscriminator(MultiscaleConfig(9, 2, 2)))
    with pytest.raises(ConfigError, match="need one of several scales"):
        check_discriminator(data, options, PatchDiscriminator(DiscriminatorConfig(6, 2, 1)))
    with pytest.raises(ConfigError, match="expected a patch discriminator"):
        check_discriminator(DataConfig(), options, MultiscaleDiscriminator(MultiscaleConfig(6, 2, 2)))


def test_calibration_maps_are_spread_over_the_training_split(root: Path) -> None:
    data = DataConfig(root=str(root), **DATA)
    train = open_dataset(data, "train")
    maps = calibration_maps(data, 3, torch.device("cpu"))
    assert len(maps) == 3
    assert all(torch.equal(x[0], train.load(i).input) for x, i in zip(maps, (0, 2, 4), strict=True))
    assert len(calibration_maps(data, 99, torch.device("cpu"))) == len(train) == 6


def test_scores_that_need_a_segmentation_network(root: Path, segmenter: Path) -> None:
    generator = SpadeGenerator(SpadeConfig.uniform(1, label_nc=CLASSES, instance_edges=False, upsampling="normal"))
    evaluator = make_evaluator(DataConfig(root=str(root), **DATA), "val", EvaluateOptions(), generator)
    assert "miou" not in evaluator.metrics
    with pytest.raises(ConfigError, match=r"metrics=\['miou'\]: no segmentation network is given \(evaluate\.segmenter\)"):
        evaluator.evaluate(generator, ["miou"])
    with pytest.raises(ConfigError, match=r"scores images painted of label maps; data\.labels is 0"):
        make_evaluator(DataConfig(synthetic_train=8, synthetic_test=2), "val", EvaluateOptions(segmenter=str(segmenter)), None)


def test_a_search_for_scores_without_a_segmentation_network(root: Path, tmp_path: Path) -> None:
    config = SpadeConfig.from_channels((2,) * 8, label_nc=CLASSES, instance_edges=False, upsampling="normal")
    Supernet.around(SpadeGenerator(config), SearchSpace.parse("2,1")).save(tmp_path / "s.safetensors")
    settings = {"search": SearchOptions(objective="accuracy"), "data": DataConfig(root=str(root), **DATA)}
    with pytest.raises(ConfigError, match=r"search\.objective='accuracy': needs a segmentation network"):
        run_search(SearchRun(supernet=str(tmp_path / "s.safetensors"), out=str(tmp_path / "out"), macs="1G", **settings))
