"""``train``, ``supernet``, ``finetune`` and ``export`` as functions: resumed runs, what is inherited, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gancomp
from gancomp.checkpoints import load_supernet, read_metadata
from gancomp.data import open_dataset
from gancomp.errors import CheckpointError, ConfigError, RunError
from gancomp.io import read_jsonl, sha256_file
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.pipeline.finetune import ExportRun, FinetuneRun, run_export, run_finetune
from gancomp.pipeline.settings import TeacherModel
from gancomp.pipeline.supernet import SupernetRun, build_supernet, run_supernet
from gancomp.pipeline.train import TrainRun, run_train
from gancomp.train import DistillOptions, TrainOptions

from ..models import published
from .conftest import TINY

COMMON = {"batch_size": 1, "ndf": 2, "d_layers": 1, "device": "cpu", "log_every": 7, "save_every": 30, "sample_every": 0}
SMALLEST = "2_2_2_2_2_2_2"


def train_run(out: Path, steps: int = 4, **fields) -> TrainRun:
    model = TeacherModel(ngf=4, n_blocks=2)
    return TrainRun(str(out), **{"data": TINY, "model": model, "train": TrainOptions(steps=steps, **COMMON), **fields})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return run_train(train_run(tmp_path_factory.mktemp("teacher") / "run"), progress=False)


def supernet_run(out: Path, teacher: Path, steps: int = 4, **options) -> SupernetRun:
    settings = DistillOptions(**{"steps": steps, "sampling": "sandwich", **COMMON, **options})
    return SupernetRun(str(teacher), str(out), space="4,2", data=TINY, train=settings)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory, teacher: Path) -> Path:
    return run_supernet(supernet_run(tmp_path_factory.mktemp("supernet") / "run", teacher), progress=False)


def finetune_run(out: Path, supernet: Path, teacher: Path, steps: int = 4, **options) -> FinetuneRun:
    settings = DistillOptions(**{"steps": steps, **COMMON, **options})
    return FinetuneRun(str(supernet), str(teacher), SMALLEST, str(out), data=TINY, train=settings)


# -- resumed runs ----------------------------------------------------------------------------------------------------------


def log(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_jsonl(folder / "log.jsonl")]


def assert_two_halves_are_the_whole(make, run, tmp_path: Path, steps: int) -> None:
    """All steps, and twice half of them by the same command, end with the same products, byte for byte, and the same log."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(make(whole), progress=False)
    run(make(halves), progress=False, stop_at=steps // 2)
    assert (halves / "state.pt").exists()
    assert not list(halves.glob("*.safetensors"))
    run(make(halves), progress=False)
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(names) >= 2
    for name in [*names, f"samples/step_{steps:07d}.png"]:
        assert sha256_file(whole / name) == sha256_file(halves / name), name
    assert log(whole) == log(halves)
    assert [record["step"] for record in log(whole)] == [1, *range(7, steps, 7), steps]


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "steps"), [(1, 100), (2, 10)])
def test_teacher_in_two_halves(tmp_path: Path, threads: int, steps: int) -> None:
    torch.set_num_threads(threads)
    model = TeacherModel(ngf=2, n_blocks=2, norm="batch", dropout=0.3)
    options = TrainOptions(steps=steps, ema=0.9, gan_mode="lsgan", **COMMON)
    assert_two_halves_are_the_whole(lambda out: train_run(out, model=model, train=options), run_train, tmp_path, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "options"), [(100, {}), (10, {"sampling": "weighted", "ema": 0.9, "workers": 2})])
def test_supernet_in_two_halves(tmp_path: Path, teacher: Path, steps: int, options: dict) -> None:
    assert_two_halves_are_the_whole(lambda out: supernet_run(out, teacher, steps, **options), run_supernet, tmp_path, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "options"), [(100, {}), (10, {"ema": 0.9, "target": "teacher"})])
def test_finetuning_in_two_halves(tmp_path: Path, supernet: Path, teacher: Path, steps: int, options: dict) -> None:
    assert_two_halves_are_the_whole(
        lambda out: finetune_run(out, supernet, teacher, steps, **options), run_finetune, tmp_path, steps
    )


