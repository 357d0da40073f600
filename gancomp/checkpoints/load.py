"""Load networks from the files of this project and of others."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gancomp.checkpoints.assume import PUBLISHED, Assumptions
from gancomp.checkpoints.files import State, metadata_json, read_metadata, read_weights
from gancomp.checkpoints.foreign import convert_state, fold_ranges
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import Generator, Network, SlicedGenerator, build_network
from gancomp.supernet import SearchSpace, Supernet


def load_network(path: str | os.PathLike[str], assume: Assumptions = PUBLISHED) -> Network:
    """Load any network that this project wrote, or a foreign generator or discriminator recognised from its tensors.

    See :func:`load_generator` for the arguments and errors.
    """
    tensors, metadata = read_weights(path)
    values = metadata_json(metadata, "gancomp.config", path)
    if values is None:
        return _foreign(path, tensors, assume)[0]
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: metadata gancomp.config: expected an object, got {type(values).__name__}")
    return _assemble(path, values, tensors)


def load_foreign(path: str | os.PathLike[str], assume: Assumptions = PUBLISHED) -> tuple[Network, str]:
    """Load a network of another project, and say in words what it was recognised as.

    Raises:
        CheckpointError: as :func:`load_generator`, or the file is one of this project.
    """
    tensors, metadata = read_weights(path)
    if "gancomp.config" in metadata:
        raise CheckpointError(f"{path}: is a file of this project already, expected one of another project")
    return _foreign(path, tensors, assume)


def load_generator(path: str | os.PathLike[str], assume: Assumptions = PUBLISHED) -> Generator:
    """Load a generator from one file; nothing else is needed.

    Files of this project carry their configuration. Files of pytorch-CycleGAN-and-pix2pix (ResNet, U-Net), of GAN Compression
    (full, mobile, supernet, compressed; ResNet and GauGAN) and of SPADE are recognised from their tensor names and shapes.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pth``, ``.pt``) of plain tensors.
        assume: what the tensors of a foreign file cannot tell; files of this project need none of it.

    Returns:
        The generator in evaluation mode on the CPU, its ``config`` attached.

    Raises:
        CheckpointError: the file is missing, damaged, needs code to load, or holds another kind of network.
    """
    network = load_network(path, assume)
    if not isinstance(network, Generator):
        raise CheckpointError(f"{path}: holds a {network.arch!r} network, expected a generator")
    return network


def load_supernet(path: str | os.PathLike[str]) -> Supernet:
    """Load a supernet with its search space from one file of this project.

    Raises:
        CheckpointError: as :func:`load_generator`, or the file holds a single generator.
    """
    network = load_network(path)
    values = metadata_json(read_metadata(path), "gancomp.space", path)
    if values is None or not isinstance(network, SlicedGenerator):
        raise CheckpointError(
            f"{path}: holds no supernet (a generator with its search space), as `gancomp supernet` and "
            "`gancomp convert --space` write it"
        )
    try:
        space = SearchSpace(values["name"], tuple(tuple(options) for options in values["choices"]))
        return Supernet.around(network, space).eval()
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_subnetwork(path: str | os.PathLike[str], channels: Sequence[int], *, calibrated: bool = True) -> Any:
    """Cut the generator of one configuration out of a supernet's file; it is of the supernet's class.

    A file of this project says which configurations it holds. One of GAN Compression does not: it is the file of a separable
    generator of one base width, and any configuration up to that width is taken. Of batch statistics the first channels are
    taken, as published code does; they are not those of the configuration (see :meth:`gancomp.Supernet.calibrate`).

    Args:
        path: the supernet's file.
        channels: the configuration.
        calibrated: off: batch statistics of no configuration in particular will do, since the weights alone count or the
            generator is going to be trained.

    Raises:
        CheckpointError: the file holds no supernet, or see :func:`load_generator`.
        ConfigError: a configuration that the supernet does not hold, or, in a file of this project, one whose batch statistics
            are not known.
    """
    if "gancomp.config" in read_metadata(path):
        supernet = load_supernet(path)
        return supernet.extract(channels) if calibrated else supernet.generator.extract(supernet.network_config(channels))
    network = load_network(path)
    if not isinstance(network, SlicedGenerator) or not network.config.separable or len(set(network.config.channels or ())) != 1:
        raise CheckpointError(
            f"{path}: holds no supernet; expected one of this project, or GAN Compression's, a ResNet generator with separable "
            "blocks or a SPADE generator with separable modulations, of one base width"
        )
    return network.extract(network.config.with_channels(channels))


def _foreign(path: str | os.PathLike[str], tensors: State, assume: Assumptions) -> tuple[Network, str]:
    try:
        found = convert_state(tensors, assume)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    network = _assemble(path, {"arch": found.arch, **dataclasses.asdict(found.config)}, found.tensors)
    fold_ranges(network, assume)
    return network, found.found


def _assemble(path: str | os.PathLike[str], values: Mapping[str, Any], tensors: State) -> Network:
    """Build the network of a configuration around ``tensors``, which become its parameters without a copy."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"{path}: tensor {name} is of {tensor.dtype}: expected floating-point numbers")
    try:
        with torch.device("meta"):
            network = build_network(values)
        floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        network.load_state_dict(floats, assign=True)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        reason = textwrap.shorten(" ".join(str(error).splitlines()[1:]), 200)
        raise CheckpointError(f"{path}: tensors do not fit a {values['arch']} network ({reason})") from None
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()
