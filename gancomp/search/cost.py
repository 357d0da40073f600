"""What a generator costs: parameters, multiply-accumulates under both conventions, measured latency."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gancomp.metrics.latency import generator_call, measure_latency
from gancomp.models import ResnetConfig
from gancomp.models.channels import Config
from gancomp.nn import InstanceNormAct
from gancomp.supernet import Supernet

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its parameters, true MACs, and MACs as the papers' tables count them."""

    name: str
    kind: str
    out_shape: tuple[int, ...]
    params: int
    macs: int
    macs_published: int


@dataclass(frozen=True)
class Profile:
    """A generator's cost for one input shape.

    ``macs`` counts the products that are needed. ``macs_published`` follows the tables of the GAN compression literature,
    which count a transposed convolution as if every output pixel took every kernel tap (four times too many at stride 2).
    """

    params: int
    macs: int
    macs_published: int
    layers: tuple[LayerCost, ...]


def profile_module(module: nn.Module, input_shape: Shape, *, count_norm: bool = False) -> Profile:
    """Count parameters and multiply-accumulates of the convolutions and linear layers of ``module``.

    The module is copied to the meta device, so nothing is computed and nothing of the caller's changes. Channel counts are
    those of the tensors that flow, so a module that uses part of its weights is counted for that part.

    Args:
        module: any network of ``nn.Conv2d``, ``nn.ConvTranspose2d`` and ``nn.Linear`` layers (and subclasses).
        input_shape: [N, C, H, W].
        count_norm: add one per output element of every InstanceNorm to ``macs_published``, as the first tables did.
    """
    network = copy.deepcopy(module).to("meta").eval()
    layers: list[LayerCost] = []
    handles = []
    for name, layer in network.named_modules():
        norm = count_norm and isinstance(layer, InstanceNormAct | nn.InstanceNorm2d)
        if norm or isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            handles.append(layer.register_forward_hook(_counter(name, layers)))
    with torch.no_grad():
        network(torch.empty(input_shape, device="meta"))
    for handle in handles:
        handle.remove()
    params = sum(parameter.numel() for parameter in network.parameters())
    return Profile(params, sum(c.macs for c in layers), sum(c.macs_published for c in layers), tuple(layers))


def _counter(name: str, layers: list[LayerCost]) -> Any:
    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        params = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if isinstance(layer, nn.Linear):
            true = published = output.numel() * x.shape[-1]
        elif isinstance(layer, nn.ConvTranspose2d):
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            true = x.numel() * output.shape[1] // layer.groups * taps
            published = output.numel() * x.shape[1] // layer.groups * taps
        elif isinstance(layer, nn.Conv2d):
            depthwise = layer.groups > 1 and layer.groups == layer.in_channels
            groups = x.shape[1] if depthwise else layer.groups
            true = published = output.numel() * (x.shape[1] // groups) * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            true, published = 0, output.numel()
        layers.append(LayerCost(name, type(layer).__name__, tuple(output.shape), params, true, published))

    return count


def resnet_cost(config: ResnetConfig, input_shape: Shape) -> dict[str, float]:
    """``macs``, ``macs_published`` and ``params`` of a ResNet generator in closed form, for searches over many widths.

    Equal to :func:`profile_module` of the built generator (a test compares them), thousands of times faster.
    """
    c, bias = config, int(config.norm != "batch")
    full, half, quarter = (input_shape[0] * (input_shape[2] // d) * (input_shape[3] // d) for d in (1, 2, 4))
    # (positions, weights, biases, published positions)
    layers = [
        (full, 49 * c.in_channels * c.stem, bias * c.stem, full),
        (half, 9 * c.stem * c.down, bias * c.down, half),
        (quarter, 9 * c.down * c.stream, bias * c.stream, quarter),
        (quarter, 9 * c.stream * c.up, bias * c.up, half),
        (half, 9 * c.up * c.last, bias * c.last, full),
        (full, 49 * c.last * c.out_channels, c.out_channels, full),
    ]
    for hidden in c.hidden:
        for inputs, outputs in ((c.stream, hidden), (hidden, c.stream)):
            if c.separable:
                layers += [(quarter, 9 * inputs, inputs, quarter), (quarter, inputs * outputs, outputs, quarter)]
            else:
                layers.append((quarter, 9 * inputs * outputs, bias * outputs, quarter))
    norms = 0
    if c.norm in ("instance_affine", "batch"):
        norms = 2 * (c.stem + c.down + c.stream + sum(c.hidden) + c.n_blocks * c.stream + c.up + c.last)
    return {
        "macs": sum(positions * weights for positions, weights, _, _ in layers),
        "macs_published": sum(positions * weights for _, weights, _, positions in layers),
        "params": sum(weights + biases for _, weights, biases, _ in layers) + norms,
    }


class CostModel:
    """Costs of a supernet's configurations: ``cost(config)`` gives ``macs``, ``macs_published``, ``params``, ``latency_ms``.

    Args:
        supernet: whose configurations.
        input_shape: [N, C, H, W] of one forward pass.
        measure_latency: measure the extracted sub-generator on the supernet's device (median of several calls); otherwise
            ``latency_ms`` is left out. Every configuration is measured once.
    """

    def __init__(self, supernet: Supernet, input_shape: Shape, *, measure_latency: bool = False) -> None:
        self.supernet, self.input_shape, self.measure = supernet, input_shape, measure_latency
        self._cache: dict[Config, dict[str, float]] = {}

    def __call__(self, config: Config) -> dict[str, float]:
        """The cost of a configuration; values are cached."""
        if config not in self._cache:
            cost = resnet_cost(self.supernet.resnet_config(config), self.input_shape)
            if self.measure:
                cost["latency_ms"] = self._latency(config)
            self._cache[config] = cost
        return self._cache[config]

    def _latency(self, config: Config) -> float:
        generator = self.supernet.extract(config)
        device = next(generator.parameters()).device
        call = generator_call(generator, self.input_shape, device)
        return round(measure_latency({"generator": call}, rounds=7, seconds=3.0)["generator"].p50, 4)