def test_other_settings_are_refused(tmp_path: Path, teacher: Path, supernet: Path) -> None:
    runs = [
        (run_train, train_run(tmp_path / "t"), {"train": TrainOptions(steps=5, **COMMON)}, "train.steps=4, now 5"),
        (run_supernet, supernet_run(tmp_path / "s", teacher), {"space": "4,2,1"}, "space='4,2', now '4,2,1'"),
        (run_finetune, finetune_run(tmp_path / "f", supernet, teacher), {"config_str": "4_4_4_4_4_4_4"}, "config_str='2_2"),
    ]
    for call, run, change, difference in runs:
        call(run, progress=False, stop_at=1)
        with pytest.raises(RunError) as caught:
            call(replace(run, **change), progress=False)
        assert f"{run.out}: was begun with {difference}" in str(caught.value)


def test_damaged_state(tmp_path: Path) -> None:
    run_train(train_run(tmp_path / "t"), progress=False, stop_at=2)
    (tmp_path / "t/state.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"state\.pt: cannot be resumed from"):
        run_train(train_run(tmp_path / "t"), progress=False)


def test_the_place_of_a_run_is_no_setting(tmp_path: Path) -> None:
    run_train(train_run(tmp_path / "before"), progress=False, stop_at=2)
    (tmp_path / "before").rename(tmp_path / "after")
    assert run_train(train_run(tmp_path / "after"), progress=False) == tmp_path / "after/generator.safetensors"


# -- products and provenance -----------------------------------------------------------------------------------------------


def record(path: Path) -> dict:
    return json.loads(read_metadata(path)["gancomp.provenance"])


def test_products_say_where_they_come_from(tmp_path: Path, teacher: Path, supernet: Path) -> None:
    student = run_finetune(finetune_run(tmp_path / "f", supernet, teacher), progress=False)
    assert record(teacher)["stage"] == "train"
    assert record(teacher)["inputs"] == {}
    assert record(teacher)["settings"]["model"]["ngf"] == 4
    assert record(teacher)["settings"]["train"]["steps"] == 4
    inputs = {"teacher": sha256_file(teacher), "discriminator": sha256_file(teacher.parent / "discriminator.safetensors")}
    assert record(supernet)["stage"] == "supernet"
    assert record(supernet)["inputs"] == inputs
    assert record(student)["stage"] == "finetune"
    assert record(student)["settings"]["config_str"] == SMALLEST
    assert record(student)["inputs"] == {
        "teacher": sha256_file(teacher),
        "supernet": sha256_file(supernet),
        "discriminator": sha256_file(supernet.parent / "discriminator.safetensors"),
    }
    for path in (teacher, supernet, student):
        assert record(path)["gancomp"] == gancomp.__version__
        assert str(tmp_path.parent) not in str({**record(path), "settings": None}), "no folder of this machine"
    assert gancomp.load_generator(student).config.config_str == SMALLEST


def test_finetuning_starts_from_all_that_the_supernet_left(tmp_path: Path, supernet: Path, teacher: Path) -> None:
    """With a learning rate of next to nothing the products are what was inherited."""
    student = run_finetune(finetune_run(tmp_path / "f", supernet, teacher, steps=1, lr=1e-9), progress=False)
    expected = load_supernet(supernet).extract((2,) * 7)
    for name, tensor in gancomp.load_generator(student).state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=0, atol=1e-8)
    for name in ("adaptors", "discriminator"):
        whole, part = (load_file(folder / f"{name}.safetensors") for folder in (supernet.parent, student.parent))
        for key, tensor in part.items():
            active = tuple(slice(0, size) for size in tensor.shape)
            torch.testing.assert_close(tensor, whole[key][active], rtol=0, atol=1e-8)


def test_supernet_inherits_the_discriminator_beside_its_teacher_or_the_one_given(tmp_path: Path, teacher: Path) -> None:
    def discriminator_of(run: SupernetRun) -> dict:
        return load_file(run_supernet(run, progress=False).parent / "discriminator.safetensors")

    still = {"steps": 1, "lr": 1e-9}
    beside = load_file(teacher.parent / "discriminator.safetensors")
    found = discriminator_of(supernet_run(tmp_path / "beside", teacher, **still))
    assert all((found[name] - tensor).abs().max() < 1e-8 for name, tensor in beside.items())
    elsewhere = tmp_path / "alone.safetensors"
    elsewhere.write_bytes(teacher.read_bytes())
    fresh = discriminator_of(supernet_run(tmp_path / "fresh", elsewhere, **still))
    assert any((fresh[name] - tensor).abs().max() > 1e-5 for name, tensor in beside.items())
    path = str(teacher.parent / "discriminator.safetensors")
    given = replace(supernet_run(tmp_path / "given", elsewhere, **still), discriminator=path)
    found = discriminator_of(given)
    assert all((found[name] - tensor).abs().max() < 1e-8 for name, tensor in beside.items())


