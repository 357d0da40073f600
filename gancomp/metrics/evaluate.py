"""Evaluate generators on a split: image distances and a Frechet distance, each number with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gancomp.data import PairedDataset, eval_batches, to_uint8
from gancomp.errors import ConfigError, NotFiniteError
from gancomp.metrics.features import FeatureExtractor
from gancomp.metrics.frechet import Statistics, StatisticsAccumulator, frechet_distance
from gancomp.metrics.image import l1, psnr, ssim
from gancomp.models import Generator

METRICS = ("l1", "psnr", "ssim", "fd")
_PER_IMAGE = {"l1": l1, "psnr": psnr, "ssim": ssim}
HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})


class Evaluator:
    """Scores generators on one split; the targets' features are computed once.

    Args:
        dataset: the split to score on.
        extractor: feature network of the Frechet distance.
        batch_size: images per forward pass; the scores do not depend on it beyond rounding.
        device: where generators and extractor run.
    """

    def __init__(
        self, dataset: PairedDataset, extractor: FeatureExtractor, batch_size: int = 8, device: torch.device | str = "cpu"
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, torch.device(device)
        self.extractor = extractor.to(self.device)
        self._reference: Statistics | None = None

    @property
    def fd_name(self) -> str:
        """The name of this evaluator's Frechet distance, e.g. ``fd_random``."""
        return f"fd_{self.extractor.name}"

    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on besides the generator."""
        return {
            "split": self.dataset.split,
            "images": len(self.dataset),
            "size": self.dataset.config.crop_size,
            "data": self.dataset.fingerprint,
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.digest,
            "extractor_resize": self.extractor.resize,
            "pixels": "uint8 by truncation",
        }

    def reference(self) -> Statistics:
        """Feature statistics of the split's targets."""
        if self._reference is None:
            statistics = StatisticsAccumulator()
            for batch in eval_batches(self.dataset, self.batch_size):
                statistics.add(self.extractor.extract(to_uint8(batch.target.to(self.device))))
            self._reference = statistics.result()
        return self._reference

    @torch.inference_mode()
    def evaluate(self, generator: Callable[[Tensor], Tensor], metrics: Sequence[str] = METRICS) -> dict[str, float]:
        """Mean scores of ``generator`` over the split.

        Args:
            generator: maps [N, C, H, W] in [-1, 1] to [N, C', H, W] in [-1, 1], such as what a :class:`gancomp.metrics.Runner`
                gives. Of a :class:`gancomp.models.Generator`, in evaluation mode, that is ``translate``, which takes images
                of any size.
            metrics: which of ``l1``, ``psnr``, ``ssim``, ``fd`` to compute.

        Returns:
            The scores by name; the Frechet distance under :attr:`fd_name`. An image's PSNR counts as 100 dB at most.

        Raises:
            ConfigError: unknown metric, or a Frechet distance of fewer than two images.
            NotFiniteError: an output that is not finite.
        """
        if unknown := [name for name in metrics if name not in METRICS]:
            raise ConfigError(f"metrics={unknown}: expected some of {', '.join(METRICS)}")
        translate = generator.translate if isinstance(generator, Generator) else generator
        sums = dict.fromkeys([name for name in metrics if name != "fd"], 0.0)
        statistics = StatisticsAccumulator()
        for batch in eval_batches(self.dataset, self.batch_size):
            output = translate(batch.input.to(self.device)).float()
            if not torch.isfinite(output).all():
                raise NotFiniteError("the generator's output: contains values that are not finite")
            target = batch.target.to(self.device)
            for name in sums:
                sums[name] += float(_PER_IMAGE[name](output, target).clamp_max(100.0).sum())
            if "fd" in metrics:
                statistics.add(self.extractor.extract(to_uint8(output)))
        scores = {name: value / len(self.dataset) for name, value in sums.items()}
        if "fd" in metrics:
            scores[self.fd_name] = frechet_distance(statistics.result(), self.reference())
        return scores
