"""Every kernel compiles for real GPUs without one, as its launcher would compile it, and keeps its values in registers."""

from __future__ import annotations

import re
import subprocess

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gancomp.kernels import common  # noqa: E402
from gancomp.kernels import instance_norm_act as norm  # noqa: E402
from gancomp.kernels import reflect_pad_depthwise_conv3x3 as depthwise  # noqa: E402

if common.INTERPRETED:
    pytest.skip("the interpreter replaces the kernels that this compiles", allow_module_level=True)

# The plane sizes of a generator at 256 x 256: residual blocks, after one downsampling, full resolution.
NORM_OPTIONS = {f"{side}x{side}": norm.blocking(side * side) for side in (64, 128, 256)}
PARAMETERS = {"weight", "bias", "residual"}


def cases():
    for plane, options in NORM_OPTIONS.items():
        for kernel in (norm._instance_norm_act_kernel, norm._instance_norm_act_backward_kernel):
            yield pytest.param(kernel, {**options, "RELU": True}, set(), id=f"{kernel.__name__}-{plane}")
            yield pytest.param(kernel, {**options, "RELU": True}, PARAMETERS, id=f"{kernel.__name__}-{plane}-all")
    tile = depthwise.blocking(64, 64)
    for kernel, options in (
        (depthwise._reflect_pad_depthwise_conv3x3_kernel, tile),
        (depthwise._reflect_pad_depthwise_conv3x3_backward_input_kernel, tile),
        (depthwise._reflect_pad_depthwise_conv3x3_backward_weight_kernel, tile),
        (common._sum_images_kernel, {**common.SUM_OPTIONS, "TERMS": 9}),
    ):
        yield pytest.param(kernel, options, PARAMETERS, id=kernel.__name__)


def compile_kernel(kernel, options, given, dtype, architecture):
    """Compile as for contiguous tensors whose addresses and planes are multiples of 16."""
    options = dict(options)
    signature, constants, attributes = {}, {}, {}
    statistics, tensors = {"means", "rstds", "partials"}, {"x", "y", "grad", "grad_x", "total"}
    for index, name in enumerate(kernel.arg_names):
        if name in options:
            signature[name], constants[name] = "constexpr", options.pop(name)
        elif name in PARAMETERS - given and kernel in (
            norm._instance_norm_act_kernel,
            norm._instance_norm_act_backward_kernel,
        ):
            signature[name], constants[name] = "constexpr", None
        elif name in tensors | PARAMETERS | statistics:
            signature[name] = "*fp32" if name in statistics else f"*{dtype}"
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
        if signature[name].startswith("*") or (signature[name] == "i32" and not kernel.params[index].do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(compiled, folder) -> dict[str, int]:
    """Registers per thread, and bytes of stack, local and shared memory, as NVIDIA's tool reads them from the binary."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    output = subprocess.run([tool, "--dump-resource-usage", str(path)], check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output))
    return {name: int(found[name]) for name in ("REG", "STACK", "LOCAL")} | {"SHARED": compiled.metadata.shared}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype"), [(75, "fp16"), (80, "fp32"), (90, "fp32"), (90, "bf16")])
@pytest.mark.parametrize(("kernel", "options", "given"), list(cases()))
def test_compiles_without_spilling(kernel, options, given, architecture, dtype, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    used = resources(compile_kernel(kernel, options, given, dtype, architecture), tmp_path)
    record_property("resources", used)
    print(f"sm_{architecture} {dtype} {used}, {options.get('num_warps', 4)} warps")
    assert used["STACK"] == used["LOCAL"] == 0, "registers spill"
    # What a block of this many threads can have at all.
    assert used["REG"] * 32 * options.get("num_warps", 4) <= 65536
