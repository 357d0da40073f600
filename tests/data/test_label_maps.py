"""Label maps with photographs: layouts, cutting without mixing, edges of instances, colours, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gancomp.data import DataConfig, open_dataset, paint_labels, stack_pairs
from gancomp.data.labels import label_colours, read_palette
from gancomp.errors import ConfigError, DataError

COLOURS = [(128, 64, 128), (70, 70, 70), (0, 0, 142)]


def config(root: Path, **fields) -> DataConfig:
    return DataConfig(root=str(root), **{"labels": 3, "load_size": 20, "crop_size": 16, "aspect_ratio": 2.0, **fields})


def write(root: Path, counts: dict[str, int], *, image: str = "{}", label: str = "{}_labels", instances: bool = False) -> None:
    """Maps of 40x20 of which every quarter is one class, and photographs whose red is 80 times that class."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for folder in (image.format(split), label.format(split), *([f"{split}_inst"] if instances else [])):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            labels = rng.integers(0, 3, (2, 2)).repeat(10, 0).repeat(20, 1).astype(np.uint8)
            photograph = np.stack([80 * labels, 255 - labels, np.full_like(labels, number)], 2)
            Image.fromarray(photograph).save(root / image.format(split) / f"{number}.png")
            Image.fromarray(labels).save(root / label.format(split) / f"{number}.png")
            if instances:
                ids = np.zeros((20, 40), dtype=np.uint16)
                ids[:, 13:] = 1000 + number
                Image.fromarray(ids).save(root / f"{split}_inst" / f"{number}.png")


@pytest.mark.parametrize(
    ("image", "label"), [("{}", "{}_labels"), ("{}_img", "{}_label"), ("{}_img", "{}_labels")], ids=["ours", "spade", "mixed"]
)
def test_a_map_and_its_photograph(tmp_path: Path, image: str, label: str) -> None:
    write(tmp_path, {"train": 6, "val": 2, "test": 3}, image=image, label=label)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        dataset = open_dataset(config(tmp_path), split)
        assert (len(dataset), dataset.paired, dataset.target_count) == (count, True, count)
        pair = dataset.load(1)
        assert (pair.input.shape, pair.input.dtype) == ((1, 8, 16), torch.uint8)
        assert (pair.target.shape, pair.name) == ((3, 8, 16), "1.png")
        assert torch.equal(dataset.load_target(1), pair.target)
        # Away from the borders of the quarters the photograph says which class it is of.
        inner = [1, 2, 5, 6], [1, 2, 3, 4, 11, 12, 13, 14]
        red = ((pair.target[0] + 1) * 127.5 / 80).round()
        for y in inner[0]:
            assert torch.equal(red[y, inner[1]], pair.input[0, y, inner[1]].float())
    batch = stack_pairs([dataset.load(i) for i in range(3)])
    assert batch.input.shape == (3, 1, 8, 16)


def test_training_cuts_both_alike_and_mixes_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"train": 12}, image="{}_img")
    dataset = open_dataset(config(tmp_path, load_size=36), "train")
    seen = set()
    for draw in range(20):
        pair = dataset.load(draw % len(dataset), np.random.default_rng(draw))
        again = dataset.load(draw % len(dataset), np.random.default_rng(draw))
        assert torch.equal(pair.input, again.input)
        assert torch.equal(pair.target, again.target)
        assert set(pair.input.unique().tolist()) <= {0, 1, 2}
        agree = ((pair.target[0] + 1) * 127.5 / 80).round() == pair.input[0]
        assert agree.float().mean() > 0.7, "the photograph is that of the map"
        seen.add(pair.input.numpy().tobytes())
    assert len(seen) > 8, "places and flips differ"


def test_edges_are_those_of_instances(tmp_path: Path) -> None:
    """Their ids may be above 255; the edge is where they change at the size that is trained on."""
    write(tmp_path, {"train": 6}, instances=True)
    pair = open_dataset(config(tmp_path, edges=True, crop_size=40, load_size=40), "train").load(0)
    assert (pair.input.shape, pair.input.dtype) == ((2, 20, 40), torch.uint8)
    expected = torch.zeros(20, 40)
    expected[:, 12:14] = 1
    assert torch.equal(pair.input[1].float(), expected)
    small = open_dataset(config(tmp_path, edges=True), "train").load(0)
    assert small.input[1].sum(1).eq(2).all(), "still two pixels wide"
    (tmp_path / "train_inst").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"train has 6 label maps and 0 of the kind map of instances"):
        open_dataset(config(tmp_path, edges=True), "train")


