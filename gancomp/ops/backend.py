"""Which implementation runs a call, and why the others do not.

Every backend answers a call with a reason why it cannot run it, or None. ``auto`` takes the first that can; a named one that
cannot raises with its reason and never falls back. A backend that is broken, rather than unfit for the call, raises under
``auto`` as well: a slow run must not be the only sign of it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancomp.errors import BackendError, ConfigError

# In order of preference. Triton comes after the native kernels: it meets tensors on the CPU only under its interpreter.
BACKENDS = ("cuda", "cpu", "triton", "reference")

# Asked once: looking through the import path costs more than a small kernel.
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


class Fault(str):
    """A reason that ``auto`` must not pass over: something is broken."""


# What the native library must have; one that was built before the newest were there is told from one that works.
_OPERATORS = (
    "instance_norm_act", "reflect_pad_depthwise_conv3x3", "separable_resblock", "sliced_conv2d", "sliced_conv_transpose2d",
    "spade_modulate", "winograd_conv2d",
)  # fmt: skip

Verdict = Callable[[], str | None]
Verdicts = Mapping[str, Verdict]


@dataclass(frozen=True)
class NativeLibrary:
    """The compiled operators, or the reason why they are not there."""

    path: Path | None
    reason: str | None


def load_native_library(folder: Path) -> NativeLibrary:
    """Load the compiled operators of a folder; a failure keeps its reason for whoever needs them."""
    candidates = sorted(folder.glob("_native*.so")) + sorted(folder.glob("_native*.dylib"))
    if not candidates:
        return NativeLibrary(None, "the native library is not built (run `pip install .` in the source folder)")
    try:
        torch.ops.load_library(str(candidates[0]))
        from gancomp import _C

        _C.isa()
        if lacking := [name for name in _OPERATORS if not hasattr(torch.ops.gancomp, name)]:
            raise RuntimeError(f"it was built from other sources and lacks {', '.join(lacking)}; build it again")
    except ValueError as error:  # GANCOMP_ISA
        return NativeLibrary(None, Fault(error))
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error.__cause__ or error).partition("\n")[0]  # torch keeps the loader's words in the cause
        return NativeLibrary(None, Fault(f"the native library {candidates[0].name} does not load: {first_line}"))
    return NativeLibrary(candidates[0], None)


_NATIVE = load_native_library(Path(__file__).resolve().parent.parent)


def native_library() -> NativeLibrary:
    """The compiled operators, loaded when this module was imported."""
    return _NATIVE


def requested(backend: str) -> str:
    """The backend to use: the argument, or ``GANCOMP_BACKEND`` where that says ``auto``.

    Raises:
        ConfigError: unknown name.
    """
    source, name = "backend", backend
    if backend == "auto":
        source, name = "GANCOMP_BACKEND", os.environ.get("GANCOMP_BACKEND") or "auto"
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(f"{source}={name!r}: expected auto, {', '.join(BACKENDS)}")
    return name


def choose(op: str, backend: str, verdicts: Verdicts, x: Tensor) -> str:
    """The backend that runs this call.

    Args:
        op: name of the op.
        backend: what the caller asked for.
        verdicts: by backend, a function that gives the reason why it cannot run the call.
        x: the images. Before ``auto`` relies on kernels of a GPU for images of this dtype, they are checked there once.

    Raises:
        BackendError: the named backend cannot run it, or ``auto`` met a broken one.
    """
    name = requested(backend)
    if name != "auto":
        reason = verdicts[name]() if name in verdicts else f"{op} has no {name} implementation"
        if reason is not None:
            raise BackendError(f"{op}: backend {name!r} cannot run this call: {reason}")
        return name
    for candidate in BACKENDS:
        reason = verdicts[candidate]() if candidate in verdicts else "not implemented"
        if reason is None:
            reason = _distrust(op, candidate, x)
        if reason is None:
            return candidate
        if isinstance(reason, Fault):
            raise BackendError(f"{op}: {reason}; GANCOMP_BACKEND=reference runs without it")
    raise BackendError(f"{op}: no backend can run this call")


def _distrust(op: str, candidate: str, x: Tensor) -> str | None:
    """Why ``auto`` must not rely on a backend that could run a call; a user is told once."""
    if candidate not in ("cuda", "triton") or x.device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _checked(op, candidate, x.device, x.dtype)


@functools.cache
def _checked(op: str, candidate: str, device: torch.device, dtype: torch.dtype) -> str | None:
    from gancomp.ops import selfcheck

    reason = selfcheck.verdict(op, candidate, device, dtype)
    if reason is not None:
        warnings.warn(f"{op}: the {candidate} kernels are not used: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def describe(op: str, backend: str, verdicts: Verdicts, x: Tensor) -> str:
    """One line per backend: runs, could run, or the reason why not."""
    name = requested(backend)
    try:
        chosen = choose(op, backend, verdicts, x)
    except BackendError:
        chosen = None
    lines = [f"{op} (backend {name!r})"]
    for candidate in BACKENDS:
        reason = verdicts[candidate]() if candidate in verdicts else "not implemented for this op"
        reason = reason or (_distrust(op, candidate, x) if name == "auto" else None)
        state = "runs" if candidate == chosen else "could run" if reason is None else f"no, {reason}"
        lines.append(f"  {candidate}: {state}")
    return "\n".join(lines)


def cpu_verdict(**tensors: Tensor | None) -> str | None:
    """Why the native CPU kernels cannot take these tensors: they take float32 on the CPU, in any memory layout."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device.type}"
        if tensor.dtype != torch.float32:
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, the kernels are float32"
    return _NATIVE.reason


