"""Public sets from an archive to a folder that the loaders read, by the command line."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gancomp.cli import main
from gancomp.data import DataConfig, open_dataset
from gancomp.data import prepare as module
from gancomp.data.catalogue import SETS
from gancomp.data.prepare import Wishes, prepare
from gancomp.errors import ConfigError, DataError

UNPAIRED, PAIRED = SETS["horse2zebra"], SETS["maps"]


def png(width: int, number: int) -> bytes:
    """A picture told by its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, width, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def zebras(tmp_path: Path) -> Path:
    """An archive of the layout of CycleGAN's, in the folder that it is looked for in."""
    out = tmp_path / "data"
    out.mkdir(exist_ok=True)
    with zipfile.ZipFile(out / "horse2zebra.zip", "w") as archive:
        for folder, count in (("trainA", 25), ("trainB", 31), ("testA", 3), ("testB", 4)):
            for number in range(count):
                archive.writestr(f"horse2zebra/{folder}/n_{number}.png", png(16, number))
    return out


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """An archive of the layout of pix2pix's."""
    out = tmp_path / "data"
    out.mkdir(exist_ok=True)
    with tarfile.open(out / "maps.tar.gz", "w:gz") as archive:
        for folder, count in (("train", 25), ("val", 4)):
            for number in range(count):
                info = tarfile.TarInfo(f"maps/{folder}/{number + 1}.png")
                info.size = len(png(32, number))
                archive.addfile(info, io.BytesIO(png(32, number)))
    return out


def unknown(public=UNPAIRED):
    """A set whose archive has no published digest."""
    return replace(public, size=0, sha256="")


def names(root: Path, split: str, **changes) -> list[str]:
    return open_dataset(DataConfig(root=str(root), load_size=16, crop_size=16, **changes), split).names


def test_an_unpaired_set(zebras: Path) -> None:
    folder = prepare(unknown(), zebras, Wishes())
    assert folder == zebras / "horse2zebra"
    assert len(names(folder, "train", unpaired=True)) == 23
    assert names(folder, "test", unpaired=True) == ["n_0.png", "n_1.png", "n_2.png"]
    assert (folder / "trainA" / "n_7.png").read_bytes() == png(16, 7)
    record = json.loads((folder / "prepared.json").read_text())
    assert record["images"] == {"trainA": 25, "trainB": 31, "testA": 3, "testB": 4}
    assert record["sha256"] == hashlib.sha256((zebras / "horse2zebra.zip").read_bytes()).hexdigest()
    assert {path.name for path in zebras.iterdir()} == {"horse2zebra", "horse2zebra.sha256.json", "horse2zebra.zip"}
    assert folder.stat().st_mode & 0o777 == (folder / "trainA").stat().st_mode & 0o777, "an ordinary folder"


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_are_those_of_the_loader(zebras: Path, maps: Path, seed: int) -> None:
    for public, unpaired in ((unknown(), True), (PAIRED, False)):
        plain = prepare(public, zebras, Wishes())
        expected = {split: names(plain, split, unpaired=unpaired, seed=seed) for split in ("train", "val", "test")}
        plain.rename(zebras / f"plain-{public.name}")
        folder = prepare(public, zebras, Wishes(split_seed=seed))
        assert {split: names(folder, split, unpaired=unpaired, seed=99) for split in expected} == expected
        record = json.loads((folder / "prepared.json").read_text())
        assert record["split_seed"] == seed
        assert record["val"]["valA" if unpaired else "val"] == expected["val"]
        assert sum(record["images"].values()) == (63 if unpaired else 29)
    assert expected["val"] != names(zebras / "plain-maps", "val", seed=seed + 1)


