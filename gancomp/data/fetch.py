"""Archives from the network: fetched in parts that add up, verified, and unpacked without trusting them."""

from __future__ import annotations

import errno
import gzip
import http.client
import json
import os
import re
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from tqdm import tqdm

from gancomp.data.images import EXTENSIONS
from gancomp.errors import ConfigError, DataError, first_line
from gancomp.io import sha256_file, write_json
from gancomp.version import __version__

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5  # in a row that bring no byte
PAUSE = 1.0  # seconds before a second such try; a later one waits longer
# Photographs do not shrink: what unpacks to more than this many times its archive's size is no set of images.
GROWTH, GROWTH_FLOOR = 20, 64 << 20

# What the standard library raises of archives that are damaged, encrypted or of unknown compression.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError, RuntimeError,
)  # fmt: skip

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class _ServerChanged(Exception):
    """The server goes on with another file than the one that was begun."""


def download(url: str, path: Path, size: int = 0, sha256: str = "") -> None:
    """Fetch a file, going on where an interrupted call stopped.

    What has arrived waits in ``NAME.part`` beside ``path``. It is continued where the server confirms by ETag or date that its
    file is still the same one, or the digest is known; otherwise fetched anew. ``path`` appears when the file is complete.

    Args:
        url: an address of http or https.
        path: where the file goes.
        size: its bytes, where known.
        sha256: its digest, where known.

    Raises:
        ConfigError: an address of another kind.
        DataError: the server cannot be reached or does not have it, or the file is not the expected one (it is removed then);
            the message says what to do without a network.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"url={url!r}: expected an address that begins with http:// or https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    state = path.with_name(path.name + ".part.json")
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, state, resumable=bool(sha256))
            break
        except _ServerChanged:
            _remove(part, state)
            idle += 1
            reason = "its file changes"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _offline(url, path, f"the server answers {error.code} {error.reason}") from None
            idle, reason = idle + 1, f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            # Trouble of the disk, which no other try mends.
            if isinstance(cause, OSError) and (cause.filename or cause.errno in _DISK_ERRORS):
                raise
            grown = part.exists() and part.stat().st_size > before
            idle = 0 if grown else idle + 1
            reason = first_line(cause) if isinstance(cause, BaseException) else str(cause)
        if idle >= TRIES:
            raise _offline(url, path, reason)
        time.sleep(PAUSE * idle)
    try:
        check_file(part, url, size, sha256)
    except DataError as error:
        _remove(part, state)
        raise DataError(f"{error}; what arrived is removed") from None
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _remove(state)


def check_file(path: Path, name: str, size: int = 0, sha256: str = "") -> str:
    """The SHA-256 of a file, which must be ``sha256`` and its bytes ``size`` where these are given.

    Raises:
        DataError: it is another file; the message calls it ``name``.
    """
    found = path.stat().st_size
    if size and found != size:
        raise DataError(f"{name}: has {found} bytes, expected {size}")
    digest = sha256_file(path)
    if sha256 and digest != sha256.lower():
        raise DataError(f"{name}: has SHA-256 {digest}, expected {sha256}")
    return digest


def _offline(url: str, path: Path, reason: str) -> DataError:
    return DataError(
        f"{url}: cannot be fetched ({reason}); run the same command again to go on, put the archive at {path}, "
        "or name another address by --url"
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _fetch(url: str, part: Path, state: Path, resumable: bool) -> None:
    """Append to ``part`` what it lacks; raises OSError or HTTPException where the connection breaks before the end."""
    headers = {"User-Agent": f"gancomp/{__version__}", "Accept-Encoding": "identity"}
    begin = part.stat().st_size if part.exists() else 0
    validator = _validator(state, url) if begin else ""
    if begin and not (validator or resumable):
        begin = 0
    if begin:
        headers["Range"] = f"bytes={begin}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and begin:
            if error.headers.get("Content-Range", "") == f"bytes */{begin}":
                return
            raise _ServerChanged from None
        raise
    with response:
        total = _length(response, begin)
        if response.status == 206:
            if not _continues(response, begin):
                raise _ServerChanged
        else:
            begin = 0
        etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        # A weak ETag does not promise equal bytes.
        write_json(state, {"url": url, "validator": etag if etag and not etag.startswith("W/") else date})
        arrived = begin
        with (
            open(part, "ab" if begin else "wb") as file,
            tqdm(
                total=total or None, initial=begin, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                arrived += len(chunk)
                bar.update(len(chunk))
        if total and arrived < total:
            raise ConnectionError(f"the connection ended after {arrived} of {total} bytes")


def _validator(state: Path, url: str) -> str:
    """What the server called its file when ``url`` was begun; empty where that is not known."""
    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        return str(known["validator"]) if known["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _continues(response: http.client.HTTPResponse, begin: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")


def _length(response: http.client.HTTPResponse, begin: int) -> int:
    """Bytes of the whole file, 0 where the server does not say."""
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        return 0
    return int(length) + (begin if response.status == 206 else 0)


class _Member(Protocol):
    """A file of an archive."""

    name: str

    def open(self) -> IO[bytes]: ...


class _ZipMember:
    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self.name, self._archive, self._info = info.filename, archive, info

    def open(self) -> IO[bytes]:
        return self._archive.open(self._info)


class _TarMember:
    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self.name, self._archive, self._info = info.name, archive, info

    def open(self) -> IO[bytes]:
        file = self._archive.extractfile(self._info)
        assert file is not None, "only of files"
        return file


def unpack_images(archive: Path, folder: Path, parents: Collection[str]) -> dict[str, int]:
    """Write the images of an archive (zip, or tar of any compression) whose folder has one of the names ``parents``.

    ``anything/PARENT/1.jpg`` becomes ``folder/PARENT/1.jpg``.

    Returns:
        The number of images in every folder of ``parents``.

    Raises:
        DataError: damaged, a name that leaves its folder, a link or a device, a file twice, no images in one of ``parents``, or
            so much in it that it cannot be a set of images. What was written stays for the caller to remove.
    """
    counts = dict.fromkeys(parents, 0)
    left = max(GROWTH * archive.stat().st_size, GROWTH_FLOOR)
    for parent in parents:
        (folder / parent).mkdir(parents=True)
    try:
        for member in tqdm(_members(archive), desc=f"unpacking {archive.name}", unit=" files", disable=None, leave=False):
            place = PurePosixPath(member.name)
            wanted = place.suffix.lower() in EXTENSIONS and not place.name.startswith(".")
            if place.parent.name not in counts or not wanted:
                continue
            target = folder / place.parent.name / place.name
            if target.exists():
                raise DataError(f"{archive}: has {place.parent.name}/{place.name} twice")
            with member.open() as source, open(target, "xb") as file:
                while chunk := source.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise DataError(f"{archive}: unpacks to more than {GROWTH} times its size; that is no set of images")
                    file.write(chunk)
            counts[place.parent.name] += 1
    except _DAMAGE as error:
        raise DataError(f"{archive}: cannot be unpacked ({first_line(error)})") from None
    if empty := [parent for parent, count in counts.items() if count == 0]:
        raise DataError(f"{archive}: has no images in {', '.join(empty)}; expected some in each of {', '.join(parents)}")
    return counts


def _members(archive: Path) -> Iterator[_Member]:
    """The files of an archive, in its order; anything that is neither file nor folder is refused, and so are odd names."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                _check_name(archive, entry.filename)
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{archive}: {entry.filename!r} is a link or a device, expected files and folders")
                if not entry.is_dir():
                    yield _ZipMember(zipped, entry)
        return
    with tarfile.open(archive) as tarred:
        for info in tarred:
            _check_name(archive, info.name)
            if not (info.isreg() or info.isdir()):
                raise DataError(f"{archive}: {info.name!r} is a link or a device, expected files and folders")
            if info.isreg():
                yield _TarMember(tarred, info)
        # The checksum of gzip lies behind the last file.
        if tarred.fileobj is not None:
            tarred.fileobj.read(GROWTH_FLOOR)


def _check_name(archive: Path, name: str) -> None:
    if name.startswith("/") or ".." in name.split("/") or re.search(r"[\\\x00-\x1f]|^[A-Za-z]:", name):
        raise DataError(f"{archive}: {name!r} is a name that leaves the folder, or no portable one")
