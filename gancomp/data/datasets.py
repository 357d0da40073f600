"""Paired data sets: folders of images in the layouts of pix2pix, and the embedded synthetic set.

Layouts: ``ROOT/{train,val,test}/`` of side-by-side images A|B; ``ROOT/trainA`` and ``ROOT/trainB`` (likewise val, test) or
``ROOT/A/train`` and ``ROOT/B/train`` with equal file names; or side-by-side images (or ``ROOT/A`` and ``ROOT/B``) directly.

"val" chooses checkpoints and configurations, "test" is only reported. With one held-out folder, that is the test split and a
tenth of the training images (at most 200) is held out for "val"; with none, both are held out.
"""

from __future__ import annotations

import hashlib
import random
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gancomp.data.config import DataConfig, Split
from gancomp.data.images import EXTENSIONS, read_image, to_tensor
from gancomp.errors import ConfigError, DataError


@dataclass(frozen=True)
class Pair:
    """One input [C, H, W] and its target [C', H, W], float32 in [-1, 1]."""

    input: Tensor
    target: Tensor
    name: str


@dataclass(frozen=True)
class Batch:
    """Inputs [N, C, H, W], targets [N, C', H, W] in [-1, 1], and the names of the pairs."""

    input: Tensor
    target: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(self.input.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.names)


def stack_pairs(pairs: list[Pair]) -> Batch:
    """Stack pairs of one size into a batch."""
    return Batch(
        torch.stack([pair.input for pair in pairs]),
        torch.stack([pair.target for pair in pairs]),
        tuple(pair.name for pair in pairs),
    )


class PairedDataset(ABC):
    """A fixed list of pairs.

    Attributes:
        config: sizes, channels, direction.
        split: which split this is.
        names: the pairs' names, in order.
    """

    def __init__(self, config: DataConfig, split: Split, names: list[str]) -> None:
        self.config, self.split = config, split
        self.names = names[: config.max_images] if config.max_images else names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """A hash of what the pairs are: names, sizes, direction (not of pixels)."""
        c = self.config
        key = [self.split, c.direction, str(c.crop_size), str(c.in_channels), str(c.out_channels), self.source(), *self.names]
        return hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]

    def source(self) -> str:
        """What else tells this set from others of equal names."""
        return ""

    @abstractmethod
    def pictures(self, index: int) -> tuple[Image.Image, Image.Image]:
        """A and B of a pair as 8-bit pictures of one size, in the channels the configuration asks for."""

    def load(self, index: int, rng: np.random.Generator | None = None) -> Pair:
        """One pair; with ``rng`` augmented for training, without resized to ``crop_size`` for evaluation.

        Training: both sides are resized to ``load_size`` (bicubic), cut at one random place and flipped together.

        Raises:
            DataError: a file is damaged or does not fit; the message names it.
        """
        a, b = self.pictures(index)
        c = self.config
        size = c.crop_size if rng is None else c.load_size
        a, b = (p if p.size == (size, size) else p.resize((size, size), Image.Resampling.BICUBIC) for p in (a, b))
        if rng is not None:
            x, y = (int(v) for v in rng.integers(0, c.load_size - c.crop_size + 1, 2))
            box = (x, y, x + c.crop_size, y + c.crop_size)
            a, b = a.crop(box), b.crop(box)
            if c.flip and rng.random() < 0.5:
                a, b = (p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in (a, b))
        source, target = (a, b) if c.direction == "AtoB" else (b, a)
        return Pair(to_tensor(source), to_tensor(target), self.names[index])


