"""Label maps with the photographs they are of: what GauGAN learns from.

Layouts: photographs in ``ROOT/{train,val,test}`` or ``ROOT/{train,val,test}_img``, label maps of equal names in
``ROOT/{train,val,test}_labels`` (or ``_label``), and maps of instances, where edges are asked for, in ``..._inst``. Label maps
are pictures of class numbers (grey, or with a palette), or of colours whose classes ``data.palette`` has.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gancomp.data.config import SPLITS, DataConfig, Split
from gancomp.data.datasets import (
    ImageDataset,
    Pair,
    PictureCache,
    assign,
    check_size,
    cut,
    data_folder,
    image_files,
)
from gancomp.data.images import MAX_PIXELS, read_image, to_tensor
from gancomp.errors import ConfigError, DataError, first_line
from gancomp.nn import instance_edges

Files = tuple[Path, Path, Path | None]


class LabelDataset(ImageDataset):
    """Label maps, and the photographs that should become of them.

    An input is a map of integers (uint8, or int32 above 256 classes) [1, H, W], or [2, H, W] with edges of instances behind.
    """

    paired = True

    def __init__(self, config: DataConfig, split: Split, files: list[Files]) -> None:
        super().__init__(config, split, [label.name for label, _, _ in files])
        self._files = files[: len(self.names)]
        self._palette = read_palette(Path(config.palette), config.labels) if config.palette else None
        self._cache = PictureCache[tuple[Image.Image, ...]](config.cache_mb * 2**20)

    def source(self) -> str:
        c = self.config
        sizes = "".join(f"{path.stat().st_size}," for files in self._files for path in files if path is not None)
        return f"{c.labels} labels, {c.edges}, {c.aspect_ratio}, {c.dont_care}\n{sizes}"

    @property
    def target_count(self) -> int:
        return len(self)

    def load_target(self, index: int) -> Tensor:
        return self.load(index).target

    def load(self, index: int, rng: np.random.Generator | None = None) -> Pair:
        """As of the base class; all maps of a photograph are cut at one place, and label maps are resized without mixing."""
        photograph, *maps = self._pictures(index)
        state = None if rng is None else rng.bit_generator.state

        def one(picture: Image.Image, resample: Image.Resampling) -> Image.Image:
            # The same random numbers for all.
            if rng is not None and state is not None:
                rng.bit_generator.state = state
            return cut(picture, self.config, rng, resample)

        target = to_tensor(one(photograph, Image.Resampling.BICUBIC))
        layers = [torch.from_numpy(np.array(one(picture, Image.Resampling.NEAREST)))[None] for picture in maps]
        if self.config.edges:
            layers[1] = instance_edges(layers[1][None])[0]
        dtype = torch.uint8 if self.config.labels <= 256 else torch.int32
        return Pair(torch.cat([layer.to(dtype) for layer in layers]), target, self.names[index])

    def _pictures(self, index: int) -> tuple[Image.Image, ...]:
        """The photograph, the label map and, with edges, the map of instances, of one size."""
        kept = self._cache.get(index)
        if kept is not None:
            return kept
        label_path, photograph_path, instance_path = self._files[index]
        photograph = read_image(photograph_path, self.config.out_channels)
        check_size(photograph, photograph_path, self.config)
        pictures = [photograph, self._labels(label_path)]
        if instance_path is not None:
            pictures.append(_as_picture(_read_numbers(instance_path)))
        for path, picture in zip((label_path, instance_path), pictures[1:], strict=False):
            if picture.size != photograph.size:
                raise DataError(
                    f"{path}: is {picture.width}x{picture.height}, its photograph {photograph_path} is "
                    f"{photograph.width}x{photograph.height}"
                )
        self._cache.put(index, tuple(pictures))
        return tuple(pictures)

    def _labels(self, path: Path) -> Image.Image:
        c = self.config
        numbers = _read_numbers(path) if self._palette is None else _by_colour(path, self._palette)
        if c.dont_care >= 0:
            numbers = np.where(numbers == c.dont_care, c.labels - 1, numbers)
        if int(numbers.max()) >= c.labels or int(numbers.min()) < 0:
            raise DataError(
                f"{path}: has label {int(numbers.max())}, data.labels={c.labels} are 0 to {c.labels - 1} "
                "(data.dont_care names the label of pixels without a class)"
            )
        return _as_picture(numbers)


def open_labels(config: DataConfig, split: Split) -> LabelDataset:
    """Open a split of label maps and photographs.

    Raises:
        ConfigError: no folder is named.
        DataError: the folder is missing, of no known layout, or maps and photographs do not belong together.
    """
    if config.root == "synthetic":
        raise ConfigError(f"data.labels={config.labels}: the embedded set has no label maps; name a folder (--dataroot)")
    root = data_folder(config)
    found: dict[str, list[Files]] = {str(name): files for name in SPLITS if (files := _split_files(config, root, name))}
    if not found:
        raise DataError(
            f"data.root={config.root!r}: no label maps found; expected photographs in train/ (or train_img/) and label maps of "
            "equal names in train_labels/ (or train_label/)"
        )
    return LabelDataset(config, split, assign(found, config)[split])


def _split_files(config: DataConfig, root: Path, split: Split) -> list[Files]:
    photographs = _first_with_images(root / split, root / f"{split}_img")
    labels = _first_with_images(root / f"{split}_labels", root / f"{split}_label")
    if not labels:
        return []
    kinds = {"photograph": photographs, "label map": labels}
    if config.edges:
        kinds["map of instances"] = _first_with_images(root / f"{split}_inst")
    by_stem = {kind: {path.stem: path for path in files} for kind, files in kinds.items()}
    for kind, files in by_stem.items():
        if only := sorted(by_stem["label map"].keys() ^ files.keys()):
            raise DataError(
                f"data.root={config.root!r}: {split} has {len(labels)} label maps and {len(files)} of the kind {kind}; "
                f"{len(only)} have no partner of equal name, first {only[0]!r}"
            )
    instances = by_stem.get("map of instances", {})
    return [(path, by_stem["photograph"][path.stem], instances.get(path.stem)) for path in labels]


def _first_with_images(*folders: Path) -> list[Path]:
    return next((files for folder in folders if (files := image_files(folder))), [])


def _read_numbers(path: Path) -> np.ndarray:
    """The numbers of a map [H, W]: grey values of 8 or 16 bits, or places in a palette.

    Raises:
        DataError: damaged, too large, or a picture in colours.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"{path}: is a picture in colours ({image.mode}), expected class numbers; data.palette gives colours one"
        )
    return np.asarray(image).astype(np.int32)


