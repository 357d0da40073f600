"""Cityscapes from its user's own download, as pairs or as label maps.

The data set (Cordts et al. 2016) is given only to those who have registered for it: photographs
(``leftImg8bit_trainvaltest.zip``) and annotations (``gtFine_trainvaltest.zip``), here as these two files or unpacked. Its
annotations of the test split are empty, so "train" and "val" are used.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from gancomp.data.images import MAX_PIXELS
from gancomp.errors import DataError, first_line

Form = Literal["pairs", "labels"]
SPLITS = ("train", "val")
PHOTOGRAPHS, ANNOTATIONS = "leftImg8bit", "gtFine"
# The endings of a photograph's annotations, and the folders that label maps of the loader lie in.
COLOURS, LABELS, INSTANCES = "color", "labelIds", "instanceIds"
_FILE = re.compile(
    r"(?:^|/)(?P<kind>leftImg8bit|gtFine)/(?P<split>train|val)/[^/]+/"
    r"(?P<stem>[A-Za-z-]+_\d{6}_\d{6})_(?:leftImg8bit|gtFine_(?P<what>color|labelIds|instanceIds))\.png$"
)

Read = Callable[[], bytes]
Scene = dict[str, Read]


def lay_out(source: Path, folder: Path, form: Form, width: int) -> dict[str, int]:
    """Write the pairs or label maps of a download.

    Args:
        source: the folder with the two archives, or with the folders ``leftImg8bit`` and ``gtFine``.
        folder: where to write. ``pairs`` become ``train/`` and ``val/`` of side-by-side squares, A the photograph and B the
            colours of its classes (as pix2pix has them: direction BtoA). ``labels`` become photographs in ``train/``, maps of
            class numbers (35 with ``data.dont_care`` 255) in ``train_labels/``, of instances in ``train_inst/``; likewise val.
        width: of every image in pixels; of label maps the height is half of it.

    Returns:
        The number of images in every folder.

    Raises:
        DataError: the download is not there, incomplete or damaged; the message says which file is missing.
    """
    needed = (COLOURS,) if form == "pairs" else (LABELS, INSTANCES)
    scenes = find_scenes(source)
    counts: dict[str, int] = {}
    for split in SPLITS:
        if not scenes[split]:
            raise DataError(f"{source}: has no photographs of {split}; expected {PHOTOGRAPHS}/{split}/CITY/*.png")
        for stem, scene in tqdm(sorted(scenes[split].items()), desc=split, unit="img", disable=None, leave=False):
            for kind in (PHOTOGRAPHS, *needed):
                if kind not in scene:
                    raise DataError(f"{source}: {split} image {stem} has no {kind} picture; are both archives complete?")
            written = _pair(scene, stem, width) if form == "pairs" else _label_maps(scene, stem, width)
            for suffix, name, picture in written:
                place = folder / f"{split}{suffix}"
                place.mkdir(parents=True, exist_ok=True)
                # Neighbouring pixels of label colours must not share their hue; of photographs they may.
                picture.save(place / name, quality=95, subsampling=0)
                counts[place.name] = counts.get(place.name, 0) + 1
    return counts


def find_scenes(source: Path) -> dict[str, dict[str, Scene]]:
    """What a download has of every photograph, by split and by the photograph's name.

    Raises:
        DataError: there is no such folder, or it has neither of the two in either form, or an archive is damaged.
    """
    if not source.is_dir():
        raise DataError(
            f"source={str(source)!r}: is no folder; expected that of your download from www.cityscapes-dataset.com: "
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or the folders in them"
        )
    scenes: dict[str, dict[str, Scene]] = {split: {} for split in SPLITS}
    for kind in (PHOTOGRAPHS, ANNOTATIONS):
        archive = source / f"{kind}_trainvaltest.zip"
        if (source / kind).is_dir():
            found = _in_folder(source, kind)
        elif archive.is_file():
            found = _in_archive(archive)
        else:
            raise DataError(f"source={str(source)!r}: has neither a folder {kind} nor {archive.name}")
        for name, read in found:
            match = _FILE.search(name)
            if match and match["kind"] == kind and (match["what"] is None) == (kind == PHOTOGRAPHS):
                scenes[match["split"]].setdefault(match["stem"], {})[match["what"] or PHOTOGRAPHS] = read
    return scenes


def _in_folder(source: Path, kind: str) -> Iterable[tuple[str, Read]]:
    return [(path.relative_to(source).as_posix(), path.read_bytes) for path in (source / kind).rglob("*.png")]


def _in_archive(path: Path) -> Iterator[tuple[str, Read]]:
    try:
        # Open as long as one of its members can be asked for.
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: cannot be unpacked ({first_line(error)})") from None

    def reader(name: str) -> Read:
        return lambda: archive.read(name)

    for name in archive.namelist():
        yield name, reader(name)


def _open(read: Read, stem: str, kind: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(read()))
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{stem} {kind}: has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS}")
        image.load()
        return image
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders and zipfile raise many kinds of exceptions on damaged data.
        raise DataError(f"{stem} {kind}: cannot be read ({first_line(error)})") from None


def _pair(scene: Scene, stem: str, width: int) -> Iterator[tuple[str, str, Image.Image]]:
    both = Image.new("RGB", (2 * width, width))
    photograph = _open(scene[PHOTOGRAPHS], stem, PHOTOGRAPHS).convert("RGB")
    both.paste(photograph.resize((width, width), Image.Resampling.BICUBIC), (0, 0))
    colours = _open(scene[COLOURS], stem, COLOURS).convert("RGB")
    both.paste(colours.resize((width, width), Image.Resampling.NEAREST), (width, 0))
    yield "", f"{stem}.jpg", both


def _label_maps(scene: Scene, stem: str, width: int) -> Iterator[tuple[str, str, Image.Image]]:
    size = (width, width // 2)
    photograph = _open(scene[PHOTOGRAPHS], stem, PHOTOGRAPHS).convert("RGB")
    yield "", f"{stem}.jpg", photograph.resize(size, Image.Resampling.BICUBIC)
    for suffix, kind, dtype in (("_labels", LABELS, np.uint8), ("_inst", INSTANCES, np.uint16)):
        numbers = Image.fromarray(np.asarray(_open(scene[kind], stem, kind)).astype(np.int32))
        small = np.asarray(numbers.resize(size, Image.Resampling.NEAREST)).astype(dtype)
        yield suffix, f"{stem}.png", Image.fromarray(small)
