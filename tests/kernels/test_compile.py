"""Every kernel compiles for real GPUs without one, exactly as its launcher launches it, and keeps its values in registers.

A driver that only names an architecture stands in for that of a GPU, and launches end after compilation. So the ops are
called as on a GPU, with uninitialised tensors of real sizes, forward and backward, and nothing is computed.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from gancomp.kernels import common  # noqa: E402
from gancomp.kernels.instance_norm_act import InstanceNormActTriton  # noqa: E402
from gancomp.kernels.reflect_pad_depthwise_conv3x3 import ReflectPadDepthwiseConv3x3Triton  # noqa: E402
from gancomp.kernels.separable_resblock import SeparableResblockTriton  # noqa: E402
from gancomp.kernels.sliced_conv import REFLECT, ZEROS, SlicedConv2dTriton, SlicedConvTranspose2dTriton  # noqa: E402
from gancomp.kernels.spade import SpadeModulateTriton  # noqa: E402

if common.INTERPRETED:
    pytest.skip("the interpreter replaces the kernels that this compiles", allow_module_level=True)

PAGE = Path(__file__).parents[2] / "docs" / "gpu-status.md"


@dataclass(frozen=True)
class Target:
    """An architecture, and how images are stored and float32 is multiplied there. Weights of dense layers are float32."""

    architecture: int
    dtype: torch.dtype
    tf32: bool = True

    def __str__(self) -> str:
        precision = ", exact" if not self.tf32 else ""
        return f"sm_{self.architecture} {str(self.dtype).removeprefix('torch.')}{precision}"


TARGETS = [
    Target(75, torch.float16), Target(80, torch.float32), Target(80, torch.float32, tf32=False), Target(90, torch.float32),
    Target(90, torch.bfloat16),
]  # fmt: skip

# Ops at the sizes of a generator at 256 x 256 (SPADE: 512 x 256): a function of the images' dtype that runs one.
Call = Callable[[torch.dtype], tuple[Any, ...]]


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def _norm(side: int, full: bool, dtype: torch.dtype) -> Any:
    x = _empty(dtype, 4, 48, side, side)
    others = (_empty(dtype, 64), _empty(dtype, 64), _empty(dtype, *x.shape)) if full else (None,) * 3
    return InstanceNormActTriton.apply(x, *others, True, 1e-5)


def _depthwise(dtype: torch.dtype) -> Any:
    return ReflectPadDepthwiseConv3x3Triton.apply(
        _empty(dtype, 4, 192, 64, 64), _empty(dtype, 192, 1, 3, 3), _empty(dtype, 192)
    )


def _conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int, mode: int, dtype: torch.dtype) -> Any:
    weight, bias = _empty(torch.float32, outputs, inputs, kernel, kernel), _empty(torch.float32, outputs)
    return SlicedConv2dTriton.apply(_empty(dtype, 4, inputs, 256, 256), weight, bias, outputs, stride, padding, mode)


def _transpose(dtype: torch.dtype) -> Any:
    weight, bias = _empty(torch.float32, 192, 96, 3, 3), _empty(torch.float32, 96)
    return SlicedConvTranspose2dTriton.apply(_empty(dtype, 4, 192, 64, 64), weight, bias, 96, 2, 1, 1)


def _block(side: int, dropout: bool, dtype: torch.dtype, stream: int = 192, hidden: int = 192) -> Any:
    weights = [_empty(torch.float32, *shape) for shape in ((192, 1, 3, 3), (192, 192, 1, 1)) * 2]
    mask = torch.empty(4, hidden, side, side, dtype=torch.uint8) if dropout else None
    return SeparableResblockTriton.apply(_empty(dtype, 4, stream, side, side), *weights, mask, 2.0, hidden, 1e-5)


def _spade(given: bool, dtype: torch.dtype) -> Any:
    constants = (torch.empty(64), torch.empty(64)) if given else (None, None)
    tensors = [_empty(dtype, 4, 64, 256, 512) for _ in range(3)]
    return SpadeModulateTriton.apply(*tensors, *constants, True, 0.2, 1e-5)[0]


DENSE = {
    "`sliced_conv2d` 7x7, reflect, 3 to 48": functools.partial(_conv, 3, 48, 7, 1, 3, REFLECT),
    "`sliced_conv2d` 3x3, stride 2, 48 to 96": functools.partial(_conv, 48, 96, 3, 2, 1, ZEROS),
    "`sliced_conv2d` 7x7, reflect, 48 to 3": functools.partial(_conv, 48, 3, 7, 1, 3, REFLECT),
    "`sliced_conv_transpose2d` 3x3, stride 2, 192 to 96": _transpose,
}
CALLS = {
    **DENSE,
    "`separable_resblock` 64 x 64, dropout": functools.partial(_block, 64, True),
    "`separable_resblock` 128 x 128": functools.partial(_block, 128, False),
    "`spade_modulate` batch, 256 x 512": functools.partial(_spade, False),
    "`spade_modulate` given, 256 x 512": functools.partial(_spade, True),
    "`instance_norm_act` 64 x 64": functools.partial(_norm, 64, False),
    "`instance_norm_act` 64 x 64, all parts": functools.partial(_norm, 64, True),
    "`instance_norm_act` 128 x 128, all parts": functools.partial(_norm, 128, True),
    "`instance_norm_act` 256 x 256, all parts": functools.partial(_norm, 256, True),
    "`reflect_pad_depthwise_conv3x3` 64 x 64": _depthwise,
}


class _Driver:
    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def _resources(kernel: Any) -> dict[str, int]:
    """Registers per thread, and bytes of stack, local and shared memory, as NVIDIA's tool reads them from the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output))
    counts = {name: int(found[name]) for name in ("REG", "STACK", "LOCAL")}
    return {"WARPS": kernel.metadata.num_warps, **counts, "SHARED": kernel.metadata.shared}


