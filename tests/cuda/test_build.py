"""The CUDA kernels compile for every GPU they are meant for, keep their values in registers, and load without a driver."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = {"sm_80", "sm_86", "sm_89", "sm_90a"}
# Kernels, and how many forms each has: image types, arithmetic, tiles, vectors and the like.
KERNELS = {
    "instance_norm_act_kernel": 12,
    "instance_norm_act_backward_kernel": 12,
    "sum_images_kernel": 3,
    "reflect_pad_depthwise_conv3x3_kernel": 3,
    "reflect_pad_depthwise_conv3x3_backward_input_kernel": 3,
    "reflect_pad_depthwise_conv3x3_backward_weight_kernel": 3,
    "sliced_conv2d_kernel": 8,
    "fold_padding_kernel": 3,
    "plane_sums_kernel": 3,
    "sliced_conv2d_weight_kernel": 8,
    "sum_parts_kernel": 3,
    "separable_half_kernel": 12,
    "separable_half_backward_kernel": 12,
    "spade_plane_statistics_kernel": 12,
    "spade_modulate_kernel": 12,
    "spade_modulate_backward_kernel": 18,
}


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def configure(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Configure a build of the torch ops in a folder."""
    import pybind11

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DGANCOMP_PYTHON=ON"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    command += [f"-DGANCOMP_OUTPUT={folder / 'package'}", *options]
    return subprocess.run(command, env={**environment(), **variables}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The library with the CUDA kernels, and what the compiler says of them."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    folder = tmp_path_factory.mktemp("build")
    done = configure(folder, "-DGANCOMP_CUDA=1", "-DGANCOMP_ENGINE=OFF", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    build = ["cmake", "--build", str(folder), "--target", "_native", "--parallel", str(os.cpu_count())]
    done = subprocess.run(build, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return folder / "package" / "_native.so", done.stdout + done.stderr


def resources(report: str) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Registers and bytes spilled (stack frame included) of every form of every kernel, by architecture."""
    entry = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for symbol, architecture, stack, stores, loads, registers in entry.findall(report):
        (name,) = [name for name in KERNELS if re.search(rf"\d{name}(E|I)", symbol)]
        found[name][architecture].append((int(registers), int(stack) + int(stores) + int(loads)))
    return found


@pytest.mark.slow
def test_kernels_compile_for_every_architecture_without_spilling(report, record_property):
    found = resources(report[1])
    for name, forms in KERNELS.items():
        assert found[name].keys() == ARCHITECTURES, name
        for architecture, used in found[name].items():
            assert len(used) == forms, f"{name} for {architecture}"
            assert [spilled for _, spilled in used if spilled] == [], f"{name} spills on {architecture}"
            print(f"{name} {architecture}: {min(used)[0]} to {max(used)[0]} registers in {forms} forms")
    assert found.keys() == KERNELS.keys()


LOADS = """
import sys, torch
torch.ops.load_library(sys.argv[1])
assert "widths" in torch.ops.gancomp.sliced_conv2d.overloads()
assert not torch.cuda.is_initialized()
x = torch.zeros(1, 1, 4, 4)
try:
    torch.ops.gancomp.sliced_conv2d.widths(x, x, None, None, 1, 1, 0, 0, False)
except NotImplementedError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_library_loads_without_a_driver(report):
    done = subprocess.run([sys.executable, "-c", LOADS, str(report[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is only available for these backends: [CUDA" in done.stdout
    if shutil.which("readelf"):
        needed = subprocess.run(["readelf", "-d", str(report[0])], capture_output=True, text=True).stdout
        assert "libtorch_cpu.so" in needed
        assert not re.search(r"NEEDED.*(cudart|libcuda|torch_cuda)", needed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "CUDA kernels: none"),
        ("auto", "CUDA kernels: none"),
        ("1", "GANCOMP_CUDA=1: nvcc is not found"),
        ("yes", "expected auto, 0 or 1"),
    ],
)
def test_the_build_option(value, message, tmp_path):
    """`1` fails without nvcc rather than skips; `auto` builds nothing beside a torch without CUDA."""
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")
    if value == "auto" and torch.version.cuda is not None:
        pytest.skip("this torch is one for CUDA")
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    if value == "1" and shutil.which("nvcc", path=path) is not None:
        pytest.skip("nvcc lies beside the compilers")
    without = ["-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"]
    done = configure(tmp_path, f"-DGANCOMP_CUDA={value}", *without, PATH=path, CUDA_HOME="", CUDA_PATH="")
    assert message in done.stdout + " ".join(done.stderr.split())
    assert (done.returncode == 0) == (value in ("0", "auto"))
