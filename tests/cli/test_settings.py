"""Settings from YAML files and flags."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from gancomp.cli import VERBS
from gancomp.cli.parse import parse
from gancomp.errors import ConfigError
from gancomp.pipeline.compress import CompressRun
from gancomp.pipeline.profile import ProfileRun
from gancomp.pipeline.settings import plain
from gancomp.pipeline.train import TrainRun


def settings_of(verb: str) -> type:
    module, name, *_ = VERBS[verb]
    return getattr(importlib.import_module(f"gancomp.pipeline.{module}"), name)


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "run.yaml"


def test_flags_override_the_file_and_aliases_work(tmp_path: Path) -> None:
    file = write(tmp_path, "out: a\ndata: {root: x, direction: BtoA}\ntrain: {steps: 7, lr: 1e-3}\n")
    for config in (["--config", str(file)], [f"--config={file}"]):
        settings, show = parse(TrainRun, "train", [*config, "--train.steps", "9", "--ngf=12", "--dataroot", "y"])
        assert not show
        assert (settings.out, settings.train.steps, settings.train.lr, settings.model.ngf) == ("a", 9, 1e-3, 12)
        assert (settings.data.root, settings.data.direction) == ("y", "BtoA")


def test_the_order_of_flags_and_file_does_not_matter(tmp_path: Path) -> None:
    file = write(tmp_path, "out: a\ntrain: {steps: 7}\n")
    assert parse(TrainRun, "train", ["--train.steps", "9", "--config", str(file)])[0].train.steps == 9


def test_an_alias_gives_way_to_a_flag_of_its_name(run) -> None:
    assert parse(ProfileRun, "profile", ["--ngf", "8"])[0].ngf == 8
    # There `model` is a file, not a group with an architecture.
    assert "--netG" in run("profile", "--netG", "unet")[2]


def test_a_groups_own_defaults_survive_a_file(tmp_path: Path) -> None:
    settings, _ = parse(CompressRun, "compress", ["--config", str(write(tmp_path, "out: a\nsupernet: {steps: 3}\n"))])
    assert settings.supernet.sampling == "sandwich"
    assert settings.supernet.steps == 3
    assert settings.finetune.steps == 5000


def test_printed_settings_read_back_equal(run, tmp_path: Path) -> None:
    flags = ["--out", "a", "--macs", "2.5e9", "--space", "8,4", "--train.amp", "off"]
    status, out, _ = run("compress", *flags, "--print-config")
    assert status == 0
    assert yaml.safe_load(out)["verb"] == "compress"
    again, _ = parse(CompressRun, "compress", ["--config", str(write(tmp_path, out))])
    assert again == parse(CompressRun, "compress", flags)[0]


def test_a_runs_own_file_gives_the_same_settings_elsewhere(tmp_path: Path) -> None:
    """``run.yaml`` in a run's folder holds everything but where the folder lies."""
    settings, _ = parse(TrainRun, "train", ["--out", "a", "--ngf", "8", "--train.seed", "3"])
    file = write(tmp_path, yaml.safe_dump({"verb": "train", **plain(settings, hide=("out",))}))
    again, _ = parse(TrainRun, "train", ["--config", str(file), "--out", "b"])
    assert again == dataclasses.replace(settings, out="b")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("train: {lr: 1e-3}", "lr", 1e-3),
        ("train: {lr: 1}", "lr", 1.0),
        ("train: {steps: 1e3}", "steps", 1000),
        ("train: {steps: 12.0}", "steps", 12),
        ("train: {amp: off}", "amp", "off"),
        ('train: {amp: "off"}', "amp", "off"),
        ("train: {device: cpu}", "device", "cpu"),
    ],
)
def test_values_as_people_write_them(tmp_path: Path, text: str, name: str, value: object) -> None:
    settings, _ = parse(TrainRun, "train", ["--config", str(write(tmp_path, f"out: a\n{text}\n"))])
    found = getattr(settings.train, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outt: a\n", "unknown setting outt; did you mean out?"),
        ("out: a\ntrain: {stepss: 1}\n", "unknown setting train.stepss; did you mean train.steps?"),
        ("out: a\n1: 2\n", "unknown setting 1"),
        ("out: a\ntrain: {steps: many}\n", "train.steps='many': expected int"),
        ("out: a\ntrain: {steps: 1.5}\n", "train.steps=1.5: expected int"),
        ("out: a\ntrain: {steps: .inf}\n", "train.steps=inf: expected int"),
        ("out: a\ntrain: {steps: .nan}\n", "train.steps=nan: expected int"),
        ("out: a\ntrain: {steps: 1e400}\n", "train.steps='1e400': expected int"),
        ("out: a\ntrain: {steps: true}\n", "train.steps=True: expected int"),
        ("out: a\ntrain: {steps: 0}\n", "train: steps=0: expected"),
        ("out: a\ntrain: {lr: .nan}\n", "train: lr=nan: expected"),
        ("out: a\ntrain: {lr: fast}\n", "train.lr='fast': expected float"),
        ("out: a\ntrain: {lr: yes}\n", "train.lr=True: expected float"),
        ("out: a\ntrain: {gan_mode: wgan}\n", "train.gan_mode='wgan': expected one of hinge, lsgan, vanilla"),
        ("out: a\ntrain: {gan_mode: off}\n", "train.gan_mode=False: expected one of hinge, lsgan, vanilla"),
        ("out: a\ntrain: 3\n", "train=3: expected settings of its own"),
        ("out: a\ntrain:\n", "train=None: expected settings of its own"),
        ("out:\n", "out=None: expected str"),
        ("out: [a]\n", "out=['a']: expected str"),
        ("out: a\ndata: {flip: 3}\n", "data.flip=3: expected bool"),
        ("- a\n", "expected settings as"),
        ("just text\n", "expected settings as"),
        ("a: [\n", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("verb: supernet\n", "is a run file of `gancomp supernet`"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(TrainRun, "train", ["--config", str(write(tmp_path, text))])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    for argument, message in (
        ("missing.yaml", "config='missing.yaml': no such file"), (str(tmp_path), "is a folder, expected a YAML file"),
        (str(tmp_path / "bytes.yaml"), "not YAML"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            parse(TrainRun, "train", ["--config", argument])
    with pytest.raises(ConfigError, match="--config: expected the path of a YAML file"):
        parse(TrainRun, "train", ["--out", "x", "--config"])


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    with_file = parse(TrainRun, "train", ["--config", str(write(tmp_path, "# nothing\n")), "--out", "x"])
    assert with_file == parse(TrainRun, "train", ["--out", "x"])


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Settings:
    name: str
    maybe: bool | None = None
    inner: Inner = field(default_factory=Inner)


def test_optional_and_text_values(tmp_path: Path) -> None:
    file = write(tmp_path, "name: 12\nmaybe: true\ninner: {size: 2.0}\n")
    assert parse(Settings, "x", ["--config", str(file)])[0] == Settings("12", True, Inner(2))
    file = write(tmp_path, "name: a\nmaybe:\n")
    assert parse(Settings, "x", ["--config", str(file)])[0] == Settings("a")


def docs(settings: type) -> dict[str, str]:
    """The fields of a dataclass that a text follows in the source, and the text."""
    texts = {}
    for kind in settings.__mro__[:-1]:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                assert isinstance(statement.target, ast.Name)
                texts[statement.target.id] = str(after.value.value)
    return texts


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_explained(verb: str) -> None:
    def check(settings: type) -> None:
        assert settings.__doc__
        texts = docs(settings)
        for name, hint in get_type_hints(settings).items():
            if dataclasses.is_dataclass(hint):
                check(hint)
            else:
                assert name in texts, f"{settings.__name__}.{name}"

    check(settings_of(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_is_complete_and_flows(run, verb: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    _, out, _ = run(verb, "--help")
    flat = " ".join(out.split())
    assert "--config FILE" in flat
    assert "--print-config" in flat
    assert ("--dataroot for --data.root" in flat) == ("--data.root STR" in flat)
    assert ("--netG for --model.arch" in flat) == ("--model.arch {" in flat)

    def check(settings: type) -> None:
        for field_, doc in docs(settings).items():
            assert "\n" not in doc, f"{settings.__name__}.{field_}: tyro keeps this line break"
            assert doc in flat, f"{settings.__name__}.{field_}"
        for hint in get_type_hints(settings).values():
            if dataclasses.is_dataclass(hint):
                check(hint)

    check(settings_of(verb))
