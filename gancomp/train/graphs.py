"""Distillation of a supernet as one CUDA graph: captured once, replayed with another sub-network and another batch every step.

At batch 1 a step of about a thousand small kernels takes as long as it takes to launch them. A graph launches them all at once,
but its shapes are baked: therefore the student runs in tensors as wide as its largest sub-network (:mod:`gancomp.train.wide`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.data import Batch
from gancomp.errors import ConfigError
from gancomp.models import Generator
from gancomp.supernet import Supernet
from gancomp.train.distill import DistillStage
from gancomp.train.options import DistillOptions
from gancomp.train.wide import WideStudent, find_kernels, kernels_verdict, wide_verdict

WARM_UP = 3
"""Steps before the capture, in which libraries choose their kernels and allocate."""


class GraphedDistillStage(DistillStage):
    """A :class:`DistillStage` whose whole update (teacher, student, discriminator, optimizers) is one captured graph.

    The numbers are those of :class:`DistillStage` up to rounding. The first batch's size is that of all.

    Args:
        student: the supernet to train.
        teacher: frozen.
        options: as of the base class; see :func:`capture_verdict`.
        discriminator: the teacher's, inherited; a new one where None is given.
        name: the stage's name in logs.
        capture: False runs the same kernels without a graph, for a debugger.

    Raises:
        ConfigError: as of the base class, or the step cannot be captured.
    """

    def __init__(
        self,
        student: Supernet,
        teacher: Generator,
        options: DistillOptions,
        discriminator: nn.Module | None = None,
        name: str = "supernet",
        *,
        capture: bool = True,
    ) -> None:
        if capture and (reason := capture_verdict(student, options)) is not None:
            raise ConfigError(f"this training step cannot be captured: {reason}")
        super().__init__(student, teacher, options, discriminator, name)
        kernels = find_kernels(torch.empty(1, 3, 8, 8, device=self.device))
        layers = [pair.student for pair in self.layers]
        self._wide = WideStudent(student.generator, self.adaptors, len(self.configurations(0)), kernels, layers)
        self._capture, self._warm = capture, 0
        self._batch: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._losses: dict[str, Tensor] = {}
        self._rates: list[Tensor] = []

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As of the base class; the losses are overwritten by the next step."""
        configs = self.configurations(step)
        self._wide.set([self.student.network_config(config) for config in configs])
        self.student.set(configs[-1])
        self._load(batch)
        if not self._capture:
            losses = self.update(self._batch, configs)
        else:
            self._set_rates()
            losses = self._replay(configs)
        self.average.update(self.student)
        return losses

    def _load(self, batch: Batch) -> None:
        """Copy a batch to where the graph reads it."""
        if self._batch is None:
            self._batch = replace(batch, input=batch.input.clone(), target=batch.target.clone())
        if batch.input.shape != self._batch.input.shape:
            raise ConfigError(
                f"batch of shape {list(batch.input.shape)}: the captured step is for {list(self._batch.input.shape)}"
            )
        self._batch.input.copy_(batch.input)
        self._batch.target.copy_(batch.target)

    def _set_rates(self) -> None:
        """Hand the learning rates to the graph, which reads them from the device as it does the optimizers' step counts."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        if not self._rates:
            self._rates = [torch.zeros((), device=self.device) for _ in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(float(group["lr"]))
            group["lr"], group["capturable"] = rate, True

    def _replay(self, configs: Sequence[Any]) -> dict[str, Tensor]:
        if self._graph is not None:
            self._graph.replay()
            return self._losses
        if self._warm < WARM_UP:
            # Steps like all others, on a stream of their own, which a capture asks for.
            self._warm += 1
            side, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                losses = self.update(self._batch, configs)
            current.wait_stream(side)
            return losses
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = self.update(self._batch, configs)
        self._graph.replay()
        return self._losses

    def _study(self, x: Tensor, index: int, config: Any) -> tuple[Tensor, list[Tensor]]:
        return self._wide.forward(x, index)


def capture_verdict(student: Supernet, options: DistillOptions) -> str | None:
    """Why a supernet's training step cannot be captured with these options, or None.

    Raises:
        BackendError: the kernels are broken rather than missing: a slow run must not be the only sign of it.
    """
    device = options.torch_device()
    if device.type != "cuda":
        return f"the device is {device.type}"
    if options.amp == "fp16":
        return "amp 'fp16' decides its loss scale on the host, which a captured step cannot wait for"
    _, layers = options.layer_names()
    if other := [name for name in layers if name not in student.generator.feature_layers]:
        return f"student_layers names {', '.join(other)}, whose channels are not the residual stream's"
    return wide_verdict(student.generator) or kernels_verdict(torch.empty(1, 3, 8, 8, device=device))


def distill_stage(
    student: Supernet, teacher: Generator, options: DistillOptions, discriminator: nn.Module | None = None
) -> DistillStage:
    """A stage for a supernet: captured where that can be, else one that launches its kernels one by one."""
    kind = DistillStage if capture_verdict(student, options) is not None else GraphedDistillStage
    return kind(student, teacher, options, discriminator)
