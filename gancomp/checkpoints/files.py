"""Weights as they lie on the disk: ``.safetensors`` files, and PyTorch files of plain tensors."""

from __future__ import annotations

import codecs
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gancomp.errors import CheckpointError, first_line

State = dict[str, Tensor]

# What people take for weights: a download that failed, a sample beside the weights, a pointer that was never fetched.
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file"),
    (b"<!doctype html", "a web page, as of a failed download"),
    (b"<html", "a web page, as of a failed download"),
)
_EXPECTED = "expected a .safetensors file or a PyTorch file of plain tensors"


def read_weights(path: str | os.PathLike[str]) -> tuple[State, dict[str, str]]:
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
        return _state(_torch_load(path)), {}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, first_line(error)) from None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata strings of a ``.safetensors`` file; empty for other files.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, first_line(error)) from None


def metadata_json(metadata: Mapping[str, str], key: str, path: object) -> Any:
    """Parse one JSON entry of a file's metadata; a missing one is None.

    Raises:
        CheckpointError: not JSON.
    """
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except ValueError:
        raise CheckpointError(f"{path}: metadata {key} is not valid JSON") from None


def _torch_load(path: Path) -> object:
    """Read a PyTorch file without running code from it.

    Raises:
        CheckpointError: it holds objects that need code to load; the message leaves out the path.
        ValueError: damaged, or no PyTorch file.
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
            raise ValueError("damaged, or no PyTorch file") from None
        raise CheckpointError(
            f"holds {what} instead of a plain state dict of tensors, and loading it would run code from the file; "
            "save model.state_dict() instead"
        ) from None


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read as weights ({_other_kind(path) or reason}); {_EXPECTED}")


def _other_kind(path: Path) -> str:
    """What a file that holds no weights is, where its first bytes tell; otherwise empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        for signature, kind in _SIGNATURES:
            if head.lstrip().lower().startswith(signature.lower()):
                return kind
        # The last character may be cut in two.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except (OSError, UnicodeDecodeError):
        return ""
    if not head:
        return "an empty file"
    return "a text file" if all(character.isprintable() or character.isspace() for character in text) else ""


def _state(value: object) -> State:
    """Find the state dict in a loaded file: itself, or under a usual key such as ``state_dict``.

    Raises:
        CheckpointError: there is none.
    """
    for key in (None, "state_dict", "model", "generator", "netG", "discriminator", "netD"):
        candidate = value if key is None else value.get(key) if isinstance(value, dict) else None
        if isinstance(candidate, Mapping) and candidate and all(map(_is_entry, candidate.items())):
            return dict(candidate)
    if isinstance(value, Mapping) and "param_groups" in value:
        raise CheckpointError("holds an optimizer's state, expected a network's state dict (a mapping of names to tensors)")
    raise CheckpointError("holds no state dict (a mapping of names to tensors)")


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