def _by_colour(path: Path, palette: dict[int, int]) -> np.ndarray:
    """The numbers of the classes of a map in colours [H, W].

    Raises:
        DataError: damaged, too large, or of colours that are not in the palette.
    """
    samples = np.asarray(_open(path).convert("RGB")).astype(np.int32)
    colours, places = np.unique(samples @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True)
    unknown = [int(colour) for colour in colours if int(colour) not in palette]
    if unknown:
        raise DataError(f"{path}: has colour {_rgb(unknown[0])}, which data.palette does not have")
    return np.array([palette[int(colour)] for colour in colours], dtype=np.int32)[places].reshape(samples.shape[:2])


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS}")
            image.load()
            return image.copy()
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:
        # Pillow's decoders raise many kinds of exceptions on damaged data.
        raise DataError(f"{path}: cannot be read as a label map ({first_line(error)})") from None


def read_palette(path: Path, classes: int) -> dict[int, int]:
    """Class numbers by colour (``R << 16 | G << 8 | B``) of a text file: one line ``R G B`` per class, in their order.

    Names behind the colours, empty lines and lines that begin with ``#`` are passed over. Several colours of one class are
    joined by ``;`` in its line.

    Raises:
        DataError: missing, a line of another form, a colour twice, or fewer lines than classes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.palette={str(path)!r}: cannot be read ({first_line(error)})") from None
    found: dict[int, int] = {}
    number = 0
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        for part in line.split(";"):
            values = part.replace(",", " ").split()[:3]
            if len(values) < 3 or not all(value.isdecimal() and int(value) < 256 for value in values):
                raise DataError(f"data.palette={str(path)!r}: {line.strip()!r}: expected `R G B name`, each 0 to 255")
            colour = int(values[0]) << 16 | int(values[1]) << 8 | int(values[2])
            if colour in found:
                raise DataError(f"data.palette={str(path)!r}: has colour {_rgb(colour)} twice")
            found[colour] = number
        number += 1
    if number != classes:
        raise DataError(f"data.palette={str(path)!r}: has colours of {number} classes, data.labels={classes}")
    return found


def _rgb(colour: int) -> str:
    return f"{colour >> 16} {colour >> 8 & 255} {colour & 255}"


def _as_picture(numbers: np.ndarray) -> Image.Image:
    """Numbers as a picture that resizing without mixing, cutting and flipping leave whole."""
    return Image.fromarray(numbers.astype(np.uint8) if numbers.max(initial=0) < 256 else numbers.astype(np.int32))


def label_colours(classes: int) -> Tensor:
    """A colour for every class, float32 [classes, 3] in [-1, 1]: hues go round by the golden ratio, and brightness changes."""
    golden = 0.6180339887498949
    rows = [colorsys.hsv_to_rgb(i * golden % 1, 0.65 + 0.3 * (i % 2), 0.95 - 0.22 * (i % 3)) for i in range(classes)]
    return torch.tensor(rows) * 2 - 1


def paint_labels(labels: Tensor) -> Tensor:
    """Label maps [N, 1 or 2, H, W] as pictures [N, 3, H, W] in [-1, 1], edges of instances in black."""
    picture = label_colours(int(labels[:, 0].max()) + 1).to(labels.device)[labels[:, 0].long()].permute(0, 3, 1, 2)
    return picture if labels.shape[1] == 1 else torch.where(labels[:, 1:] != 0, -1.0, picture)
