"""Which images a run uses, and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gancomp.errors import ConfigError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class DataConfig:
    """Images: inputs and the outputs they should become, or an input and an output side without pairs."""

    root: str = "synthetic"
    """Folder of the images, or `synthetic` for the embedded edges->shapes set."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """Which side is the input: A is the left half (or the A folder), B the right."""
    unpaired: bool = False
    """A and B belong together as two sets only: counts and names are free. A paired layout can be used so, too."""
    load_size: int = 286
    """Side (of label maps: width) in pixels to which images are resized before a random crop (training)."""
    crop_size: int = 256
    """Side (of label maps: width) in pixels of the images that the networks see."""
    flip: bool = True
    """Random horizontal flips (training)."""
    in_channels: int = 3
    """1 (grey) or 3 (RGB)."""
    out_channels: int = 3
    """1 (grey) or 3 (RGB)."""
    labels: int = 0
    """Classes of label maps, which then are the input (GauGAN): integers 0 to `labels - 1`; 0 where the input is images."""
    edges: bool = False
    """Whether edges of instances are an input beside the label maps; needs maps of instances."""
    aspect_ratio: float = 1.0
    """Width over height of what is cut out of label maps and their photographs."""
    dont_care: int = -1
    """Label of pixels without a class in the files, such as 255; it becomes class `labels - 1`."""
    palette: str = ""
    """Text file of colours, a line `R G B name` for every class, for label maps in colours."""
    max_images: int = 0
    """Use at most this many images of every split (unpaired: of each side); 0 uses all."""
    synthetic_train: int = 512
    """Training pairs of the embedded set."""
    synthetic_test: int = 64
    """Validation pairs of the embedded set, and as many test pairs."""
    cache_mb: int = 2048
    """Memory in MB for decoded images; what does not fit is decoded again every time."""
    seed: int = 233
    """Seed of held-out splits and of the embedded set."""

    @property
    def input_channels(self) -> int:
        """Channels of what a generator takes: of the images, or of the one-hot label maps with their edges."""
        return self.labels + self.edges if self.labels else self.in_channels

    def size(self, width: int) -> tuple[int, int]:
        """Width and height of images of a width."""
        return width, round(width / self.aspect_ratio)

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the images that the networks see."""
        width, height = self.size(self.crop_size)
        return height, width

    def reversed(self) -> DataConfig:
        """The same images with input and output exchanged."""
        return replace(
            self,
            direction="BtoA" if self.direction == "AtoB" else "AtoB",
            in_channels=self.out_channels,
            out_channels=self.in_channels,
        )

    def __post_init__(self) -> None:
        if self.direction not in ("AtoB", "BtoA"):
            raise ConfigError(f"data.direction={self.direction!r}: expected AtoB or BtoA")
        if self.crop_size < 8 or self.crop_size % 4:
            raise ConfigError(f"data.crop_size={self.crop_size}: expected a multiple of 4, at least 8")
        if self.load_size < self.crop_size:
            raise ConfigError(f"data.load_size={self.load_size}: expected at least crop_size={self.crop_size}")
        if not self.labels and (self.edges or self.dont_care >= 0 or self.palette or self.aspect_ratio != 1):
            raise ConfigError(
                "data.edges, dont_care, palette and aspect_ratio are about label maps; say how many classes by data.labels"
            )
        if self.labels and (self.unpaired or self.direction == "BtoA"):
            raise ConfigError(
                f"data.labels={self.labels}: label maps are the input of their photographs; unpaired={self.unpaired} and "
                f"direction={self.direction!r} do not go with them"
            )
        if not 0.1 <= self.aspect_ratio <= 10:
            raise ConfigError(f"data.aspect_ratio={self.aspect_ratio}: expected a number between 0.1 and 10")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) not in (1, 3):
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected 1 or 3")
        for name, low in (
            ("max_images", 0),
            ("labels", 0),
            ("dont_care", -1),
            ("synthetic_train", 1),
            ("synthetic_test", 1),
            ("cache_mb", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected at least {low}")
