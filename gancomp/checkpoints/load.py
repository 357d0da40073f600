"""Load networks from the files of this project and of others."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gancomp.checkpoints.foreign import as_state, convert_state, fold_batch_statistics
from gancomp.errors import CheckpointError, ConfigError, first_line
from gancomp.models import Generator, Network, ResnetGenerator, build_network
from gancomp.supernet import SearchSpace, Supernet


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read ``(tensors, metadata)`` from a ``.safetensors`` file or a PyTorch file of plain tensors.

    PyTorch files are opened with ``weights_only=True``: a pickle that needs to run code is refused.

    Raises:
        CheckpointError: missing, unreadable, damaged, or no weights inside.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                # Copied: safetensors gives the file's own memory map, which changes, or ends the process, with the file.
                return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        return as_state(_torch_load(path)), {}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({first_line(error)})") from None


def _torch_load(path: Path) -> object:
    """Read a PyTorch file without running code from it.

    Raises:
        CheckpointError: it holds objects that need code, or is no PyTorch file; the message leaves out the path.
        OSError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # On a file that is no pickle PyTorch warns of an unknown pickle protocol.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # PyTorch answers a damaged file with whatever its parser stumbles over, from IndexError to struct.error.
        text = str(error)
        if unsafe := re.search(r"GLOBAL (\S+) ", text):
            what = f"objects of {unsafe[1]}"
        elif "TorchScript" in text:
            what = "a TorchScript program"
        else:
            raise CheckpointError("cannot be read as weights (damaged, or no PyTorch file)") from None
        raise CheckpointError(
            f"holds {what} instead of a plain state dict of tensors, and loading it would run code from the file; "
            "save model.state_dict() instead"
        ) from None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata strings of a ``.safetensors`` file; empty for other files.

    Raises:
        CheckpointError: missing or damaged.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({first_line(error)})") from None


def metadata_json(metadata: dict[str, str], key: str, path: object) -> Any:
    """Parse one JSON entry of a file's metadata; a missing one is None.

    Raises:
        CheckpointError: not JSON.
    """
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except ValueError:
        raise CheckpointError(f"{path}: metadata {key} is not valid JSON") from None


def load_supernet(path: str | os.PathLike[str]) -> Supernet:
    """Load a supernet with its search space from one file of this project.

    Raises:
        CheckpointError: as :func:`load_generator`, or the file holds a single generator.
    """
    network = load_network(path)
    values = metadata_json(read_metadata(path), "gancomp.space", path)
    if values is None or not isinstance(network, ResnetGenerator):
        raise CheckpointError(f"{path}: holds no supernet (a generator with its search space), as `gancomp supernet` writes")
    try:
        space = SearchSpace(values["name"], tuple(tuple(options) for options in values["choices"]))
        config = network.config
        fields = {
            name: getattr(config, name) for name in ("in_channels", "out_channels", "separable", "norm", "padding", "dropout")
        }
        return Supernet(space, config.n_blocks, network, **fields).eval()
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_network(path: str | os.PathLike[str], *, batch_stats: bool = True) -> Network:
    """Load any network that this project wrote, or a foreign generator recognised from its tensors.

    See :func:`load_generator` for the arguments and errors.
    """
    tensors, metadata = read_weights(path)
    values = metadata_json(metadata, "gancomp.config", path)
    try:
        if values is None:
            arch, config, tensors = convert_state(tensors)
            if config.norm == "batch" and batch_stats:
                config, tensors = _without_batch_statistics(arch, config, tensors)
            values = {"arch": arch, **dataclasses.asdict(config)}
        elif not isinstance(values, dict):
            raise ConfigError(f"metadata gancomp.config: expected an object, got {type(values).__name__}")
        with torch.device("meta"):
            network = build_network(values)
        floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        network.load_state_dict(floats, assign=True)
    except (ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        reason = textwrap.shorten(" ".join(str(error).splitlines()[1:]), 200)
        raise CheckpointError(f"{path}: tensors do not fit a {values['arch']} network ({reason})") from None
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def load_generator(path: str | os.PathLike[str], *, batch_stats: bool = True) -> Generator:
    """Load a generator from one file; nothing else is needed.

    Files of this project carry their configuration. Files of pytorch-CycleGAN-and-pix2pix (ResNet, U-Net) and of GAN
    Compression (full, mobile, supernet, compressed) are recognised from their tensor names and shapes.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pth``, ``.pt``) of plain tensors.
        batch_stats: pix2pix tests its BatchNorm networks on batch statistics with one image at a time, which equals an affine
            InstanceNorm: they are loaded as that. False keeps BatchNorm with its running statistics.

    Returns:
        The generator in evaluation mode on the CPU, its ``config`` attached.

    Raises:
        CheckpointError: the file is missing, damaged, needs code to load, or holds another kind of network.
    """
    network = load_network(path, batch_stats=batch_stats)
    if not isinstance(network, Generator):
        raise CheckpointError(f"{path}: holds a {network.arch!r} network, expected a generator")
    return network


def _without_batch_statistics(arch: str, config: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Turn BatchNorm on batch statistics into affine InstanceNorm; convolutions get the zero bias that BatchNorm left out."""
    config = dataclasses.replace(config, norm="instance_affine")
    tensors = fold_batch_statistics(tensors)
    with torch.device("meta"):
        wanted = build_network({"arch": arch, **dataclasses.asdict(config)}).state_dict()
    for name, tensor in wanted.items():
        if name.endswith(".bias") and name not in tensors:
            tensors[name] = torch.zeros(tensor.shape)
    return config, tensors
