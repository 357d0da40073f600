"""Operators, the compressed generator and the supernet's training step on a GPU, against what PyTorch offers.

Run: python -m benchmarks.gpu [--out FOLDER] [--seconds 240] (`make gpu-check` builds and tests first). Writes gpu.csv, gpu.md.

Nobody is timed whose results have not been checked against float64. Contenders take turns in an order drawn anew every round; a
turn is several calls between two events on the device, so that what the host does is part of the time where the device waits
for it. Who cannot run is listed with the reason.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_cases import GpuCase, op_cases
from benchmarks.gpu_contest import Call, Contest, captured
from benchmarks.gpu_step import step_contests
from benchmarks.schema import Conditions, conditions, write_rows
from gancomp.errors import GancompError
from gancomp.io import write_text
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.models.stock import stock_generator
from gancomp.testing import tolerance

NET = "16_16_32_16_32_32_16_16"
"""The compressed CycleGAN generator of GAN Compression."""

_SLACK = 2  # PyTorch's algorithms differ from GPU to GPU; what must show is a wrong kernel


# --- operators --------------------------------------------------------------------------------------------------------


def op_contests(device: torch.device, cases: list[GpuCase]) -> Iterator[Contest]:
    """Every operator, forward and with its backward pass, in float32 (TF32 where PyTorch takes it) and bfloat16."""
    for case in cases:
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                yield op_contest(case, device, dtype, backward)


def op_contest(case: GpuCase, device: torch.device, dtype: torch.dtype, backward: bool) -> Contest:
    """One operator in one dtype; gancomp's results are checked before it takes part."""
    tensors = [tensor.to(device, dtype) for tensor in case.tensors()]
    exact = [tensor.double() for tensor in tensors]
    grad = torch.randn(case.stock(*exact).shape, device=device).to(dtype)
    truth = results(case.stock, exact, grad.double(), backward)
    measure = torch.float16 if dtype == torch.float32 else dtype  # TF32 has float16's digits
    rough = results(case.stock, [tensor.to(measure) for tensor in tensors], grad.to(measure), backward)

    def contender(function: Callable[..., Tensor]) -> Call:
        for index, (got, stock, true) in enumerate(zip(results(function, tensors, grad, backward), rough, truth, strict=True)):
            error, allowed = float((got.double() - true).abs().max()), _SLACK * tolerance(stock, true)
            if not error <= allowed:
                raise AssertionError(f"{case.op}: result {index} is off by {error:.3g}, allowed {allowed:.3g}")
        return lambda: results(function, tensors, grad, backward)

    mode, name = "forward+backward" if backward else "forward", str(dtype).removeprefix("torch.")
    contest = Contest(case.op, mode, case.x, f"{case.options} {name}")
    contest.add("gancomp-cuda", lambda: contender(case.gancomp("cuda")))
    contest.add("gancomp-cuda-graph", lambda: captured(contender(case.gancomp("cuda"))))
    contest.add("gancomp-triton", lambda: contender(case.gancomp("triton")))
    contest.add("gancomp-triton-graph", lambda: captured(contender(case.gancomp("triton"))))
    contest.add("eager", lambda: contender(case.stock))
    contest.add("eager-graph", lambda: captured(contender(case.stock)))
    return contest


def results(function: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor, backward: bool) -> list[Tensor]:
    """The output, and the gradients of all tensors where they are asked for."""
    if not backward:
        with torch.no_grad():
            return [function(*tensors)]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


# --- the compressed generator ----------------------------------------------------------------------------------------


def net_contests(device: torch.device, side: int, batches: tuple[int, ...]) -> Iterator[Contest]:
    """Inference of the compressed CycleGAN generator."""
    torch.manual_seed(0)
    net = ResnetGenerator(ResnetConfig.parse(NET)).eval().to(device)
    for batch in batches:
        x = torch.rand(batch, 3, side, side, device=device) * 2 - 1
        for dtype in (torch.float32, torch.bfloat16):
            yield net_contest(net, x, dtype, batch == batches[0])