# What the kernels count with 32 bits: planes, and pixels of a plane.
_LIMIT = 2**31 - 2**16
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cuda_verdict(**tensors: Tensor | None) -> str | None:
    """Why the CUDA kernels cannot take these tensors."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cuda":
            return f"{name} is on {tensor.device.type}"
        if (reason := _gpu_verdict(name, tensor)) is not None:
            return reason
    return _NATIVE.reason or _cuda_build_verdict(next(t.device for t in tensors.values() if t is not None))


def _gpu_verdict(name: str, tensor: Tensor) -> str | None:
    """Why kernels on a GPU cannot take a tensor of this dtype and size."""
    if tensor.dtype not in _GPU_DTYPES:
        return f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.dim() == 4:
        planes, pixels = tensor.shape[0] * tensor.shape[1], tensor.shape[2] * tensor.shape[3]
        if max(planes, pixels) > _LIMIT:
            return f"{name} has {planes} planes of {pixels} pixels, the kernels count either with 32 bits"
    return None


@functools.cache
def _cuda_build_verdict(device: torch.device) -> str | None:
    """Why this build has no kernels for this GPU."""
    from gancomp import _C

    if not _C.cuda_architectures:
        return "the native library is built without CUDA kernels (build it with GANCOMP_CUDA=1)"
    major, minor = torch.cuda.get_device_capability(device)
    oldest = min(int(architecture.rstrip("af")) for architecture in _C.cuda_architectures.split())
    if 10 * major + minor < oldest:
        return f"{device} has compute capability {major}.{minor}, the kernels are built for {_C.cuda_architectures}"
    return None


def triton_verdict(**tensors: Tensor | None) -> str | None:
    """Why the Triton kernels cannot take these tensors: they need CUDA tensors, or the interpreter for CPU ones."""
    if not _TRITON_INSTALLED:
        return "triton is not installed"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cuda":
            if not _interpreted():
                return f"{name} is on {tensor.device.type} (start with TRITON_INTERPRET=1 to interpret the kernels there)"
        elif (reason := _launch_verdict(tensor.device)) is not None:
            return reason
        if (reason := _gpu_verdict(name, tensor)) is not None:
            return reason
    return None


def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. That is decided when they are imported: a later change has no effect."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from gancomp.kernels.common import INTERPRETED

    return INTERPRETED


@functools.cache
def _launch_verdict(device: torch.device) -> str | None:
    """Why Triton cannot launch a kernel on this GPU: it compiles a small C extension when it first does."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler (install gcc or clang, or set CC)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Triton finds no Python.h (install the development files of this Python)"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        return f"{device} has compute capability {major}.{minor}, the kernels need 7.5"
    return None


def unify_under_autocast(
    x: Tensor, *parameters: Tensor | None, images: tuple[Tensor | None, ...] = (), convolution: bool = False
) -> tuple[Any, ...]:
    """The tensors of a call where autocast is on: ``(x, *parameters, *images)``.

    On the CPU in float32, which the native kernels take. On a GPU images have the dtype of ``x``, which a ``convolution`` takes
    in the 16 bits of autocast; parameters of float32 stay as they are, since the kernels round them when they read them.
    """
    device = x.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, *parameters, *images
    dtype = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device) if convolution else x.dtype
    kept = [p if p is None or p.dtype == torch.float32 else p.to(dtype) for p in parameters]
    return x.to(dtype), *kept, *[image if image is None else image.to(dtype) for image in images]


def parameter_fits(parameter: Tensor, x: Tensor) -> bool:
    """Whether a parameter may stand beside images ``x``: in their dtype, or as float32 beside 16 bits; on their device."""
    master = parameter.dtype == torch.float32 and x.dtype in (torch.float16, torch.bfloat16)
    return parameter.device == x.device and (parameter.dtype == x.dtype or master)
