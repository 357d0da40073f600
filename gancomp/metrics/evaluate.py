"""Evaluate generators on a split: image distances and a Frechet distance, each number with its protocol.

Of unpaired images nobody knows what they should become: there the image distances are to the teacher's output. The Frechet
distance is to images of the output side, by default of the same split; the literature takes all there are (train and test) for
unpaired sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gancomp.data import Batch, ImageDataset, eval_batches, to_uint8
from gancomp.errors import ConfigError, NotFiniteError
from gancomp.metrics.features import FeatureExtractor
from gancomp.metrics.frechet import Statistics, StatisticsAccumulator, frechet_distance
from gancomp.metrics.image import l1, psnr, ssim
from gancomp.metrics.segmentation import Confusion, Segmenter
from gancomp.models import Generator

METRICS = ("l1", "psnr", "ssim", "fd")
_PER_IMAGE = {"l1": l1, "psnr": psnr, "ssim": ssim}
HIGHER_IS_BETTER = frozenset({"psnr", "ssim", "miou", "accuracy"})
SEGMENTATION = ("miou", "accuracy")


@dataclass(frozen=True)
class TeacherImages:
    """A teacher whose images others are compared with: a call, and the digest of its weights for the protocol."""

    images: Callable[[Tensor], Tensor]
    digest: str


class Evaluator:
    """Scores generators on one split; the targets' features, and the images of a teacher, are computed once.

    Args:
        dataset: the split to score on.
        extractor: feature network of the Frechet distance.
        batch_size: images per forward pass; the scores do not depend on it beyond rounding.
        device: where generators and extractor run.
        references: splits whose output sides are the reference of the Frechet distance; none: ``dataset``'s.
        teacher: for unpaired images, what image distances are to; without it there are none.
        segmenter: what sees classes in the images that are painted of label maps; without it there are no scores of that.

    Raises:
        ConfigError: a segmenter for what is not painted of label maps.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        extractor: FeatureExtractor,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        *,
        references: Sequence[ImageDataset] = (),
        teacher: TeacherImages | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        if segmenter is not None and not dataset.config.labels:
            raise ConfigError("evaluate: segmenter: scores images painted of label maps; data.labels is 0")
        self.segmenter = segmenter if segmenter is None else segmenter.to(torch.device(device))
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self.extractor = extractor.to(self.device)
        self.references, self.teacher = references, None if dataset.paired else teacher
        self._reference: Statistics | None = None
        self._wanted: dict[int, Tensor] = {}
        self._room = dataset.config.cache_mb * 2**20

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that can be computed here."""
        distances = self.dataset.paired or self.teacher is not None
        return (*(METRICS if distances else ("fd",)), *(() if self.segmenter is None else SEGMENTATION))

    @property
    def fd_name(self) -> str:
        """The name of this evaluator's Frechet distance, e.g. ``fd_random``."""
        return f"fd_{self.extractor.name}"

    @property
    def reference_images(self) -> int:
        """Number of images that the Frechet distance is to."""
        return sum(dataset.target_count for dataset in self.references or [self.dataset])

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on besides the generator."""
        facts: dict[str, Any] = {
            "split": self.dataset.split,
            "images": len(self.dataset),
            "size": self.dataset.config.crop_size,
            **({"height": self.dataset.config.crop[0]} if self.dataset.config.labels else {}),
            "data": self.dataset.fingerprint,
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.digest,
            "extractor_resize": self.extractor.resize,
            "pixels": "uint8 by truncation",
        }
        if self.segmenter is not None:
            facts |= {
                "segmenter": self.segmenter.name,
                "segmenter_sha256": self.segmenter.digest,
                "segmenter_resize": self.segmenter.resize,
            }
        if self.references or not self.dataset.paired:
            sets = self.references or [self.dataset]
            facts["reference"] = f"{'+'.join(s.split for s in sets)} of the output side"
            facts["reference_images"] = self.reference_images
            facts["reference_data"] = "+".join(s.fingerprint for s in sets)
        if self.teacher is not None:
            facts |= {"distances": "to the teacher's output", "teacher_sha256": self.teacher.digest}
        return facts

    def reference(self) -> Statistics:
        """Feature statistics of the reference images."""
        if self._reference is None:
            statistics = StatisticsAccumulator()
            for dataset in self.references or [self.dataset]:
                for begin in range(0, dataset.target_count, self.batch_size):
                    indices = range(begin, min(begin + self.batch_size, dataset.target_count))
                    images = torch.stack([dataset.load_target(index) for index in indices])
                    statistics.add(self.extractor.extract(to_uint8(images.to(self.device))))
            self._reference = statistics.result()
        return self._reference

    def _targets(self, first: int, batch: Batch) -> Tensor:
        """What the images of a batch, whose first has the number ``first``, should become.

        A teacher's images are kept in memory up to the ``cache_mb`` of the data set, and painted again beyond that.
        """
        if self.teacher is None:
            return batch.target.to(self.device)
        kept = [self._wanted.get(first + i) for i in range(len(batch.names))]
        if all(image is not None for image in kept):
            return torch.stack([image for image in kept if image is not None]).to(self.device)
        images = self.teacher.images(batch.input.to(self.device)).float()
        for number, image in enumerate(images.cpu(), first):
            size = image.numel() * image.element_size()
            if number not in self._wanted and size <= self._room:
                self._wanted[number] = image.clone()
                self._room -= size
        return images

    @torch.inference_mode()
    def evaluate(self, generator: Callable[[Tensor], Tensor], metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Mean scores of ``generator`` over the split.

        Args:
            generator: maps [N, C, H, W] in [-1, 1] to [N, C', H, W] in [-1, 1], such as what a :class:`gancomp.metrics.Runner`
                gives. Of a :class:`gancomp.models.Generator`, in evaluation mode, that is ``translate``, which takes images
                of any size.
            metrics: which of ``l1``, ``psnr``, ``ssim``, ``fd``, ``miou``, ``accuracy`` to compute; by default :attr:`metrics`.

        Returns:
            The scores by name; the Frechet distance under :attr:`fd_name`. An image's PSNR counts as 100 dB at most.

        Raises:
            ConfigError: unknown metric, an image distance without anything to compare with, or a Frechet distance of fewer than
                two images.
            NotFiniteError: an output that is not finite.
        """
        metrics = self.metrics if metrics is None else metrics
        if unknown := [name for name in metrics if name not in METRICS + SEGMENTATION]:
            raise ConfigError(f"metrics={unknown}: expected some of {', '.join(METRICS + SEGMENTATION)}")
        if self.segmenter is None and (unseen := [name for name in metrics if name in SEGMENTATION]):
            raise ConfigError(f"metrics={unseen}: no segmentation network is given (evaluate.segmenter)")
        if missing := [name for name in metrics if name not in self.metrics]:
            raise ConfigError(
                f"metrics={missing}: unpaired images have no ground truth, and no teacher is given to compare with"
            )
        translate = generator.translate if isinstance(generator, Generator) else generator
        sums = dict.fromkeys([name for name in metrics if name in _PER_IMAGE], 0.0)
        seen = self.segmenter if any(name in SEGMENTATION for name in metrics) else None
        confusion = None if seen is None else Confusion(self.dataset.config.labels, seen.ignored)
        statistics = StatisticsAccumulator()
        for number, batch in enumerate(eval_batches(self.dataset, self.batch_size)):
            output = translate(batch.input.to(self.device)).float()
            if not torch.isfinite(output).all():
                raise NotFiniteError("the generator's output: contains values that are not finite")
            if sums:
                target = self._targets(number * self.batch_size, batch)
                for name in sums:
                    sums[name] += float(_PER_IMAGE[name](output, target).clamp_max(100.0).sum())
            if "fd" in metrics:
                statistics.add(self.extractor.extract(to_uint8(output)))
            if seen is not None and confusion is not None:
                confusion.add(batch.input[:, 0], seen.segment(to_uint8(output)))
        scores = {name: value / len(self.dataset) for name, value in sums.items()}
        if "fd" in metrics:
            scores[self.fd_name] = frechet_distance(statistics.result(), self.reference())
        if confusion is not None:
            scores |= {name: getattr(confusion, name) for name in metrics if name in SEGMENTATION}
        return scores