def net_contest(net: ResnetGenerator, x: Tensor, dtype: torch.dtype, all_modes: bool) -> Contest:
    """A generator in one dtype; every contender's image is checked. ``all_modes``: with the compilers that take minutes."""
    stock = stock_generator(net)
    with torch.no_grad():
        truth = copy.deepcopy(stock).double()(x.double())
        rough = copy.deepcopy(stock).to(torch.bfloat16)(x.to(torch.bfloat16)).double()
    allowed = _SLACK * float((rough - truth).abs().max())

    def contender(network: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Call:
        network, image = copy.deepcopy(network).to(dtype), x.to(dtype=dtype, memory_format=layout)
        if layout == torch.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        @torch.no_grad()
        def call() -> Tensor:
            return network(image)

        error = float((call().double() - truth).abs().max())
        if not error <= allowed:
            raise AssertionError(f"the image is off by {error:.3g}, allowed {allowed:.3g}")
        return call

    def compiled(**options: Any) -> Call:
        torch.compiler.reset()
        return contender(Compiled(stock, **options))

    name = str(dtype).removeprefix("torch.")
    contest = Contest("compressed generator", "inference", "x".join(map(str, x.shape)), f"{NET} {name}")
    contest.add("gancomp", lambda: contender(net))
    contest.add("gancomp-graph", lambda: captured(contender(net)))
    contest.add("eager", lambda: contender(stock))
    contest.add("eager-graph", lambda: captured(contender(stock)))
    contest.add("channels_last", lambda: contender(stock, torch.channels_last))
    contest.add("channels_last-graph", lambda: captured(contender(stock, torch.channels_last)))
    contest.add("compile", compiled)
    if all_modes:
        contest.add("compile-max-autotune", lambda: compiled(mode="max-autotune"))
        contest.add("compile-dynamic", lambda: compiled(dynamic=True))
    return contest


class Compiled(nn.Module):
    """A network behind ``torch.compile``, which is made when it is first called: a copy does not share it."""

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network, self.options = network, options
        self._call: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Run the compiled network."""
        if self._call is None:
            self._call = torch.compile(self.network, **self.options)
        return self._call(x).clone()  # what a graph inside returns is overwritten by its next run


# --- the report -------------------------------------------------------------------------------------------------------


def summary(contests: list[Contest], where: Conditions) -> str:
    """A Markdown page: a table line per contender, and who could not run."""
    lines = ["# GPU measurements", "", f"{where.device}; {where.versions}; commit {where.commit}; {where.time}", ""]
    lines += ["| what | size | contender | ms | gancomp's best is |", "|---|---|---|---|---|"]
    for contest in contests:
        middles = {name: median(values) for name, values in contest.times.items()}
        ours = min((ms for name, ms in middles.items() if name.startswith("gancomp")), default=None)
        for name, ms in sorted(middles.items(), key=lambda item: item[1]):
            ratio = "" if ours is None or name.startswith("gancomp") else f"{ms / ours:.2f}x faster"
            lines.append(f"| {contest.kernel} {contest.mode} {contest.config} | {contest.x} | {name} | {ms:.4f} | {ratio} |")
    missing = [(c, name, reason) for c in contests for name, reason in c.missing.items()]
    if missing:
        lines += ["", "Not timed:", ""]
        lines += [f"- {c.kernel} {c.mode} {c.config} {c.x}: {name}: {reason}" for c, name, reason in missing]
    return "\n".join(lines) + "\n"


def device_conditions() -> Conditions:
    """Where and when this is measured: the GPU instead of the processor."""
    where = conditions(torch.get_num_threads())
    if not torch.cuda.is_available():
        return where
    name = torch.cuda.get_device_name()
    return replace(where, device=name, versions=f"{where.versions} cuda={torch.version.cuda}")


def main() -> None:
    """Measure what fits into the time, print the summary, write both files; fails where one of gancomp's kernels did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=240.0, help="about how long all of it may take")
    parser.add_argument("--side", type=int, default=256, help="of the images")
    parser.add_argument("--parts", default="net,step,ops", help="what is measured, in this order")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began, rng, done, where = time.perf_counter(), random.Random(0), [], device_conditions()

    parts: dict[str, Callable[[], Iterator[Contest]]] = {
        "net": lambda: net_contests(device, arguments.side, (1, 16)),
        "step": lambda: step_contests(device, arguments.side, (1, 4)),
        "ops": lambda: op_contests(device, op_cases(arguments.side)),
    }
    skipped = []
    for part in arguments.parts.split(","):
        for contest in parts[part]():
            left = arguments.seconds - (time.perf_counter() - began)
            if left < 0:
                skipped.append(part)
                break
            contest.run(min(2.0, left / 20), rng)
            done.append(contest)
            for name, values in contest.times.items():
                print(
                    f"{contest.kernel} {contest.mode} {contest.x} {contest.config} {name}: {median(values):.4f} ms", flush=True
                )
            for name, reason in contest.missing.items():
                print(f"{contest.kernel} {contest.mode} {contest.x} {contest.config} {name}: {reason}", flush=True)
    text = summary(done, where)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_rows(arguments.out / "gpu.csv", [row for contest in done for row in contest.rows(where)])
    write_text(arguments.out / "gpu.md", text)
    print(text)
    if skipped:
        print(f"no time was left for all of: {', '.join(skipped)}")
    wrong = [
        f"{c.kernel} {name}: {why}"
        for c in done
        for name, why in c.missing.items()
        if "is off by" in why and name[:7] == "gancomp"
    ]
    if wrong:
        raise SystemExit("wrong results:\n" + "\n".join(wrong))


if __name__ == "__main__":
    try:
        main()
    except GancompError as error:
        raise SystemExit(str(error)) from None
