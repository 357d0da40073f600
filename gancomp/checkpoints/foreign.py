"""Published checkpoint layouts of pix2pix/CycleGAN and GAN Compression, recognised by their tensor names and shapes.

What a state dict cannot tell: dropout rates (no tensors; off here, as at inference), InstanceNorm from no norm (neither has
tensors; InstanceNorm, as published), the padding of the blocks (reflection, as published) and the value range ([-1, 1], as
published).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from gancomp.errors import CheckpointError
from gancomp.models import ResnetConfig, UnetConfig

State = dict[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def convert_state(state: Mapping[str, Tensor]) -> tuple[str, ResnetConfig | UnetConfig, State]:
    """Recognise a generator's state dict: its architecture, configuration, and tensors under this project's names.

    Raises:
        CheckpointError: the names or shapes fit no known layout.
    """
    tensors = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in state.items()}
    if "model.model.0.weight" in tensors:
        return "unet", *_unet(tensors)
    if "model.1.weight" in tensors:
        return "resnet", *_resnet(tensors)
    names = ", ".join(sorted(tensors)[:4])
    raise CheckpointError(f"not a generator of a known layout (ResNet or U-Net); its tensors begin with: {names or 'none'}")


def _shape(tensors: State, name: str, dims: int = 4) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"tensor {name} is missing from the generator")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise CheckpointError(f"tensor {name} has shape {list(shape)}: expected {dims} dimensions")
    return shape


def _norm_kind(tensors: State, name: str) -> str:
    """The norm whose tensors carry the prefix ``name``; statistics without a scale are those of old InstanceNorms."""
    if f"{name}.weight" not in tensors:
        return "instance"
    return "batch" if f"{name}.running_mean" in tensors else "instance_affine"


def _resnet(tensors: State) -> tuple[ResnetConfig, State]:
    stem, in_channels, *_ = _shape(tensors, "model.1.weight")
    norm = _norm_kind(tensors, "model.2")
    blocks = sorted({int(m[1]) for name in tensors if (m := re.match(r"model\.(\d+)\.conv_block\.", name))})
    n_blocks = len(blocks)
    if blocks != list(range(10, 10 + n_blocks)):
        raise CheckpointError(f"residual blocks at indices {blocks}: expected consecutive ones from 10")
    # Published generators without dropout have no layer 4, so their second convolution is number 5.
    without_dropout = any(re.match(r"model\.\d+\.conv_block\.5\.(weight|conv\.)", name) for name in tensors)
    renamed: State = {}
    for name, tensor in tensors.items():
        if without_dropout and (m := re.match(r"(model\.\d+\.conv_block\.)([56])(\..*)", name)):
            name = f"{m[1]}{int(m[2]) + 1}{m[3]}"
        renamed[name] = tensor
    if norm == "instance":
        renamed = {name: t for name, t in renamed.items() if not name.endswith(_STATISTICS)}
    separable = any(".conv.2.weight" in name for name in renamed)
    first = "conv_block.1.conv.2.weight" if separable else "conv_block.1.weight"
    last = 17 + n_blocks
    config = ResnetConfig(
        stem=stem,
        down=_shape(renamed, "model.4.weight")[0],
        stream=_shape(renamed, "model.7.weight")[0],
        hidden=tuple(_shape(renamed, f"model.{block}.{first}")[0] for block in blocks),
        up=_shape(renamed, f"model.{10 + n_blocks}.weight")[1],
        last=_shape(renamed, f"model.{13 + n_blocks}.weight")[1],
        in_channels=in_channels,
        out_channels=_shape(renamed, f"model.{last}.weight")[0],
        separable=separable,
        norm=norm,
    )
    return config, renamed


def _unet(tensors: State) -> tuple[UnetConfig, State]:
    ngf, in_channels, *_ = _shape(tensors, "model.model.0.weight")
    prefix, level, levels = "model.model.1.model", 1, 1
    while f"{prefix}.{level}.weight" in tensors:
        levels += 1
        inner = f"{prefix}.3.model"
        if not any(name.startswith(inner) for name in tensors):
            break
        prefix = inner
    norm = _norm_kind(tensors, "model.model.1.model.2")
    if norm == "instance":
        tensors = {name: t for name, t in tensors.items() if not name.endswith(_STATISTICS)}
    config = UnetConfig(
        ngf=ngf,
        n_levels=levels,
        in_channels=in_channels,
        out_channels=_shape(tensors, "model.model.3.weight")[1],
        norm=norm,
        dropout=0.0,
    )
    return config, tensors


def fold_batch_statistics(state: State) -> State:
    """Drop running statistics, turning BatchNorm used on batch statistics into the affine InstanceNorm it equals.

    pix2pix tests with batch statistics and batches of one; that is InstanceNorm with BatchNorm's scale and shift, exactly.
    """
    return {name: tensor for name, tensor in state.items() if not name.endswith(_STATISTICS)}


def as_state(value: object) -> dict[str, Tensor]:
    """Find the state dict in a loaded file: itself, or under a usual key such as ``state_dict``.

    Raises:
        CheckpointError: there is none.
    """
    for key in (None, "state_dict", "model", "generator", "netG"):
        candidate = value if key is None else value.get(key) if isinstance(value, dict) else None
        if isinstance(candidate, Mapping) and candidate and all(isinstance(t, torch.Tensor) for t in candidate.values()):
            return dict(candidate)
    raise CheckpointError("holds no state dict (a mapping of names to tensors)")