def test_the_same_command_finds_its_folder(zebras: Path, capsys) -> None:
    prepare(unknown(), zebras, Wishes())
    (zebras / "horse2zebra.zip").unlink()
    arguments = ["data", "prepare", "horse2zebra", "--out", str(zebras)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{zebras / 'horse2zebra'}\n"
    assert main([*arguments, "--split-seed", "1"]) == 2
    assert "was made with split_seed=-1, asked is 1" in capsys.readouterr().err
    (zebras / "horse2zebra" / "trainB" / "n_3.png").unlink()
    assert main(arguments) == 2
    assert "trainB: has 30 images, 31 were written" in capsys.readouterr().err
    (zebras / "horse2zebra" / "prepared.json").write_text("[]")
    assert main(arguments) == 2
    assert "prepared.json: was not written by `gancomp data`, or is damaged" in capsys.readouterr().err
    (zebras / "horse2zebra" / "prepared.json").unlink()
    assert main(arguments) == 2
    assert "was not made by `gancomp data`" in capsys.readouterr().err


def test_digests(zebras: Path) -> None:
    archive = zebras / "horse2zebra.zip"
    with pytest.raises(DataError, match="bytes, expected 116867962, which is published"):
        prepare(UNPAIRED, zebras, Wishes())
    with pytest.raises(DataError, match=f"expected {'0' * 64}, which --sha256 has"):
        prepare(UNPAIRED, zebras, Wishes(sha256="0" * 64))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = prepare(UNPAIRED, zebras, Wishes(sha256=digest))
    assert not (zebras / "horse2zebra.sha256.json").exists(), "what is known need not be recorded"
    folder.rename(zebras / "first")
    prepare(unknown(), zebras, Wishes()).rename(zebras / "second")
    with zipfile.ZipFile(archive, "a") as changed:
        changed.writestr("horse2zebra/trainA/more.png", png(16, 99))
    with pytest.raises(DataError, match=r"expected .*horse2zebra\.sha256\.json has from before"):
        prepare(unknown(), zebras, Wishes())
    assert not folder.exists()


def test_the_archive_goes_only_where_it_was_fetched(zebras: Path, tmp_path: Path, monkeypatch) -> None:
    def download(url: str, path: Path, size: int, sha256: str) -> None:
        assert (url, size, sha256) == ("http://mirror/a.zip", 0, "")
        path.write_bytes((zebras / "horse2zebra.zip").read_bytes())

    monkeypatch.setattr(module, "download", download)
    for keep in (False, True):
        prepare(unknown(), tmp_path / str(keep), Wishes(url="http://mirror/a.zip", keep_archive=keep))
        assert (tmp_path / str(keep) / "horse2zebra.zip").exists() == keep


def test_nothing_is_left_of_a_failure(zebras: Path) -> None:
    with zipfile.ZipFile(zebras / "horse2zebra.zip", "a") as archive:
        archive.writestr("../evil/trainA/x.png", b"")
    (zebras / ".horse2zebra.killed.tmp" / "trainA").mkdir(parents=True)
    with pytest.raises(DataError, match="leaves the folder"):
        prepare(unknown(), zebras, Wishes())
    assert {path.name for path in zebras.iterdir()} == {"horse2zebra.zip", "horse2zebra.sha256.json"}


def test_one_at_a_time(zebras: Path) -> None:
    with module._alone(zebras, "maps"), pytest.raises(DataError, match="another `gancomp data` works in it"):
        prepare(unknown(), zebras, Wishes())
    prepare(unknown(), zebras, Wishes())


def test_a_published_split_stays(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(png(32, 1))
    assert module.hold_out(tmp_path, 3) == {}
    assert (tmp_path / "train" / "1.png").exists()


def test_the_list(capsys) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SETS]
    for public in SETS.values():
        assert public.url == "" or public.url.endswith(f"/{public.archive}")
        assert len(public.sha256) in (0, 64)
        assert bool(public.size) == bool(public.sha256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "name='': expected one of edges2shoes"),
        (["prepare", "zebras"], "name='zebras': expected one of edges2shoes"),
        (["list", "maps"], "takes no name"),
        (["prepare", "maps", "--source", "x"], "source='x': maps has no such setting"),
        (["prepare", "maps", "--url", "file:///x"], "url='file:///x': expected an address"),
        (["prepare", "maps", "--split-seed", "-2"], "split_seed=-2"),
        (["prepare", "maps", "--sha256", "12"], "sha256='12': expected 64"),
        (["prepare", "cityscapes"], "registered users only"),
        (["prepare", "cityscapes", "--url", "http://x/"], "url='http://x/': cityscapes has no such setting"),
        (["prepare", "cityscapes", "--source", "gone"], "source='gone': is no folder"),
        (["prepare", "cityscapes", "--source", ".", "--width", "30"], "width=30: expected a multiple of 4"),
    ],
)
def test_bad_input(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == ConfigError.exit_code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
