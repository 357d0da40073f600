"""Small folders of pairs in every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Names = Iterable[str]
SIZE = 16


def side(name: str, letter: str, size: int = SIZE) -> np.ndarray:
    """The pixels of one side of a pair, told by its name alone."""
    seed = [*Path(name).stem.encode(), ord(letter)]
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels to an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pairs(folder: Path, names: Names) -> None:
    """Side-by-side images A|B."""
    for name in names:
        write(folder / name, np.hstack([side(name, "A"), side(name, "B")]))


def write_folders(a: Path, b: Path, names: Names) -> None:
    """Two folders of equal names."""
    for name in names:
        write(a / name, side(name, "A"))
        write(b / name, side(name, "B"))


# How a split is laid down in a root folder.
LAYOUTS: dict[str, Callable[[Path, str, Names], None]] = {
    "side by side": lambda root, split, names: write_pairs(root / split, names),
    "trainA, trainB": lambda root, split, names: write_folders(root / f"{split}A", root / f"{split}B", names),
    "A/train, B/train": lambda root, split, names: write_folders(root / "A" / split, root / "B" / split, names),
}
FLAT_LAYOUTS: dict[str, Callable[[Path, Names], None]] = {
    "side by side": write_pairs,
    "A, B": lambda root, names: write_folders(root / "A", root / "B", names),
}
