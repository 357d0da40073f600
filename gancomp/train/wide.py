"""Sub-networks of a supernet in tensors as wide as the largest one, by channel counts in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.errors import BackendError, ConfigError
from gancomp.models import Generator, ResnetConfig, ResnetGenerator
from gancomp.models.resnet import ResnetBlock
from gancomp.nn import InstanceNormAct, SlicedConv2d, SlicedConvTranspose2d
from gancomp.ops import backend

_MODES = ("zeros", "reflect", "replicate")


@dataclass(frozen=True)
class Kernels:
    """The differentiable functions of one backend that take channel counts from device memory as their last argument."""

    name: str
    norm: Any
    conv: Any
    transpose: Any
    block: Any


def kernels_verdict(x: Tensor) -> str | None:
    """Why no backend has kernels for images like ``x`` that read channel counts from device memory, or None.

    Raises:
        BackendError: one is broken, rather than unfit.
    """
    reasons = _reasons(x)
    if None in reasons.values():
        return None
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "GANCOMP_BACKEND names another backend"


def find_kernels(x: Tensor) -> Kernels:
    """The kernels for images like ``x``: CUDA's, or Triton's where the build has none.

    Raises:
        BackendError: there are none.
    """
    name = next((name for name, reason in _reasons(x).items() if reason is None), None)
    if name == "cuda":
        from gancomp.ops import cuda

        norm, conv, transpose = cuda.InstanceNormActCuda, cuda.SlicedConv2dCuda, cuda.SlicedConvTranspose2dCuda
        return Kernels("cuda", norm, conv, transpose, cuda.SeparableResblockCuda)
    if name == "triton":
        from gancomp.kernels.instance_norm_act import InstanceNormActTriton
        from gancomp.kernels.separable_resblock import SeparableResblockTriton
        from gancomp.kernels.sliced_conv import SlicedConv2dTriton, SlicedConvTranspose2dTriton

        return Kernels(
            "triton", InstanceNormActTriton, SlicedConv2dTriton, SlicedConvTranspose2dTriton, SeparableResblockTriton
        )
    raise BackendError(f"no kernels that read channel counts from device memory ({kernels_verdict(x)})")


def _reasons(x: Tensor) -> dict[str, str | None]:
    """By backend, up to the first that can: why it cannot."""
    wanted, reasons = backend.requested("auto"), {}
    for name, verdict in (("cuda", backend.cuda_verdict), ("triton", backend.triton_verdict)):
        if wanted in ("auto", name):
            reasons[name] = verdict(x=x)
            if isinstance(reasons[name], backend.Fault):
                raise BackendError(f"{reasons[name]}; GANCOMP_BACKEND=reference runs without it")
            if reasons[name] is None:
                break
    return reasons


def wide_verdict(generator: Generator) -> str | None:
    """Why a generator's sub-networks cannot run in tensors of one size, or None."""
    if not isinstance(generator, ResnetGenerator):
        return f"arch={generator.arch!r}: channel counts in device memory are for ResNet generators"
    config = generator.config
    if config.separable and config.norm == "instance" and config.padding == "reflect":
        return None
    return (
        f"separable={config.separable}, norm={config.norm!r}, padding={config.padding!r}: channel counts in device memory "
        "are for separable blocks with norm 'instance' and padding 'reflect'"
    )


