"""Two sets of images without pairs: every input comes with an output image drawn at random.

Layouts as of :mod:`gancomp.data.datasets`, with two folders of any names and counts; a paired layout is two sets as well. Each
side has its own held-out images. Inputs of a split are those of the input side, once per pass.
Source: CycleGAN (Zhu et al. 2017), section 3: images of two domains, no correspondence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from gancomp.data.config import SPLITS, DataConfig, Split
from gancomp.data.datasets import (
    ImageDataset,
    Pair,
    PairedDataset,
    PictureCache,
    assign,
    cut,
    data_folder,
    first_images,
    image_files,
    open_pairs,
)
from gancomp.data.images import read_image, to_tensor
from gancomp.errors import DataError

Letter = Literal["A", "B"]


class Side(ABC):
    """The images of one side of a split.

    Attributes:
        names: their names, in order.
    """

    names: list[str]

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """An image in 8 bits, in the channels that the configuration asks for."""

    @abstractmethod
    def source(self) -> str:
        """What else tells this side from others of equal names."""


class FilesSide(Side):
    """Images of a folder, decoded once while they fit half of the configuration's cache."""

    def __init__(self, config: DataConfig, files: list[Path], channels: int) -> None:
        self._files = first_images(config, files)
        self.names = [path.name for path in self._files]
        self._channels = channels
        self._cache = PictureCache[tuple[Image.Image]](config.cache_mb * 2**19)

    def source(self) -> str:
        return "".join(f"{path.stat().st_size}," for path in self._files)

    def picture(self, index: int) -> Image.Image:
        """As of the base class.

        Raises:
            DataError: the file is damaged.
        """
        kept = self._cache.get(index)
        if kept is not None:
            return kept[0]
        picture = read_image(self._files[index], self._channels)
        self._cache.put(index, (picture,))
        return picture


class PairsSide(Side):
    """One side of paired images."""

    def __init__(self, pairs: PairedDataset, letter: Letter) -> None:
        self._pairs, self._letter = pairs, letter
        self.names = pairs.names

    def source(self) -> str:
        return self._pairs.source()

    def picture(self, index: int) -> Image.Image:
        return self._pairs.pictures(index)["AB".index(self._letter)]


class UnpairedDataset(ImageDataset):
    """The images of the input side, each with one of the output side.

    In training that one is drawn evenly from all, cut and flipped on its own; for evaluation it is the one of the same number
    (modulo their count), to look at.
    """

    paired = False

    def __init__(self, config: DataConfig, split: Split, inputs: Side, targets: Side) -> None:
        super().__init__(config, split, inputs.names)
        self._inputs, self._targets = inputs, targets

    def source(self) -> str:
        """The output side, and where the images come from."""
        return "\n".join(["unpaired", self._inputs.source(), self._targets.source(), *self._targets.names, ""])

    @property
    def target_count(self) -> int:
        return len(self._targets.names)

    def load_target(self, index: int) -> Tensor:
        return to_tensor(cut(self._targets.picture(index), self.config, None))

    def load(self, index: int, rng: np.random.Generator | None = None) -> Pair:
        """As of the base class."""
        drawn = index % self.target_count if rng is None else int(rng.integers(self.target_count))
        input, target = (
            to_tensor(cut(side.picture(number), self.config, rng))
            for side, number in ((self._inputs, index), (self._targets, drawn))
        )
        return Pair(input, target, self.names[index], paired=False)


def open_unpaired(config: DataConfig, split: Split) -> UnpairedDataset:
    """Open a split of two sets of images.

    Raises:
        DataError: the folder is missing, of no known layout, or one of its sides has no images or too few to hold some out.
    """
    letters: tuple[Letter, Letter] = ("A", "B") if config.direction == "AtoB" else ("B", "A")
    sides: list[Side]
    if config.root == "synthetic" or not _has_two_folders(root := data_folder(config)):
        pairs = open_pairs(config, split)
        sides = [PairsSide(pairs, letter) for letter in letters]
    else:
        channels = (config.in_channels, config.out_channels)
        sides = [
            FilesSide(config, _side_files(config, root, letter)[split], count)
            for letter, count in zip(letters, channels, strict=True)
        ]
    return UnpairedDataset(config, split, *sides)


def _has_two_folders(root: Path) -> bool:
    return any(folder.is_dir() for letter in "AB" for folder in (root / letter, *(root / f"{name}{letter}" for name in SPLITS)))


def _side_files(config: DataConfig, root: Path, letter: Letter) -> dict[str, list[Path]]:
    """The files of the three splits of one side."""
    places = {name: (root / f"{name}{letter}", root / letter / name) for name in SPLITS}
    found: dict[str, list[Path]] = {
        name: files for name, (a, b) in places.items() if (files := image_files(a) or image_files(b))
    }
    if not found and (direct := image_files(root / letter)):
        found = {"train": direct}
    if not found:
        raise DataError(
            f"data.root={config.root!r}: no images of side {letter} found; "
            f"expected them in train{letter}/, {letter}/train/ or {letter}/"
        )
    return assign(found, config, side=f"{letter} ")
