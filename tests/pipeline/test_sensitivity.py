"""``gancomp sensitivity``: what is decomposed, what it costs, that variants train alike, and that a stopped study goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from gancomp.checkpoints import load_generator
from gancomp.cli import main
from gancomp.data import DataConfig
from gancomp.errors import ConfigError, RunError
from gancomp.io import read_json, read_jsonl
from gancomp.models import DecomposedConfig, DecomposedResnet, ResnetConfig, ResnetGenerator, UnetConfig, UnetGenerator
from gancomp.models.decomposed import decompose, layer_groups
from gancomp.models.stock import stock_generator
from gancomp.pipeline import sensitivity
from gancomp.pipeline.evaluate import EvaluateOptions
from gancomp.pipeline.methods import settings_of
from gancomp.pipeline.sensitivity import SensitivityRun, run_sensitivity, sensitivity_table
from gancomp.pipeline.settings import TeacherModel
from gancomp.search import profile_module
from gancomp.train import DistillOptions
from gancomp.train.loop import Interrupted

from ..models import published

SIZE = 32
DATA = {"load_size": 36, "crop_size": SIZE, "synthetic_train": 8, "synthetic_test": 3}
STEPS = {"steps": 2, "batch_size": 2, "ndf": 4, "d_layers": 1, "device": "cpu", "log_every": 1, "sample_every": 0}
GROUPS = "down,blocks-2"


def mini(out: Path, **changes) -> SensitivityRun:
    settings = {
        "groups": GROUPS,
        "data": DataConfig(**DATA),
        "model": TeacherModel(ngf=4, n_blocks=3),
        "train": DistillOptions(**STEPS),
    }
    return SensitivityRun(str(out), **{**settings, **changes})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sensitivity") / "run"
    return out, run_sensitivity(mini(out), progress=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "generator.safetensors"
    published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 3))).save(path)
    return path


def macs_of(groups: set[str], ngf: int, size: int) -> int:
    """Multiply-accumulates of a generator of three blocks by hand: pixels that a kernel is applied at, taps, channels."""

    def layer(group: str, inputs: int, outputs: int, taps: int, applied: int, put_out: int) -> int:
        dense = applied * taps * inputs * outputs
        return applied * taps * inputs + put_out * inputs * outputs if groups & {group, "all"} else dense

    full, half, quarter = size**2, size**2 // 4, size**2 // 16
    total = layer("stem", 3, ngf, 49, full, full) + layer("head", ngf, 3, 49, full, full)
    total += layer("down", ngf, 2 * ngf, 9, half, half) + layer("down", 2 * ngf, 4 * ngf, 9, quarter, quarter)
    # A transposed convolution applies its kernel at every input pixel.
    total += layer("up", 4 * ngf, 2 * ngf, 9, quarter, half) + layer("up", 2 * ngf, ngf, 9, half, full)
    for block in range(3):
        group = "blocks" if "blocks" in groups else f"blocks-{block + 1}"
        total += 2 * layer(group, 4 * ngf, 4 * ngf, 9, quarter, quarter)
    return total


@pytest.mark.parametrize("group", ["", *layer_groups(3)])
def test_costs_by_hand(group: str) -> None:
    config = DecomposedConfig(**vars(ResnetConfig.uniform(4, 3)), groups=(group,) if group else ())
    assert profile_module(DecomposedResnet(config), (1, 3, SIZE, SIZE)).macs == macs_of({group}, 4, SIZE)


def test_groups_cover_every_convolution_once() -> None:
    for n_blocks in (0, 1, 2, 3, 5, 9):
        groups = layer_groups(n_blocks)
        model = ResnetGenerator(ResnetConfig.uniform(1, n_blocks)).model
        having = [index for index, layer in enumerate(model) if any(True for _ in layer.parameters())]
        parts = ("stem", "down", "blocks", "up", "head")
        assert sorted(index for name in parts for index in groups.get(name, ())) == having == [*groups["all"]]
        thirds = [groups[f"blocks-{part}"] for part in (1, 2, 3) if f"blocks-{part}" in groups]
        assert len(thirds) == (3 if n_blocks >= 3 else 0)
        assert sum(thirds, ()) == (groups["blocks"] if thirds else ())
        assert all(thirds)


def expected(state: dict[str, torch.Tensor], x: torch.Tensor, config: DecomposedConfig) -> torch.Tensor:
    """The generator of three blocks in plain functions, for instance norm and reflection."""

    def conv(x: torch.Tensor, name: str, *, pad: int, stride: int = 1, head: bool = False) -> torch.Tensor:
        padded = F.pad(x, (pad,) * 4, mode="reflect") if stride == 1 else x
        space = {"stride": stride, "padding": 0 if stride == 1 else pad}
        if f"{name}.weight" in state:
            return F.conv2d(padded, state[f"{name}.weight"], state.get(f"{name}.bias") if head else None, **space)
        inner = f"{name}.conv" if f"{name}.conv.0.weight" in state else name
        y = F.conv2d(padded, state[f"{inner}.0.weight"], None, groups=x.shape[1], **space)
        y = y if head else F.instance_norm(y)
        return F.conv2d(y, state[f"{inner}.2.weight"], state.get(f"{inner}.2.bias") if head else None)

    def up(x: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.weight" in state:
            return F.conv_transpose2d(x, state[f"{name}.weight"], None, 2, 1, 1)
        y = F.conv_transpose2d(x, state[f"{name}.0.weight"], None, 2, 1, 1, groups=x.shape[1])
        return F.conv2d(F.instance_norm(y), state[f"{name}.2.weight"])

    state = {name.removeprefix("network.model."): tensor for name, tensor in state.items()}
    x = F.relu(F.instance_norm(conv(x, "1", pad=3)))
    for index in (4, 7):
        x = F.relu(F.instance_norm(conv(x, str(index), pad=1, stride=2)))
    for index in range(10, 10 + config.n_blocks):
        y = F.relu(F.instance_norm(conv(x, f"{index}.conv_block.1", pad=1)))
        x = x + F.instance_norm(conv(y, f"{index}.conv_block.6", pad=1))
    for index in (10 + config.n_blocks, 13 + config.n_blocks):
        x = F.relu(F.instance_norm(up(x, str(index))))
    return torch.tanh(conv(x, str(17 + config.n_blocks), pad=3, head=True))


@pytest.mark.parametrize("group", ["", *layer_groups(3)])
def test_images_are_those_of_plain_pytorch_and_of_the_stock_form(group: str, tmp_path: Path) -> None:
    config = DecomposedConfig(**vars(ResnetConfig.uniform(4, 3)), groups=(group,) if group else ())
    network = published.randomised(DecomposedResnet(config)).eval()
    network.save(tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.config == config
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        wanted = expected(network.double().state_dict(), x.double(), config).float()
        torch.testing.assert_close(loaded(x), wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(stock_generator(loaded)(x), wanted, rtol=1e-3, atol=1e-3)


def test_all_but_the_group_starts_from_the_dense_weights() -> None:
    dense = published.randomised(ResnetGenerator(ResnetConfig.uniform(4, 3, norm="batch")))
    same = decompose(dense, [], 1).network.state_dict()
    assert same.keys() == dense.state_dict().keys()
    assert all(torch.equal(same[name], tensor) for name, tensor in dense.state_dict().items())
    down = decompose(dense, ["down"], 1).network.state_dict()
    kept = [name for name in dense.state_dict() if not name.startswith(("model.4.", "model.7."))]
    assert all(torch.equal(down[name], dense.state_dict()[name]) for name in kept)
    assert {name for name in down if name not in kept} == {
        f"model.{layer}.{part}.weight" for layer in (4, 7) for part in (0, 2)
    }
    again, other = (decompose(dense, ["down"], seed).network.state_dict() for seed in (1, 2))
    assert torch.equal(down["model.4.0.weight"], again["model.4.0.weight"])
    assert not torch.equal(down["model.4.0.weight"], other["model.4.0.weight"])


def test_what_a_decomposed_head_is_given_comes_through() -> None:
    """Weights of 0.02 one after the other, with no norm between, would leave grey images and hardly a gradient."""
    torch.manual_seed(0)
    head = decompose(ResnetGenerator(ResnetConfig.uniform(16, 1)), ["head"], 1).network.model[-2]
    x = torch.randn(2, 16, SIZE, SIZE)
    assert head[0](x).detach().std() == pytest.approx(1, rel=0.3)


def test_result(finished: tuple[Path, dict]) -> None:
    out, result = finished
    assert [row["variant"] for row in result["variants"]] == ["dense", "down", "blocks-2"]
    assert [row["layers"] for row in result["variants"]] == [0, 2, 2]
    for row in result["variants"]:
        assert row["macs"] == macs_of({row["variant"]}, 4, SIZE)
        assert row["ms"] > 0
        assert row["scores"].keys() == {"l1", "psnr", "ssim", "fd_random"}
        assert len(read_jsonl(out / row["variant"] / "log.jsonl")) == 2
    assert result["variants"][0]["macs_share"] == 1 > result["variants"][1]["macs_share"]
    assert len({row["scores"]["l1"] for row in result["variants"]}) == 3, "no variant is another one"
    assert result["objective"] == {"key": "fd_random", "maximize": False}
    assert read_json(out / "sensitivity.json") == json.loads(json.dumps(result))
    with Image.open(out / "sensitivity.png") as plot:
        assert plot.width > 500
    lines = (out / "sensitivity.md").read_text().splitlines()
    assert (out / "sensitivity.md").read_text() == sensitivity_table(result)
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {11}
    assert lines[3].startswith(f"| down | 2 | {result['variants'][1]['params']:,} | {macs_of({'down'}, 4, SIZE):,} |")


def test_a_stopped_study_goes_on_and_ends_the_same(finished: tuple[Path, dict], tmp_path: Path, monkeypatch) -> None:
    whole, result = finished
    real, begun = sensitivity.fit, []

    def stopping(stage, train, val, folder, record, **options) -> bool:
        begun.append(folder.path.name)
        if begun == ["dense", "down"]:
            real(stage, train, val, folder, record, **options, stop_at=1)
            raise Interrupted("stopped")
        return real(stage, train, val, folder, record, **options)

    monkeypatch.setattr(sensitivity, "fit", stopping)
    run = mini(tmp_path / "run")
    with pytest.raises(Interrupted):
        run_sensitivity(run, progress=False)
    again = run_sensitivity(run, progress=False)
    assert begun == ["dense", "down", "down", "blocks-2"], "a finished variant is not trained again"
    for row, before in zip(again["variants"], result["variants"], strict=True):
        assert row["scores"] == before["scores"]
        name = f"{row['variant']}/generator.safetensors"
        a, b = load_file(tmp_path / "run" / name), load_file(whole / name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    monkeypatch.setattr(sensitivity, "measure_latency", None)
    assert run_sensitivity(run, progress=False) == again, "a finished study is read"
    with pytest.raises(RunError, match=r"begun with train.steps=2, now 3"):
        run_sensitivity(replace(run, train=replace(run.train, steps=3)), progress=False)


@pytest.mark.parametrize("method", ["pix2pix", "cyclegan"])
def test_distilled_from_a_teacher(method: str, teacher: Path, tmp_path: Path) -> None:
    settings = {"data": DATA, "train": STEPS, "teacher": str(teacher), "groups": "up", "objective": "l1"}
    run = settings_of(SensitivityRun, method, out=str(tmp_path / "run"), **settings)
    result = run_sensitivity(run, progress=False)
    assert [row["variant"] for row in result["variants"]] == ["dense", "up"]
    assert result["objective"] == {"key": "l1", "maximize": False}
    first = read_jsonl(tmp_path / "run" / "dense" / "log.jsonl")[0]
    assert {"recon", "distill", "D", "G"} <= first.keys()
    if method == "cyclegan":
        assert first["recon"] == pytest.approx(0, abs=1e-5), "the dense variant starts as its teacher"
        assert read_jsonl(tmp_path / "run" / "up" / "log.jsonl")[0]["recon"] > 1e-2
        assert result["protocol"]["distances"] == "to the teacher's output"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": "down,middle"}, r"groups='down,middle': expected some of stem, down, blocks, blocks-1"),
        ({"groups": "up,up"}, "each once"),
        ({"groups": "blocks-1", "model": TeacherModel(ngf=4, n_blocks=2)}, "of a generator of 2 blocks"),
        ({"method": "gaugan"}, "method='gaugan': the groups of layers are those of a ResNet"),
        ({"model": TeacherModel(arch="unet", ngf=4, n_levels=5)}, "model.arch='unet': is a unet generator; expected a dense"),
        ({"model": TeacherModel(ngf=4, separable=True)}, "is a separable resnet generator; expected a dense"),
        ({"data": DataConfig(**DATA, unpaired=True)}, "teacher='': without one, variants train on pairs"),
        ({"evaluate": EvaluateOptions(runner="engine")}, "evaluate: runner='engine': "),
        ({"discriminator": "d.safetensors"}, "discriminator='d.safetensors': is inherited from a teacher"),
        ({"data": DataConfig(**{**DATA, "synthetic_test": 1})}, "objective='fd': a Frechet distance needs two"),
    ],
)
def test_wrong_settings_are_refused_before_a_folder_is_made(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sensitivity(mini(tmp_path / "run", **changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_no_dense_resnet(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    UnetGenerator(UnetConfig(4, 5)).save(path)
    with pytest.raises(ConfigError, match=r"teacher='.*generator.safetensors': is a unet generator"):
        run_sensitivity(mini(tmp_path / "run", teacher=str(path)), progress=False)


def test_the_verb(finished: tuple[Path, dict], tmp_path: Path, capsys) -> None:
    out, result = finished
    assert main(["sensitivity", "--out", "x", "--model", "cyclegan", "--groups", "up", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "verb: sensitivity" in printed
    assert "  unpaired: true" in printed
    assert "  steps: 2000" in printed
    arguments = ["--out", str(out), "--groups", GROUPS, "--ngf", "4", "--model.n-blocks", "3"]
    arguments += [word for name, value in DATA.items() for word in (f"--data.{name.replace('_', '-')}", str(value))]
    arguments += [word for name, value in STEPS.items() for word in (f"--train.{name.replace('_', '-')}", str(value))]
    assert main(["sensitivity", *arguments]) == 0
    assert capsys.readouterr().out == f"{sensitivity_table(result)}\n{out / 'sensitivity.json'}\n"