def test_a_discriminator_that_is_not_used_is_not_asked_for(tmp_path: Path, teacher: Path) -> None:
    run = replace(supernet_run(tmp_path / "s", teacher, lambda_gan=0.0), discriminator="none.safetensors")
    assert record(run_supernet(run, progress=False))["inputs"].keys() == {"teacher"}


# -- initialisation --------------------------------------------------------------------------------------------------------


def built(teacher_file: Path, out: Path, **fields):
    run = supernet_run(out, teacher_file)
    run = replace(run, train=replace(run.train, init=fields.pop("init", "teacher")), **fields)
    return build_supernet(run, gancomp.load_generator(run.teacher), open_dataset(TINY, "train"))


def test_supernet_starts_from_its_teacher(tmp_path: Path, teacher: Path) -> None:
    """A dense supernet as wide as its dense teacher computes what the teacher does."""
    x = torch.randn(1, 3, 16, 16).tanh()
    master = gancomp.load_generator(teacher)
    torch.testing.assert_close(built(teacher, tmp_path / "s", separable=False)(x), master(x), rtol=1e-3, atol=1e-3)
    difference = (built(teacher, tmp_path / "s")(x) - master(x)).abs().mean()
    random = (built(teacher, tmp_path / "s", init="random")(x) - master(x)).abs().mean()
    assert difference < 0.8 * random, "the separable one starts nearer than a random one"


@pytest.mark.parametrize("changes", [{"init": "random"}, {"space": "8,2"}])
def test_supernet_starts_at_random(tmp_path: Path, teacher: Path, changes: dict) -> None:
    """When asked to, and when the teacher is too narrow to start from; a function of the seed either way."""
    weights = [built(teacher, tmp_path / "s", **changes).generator.model[1].weight for _ in range(2)]
    assert torch.equal(*weights)
    assert abs(weights[0].std().item() - 0.02) < 0.004
    assert not built(teacher, tmp_path / "s", **changes).generator.model[1].bias.any()


def test_a_run_does_not_depend_on_the_callers_random_numbers(tmp_path: Path, teacher: Path) -> None:
    files = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        files.append(run_supernet(supernet_run(tmp_path / str(seed), teacher, init="random"), progress=False))
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_foreign_teacher(tmp_path: Path, norm: str) -> None:
    """A checkpoint of pytorch-CycleGAN-and-pix2pix, as it is."""
    stock = published.randomised(published.resnet(4, 2, norm=norm, dropout=None))
    torch.save(stock.state_dict(), tmp_path / "latest_net_G.pth")
    path = run_supernet(supernet_run(tmp_path / "s", tmp_path / "latest_net_G.pth", steps=2), progress=False)
    assert load_supernet(path).generator.config == ResnetConfig.uniform(4, 2, separable=True)


def test_a_unet_teacher(tmp_path: Path) -> None:
    unet = run_train(train_run(tmp_path / "t", model=TeacherModel("unet", ngf=2, n_levels=5)), progress=False)
    run = replace(supernet_run(tmp_path / "s", unet, steps=2, lambda_distill=0.0), space="4,2")
    path = run_supernet(run, progress=False)
    assert load_supernet(path).generator.config.n_blocks == 9
    features = run_supernet(replace(run, out=str(tmp_path / "f"), train=replace(run.train, lambda_distill=1.0)), progress=False)
    adaptors = load_file(features.parent / "adaptors.safetensors")
    assert [adaptors[f"{pair}.weight"].shape[0] for pair in range(2)] == [4, 4], "a quarter of its size, down and up"


# -- export ----------------------------------------------------------------------------------------------------------------


def test_export_cuts_a_configuration_out_of_a_supernet(tmp_path: Path, supernet: Path) -> None:
    path = run_export(ExportRun(str(supernet), str(tmp_path / "new" / "s.safetensors"), SMALLEST))
    student, expected = gancomp.load_generator(path), load_supernet(supernet).extract((2,) * 7)
    assert student.config == expected.config
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in student.state_dict().items())
    assert record(path)["stage"] == "export"
    assert record(path)["inputs"] == {"model": sha256_file(supernet)}
    assert "gancomp.space" not in read_metadata(path)


