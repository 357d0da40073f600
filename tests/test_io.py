"""Files are written whole or not at all, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gancomp.errors import RunError
from gancomp.io import append_jsonl, atomic_path, read_json, read_jsonl, sha256_file, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fork(work: Callable[[], object]) -> int:
    """A process of its own, without the seconds of an interpreter's start; it exits with 1 on an error of the system."""
    if pid := os.fork():
        return pid
    status = 2
    try:
        work()
        status = 0
    except OSError:
        status = 1
    finally:
        os._exit(status)


def ends_with(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def on_a_full_disk(limit: int, work: Callable[[], object]) -> int:
    """Run ``work`` where no file can grow beyond ``limit`` bytes; returns the exit status."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()

    return ends_with(fork(limited))


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    with atomic_path(file) as temporary:
        temporary.write_text("one")
        assert not file.exists()
        assert temporary.parent == file.parent, "a rename must not cross file systems"
    assert file.read_text() == "one"
    with atomic_path(file) as temporary:
        temporary.write_text("two")
        assert file.read_text() == "one"
    assert file.read_text() == "two"
    assert names(file.parent) == ["a.txt"]


def write_half(file: Path, error: BaseException) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_content(tmp_path: Path, kind: type[BaseException]) -> None:
    file = tmp_path / "a.txt"
    for old in (None, "old"):
        if old:
            write_text(file, old)
        with pytest.raises(kind):
            write_half(file, kind())
        assert names(tmp_path) == (["a.txt"] if old else [])
    assert file.read_text() == "old"


def test_a_kill_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def work() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert ends_with(fork(work)) == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_text(file, "new")
    assert file.read_text() == "new"
    assert names(tmp_path) == ["a.txt"], "what the killed one left behind is gone"


def test_another_writer_of_the_same_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a[1].txt"
    with atomic_path(file) as temporary:
        temporary.write_text("outer")
        write_text(file, "inner")
        assert file.read_text() == "inner"
    assert file.read_text() == "outer"
    assert names(tmp_path) == ["a[1].txt"]


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    assert on_a_full_disk(1000, lambda: write_text(file, "x" * 5000)) == 1
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_result_is_an_ordinary_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
        (tmp_path / "b.txt").write_text("x")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.txt", "b.txt")]
    assert modes == [0o666 & ~mask] * 2


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("folder", "link"):
        with pytest.raises(RunError, match=f"{name}: is there and is not a file"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "folder").is_dir()
    assert names(tmp_path) == ["folder", "link"]


def test_json(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, "Straße"], "a": {"c": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    for damaged in (b'{"a": 1', b"", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(RunError, match=r"a\.json: not valid JSON"):
            read_json(tmp_path / "a.json")


RECORDS = [{"step": n, "name": "Straße\n", "value": n / 3} for n in range(4)]


def write_lines(file: Path) -> bytes:
    for record in RECORDS:
        append_jsonl(file, record)
    return file.read_bytes()


def test_lines_are_appended_and_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log.jsonl"
    assert read_jsonl(file) == []
    data = write_lines(file)
    assert data.count(b"\n") == 4
    assert [json.loads(line) for line in data.splitlines()] == RECORDS
    assert read_jsonl(file) == RECORDS
    assert file.read_bytes() == data


def test_a_last_line_cut_anywhere_is_dropped_from_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    data = write_lines(file)
    third = len(b"".join(data.splitlines(keepends=True)[:3]))
    for cut in range(third, len(data)):
        file.write_bytes(data[:cut])
        assert read_jsonl(file) == RECORDS[:3]
        assert file.read_bytes() == data[:third]
    append_jsonl(file, RECORDS[3])
    assert file.read_bytes() == data


def test_a_damaged_middle_line_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    lines = write_lines(file).splitlines(keepends=True)
    for number in (1, 2, 3):
        for damage in (lines[number - 1][:-5] + b"\n", b"\n", b"\x00\xff\n"):
            damaged = b"".join([*lines[: number - 1], damage, *lines[number:]])
            file.write_bytes(damaged)
            with pytest.raises(RunError, match=rf"log\.jsonl: line {number} is damaged"):
                read_jsonl(file)
            assert file.read_bytes() == damaged


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_takes_back_half_a_line(tmp_path: Path, room: int) -> None:
    file = tmp_path / "log.jsonl"
    data = write_lines(file)
    assert on_a_full_disk(len(data) + room, lambda: append_jsonl(file, {"text": "x" * 500})) == 1
    assert file.read_bytes() == data


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    pids = [fork(lambda who=who: [append_jsonl(file, {"who": who * 300, "n": n}) for n in range(50)]) for who in "ab"]
    assert [ends_with(pid) for pid in pids] == [0, 0]
    records = read_jsonl(file)
    assert sorted((r["who"][0], r["n"]) for r in records) == [(who, n) for who in "ab" for n in range(50)]


def test_a_line_is_on_the_disk_when_the_call_returns(tmp_path: Path, monkeypatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    append_jsonl(tmp_path / "log.jsonl", RECORDS[0])
    write_text(tmp_path / "a.txt", "12345")
    assert synced == [(tmp_path / "log.jsonl").stat().st_size, 5]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
