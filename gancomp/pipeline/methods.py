"""The kinds of training a run can be of, and the published defaults of each.

A method's defaults hold where neither the run file nor a flag says otherwise. Sources: pix2pix (Isola et al. 2017); CycleGAN
(Zhu et al. 2017); GauGAN (Park et al. 2019, section 4: Cityscapes); and their compression (GAN Compression, section 4.1 and the
released recipes).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gancomp.data import DataConfig
from gancomp.pipeline.evaluate import EvaluateOptions
from gancomp.pipeline.settings import Method, TeacherModel
from gancomp.train import DistillOptions, TrainOptions

T = TypeVar("T")

_CYCLEGAN_TRAINING = {"batch_size": 1, "gan_mode": "lsgan", "ndf": 64, "conditional": False}

_GAUGAN_TRAINING = {
    "batch_size": 16,
    "lr": 1e-4,
    "beta1": 0.0,
    "lambda_recon": 0.0,
    "ndf": 64,
    "d_layers": 4,
}

# By method: what a verb's own settings, or its groups of a kind, have in place of their defaults.
_DEFAULTS: dict[str, dict[type | None, dict[str, Any]]] = {
    "pix2pix": {},
    "cyclegan": {
        None: {"space": "channels-32"},
        DataConfig: {"unpaired": True},
        TrainOptions: _CYCLEGAN_TRAINING,
        DistillOptions: {**_CYCLEGAN_TRAINING, "lambda_recon": 10.0, "lambda_distill": 0.01, "target": "teacher"},
        EvaluateOptions: {"reference": "train+val+test"},
    },
    "gaugan": {
        DataConfig: {"labels": 35, "edges": True, "load_size": 512, "crop_size": 512, "aspect_ratio": 2.0},
        TeacherModel: {"arch": "spade", "norm": "batch"},
        TrainOptions: _GAUGAN_TRAINING,
        DistillOptions: {**_GAUGAN_TRAINING, "lambda_distill": 10.0, "init": "random"},
    },
}


def method_defaults(settings: Any, method: str) -> dict[str, Any]:
    """The defaults of a method for a verb's settings, those of groups as mappings; none for an unknown method."""
    by_kind = _DEFAULTS.get(method, {})
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(settings).items():
        if dataclasses.is_dataclass(hint):
            if hint in by_kind:
                found[name] = dict(by_kind[typing.cast(type, hint)])
        elif name in by_kind.get(None, {}):
            found[name] = by_kind[None][name]
    return found


def settings_of(settings: type[T], method: Method, **values: Any) -> T:
    """Settings of a verb by a method's defaults: ``settings_of(CompressRun, "cyclegan", out="runs/zebra", data={...})``.

    Args:
        settings: a verb's dataclass with a field ``method``.
        method: whose defaults.
        values: what differs from them; a group is a mapping of its fields, or an object of its class, taken as it is.
    """
    given = {**method_defaults(settings, method), **values}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = given.get(field.name)
        if isinstance(value, Mapping) and field.default_factory is not dataclasses.MISSING:
            preset = method_defaults(settings, method).get(field.name, {})
            given[field.name] = dataclasses.replace(field.default_factory(), **{**preset, **value})
    return settings(**{**given, "method": method})