class PictureCache:
    """Decoded pictures kept in memory up to a number of bytes; the first ones in stay."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._pictures: dict[int, tuple[Image.Image, Image.Image]] = {}

    def get(self, index: int) -> tuple[Image.Image, Image.Image] | None:
        """The pair of an index, if it is kept."""
        return self._pictures.get(index)

    def put(self, index: int, pair: tuple[Image.Image, Image.Image]) -> None:
        """Keep a pair if there is room."""
        size = sum(p.width * p.height * len(p.getbands()) for p in pair)
        with self._lock:
            if index not in self._pictures and self._bytes + size <= self._limit:
                self._pictures[index] = pair
                self._bytes += size


class FolderDataset(PairedDataset):
    """Pairs from files: one side-by-side image each, or two files of equal names."""

    def __init__(self, config: DataConfig, split: Split, files: list[tuple[Path, Path | None]]) -> None:
        super().__init__(config, split, [a.name for a, _ in files])
        self._files = files[: len(self.names)]
        self._cache = PictureCache(config.cache_mb * 2**20)

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
        if min(a.size) < c.crop_size:
            raise DataError(
                f"{path_a}: a side is {a.width}x{a.height}, smaller than data.crop_size={c.crop_size}; "
                "use a smaller crop_size (and load_size)"
            )
        self._cache.put(index, (a, b))
        return a, b


def open_dataset(config: DataConfig, split: Split) -> PairedDataset:
    """Open a split of a data set.

    Raises:
        DataError: the folder is missing, empty, of no known layout, or its two sides do not match.
        ConfigError: the split's name is wrong.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split={split!r}: expected train, val or test")
    if config.root == "synthetic":
        from gancomp.data.synthetic import SyntheticDataset

        return SyntheticDataset(config, split)
    root = Path(config.root)
    if not root.exists():
        raise DataError(f"data.root={config.root!r}: no such folder")
    if not root.is_dir():
        raise DataError(f"data.root={config.root!r}: is a file, expected a folder of images")
    found = {name: files for name in ("train", "val", "test") if (files := _split_files(root, name))}
    if not found:
        direct = _side_by_side(root) or _two_folders(root / "A", root / "B")
        if not direct:
            raise DataError(
                f"data.root={config.root!r}: no images found; "
                "expected train/, trainA/ + trainB/, A/train/ + B/train/, or images in it"
            )
        found = {"train": direct}
    if "train" not in found:
        raise DataError(f"data.root={config.root!r}: has {', '.join(found)} but no training images")
    return FolderDataset(config, split, _assign(found, config)[split])


Files = list[tuple[Path, Path | None]]


def _assign(found: dict[str, Files], config: DataConfig) -> dict[str, Files]:
    """The three splits, holding out of the training files what has no folder of its own."""
    train = found["train"]
    held = [name for name in ("val", "test") if name in found]
    if len(held) == 2:
        return found
    missing = ["val"] if held else ["val", "test"]
    count = min(200, max(1, len(train) // 10))
    if len(train) <= count * len(missing):
        raise DataError(
            f"data.root={config.root!r}: has {len(train)} training images, too few to hold out {' and '.join(missing)} images"
        )
    order = list(range(len(train)))
    random.Random(f"split/{config.seed}").shuffle(order)
    splits: dict[str, Files] = {"test": found[held[0]]} if held else {}
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


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]
    return sorted((path for path in files if not path.is_dir()), key=_natural)


def _natural(path: Path) -> tuple[int, int, str]:
    """Order 2.jpg before 10.jpg, and names of digits before others."""
    return (0, int(path.stem), path.name) if path.stem.isdecimal() else (1, 0, path.name)


def _side_by_side(folder: Path) -> Files:
    return [(path, None) for path in _images(folder)]


def _two_folders(a: Path, b: Path) -> Files:
    files_a, files_b = _images(a), _images(b)
    if not files_a and not files_b:
        return []
    stems_a, stems_b = ({path.stem: path for path in files} for files in (files_a, files_b))
    for files, stems, folder in ((files_a, stems_a, a), (files_b, stems_b, b)):
        if len(stems) < len(files):
            raise DataError(f"{folder}: two images share a name without ending; pairs are matched by that name")
    if only := sorted(stems_a.keys() ^ stems_b.keys()):
        raise DataError(
            f"{a} has {len(files_a)} images, {b} has {len(files_b)}; "
            f"{len(only)} have no partner of equal name, first {only[0]!r}"
        )
    return [(path, stems_b[path.stem]) for path in files_a]
