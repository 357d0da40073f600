"""Data sets: folders of images in the layouts of pix2pix and CycleGAN, and the embedded synthetic set.

Layouts: ``ROOT/{train,val,test}/`` of side-by-side images A|B; ``ROOT/trainA`` and ``ROOT/trainB`` (likewise val, test) or
``ROOT/A/train`` and ``ROOT/B/train``; or side-by-side images (or ``ROOT/A`` and ``ROOT/B``) directly. In two folders pairs have
equal file names; unpaired (:mod:`gancomp.data.unpaired`), names and counts are free.

"val" chooses checkpoints and configurations, "test" is only reported. With one held-out folder, that is the test split and a
tenth of the training images (at most 200) is held out for "val"; with none, both are held out.
"""

from __future__ import annotations

import copy
import hashlib
import random
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gancomp.data.config import DataConfig, Split
from gancomp.data.images import EXTENSIONS, read_image, to_tensor
from gancomp.errors import ConfigError, DataError

ItemT = TypeVar("ItemT")
PicturesT = TypeVar("PicturesT", bound=tuple[Image.Image, ...])


@dataclass(frozen=True)
class Pair:
    """One input [C, H, W] and its target [C', H, W], float32 in [-1, 1].

    Where ``paired`` is False the target is some image of the output side, not what the input should become.
    """

    input: Tensor
    target: Tensor
    name: str
    paired: bool = True


@dataclass(frozen=True)
class Batch:
    """Inputs [N, C, H, W], targets [N, C', H, W] in [-1, 1], and the names of the inputs; ``paired`` as of :class:`Pair`."""

    input: Tensor
    target: Tensor
    names: tuple[str, ...]
    paired: bool = True

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        input, target = (images.to(device, non_blocking=True) for images in (self.input, self.target))
        return Batch(input, target, self.names, self.paired)


def stack_pairs(pairs: list[Pair]) -> Batch:
    """Stack pairs of one size into a batch."""
    return Batch(
        torch.stack([pair.input for pair in pairs]),
        torch.stack([pair.target for pair in pairs]),
        tuple(pair.name for pair in pairs),
        all(pair.paired for pair in pairs),
    )


class ImageDataset(ABC):
    """A fixed list of inputs, each with a target.

    Attributes:
        config: sizes, channels, direction.
        split: which split this is.
        names: the inputs' names, in order.
        paired: whether a target is what its input should become, or some image of the output side.
    """

    paired: bool

    def __init__(self, config: DataConfig, split: Split, names: list[str]) -> None:
        self.config, self.split = config, split
        self.names = first_images(config, names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """A hash of what the images are: names, sizes, direction (not of pixels)."""
        c = self.config
        key = [self.split, c.direction, str(c.crop_size), str(c.in_channels), str(c.out_channels), self.source(), *self.names]
        return hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]

    def source(self) -> str:
        """What else tells this set from others of equal names."""
        return ""

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator | None = None) -> Pair:
        """One input and its target; with ``rng`` augmented for training, without resized to ``crop_size`` for evaluation.

        Raises:
            DataError: a file is damaged or does not fit; the message names it.
        """

    @property
    @abstractmethod
    def target_count(self) -> int:
        """Number of images of the output side."""

    @abstractmethod
    def load_target(self, index: int) -> Tensor:
        """An image of the output side [C', H, W], resized to ``crop_size``."""


def first_images(config: DataConfig, items: list[ItemT]) -> list[ItemT]:
    """The images that are used of a split's: the first ``max_images``, or all."""
    return items[: config.max_images] if config.max_images else items


