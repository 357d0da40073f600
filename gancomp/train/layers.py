"""Which layers of a teacher guide which layers of a student: pairs of equal spatial size, their channels joined by adaptors.

Source: GAN Compression, section 3.1 (intermediate features through learned 1x1 adaptors). Which layers pair up in networks of
different architectures is a rule of this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gancomp.errors import ConfigError
from gancomp.models import Generator, seeded_generator
from gancomp.nn import SlicedConv2d, init_weights
from gancomp.train.options import DistillOptions

Shape = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True)
class LayerPair:
    """A layer of the teacher and the student's that follows it, with their channels."""

    teacher: str
    student: str
    teacher_channels: int
    student_channels: int


def pair_layers(teacher: Generator, student: Generator, options: DistillOptions) -> list[LayerPair]:
    """The layers of a distillation, in the order in which the student's run, or in that of their names in the options.

    Without names, layers that the two offer (``feature_layers``) are paired where their spatial sizes are equal, in the order
    in which they run; where one network has more of a size than the other, evenly spread ones of it take part, the last among
    them. Both networks run once, on one small image.

    Args:
        teacher: of any architecture.
        student: at its largest widths.
        options: may name the layers.

    Raises:
        ConfigError: names of no layers, or no sizes in common; the message lists the layers with their sizes.
    """
    side = math.lcm(teacher.size_multiple, student.size_multiple)
    side *= -(-32 // side)
    names_t, names_s = options.layer_names()
    shapes_t = _shapes(teacher, side, names_t or teacher.feature_layers)
    shapes_s = _shapes(student, side, names_s or student.feature_layers)
    if names_s:
        chosen = list(zip(names_t, names_s, strict=True))
        for name_t, name_s in chosen:
            if shapes_t[name_t][1:] != shapes_s[name_s][1:]:
                raise ConfigError(
                    f"teacher_layers, student_layers: for an image of {side}x{side} the teacher's {_words(shapes_t, name_t)} "
                    f"and the student's {_words(shapes_s, name_s)} differ in size; only layers of equal sizes can be paired"
                )
    else:
        chosen = _by_size(shapes_t, shapes_s)
        if not chosen:
            raise ConfigError(
                f"teacher: for an image of {side}x{side} offers features at {_words(shapes_t)}; the student at "
                f"{_words(shapes_s)}; no sizes are equal: name layers with teacher_layers and student_layers, or set "
                "lambda_distill to 0"
            )
    return [LayerPair(t, s, shapes_t[t][0], shapes_s[s][0]) for t, s in chosen]


def make_adaptors(pairs: Sequence[LayerPair], seed: int) -> nn.ModuleList:
    """One 1x1 convolution per pair, from the student's channels to the teacher's."""
    adaptors = nn.ModuleList([SlicedConv2d(pair.student_channels, pair.teacher_channels, 1) for pair in pairs])
    init_weights(adaptors, seeded_generator(seed + 2))
    return adaptors


@torch.no_grad()
def _shapes(network: Generator, side: int, layers: Sequence[str]) -> dict[str, Shape]:
    """The shapes of a network's features for one image."""
    if not layers:
        return {}
    training = network.training
    like = next(network.parameters())
    image = torch.zeros(1, network.config.in_channels, side, side, dtype=like.dtype, device=like.device)
    _, features = network.eval().forward_features(image, layers)
    network.train(training)
    found = {}
    for name, value in features.items():
        if value.dim() != 4:
            raise ConfigError(f"layer {name!r}: its output has shape {list(value.shape)}, expected images [N, C, H, W]")
        found[name] = (int(value.shape[1]), int(value.shape[2]), int(value.shape[3]))
    return found


def _by_size(teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for size in dict.fromkeys(shape[1:] for shape in student.values()):
        of_teacher = [name for name, shape in teacher.items() if shape[1:] == size]
        of_student = [name for name, shape in student.items() if shape[1:] == size]
        count = min(len(of_teacher), len(of_student))
        pairs |= dict(zip(_spread(of_student, count), _spread(of_teacher, count), strict=True))
    return [(pairs[name], name) for name in student if name in pairs]


def _spread(names: list[str], count: int) -> list[str]:
    """``count`` of the names, evenly, the last among them."""
    if count < 2:
        return names[-1:] * count
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _words(shapes: Mapping[str, Shape], *only: str) -> str:
    chosen = only or tuple(shapes)
    return ", ".join(f"{name} ({shapes[name][1]}x{shapes[name][2]})" for name in chosen) or "none"
