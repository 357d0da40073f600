"""Segmentation scores: the confusion of classes by counting, ESPNet by its published numbers, and a user's own network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gancomp.errors import CheckpointError, ConfigError
from gancomp.metrics.segmentation import Confusion, load_segmenter


def by_hand(labels: Tensor, seen: Tensor, classes: int, ignored: set[int]) -> tuple[float, float]:
    """Mean IoU and pixel accuracy, class by class and pixel by pixel."""
    scored = torch.tensor([[int(v) not in ignored for v in row] for row in labels])
    ious = []
    for c in range(classes):
        if c in ignored:
            continue
        both = int(((labels == c) & (seen == c) & scored).sum())
        either = int((((labels == c) | (seen == c)) & scored).sum())
        if either:
            ious.append(both / either)
    return sum(ious) / len(ious), int(((labels == seen) & scored).sum()) / int(scored.sum())


@pytest.mark.parametrize("ignored", [(), (3,), (3, 0), (9,)])
def test_scores_are_those_of_counting(ignored: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3, 60), generator=generator)
    seen = torch.where(torch.rand(3, 60, generator=generator) < 0.6, labels, torch.randint(7, (3, 60), generator=generator))
    confusion = Confusion(6, ignored)
    for row in range(3):
        confusion.add(labels[row].view(1, 6, 10).to(torch.uint8), seen[row].view(1, 6, 10))
    miou, accuracy = by_hand(labels, seen, 6, set(ignored))
    assert confusion.miou == pytest.approx(miou, abs=1e-12)
    assert confusion.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert 0.3 < miou < accuracy < 0.9


def test_a_split_is_one_count() -> None:
    """Not the mean of the images' scores."""
    confusion = Confusion(2)
    confusion.add(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9))
    confusion.add(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    assert confusion.iou().tolist() == [0.9, 0.0]
    assert (confusion.miou, confusion.accuracy) == (0.45, 0.9)


def test_a_class_that_is_nowhere_does_not_count() -> None:
    confusion = Confusion(3, ignored=(2,))
    confusion.add(torch.tensor([[[0, 0, 2]]]), torch.tensor([[[0, 2, 2]]]))
    assert confusion.iou()[0] == 0.5
    assert confusion.iou()[1:].isnan().all()
    assert (confusion.miou, confusion.accuracy) == (0.5, 0.5)


def images(folder: Path, count: int | None = None) -> tuple[Tensor, Tensor]:
    paths = sorted((folder / "val").iterdir())[:: 1 if count is None else 81 // count]
    photographs = np.stack([np.asarray(Image.open(path)) for path in paths])
    labels = np.stack([np.asarray(Image.open(folder / "val_labels" / f"{path.stem}.png")) for path in paths])
    return torch.from_numpy(photographs).permute(0, 3, 1, 2), torch.from_numpy(labels)


@pytest.mark.slow
def test_espnet_sees_camvid_as_its_authors_say(shared) -> None:
    """Real photographs at 256x192 with their true label maps: the ceiling for generated ones of that size."""
    segmenter = load_segmenter(shared / "weights/espnet/espnet_p2q8_camvid.pth")
    photographs, labels = images(shared / "data/camvid")
    confusion = Confusion(12, segmenter.ignored)
    for begin in range(0, len(labels), 9):
        confusion.add(labels[begin : begin + 9], segmenter.segment(photographs[begin : begin + 9]))
    assert len(labels) == 81
    assert round(confusion.miou, 3) == 0.705
    assert round(confusion.accuracy, 3) == 0.926
    assert segmenter.name == "espnet_camvid"
    assert len(segmenter.digest) == 64


def test_espnet_for_cityscapes(shared) -> None:
    """The other published file has another last convolution; it calls the lower middle of a street road (0)."""
    segmenter = load_segmenter(shared / "weights/espnet/espnet_p2q8_cityscapes.pth")
    photographs, labels = images(shared / "data/camvid", 2)
    seen = segmenter.segment(photographs[:2])
    assert seen.shape == (2, 192, 256)
    road = labels[:2] == 3
    assert (seen[road] == 0).float().mean() > 0.6


class Colours(nn.Module):
    """Classes by the strongest colour, at half the size."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::2, ::2].float()


def test_a_users_own_network(tmp_path: Path) -> None:
    photograph = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
    photograph[0, 2], photograph[1, 1, :, 6:], photograph[1, 0, :, :6] = 9, 9, 9
    dynamic = {"images": {0: torch.export.Dim("n")}}
    torch.export.save(torch.export.export(Colours(), (photograph,), dynamic_shapes=dynamic), tmp_path / "colours.pt2")
    segmenter = load_segmenter(tmp_path / "colours.pt2")
    seen = segmenter.segment(photograph)
    assert seen[0].eq(2).all()
    assert seen[1, :, :6].eq(0).all()
    assert seen[1, :, 6:].eq(1).all()
    assert (segmenter.name, segmenter.ignored) == ("colours", ())


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)])
def test_other_images(wrong: Tensor, shared) -> None:
    with pytest.raises(ConfigError, match=r"expected uint8 \[N, 3, H, W\]"):
        load_segmenter(shared / "weights/espnet/espnet_p2q8_camvid.pth").segment(wrong)


def test_other_files(tmp_path: Path, shared) -> None:
    with pytest.raises(CheckpointError, match="not a known segmentation network"):
        load_segmenter(shared / "weights/lpips_v0.1/alex.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_segmenter(tmp_path / "none.pt2")
    state = torch.load(shared / "weights/espnet/espnet_p2q8_camvid.pth", weights_only=True, map_location="cpu")
    torch.save({**state, "br.weight": torch.ones(3)}, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="tensors do not fit an ESPNet"):
        load_segmenter(tmp_path / "broken.pth")
    torch.save({**state, "classifier.weight": torch.ones(5, 5, 2, 2)}, tmp_path / "five.pth")
    with pytest.raises(CheckpointError, match="an ESPNet of 5 outputs"):
        load_segmenter(tmp_path / "five.pth")