def test_label_maps_in_colours(tmp_path: Path) -> None:
    write(tmp_path, {"train": 6})
    plain = open_dataset(config(tmp_path), "train")
    expected = [plain.load(i).input for i in range(len(plain))]
    for path in (tmp_path / "train_labels").iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.array(COLOURS, dtype=np.uint8)[labels]).save(path)
    with pytest.raises(DataError, match=r"is a picture in colours \(RGB\), expected class numbers"):
        open_dataset(config(tmp_path), "train").load(0)
    palette = tmp_path / "colours.txt"
    palette.write_text("# streets\n128 64 128 road\n70, 70, 70 house; 71 71 71\n\n0 0 142\n")
    dataset = open_dataset(config(tmp_path, palette=str(palette)), "train")
    for index, labels in enumerate(expected):
        assert torch.equal(dataset.load(index).input, labels)
    palette.write_text("128 64 128\n1 2 3\n0 0 142\n")
    with pytest.raises(DataError, match=r"has colour 70 70 70, which data\.palette does not have"):
        [open_dataset(config(tmp_path, palette=str(palette)), "train").load(i) for i in range(len(expected))]


def test_a_palette_picture_is_its_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"train": 6})
    expected = open_dataset(config(tmp_path), "train").load(2).input
    for path in (tmp_path / "train_labels").iterdir():
        picture = Image.open(path).copy()
        picture.putpalette([value for colour in COLOURS for value in colour])
        assert picture.mode == "P"
        picture.save(path)
    assert torch.equal(open_dataset(config(tmp_path), "train").load(2).input, expected)


def test_pixels_without_a_class(tmp_path: Path) -> None:
    write(tmp_path, {"train": 4, "val": 1, "test": 1})
    path = tmp_path / "train_labels" / "0.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[:10] = 255
    Image.fromarray(labels).save(path)
    with pytest.raises(DataError, match=r"0\.png: has label 255, data\.labels=3 are 0 to 2 \(data\.dont_care names"):
        [open_dataset(config(tmp_path), "train").load(i) for i in range(4)]
    dataset = open_dataset(config(tmp_path, labels=4, dont_care=255), "train")
    assert dataset.load(dataset.names.index("0.png")).input[0, :3].eq(3).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n4 5 6\n", "has colours of 2 classes, data.labels=3"),
        ("1 2 3\n1 2 3\n4 5 6\n", "has colour 1 2 3 twice"),
        ("1 2\n", "expected `R G B name`"),
        ("1 2 300\n", "expected `R G B name`"),
    ],
)
def test_palettes_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "colours.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_palette(tmp_path / "colours.txt", 3)


def test_layouts_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label maps found"):
        open_dataset(config(tmp_path), "train")
    write(tmp_path, {"train": 4, "val": 1, "test": 1})
    (tmp_path / "train" / "3.png").unlink()
    with pytest.raises(DataError, match="1 have no partner of equal name, first '3'"):
        open_dataset(config(tmp_path), "train")
    Image.new("RGB", (41, 20)).save(tmp_path / "train" / "3.png")
    with pytest.raises(DataError, match=r"3\.png: is 40x20, its photograph .*3\.png is 41x20"):
        [open_dataset(config(tmp_path), "train").load(i) for i in range(4)]
    (tmp_path / "train_labels" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png: cannot be read as a label map"):
        open_dataset(config(tmp_path), "train").load(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": 0, "edges": True}, "say how many classes by data.labels"),
        ({"labels": 0, "aspect_ratio": 2.0}, "say how many classes by data.labels"),
        ({"labels": 3, "unpaired": True}, "do not go with them"),
        ({"labels": 3, "direction": "BtoA"}, "do not go with them"),
        ({"labels": 3, "aspect_ratio": 0.01}, "aspect_ratio=0.01"),
        ({"labels": -1}, "data.labels=-1"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)
    if fields == {"labels": 3, "aspect_ratio": 0.01}:
        with pytest.raises(ConfigError, match="the embedded set has no label maps"):
            open_dataset(DataConfig(labels=3), "train")


def test_sizes() -> None:
    data = DataConfig(labels=3, edges=True, crop_size=256, aspect_ratio=4 / 3)
    assert (data.crop, data.size(286), data.input_channels) == ((192, 256), (286, 214), 4)
    assert (DataConfig().crop, DataConfig(in_channels=1).input_channels) == ((256, 256), 1)


def test_painted_maps() -> None:
    """Every class has its colour, whatever else is in the map; edges are black."""
    colours = label_colours(40)
    assert colours.min() >= -1
    assert colours.max() <= 1
    assert len({tuple(row) for row in colours.tolist()}) == 40
    labels = torch.tensor([[[[0, 5], [2, 2]]]], dtype=torch.uint8)
    picture = paint_labels(labels)
    assert picture.shape == (1, 3, 2, 2)
    assert torch.equal(picture[0, :, 0, 1], colours[5])
    edged = paint_labels(torch.cat([labels, torch.tensor([[[[0, 1], [0, 0]]]], dtype=torch.uint8)], 1))
    assert edged[0, :, 0, 1].eq(-1).all()
    assert torch.equal(edged[0, :, 1, 0], colours[2])


def test_camvid(shared) -> None:
    data = DataConfig(root=str(shared / "data/camvid"), labels=12, crop_size=256, load_size=256, aspect_ratio=4 / 3)
    assert [len(open_dataset(data, split)) for split in ("train", "val", "test")] == [367, 81, 187]
    pair = open_dataset(data, "val").load(0)
    assert pair.input.shape == (1, 192, 256)
    assert int(pair.input.max()) <= 11
