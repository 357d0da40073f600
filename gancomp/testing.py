"""What tests and benchmarks share: inputs in every memory layout, tolerances from data, poisoned memory.

Of gancomp itself, only what times generators imports it, since nothing is timed before it was checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

LAYOUTS = ("contiguous", "channels_last", "permuted", "offset", "channel_slice", "crop")
"""Memory layouts of an image tensor that a caller may come with; see :func:`laid_out`."""

_GUARD = 64  # elements of NaN before and after the data; keeps its alignment


def images(
    *shape: int, layout: str = "contiguous", dtype: torch.dtype = torch.float32, mean: float = 0.0, seed: int = 0
) -> Tensor:
    """Normally distributed images [N, C, H, W] of unit variance; the values depend on shape, mean and seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return laid_out((torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype), layout)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """A copy of ``values`` [N, C, H, W] in another memory layout, with NaN round it and in its gaps.

    Args:
        values: the tensor to copy; the result does not require a gradient.
        layout: ``contiguous``; ``channels_last``; ``permuted``: dense with rows and columns swapped in memory; ``offset``:
            contiguous at an address that no vector is aligned to; ``channel_slice``: the middle channels of a wider tensor;
            ``crop``: the left columns of wider images.

    Raises:
        ValueError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected {', '.join(LAYOUTS)}")
    n, c, h, w = values.shape
    channels, row = c + 3 * (layout == "channel_slice"), w + 2 * (layout == "crop")
    offset = _GUARD + {"offset": 3, "channel_slice": 2 * h * w}.get(layout, 0)
    strides = {
        "channels_last": (c * h * w, 1, c * w, c),
        "permuted": (c * h * w, h * w, 1, h),
    }.get(layout, (channels * h * row, h * row, row, 1))
    buffer = torch.full((offset + n * channels * h * row + _GUARD,), float("nan"), dtype=values.dtype, device=values.device)
    return buffer.as_strided(values.shape, strides, offset).copy_(values.detach())


def with_inactive(values: Tensor, spare: int = 3) -> Tensor:
    """A full weight: its first entries along dimension 0 are ``values``, the inactive rest is ``spare`` entries of NaN."""
    return torch.cat([values, values.new_full((spare, *values.shape[1:]), float("nan"))])


@contextlib.contextmanager
def unchanged(*tensors: Tensor | None) -> Iterator[None]:
    """Fail if the block writes to the memory of a tensor or to the guard round it (compared bit by bit).

    Raises:
        AssertionError: it does.
    """
    memory = [torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()) for t in tensors if t is not None]
    before = [content.clone() for content in memory]
    yield
    for index, (content, expected) in enumerate(zip(memory, before, strict=True)):
        if not torch.equal(content, expected):
            raise AssertionError(f"the memory of input {index} was written to")


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """New uninitialised tensors hold NaN inside this context, so that an element nobody writes cannot look right."""
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill


def forward_backward(function: Callable[..., Tensor], grad: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """``y = function(*tensors)``, and the gradient of ``sum(y * grad)`` with respect to every tensor that is not None.

    Every tensor is used where it lies: its memory layout is what ``function`` meets.
    """
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def tolerance(stock: Tensor, exact: Tensor) -> float:
    """The largest error a kernel may make: twice that of PyTorch's own op, plus one rounding of the largest value.

    Args:
        stock: the result of PyTorch's own op, in the dtype of the kernel.
        exact: the result of the reference in float64, from the same inputs.
    """
    rounding = torch.finfo(stock.dtype).eps * float(exact.abs().max())
    return 2 * float((stock.double() - exact).abs().max()) + rounding


def assert_accurate(actual: Tensor, stock: Tensor, exact: Tensor, name: str = "result") -> None:
    """Check a kernel's result against the float64 reference, with PyTorch's own op as the measure (see :func:`tolerance`).

    Raises:
        AssertionError: other shape or dtype than PyTorch's, a NaN, or an error above the tolerance.
        ValueError: the reference is not finite float64.
    """
    if exact.dtype != torch.float64 or not exact.isfinite().all():
        raise ValueError(f"{name}: the reference is not finite float64")
    if actual.shape != exact.shape or actual.dtype != stock.dtype:
        raise AssertionError(f"{name}: {actual.dtype} {list(actual.shape)}, expected {stock.dtype} {list(exact.shape)}")
    if exact.numel() == 0:
        return
    error, allowed = float((actual.double() - exact).abs().max()), tolerance(stock, exact)
    if not error <= allowed:
        largest = float(exact.abs().max())
        raise AssertionError(f"{name}: error {error:.3g}, allowed {allowed:.3g}, largest value {largest:.3g}")


# Winograd's transforms of outputs, inputs and weights, by the taps of a side.
_WINOGRAD = {
    3: (
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
         [0, 4, 0, -5, 0, 1]],
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
         [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    ),
    4: (
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -0.5, 0], [0, 1, 1, 4, 0.25, 1]],
        [[1, 1.5, -2, -1.5, 1, 0], [0, -1, -2.5, -0.5, 1, 0], [0, 1, 0.5, -2.5, 1, 0], [0, -0.5, -1, 0.5, 1, 0],
         [0, 2, -1, -2, 1, 0], [0, 1, 1.5, -2, -1.5, 1]],
        [[1, 0, 0, 0], [-1 / 3, -1 / 3, -1 / 3, -1 / 3], [1 / 3, -1 / 3, 1 / 3, -1 / 3],
         [1 / 15, 2 / 15, 4 / 15, 8 / 15], [-16 / 15, 8 / 15, -4 / 15, 2 / 15], [0, 0, 0, 1]],
    ),
    2: (
        [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]],
        [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]],
        [[1 / 2, 0], [-1 / 2, -1 / 2], [-1 / 6, 1 / 6], [1 / 6, 1 / 3], [0, 1]],
    ),
}  # fmt: skip


class WinogradConv2d(nn.Module):
    """A convolution by Winograd's method in stock PyTorch: 3x3 of stride 1 without padding, or 4x4 of stride 1 or 2.

    It loses about ten times as many digits as the direct sum: what an error is measured by where a kernel computes in this
    way, forward and backward. It is F(4x4, 3x3) with the points 0, 1, -1, 2, -2; F(3x3, 4x4) with 0, 1, -1, 2, -1/2; and, with
    a stride of 2, F(4x4, 2x2) with 0, 1, -1, 2 on the even and odd rows and columns. Products are summed in the dtype of the
    input. Source: Lavin and Gray 2016.

    Args:
        conv: the convolution, whose weights and bias are taken.

    Raises:
        ValueError: another kernel, stride, padding or grouping.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not (_is_plain_3x3(conv) or _is_4x4(conv)):
            raise ValueError(
                f"{conv}: expected a 3x3 convolution of stride 1 without padding, or a 4x4 one of stride 1 or 2, without "
                "dilation and groups"
            )
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` [N, C, H, W]; returns [N, C', H', W'] of ``conv``."""
        step, weight = self.stride, self.weight
        height, width = [(size + 2 * self.padding - weight.shape[2]) // step + 1 for size in x.shape[2:]]
        a, b, g = (torch.tensor(matrix, dtype=torch.float64) for matrix in _WINOGRAD[weight.shape[2] // step])
        outputs, points = a.shape
        # Whole tiles of every phase.
        needed = [step * (-(-size // outputs) * outputs + points - outputs) for size in (height, width)]
        cut = [size - have - self.padding for size, have in zip(needed, x.shape[2:], strict=True)]
        x = nn.functional.pad(x, (self.padding, cut[1], self.padding, cut[0]))
        if step > 1:
            x, weight = (
                torch.cat([image[:, :, i::step, j::step] for i in range(step) for j in range(step)], 1) for image in (x, weight)
            )
        tiles = x.unfold(2, points, outputs).unfold(3, points, outputs)
        products = (g @ weight.double() @ g.T).to(weight.dtype)
        a, b = a.to(x.dtype), b.to(x.dtype)
        sums = torch.einsum("ocij,ncyxij->noyxij", products, b @ tiles @ b.T)
        y = (a @ sums @ a.T).transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def _is_plain_3x3(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups) == (
        (3, 3), (1, 1), (0, 0), (1, 1), 1,
    )  # fmt: skip


def _is_4x4(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.dilation, layer.groups, layer.padding_mode) == ((4, 4), (1, 1), 1, "zeros") and (
        layer.stride in ((1, 1), (2, 2)) and layer.padding in ((0, 0), (1, 1), (2, 2), (3, 3))
    )


def with_winograd(network: nn.Module, fewest: int = 32) -> nn.Module:
    """Replace the 3x3 convolutions that the engine computes by Winograd's method, in place; returns the network.

    Args:
        network: of stock layers, with padding in layers of its own.
        fewest: channels on both sides from which on the engine does so (csrc/engine/compile.cpp).
    """
    for name, child in network.named_children():
        if not _is_plain_3x3(child):
            with_winograd(child, fewest)
        elif min(child.in_channels, child.out_channels) >= fewest:
            setattr(network, name, WinogradConv2d(child))
    return network


def with_padding_apart(network: nn.Module) -> nn.Module:
    """Give the zeros around 3x3 convolutions a layer of their own, in place, as :func:`with_winograd` wants it."""
    for name, child in network.named_children():
        padded = isinstance(child, nn.Conv2d) and (child.kernel_size, child.padding) == ((3, 3), (1, 1))
        if isinstance(child, nn.Conv2d) and padded and child.padding_mode == "zeros":
            child.padding = (0, 0)
            setattr(network, name, nn.Sequential(nn.ZeroPad2d(1), child))
        else:
            with_padding_apart(child)
    return network


def allocations(function: Callable[[], Any]) -> list[int]:
    """Sizes in bytes of all memory that PyTorch's allocators hand out while ``function()`` runs, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    recorded: Any = profile.profiler
    return [event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]" and event.nbytes() > 0]


def peak_allocated(function: Callable[[], Any]) -> int:
    """The most bytes of memory allocated through PyTorch within ``function()`` that are held at any of its moments."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
