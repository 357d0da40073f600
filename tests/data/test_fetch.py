"""Downloads over a connection that breaks, from servers of every kind, and archives that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gancomp.cli import main
from gancomp.data import fetch
from gancomp.data.fetch import download, unpack_images
from gancomp.errors import ConfigError, DataError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content``, at most ``limit`` bytes a request; remembers the ranges that it was asked for."""

    content, etag, limit, ranges, status = CONTENT, '"1"', 0, True, 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            return self.send_error(server.status)
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if self.headers.get("If-Range", server.etag) != server.etag:
            begin = 0
        total = len(server.content)
        if begin >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        body = server.content[begin:]
        self.wfile.write(body[: server.limit] if server.limit else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    for size, sha256 in ((0, ""), (len(CONTENT), SHA), (0, SHA.upper())):
        download(server.url, tmp_path / "set.zip", size, sha256)
        assert (tmp_path / "set.zip").read_bytes() == CONTENT
        assert left(tmp_path) == ["set.zip"]
    assert server.asked == [None] * 3


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.limit = 100_000
    download(server.url, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_another_call_goes_on(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "TRIES", 0)
    server.limit = 100_000
    with pytest.raises(DataError, match=r"ended after 100000 of 300000 bytes\).*put the archive at .*set\.zip.*--url"):
        download(server.url, tmp_path / "set.zip", sha256=SHA)
    assert left(tmp_path) == ["set.zip.part", "set.zip.part.json"]
    server.limit = 0
    download(server.url, tmp_path / "set.zip", sha256=SHA)
    assert server.asked == [None, "bytes=100000-"]
    assert left(tmp_path) == ["set.zip"]


def test_a_complete_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "set.zip", sha256=SHA)
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_file_that_has_changed_begins_anew(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "TRIES", 0)
    server.limit = 100_000
    with pytest.raises(DataError):
        download(server.url, tmp_path / "set.zip")
    server.content, server.etag, server.limit = CONTENT[::-1], '"2"', 0
    download(server.url, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == CONTENT[::-1]


def test_what_cannot_be_told_apart_is_not_joined(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    (tmp_path / "set.zip.part").write_bytes(b"other bytes")
    download(server.url, tmp_path / "set.zip")
    assert server.asked == [None]
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_server_without_ranges_serves_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "set.zip.part").write_bytes(CONTENT[:1000])
    download(server.url, tmp_path / "set.zip", sha256=SHA)
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "set.zip").read_bytes() == CONTENT


def test_a_server_that_never_ends_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.limit = False, 1000
    with pytest.raises(DataError, match="ended after 1000 of 300000"):
        download(server.url, tmp_path / "set.zip")
    assert len(server.asked) <= fetch.TRIES + 1


@pytest.mark.parametrize(("size", "sha256", "message"), [(7, "", "300000 bytes, expected 7"), (0, "0" * 64, f"SHA-256 {SHA}")])
def test_another_file_is_refused_and_removed(server: Server, tmp_path: Path, size: int, sha256: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        download(server.url, tmp_path / "set.zip", size, sha256)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, fetch.TRIES)])
def test_what_the_server_answers_is_said(server: Server, tmp_path: Path, status: int, requests: int) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"{server.url}: cannot be fetched .the server answers {status}"):
        download(server.url, tmp_path / "set.zip")
    assert len(server.asked) == requests


def test_without_a_network(tmp_path: Path, server: Server) -> None:
    server.server_close()
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused.*put the archive at"):
        download(server.url, tmp_path / "set.zip")
    for url in ("file:///etc/passwd", "ftp://a/b", "set.zip"):
        with pytest.raises(ConfigError, match="http"):
            download(url, tmp_path / "set.zip")
    assert left(tmp_path) == []


def test_a_full_disk_is_no_trouble_of_the_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download(server.url, tmp_path / "set.zip")
    assert len(server.asked) == 1


