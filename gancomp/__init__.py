"""gancomp compresses conditional GANs: saved multiply-accumulates become saved milliseconds."""

from gancomp.checkpoints import load_generator, load_network, load_supernet
from gancomp.errors import BackendError, CheckpointError, ConfigError, DataError, GancompError, RunError
from gancomp.models import (
    DiscriminatorConfig,
    PatchDiscriminator,
    ResnetConfig,
    ResnetGenerator,
    UnetConfig,
    UnetGenerator,
)
from gancomp.ops import explain
from gancomp.supernet import SearchSpace, Supernet, transfer_weights
from gancomp.version import __version__

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiscriminatorConfig",
    "GancompError",
    "PatchDiscriminator",
    "ResnetConfig",
    "ResnetGenerator",
    "RunError",
    "SearchSpace",
    "Supernet",
    "UnetConfig",
    "UnetGenerator",
    "__version__",
    "explain",
    "load_generator",
    "load_network",
    "load_supernet",
    "transfer_weights",
]
