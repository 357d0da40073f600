"""Batch statistics of one configuration, over a whole calibration set.

A supernet's BatchNorms see another distribution at every width, so inference needs statistics of the configuration at hand.
They are taken norm by norm: a norm's statistics are those of its input over all images, with every norm before it already at
its own. The network then does at inference what it would do in training with all images in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gancomp.errors import ConfigError
from gancomp.models import SpadeGenerator
from gancomp.models.spade import Spade, double


class Moments:
    """Mean and biased variance of every channel over any number of batches.

    Batches are combined by their means and sums of squared deviations, which does not cancel (Chan, Golub and LeVeque 1979).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in the values of ``x`` [N, C, H, W]."""
        count = x.numel() // x.shape[1]
        variance, mean = (value.double() for value in torch.var_mean(_wide(x), dim=(0, 2, 3), correction=0))
        delta, total = mean - self.mean, self.count + count
        self._squares = self._squares + variance * count + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Biased variance [C], float64."""
        return self._squares / self.count


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@torch.no_grad()
def calibrate(generator: SpadeGenerator, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of the widths in use by those over all ``batches``; nothing to do without BatchNorm.

    Takes about one and a half times as long as running the generator, and keeps one map per image: the largest are those
    before the last doubling.

    Args:
        generator: a whole one, or a supernet's at the widths of a configuration.
        batches: label maps as the generator takes them, on its device; all of them count, whatever their sizes.

    Raises:
        ConfigError: no batches, or they do not fit the generator.
    """
    if generator.config.norm != "batch":
        return
    inputs = list(batches)
    if not inputs:
        raise ConfigError("calibrate: got no images to take statistics of")
    for x in inputs:
        generator.check_input(x)
    training = generator.training
    generator.eval()
    try:
        _calibrate(generator, inputs)
    finally:
        generator.train(training)


def _calibrate(generator: SpadeGenerator, inputs: list[Tensor]) -> None:
    blocks, last = list(generator.blocks()), generator.size_multiple
    maps = [generator.fc(generator.labels_at(x, last)) for x in inputs]
    for _, block, stride in blocks:
        # Doubling a map changes neither its mean nor its variance.
        _set([block.norm_0, *([] if block.norm_s is None else [block.norm_s])], maps)

        def given(index: int, stride: int = stride, grown: bool = stride < last) -> tuple[Tensor, Tensor]:
            return double(maps[index]) if grown else maps[index], generator.labels_at(inputs[index], stride)

        _set([block.norm_1], (block.inside(*given(index)) for index in range(len(inputs))))
        if block is not blocks[-1][1]:
            for index in range(len(inputs)):
                maps[index] = block(*given(index))
        last = stride


def _set(norms: list[Spade], maps: Iterable[Tensor]) -> None:
    """Give ``norms`` the statistics of all ``maps``."""
    moments = Moments()
    for x in maps:
        moments.add(x)
    for norm in norms:
        norm.param_free_norm.set_statistics(moments.mean, moments.variance)
