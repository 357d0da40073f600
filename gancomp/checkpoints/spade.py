"""SPADE generators (GauGAN) of other projects: dense, separable, compressed, and with spectral norm to fold."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F

from gancomp.checkpoints.assume import Assumptions, ForeignNetwork, shape_of
from gancomp.checkpoints.files import State
from gancomp.errors import CheckpointError
from gancomp.models import SpadeConfig

SPADE_MARK = "head_0.norm_0.mlp_shared.0.weight"
"""A tensor that every such generator has."""

_MIDDLE = ("head_0", "G_middle_0", "G_middle_1")
# A weight under spectral norm as PyTorch has written it: before parametrizations, and with them.
_ORIGINAL = {"weight_orig": "weight_{}", "parametrizations.weight.original": "parametrizations.weight.0._{}"}
_VECTOR = re.compile(r"\.(weight_[uv]|parametrizations\.weight\.0\._[uv])$")
# By the label channels of a published generator: edges, upsampling, crop size, aspect ratio.
_CITYSCAPES = (True, "more", 512, 2.0)
_COCO = (True, "normal", 256, 1.0)
_ADE20K = (False, "normal", 256, 1.0)
_PUBLISHED = {36: _CITYSCAPES, 184: _COCO, 151: _ADE20K}


def fold_spectral_norm(tensors: State) -> State:
    """Put the weights that inference computes in place of those under spectral norm: ``W / (u . W v)``.

    Raises:
        CheckpointError: the vector of a weight is missing, or they do not fit.
    """
    folded: State = {}
    for name, tensor in tensors.items():
        if _VECTOR.search(name):
            continue
        original = next((kind for kind in _ORIGINAL if name.endswith(f".{kind}")), None)
        if original is None:
            # What was computed from a weight under spectral norm may lie beside it.
            if not any(name.endswith(".weight") and name.removesuffix("weight") + kind in tensors for kind in _ORIGINAL):
                folded[name] = tensor
            continue
        layer = name.removesuffix(f".{original}")
        u, v = (tensors.get(f"{layer}.{_ORIGINAL[original].format(which)}") for which in "uv")
        matrix = tensor.flatten(1)
        if u is None or u.shape != matrix.shape[:1] or (v is not None and v.shape != matrix.shape[1:]):
            raise CheckpointError(
                f"tensor {name} is under spectral norm, but the vectors that go with it are missing or do not fit"
            )
        if v is None:
            # The first version of PyTorch's spectral norm kept u alone.
            v = F.normalize(torch.mv(matrix.t(), u), dim=0)
        sigma = torch.dot(u, torch.mv(matrix, v))
        if not (sigma.isfinite() and sigma != 0):
            raise CheckpointError(f"tensor {name} is under spectral norm, whose divisor {float(sigma):g} is none")
        folded[f"{layer}.weight"] = tensor / sigma
    return folded


def read_spade(tensors: State, assume: Assumptions) -> ForeignNetwork:
    """Recognise a SPADE generator; see :func:`gancomp.checkpoints.convert_state`.

    Raises:
        CheckpointError: names or shapes are those of no SPADE generator.
        ConfigError: an assumption that it cannot fulfil.
    """
    assume.refuse(
        "a SPADE generator", dropout="has no dropout layers", input_range="takes labels", output_range="ends in a tanh"
    )
    spectral = any(_VECTOR.search(name) for name in tensors)
    tensors = fold_spectral_norm(tensors)
    if "fc.weight" in tensors and tensors["fc.weight"].dim() == 2:
        raise CheckpointError(
            "its first layer is linear: SPADE generators that start from an image encoder's code are not known"
        )
    stream, in_channels, *kernel = shape_of(tensors, "fc.weight")
    if kernel != [3, 3] or shape_of(tensors, "head_0.conv_0.weight")[2:] != (3, 3):
        raise CheckpointError("SPADE generators are known with 3x3 convolutions only")
    ups = sorted({int(m[1]) for name in tensors if (m := re.match(r"up_(\d+)\.", name))})
    if ups not in ([0, 1, 2, 3], [0, 1, 2, 3, 4]):
        raise CheckpointError(f"blocks up_N with N in {ups}: expected four or five, from 0")
    separable = "head_0.norm_0.mlp_gamma.conv.2.weight" in tensors
    batch = "head_0.norm_0.param_free_norm.running_mean" in tensors
    if len(ups) == 5:
        assume.refuse("a generator with a block up_4", upsampling="doubles its smallest map 7 times")
    edges, upsampling, crop_size, aspect_ratio = _PUBLISHED.get(in_channels, _COCO)
    edges = {"auto": edges, "yes": True, "no": False}[assume.edges]
    if assume.upsampling != "auto":
        upsampling = assume.upsampling
    blocks = [*_MIDDLE, *(f"up_{index}" for index in ups)]
    config = SpadeConfig(
        stream=stream,
        inner=tuple(shape_of(tensors, f"{name}.conv_0.weight")[0] for name in _MIDDLE),
        up=tuple(shape_of(tensors, f"up_{index}.conv_1.weight")[0] for index in ups),
        embed=tuple(shape_of(tensors, f"{name}.norm_0.mlp_shared.0.weight")[0] for name in blocks),
        label_nc=in_channels - edges,
        instance_edges=edges,
        out_channels=shape_of(tensors, "conv_img.weight")[0],
        upsampling="most" if len(ups) == 5 else upsampling,
        crop_size=assume.crop_size or crop_size,
        aspect_ratio=assume.aspect_ratio or aspect_ratio,
        separable=separable,
        norm="batch" if batch else "instance",
    )
    tensors, cut = _cut_statistics(tensors)
    found = [
        f"SPADE generator with {'separable' if separable else 'dense'} modulations",
        _widths(config),
        f"{config.label_nc} classes{' and edges' if edges else ''}",
        f"upsampling {config.upsampling}",
        "BatchNorm on running statistics" if batch else "InstanceNorm",
        *["spectral norm folded"][: int(spectral)],
        *["statistics of the supernet's width cut"][: int(cut)],
    ]
    return ForeignNetwork("spade", config, tensors, ", ".join(found))


def _widths(config: SpadeConfig) -> str:
    if config.channels is None:
        return f"stream width {config.stream}"
    return f"base width {config.channels[0]}" if len({*config.channels}) == 1 else f"configuration {config.config_str}"


def _cut_statistics(tensors: State) -> tuple[State, bool]:
    """Statistics of the norms as wide as what they normalise, and whether some were wider.

    Compressed generators of GAN Compression keep those of the supernet's width; what lies beyond their own is of zeros that the
    published code pads with, and has no effect.
    """
    cut, wider = dict(tensors), False
    for name, tensor in tensors.items():
        if not (m := re.fullmatch(r"(.*)\.param_free_norm\.running_(mean|var)", name)):
            continue
        gamma = f"{m[1]}.mlp_gamma"
        width = shape_of(tensors, f"{gamma}.conv.2.weight" if f"{gamma}.conv.2.weight" in tensors else f"{gamma}.weight")[0]
        if tensor.dim() == 1 and len(tensor) > width:
            cut[name], wider = tensor[:width].clone(), True
        cut.setdefault(f"{m[1]}.param_free_norm.num_batches_tracked", torch.tensor(0))
    return cut, wider
