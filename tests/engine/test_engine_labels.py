"""Networks of label maps in the engine: both forms of their input, what is refused, and equal bits where they must be equal."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp import _C, Engine
from gancomp.data import to_uint8
from gancomp.errors import CheckpointError, ConfigError
from gancomp.models import ResnetConfig, SpadeConfig

from ..models.published_spade import one_hot
from .networks import SPADES, build, example, labels_of

ISAS = _C.supported_isas()
every_isa = pytest.mark.parametrize("isa", ISAS)
FORMS = ["SPADE, separable", "SPADE, separable, instance", "SPADE, dense, instance"]
WITH_EDGES, WITHOUT = SPADES["SPADE, separable"], SPADES["SPADE, separable, instance"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("labels")
    paths = {name: folder / f"{i}.safetensors" for i, name in enumerate(SPADES)}
    for name, path in paths.items():
        build(SPADES[name]).save(path)
    return paths


@pytest.fixture(scope="module")
def edged(files) -> Engine:
    return Engine(files["SPADE, separable"], threads=1)


@pytest.fixture(scope="module")
def plain(files) -> Engine:
    return Engine(files["SPADE, separable, instance"], threads=1)


@every_isa
@pytest.mark.parametrize("name", FORMS)
def test_labels_give_the_bits_of_their_one_hot_image(files, name: str, isa: str) -> None:
    engine, config = Engine(files[name], threads=2, isa=isa), SPADES[name]
    labels = labels_of(config, (40, 72), 2)
    expected = engine(one_hot(labels, config.label_nc))
    assert (engine.classes, engine.edges) == (config.label_nc, config.instance_edges)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert torch.equal(engine(labels.to(dtype)), expected)
    for dtype in (np.uint16, np.uint32, np.uint64):
        assert np.array_equal(engine(labels.numpy().astype(dtype)), expected.numpy())
    assert np.array_equal(engine(labels.numpy()[1:]), expected.numpy()[1:])


@every_isa
@pytest.mark.parametrize("name", FORMS)
def test_threads_and_batches_give_the_same_bits(files, name: str, isa: str) -> None:
    labels = labels_of(SPADES[name], (70, 150), 3).numpy()
    results = [Engine(files[name], threads=threads, isa=isa)(labels) for threads in (1, 2, 3, 16)]
    assert all(np.array_equal(result, results[0]) for result in results[1:])
    single = [Engine(files[name], isa=isa)(labels[i : i + 1]) for i in range(3)]
    assert np.array_equal(np.concatenate(single), results[0])


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (45, 130)])
def test_padding_is_that_of_translate_index_by_index(edged: Engine, size: tuple[int, int]) -> None:
    generator, seen = build(WITH_EDGES), []
    forward = generator.forward
    generator.forward = lambda x: seen.append(x) or forward(x)
    labels = labels_of(WITH_EDGES, size, 1)
    with torch.inference_mode():
        generator.translate(labels)
    assert torch.equal(edged(labels), edged(seen[0])[..., : size[0], : size[1]])


def test_layouts_without_edges(plain: Engine) -> None:
    labels = labels_of(WITHOUT, (32, 40), 2).numpy()
    expected = plain(labels)
    assert expected.shape == (2, 2, 32, 40)
    assert np.array_equal(plain(labels[:, 0]), expected)
    assert np.array_equal(plain(labels[1, 0]), expected[1])
    assert np.array_equal(plain(labels[1]), expected[1:]), "one map [1, H, W] is a batch of one"
    assert np.array_equal(plain(labels[..., ::-1, :].copy()[..., ::-1, :]), expected)


def test_edges_are_all_that_is_not_zero(edged: Engine) -> None:
    labels = labels_of(WITH_EDGES, (32, 40), 1).numpy()
    expected, more = edged(labels), labels.copy()
    more[:, 1] *= np.random.default_rng(0).choice([-5, 255, 2**40], more[:, 1].shape)
    assert np.array_equal(edged(more), expected)
    more[:, 1] = 1 - labels[:, 1]
    assert not np.array_equal(edged(more), expected), "edges count"


def test_bytes_and_given_memory(edged: Engine) -> None:
    labels = labels_of(WITH_EDGES, (32, 40), 2).numpy()
    floats = edged(labels)
    out, photo = np.empty_like(floats), np.empty((2, 32, 40, 3), np.uint8)
    assert edged(labels, out=out) is out
    assert np.array_equal(out, floats)
    assert edged(labels, out=photo) is photo
    assert np.array_equal(photo, to_uint8(torch.from_numpy(floats)).permute(0, 2, 3, 1).numpy())
    assert np.array_equal(edged(labels[0], out=photo[0]), photo[0])


@pytest.mark.parametrize("mode", ["L", "P", "I"])
def test_pictures(tmp_path: Path, mode: str) -> None:
    config = SpadeConfig.parse("1_1_1_1_1_1_1_1", label_nc=4, instance_edges=False)
    build(config).save(tmp_path / "g.safetensors")
    engine, labels = Engine(tmp_path / "g.safetensors"), labels_of(config, (32, 48), 1).numpy()[0, 0]
    picture = Image.fromarray(labels.astype(np.int32 if mode == "I" else np.uint8))
    if mode == "P":
        picture = Image.frombytes("P", picture.size, labels.astype(np.uint8).tobytes())
        picture.putpalette(range(200, 212))
    assert picture.mode == mode
    photo = engine(picture)
    assert (photo.mode, photo.size) == ("RGB", (48, 32))
    assert np.array_equal(np.asarray(photo), engine(labels, out=np.empty((32, 48, 3), np.uint8)))
    with pytest.raises(ConfigError, match="picture of mode RGB, expected one of labels"):
        engine(photo)


def wrong_one_hot(value: float, channel: int = 0) -> np.ndarray:
    x = example(WITH_EDGES, (32, 40), 2).numpy().copy()
    x[1, channel, 17, 23] += value
    return x


LABELS = labels_of(WITH_EDGES, (32, 40), 2).numpy()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.where(LABELS == 3, 4, LABELS), "x: has labels that the network does not know; expected 0 to 3"),
        (np.where(LABELS == 3, -1, LABELS), "x: has labels that the network does not know"),
        (np.where(LABELS == 3, 2**32, LABELS), "x: has labels that the network does not know"),
        (np.where(LABELS == 3, 2**64 - 1, LABELS.astype(np.uint64)), "x: has labels that the network does not know"),
        (wrong_one_hot(0.5), "x: expected the one-hot image of a label map: at every pixel one class of 0 to 3 that is 1, all"),
        (wrong_one_hot(-1.0), "x: expected the one-hot image"),
        (wrong_one_hot(1.0), "x: expected the one-hot image"),
        (wrong_one_hot(float("nan"), 2), "x: expected the one-hot image"),
        (wrong_one_hot(2.0, 4), "others 0, and an edge of 0 or 1"),
        (wrong_one_hot(float("nan"), 4), "others 0, and an edge of 0 or 1"),
        (np.zeros((1, 5, 32, 40), np.float32), "x: expected the one-hot image"),
        (np.ones((1, 5, 32, 40), np.float32), "x: expected the one-hot image"),
        (np.zeros((1, 4, 32, 40), np.float32), "image: has shape [1, 4, 32, 40], expected [5, H, W] or [N, 5, H, W]"),
        (LABELS[:, 0], "image: has shape [2, 32, 40], expected [2, H, W] or [N, 2, H, W] (labels, edges)"),
        (LABELS[:, :1], "image: has shape [2, 1, 32, 40], expected [2, H, W]"),
        (LABELS.astype(np.float64), "image: has type float64, expected integers (labels) or float32 (their one-hot image)"),
        (LABELS > 0, "image: has type bool, expected integers"),
        (LABELS[..., :15], "width=15: expected 16 to 16384"),
        (Image.new("L", (32, 32)), "image: is a picture, but the network's label maps have edges too"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused(edged: Engine, image: object, message: str) -> None:
    if isinstance(image, np.ndarray) and image.ndim == 3:
        image = image[:1]
        message = message.replace("[2, 32, 40]", "[1, 32, 40]")
    with pytest.raises(ConfigError, match=re.escape(message)):
        edged(image)
    assert edged(LABELS).shape == (2, 3, 32, 40), "the engine goes on"


def test_images_and_label_maps_are_not_mistaken(plain: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image: is a picture, which has 1 or 3 channels; the network's out_channels is 2"):
        plain(Image.new("RGB", (32, 32)))
    for shape in ((1, 2, 32, 40), (32,), (1, 1, 1, 32, 40)):
        with pytest.raises(ConfigError, match="for integer labels"):
            plain(np.zeros(shape, np.int64))
    labels = np.zeros((32, 40), np.uint8)
    for out in (np.empty((2, 32, 40), np.float64), np.empty((32, 40, 3), np.uint8), np.empty((32, 40, 2), np.float32)):
        with pytest.raises(ConfigError, match="out: is"):
            plain(labels, out=out)
    build(ResnetConfig.uniform(4, 1, in_channels=1)).save(tmp_path / "g.safetensors")
    images = Engine(tmp_path / "g.safetensors")
    assert (images.classes, images.edges) == (0, False)
    with pytest.raises(ConfigError, match="has type int64"):
        images(np.zeros((32, 40), np.int64))
    with pytest.raises(ConfigError, match="takes no label maps"):
        images._native.run_labels(np.zeros((1, 1, 32, 40), np.int32), np.empty((1, 3, 32, 40), np.float32))
    with pytest.raises(ConfigError, match="expected a label map"):
        plain._native.run_bytes(np.zeros((1, 32, 40, 3), np.uint8), np.empty((1, 32, 40, 2), np.uint8))


def test_8_bits_are_refused_where_nothing_would_run_in_them(files) -> None:
    if "avx512vnni" not in ISAS:
        pytest.skip("no 8-bit dot products")
    with pytest.raises(CheckpointError, match="precision=int8: no convolution of this network runs in 8 bits; use f32"):
        Engine(files["SPADE, separable, wide"], precision="int8")


def test_other_sizes_and_threads_in_between(edged: Engine) -> None:
    inputs = [labels_of(WITH_EDGES, size, 1).numpy() for size in ((64, 64), (20, 130), (129, 64), (64, 65))]
    expected = [edged(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            for result, wanted in zip(pool.map(edged, inputs), expected, strict=True):
                assert np.array_equal(result, wanted)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inner", [1, 2], "config: inner: has 2 values, expected 3"),
        ("up", [1, 1, 1, 1, 1], "config: up: has 5 values, expected 4"),
        ("embed", [2], "config: embed: has 1 values, expected 7"),
        ("stream", 0, "config: stream=0: expected a whole number between 1 and"),
        ("label_nc", 10**9, "config: label_nc=1000000000: expected a whole number between 1 and"),
        ("label_nc", 5, "but the configuration wants"),
        ("instance_edges", 1, "config: instance_edges=1: expected true or false"),
        ("upsampling", "much", "config: upsampling=\"much\": expected one of normal, more, most"),
        ("norm", "none", "config: norm=\"none\": expected one of batch, instance"),
        ("aspect_ratio", -1, "config: aspect_ratio=-1: expected a number"),
        ("separable", False, "is missing"),
    ],
)  # fmt: skip
def test_wrong_configurations(field: str, value: object, message: str) -> None:
    from safetensors.torch import load

    from gancomp.models.base import network_to_bytes

    generator = build(WITH_EDGES)
    data = network_to_bytes({**generator.config_dict(), field: value}, load(generator.to_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Engine(data)
