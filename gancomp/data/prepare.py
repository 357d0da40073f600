"""Public data sets as the loaders read them: fetched, verified, unpacked, and their splits drawn from a seed.

A set lies in ``OUT/NAME`` whole or not at all. ``OUT/NAME/prepared.json`` says of what archive it was made, how many images it
has, and which were held out. Where no digest of an archive is published, the one found goes into ``OUT/NAME.sha256.json``, and
the next archive must have it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gancomp.data.catalogue import PublicSet
from gancomp.data.cityscapes import Form, lay_out
from gancomp.data.config import DataConfig
from gancomp.data.datasets import assign, image_files
from gancomp.data.fetch import check_file, download, unpack_images
from gancomp.errors import ConfigError, DataError
from gancomp.io import read_json, write_json

RECORD = "prepared.json"


@dataclass(frozen=True)
class Wishes:
    """How a set is prepared: another address or digest of its archive, and what becomes of it.

    ``split_seed`` -1 leaves the published folders as they are. ``source``, ``form`` and ``width`` are of Cityscapes
    (:func:`gancomp.data.cityscapes.lay_out`); width 0 is 256 for pairs and 512 for labels.
    """

    url: str = ""
    sha256: str = ""
    split_seed: int = -1
    keep_archive: bool = False
    source: str = ""
    form: Form = "pairs"
    width: int = 0


def prepare(public: PublicSet, out: Path, wishes: Wishes) -> Path:
    """Lay out a set in ``out/NAME``; returns that folder. What is there already, prepared in the same way, is left as it is.

    Raises:
        ConfigError: a wish that this set does not have.
        DataError: the folder exists and was made otherwise, or lacks images; the archive cannot be fetched, is not the expected
            one, or is damaged; another process works in ``out``.
    """
    _check_wishes(public, wishes)
    folder = out / public.name
    # What makes another folder of the same archive.
    asked: dict[str, Any] = {"name": public.name, "split_seed": wishes.split_seed}
    if public.kind == "cityscapes":
        asked |= {"form": wishes.form, "width": wishes.width or (256 if wishes.form == "pairs" else 512)}
    if folder.exists():
        _check_prepared(folder, asked)
        return folder
    out.mkdir(parents=True, exist_ok=True)
    archive = out / public.archive
    fetched = False
    with _alone(out, public.name) as work:
        if public.kind == "cityscapes":
            origin: dict[str, Any] = {"source": wishes.source}
            counts = lay_out(Path(wishes.source), work, wishes.form, asked["width"])
        else:
            fetched = not archive.exists()
            origin = _archive(public, archive, wishes)
            counts = unpack_images(archive, work, public.folders)
        held = hold_out(work, wishes.split_seed) if wishes.split_seed >= 0 else {}
        counts = {name: len(image_files(work / name)) for name in _image_folders(work)} if held else counts
        write_json(work / RECORD, {**asked, **origin, "images": counts, "val": held})
        os.rename(work, folder)
    # An archive that its user has put there stays.
    if fetched and not wishes.keep_archive:
        archive.unlink()
    return folder


def _check_wishes(public: PublicSet, wishes: Wishes) -> None:
    theirs = ("source", "form", "width") if public.kind != "cityscapes" else ("url", "sha256", "keep_archive")
    for name in theirs:
        if getattr(wishes, name) != getattr(Wishes(), name):
            raise ConfigError(f"{name}={getattr(wishes, name)!r}: {public.name} has no such setting")
    if public.kind == "cityscapes" and not wishes.source:
        raise ConfigError(
            "source='': Cityscapes is given to registered users only (www.cityscapes-dataset.com); name the folder of your "
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip"
        )
    if wishes.split_seed < -1:
        raise ConfigError(f"split_seed={wishes.split_seed}: expected at least 0, or -1 for the published folders")
    if wishes.width and (wishes.width < 8 or wishes.width % 4):
        raise ConfigError(f"width={wishes.width}: expected a multiple of 4, at least 8")
    if wishes.sha256 and (len(wishes.sha256) != 64 or set(wishes.sha256.lower()) - set("0123456789abcdef")):
        raise ConfigError(f"sha256={wishes.sha256!r}: expected 64 hexadecimal digits")


def _check_prepared(folder: Path, asked: dict[str, Any]) -> None:
    if not (folder / RECORD).is_file():
        raise DataError(f"{folder}: is there and was not made by `gancomp data`; name another place by --out")
    record = _read_record(folder / RECORD, "images", dict)
    for name, value in asked.items():
        if record.get(name) != value:
            raise DataError(
                f"{folder}: was made with {name}={record.get(name)!r}, asked is {value!r}; "
                "remove it or name another place by --out"
            )
    for name, count in record["images"].items():
        if (found := len(image_files(folder / name))) != count:
            raise DataError(f"{folder / name}: has {found} images, {count} were written; remove {folder} to lay it out again")


def _read_record(path: Path, key: str, kind: type) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get(key), kind):
        raise DataError(f"{path}: was not written by `gancomp data`, or is damaged: expected {key!r} in it")
    return record


@contextlib.contextmanager
def _alone(out: Path, name: str) -> Iterator[Path]:
    """A folder to work in, removed unless it is renamed; one process at a time, which removes what a killed one left."""
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another `gancomp data` works in it") from None
        for leftover in out.glob(f".{name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        private = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=out))
        try:
            # mkdtemp's folder is its owner's alone; the one within is an ordinary one.
            work = private / name
            work.mkdir()
            yield work
        finally:
            shutil.rmtree(private, ignore_errors=True)
    finally:
        os.close(descriptor)


def _archive(public: PublicSet, archive: Path, wishes: Wishes) -> dict[str, Any]:
    """Fetch the archive unless it is there, and verify it; returns what the record says of it."""
    lock = archive.with_name(f"{public.name}.sha256.json")
    known = wishes.sha256 or public.sha256
    locked = "" if known or not lock.exists() else _read_record(lock, "sha256", str)["sha256"]
    size = 0 if wishes.sha256 else public.size
    url = wishes.url or public.url
    fetched = not archive.exists()
    if fetched:
        download(url, archive, size, known or locked)
    try:
        digest = check_file(archive, str(archive), size, known or locked)
    except DataError as error:
        said = f"{lock} has from before" if locked else "--sha256 has" if wishes.sha256 else "is published"
        raise DataError(f"{error}, which {said}; remove the archive to fetch it again") from None
    origin = {"url": url if fetched else str(archive), "bytes": archive.stat().st_size, "sha256": digest}
    if not known and not locked:
        write_json(lock, {**origin, "time": datetime.now(UTC).isoformat(timespec="seconds")})
    return {**origin, "verified_by": "published digest" if known == public.sha256 != "" else "sha256" if known else lock.name}


def _image_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def hold_out(folder: Path, seed: int) -> dict[str, list[str]]:
    """Move training images into folders "val" of their own: those that the loaders hold out with ``data.seed`` of that value.

    The published held-out images become "test". A set that has both already stays as it is.

    Args:
        folder: ``train`` or ``trainA`` and ``trainB`` with their held-out folders; of label maps also ``train_labels``,
            ``train_inst``.
        seed: of the draw.

    Returns:
        The names of the held-out images, by folder.

    Raises:
        DataError: too few training images.
    """
    names, held = _image_folders(folder), {}
    config = DataConfig(root=str(folder), seed=seed)
    for side in ("A", "B") if "trainA" in names else ("",):
        found = {split: files for split in ("train", "val", "test") if (files := image_files(folder / f"{split}{side}"))}
        if {"val", "test"} <= found.keys():
            continue
        chosen = [path.stem for path in assign(found, config, side=f"{side} " if side else "")["val"]]
        for layer in (side,) if side else ("", "_labels", "_inst"):
            if f"train{layer}" not in names:
                continue
            if f"val{layer}" in names:
                os.rename(folder / f"val{layer}", folder / f"test{layer}")
            (folder / f"val{layer}").mkdir()
            by_stem = {path.stem: path for path in image_files(folder / f"train{layer}")}
            for stem in chosen:
                os.rename(by_stem[stem], folder / f"val{layer}" / by_stem[stem].name)
            held[f"val{layer}"] = [by_stem[stem].name for stem in chosen]
    return held
