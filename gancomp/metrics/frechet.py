"""The Frechet distance between Gaussians fitted to features. Source: Dowson and Landau 1982; Heusel et al. 2017.

``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``; the trace of the root is the sum of the square roots of the eigenvalues of
``S2^(1/2) S1 S2^(1/2)``, which is symmetric, so no complex root is ever taken.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gancomp.errors import ConfigError, DataError, first_line
from gancomp.io import atomic_path


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] (divided by n - 1) of features, in float64, of ``count`` images."""

    mean: Tensor
    covariance: Tensor
    count: int

    @functools.cached_property
    def root(self) -> Tensor:
        """The root of the covariance [D, D]; what many are compared with takes it once."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``.npz`` file of the literature: keys ``mu`` and ``sigma``."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), count=self.count)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """Read ``mu`` and ``sigma`` from an ``.npz`` file.

        Raises:
            DataError: missing, damaged, of other shapes, or not finite.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                mean, covariance = (torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in ("mu", "sigma"))
                count = int(file["count"]) if "count" in file else 0
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except Exception as error:
            raise DataError(f"{path}: cannot be read as feature statistics ({first_line(error)})") from None
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} do not fit together")
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise DataError(f"{path}: contains values that are not finite")
        return cls(mean, covariance, count)


class StatisticsAccumulator:
    """Mean and covariance of a stream of features; memory does not grow with the number of images.

    Chunks are merged by the pairwise update of Chan et al. 1979, which does not cancel.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Take in features [N, D].

        Raises:
            ConfigError: values that are not finite.
        """
        if not torch.isfinite(features).all():
            raise ConfigError("features: contain values that are not finite")
        chunk = features.detach().double().cpu()
        count, mean = len(chunk), chunk.mean(0)
        centred = chunk - mean
        scatter = centred.T @ centred
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean, scatter
            return
        total = self.count + count
        delta = mean - self._mean
        self._scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self.count = total

    def result(self) -> Statistics:
        """The statistics so far.

        Raises:
            ConfigError: fewer than two images.
        """
        if self.count < 2 or self._mean is None or self._scatter is None:
            raise ConfigError(f"frechet distance: needs at least 2 images, got {self.count}")
        return Statistics(self._mean, self._scatter / (self.count - 1), self.count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Frechet distance of two Gaussians (no unit; 0 for equal ones). ``b`` keeps a root for its next call.

    Raises:
        ConfigError: statistics of different features.
    """
    if a.mean.shape != b.mean.shape:
        raise ConfigError(f"frechet distance: {len(a.mean)} and {len(b.mean)} features; they must come from one network")
    eigenvalues = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root)
    trace_root = eigenvalues.clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_root
    return max(float(distance), 0.0)
