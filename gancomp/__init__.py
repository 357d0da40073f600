"""gancomp compresses conditional GANs: saved multiply-accumulates become saved milliseconds.

Importing it loads nothing but the errors: what needs PyTorch does so when it is first used, and the engine never.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gancomp.errors import BackendError, CheckpointError, ConfigError, DataError, GancompError, RunError
from gancomp.version import __version__

if TYPE_CHECKING:
    from gancomp.checkpoints import Assumptions, load_generator, load_network, load_supernet
    from gancomp.engine import Engine
    from gancomp.models import (
        ChannelsConfig,
        DiscriminatorConfig,
        MultiscaleConfig,
        MultiscaleDiscriminator,
        PatchDiscriminator,
        ResnetConfig,
        ResnetGenerator,
        SlicedGenerator,
        SpadeConfig,
        SpadeGenerator,
        UnetConfig,
        UnetGenerator,
        register_generator,
    )
    from gancomp.ops import explain
    from gancomp.supernet import SearchSpace, Supernet, transfer_weights

__all__ = [
    "Assumptions",
    "BackendError",
    "ChannelsConfig",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiscriminatorConfig",
    "Engine",
    "GancompError",
    "MultiscaleConfig",
    "MultiscaleDiscriminator",
    "PatchDiscriminator",
    "ResnetConfig",
    "ResnetGenerator",
    "RunError",
    "SearchSpace",
    "SlicedGenerator",
    "SpadeConfig",
    "SpadeGenerator",
    "Supernet",
    "UnetConfig",
    "UnetGenerator",
    "__version__",
    "explain",
    "load_generator",
    "load_network",
    "load_supernet",
    "register_generator",
    "transfer_weights",
]

_MODULE_OF = {
    "Assumptions": "checkpoints",
    "ChannelsConfig": "models",
    "DiscriminatorConfig": "models",
    "Engine": "engine",
    "MultiscaleConfig": "models",
    "MultiscaleDiscriminator": "models",
    "PatchDiscriminator": "models",
    "ResnetConfig": "models",
    "ResnetGenerator": "models",
    "SearchSpace": "supernet",
    "SlicedGenerator": "models",
    "SpadeConfig": "models",
    "SpadeGenerator": "models",
    "Supernet": "supernet",
    "UnetConfig": "models",
    "UnetGenerator": "models",
    "explain": "ops",
    "load_generator": "checkpoints",
    "load_network": "checkpoints",
    "load_supernet": "checkpoints",
    "register_generator": "models",
    "transfer_weights": "supernet",
}
_MODULES = frozenset({"checkpoints", "engine", "models", "nn", "ops", "supernet"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
