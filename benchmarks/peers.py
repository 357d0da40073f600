"""What a generator is compared with: the ways in which a user would otherwise run it on a processor.

A peer prepares a generator for one input and gives back a call that runs it. Everybody starts from the same stock PyTorch form
of the generator and uses the number of threads that PyTorch is set to; each should have a process of its own (contest.py),
since thread pools disturb each other and settings are global.
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
from torch import Tensor

from gancomp.models import Generator
from gancomp.models.stock import stock_generator

Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A way to run a generator.

    Attributes:
        name: in tables.
        definition: exactly what is run, for the documentation.
        prepare: from a generator and an image [N, C, H, W] (float32), a call that returns the output [N, C', H, W] as float32.
        needs: modules and programs (a name ending in ``()``) without which it cannot run.
        precision: of its arithmetic: ``f32``, or ``own`` where the runtime decides and may take 16 bits.
    """

    name: str
    definition: str
    prepare: Callable[[Generator, Tensor], Call]
    needs: tuple[str, ...] = ()
    precision: Literal["f32", "own"] = "f32"

    def available(self) -> str | None:
        """Why this peer cannot run here, or None."""
        for need in self.needs:
            if need.endswith("()"):
                if shutil.which(need.removesuffix("()")) is None:
                    return f"{need.removesuffix('()')} is not installed"
            elif importlib.util.find_spec(need) is None:
                return f"{need} is not installed (pip install 'gancomp[bench]')"
        return None


def _torch_call(module: Callable[[Tensor], Tensor], image: Tensor) -> Call:
    def call() -> np.ndarray:
        # Not inference_mode: freezing in torch.compile asks for no_grad.
        with torch.no_grad():
            return module(image).numpy()

    return call


def _eager(generator: Generator, image: Tensor) -> Call:
    return _torch_call(stock_generator(generator), image)


def _channels_last(generator: Generator, image: Tensor) -> Call:
    module = stock_generator(generator).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _torch_call(module, image.contiguous(memory_format=torch.channels_last))


def _compile(generator: Generator, image: Tensor) -> Call:
    return _torch_call(torch.compile(stock_generator(generator)), image)


def _compile_max(generator: Generator, image: Tensor) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = True
    return _torch_call(torch.compile(stock_generator(generator), mode="max-autotune"), image)


def _onnx(generator: Generator, image: Tensor, path: Path) -> None:
    """Export the stock form at the image's fixed size, as the runtimes like it best."""
    # It warns about packages that these networks do not need.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    module = stock_generator(generator)
    torch.onnx.export(module, (image,), str(path), dynamo=True, verbose=False, input_names=["x"], output_names=["y"])


def _onnxruntime(generator: Generator, image: Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generator.onnx")
        _onnx(generator, image, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"x": image.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(properties: dict[str, Any]) -> Callable[[Generator, Tensor], Call]:
    def prepare(generator: Generator, image: Tensor) -> Call:
        import openvino

        core = openvino.Core()
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "generator.onnx")
            _onnx(generator, image, path)
            request = core.compile_model(str(path), "CPU", threads | properties).create_infer_request()
        feed = [image.numpy()]
        # A copy, as every other peer gives its caller an array of his own.
        return lambda: request.infer(feed)[0].copy()

    return prepare


_EXPORT = ("onnx", "onnxscript")

PEERS = {
    peer.name: peer
    for peer in (
        Peer("eager", "stock torch.nn layers, ReLU not in place, torch.no_grad()", _eager),
        Peer("channels_last", "as eager, weights and image in torch.channels_last", _channels_last),
        Peer("compile", "torch.compile(stock layers), default mode", _compile, ("g++()",)),
        Peer(
            "compile-max",
            "torch.compile(stock layers, mode='max-autotune') with torch._inductor.config.freezing",
            _compile_max,
            ("g++()",),
        ),
        Peer(
            "onnxruntime",
            "ONNX Runtime, CPU provider, all graph optimisations, on the file of torch.onnx.export(dynamo=True) at fixed size",
            _onnxruntime,
            ("onnxruntime", *_EXPORT),
        ),
        Peer(
            "openvino-f32",
            "OpenVINO on the same ONNX file, INFERENCE_PRECISION_HINT=f32, latency hint",
            _openvino({"INFERENCE_PRECISION_HINT": "f32"}),
            ("openvino", *_EXPORT),
        ),
        Peer(
            "openvino",
            "OpenVINO on the same ONNX file, its own choice of precision (bfloat16 where the processor has it), latency hint",
            _openvino({}),
            ("openvino", *_EXPORT),
            precision="own",
        ),
    )
}
"""Every peer, by name."""
