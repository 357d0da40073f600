"""Networks of other projects, recognised by the names and shapes of their tensors.

Known are the ResNet and U-Net generators and the patch discriminators of pytorch-CycleGAN-and-pix2pix and of GAN Compression
(there also separable, supernet and compressed ones), and SPADE generators (:mod:`gancomp.checkpoints.spade`). Their names and
layer numbers are those of :mod:`gancomp.models`, so most tensors keep theirs; docs/checkpoints.md lists the layouts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gancomp.checkpoints.assume import INPUT_RANGES, LABEL_FIELDS, PUBLISHED, STATISTICS, Assumptions, ForeignNetwork, shape_of
from gancomp.checkpoints.files import State
from gancomp.checkpoints.spade import SPADE_MARK, read_spade
from gancomp.errors import CheckpointError
from gancomp.models import DiscriminatorConfig, Network, ResnetConfig, ResnetGenerator, UnetConfig, build_network
from gancomp.models.channels import format_config

# What wraps a network writes before its names.
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def convert_state(state: Mapping[str, torch.Tensor], assume: Assumptions = PUBLISHED) -> ForeignNetwork:
    """Recognise a network's state dict; its tensors are not copied. Value ranges are folded in later, by :func:`fold_ranges`.

    Raises:
        CheckpointError: the names or shapes fit no known layout.
        ConfigError: an assumption that this network cannot fulfil.
    """
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    if SPADE_MARK in tensors:
        return read_spade(tensors, assume)
    for first, read in _LAYOUTS.items():
        if first in tensors:
            assume.refuse("this network", **dict.fromkeys(LABEL_FIELDS, "takes no label maps"))
            return read(tensors, assume)
    names = ", ".join(sorted(tensors)[:4])
    raise CheckpointError(
        "not a network of a known layout (ResNet, U-Net or SPADE generator, patch discriminator); "
        f"its tensors begin with: {names or 'none'}"
    )


# -- norms -----------------------------------------------------------------------------------------------------------------

_NORM_WORDS = {
    "instance": "InstanceNorm",
    "instance_affine": "affine InstanceNorm",
    "batch": "BatchNorm on running statistics",
    "none": "no norm",
}


def _norm_of(tensors: State, conv: str, norm: str) -> str:
    """The norm at index ``norm`` after the convolution ``conv``, both prefixes of tensor names.

    InstanceNorm and no norm have no tensors; only before InstanceNorm the convolution has a bias. Statistics without a scale
    are those that InstanceNorm kept in early versions of PyTorch, and never used.
    """
    scaled, tracked = f"{norm}.weight" in tensors, f"{norm}.running_mean" in tensors
    if scaled:
        return "batch" if tracked else "instance_affine"
    return "instance" if tracked or f"{conv}.bias" in tensors else "none"


def _without_statistics(tensors: State) -> State:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(STATISTICS)}


def _settle_norm(config: Any, tensors: State, assume: Assumptions) -> tuple[Any, State, str]:
    """Choose the norm to build; returns configuration, tensors that fit it, and the norm in words.

    pix2pix tests its BatchNorm on the statistics of the one image it is given: exactly an InstanceNorm with its scale and
    shift, which does not depend on the other images of a batch.
    """
    words = _NORM_WORDS[config.norm]
    if config.norm == "batch" and assume.batch_stats:
        config = dataclasses.replace(config, norm="instance_affine")
        words = "BatchNorm on the statistics of each image, as affine InstanceNorm"
    elif config.norm != "batch" and any(name.endswith(STATISTICS) for name in tensors):
        words += " (statistics of early PyTorch versions left out)"
    return config, tensors if config.norm == "batch" else _without_statistics(tensors), words


def _with_biases(arch: str, config: Any, tensors: State) -> State:
    """Add the zero biases that networks of BatchNorm or without norm leave out of their convolutions, and ours have."""
    if config.norm == "batch":
        return tensors
    values = dataclasses.asdict(config)
    with torch.device("meta"):
        ours = build_network({"arch": arch, **values}).state_dict()
        bare = build_network({"arch": arch, **values, "norm": "batch"}).state_dict()
    left_out = [name for name in ours if name not in bare]
    if any(name in tensors for name in left_out):
        return tensors
    return tensors | {name: torch.zeros(ours[name].shape) for name in left_out}


# -- value ranges ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def fold_ranges(network: Network, assume: Assumptions) -> None:
    """Make a generator that was trained on other values take and give [-1, 1], by its first and last convolution.

    The padding of the first repeats values of the image; where zeros are padded, as in a U-Net, no such change exists.
    :func:`convert_state` has refused what cannot be.
    """
    layers: Any = getattr(network, "model", None)
    if isinstance(network, ResnetGenerator) and assume.input_range != "signed":
        scale, shift = INPUT_RANGES[assume.input_range]
        first, norm = layers[1], layers[2]
        moved = shift * first.weight.double().sum((1, 2, 3))
        first.weight.mul_(scale)
        if first.bias is not None:
            first.bias.copy_(first.bias.double() + moved)
        else:
            # BatchNorm subtracts its mean where a bias would be added.
            norm.running_mean.copy_(norm.running_mean.double() - moved)
    if assume.output_range == "unit":
        # 2 sigmoid(z) - 1 = tanh(z / 2)
        last = layers[17 + network.config.n_blocks] if isinstance(network, ResnetGenerator) else layers.model[3]
        last.weight.mul_(0.5)
        last.bias.mul_(0.5)


# -- layouts ---------------------------------------------------------------------------------------------------------------


def _resnet(tensors: State, assume: Assumptions) -> ForeignNetwork:
    stem, in_channels, *_ = shape_of(tensors, "model.1.weight")
    norm = _norm_of(tensors, "model.1", "model.2")
    blocks = sorted({int(m[1]) for name in tensors if (m := re.match(r"model\.(\d+)\.conv_block\.", name))})
    n_blocks = len(blocks)
    if blocks != list(range(10, 10 + n_blocks)):
        raise CheckpointError(f"residual blocks at indices {blocks}: expected consecutive ones from 10")
    # Without a dropout layer, number 4, the second convolution is number 5 and its norm 6; with one they are 6 and 7.
    no_dropout = any(re.match(r"model\.\d+\.conv_block\.5\.(weight|conv\.)", name) for name in tensors)
    if no_dropout:
        assume.refuse("the generator's blocks", dropout="have no dropout layers")
        tensors = {
            re.sub(r"(\.conv_block\.)([56])\.", lambda m: f"{m[1]}{int(m[2]) + 1}.", name): tensor
            for name, tensor in tensors.items()
        }
    separable = any(".conv.2.weight" in name for name in tensors)
    hidden = "conv_block.1.conv.2.weight" if separable else "conv_block.1.weight"
    config = ResnetConfig(
        stem=stem,
        down=shape_of(tensors, "model.4.weight")[0],
        stream=shape_of(tensors, "model.7.weight")[0],
        hidden=tuple(shape_of(tensors, f"model.{block}.{hidden}")[0] for block in blocks),
        up=shape_of(tensors, f"model.{10 + n_blocks}.weight")[1],
        last=shape_of(tensors, f"model.{13 + n_blocks}.weight")[1],
        in_channels=in_channels,
        out_channels=shape_of(tensors, f"model.{17 + n_blocks}.weight")[0],
        separable=separable,
        norm=norm,
        dropout=assume.dropout,
    )
    config, tensors, norm_words = _settle_norm(config, tensors, assume)
    tensors = _with_biases("resnet", config, tensors)
    found = [
        f"ResNet generator of {n_blocks} {'separable' if separable else 'dense'} blocks",
        _resnet_widths(config),
        norm_words,
        "without dropout layers" if no_dropout else "with dropout layers",
    ]
    return ForeignNetwork("resnet", config, tensors, ", ".join(found))


def _resnet_widths(config: ResnetConfig) -> str:
    """Widths in words: the base width, or the ``config_str`` of a compressed generator."""
    if config.channels is not None:
        uniform = len(set(config.channels)) == 1
        return f"base width {config.stem}" if uniform else f"configuration {config.config_str}"
    legacy = (config.stem, config.down // 2, config.stream // 4, config.hidden[0] // 4, config.up // 2, config.last)
    if min(legacy) > 0 and ResnetConfig.from_channels(legacy, config.n_blocks, legacy=True).hidden == config.hidden:
        return f"configuration {format_config(legacy)} in the legacy reading"
    return "widths of no configuration"


def _unet(tensors: State, assume: Assumptions) -> ForeignNetwork:
    assume.refuse("a U-Net", input_range="pads its image with zeros, which no change of its first layer makes up for")
    ngf, in_channels, *_ = shape_of(tensors, "model.model.0.weight")
    prefix, levels = "model.model.1.model", 1
    while f"{prefix}.1.weight" in tensors:
        levels += 1
        prefix += ".3.model"
    config = UnetConfig(
        ngf=ngf,
        n_levels=levels,
        in_channels=in_channels,
        out_channels=shape_of(tensors, "model.model.3.weight")[1],
        norm=_norm_of(tensors, "model.model.0", "model.model.1.model.2"),
        dropout=assume.dropout,
    )
    config, tensors, norm_words = _settle_norm(config, tensors, assume)
    tensors = _with_biases("unet", config, tensors)
    found = f"U-Net generator of {levels} levels (unet_{2**levels}), base width {ngf}, {norm_words}"
    return ForeignNetwork("unet", config, tensors, found)


def _discriminator(tensors: State, assume: Assumptions) -> ForeignNetwork:
    assume.refuse("a discriminator", **dict.fromkeys(("dropout", "input_range", "output_range"), "is no generator"))
    pixel = "net.0.weight" in tensors
    name = "net" if pixel else "model"
    ndf, in_channels, *_ = shape_of(tensors, f"{name}.0.weight")
    numbers = (int(m[1]) for key, t in tensors.items() if t.dim() == 4 and (m := re.fullmatch(rf"{name}\.(\d+)\.weight", key)))
    convs = sorted(numbers)
    n_layers = 0 if pixel else len(convs) - 2
    if convs != [0, *range(2, 3 * max(n_layers, 1) + 3, 3)]:
        raise CheckpointError(f"convolutions at indices {convs}: expected those of a patch discriminator, 0, 2, 5, 8, ...")
    if (scores := tensors[f"{name}.{convs[-1]}.weight"].shape[0]) != 1:
        raise CheckpointError(f"its last convolution has {scores} outputs: expected a patch discriminator, which has one")
    config = DiscriminatorConfig(in_channels, ndf, n_layers, _norm_of(tensors, f"{name}.2", f"{name}.3"))
    words = _NORM_WORDS[config.norm]
    if config.norm != "batch":
        tensors = _without_statistics(tensors)
    tensors = _with_biases("patch", config, tensors)
    kind = "pixel discriminator" if pixel else f"patch discriminator of {n_layers} layers"
    return ForeignNetwork("patch", config, tensors, f"{kind}, base width {ndf}, {in_channels} input channels, {words}")


# A tensor that every network of a layout has, and what reads it.
_LAYOUTS: dict[str, Callable[[State, Assumptions], ForeignNetwork]] = {
    "model.model.0.weight": _unet,
    "model.1.weight": _resnet,
    "model.0.weight": _discriminator,
    "net.0.weight": _discriminator,
}