def cut(
    picture: Image.Image,
    config: DataConfig,
    rng: np.random.Generator | None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """A picture of any size as the networks see it: a random part, perhaps flipped, for training; the whole for evaluation.

    It is resized to the size of ``load_size`` (for evaluation ``crop_size``). Equal ``rng`` cut equally.
    """
    whole, (height, width) = config.size(config.crop_size if rng is None else config.load_size), config.crop
    if picture.size != whole:
        picture = picture.resize(whole, resample)
    if rng is None:
        return picture
    across, down = whole[0] - width + 1, whole[1] - height + 1
    # One draw where one will do: it gives other numbers than two.
    x, y = rng.integers(0, across, 2) if across == down else (rng.integers(0, across), rng.integers(0, down))
    x, y = int(x), int(y)
    picture = picture.crop((x, y, x + width, y + height))
    flip = config.flip and rng.random() < 0.5
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def check_size(picture: Image.Image, path: Path, config: DataConfig) -> None:
    """Raise a DataError if a picture is smaller than what is cut out of it."""
    height, width = config.crop
    if picture.width < width or picture.height < height:
        raise DataError(
            f"{path}: a side is {picture.width}x{picture.height}, smaller than data.crop_size={config.crop_size}; "
            "use a smaller crop_size (and load_size)"
        )


class PairedDataset(ImageDataset):
    """A fixed list of pairs."""

    paired = True

    @property
    def target_count(self) -> int:
        return len(self)

    def load_target(self, index: int) -> Tensor:
        return self.load(index).target

    @abstractmethod
    def pictures(self, index: int) -> tuple[Image.Image, Image.Image]:
        """A and B of a pair as 8-bit pictures of one size, in the channels the configuration asks for."""

    def load(self, index: int, rng: np.random.Generator | None = None) -> Pair:
        """As of the base class; both sides of a pair are cut at one place and flipped together."""
        pictures = self.pictures(index)
        # The same random numbers for both.
        draws = (None, None) if rng is None else (copy.deepcopy(rng), rng)
        a, b = (cut(picture, self.config, draw) for picture, draw in zip(pictures, draws, strict=True))
        source, target = (a, b) if self.config.direction == "AtoB" else (b, a)
        return Pair(to_tensor(source), to_tensor(target), self.names[index])


class PictureCache(Generic[PicturesT]):
    """Decoded pictures kept in memory up to a number of bytes; the first ones in stay."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._pictures: dict[int, PicturesT] = {}

    def get(self, index: int) -> PicturesT | None:
        """The pictures of an index, if they are kept."""
        return self._pictures.get(index)

    def put(self, index: int, pictures: PicturesT) -> None:
        """Keep pictures if there is room."""
        size = sum(p.width * p.height * len(p.getbands()) for p in pictures)
        with self._lock:
            if index not in self._pictures and self._bytes + size <= self._limit:
                self._pictures[index] = pictures
                self._bytes += size


class FolderDataset(PairedDataset):
    """Pairs from files: one side-by-side image each, or two files of equal names."""

    def __init__(self, config: DataConfig, split: Split, files: list[tuple[Path, Path | None]]) -> None:
        super().__init__(config, split, [a.name for a, _ in files])
        self._files = files[: len(self.names)]
        self._cache = PictureCache[tuple[Image.Image, Image.Image]](config.cache_mb * 2**20)

    def source(self) -> str:
        return "".join(f"{path.stat().st_size}," for pair in self._files for path in pair if path is not None)

    def pictures(self, index: int) -> tuple[Image.Image, Image.Image]:
        """A and B of a pair; decoded once while they fit the cache."""
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        c = self.config
        channels = (c.in_channels, c.out_channels) if c.direction == "AtoB" else (c.out_channels, c.in_channels)
        path_a, path_b = self._files[index]
        if path_b is None:
            both = read_image(path_a, 3)
            if both.width % 2:
                raise DataError(f"{path_a}: is {both.width} pixels wide; a side-by-side pair needs an even width")
            half = both.width // 2
            sides = [both.crop((0, 0, half, both.height)), both.crop((half, 0, both.width, both.height))]
            a, b = (side.convert("RGB" if n == 3 else "L") for side, n in zip(sides, channels, strict=True))
        else:
            a, b = read_image(path_a, channels[0]), read_image(path_b, channels[1])
            if a.size != b.size:
                raise DataError(f"{path_a}: is {a.width}x{a.height}, its partner {path_b} is {b.width}x{b.height}")
        check_size(a, path_a, c)
        self._cache.put(index, (a, b))
        return a, b


def open_dataset(config: DataConfig, split: Split) -> ImageDataset:
    """Open a split of a data set.

    Raises:
        DataError: the folder is missing, empty, of no known layout, or its two sides do not match.
        ConfigError: the split's name is wrong.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split={split!r}: expected train, val or test")
    if config.labels:
        from gancomp.data.labels import open_labels

        return open_labels(config, split)
    if config.unpaired:
        from gancomp.data.unpaired import open_unpaired

        return open_unpaired(config, split)
    return open_pairs(config, split)


def open_pairs(config: DataConfig, split: Split) -> PairedDataset:
    """Open a split of a paired data set; errors as of :func:`open_dataset`."""
    if config.root == "synthetic":
        from gancomp.data.synthetic import SyntheticDataset

        return SyntheticDataset(config, split)
    root = data_folder(config)
    found = {name: files for name in ("train", "val", "test") if (files := _split_files(root, name))}
    if not found:
        direct = _side_by_side(root) or _two_folders(root / "A", root / "B")
        if not direct:
            raise DataError(
                f"data.root={config.root!r}: no images found; "
                "expected train/, trainA/ + trainB/, A/train/ + B/train/, or images in it"
            )
        found = {"train": direct}
    return FolderDataset(config, split, assign(found, config)[split])


def data_folder(config: DataConfig) -> Path:
    """The folder of a data set.

    Raises:
        DataError: it is missing, or a file.
    """
    root = Path(config.root)
    if not root.exists():
        raise DataError(f"data.root={config.root!r}: no such folder")
    if not root.is_dir():
        raise DataError(f"data.root={config.root!r}: is a file, expected a folder of images")
    return root


Files = list[tuple[Path, Path | None]]


def assign(found: dict[str, list[ItemT]], config: DataConfig, side: str = "") -> dict[str, list[ItemT]]:
    """The three splits, holding out of the training files what has no folder of its own.

    Args:
        found: the files of the splits that have some.
        config: names the folder in errors, and seeds what is held out.
        side: a word for errors: of which side of an unpaired set these are the files.

    Raises:
        DataError: no training images, or too few to hold some out.
    """
    if "train" not in found:
        raise DataError(f"data.root={config.root!r}: has {side}{', '.join(found)} but no {side}training images")
    train = found["train"]
    held = [name for name in ("val", "test") if name in found]
    if len(held) == 2:
        return found
    missing = ["val"] if held else ["val", "test"]
    count = min(200, max(1, len(train) // 10))
    if len(train) <= count * len(missing):
        raise DataError(
            f"data.root={config.root!r}: has {len(train)} {side}training images, "
            f"too few to hold out {' and '.join(missing)} images"
        )
    order = list(range(len(train)))
    random.Random(f"split/{config.seed}").shuffle(order)
    splits: dict[str, list[ItemT]] = {"test": found[held[0]]} if held else {}
    for position, name in enumerate(missing):
        splits[name] = [train[i] for i in sorted(order[position * count : (position + 1) * count])]
    splits["train"] = [train[i] for i in sorted(order[len(missing) * count :])]
    return splits


def _split_files(root: Path, name: str) -> Files:
    return (
        _side_by_side(root / name)
        or _two_folders(root / f"{name}A", root / f"{name}B")
        or _two_folders(root / "A" / name, root / "B" / name)
    )


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, in their natural order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]
    return sorted((path for path in files if not path.is_dir()), key=_natural)


def _natural(path: Path) -> tuple[int, int, str]:
    """Order 2.jpg before 10.jpg, and names of digits before others."""
    return (0, int(path.stem), path.name) if path.stem.isdecimal() else (1, 0, path.name)


def _side_by_side(folder: Path) -> Files:
    return [(path, None) for path in image_files(folder)]


def _two_folders(a: Path, b: Path) -> Files:
    files_a, files_b = image_files(a), image_files(b)
    if not files_a and not files_b:
        return []
    stems_a, stems_b = ({path.stem: path for path in files} for files in (files_a, files_b))
    for files, stems, folder in ((files_a, stems_a, a), (files_b, stems_b, b)):
        if len(stems) < len(files):
            raise DataError(f"{folder}: two images share a name without ending; pairs are matched by that name")
    if only := sorted(stems_a.keys() ^ stems_b.keys()):
        raise DataError(
            f"{a} has {len(files_a)} images, {b} has {len(files_b)}; "
            f"{len(only)} have no partner of equal name, first {only[0]!r}; "
            "images without pairs need data.unpaired (or --model cyclegan)"
        )
    return [(path, stems_b[path.stem]) for path in files_a]