def test_export_converts_foreign_files(tmp_path: Path) -> None:
    stock = published.randomised(published.Unet(1, 5))
    torch.save({"state_dict": stock.state_dict()}, tmp_path / "net.pth")
    path = run_export(ExportRun(str(tmp_path / "net.pth"), str(tmp_path / "net.safetensors")))
    x = torch.randn(1, 3, 32, 32).tanh()
    assert torch.equal(gancomp.load_generator(path)(x), gancomp.load_generator(tmp_path / "net.pth")(x))


def test_export_refuses(tmp_path: Path, supernet: Path, teacher: Path) -> None:
    out = str(tmp_path / "x.safetensors")
    cases = [
        (ExportRun(str(supernet), out), ConfigError, "config_str='': "),
        (ExportRun(str(supernet), out, "2_2"), ConfigError, "config_str='2_2': has 2 numbers, space '4,2' has 7 slots"),
        (ExportRun(str(supernet), out, "3_2_2_2_2_2_2"), ConfigError, "3 is not allowed in slot 0"),
        (ExportRun(str(supernet), out, "two"), ConfigError, "config_str='two'"),
        (ExportRun(str(teacher), out, SMALLEST), CheckpointError, "holds no supernet"),
        (ExportRun(str(tmp_path / "none.pth"), out), CheckpointError, "none.pth: no such file"),
        (ExportRun(str(teacher), str(tmp_path / "x.pth")), ConfigError, "expected a file name ending in .safetensors"),
    ]
    for run, kind, message in cases:
        with pytest.raises(kind) as caught:
            run_export(run)
        assert message in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing was written"


# -- what is found out before a folder is made -----------------------------------------------------------------------------


def test_settings_that_cannot_work_leave_no_folder(tmp_path: Path, teacher: Path, supernet: Path) -> None:
    """So that the same folder can be used once they are right."""
    out = tmp_path / "run"
    small = replace(TINY, load_size=12, crop_size=12)
    three = replace(TrainOptions(**COMMON), d_layers=3)
    grey = replace(TINY, in_channels=1)
    cases = [
        (
            run_train,
            train_run(out, train=three, data=small),
            "data.crop_size=12: a discriminator of 3 layers",
        ),
        (run_train, train_run(out, model=TeacherModel("unet", n_levels=7)), "crop_size=32: this unet needs a multiple of 128"),
        (run_train, train_run(out, model=TeacherModel(ngf=0)), "ngf=0"),
        (run_supernet, replace(supernet_run(out, teacher), data=grey), "data.in_channels=1: the generator has 3"),
        (run_supernet, replace(supernet_run(out, teacher), space="4,0"), "slot 0 is (4, 0)"),
        (run_supernet, replace(supernet_run(out, teacher), teacher="none.pth"), "none.pth: no such file"),
        (
            run_supernet,
            replace(supernet_run(out, teacher), discriminator=str(teacher)),
            "expected 'patch'",
        ),
        (run_supernet, replace(supernet_run(out, teacher), discriminator="none.pth"), "none.pth: no such file"),
        (run_finetune, replace(finetune_run(out, supernet, teacher), supernet=str(teacher)), "holds no supernet"),
        (run_finetune, replace(finetune_run(out, supernet, teacher), config_str="8_2_2_2_2_2_2"), "8 is not allowed in slot 0"),
    ]
    for call, run, message in cases:
        with pytest.raises(gancomp.GancompError) as caught:
            call(run, progress=False)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_small_images_with_a_small_discriminator(tmp_path: Path) -> None:
    data = replace(TINY, load_size=8, crop_size=8)
    assert run_train(train_run(tmp_path / "run", data=data), progress=False).exists()


def test_teacher_models() -> None:
    assert isinstance(TeacherModel(ngf=2, n_blocks=1).build(TINY, 1), ResnetGenerator)
    first, second, other = (TeacherModel(ngf=2, n_blocks=1, separable=True).build(TINY, seed) for seed in (1, 1, 2))
    assert first.config.separable
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.model[1].weight, other.model[1].weight)
    with pytest.raises(ConfigError, match="arch='stylegan': expected resnet, unet or spade"):
        TeacherModel(arch="stylegan").build(TINY, 1)