def compiled(call: Call, target: Target) -> list[tuple[str, Any]]:
    """The kernels that an op launches forward and backward, in order."""
    kernels: dict[int, tuple[str, Any]] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels[id(kernel)] = (self.__name__, kernel)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("TRITON_CACHE_DIR", folder)
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", _Driver(target.architecture))
        patch.setattr(torch.backends.cudnn, "allow_tf32", target.tf32)
        y = call(target.dtype)
        y.backward(torch.empty_like(y))
    return list(kernels.values())


@functools.cache
def launched(call: str, target: Target) -> list[tuple[str, dict[str, int]]]:
    """What the kernels of an op use."""
    return [(name, _resources(kernel)) for name, kernel in compiled(CALLS[call], target)]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_compiles_without_spilling(call, target, record_property):
    if not target.tf32 and call not in DENSE:
        pytest.skip("multiplies nothing, or what the convolutions multiply")
    kernels = launched(call, target)
    record_property("resources", kernels)
    assert len(kernels) >= 2
    for name, used in kernels:
        print(f"{target} {name} {used}")
        assert used["STACK"] == used["LOCAL"] == 0, f"{name}: registers spill"
        # What a block of this many threads can have at all.
        assert used["REG"] * 32 * used["WARPS"] <= 65536
        assert used["SHARED"] <= 48 * 1024, f"{name}: fits no GPU without asking for more shared memory"


@pytest.mark.slow
def test_one_compilation_serves_every_choice_of_channels():
    """Also of channels counted by tensors' shapes: a supernet must not compile for minutes as it samples."""
    target = Target(90, torch.bfloat16)
    first, *others = (
        {id(kernel) for _, kernel in compiled(functools.partial(_block, 64, True, stream=stream, hidden=hidden), target)}
        for stream, hidden in ((192, 192), (16, 33), (1, 24), (40, 1))
    )
    assert len(first) == 11
    assert all(other == first for other in others)


def table() -> str:
    """What every kernel uses, in Markdown: registers per thread, and KiB of shared memory where there are any.

    A kernel that an op launches in several variants has as many lines, in the order of the launches; a line that another op has
    shown already is left out.
    """
    columns = [target for target in TARGETS if target.tf32 and target.architecture >= 80]
    lines = ["| call | kernel | warps | " + " | ".join(map(str, columns)) + " |", "|---|---|---|" + "---|" * len(columns)]
    shown = set()
    for call in CALLS:
        for variants in zip(*(launched(call, target) for target in columns), strict=True):
            resources = [used for _, used in variants]
            cells = [f"{used['REG']}" + f", {used['SHARED'] // 1024}" * (used["SHARED"] >= 1024) for used in resources]
            line = f"`{variants[0][0]}` | {resources[0]['WARPS']} | " + " | ".join(cells) + " |"
            if line not in shown:
                shown.add(line)
                lines.append(f"| {call} | {line}")
    return "\n".join(lines)


@pytest.mark.slow
def test_the_page_shows_what_the_kernels_use():
    page = PAGE.read_text()
    version, shown = re.search(r"\(Triton (\S+)\).*?\n\n(\| call .*?\n)\n", page, re.DOTALL).groups()
    if triton.__version__ != version:
        pytest.skip(f"docs/gpu-status.md is of Triton {version}, this is {triton.__version__}")
    expected = table()
    assert shown.strip() == expected, f"the table in {PAGE.name} is of other kernels; it should be\n{expected}"
