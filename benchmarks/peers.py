"""What a generator is compared with: the engine, and the ways in which a user would otherwise run it on a processor.

A peer prepares a generator's file for one input and gives back a call that runs it. Everybody starts from the same file, the
others from the same stock PyTorch form of it, and uses the number of threads that PyTorch is set to; each should have a process
of its own (contest.py), since thread pools disturb each other and settings are global.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gancomp.checkpoints import load_generator
from gancomp.engine import Engine
from gancomp.errors import GancompError, first_line
from gancomp.io import atomic_path
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.models.stock import stock_generator

Call = Callable[[], np.ndarray]


def _anywhere() -> str | None:
    return None


@dataclass(frozen=True)
class Peer:
    """A way to run a generator.

    Attributes:
        name: in tables.
        definition: exactly what is run, for the documentation.
        prepare: from a file that ``gancomp.load_generator`` reads and an image [N, C, H, W] (float32), a call that returns the
            output [N, C', H, W] as float32. May leave files beside the generator's for the next one to use.
        available: why this peer cannot run here, or None.
        measure: what its output is checked by (contest.py): ``stock`` PyTorch's error in float32; that of the engine's
            ``algorithm``; PyTorch's in ``bfloat16``, where the runtime decides and may take 16 bits; the ``psnr``.
    """

    name: str
    definition: str
    prepare: Callable[[Path, Tensor], Call]
    available: Callable[[], str | None] = _anywhere
    measure: Literal["stock", "algorithm", "bfloat16", "psnr"] = "stock"


def installed(*modules: str) -> Callable[[], str | None]:
    """The reason why a peer of these modules is not available: the first that is not installed."""

    def reason() -> str | None:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        return f"{missing[0]} is not installed (pip install 'gancomp[bench]')" if missing else None

    return reason


def _compiler() -> str | None:
    return None if shutil.which("g++") else "g++ is not installed"


def _engine(**options: Any) -> Callable[[Path, Tensor], Call]:
    def prepare(model: Path, image: Tensor) -> Call:
        engine, x = Engine(model, threads=torch.get_num_threads(), **options), image.numpy()
        return lambda: engine(x)

    return prepare


def _engine_takes(**options: Any) -> Callable[[], str | None]:
    """The engine's own answer to its options, for a network of a few channels."""

    def reason() -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tiny.safetensors")
            ResnetGenerator(ResnetConfig.uniform(4, 0)).save(path)
            try:
                Engine(path, **options)
            except (GancompError, TypeError) as error:
                return first_line(error)
        return None

    return reason


def _stock(model: Path) -> nn.Module:
    return stock_generator(load_generator(model).eval())


def _torch_call(module: Callable[[Tensor], Tensor], image: Tensor) -> Call:
    def call() -> np.ndarray:
        # Not inference_mode: freezing in torch.compile asks for no_grad.
        with torch.no_grad():
            return module(image).numpy()

    return call


def _eager(model: Path, image: Tensor) -> Call:
    return _torch_call(_stock(model), image)


def _channels_last(model: Path, image: Tensor) -> Call:
    module = _stock(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _torch_call(module, image.contiguous(memory_format=torch.channels_last))


def _compile(model: Path, image: Tensor) -> Call:
    return _torch_call(torch.compile(_stock(model)), image)


def _compile_max(model: Path, image: Tensor) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = True
    return _torch_call(torch.compile(_stock(model), mode="max-autotune"), image)


def onnx_file(model: Path, image: Tensor) -> Path:
    """The stock form exported at the image's fixed size, as the runtimes like it best; made once and kept beside ``model``."""
    path = model.with_suffix(f".{'x'.join(map(str, image.shape))}.onnx")
    if not path.exists():
        # It warns about packages that these networks do not need.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with atomic_path(path) as temporary:
            torch.onnx.export(
                _stock(model), (image,), str(temporary), dynamo=True, external_data=False, verbose=False,
                input_names=["x"], output_names=["y"],
            )  # fmt: skip
    return path


def _onnxruntime(model: Path, image: Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(onnx_file(model, image)), options, providers=["CPUExecutionProvider"])
    feed = {"x": image.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(properties: dict[str, Any]) -> Callable[[Path, Tensor], Call]:
    def prepare(model: Path, image: Tensor) -> Call:
        import openvino

        core = openvino.Core()
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(str(onnx_file(model, image)), "CPU", threads | properties).create_infer_request()
        feed = [image.numpy()]
        # A copy, as every other peer gives its caller an array of his own.
        return lambda: request.infer(feed)[0].copy()

    return prepare


_EXPORT = ("onnx", "onnxscript")

_LIST = (
    Peer(
        "engine",
        "`gancomp.Engine`, float32, the best instruction set of the processor",
        _engine(),
        _engine_takes(),
        "algorithm",
    ),
    Peer("engine-avx2", 'the same with `isa="avx2"`', _engine(isa="avx2"), _engine_takes(isa="avx2"), "algorithm"),
    Peer(
        "engine-int8",
        'the same with `precision="int8"`',
        _engine(precision="int8"),
        _engine_takes(precision="int8"),
        "psnr",
    ),
    Peer("eager", "stock `torch.nn` layers, ReLU not in place, under `torch.no_grad()`", _eager),
    Peer("channels_last", "as eager, weights and image in `torch.channels_last`", _channels_last),
    Peer("compile", "`torch.compile` of the stock layers, default mode", _compile, _compiler),
    Peer(
        "compile-max",
        '`torch.compile` of the stock layers, `mode="max-autotune"`, with `torch._inductor.config.freezing`',
        _compile_max,
        _compiler,
    ),
    Peer(
        "onnxruntime",
        "ONNX Runtime, CPU provider, `ORT_ENABLE_ALL`, on the file of `torch.onnx.export(dynamo=True)` at fixed size",
        _onnxruntime,
        installed("onnxruntime", *_EXPORT),
    ),
    Peer(
        "openvino-f32",
        "OpenVINO on the same ONNX file, `INFERENCE_PRECISION_HINT=f32`, latency hint",
        _openvino({"INFERENCE_PRECISION_HINT": "f32"}),
        installed("openvino", *_EXPORT),
    ),
    Peer(
        "openvino",
        "OpenVINO on the same ONNX file, its own choice of precision (bfloat16 where the processor has it), latency hint",
        _openvino({}),
        installed("openvino", *_EXPORT),
        "bfloat16",
    ),
)

PEERS = {peer.name: peer for peer in _LIST}
"""Every peer, by name."""
