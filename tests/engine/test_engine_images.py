"""Kinds of images that the engine takes, what it gives back, and what it says of wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp import _C, Engine
from gancomp.data import to_image, to_tensor
from gancomp.errors import BackendError, CheckpointError, ConfigError
from gancomp.models import ResnetConfig

from .networks import build

CHANNELS = [(3, 3), (1, 1), (3, 1), (1, 3), (2, 5)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[tuple[int, int], Path]:
    """A small network for each pair of input and output channels."""
    folder = tmp_path_factory.mktemp("files")
    paths = {channels: folder / f"{channels[0]}to{channels[1]}.safetensors" for channels in CHANNELS}
    for (inputs, outputs), path in paths.items():
        build(ResnetConfig.uniform(4, 1, in_channels=inputs, out_channels=outputs)).save(path)
    return paths


@pytest.fixture(scope="module")
def engine(files) -> Engine:
    return Engine(files[3, 3], threads=1)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def planes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32) * 2 - 1


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_arrays_keep_their_layout(files, channels: tuple[int, int]) -> None:
    engine, (c, d) = Engine(files[channels]), channels
    batch = engine(planes(2, c, 18, 22))
    assert (batch.shape, batch.dtype) == ((2, d, 18, 22), np.float32)
    assert np.array_equal(engine(planes(2, c, 18, 22)[1]), batch[1])
    bytes_ = engine(pixels(2, 18, 22, c))
    assert (bytes_.shape, bytes_.dtype) == ((2, 18, 22, d), np.uint8)
    assert np.array_equal(engine(pixels(2, 18, 22, c)[0]), bytes_[0])


def test_a_single_plane(files) -> None:
    grey, coloured = Engine(files[1, 1]), Engine(files[1, 3])
    assert np.array_equal(grey(planes(18, 22)), grey(planes(1, 18, 22))[0])
    assert np.array_equal(grey(pixels(18, 22)), grey(pixels(18, 22, 1))[:, :, 0])
    assert np.array_equal(coloured(planes(18, 22)), coloured(planes(1, 18, 22)))
    assert np.array_equal(coloured(pixels(18, 22)), coloured(pixels(18, 22, 1)))
    out = np.empty((18, 22), np.uint8)
    assert grey(pixels(18, 22), out=out) is out
    assert np.array_equal(out, grey(pixels(18, 22)))


@pytest.mark.parametrize(
    "image",
    [planes(2, 3, 18, 22), planes(3, 18, 22), pixels(18, 22, 3), pixels(2, 18, 22, 3)],
    ids=["NCHW", "CHW", "HWC", "NHWC"],
)
def test_tensors_are_as_arrays(engine: Engine, image: np.ndarray) -> None:
    y = engine(torch.from_numpy(image))
    assert isinstance(y, torch.Tensor)
    assert np.array_equal(y.numpy(), engine(image))
    with torch.inference_mode():
        assert torch.equal(engine(torch.from_numpy(image).clone()), y)


def test_any_memory_layout(engine: Engine) -> None:
    x = planes(2, 3, 18, 22)
    expected = engine(x)
    spaced = np.empty((2, 3, 36, 44), np.float32)
    spaced[..., ::2, ::2] = x
    turned = np.ascontiguousarray(x[:, ::-1, :, ::-1])
    for view in (np.asfortranarray(x), spaced[..., ::2, ::2], turned[:, ::-1, :, ::-1]):
        assert not view.flags.c_contiguous
        assert np.array_equal(engine(view), expected)
    channels_last = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    assert np.array_equal(engine(channels_last).numpy(), expected)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not unaligned.flags.writeable
    assert np.array_equal(engine(unaligned), expected)


def test_contiguous_images_are_not_copied(engine: Engine) -> None:
    x, out = planes(4, 3, 128, 128), np.empty((4, 3, 128, 128), np.float32)
    engine(x, out=out)

    def allocated(call) -> int:
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    tensor = torch.from_numpy(x)
    assert allocated(lambda: engine(x, out=out)) < 20_000
    assert x.nbytes <= allocated(lambda: engine(tensor)) < x.nbytes + 20_000, "the result alone"
    assert allocated(lambda: engine(x[..., ::-1], out=out)) >= x.nbytes, "the counter sees copies"


def test_the_image_is_left_alone(engine: Engine) -> None:
    for image in (planes(2, 3, 18, 22), pixels(18, 22, 3)):
        before = image.copy()
        image.flags.writeable = False
        engine(image)
        assert np.array_equal(image, before)


def test_pictures(files) -> None:
    picture = Image.fromarray(pixels(20, 24, 3))
    for channels, mode in ((3, "RGB"), (1, "L")):
        result = Engine(files[3, channels])(picture)
        assert (result.mode, result.size) == (mode, (24, 20))
        expected = Engine(files[3, channels])(to_tensor(picture))
        assert result.tobytes() == to_image(expected).tobytes()
    assert Engine(files[1, 3])(picture).tobytes() == Engine(files[1, 3])(picture.convert("L")).tobytes()


def test_pictures_of_other_kinds_are_converted_as_the_data_sets_do(files) -> None:
    engine, rgb = Engine(files[3, 3]), Image.fromarray(pixels(20, 24, 3))
    half = rgb.copy()
    half.putalpha(128)
    mixed = Image.fromarray(((pixels(20, 24, 3) * 128.0 + 255 * 127.0) / 255 + 0.5).astype(np.uint8))
    difference = np.asarray(engine(half), np.int16) - np.asarray(engine(mixed), np.int16)
    assert abs(difference).mean() < 3, "transparency is laid on white"
    palette = rgb.quantize(16)
    assert engine(palette).tobytes() == engine(palette.convert("RGB")).tobytes()
    turned = rgb.copy()
    turned.getexif()[274] = 6  # the camera lay on its side
    assert engine(turned).tobytes() == engine(rgb.rotate(-90, expand=True)).tobytes()
    deep = Image.fromarray(np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24))
    levels = Image.fromarray((np.asarray(deep) / 257.0 + 0.5).astype(np.uint8)).convert("RGB")
    assert engine(deep).tobytes() == engine(levels).tobytes()


def wrong(message: str, *arguments, **options):
    return pytest.param(message, arguments, options, id=message[:40])


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        wrong("image: is of type list, expected a numpy array, PIL image or torch tensor", [[1]]),
        wrong("image: is of type NoneType, expected a numpy array", None),
        wrong("image: has type float64, expected uint8 (0 to 255) or float32 (-1 to 1)", planes(3, 16, 16).astype(float)),
        wrong("image: has type >f4, expected uint8", planes(3, 16, 16).astype(">f4")),
        wrong("image: has shape [16, 16], expected [3, H, W] or [N, 3, H, W] for float32", planes(16, 16)),
        wrong("image: has shape [16, 16, 3], expected [3, H, W] or [N, 3, H, W] for float32", planes(16, 16, 3)),
        wrong("image: has shape [3, 16, 16], expected [H, W, 3] or [N, H, W, 3] for uint8", pixels(3, 16, 16)),
        wrong("image: has shape [1, 1, 3, 16, 16], expected [3, H, W]", planes(1, 1, 3, 16, 16)),
        wrong("image: is of type float32, expected a numpy array, PIL image or torch tensor", np.float32(1)),
        wrong("n=0: expected at least 1 image", planes(0, 3, 16, 16)),
        wrong("height=15: expected 16 to 16384", planes(3, 15, 16)),
        wrong("width=0: expected 16 to 16384", pixels(16, 0, 3)),
        wrong("width=16385: expected 16 to 16384", pixels(16, 16385, 3)),
        wrong("image: has type torch.float16, expected uint8", torch.zeros(3, 16, 16, dtype=torch.float16)),
        wrong("image: is a torch.strided tensor on meta, expected a dense one", torch.zeros(3, 16, 16, device="meta")),
        wrong("image: is a torch.sparse_coo tensor on cpu, expected a dense one", torch.zeros(3, 16, 16).to_sparse()),
        wrong("image: requires a gradient, which the engine does not", torch.zeros(3, 16, 16, requires_grad=True)),
        wrong("out: is list, expected an array uint8 [16, 16, 3]", pixels(16, 16, 3), out=[0]),
        wrong("out: is float32 [3, 16, 17], expected an array float32 [3, 16, 16]", planes(3, 16, 16), out=planes(3, 16, 17)),
        wrong("out: is float32 [3, 16, 16], expected an array uint8 [16, 16, 3]", pixels(16, 16, 3), out=planes(3, 16, 16)),
        wrong("out: expected a contiguous array", planes(3, 16, 16), out=planes(3, 16, 32)[..., ::2]),
        wrong("out: is for images that are numpy arrays", torch.zeros(3, 16, 16), out=planes(3, 16, 16)),
        wrong("out: is for images that are numpy arrays", Image.new("RGB", (16, 16)), out=pixels(16, 16, 3)),
    ],
)
def test_wrong_images(engine: Engine, message: str, arguments: tuple, options: dict) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        engine(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert engine(planes(3, 16, 16)).shape == (3, 16, 16), "the engine goes on"


def test_a_result_may_not_overwrite_the_image(engine: Engine) -> None:
    x = planes(2, 3, 16, 16)
    for out in (x, x[::-1][::-1]):
        with pytest.raises(ConfigError, match="out: shares memory with the image"):
            engine(x, out=out)
    with pytest.raises(ConfigError, match="out: shares memory with the image"):
        engine(x[0], out=x[0])
    engine(x[0], out=x[1])
    x.flags.writeable = False
    with pytest.raises(ConfigError, match="out: expected a contiguous array that may be written to"):
        engine(planes(2, 3, 16, 16), out=x)


def test_pictures_have_one_or_three_channels(files) -> None:
    with pytest.raises(ConfigError, match="image: is a picture, which has 1 or 3 channels; the network's in_channels is 2"):
        Engine(files[2, 5])(Image.new("RGB", (16, 16)))
    damaged = Image.fromarray(np.full((16, 16), np.nan, np.float32))
    with pytest.raises(ConfigError, match=r"image: cannot be read \(has samples that are not numbers\)"):
        Engine(files[3, 3])(damaged)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("threads=-1: expected a whole number from 0 (automatic) to 256", {"threads": -1}),
        ("threads=257: expected a whole number from 0 (automatic) to 256", {"threads": 257}),
        ("threads=1.5: expected a whole number", {"threads": 1.5}),
        ("threads='2': expected a whole number", {"threads": "2"}),
        ("threads=True: expected a whole number", {"threads": True}),
        (f"threads={10**30}: expected a whole number", {"threads": 10**30}),
        ("precision='bf16': expected f32 or int8", {"precision": "bf16"}),
        ("precision='f16': not built, for want of a processor with 16-bit arithmetic", {"precision": "f16"}),
        ("isa='sse9': this build on this processor has ", {"isa": "sse9"}),
        ("isa=3: expected a name or None", {"isa": 3}),
    ],
)
def test_wrong_options(files, message: str, options: dict) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Engine(files[3, 3], **options)


def test_wrong_sizes_and_runs(engine: Engine) -> None:
    for call in (engine.macs, engine.workspace):
        for sides, message in (((15, 16), "height=15"), ((16, 16385), "width=16385"), ((16, 17.5), "width=17.5")):
            with pytest.raises(ConfigError, match=f"{message}: expected a whole number from 16 to 16384"):
                call(*sides)
    with pytest.raises(ConfigError, match="runs=0: expected a whole number from 1"):
        engine.profile(planes(3, 16, 16), runs=0)
    with pytest.raises(ConfigError, match="threads=300"):
        engine.another(threads=300)


def test_precision_is_the_users_choice(files) -> None:
    engine = Engine(files[3, 3], isa="portable")
    assert (engine.precision, engine.another().precision) == ("f32", "f32")
    with pytest.raises(ConfigError, match="precision=int8: needs 8-bit dot products"):
        Engine(files[3, 3], precision="int8", isa="portable")
    if _C.isa() == "avx512vnni":
        coarse, fine, x = Engine(files[3, 3], precision="int8"), Engine(files[3, 3]), planes(3, 64, 64)
        assert (coarse.precision, coarse.another().precision) == ("int8", "int8")
        assert np.array_equal(coarse(x), coarse.another(threads=1)(x))
        assert 0 < abs(coarse(x) - fine(x)).max() < 0.5


def test_threads_come_from_the_environment(files, monkeypatch) -> None:
    monkeypatch.setenv("GANCOMP_NUM_THREADS", "3")
    assert Engine(files[3, 3]).threads == 3
    assert Engine(files[3, 3], threads=2).another().threads == 3
    assert Engine(files[3, 3], threads=np.int64(2)).threads == 2


def test_wrong_files(files, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: no such file"):
        Engine(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="model: is of type int, expected the path or the bytes of a file"):
        Engine(3)
    data = files[3, 3].read_bytes()
    for damaged in (b"", data[:7], data[:1000], data[:-1], data.replace(b"resnet", b"transf")):
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
            Engine(tmp_path / "damaged.safetensors")
        with pytest.raises(CheckpointError):
            Engine(damaged)


def test_a_file_or_its_bytes(files) -> None:
    path, x = files[3, 3], planes(3, 18, 22)
    expected = Engine(path)(x)
    assert np.array_equal(Engine(str(path))(x), expected)
    assert np.array_equal(Engine(path.read_bytes())(x), expected)


def test_a_missing_native_library_says_so(files, monkeypatch) -> None:
    import gancomp

    monkeypatch.delattr(gancomp, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "gancomp._C", None)
    with pytest.raises(BackendError, match="the engine needs the native library, which does not load"):
        Engine(files[3, 3])


def test_too_little_memory_is_an_error_and_nothing_else(files) -> None:
    """In a process that may take 2 GB: a large image fails cleanly, and the engine goes on with small ones."""
    program = """
import resource, sys
import numpy as np
from gancomp import _C, Engine
engine = Engine(sys.argv[1], threads=2)
x = np.zeros((3, 32, 32), np.float32)
before = engine(x)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
large = np.zeros((4096, 4096, 3), np.uint8)
assert engine.workspace(4096, 4096) > 2 << 30
for _ in range(3):
    try:
        engine(large)
    except MemoryError as error:
        assert "not enough memory for images of 4096x4096" in str(error), error
    else:
        raise SystemExit("there was enough memory")
    assert np.array_equal(engine(x), before)
print("done")
"""
    wide = files[3, 3].with_name("wide.safetensors")
    build(ResnetConfig.uniform(20, 0)).save(wide)
    done = subprocess.run([sys.executable, "-c", program, str(wide)], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr
