"""From nothing to the first image: how long a fresh process takes, and the most memory it has held."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.peers import PEERS, onnx_file
from gancomp.errors import RunError

PROGRAMS = {
    "engine": """
        from gancomp.engine import Engine
        Engine(model, threads=threads)(image)
    """,
    "eager": """
        import torch
        from gancomp.checkpoints import load_generator
        from gancomp.models.stock import stock_generator
        torch.set_num_threads(threads)
        with torch.no_grad():
            stock_generator(load_generator(model).eval())(torch.from_numpy(image)).numpy()
    """,
    "onnxruntime": """
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": image})
    """,
    "openvino-f32": """
        import openvino
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        openvino.Core().compile_model(exported, "CPU", options).create_infer_request().infer([image])
    """,
}
"""What a user's program does, by peer: reads the model's file and translates an image."""

_BEGIN = "import sys, numpy\nmodel, exported, image, threads = *sys.argv[1:3], numpy.load(sys.argv[3]), int(sys.argv[4])\n"
# The resource module's figure would be that of the parent where it had more.
_END = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), flush=True)\n"


@dataclass(frozen=True)
class Start:
    """Milliseconds from the start of the process to its first image, and its peak resident memory in MB."""

    ms: float
    memory: float


def measure_starts(model: Path, image: Tensor, threads: int, *, peers: Sequence[str], rounds: int) -> dict[str, list[Start]]:
    """Start the peers of ``PROGRAMS`` that are asked for and available, in turns, ``rounds`` times and once for nothing.

    Raises:
        RunError: a program failed, or the system is not Linux.
    """
    if not Path("/proc/self/status").exists():
        raise RunError("the memory of a process is read from /proc/self/status, which this system does not have")
    names = [name for name in PROGRAMS if name in peers and PEERS[name].available() is None]
    exported = onnx_file(model, image) if {"onnxruntime", "openvino-f32"} & {*names} else Path()
    pixels = model.with_suffix(".npy")
    np.save(pixels, image.numpy())
    starts: dict[str, list[Start]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            start = _start(name, [str(model), str(exported), str(pixels), str(threads)])
            if number > 0:
                starts[name].append(start)
    return starts


def _start(name: str, arguments: list[str]) -> Start:
    lines = [line.removeprefix(" " * 8) for line in PROGRAMS[name].strip("\n").splitlines()]
    program = "\n".join([_BEGIN, *lines, _END])
    # As in an ordinary installation, modules are compiled once and not in every process.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        ms = (time.perf_counter() - began) * 1e3
        _, errors = process.communicate()
    if not answer.strip().isdigit():
        raise RunError(f"{name}: its program ended without an image: {errors.strip().splitlines()[-1:]}")
    return Start(ms, int(answer) * 1024 / 1e6)
