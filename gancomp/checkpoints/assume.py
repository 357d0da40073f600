"""What the tensors of a foreign network cannot tell, and what recognising one gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gancomp.checkpoints.files import State
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import DiscriminatorConfig, ResnetConfig, SpadeConfig, UnetConfig
from gancomp.models.base import check_choice, check_range

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# A value v in [-1, 1] is scale * v + shift in the other range.
INPUT_RANGES = {"unit": (0.5, 0.5), "byte": (127.5, 127.5)}
# The fields about label maps.
LABEL_FIELDS = ("upsampling", "edges", "crop_size", "aspect_ratio")


@dataclass(frozen=True)
class Assumptions:
    """What the tensors of a foreign network cannot tell. The defaults are what the published networks are."""

    batch_stats: bool = True
    """BatchNorm by the statistics of each image, as pix2pix tests: made the equal affine InstanceNorm. Off: by running ones."""
    dropout: float = 0.0
    """Dropout rate in training, for what goes on training it; nothing drops out at inference."""
    input_range: Literal["signed", "unit", "byte"] = "signed"
    """Values it was trained on: `signed` [-1, 1], `unit` [0, 1] or `byte` [0, 255]. Folded into the first layer."""
    output_range: Literal["signed", "unit"] = "signed"
    """How it ends: `signed` in a tanh, [-1, 1], or `unit` in a sigmoid, [0, 1]. Folded into the last layer."""
    upsampling: Literal["auto", "normal", "more"] = "auto"
    """SPADE: the smallest map is doubled 5 times, or 6 (`more`); `auto`: as published for this many label channels."""
    edges: Literal["auto", "yes", "no"] = "auto"
    """SPADE: whether the last label channel marks edges of instances; `auto`: as published for this many label channels."""
    crop_size: int = 0
    """SPADE: width in pixels of the images it was trained on; 0: as published for this many label channels."""
    aspect_ratio: float = 0.0
    """SPADE: their width over their height; 0: as published for this many label channels."""

    def __post_init__(self) -> None:
        check_range("assume", "dropout", self.dropout, 0.0, 0.99)
        check_choice("assume", "input_range", self.input_range, ("signed", *INPUT_RANGES))
        check_choice("assume", "output_range", self.output_range, ("signed", "unit"))
        check_choice("assume", "upsampling", self.upsampling, ("auto", "normal", "more"))
        check_choice("assume", "edges", self.edges, ("auto", "yes", "no"))
        check_range("assume", "crop_size", self.crop_size, 0, 65536)
        check_range("assume", "aspect_ratio", self.aspect_ratio, 0.0, 100.0)

    def refuse(self, owner: str, **reasons: str) -> None:
        """Raise a ConfigError where a field named in ``reasons`` is not at its default."""
        for name, reason in reasons.items():
            if (value := getattr(self, name)) != getattr(PUBLISHED, name):
                raise ConfigError(f"{name}={value!r}: {owner} {reason}")


PUBLISHED = Assumptions()


@dataclass(frozen=True)
class ForeignNetwork:
    """A recognised network: ``tensors`` carry this project's names, ``found`` says in words what it is."""

    arch: str
    config: ResnetConfig | UnetConfig | SpadeConfig | DiscriminatorConfig
    tensors: State
    found: str


def shape_of(tensors: State, name: str) -> tuple[int, ...]:
    """The shape of a convolution's weight.

    Raises:
        CheckpointError: it is missing, or not of four dimensions.
    """
    if name not in tensors:
        raise CheckpointError(f"tensor {name} is missing from the network")
    shape = tuple(tensors[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"tensor {name} has shape {list(shape)}: expected 4 dimensions")
    return shape