def test_a_set_by_the_command_line(server: Server, tmp_path: Path, capsys) -> None:
    names = [f"horse2zebra/{folder}/{n}.jpg" for folder in ("trainA", "trainB", "testA", "testB") for n in range(3)]
    server.content = zipped(tmp_path / "served.zip", names, CONTENT[:9000]).read_bytes()
    server.limit = 50_000
    digest = hashlib.sha256(server.content).hexdigest()
    arguments = ["data", "prepare", "horse2zebra", "--out", str(tmp_path / "data"), "--url", server.url]
    assert main(arguments) == 2
    assert (
        f"{server.url}: has {len(server.content)} bytes, expected 116867962; what arrived is removed" in capsys.readouterr().err
    )
    assert main([*arguments, "--sha256", digest]) == 0
    assert server.asked[-2:] == ["bytes=50000-", "bytes=100000-"]
    assert left(tmp_path / "data") == ["horse2zebra"]
    assert (tmp_path / "data" / "horse2zebra" / "testB" / "2.jpg").read_bytes() == CONTENT[:9000]
    record = json.loads((tmp_path / "data" / "horse2zebra" / "prepared.json").read_text())
    assert (record["url"], record["sha256"], record["verified_by"]) == (server.url, digest, "sha256")


def zipped(path: Path, names: list[str], content: bytes = b"pixels", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def tarred(path: Path, names: list[str], content: bytes = b"pixels", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS = {"zip": zipped, "tar": tarred}
GOOD = ["set/train/1.jpg", "set/train/2.PNG", "set/val/1.jpg"]


@pytest.mark.parametrize("kind", MAKERS)
def test_images_of_the_named_folders(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / "a", [*GOOD, "set/readme.txt", "set/train/.hidden.jpg", "set/other/1.jpg", "train/x.sh"])
    assert unpack_images(archive, tmp_path / "out", ("train", "val")) == {"train": 2, "val": 1}
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"train/1.jpg", "train/2.PNG", "val/1.jpg"}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "name", ["../val/1.jpg", "/val/1.jpg", "set/../../val/1.jpg", "C:/val/1.jpg", "a\\..\\val/1.jpg", "a\n/1"]
)
def test_names_that_leave_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(DataError, match="leaves the folder"):
        unpack_images(MAKERS[kind](tmp_path / "a", [*GOOD, name]), tmp_path / "out", ("train", "val"))
    assert left(tmp_path) == ["a", "out"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataError, match="link or a device"):
        unpack_images(tarred(tmp_path / "a", ["set/train/1.jpg"], kind=kind), tmp_path / "out", ("train",))
    with pytest.raises(DataError, match="link or a device"):
        unpack_images(zipped(tmp_path / "b", ["set/train/1.jpg"], mode=0o120777), tmp_path / "out2", ("train",))


@pytest.mark.parametrize("kind", MAKERS)
def test_archives_that_are_no_sets(tmp_path: Path, kind: str, monkeypatch) -> None:
    make = MAKERS[kind]
    with pytest.raises(DataError, match=r"train/1\.jpg twice"):
        unpack_images(make(tmp_path / "a", ["a/train/1.jpg", "b/train/1.jpg"]), tmp_path / "1", ("train",))
    with pytest.raises(DataError, match="no images in val"):
        unpack_images(make(tmp_path / "a", ["a/train/1.jpg"]), tmp_path / "2", ("train", "val"))
    monkeypatch.setattr(fetch, "GROWTH_FLOOR", 1 << 20)
    with pytest.raises(DataError, match="more than 20 times"):
        unpack_images(make(tmp_path / "a", ["a/train/1.jpg"], bytes(2 << 20)), tmp_path / "3", ("train",))


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_archives(tmp_path: Path, kind: str) -> None:
    whole = MAKERS[kind](tmp_path / "a", ["a/train/1.jpg"], CONTENT).read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    for number, data in enumerate(
        (whole[: len(whole) // 2], bytes(broken), b"<html>gone</html>", b"", gzip.compress(b"x" * 99))
    ):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(DataError, match=r"b: cannot be unpacked"):
            unpack_images(tmp_path / "b", tmp_path / str(number), ("train",))
