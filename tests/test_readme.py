"""What README.md tells people to type works: every block runs here, at miniature scale, with the flags as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gancomp
from gancomp.cli import VERBS, main
from gancomp.ops.backend import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# What makes a compression take seconds; a command's own flags stay as they are.
SHRINK = (
    "--load-size", "36", "--crop-size", "32", "--model.ngf", "16", "--model.n-blocks", "3", "--space", "8,4",
    "--search.population", "3", "--search.generations", "1", "--search.objective", "l1",
    *(f"--{stage}.{name}={value}" for stage in ("train", "supernet", "finetune") for name, value in
      (("steps", 2), ("batch-size", 2), ("ndf", 4), ("d-layers", 1), ("sample-every", 0))),
)  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[list[str], str]]:
    """Every command line of the README, and the output a comment below it promises."""
    for block in blocks("bash"):
        lines = block.replace("\\\n", " ").splitlines()
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if words := shlex.split(line, comments=True):
                yield words, after.removeprefix("# ") if after.startswith("# {") else ""


COMMANDS = list(commands())


def write_images(folder: Path, width: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (40, width, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's file names are there."""
    folder = tmp_path_factory.mktemp("readme")
    for words, _ in COMMANDS:
        if "--dataroot" in words:
            root = folder / words[words.index("--dataroot") + 1]
            for name, width in (("trainA", 40), ("trainB", 40)) if "cyclegan" in words else (("train", 80),):
                write_images(root / name, width)
    torch.manual_seed(0)
    generator = gancomp.ResnetGenerator(gancomp.ResnetConfig.uniform(16, 3))
    torch.save(generator.state_dict(), folder / "latest_net_G.pth")
    return folder


def run(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(folder)
    status = main(words)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def test_the_blocks_are_found() -> None:
    assert {words[0] for words, _ in COMMANDS} == {"make", "pip", "gancomp"}
    assert sum(words[:2] == ["gancomp", "compress"] for words, _ in COMMANDS) >= 2
    assert blocks("python")
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * (len(blocks("bash")) + len(blocks("python")))


@pytest.mark.slow
def test_commands_and_python_blocks_in_their_order(world: Path, monkeypatch, capsys) -> None:
    for words, promised in COMMANDS:
        if words[0] != "gancomp":
            continue
        more = SHRINK if words[1] == "compress" else ()
        out = run([*words[1:], *more], world, monkeypatch, capsys)
        if promised:
            assert json.loads(out) == json.loads(promised)
        if words[1] == "compress":
            folder = world / words[words.index("--out") + 1]
            assert out.splitlines()[-1] == str(folder.relative_to(world) / "report.html")
            assert (folder / "report.html").exists()
    for block in blocks("python"):
        labels = torch.zeros(2, 3, 32, 32)
        names = {"labels": labels}
        exec(compile(block, "README.md", "exec"), names)
        assert names["photo"].shape == (2, 3, 32, 32)
        assert names["photo"].abs().max() <= 1


def test_make_commands_do_what_they_say() -> None:
    does = {"demo": ".venv/bin/gancomp demo", "test": ".venv/bin/python -m pytest"}
    targets = [words[1] for words, _ in COMMANDS if words[0] == "make"]
    assert targets == ["demo", "test"]
    for target in targets:
        # Under `make test` this make is a nested one, which would say where it goes.
        command = ["make", "--no-print-directory", "-n", target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].startswith(does[target])


def test_contributing_and_ci_name_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", text))
    assert {"build", "test", "lint"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-1] == "exec make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.slow
def test_pip_commands_are_understood() -> None:
    """That they build is a test of its own (test_packaging.py); here pip reads the project as the README tells it to."""
    found = [words for words, _ in COMMANDS if words[0] == "pip"]
    inline = [shlex.split(code) for code in re.findall(r"`((?:PIP_CONSTRAINT=\S+ )?pip install [^`]+)`", README)]
    alternatives = [shlex.split(text) for text in re.findall(r"# or: (pip install .*)", README)]
    assert len(found + inline + alternatives) >= 4
    for words in (*found, *inline, *alternatives):
        constraint = [word for word in words if word.startswith("PIP_CONSTRAINT=")]
        for word in constraint:
            assert (ROOT / word.partition("=")[2]).is_file()
        arguments = words[words.index("install") :]
        options = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
        command = [sys.executable, "-m", "pip", *arguments, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"Would install gancomp-{gancomp.__version__}" in done.stdout


def test_verbs_and_flags_in_the_text_exist(tmp_path: Path, monkeypatch, capsys) -> None:
    codes = re.findall(r"`(gancomp [^`]+)`", README)
    verbs = {verb for code in codes for verb in re.split(r"[ |]+", code.removeprefix("gancomp "))} - {"VERB", "--help"}
    assert verbs - {*VERBS, "info"} == set()
    assert {*VERBS, "info"} - verbs - {words[1] for words, _ in COMMANDS} - {"demo"} == set(), "every verb is mentioned"
    (tmp_path / "run.yaml").write_text("out: x\ntrain: {steps: 3}\n")
    assert "--config run.yaml" in README
    assert "--print-config" in README
    out = run(["train", "--config", "run.yaml", "--print-config"], tmp_path, monkeypatch, capsys)
    assert "steps: 3" in out


def test_explain_in_the_text_runs() -> None:
    (code,) = re.findall(r"`(gancomp\.explain\([^`]+\))`", README)
    text = eval(code, {"gancomp": gancomp, "x": torch.zeros(1, 4, 8, 8)})
    assert "instance_norm_act" in text
    assert all(f"  {backend}: " in text for backend in BACKENDS)


def table(heading: str) -> dict[str, str]:
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `?([^|`]+)`? \| (.*) \|$", section, re.MULTILINE)
    return dict(rows)


def test_every_switch_is_in_the_table() -> None:
    """The environment variables that the sources read, and the values that these take."""
    from gancomp import _C

    sources = [*(ROOT / "gancomp").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    pattern = re.compile(r"(?:environ(?:\.get\(|\[)|getenv\()\s*\"(GANCOMP_\w+)\"")
    read = {name for source in sources for name in pattern.findall(source.read_text(encoding="utf-8"))}
    read |= set(re.findall(r'"(GANCOMP_\w+)"', (ROOT / "setup.py").read_text(encoding="utf-8")))  # handed to the build
    switches = {name: text for name, text in table("Switches").items() if name.startswith("GANCOMP_")}
    assert read == set(switches)
    assert set(re.findall(r"`(\w+)`", switches["GANCOMP_BACKEND"])) <= {"auto", *BACKENDS}
    assert set(_C.built_isas()) <= set(re.findall(r"`(\w+)`", switches["GANCOMP_ISA"]))


def test_the_first_screen() -> None:
    """What it is, one picture, two commands."""
    first = README.splitlines()[:24]
    assert first[0] == "# gancomp"
    for part in ("**Compress image-to-image GANs", "![", "make demo ", "make test "):
        assert any(line.startswith(part) for line in first), part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:", "#")):
            continue
        file = page.parent / target.partition("#")[0]
        assert file.exists(), f"{page.name} links to {target}"
        assert file.resolve().is_relative_to(ROOT), f"{page.name} links out of the project: {target}"
        if image:
            with Image.open(file) as picture:
                picture.verify()
