"""What is measured of training: the calls of the operators that a supernet trains through, over slices of full weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import ops
from gancomp.ops import reference

EPS = 1e-5


@dataclass(frozen=True)
class ResblockCase:
    """A call of ``separable_resblock``: its input [N, C, H, W] and the channels inside; full weights have half as many more."""

    shape: tuple[int, int, int, int]
    hidden: int
    op: str = "separable_resblock"

    @property
    def size(self) -> str:
        """The input's shape, e.g. ``1x128x64x64``."""
        return "x".join(map(str, self.shape))

    @property
    def options(self) -> str:
        """The channels inside, e.g. ``hidden 96``."""
        return f"hidden {self.hidden}"

    def __str__(self) -> str:
        return f"{self.op}-{self.size}-{self.hidden}"

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """The image and the weights.

        A value within rounding of ReLU's kink has two right gradients: weights are drawn until there is none.
        """
        generator = torch.Generator().manual_seed(seed)
        channels, full, inner = self.shape[1], self.shape[1] * 3 // 2, self.hidden * 3 // 2
        shapes = [(full, 1, 3, 3), (inner, full, 1, 1), (inner, 1, 3, 3), (full, inner, 1, 1)]
        x = torch.randn(self.shape, generator=generator)
        while True:
            weights = [torch.randn(shape, generator=generator) for shape in shapes]
            filtered = reference.reflect_pad_depthwise_conv3x3(x.double(), weights[0].double(), None)
            mixed = F.conv2d(F.instance_norm(filtered, eps=EPS), weights[1][: self.hidden, :channels].double())
            if F.instance_norm(mixed, eps=EPS).abs().min() > 1e-6:
                return x, *weights

    def gancomp(self, *tensors: Tensor, backend: str) -> Tensor:
        """The call through one backend of gancomp."""
        return ops.separable_resblock(*tensors, hidden=self.hidden, backend=backend)

    def stock(self, *tensors: Tensor) -> Tensor:
        """The same in stock PyTorch over narrowed weights; ReLU is not in place, which would cost copies after a norm."""
        x, depthwise1, pointwise1, depthwise2, pointwise2 = tensors

        def half(image: Tensor, depthwise: Tensor, pointwise: Tensor, out: int) -> Tensor:
            channels = image.shape[1]
            padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
            filtered = F.instance_norm(F.conv2d(padded, depthwise[:channels], groups=channels), eps=EPS)
            return F.instance_norm(F.conv2d(filtered, pointwise[:out, :channels]), eps=EPS)

        return x + half(F.relu(half(x, depthwise1, pointwise1, self.hidden)), depthwise2, pointwise2, x.shape[1])

    def exact(self, *tensors: Tensor) -> Tensor:
        """The specification; give it float64."""
        x, depthwise1, pointwise1, depthwise2, pointwise2 = tensors
        return reference.separable_resblock(x, depthwise1, pointwise1, depthwise2, pointwise2, None, 1.0, self.hidden, EPS)


@dataclass(frozen=True)
class SpadeCase:
    """A call of ``spade_modulate`` with GauGAN's activation: its input [N, C, H, W] and whether statistics are of the batch."""

    shape: tuple[int, int, int, int]
    batch: bool
    op: str = "spade_modulate"

    @property
    def size(self) -> str:
        """The input's shape, e.g. ``1x128x64x128``."""
        return "x".join(map(str, self.shape))

    @property
    def options(self) -> str:
        """What the statistics are of: ``batch`` or ``instance``."""
        return "batch" if self.batch else "instance"

    def __str__(self) -> str:
        return f"{self.op}-{self.size}-{self.options}"

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """x, gamma and beta; beta is such that no value lies within rounding of the kink."""
        generator = torch.Generator().manual_seed(seed)
        x, gamma, beta = (torch.randn(self.shape, generator=generator) for _ in range(3))
        value = self.exact(x.double(), gamma.double(), beta.double(), slope=1.0)
        return x, gamma, torch.where(value.abs() < 1e-3, beta + 0.01, beta)

    def gancomp(self, *tensors: Tensor, backend: str) -> Tensor:
        """The call through one backend of gancomp."""
        x, gamma, beta = tensors
        if self.batch:
            return ops.spade_modulate(x, gamma, beta, norm="batch", slope=0.2, eps=EPS, backend=backend)[0]
        return ops.spade_modulate(x, gamma, beta, norm="instance", slope=0.2, eps=EPS, backend=backend)

    def stock(self, *tensors: Tensor) -> Tensor:
        """The same in stock PyTorch, written the obvious way."""
        x, gamma, beta = tensors
        normalised = F.batch_norm(x, None, None, training=True, eps=EPS) if self.batch else F.instance_norm(x, eps=EPS)
        return F.leaky_relu(normalised * (1 + gamma) + beta, 0.2)

    def exact(self, *tensors: Tensor, slope: float = 0.2) -> Tensor:
        """The specification; give it float64."""
        x, gamma, beta = tensors
        return reference.spade_modulate(x, gamma, beta, None, None, self.batch, slope, EPS)[0]


def training_cases() -> Iterator[ResblockCase | SpadeCase]:
    """Blocks of a supernet on 256 x 256 images at several widths, the largest of channels-48 last; GauGAN's modulation."""
    for batch in (1, 4):
        yield ResblockCase((batch, 128, 64, 64), 96)
    for channels, hidden in ((160, 128), (192, 192)):
        yield ResblockCase((1, channels, 64, 64), hidden)
    for batch in (1, 4):
        yield SpadeCase((batch, 128, 64, 128), batch=True)
