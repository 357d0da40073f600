"""The supernet's training step on a GPU: sampled sub-networks, teacher, discriminator and optimizers included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from benchmarks.gpu_contest import Contest, captured
from benchmarks.stock_supernet import make_stock
from gancomp.data import Batch
from gancomp.models import ResnetConfig, ResnetGenerator
from gancomp.supernet import SearchSpace, Supernet
from gancomp.train import DistillOptions, DistillStage
from gancomp.train.graphs import WARM_UP, GraphedDistillStage

SPACE = "channels-48"
_LOSSES = 0.05  # relative difference of the first step's losses: all start from equal weights


def make_stage(
    kind: type[DistillStage], batch: int, amp: Literal["off", "bf16"], device: torch.device, stock: bool
) -> DistillStage:
    """A stage like all others of its size: equal weights, sub-networks and losses."""
    torch.manual_seed(0)
    supernet, teacher = Supernet(SearchSpace.parse(SPACE)), ResnetGenerator(ResnetConfig.uniform(64, separable=True))
    options = DistillOptions(batch_size=batch, amp=amp, device=str(device))
    if stock:
        make_stock(supernet)
        make_stock(teacher)
    stage = kind(supernet, teacher, options)
    if stock:
        make_stock(stage.adaptors)
        if stage.adversary is not None:
            make_stock(stage.adversary.network)
    return stage


def make_batch(batch: int, side: int, device: torch.device) -> Batch:
    """Random images; the values do not change the time."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, batch, 3, side, side, generator=generator).to(device) * 2 - 1
    return Batch(images[0], images[1], tuple(map(str, range(batch))))


class Step:
    """A step of a stage, to be called again and again; the first one is made here, and its losses are compared."""

    def __init__(self, stage: DistillStage, batch: Batch, expected: dict[str, float] | None) -> None:
        self.stage, self._batch, self._count = stage, batch, itertools.count(1)
        losses = {name: float(value) for name, value in stage.step(batch, 0).items()}
        for name, value in losses.items():
            wanted = value if expected is None else expected.setdefault(name, value)
            if not abs(value - wanted) <= _LOSSES * (abs(wanted) + 0.1):
                raise AssertionError(f"loss {name} is off by {abs(value - wanted):.3g} from {wanted:.3g}")

    def __call__(self) -> object:
        """One more step."""
        return self.stage.step(self._batch, next(self._count))


class Provider:
    """Makes the contenders of one contest: steps of equal networks on one batch."""

    def __init__(self, size: int, side: int, amp: Literal["off", "bf16"], device: torch.device) -> None:
        self._size, self._amp, self._device = size, amp, device
        self._batch, self._expected = make_batch(size, side, device), dict[str, float]()

    def stage(self, kind: type[DistillStage] = DistillStage, stock: bool = True) -> DistillStage:
        """A stage of its own."""
        return make_stage(kind, self._size, self._amp, self._device, stock)

    def varying(self, stage: DistillStage) -> Step:
        """Steps that draw a sub-network each, the first the same for all."""
        return Step(stage, self._batch, self._expected)

    def static(self, change: Callable[[DistillStage], None] = lambda stage: None) -> Step:
        """Steps of the largest sub-network in stock PyTorch."""
        stage, largest = self.stage(), SearchSpace.parse(SPACE).largest
        stage.configurations = lambda step: [largest]  # type: ignore[method-assign]
        change(stage)
        return Step(stage, self._batch, None)

    def graphed(self) -> Step:
        """gancomp's captured step, warmed up."""
        step = self.varying(self.stage(GraphedDistillStage, stock=False))
        for _ in range(WARM_UP):
            step()
        return step


def _compile(**options: Any) -> Callable[[DistillStage], None]:
    def change(stage: DistillStage) -> None:
        torch.compiler.reset()
        generator: Any = stage.student.generator
        generator.forward_features = torch.compile(generator.forward_features, **options)

    return change


def _channels_last(stage: DistillStage) -> None:
    networks = [stage.student, stage.teacher, stage.adaptors]
    for network in networks if stage.adversary is None else [*networks, stage.adversary.network]:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _capturable(stage: DistillStage) -> None:
    for optimizer in stage.optimizers.values():
        for group in optimizer.param_groups:
            group["capturable"], group["lr"] = True, torch.tensor(float(group["lr"]), device=stage.device)


def step_contests(device: torch.device, side: int, batches: tuple[int, ...]) -> Iterator[Contest]:
    """Steps that draw another sub-network each time; and, where shapes are baked, of the largest one alone (``static``)."""
    for size in batches:
        for amp in ("off", "bf16") if device.type == "cuda" else ("off",):
            contest = Contest("supernet step", "training", f"{size}x3x{side}x{side}", f"{SPACE} amp {amp}")
            add_contenders(contest, Provider(size, side, amp, device), size == batches[0])
            yield contest


def add_contenders(contest: Contest, of: Provider, all_modes: bool) -> None:
    """Everybody; with ``all_modes`` also the compilers that take minutes."""

    def dynamic() -> Step:
        stage = of.stage()
        _compile(dynamic=True)(stage)
        return of.varying(stage)

    contest.add("eager", lambda: of.varying(of.stage()))
    contest.add("gancomp", lambda: of.varying(of.stage(stock=False)))
    contest.add("gancomp-graph", of.graphed)
    contest.add("eager-graph static", lambda: captured(of.static(_capturable)))
    contest.add("channels_last static", lambda: of.static(_channels_last))
    if all_modes:
        contest.add("compile static", lambda: of.static(_compile()))
        contest.add("compile-max-autotune static", lambda: of.static(_compile(mode="max-autotune-no-cudagraphs")))
        contest.add("compile-dynamic", dynamic)
