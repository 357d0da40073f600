"""The installed C++ library in programs of other projects: the examples, built and run on an exported file."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp import Engine
from gancomp.cli import main
from gancomp.data import read_image, to_tensor
from gancomp.models import ResnetConfig
from gancomp.testing import tolerance
from gancomp.version import __version__

from .native import ROOT, build, must, run
from .networks import build as build_network
from .networks import stock

pytestmark = pytest.mark.slow
HEIGHT, WIDTH = 44, 68


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where gancomp is installed for other projects."""
    folder = tmp_path_factory.mktemp("prefix")
    must("cmake", "--install", build("cpp", "gancomp"), "--prefix", folder)
    return folder


@pytest.fixture(scope="module", params=["embed_c", "embed_cpp"])
def program(request, prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example, built against the installed library."""
    folder = tmp_path_factory.mktemp(request.param)
    source = ROOT / "examples" / request.param
    must("cmake", "-S", source, "-B", folder, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    must("cmake", "--build", folder)
    return folder / request.param


def test_what_is_installed(prefix: Path) -> None:
    headers = {path.name for path in (prefix / "include" / "gancomp").iterdir()}
    assert headers == {"c_api.h", "engine.h", "export.h"}
    (package,) = prefix.rglob("gancompConfig.cmake")
    library = package.parents[2] / "libgancomp.so"
    assert library.resolve().name == f"libgancomp.so.1.{__version__}"
    assert (library.parent / "libgancomp.so.1").is_symlink()


@pytest.mark.parametrize(("version", "found"), [(__version__, True), ("99.0", False)])
def test_the_package_knows_its_version(prefix: Path, tmp_path: Path, version: str, found: bool) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.22)\nproject(user LANGUAGES NONE)\nset(CMAKE_SIZEOF_VOID_P 8)\n"
        f"find_package(gancomp {version} REQUIRED)\n"
    )
    done = run("cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert (done.returncode == 0) == found, done.stderr


def test_the_library_needs_neither_torch_nor_python(prefix: Path) -> None:
    (library,) = prefix.rglob("libgancomp.so")
    needed = must("ldd", library)
    assert "libstdc++" in needed
    assert not any(name in needed for name in ("torch", "python", "libgomp", "c10"))


def test_a_picture_is_translated_as_by_pytorch(program: Path, tmp_path: Path) -> None:
    generator = build_network(ResnetConfig.uniform(8, 3, separable=True))
    generator.save(tmp_path / "trained.safetensors")
    exported = tmp_path / "student.safetensors"
    assert main(["export", "--model", str(tmp_path / "trained.safetensors"), "--out", str(exported)]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")

    must(program, exported, tmp_path / "photo.ppm", tmp_path / "out.ppm")
    y = np.array(read_image(tmp_path / "out.ppm"))
    assert np.array_equal(y, Engine(exported)(pixels))

    network, x = stock(generator), to_tensor(read_image(tmp_path / "photo.ppm"))[None]
    with torch.inference_mode():
        exact, float32 = copy.deepcopy(network).double()(x.double()), network(x)
    allowed = tolerance(float32, exact)
    low, high = ((((exact + error) + 1) / 2 * 255).clamp(0, 255).floor()[0] for error in (-allowed, allowed))
    actual = torch.from_numpy(y).permute(2, 0, 1)
    assert ((low <= actual) & (actual <= high)).all()
    assert (low == high).double().mean() > 0.99
    assert exact.std() > 0.1


@pytest.mark.parametrize(
    ("model", "picture", "message"),
    [
        ("missing.safetensors", "photo.ppm", "missing.safetensors: no such file"),
        ("photo.ppm", "photo.ppm", "photo.ppm: header length"),
        ("good.safetensors", "missing.ppm", "missing.ppm: not a binary PPM picture"),
        ("good.safetensors", "short.ppm", "short.ppm: "),
        ("gray.safetensors", "photo.ppm", "gray.safetensors: does not map colour images to colour images"),
        ("good.safetensors", "tiny.ppm", "8"),
    ],
)
def test_errors_are_one_line(program: Path, tmp_path: Path, model: str, picture: str, message: str) -> None:
    build_network(ResnetConfig.uniform(4, 0)).save(tmp_path / "good.safetensors")
    build_network(ResnetConfig.uniform(4, 0, in_channels=1)).save(tmp_path / "gray.safetensors")
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "photo.ppm")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "tiny.ppm")
    (tmp_path / "short.ppm").write_bytes((tmp_path / "photo.ppm").read_bytes()[:-1])
    done = run(program, model, picture, "out.ppm", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not os.path.exists(tmp_path / "out.ppm")
