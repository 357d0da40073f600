"""Image files of every kind come in as 8-bit pictures, and leave as they came."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp.data import image_grid, read_image, save_image, to_image, to_tensor, to_uint8
from gancomp.data import images as module
from gancomp.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (6, 10), dtype=np.uint8)


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes) -> Path:
    """A PNG file byte by byte, for the kinds that Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


def luma(colours: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as images are made grey everywhere."""
    return colours.astype(float) @ [0.299, 0.587, 0.114]


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None].astype(float) / 255
    return colours * a + 255 * (1 - a)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm"])
def test_rgb_and_grey_are_exact(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(COLOURS).save(tmp_path / f"c.{ending}", **options)
    assert np.array_equal(read_image(tmp_path / f"c.{ending}"), COLOURS)
    grey = read_image(tmp_path / f"c.{ending}", 1)
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey) - luma(COLOURS)).max() <= 1
    if ending != "webp":
        Image.fromarray(GREYS).save(tmp_path / f"g.{ending}")
        assert np.array_equal(read_image(tmp_path / f"g.{ending}", 1), GREYS)
        assert np.array_equal(read_image(tmp_path / f"g.{ending}"), np.repeat(GREYS[..., None], 3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    alpha = RNG.integers(0, 256, (6, 10), dtype=np.uint8)
    alpha[0, :3] = (0, 255, 128)
    base = COLOURS if mode == "RGBA" else np.repeat(GREYS[..., None], 3, 2)
    Image.merge(mode, [*Image.fromarray(COLOURS if mode == "RGBA" else GREYS).split(), Image.fromarray(alpha)]).save(
        tmp_path / "a.png"
    )
    for channels in (3, 1):
        picture = np.asarray(read_image(tmp_path / "a.png", channels)).astype(float)
        expected = on_white(base, alpha)
        assert np.abs(picture - (expected if channels == 3 else luma(expected))).max() <= 2
        assert (picture[0, 0] == 255).all()


@pytest.mark.parametrize("transparent", [None, 2, bytes([255, 0, 128, 255])])
def test_palettes_are_expanded(tmp_path: Path, transparent: int | bytes | None) -> None:
    colours = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0], [90, 90, 200]], dtype=np.uint8)
    alphas = np.full(4, 255)
    if isinstance(transparent, int):
        alphas[transparent] = 0
    elif transparent:
        alphas[:] = list(transparent)
    indices = RNG.integers(0, 4, (6, 10), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colours.tobytes())
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "p.png", **({} if transparent is None else {"transparency": transparent}))
    with Image.open(tmp_path / "p.png") as kept:
        assert kept.mode == "P"
    expected = on_white(colours[indices], alphas[indices])
    assert np.abs(np.asarray(read_image(tmp_path / "p.png")).astype(float) - expected).max() <= 1


def test_a_colour_can_be_the_transparent_one(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "t.png", transparency=tuple(int(v) for v in COLOURS[2, 3]))
    picture = np.array(read_image(tmp_path / "t.png"))
    assert (picture[2, 3] == 255).all()
    picture[2, 3] = COLOURS[2, 3]
    assert np.array_equal(picture, COLOURS)


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (6, 10)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png", 1), bits * 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red = np.asarray(read_image(tmp_path / "c.jpg")).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 6


def test_sixteen_bit_grey_is_scaled_by_its_full_range(tmp_path: Path) -> None:
    samples = np.array([[0, 1, 128, 129, 257 * 77, 32768, 65407, 65535]], dtype=np.uint16)
    expected = np.floor(samples / 257 + 0.5)
    Image.fromarray(samples).save(tmp_path / "s.png")
    Image.fromarray(samples).save(tmp_path / "s.tif")
    (tmp_path / "s.pgm").write_bytes(b"P5 8 1 65535\n" + samples.astype(">u2").tobytes())
    for name in ("s.png", "s.tif", "s.pgm"):
        assert np.array_equal(read_image(tmp_path / name, 1), expected), name
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 1], expected), name


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colour(tmp_path: Path, kind: int, channels: int) -> None:
    samples = RNG.integers(0, 65536, (4, 5, channels), dtype=np.uint16)
    samples[..., 3:] = 65535
    file = png(tmp_path / "c.png", 5, 4, 16, kind, samples.astype(">u2").tobytes())
    assert np.abs(np.asarray(read_image(file)).astype(float) - samples[..., :3] / 257.0).max() <= 1


def test_floats_count_from_0_to_1(tmp_path: Path) -> None:
    samples = np.array([[-0.5, 0.0, 0.25, 0.5, 1.0, 7.0]], dtype=np.float32)
    Image.fromarray(samples).save(tmp_path / "f.tif")
    assert np.asarray(read_image(tmp_path / "f.tif", 1)).tolist() == [[0, 0, 64, 128, 255, 255]]
    samples[0, 1] = np.nan
    Image.fromarray(samples).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif: .*not numbers"):
        read_image(tmp_path / "f.tif")


# What brings the stored picture upright, by the tag's value (EXIF 2.3, section 4.6.4).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_tags_are_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "o.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "o.png"), UPRIGHT[orientation](COLOURS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif"])
@pytest.mark.parametrize("kept", [0, 1, 12, 0.5, 0.95])
def test_files_cut_short_are_named(tmp_path: Path, ending: str, kept: float) -> None:
    file = tmp_path / f"half.{ending}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(DataError) as caught:
        read_image(file)
    assert str(caught.value).startswith(f"{file}: cannot be read as an image (")
    assert "\n" not in str(caught.value)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture\n" * 100)
    (tmp_path / "folder.png").mkdir()
    data = bytearray((png(tmp_path / "sum.png", 5, 4, 8, 2, bytes(60))).read_bytes())
    data[45] ^= 255
    (tmp_path / "sum.png").write_bytes(data)
    for name in ("text.png", "folder.png", "sum.png"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match="channels=4"):
        read_image(tmp_path / "text.png", 4)


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"bomb\.png: has more pixels than the allowed 80000000"):
        read_image(png(tmp_path / "bomb.png", 60_000, 60_000, 1, 0, b""))
    with pytest.raises(DataError, match=r"wide\.png: has 9000x9000 pixels, allowed are 80000000"):
        read_image(png(tmp_path / "wide.png", 9_000, 9_000, 1, 0, b""))
    monkeypatch.setattr(module, "MAX_PIXELS", 59)
    Image.fromarray(COLOURS).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="10x6 pixels, allowed are 59"):
        read_image(tmp_path / "small.png")


def test_every_8_bit_value_survives_the_way_through_a_tensor() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor.shape == (1, 16, 16)
    exact = torch.from_numpy(values).double() / 127.5 - 1
    assert (tensor[0].double() - exact).abs().max() < 2**-23
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert torch.equal(to_uint8(tensor)[0], torch.from_numpy(values))
    assert np.array_equal(to_image(tensor), values)


def test_channels_come_first() -> None:
    tensor = to_tensor(Image.fromarray(COLOURS))
    assert tensor.shape == (3, 6, 10)
    assert tensor.is_contiguous()
    assert torch.equal(to_uint8(tensor), torch.from_numpy(COLOURS).permute(2, 0, 1))
    assert to_image(tensor).mode == "RGB"


def test_uint8_truncates_and_clips() -> None:
    levels = torch.tensor([-3.0, -1.0, 2 / 255 - 1 - 1e-4, 2 / 255 - 1 + 1e-4, 2 * 99.9 / 255 - 1, 0.9999, 1.0, 5.0])
    assert to_uint8(levels).tolist() == [0, 0, 0, 1, 99, 254, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_images_read_back_equal(tmp_path: Path, channels: int) -> None:
    tensor = to_tensor(Image.fromarray(COLOURS if channels == 3 else GREYS))
    save_image(tensor, tmp_path / "new" / "i.png")
    assert torch.equal(to_tensor(read_image(tmp_path / "new" / "i.png", channels)), tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["i.png"]


def test_grid_places_and_enlarges() -> None:
    rows = [[torch.full((3, 32, 32), v) for v in (-1.0, 1.0)], [torch.full((1, 32, 32), v) for v in (0.0, -1.0)]]
    grid = np.asarray(image_grid(rows, gap=4))
    assert grid.shape == (2 * 128 + 12, 2 * 128 + 12, 3)
    tiles = [grid[y : y + 128, x : x + 128] for y in (4, 136) for x in (4, 136)]
    assert [int(tile[0, 0, 0]) for tile in tiles] == [0, 255, 127, 0]
    assert all((tile == tile[0, 0]).all() for tile in tiles)
    assert (grid[:4] == 255).all()
    captioned = np.asarray(image_grid(rows, captions=["one", "two"], gap=4))
    assert captioned.shape[0] > grid.shape[0]
    assert (captioned[:18] != 255).any()
    with pytest.raises(ConfigError, match="equally long rows"):
        image_grid([[rows[0][0]], rows[1]])
    with pytest.raises(ConfigError, match="at least one image"):
        image_grid([])
