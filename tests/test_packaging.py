"""What is shipped: the source archive builds, the wheel holds what it should and runs where nothing else of the tree is."""

from __future__ import annotations

import email
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import gancomp

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Beside .git and build folders: what an editable installation puts into the tree.
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "runs", "demo", "*.egg-info", "__pycache__", "*.so")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command; returns its output, and fails with all of it."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GANCOMP_BACKEND", "GANCOMP_ISA")
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def python_files() -> set[str]:
    """Every Python file of the package, kernels included, by its name from the package's parent."""
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "gancomp").rglob("*.py") if "kernels" not in path.parts}
    return found | {f"gancomp/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, made from a copy of the tree."""
    for name in ("build", "cmake", "ninja", "nlohmann_json", "pybind11"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    tree = tmp_path_factory.mktemp("tree") / "gancomp"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tree.parent, tree, cwd=tree.parent)
    (archive,) = tree.parent.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive alone."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, tree, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


@pytest.mark.slow
def test_the_source_archive_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    code = (".cpp", ".h", ".cu", ".cuh")
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in code}
    needed = {
        "CMakeLists.txt",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "Makefile",
    }
    assert (sources | needed | python_files() | {"gancomp/py.typed", "gancomp/_C.pyi"}) - names == set()
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.py")} <= names
    unwanted = [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".", "build/", "demo/", "runs/"))]
    assert unwanted == []


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    info = f"gancomp-{gancomp.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"gancomp", info}, "no top-level kernels, tests, csrc or demo"
    assert {name for name in names if name.endswith(".py")} == python_files(), "packages are listed in pyproject.toml"
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    native = {"gancomp/_native.so", f"gancomp/_C{suffix}", "gancomp/lib/libgancomp.so"}
    assert {name for name in names if ".so" in name} == native
    assert {"gancomp/py.typed", "gancomp/_C.pyi", f"{info}/licenses/LICENSE"} <= names
    assert not any(word in name for name in names for word in ("test_", ".cpp", "CMake", "demo/", "__pycache__"))


@pytest.mark.slow
def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    info = f"gancomp-{gancomp.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as file:
        metadata = email.message_from_bytes(file.read(f"{info}/METADATA"))
        tags = email.message_from_bytes(file.read(f"{info}/WHEEL"))
        scripts = file.read(f"{info}/entry_points.txt").decode()
        assert file.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        modes = {entry.filename: entry.external_attr >> 16 for entry in file.infolist()}
    assert tags["Root-Is-Purelib"] == "false"
    assert "linux" in tags["Tag"] or "macosx" in tags["Tag"]
    assert f"cp{sys.version_info[0]}{sys.version_info[1]}" in tags["Tag"]
    assert metadata["Version"] == gancomp.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["project"]["requires-python"]
    required = [value for value in metadata.get_all("Requires-Dist", []) if "extra ==" not in value]
    assert sorted(required) == sorted(PROJECT["project"]["dependencies"])
    assert "gancomp = gancomp.cli:main" in scripts
    assert modes["gancomp/_native.so"] & 0o111


@pytest.mark.slow
def test_the_wheel_runs_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees the installed torch and its friends, but nothing of this tree."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # A .pth file there gives the packages beside torch, but not what their own .pth files add: no editable gancomp.
    (site / "packages.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path)
    code = (
        "import json, torch, gancomp\n"
        "from gancomp import _C, kernels\n"
        "from gancomp.ops import instance_norm_act\n"
        "x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7).sin()\n"
        "y = instance_norm_act(x, backend='cpu')\n"
        "z = instance_norm_act(x, backend='reference')\n"
        "print(json.dumps([gancomp.__file__, kernels.__file__, _C.__file__, (y - z).abs().max().item()]))\n"
    )
    *files, difference = json.loads(run(python, "-c", code, cwd=tmp_path).splitlines()[-1])
    assert all(Path(file).is_relative_to(site) for file in files)
    assert difference < 1e-5
    script = folder / "bin" / "gancomp"
    assert "kernels:" in run(script, "info", cwd=tmp_path)
    counted = run(script, "profile", "--config-str", "16_16_32_16_32_32_16_16", "--json", cwd=tmp_path)
    assert json.loads(counted)["params"] == 356867


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {str(Path(file).parent).replace("/", ".") for file in python_files()}


def test_the_editable_installation_is_this_tree() -> None:
    """``make build`` installs with ``pip install --editable``; its native files lie in the tree."""
    distribution = importlib.metadata.distribution("gancomp")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        pytest.skip("gancomp is not installed as editable here")
    assert Path(gancomp.__file__).parent == ROOT / "gancomp"
    assert distribution.version == gancomp.__version__
    from gancomp import _C, kernels
    from gancomp.ops.backend import native_library

    library = native_library()
    assert library.path is not None, library.reason
    assert library.path.parent == Path(_C.__file__).parent == ROOT / "gancomp"
    assert Path(kernels.__file__ or "").parents[1] == ROOT / "gancomp"


def test_the_build_takes_the_pinned_torch() -> None:
    """An open requirement may bring gigabytes of accelerator packages: the constraints pin what the build requires."""
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    requirements = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    bare = {requirement.partition(">=")[0].lower() for requirement in requirements} - {"setuptools", "wheel"}
    assert bare - pinned == set()


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gancomp.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


def test_commit_hooks_run_tools_that_the_build_installs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert {Path(tool).name for tool in tools} == {"ruff", "mypy", "clang-format"}
    assert {Path(tool).name for tool in tools} <= set(PROJECT["project"]["optional-dependencies"]["dev"])
