"""One captured CUDA graph of the Triton kernels serves every choice of channels: counts are changed between its replays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gancomp.errors import BackendError
from gancomp.testing import images

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

from gancomp.kernels import common  # noqa: E402
from gancomp.kernels.instance_norm_act import InstanceNormActTriton  # noqa: E402
from gancomp.kernels.separable_resblock import SeparableResblockTriton  # noqa: E402
from gancomp.kernels.sliced_conv import REFLECT, ZEROS, SlicedConv2dTriton, SlicedConvTranspose2dTriton  # noqa: E402

EPS = 1e-5
# stem, stream, hidden channels
WIDEST = (24, 48, 40)


def widths_of(stem: int, stream: int, hidden: int) -> list[list[int]]:
    """(output, input) channels of stem, downsampling, upsampling and head; (stream, hidden) of the block."""
    return [[stem, 3], [stream, stem], [stream, hidden], [stem, stream], [3, stem]]


def network(x: Tensor, weights: list[Tensor], counts: list[list[int]], widths: Tensor | None) -> Tensor:
    """A generator of one block; ``counts`` of channels are those of the tensors, ``widths`` on the device those active."""
    (stem, _), (stream, _), (_, hidden), *_ = counts
    w = [None] * 5 if widths is None else list(widths)
    norm = [None if one is None else one[:1] for one in w]
    x = SlicedConv2dTriton.apply(x, weights[0], None, stem, 1, 3, REFLECT, w[0])
    x = InstanceNormActTriton.apply(x, None, None, None, True, EPS, norm[0])
    x = SlicedConv2dTriton.apply(x, weights[1], None, stream, 2, 1, ZEROS, w[1])
    x = InstanceNormActTriton.apply(x, None, None, None, True, EPS, norm[1])
    x = SeparableResblockTriton.apply(x, *weights[2:6], None, 1.0, hidden, EPS, w[2])
    x = SlicedConvTranspose2dTriton.apply(x, weights[6], None, stem, 2, 1, 1, w[3])
    x = InstanceNormActTriton.apply(x, None, None, None, True, EPS, norm[3])
    return SlicedConv2dTriton.apply(x, weights[7], weights[8], 3, 1, 3, REFLECT, w[4])


def make_weights() -> list[Tensor]:
    stem, stream, hidden = WIDEST
    shapes = [
        (stem, 3, 7, 7), (stream, stem, 3, 3), (stream, 1, 3, 3), (hidden, stream, 1, 1), (hidden, 1, 3, 3),
        (stream, hidden, 1, 1), (stream, stem, 3, 3), (3, stem, 7, 7), (3,),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replayed_graph_gives_the_bits_of_narrow_tensors(dtype):
    weights = make_weights()
    x, grad = (images(2, 3, 32, 40, seed=seed).cuda().to(dtype) for seed in (2, 3))
    widths = torch.tensor(widths_of(*WIDEST), dtype=torch.int32, device="cuda")

    def step() -> list[Tensor]:
        y = network(x, weights, widths_of(*WIDEST), widths)
        return [y, *torch.autograd.grad(y, weights, grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for chosen in (WIDEST, (8, 17, 40), (24, 16, 1), (1, 48, 33), (16, 32, 16)):
        counts = widths_of(*chosen)
        widths.copy_(torch.tensor(counts, dtype=torch.int32))
        for result in results:
            result.detach().fill_(float("nan"))
        graph.replay()
        y = network(x, weights, counts, None)
        expected = [y, *torch.autograd.grad(y, weights, grad)]
        for index, (one, other) in enumerate(zip(results, expected, strict=True)):
            assert torch.equal(one, other), f"{chosen}: result {index}"


def test_counts_first_used_during_a_capture_are_an_error():
    x, weight = torch.randn(1, 13, 4, 4, device="cuda"), torch.randn(19, 13, 1, 1, device="cuda")
    common.channel_counts.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(BackendError, match=r"channel counts \(19, 13\) are first used while"), torch.cuda.graph(graph):
        SlicedConv2dTriton.apply(x, weight, None, 19, 1, 0, ZEROS)
    assert SlicedConv2dTriton.apply(x, weight, None, 19, 1, 0, ZEROS).shape == (1, 19, 4, 4)
