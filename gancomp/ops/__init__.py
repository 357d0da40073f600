"""Differentiable operators with a slow reference and fast native backends.

``GANCOMP_BACKEND`` chooses for calls that say ``backend="auto"``; :func:`explain` tells what runs and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gancomp.errors import ConfigError
from gancomp.ops import depthwise, norm, resblock, sliced_conv, spade, winograd_conv
from gancomp.ops.depthwise import reflect_pad_depthwise_conv3x3
from gancomp.ops.norm import instance_norm_act
from gancomp.ops.resblock import separable_resblock
from gancomp.ops.sliced_conv import sliced_conv2d, sliced_conv_transpose2d
from gancomp.ops.spade import spade_modulate
from gancomp.ops.winograd_conv import winograd_conv2d

_EXPLAIN: dict[str, Callable[..., str]] = {
    "instance_norm_act": norm.explain,
    "reflect_pad_depthwise_conv3x3": depthwise.explain,
    "sliced_conv2d": sliced_conv.explain_conv2d,
    "sliced_conv_transpose2d": sliced_conv.explain_transpose,
    "separable_resblock": resblock.explain,
    "spade_modulate": spade.explain,
    "winograd_conv2d": winograd_conv.explain,
}


def explain(op: str, *args: Any, **kwargs: Any) -> str:
    """Say which backend runs ``gancomp.ops.OP(*args, **kwargs)`` and why the others do not.

    Raises:
        ConfigError: unknown op.
    """
    if op not in _EXPLAIN:
        raise ConfigError(f"op={op!r}: expected one of {', '.join(_EXPLAIN)}")
    return _EXPLAIN[op](*args, **kwargs)


__all__ = [
    "explain",
    "instance_norm_act",
    "reflect_pad_depthwise_conv3x3",
    "separable_resblock",
    "sliced_conv2d",
    "sliced_conv_transpose2d",
    "spade_modulate",
    "winograd_conv2d",
]
