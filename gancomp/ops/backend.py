"""Which implementation runs a call, and why the others do not.

Every backend answers a call with a reason why it cannot run it, or None. ``auto`` takes the first that can; a named one that
cannot raises with its reason and never falls back.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gancomp.errors import BackendError, ConfigError

BACKENDS = ("cuda", "triton", "cpu", "reference")


@dataclass(frozen=True)
class NativeLibrary:
    """The compiled operators, or the reason why they are not there."""

    path: Path | None
    reason: str | None


@functools.cache
def native_library() -> NativeLibrary:
    """Load the compiled operators once; a failure keeps its reason for whoever needs them."""
    folder = Path(__file__).resolve().parent.parent
    candidates = sorted(folder.glob("_native*.so")) + sorted(folder.glob("_native*.dylib"))
    if not candidates:
        return NativeLibrary(None, "the native library is not built (run `pip install .` in the source folder)")
    try:
        torch.ops.load_library(str(candidates[0]))
    except (OSError, RuntimeError) as error:
        return NativeLibrary(None, f"the native library {candidates[0].name} does not load: {str(error).splitlines()[0]}")
    return NativeLibrary(candidates[0], None)


def requested(backend: str) -> str:
    """The backend to use: the argument, or ``GANCOMP_BACKEND`` where that says ``auto``.

    Raises:
        ConfigError: unknown name.
    """
    source, name = ("backend", backend)
    if backend == "auto":
        source, name = "GANCOMP_BACKEND", os.environ.get("GANCOMP_BACKEND", "auto")
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(f"{source}={name!r}: expected auto, {', '.join(BACKENDS)}")
    return name


Verdicts = Mapping[str, Callable[[], str | None]]


def choose(op: str, backend: str, verdicts: Verdicts) -> str:
    """The backend that runs this call.

    Args:
        op: name of the op, for messages.
        backend: what the caller asked for.
        verdicts: by backend, in order of preference, a function that gives the reason why it cannot run the call.

    Raises:
        BackendError: the named backend cannot run it.
    """
    name = requested(backend)
    if name == "auto":
        return next(candidate for candidate, verdict in verdicts.items() if verdict() is None)
    reason = verdicts[name]() if name in verdicts else f"{op} has no {name} implementation"
    if reason is not None:
        raise BackendError(f"{op}: backend {name!r} cannot run this call: {reason}")
    return name


def describe(op: str, backend: str, verdicts: Verdicts) -> str:
    """One line per backend: runs, could run, or the reason why not."""
    name = requested(backend)
    lines = [f"{op} (backend {name!r})"]
    chosen = False
    for candidate in BACKENDS:
        reason = verdicts[candidate]() if candidate in verdicts else "not implemented for this op"
        if reason is not None:
            lines.append(f"  {candidate}: no, {reason}")
        elif not chosen and name in ("auto", candidate):
            lines.append(f"  {candidate}: runs")
            chosen = True
        else:
            lines.append(f"  {candidate}: could run")
    return "\n".join(lines)


def cpu_verdict(**tensors: Tensor | None) -> str | None:
    """Why the native CPU kernels cannot take these tensors: they are float32 images on the CPU with dense planes."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device.type}"
        if tensor.dtype != torch.float32:
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, the kernels are float32"
    return native_library().reason


def triton_verdict(**tensors: Tensor | None) -> str | None:
    """Why the Triton kernels cannot take these tensors: they need CUDA tensors, or the interpreter for CPU ones."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != "cuda" and not interpreted:
            return f"{name} is on {tensor.device.type} (set TRITON_INTERPRET=1 to interpret the kernels there)"
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
    return None


def dense_planes(x: Tensor) -> Tensor:
    """``x`` with contiguous (h, w) planes: itself, also as a channel slice of a wider tensor; otherwise a copy."""
    height, width = x.shape[2:]
    if x.stride(3) == 1 and x.stride(2) == width and x.stride(1) == height * width:
        return x
    return x.contiguous()
