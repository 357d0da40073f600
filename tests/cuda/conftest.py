"""Builds the CUDA kernels for the CPU (emulation.h), with the torch ops that launch them, and fences their memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gancomp import _C
from gancomp.ops import cuda
from gancomp.ops.cuda import register_fakes
from gancomp.testing import poisoned_outputs

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "gancomp_emulated"
ORDERS = {"ascending": 0, "descending": 1, "random": 2}


class Emulation:
    """The emulated kernels: ``torch.ops.gancomp_emulated``, for CPU tensors."""

    def __init__(self, path: Path) -> None:
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(str(path))
        self._library.emulation_fenced.restype = ctypes.c_void_p
        self._library.emulation_fenced.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._library.faulty.restype = ctypes.c_char_p
        self.ops = getattr(torch.ops, NAMESPACE)
        register_fakes(NAMESPACE)

    def faulty(self, kind: int, numbers: Tensor) -> str | None:
        """Run a kernel of faulty_kernels.cu on float32 ``numbers``; what the launch says."""
        found = self._library.faulty(kind, ctypes.c_void_p(numbers.data_ptr()), numbers.numel())
        return None if found is None else found.decode()

    def order(self, name: str) -> None:
        """Which warps of a block run ahead, the first or the last, or whether all run evenly; and the order of blocks."""
        self._library.emulation_set_order(ORDERS[name])

    def fence(self, tensor: Tensor, at_end: bool) -> Tensor:
        """A copy of the tensor's whole memory, up to the element it reaches last, that ends at a fence or begins at one.

        An access beyond the fence fails the launch. Strides are kept, and so are gaps, which hold NaN.
        """
        if tensor.numel() == 0:
            return tensor.clone()
        size = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        address = self._library.emulation_fenced(size * tensor.element_size(), int(at_end))
        # A vector of 16 bytes at most lies between the last element and the fence.
        raw = (ctypes.c_char * (size * tensor.element_size())).from_address(address)
        memory = torch.frombuffer(raw, dtype=tensor.dtype)
        return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor.detach())

    def free(self) -> None:
        """Give back all fenced memory: no tensor in it may be used any more."""
        self._library.emulation_free()


def _build(folder: Path) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    torch_root = Path(torch.__file__).parent
    options = ["-O1", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    options += ["-DGANCOMP_EMULATION", f"-Dgancomp={NAMESPACE}", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    options += [f"-I{ROOT / name}" for name in ("tests/cuda", "csrc/include", "csrc/cuda")] + [
        "-isystem",
        torch_root / "include",
    ]
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), *sorted((ROOT / "csrc/bindings").glob("*_cuda*.cpp"))]
    sources += [ROOT / "tests/cuda/emulation.cpp", ROOT / "tests/cuda/faulty_kernels.cu"]

    def run(*command: object) -> None:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        run(compiler, *options, "-x", "c++", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / "emulated.so"
    torch_library = torch_root / "lib"
    run(
        compiler,
        "-shared",
        *objects,
        "-o",
        library,
        f"-L{torch_library}",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    )
    return library


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The emulated kernels, built once."""
    return Emulation(_build(tmp_path_factory.mktemp("emulation")))


class Machine:
    """Where kernels run: emulated, with inputs between fences, or on a GPU."""

    def __init__(self, emulation: Emulation | None) -> None:
        self._emulation = emulation

    def place(self, tensor: Tensor, at_end: bool = True) -> Tensor:
        """A copy of a tensor where the kernels can take it, strides and gaps kept."""
        if self._emulation is not None:
            return self._emulation.fence(tensor, at_end)
        if tensor.numel() == 0:
            return tensor.cuda()
        size = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.as_strided((size,), (1,), tensor.storage_offset()).cuda().as_strided(tensor.shape, tensor.stride())

    def other_order(self) -> None:
        """From now on threads take turns in another order, where a test can say so."""
        if self._emulation is not None:
            self._emulation.order("descending")


@pytest.fixture(params=[*ORDERS, pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """``gancomp.ops.cuda`` runs here: emulated, threads taking turns in some order, or on a GPU. Outputs start as NaN."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if not _C.cuda_architectures:
            pytest.skip("this build has no CUDA kernels (GANCOMP_CUDA=1)")
        with poisoned_outputs():
            yield Machine(None)
        return
    emulation: Emulation = request.getfixturevalue("built")
    emulation.order(request.param)
    monkeypatch.setattr(cuda, "_ops", emulation.ops)
    yield Machine(emulation)
    emulation.order("ascending")
    emulation.free()
