"""Where generators run whose images are scored or whose time is taken: on a CPU in the engine, elsewhere in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from gancomp.engine import MAX_THREADS, Engine
from gancomp.errors import BackendError, CheckpointError, ConfigError, NotFiniteError
from gancomp.metrics.latency import engine_call, generator_call
from gancomp.models import Generator
from gancomp.models.base import check_choice
from gancomp.models.channels import format_config
from gancomp.ops.backend import requested
from gancomp.supernet import Supernet

Images = Callable[[Tensor], Tensor]
"""Maps images [N, C, H, W] in [-1, 1], of any size, to images."""

Wanted = Literal["auto", "engine", "torch"]


def engine_on(generator: Generator, *, threads: int, precision: str = "f32") -> Engine:
    """An engine of a generator that may have no file of its own.

    Raises:
        GancompError: the engine does not run it.
    """
    return Engine(generator.to_bytes(), threads=threads, precision=precision)


@dataclass(frozen=True)
class Runner:
    """Runs generators of one architecture on one device, all in the same way: their times and scores can be compared.

    Attributes:
        device: of the images and, in PyTorch, of the weights.
        isa: the engine's instruction set; empty: generators run in PyTorch.
        reason: why they do.
    """

    device: torch.device
    isa: str = ""
    reason: str = ""

    @classmethod
    def choose(cls, generator: Generator, device: torch.device | str = "cpu", wanted: Wanted = "auto") -> Self:
        """The runner of generators like ``generator``.

        Args:
            generator: is tried in the engine.
            device: of the images.
            wanted: ``engine``, ``torch``, or ``auto``: the engine where it runs the generator. ``GANCOMP_BACKEND`` names
                PyTorch's operators, so with it ``auto`` is ``torch``.

        Raises:
            ConfigError: unknown choice, or the engine was asked for and does not run the generator on this device.
        """
        device = torch.device(device)
        check_choice("evaluate", "runner", wanted, ("auto", "engine", "torch"))
        if wanted == "torch":
            return cls(device, reason="asked for")
        if wanted == "auto" and (named := requested("auto")) != "auto":
            return cls(device, reason=f"GANCOMP_BACKEND={named}")
        try:
            if device.type != "cpu":
                raise BackendError(f"the engine does not run on {device.type}")
            return cls(device, isa=engine_on(generator, threads=1).isa)
        except (BackendError, CheckpointError) as error:
            if wanted == "engine":
                raise ConfigError(f"evaluate: runner='engine': {error}") from None
            return cls(device, reason=str(error))

    @property
    def threads(self) -> int:
        """Threads that generators run with from now on: PyTorch's number."""
        return min(torch.get_num_threads(), MAX_THREADS)

    def facts(self) -> dict[str, Any]:
        """What a measured time depends on beside the generator and the machine."""
        if self.isa:
            return {"runner": "engine", "isa": self.isa, "threads": self.threads, "precision": "f32"}
        return {"runner": "torch", "device": self.device.type, "threads": torch.get_num_threads(), "reason": self.reason}

    def images(self, generator: Generator) -> Images:
        """``generator``, ready to run; in PyTorch it is moved to the device, into evaluation mode."""
        if self.isa:
            return engine_on(generator, threads=self.threads)
        return generator.to(self.device).eval().translate

    def candidate(self, supernet: Supernet, config: Sequence[int]) -> Images:
        """A sub-network, ready to run until the next one is asked for; in PyTorch it is the supernet's active one.

        Raises:
            NotFiniteError: its weights are not all finite, which the engine does not take.
        """
        if not self.isa:
            supernet.to(self.device).eval().set(config)
            return supernet.generator.translate
        try:
            return Engine(supernet.extract_bytes(config), threads=self.threads)
        except CheckpointError:
            weights = supernet.generator.slices(supernet.network_config(config)).values()
            if all(bool(tensor.isfinite().all()) for tensor in weights):
                raise
            raise NotFiniteError(f"the weights of {format_config(config)}: contain values that are not finite") from None

    def timed(self, generator: Generator, shape: tuple[int, int, int, int]) -> Callable[[], object]:
        """A call of ``generator`` on one fixed random input [N, C, H, W], finished when it returns."""
        if self.isa:
            return engine_call(engine_on(generator, threads=self.threads), shape)
        return generator_call(generator, shape, self.device)
