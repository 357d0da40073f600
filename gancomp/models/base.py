"""What every network of gancomp has: a frozen configuration that rebuilds it, and a file that carries both."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.io import atomic_path
from gancomp.version import __version__


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a ``.safetensors`` file; equal contents give equal bytes.

    Args:
        tensors: by name, on any device and in any memory layout.
        metadata: strings for the header.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, dict(metadata))
    # A header has its length in front. safetensors puts the metadata into it in an order that changes from call to call.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write :func:`tensors_to_bytes` to a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(tensors_to_bytes(tensors, metadata))


def network_to_bytes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], **metadata: Any) -> bytes:
    """The bytes of a network's file.

    The metadata keys are ``gancomp.config``, ``gancomp.version`` and ``gancomp.NAME`` for every further keyword, each a JSON
    string.

    Args:
        config: the JSON form of its configuration, ``arch`` included.
        tensors: its state, by name.
        metadata: further values, as JSON can hold them.
    """
    values = {"config": config, "version": __version__, **metadata}
    return tensors_to_bytes(tensors, {f"gancomp.{name}": json.dumps(value) for name, value in values.items()})


class Network(nn.Module):
    """A module that is rebuilt from ``config`` (a frozen dataclass) and saves itself with it."""

    arch: ClassVar[str]
    config: Any

    def config_dict(self) -> dict[str, Any]:
        """The JSON form of the configuration, ``arch`` first."""
        return {"arch": self.arch, **dataclasses.asdict(self.config)}

    def to_bytes(self, provenance: Mapping[str, Any] | None = None, **metadata: Any) -> bytes:
        """The file that :meth:`save` writes, in memory."""
        return network_to_bytes(self.config_dict(), self.state_dict(), provenance=dict(provenance or {}), **metadata)

    def save(self, path: str | os.PathLike[str], provenance: Mapping[str, Any] | None = None, **metadata: Any) -> None:
        """Write weights, configuration and ``provenance`` to one ``.safetensors`` file, whole or not at all.

        ``provenance`` and every further keyword become metadata: see :func:`network_to_bytes`.
        """
        data = self.to_bytes(provenance, **metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)


class Generator(Network):
    """An image-to-image generator: [N, in_channels, H, W] in [-1, 1] to [N, out_channels, H, W] in [-1, 1].

    ``size_multiple``: heights and widths that the network maps to equal output sizes are multiples of it.
    """

    size_multiple: int = 1

    def translate(self, x: Tensor) -> Tensor:
        """Run on images of any size: the padding rule of everything that shows or scores images, the engine included.

        A height or width that is no multiple of ``size_multiple`` is extended to the next one by reflection, below and on the
        right (again and again where the image is smaller than what is missing), and the result is cut back.

        Args:
            x: [N, in_channels, H, W] in [-1, 1].

        Returns:
            [N, out_channels, H, W] in [-1, 1].

        Raises:
            ConfigError: what the network itself refuses.
        """
        height, width = x.shape[-2:]
        for dim in (-2, -1):
            x = _extend(x, dim, -(-x.shape[dim] // self.size_multiple) * self.size_multiple)
        return self(x)[..., :height, :width]

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Layers whose outputs distillation uses where none are named, in the order in which they run; may be none."""
        return ()

    def forward_features(self, x: Tensor, layers: Sequence[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Run and return the image, and outputs of layers by name.

        Args:
            x: as of ``forward``.
            layers: names of modules, as ``named_modules`` has them; by default :attr:`feature_layers`.

        Raises:
            ConfigError: a name of no layer, of one without an output of its own or whose output is changed in place, or no
                layers at all.
        """
        wanted = self.feature_layers if layers is None else tuple(layers)
        if not wanted:
            raise ConfigError(f"{self.arch}: this architecture offers no features for distillation (set lambda_distill to 0)")
        features: dict[str, Any] = {}
        modules = dict(self.named_modules())
        handles = []
        try:
            for name in wanted:
                if name not in modules:
                    raise no_layer(self, name)
                handles.append(modules[name].register_forward_hook(functools.partial(_keep, features, name)))
            image = self(x)
        finally:
            for handle in handles:
                handle.remove()
        for name in wanted:
            output, version = features.get(name, (None, None))
            if not isinstance(output, Tensor):
                raise ConfigError(f"layer {name!r}: gives no output of its own in this {self.arch} generator")
            if version != _version(output):
                raise ConfigError(f"layer {name!r}: what follows changes its output in place (such as nn.ReLU(inplace=True))")
        return image, {name: features[name][0] for name in wanted}

    def num_parameters(self) -> int:
        """Number of scalars in all parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def no_layer(network: Network, name: str) -> ConfigError:
    """The error of a layer's name that a network does not have."""
    close = difflib.get_close_matches(name, [known for known, _ in network.named_modules() if known], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"layer {name!r}: this {network.arch} generator has none of that name{hint}")


def _keep(features: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    features[name] = output, _version(output)


def _version(output: Any) -> int | None:
    """How often a tensor was changed in place, where PyTorch counts that."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else None


def _extend(x: Tensor, dim: int, size: int) -> Tensor:
    """``x`` with dimension ``dim`` extended at its end by reflection, which does not repeat the last element."""
    real = x.shape[dim]
    if real == size:
        return x
    period = max(2 * (real - 1), 1)
    position = torch.arange(size, device=x.device) % period
    return x.index_select(dim, torch.minimum(position, period - position) if real > 1 else position)


NetworkT = TypeVar("NetworkT", bound=Network)
_REGISTRY: dict[str, tuple[type, Callable[[Any], Network]]] = {}


def register_network(arch: str, config_class: type) -> Callable[[type[NetworkT]], type[NetworkT]]:
    """Class decorator: make a network known under ``arch`` so that files that name it can be loaded.

    Args:
        arch: the name stored in files.
        config_class: a frozen dataclass; the network is built as ``network_class(config)``.

    Raises:
        ConfigError: the name is taken.
    """

    def add(network_class: type[NetworkT]) -> type[NetworkT]:
        if arch in _REGISTRY:
            raise ConfigError(f"arch={arch!r}: already registered")
        network_class.arch = arch
        _REGISTRY[arch] = (config_class, network_class)
        return network_class

    return add


def config_from_dict(values: Mapping[str, Any]) -> tuple[str, Any]:
    """Read ``(arch, config)`` from the JSON form of a configuration.

    Raises:
        ConfigError: unknown architecture, unknown or missing fields, values out of range.
    """
    values = dict(values)
    arch = values.pop("arch", None)
    if not isinstance(arch, str) or arch not in _REGISTRY:
        raise ConfigError(f"arch={arch!r}: expected one of {', '.join(sorted(_REGISTRY))}")
    config_class = _REGISTRY[arch][0]
    known = {field.name for field in dataclasses.fields(config_class)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"config of {arch}: unknown fields {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return arch, config_class(**values)
    except TypeError as error:
        raise ConfigError(f"config of {arch}: {error}") from None


def build_network(values: Mapping[str, Any]) -> Network:
    """Build the network of a JSON configuration with uninitialised meaning: weights are PyTorch's defaults."""
    arch, config = config_from_dict(values)
    return _REGISTRY[arch][1](config)


def seeded_generator(seed: int) -> torch.Generator:
    """A CPU random source for weight initialisation."""
    return torch.Generator().manual_seed(seed)


def check_choice(owner: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{owner}: {name}={value!r}: expected one of {', '.join(map(str, allowed))}")


def check_range(owner: str, name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise a ConfigError unless ``low <= value <= high``; where ``low`` is an integer, ``value`` must be one too."""
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        raise ConfigError(f"{owner}: {name}={value!r}: expected a {'whole ' if whole else ''}number {bound}")