class WideStudent:
    """Runs sub-networks of a generator, and the adaptors of its features, without a size that depends on which it is.

    Every image has as many channels as the largest sub-network; those beyond the active ones hold nothing and are never read.
    The counts lie in one small tensor on the device, so that a captured graph serves all sub-networks.

    Args:
        generator: separable, with InstanceNorm and reflection; holds the full weights.
        adaptors: 1x1 convolutions of its features, or none.
        networks: how many sub-networks run in a step.
        kernels: what runs.
        layers: where the adaptors' features are taken, among ``generator.feature_layers``.

    Raises:
        ConfigError: another kind of generator.
    """

    def __init__(
        self,
        generator: ResnetGenerator,
        adaptors: nn.ModuleList,
        networks: int,
        kernels: Kernels,
        layers: Sequence[str],
    ) -> None:
        if (reason := wide_verdict(generator)) is not None:
            raise ConfigError(f"supernet: {reason}")
        self.generator, self.adaptors, self.kernels = generator, adaptors, kernels
        self._positions = [int(name.split(".")[1]) for name in layers]
        # [networks, layer, (output, input)]; of a residual block (stream, hidden)
        shape = networks, len(self._pairs(generator.config)), 2
        self._widths = torch.zeros(shape, dtype=torch.int32, device=generator.model[1].weight.device)

    def _pairs(self, config: ResnetConfig) -> list[tuple[int, int]]:
        """The channel counts of every layer that has some, in the order in which the layers run."""
        blocks = [(config.stream, hidden) for hidden in config.hidden]
        return [
            (config.stem, config.in_channels),
            (config.down, config.stem),
            (config.stream, config.down),
            *blocks,
            (config.up, config.stream),
            (config.last, config.up),
            (config.out_channels, config.last),
            *[(int(adaptor.weight.shape[0]), config.stream) for adaptor in self.adaptors],
        ]

    def set(self, configs: Sequence[ResnetConfig]) -> None:
        """Choose the sub-networks of the next step: a copy of a few hundred bytes to the device."""
        counts = torch.tensor([self._pairs(config) for config in configs], dtype=torch.int32)
        # From memory that is not pinned CUDA takes a copy before it returns: nothing has to be waited for.
        self._widths.copy_(counts, non_blocking=True)

    def forward(self, x: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
        """The image of the index-th sub-network for ``x`` [N, in_channels, H, W], and its features through the adaptors."""
        generator = self.generator
        generator.check_input(x)
        (x,) = backend.unify_under_autocast(x, convolution=True)
        pairs = iter(self._widths[index])
        features: dict[int, Tensor] = {}
        pair = None
        for position, layer in enumerate(generator.model):
            if isinstance(layer, InstanceNormAct):
                x = self.kernels.norm.apply(x, None, None, None, layer.relu, layer.eps, pair[:1])
            elif isinstance(layer, nn.Tanh):
                x = torch.tanh(x)
            elif not isinstance(layer, nn.Identity):
                pair = next(pairs)
                x = self._block(layer, x, pair) if isinstance(layer, ResnetBlock) else self._convolve(layer, x, pair)
            if position in self._positions:
                features[position] = x
        taken = [features[position] for position in self._positions]
        adapted = [
            self._convolve(adaptor, feature, pair) for adaptor, feature, pair in zip(self.adaptors, taken, pairs, strict=True)
        ]
        return x, adapted

    def _convolve(self, layer: SlicedConv2d | SlicedConvTranspose2d, x: Tensor, pair: Tensor) -> Tensor:
        bias = None if layer.before_norm else layer.bias
        stride, padding = layer.geometry
        if isinstance(layer, SlicedConvTranspose2d):
            last = layer.output_padding[0]
            return self.kernels.transpose.apply(x, layer.weight, bias, layer.out_channels, stride, padding, last, pair)
        mode = _MODES.index(layer.padding_mode)
        return self.kernels.conv.apply(x, layer.weight, bias, layer.out_channels, stride, padding, mode, pair)

    def _block(self, block: ResnetBlock, x: Tensor, pair: Tensor) -> Tensor:
        _, conv1, norm, _, dropout, _, conv2, _ = block.conv_block
        hidden = conv1.conv[2].out_channels
        mask, scale = None, 1.0
        if dropout.p > 0 and block.training:
            mask = torch.empty((x.shape[0], hidden, *x.shape[2:]), dtype=torch.uint8, device=x.device)
            mask.bernoulli_(1 - dropout.p)
            scale = 1 / (1 - dropout.p)
        weights = conv1.conv[0].weight, conv1.conv[2].weight, conv2.conv[0].weight, conv2.conv[2].weight
        return self.kernels.block.apply(x, *weights, mask, scale, hidden, norm.eps, pair)
