"""Ways to run a generator on the CPU, each a call that gives the images as float32, and what their output may be off by."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError, RunError, first_line
from gancomp.metrics.image import psnr
from gancomp.metrics.latency import random_images
from gancomp.models import Generator, SpadeGenerator
from gancomp.models.stock import stock_generator
from gancomp.nn import one_hot_labels
from gancomp.testing import tolerance, with_padding_apart, with_winograd

Call = Callable[[], Tensor]

LOWEST_PSNR = 30.0
"""What the images of a lower precision must reach, in dB against those of float32."""

# ONNX Runtime sums less carefully than PyTorch; what has to show is another network or another precision.
_SLACK_OF_OTHERS = 4


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use ``count`` threads inside this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def eager_form(generator: Generator) -> nn.Module:
    """The generator in stock PyTorch layers; itself, where its architecture has no fused ones."""
    try:
        return stock_generator(generator)
    except ConfigError:
        return generator


def example_image(generator: Generator, shape: tuple[int, int, int, int]) -> Tensor:
    """One fixed random input that every contender takes: an image, or the one-hot image of a label map."""
    if isinstance(generator, SpadeGenerator):
        return one_hot_labels(generator.example(shape), generator.config.label_nc)
    return random_images(shape)


def eager_call(module: nn.Module, x: Tensor) -> Call:
    """``module`` on the images ``x`` [N, C, H, W], in eager PyTorch."""

    def call() -> Tensor:
        with torch.inference_mode():
            return module(x)

    return call


def onnxruntime_reason() -> str | None:
    """Why ONNX Runtime cannot run a generator here, or None."""
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None


def onnxruntime_call(module: nn.Module, x: Tensor, threads: int) -> Call:
    """``module`` on ``x`` in ONNX Runtime, exported at this fixed size, with all of its optimisations.

    Raises:
        RunError: it cannot be exported or run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            path = str(Path(folder, "generator.onnx"))
            # It warns of its own future, and about packages that these networks do not need.
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                module, (x,), path, dynamo=True, external_data=False, verbose=False, input_names=["x"], output_names=["y"]
            )
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The exporter and the runtime have exceptions of their own without a common base.
        raise RunError(f"ONNX Runtime: {first_line(error)}") from None
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


@dataclass(frozen=True)
class Verdict:
    """How far an output is off, in numbers for a table, and why that is too far, or None."""

    found: str
    reason: str | None


class Truth:
    """What every output is checked against: float64, and PyTorch's own error in float32 as the measure.

    Args:
        eager: the generator in stock layers, in evaluation mode.
        x: one image [1, C, H, W].
    """

    @torch.inference_mode()
    def __init__(self, eager: nn.Module, x: Tensor) -> None:
        self.float32 = eager(x)
        self.exact = copy.deepcopy(eager).double()(x.double())
        algorithm = with_winograd(with_padding_apart(copy.deepcopy(eager)))(x)
        self._allowed = {
            "engine": max(tolerance(self.float32, self.exact), tolerance(algorithm, self.exact)),
            "others": _SLACK_OF_OTHERS * tolerance(self.float32, self.exact),
        }

    def check(self, y: Tensor, contender: str, *, lower_precision: bool = False) -> Verdict:
        """Judge the output of a batch that is the one image, over and over.

        Args:
            y: [N, C', H, W].
            contender: its name; the engine's error has to be within the tolerance of its algorithm (gancomp/testing.py).
            lower_precision: the images are to look the same, no more.
        """
        if y.dtype != torch.float32 or y.shape[1:] != self.exact.shape[1:] or not y.isfinite().all():
            return Verdict("", f"its output is {y.dtype} {list(y.shape)}, or has values that are not finite")
        if lower_precision:
            quality = min(100.0, float(psnr(y, self.float32.expand_as(y)).min()))
            found = f"{quality:.1f} dB of the float32 image"
            return Verdict(found, None if quality >= LOWEST_PSNR else f"its images have {found}, {LOWEST_PSNR:g} dB are needed")
        error = float((y.double() - self.exact).abs().max())
        allowed = self._allowed["engine" if contender.startswith("engine") else "others"]
        found = f"off by {error:.1e}, allowed {allowed:.1e}"
        return Verdict(found, None if error <= allowed else f"its output is {found}")
