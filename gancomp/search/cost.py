"""What a generator costs: parameters and multiply-accumulates (MACs) of every layer, and measured milliseconds.

Two counts are given. ``macs`` is what the arithmetic takes. ``macs_published`` follows the tables of the literature, which
count a transposed convolution as if every output pixel took every kernel tap: at stride 2 four times the true number.
Source: GAN Compression, table 1, and the tables of the released models.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.metrics.latency import measure_latency
from gancomp.metrics.runner import Runner
from gancomp.models.channels import Config
from gancomp.models.resnet import layer_by_layer
from gancomp.nn import BatchNormAct, InstanceNormAct, ModulatedNorm, SlicedDepthwiseConv2d
from gancomp.supernet import Supernet

if TYPE_CHECKING:
    from gancomp.search.budget import Limits

Shape = tuple[int, int, int, int]

# Layers whose output has the shape of their input. They are not run, so a profile needs no kernel whichever GANCOMP_BACKEND
# names, and takes milliseconds: the shape rules of these few are what loads most of PyTorch's compiler.
_SAME_SHAPE = (BatchNormAct, InstanceNormAct, ModulatedNorm, SlicedDepthwiseConv2d, nn.InstanceNorm2d, nn.BatchNorm2d, nn.Tanh)


@dataclass(frozen=True)
class LayerCost:
    """One call of one layer; a layer that is called again lists its parameters once."""

    name: str
    kind: str
    out_shape: tuple[int, ...]
    params: int
    macs: int
    macs_published: int


@dataclass(frozen=True)
class Profile:
    """Totals over the whole batch, and the layers in the order in which they run."""

    params: int
    macs: int
    macs_published: int
    layers: tuple[LayerCost, ...]


def profile_module(module: nn.Module, input_shape: Shape, *, count_norm: bool = False) -> Profile:
    """Count parameters and multiply-accumulates of ``module`` for one input.

    A copy runs once on tensors without data. Counted are convolutions, transposed convolutions and linear layers, with the
    channels of the tensors that flow: a layer that uses the first channels of its weight counts as those.

    Args:
        module: left as it is. Extract a supernet's sub-network first: all parameters of ``module`` count.
        input_shape: [N, C, H, W]; N = 1 for the cost of one image.
        count_norm: add one per output element of every InstanceNorm to ``macs_published``, as the first tables did.

    Raises:
        ConfigError: an input that the module cannot take.
    """
    if len(input_shape) != 4 or min(input_shape) < 1:
        raise ConfigError(f"input_shape={tuple(input_shape)}: expected four positive numbers [N, C, H, W]")
    try:
        layers = _run(_meta_copy(module), input_shape, count_norm)
    except (RuntimeError, NotImplementedError):
        # An op without shape rules, or a kernel asked for by name that needs data: the layers run for real, on any data.
        # A wrong input fails again here.
        real = copy.deepcopy(module)
        on_meta = any(tensor.is_meta for tensor in module.parameters())
        layers = _run(real.to_empty(device="cpu") if on_meta else real, input_shape, count_norm)
    return Profile(
        params=sum(parameter.numel() for parameter in module.parameters()),
        macs=sum(layer.macs for layer in layers),
        macs_published=sum(layer.macs_published for layer in layers),
        layers=tuple(layers),
    )


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy on the meta device, made without copying any weight."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _run(module: nn.Module, input_shape: Shape, count_norm: bool) -> list[LayerCost]:
    """Run ``module`` (a copy) once and list the layers that hold parameters or count."""
    layers: list[LayerCost] = []
    listed: set[nn.Module] = set()

    def hook(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        params = 0 if layer in listed else sum(p.numel() for p in layer.parameters(recurse=False))
        listed.add(layer)
        macs, published = _count(layer, inputs[0], output, count_norm)
        if params or published:
            layers.append(LayerCost(name, type(layer).__name__, tuple(output.shape), params, macs, published))

    for name, layer in module.named_modules():
        if next(layer.children(), None) is None:
            layer.register_forward_hook(functools.partial(hook, name))
        if isinstance(layer, _SAME_SHAPE):
            layer.forward = _same_shape
    like = next(module.parameters(), torch.empty(0))
    with torch.no_grad(), layer_by_layer(module):
        module.eval()(torch.zeros(input_shape, device=like.device, dtype=like.dtype))
    return layers


def _same_shape(x: Tensor, *_: object, **__: object) -> Tensor:
    return x.new_empty(x.shape)


def _count(layer: nn.Module, x: Tensor, y: Tensor, count_norm: bool) -> tuple[int, int]:
    """Multiply-accumulates of one call, true and published."""
    if isinstance(layer, nn.Linear):
        return (y.numel() * x.shape[-1],) * 2
    if isinstance(layer, InstanceNormAct | nn.InstanceNorm2d):
        return 0, y.numel() if count_norm else 0
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return 0, 0
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    # A depthwise layer may be given fewer channels than it has: it has as many groups as it is given channels.
    depthwise = 1 < layer.groups == layer.in_channels
    groups = x.shape[1] if depthwise else layer.groups
    published = y.numel() * (x.shape[1] // groups) * taps
    if isinstance(layer, nn.ConvTranspose2d):
        return x.numel() * (y.shape[1] // groups) * taps, published
    return published, published


class CostModel:
    """Costs of a supernet's configurations: ``cost(config)`` gives ``macs``, ``macs_published``, ``params``, ``latency_ms``.

    The counts take about twenty microseconds. The supernet is profiled once; from then on the shapes of the weights are
    enough: every dimension of every weight is an affine function of the configuration, and the MACs of a layer are its
    weights times the positions they are applied at, which are the same for all configurations.

    Args:
        supernet: whose configurations; left as it is.
        input_shape: [N, C, H, W] of one forward pass.
        runner: by which the extracted sub-generator is timed (median, once per configuration); without, ``latency_ms`` is left
            out.
        rounds: timed calls of a measurement.
        limits: a configuration that is beyond them by its counts alone is not measured, and its ``latency_ms`` left out.

    Raises:
        ConfigError: an input that the supernet cannot take.
    """

    def __init__(
        self,
        supernet: Supernet,
        input_shape: Shape,
        *,
        runner: Runner | None = None,
        rounds: int = 7,
        limits: Limits | None = None,
    ) -> None:
        self.supernet, self.input_shape = supernet, input_shape
        self.runner, self.rounds, self.limits = runner, rounds, limits
        self._latencies: dict[tuple[Config, int], float] = {}
        space = supernet.space
        profile = profile_module(self._build(space.largest), input_shape)

        shapes = self._shapes(space.largest)
        positions = {name: [1, 0, 0] for name in shapes}
        for layer in profile.layers:
            # Norms hold parameters without multiplying, so they have no positions.
            if layer.macs:
                weight = f"{layer.name}.weight"
                positions[weight][1] += layer.macs // shapes[weight].prod()
                positions[weight][2] += layer.macs_published // shapes[weight].prod()
        self._positions = np.array(list(positions.values()), dtype=np.int64).T  # [3 counts, tensors]

        self._smallest = np.array(space.smallest)
        self._base = np.stack(list(self._shapes(space.smallest).values()))  # [tensors, 4 dimensions]
        self._growth = np.zeros((*self._base.shape, len(space.choices)), dtype=np.int64)  # per channel of each slot
        for slot, options in enumerate(space.choices):
            if step := options[0] - options[-1]:
                config = (*space.smallest[:slot], options[0], *space.smallest[slot + 1 :])
                self._growth[..., slot] = (np.stack(list(self._shapes(config).values())) - self._base) // step
        if self._counts(space.largest) != [profile.params, profile.macs, profile.macs_published]:
            raise ConfigError(f"space {space.name!r}: the widths of this supernet are not affine in the configuration")

    def _build(self, config: Config) -> nn.Module:
        with torch.device("meta"):
            return type(self.supernet.generator)(self.supernet.network_config(config))

    def _shapes(self, config: Config) -> dict[str, np.ndarray]:
        """Shapes of all parameters, filled up with ones to four dimensions."""
        parameters = self._build(config).named_parameters()
        return {name: np.array((*p.shape, *(1,) * (4 - p.dim())), dtype=np.int64) for name, p in parameters}

    def _counts(self, config: Config) -> list[int]:
        dims = self._base + self._growth @ (np.array(config) - self._smallest)
        return (self._positions @ dims.prod(axis=1)).tolist()

    def __call__(self, config: Config) -> dict[str, float]:
        """The cost of a configuration; the latency is measured at most once.

        Raises:
            ConfigError: it is not in the space.
        """
        params, macs, published = self._counts(self.supernet.space.validate(config))
        cost: dict[str, float] = {"macs": macs, "macs_published": published, "params": params}
        if self.runner is not None and (self.limits is None or self.limits.allows(cost)):
            cost["latency_ms"] = self._latency_ms(config, self.runner)
        return cost

    def _latency_ms(self, config: Config, runner: Runner) -> float:
        """Median milliseconds of a call of the extracted sub-generator; measured once per number of threads."""
        key = (tuple(config), torch.get_num_threads())
        if key not in self._latencies:
            # The time does not depend on batch statistics, which may not be this configuration's yet.
            generator = self.supernet.generator.extract(self.supernet.network_config(config))
            for tensor in generator.state_dict().values():
                # The time does not depend on them, and what is not finite is for the evaluation to find.
                tensor.nan_to_num_(0.0, 0.0, 0.0)
            call = runner.timed(generator, self.input_shape)
            measured = measure_latency({"generator": call}, rounds=self.rounds, seconds=3.0)
            self._latencies[key] = round(measured["generator"].p50, 4)
        return self._latencies[key]
