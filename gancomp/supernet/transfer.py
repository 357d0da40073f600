"""Start a student from its teacher: the most important channels first, so that a prefix of them is a good slice.

Importance of a channel is the L1 norm of the filter that makes it (GAN Compression, section 3.2; Li et al. 2017, "Pruning
filters for efficient ConvNets"). A dense 3x3 convolution becomes depthwise 3x3 + pointwise 1x1 by the best rank-one
approximation of every input channel's [out, 9] filter matrix (its first singular pair).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gancomp.errors import ConfigError
from gancomp.models import ResnetGenerator
from gancomp.models.resnet import layer_by_layer
from gancomp.nn import InstanceNormAct, SeparableConv2d


def importance(weight: Tensor, out_dim: int = 0) -> Tensor:
    """L1 norm of each output channel's filter; ``weight`` [out, in, k, k] (``out_dim`` 1 for transposed convolutions)."""
    return weight.abs().sum([dim for dim in range(weight.dim()) if dim != out_dim])


def separate(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Split a dense ``weight`` [O, I, 3, 3] into depthwise [I, 1, 3, 3] and pointwise [O, I, 1, 1] factors.

    For every input channel the pair is the best rank-one approximation in the Frobenius norm; the depthwise filter has
    unit norm and the pointwise column carries the singular value.
    """
    outputs, inputs, height, width = weight.shape
    matrices = weight.permute(1, 0, 2, 3).reshape(inputs, outputs, height * width)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    pointwise = (u[:, :, 0] * s[:, :1]).T.reshape(outputs, inputs, 1, 1)
    return vh[:, 0].reshape(inputs, 1, height, width), pointwise


def _top(scores: Tensor, count: int) -> Tensor:
    return torch.sort(scores, descending=True, stable=True).indices[:count]


def _assign(parameter: Tensor | None, value: Tensor | None) -> None:
    if parameter is not None:
        parameter.copy_(torch.zeros_like(parameter) if value is None else value)


def _dense_view(conv: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The convolution's [O, I, 3, 3] weight as one dense filter, and its bias."""
    if isinstance(conv, SeparableConv2d):
        depthwise, _, pointwise = conv.conv
        return pointwise.weight * depthwise.weight[:, 0], pointwise.bias
    return conv.weight, conv.bias


def _assign_conv(student: nn.Module, teacher: nn.Module, outputs: Tensor, inputs: Tensor) -> None:
    if isinstance(student, SeparableConv2d):
        depthwise, _, pointwise = student.conv
        if isinstance(teacher, SeparableConv2d):
            source, _, mix = teacher.conv
            _assign(depthwise.weight, source.weight[inputs])
            _assign(depthwise.bias, source.bias[inputs])
            _assign(pointwise.weight, mix.weight[outputs][:, inputs])
            _assign(pointwise.bias, mix.bias[outputs])
            return
        filters, mixing = separate(teacher.weight[outputs][:, inputs])
        _assign(depthwise.weight, filters)
        _assign(depthwise.bias, None)
        _assign(pointwise.weight, mixing)
        _assign(pointwise.bias, None if teacher.bias is None else teacher.bias[outputs])
    else:
        weight, bias = _dense_view(teacher)
        _assign(student.weight, weight[outputs][:, inputs])
        _assign(student.bias, None if bias is None else bias[outputs])


@torch.no_grad()
def transfer_weights(teacher: ResnetGenerator, student: ResnetGenerator, calibration: Tensor | None = None) -> None:
    """Initialise ``student`` from the most important channels of ``teacher``, in descending importance.

    Args:
        teacher: dense or separable, with at least the student's widths and the same number of blocks.
        student: changed in place; separable or dense.
        calibration: [N, C, H, W] inputs in [-1, 1]. A dense teacher's blocks have no norm between the two factors that
            replace each convolution; with calibration images the pointwise weights absorb the standard deviation that the
            student's inner InstanceNorm divides by. Without, only the direction of the filters is inherited.

    Raises:
        ConfigError: another structure, or a student wider than its teacher.
    """
    t, s = teacher.config, student.config
    fixed = ("in_channels", "out_channels", "n_blocks", "padding")
    for name in fixed:
        if getattr(t, name) != getattr(s, name):
            raise ConfigError(
                f"transfer: teacher has {name}={getattr(t, name)!r}, student {getattr(s, name)!r}; they must be equal"
            )
    widths = [(name, getattr(t, name), getattr(s, name)) for name in ("stem", "down", "stream", "up", "last")]
    widths += [(f"hidden[{i}]", a, b) for i, (a, b) in enumerate(zip(t.hidden, s.hidden, strict=True))]
    for name, have, want in widths:
        if want > have:
            raise ConfigError(f"transfer: student {name}={want} is above the teacher's {have}; initialise at random instead")

    everything = torch.arange(t.in_channels)
    n = t.n_blocks
    kept = everything
    for index, width in ((1, s.stem), (4, s.down), (7, s.stream)):
        conv = teacher.model[index]
        outputs = _top(importance(conv.weight[:, kept]), width)
        _assign_conv(student.model[index], conv, outputs, kept)
        kept = outputs
    for block_t, block_s, hidden in zip(teacher.blocks, student.blocks, s.hidden, strict=True):
        first, second = block_t.conv_block[1], block_t.conv_block[6]
        inner = _top(importance(_dense_view(first)[0][:, kept]), hidden)
        _assign_conv(block_s.conv_block[1], first, inner, kept)
        _assign_conv(block_s.conv_block[6], second, kept, inner)
    for index, width in ((10 + n, s.up), (13 + n, s.last)):
        conv = teacher.model[index]
        outputs = _top(importance(conv.weight[kept], out_dim=1), width)
        _assign(student.model[index].weight, conv.weight[kept][:, outputs])
        _assign(student.model[index].bias, None if conv.bias is None else conv.bias[outputs])
        kept = outputs
    head = teacher.model[17 + n]
    _assign_conv(student.model[17 + n], head, torch.arange(t.out_channels), kept)
    if calibration is not None and s.separable and not t.separable:
        _undo_inner_norms(student, calibration)


def _undo_inner_norms(student: ResnetGenerator, calibration: Tensor) -> None:
    """Scale each pointwise weight by the mean standard deviation that its InstanceNorm removes, block by block."""

    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        deviation = inputs[0].var(dim=(2, 3), unbiased=False).add(module.eps).sqrt().mean(0)
        following[module].weight.mul_(deviation.view(1, -1, 1, 1))

    following: dict[nn.Module, nn.Module] = {}
    handles = []
    for conv in student.modules():
        if isinstance(conv, SeparableConv2d):
            _, norm, pointwise = conv.conv
            assert isinstance(norm, InstanceNormAct)
            following[norm] = pointwise
            # The hook runs before the pointwise does, so later layers already see the corrected activations.
            handles.append(norm.register_forward_pre_hook(scale))
    try:
        with layer_by_layer(student):
            student(calibration)
    finally:
        for handle in handles:
            handle.remove()
