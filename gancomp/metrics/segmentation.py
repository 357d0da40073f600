"""What a segmentation network sees in images, against the label maps that they were painted of: mean IoU, pixel accuracy.

The network is a local file. The literature's numbers for GauGAN on Cityscapes are of DRN-D-105; those of other networks are
comparable with themselves only.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp.checkpoints import read_weights
from gancomp.errors import CheckpointError, ConfigError, first_line
from gancomp.io import sha256_file
from gancomp.metrics.espnet import EspNet


class Segmenter(ABC):
    """Finds a class for every pixel of uint8 RGB images.

    Attributes:
        name: what its scores are said to be of.
        digest: SHA-256 of its file, part of every reported number's protocol.
        resize: how images are brought to its size, in words.
        ignored: labels that are not scored, such as "unlabelled".
    """

    name: str
    digest: str
    resize: str
    ignored: tuple[int, ...] = ()

    @abstractmethod
    def to(self, device: torch.device) -> Segmenter:
        """Move to a device."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """[N, classes, h, w] of uint8 images [N, 3, H, W]."""

    @torch.inference_mode()
    def segment(self, images: Tensor) -> Tensor:
        """Labels [N, H, W] (int64) of uint8 images [N, 3, H, W].

        Raises:
            ConfigError: other images.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ConfigError(f"images: {images.dtype} {list(images.shape)}, expected uint8 [N, 3, H, W]")
        classes = self.logits(images).argmax(1, keepdim=True)
        return F.interpolate(classes.float(), images.shape[2:], mode="nearest-exact")[:, 0].long()


# By the number of outputs of a published file: name, BGR means and deviations, (height, width), what is not scored.
_ESPNETS = {
    12: (
        "espnet_camvid",
        (110.33139, 108.40919, 105.03353),
        (72.125206, 72.68849, 69.902596),
        (360, 480),
        (11,),
    ),
    20: (
        "espnet_cityscapes",
        (72.3923111, 82.90893555, 73.15840149),
        (45.3192215, 46.15289307, 44.91483307),
        (512, 1024),
        (19,),
    ),
}


class EspNetSegmenter(Segmenter):
    """A published ESPNet for CamVid (12 outputs) or Cityscapes (20, train ids)."""

    def __init__(self, path: Path, state: dict[str, Tensor]) -> None:
        classes = state["classifier.weight"].shape[1]
        if classes not in _ESPNETS:
            raise CheckpointError(f"{path}: an ESPNet of {classes} outputs; known are those of 12 (CamVid) and 20 (Cityscapes)")
        self.name, mean, std, self._size, self.ignored = _ESPNETS[classes]
        self.digest = sha256_file(path)
        self.resize = f"bicubic, {self._size[1]}x{self._size[0]}; classes nearest"
        self._network = EspNet(classes, early=state["conv.conv.weight"].shape[1] == classes + 19)
        try:
            self._network.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: tensors do not fit an ESPNet ({first_line(error)})") from None
        self._network.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def to(self, device: torch.device) -> EspNetSegmenter:
        self._network.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        x = images
        if x.shape[2:] != self._size:
            # In 8 bits and on the CPU it is Pillow's resize, the same for every device.
            x = F.interpolate(x.cpu(), self._size, mode="bicubic", antialias=True).to(images.device)
        # As it was trained: blue first, and scaled twice.
        return self._network((x.flip(1).float() - self._mean) / self._std / 255)


class ExportedSegmenter(Segmenter):
    """A user's own network as a ``torch.export`` program: uint8 [N, 3, H, W] to logits [N, classes, h, w]."""

    resize = "as exported; classes nearest"

    def __init__(self, path: Path) -> None:
        try:
            self._module = torch.export.load(str(path)).module()
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be loaded as an exported program ({first_line(error)})") from None
        self.name, self.digest = path.stem, sha256_file(path)

    def to(self, device: torch.device) -> ExportedSegmenter:
        self._module.to(device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        logits = self._module(images.contiguous())
        if not isinstance(logits, Tensor) or logits.dim() != 4 or len(logits) != len(images):
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise CheckpointError(f"segmentation network {self.name}: returned {shape}, expected [N, classes, H, W]")
        return logits


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """The segmentation network of a file.

    Args:
        path: a published ESPNet's state dict (``.pth``), or a ``.pt2`` exported program.

    Raises:
        CheckpointError: missing, damaged, or of no known network.
    """
    path = Path(path)
    if path.suffix == ".pt2":
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        return ExportedSegmenter(path)
    state, _ = read_weights(path)
    if {"encoder.level1.conv.weight", "conv.conv.weight", "classifier.weight"} <= state.keys():
        return EspNetSegmenter(path, state)
    raise CheckpointError(f"{path}: not a known segmentation network; known are ESPNet and .pt2 programs")


class Confusion:
    """How often every class of the label maps was seen as every class, over a whole split.

    Args:
        classes: of the label maps, 0 to ``classes - 1``.
        ignored: labels whose pixels are not scored.
    """

    def __init__(self, classes: int, ignored: tuple[int, ...] = ()) -> None:
        self.classes, self.ignored = classes, ignored
        # The last column is of what is no class of the maps.
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def add(self, labels: Tensor, seen: Tensor) -> None:
        """Count the pixels of label maps [N, H, W] and of what was seen [N, H, W], integers."""
        labels, seen = labels.flatten().long().cpu(), seen.flatten().long().cpu()
        scored = (labels >= 0) & (labels < self.classes)
        for label in self.ignored:
            scored &= labels != label
        seen = torch.where((seen < 0) | (seen >= self.classes), self.classes, seen)[scored]
        pairs = labels[scored] * (self.classes + 1) + seen
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union of every class, float64 [classes]; NaN for one that is neither there nor seen."""
        counts = self.counts.double()
        square = counts[:, : self.classes]
        hit = square.diagonal()
        iou = hit / (counts.sum(1) + square.sum(0) - hit)
        iou[[label for label in self.ignored if label < self.classes]] = float("nan")
        return iou

    @property
    def miou(self) -> float:
        """Mean over the classes that are there or seen, 0 to 1; NaN without any."""
        return float(self.iou().nanmean())

    @property
    def accuracy(self) -> float:
        """Share of the scored pixels that were seen as what they are; 0 without any."""
        return int(self.counts.diagonal().sum()) / max(int(self.counts.sum()), 1)
