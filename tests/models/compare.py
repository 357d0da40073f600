"""Two networks of equal weights give equal images, and in float64 equal gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gancomp.testing import assert_accurate


def assert_same_network(ours: nn.Module, stock: nn.Module, x: Tensor) -> None:
    """Compare ``ours`` with ``stock`` on ``x``: the float32 image within twice PyTorch's own error; in float64 the image, every
    gradient and the statistics that a training pass leaves behind. (In float32 a ReLU's gradient jumps where rounding moves its
    input across zero.)
    """
    exact, double = _run(copy.deepcopy(stock).double(), x.double()), _run(copy.deepcopy(ours).double(), x.double())
    assert double.keys() == exact.keys()
    for name, value in exact.items():
        torch.testing.assert_close(double[name], value, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        images = []
        for network in (ours, stock):
            torch.manual_seed(5)
            images.append(network(x))
    torch.manual_seed(5)
    assert_accurate(*images, exact=_run(copy.deepcopy(stock).double(), x.double())["image"])


def _run(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(5)  # of dropout
    y = network(x)
    mixing = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    # A bias before an InstanceNorm is not trained: its gradient is zero, and so is PyTorch's but for rounding.
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad((y * mixing).sum(), [x, *parameters.values()])
    results = {f"gradient of {name}": torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    results |= {"image": y.detach(), "gradient of the input": gradients[0]}
    results |= {f"gradient of {name}": gradient for name, gradient in zip(parameters, gradients[1:], strict=True)}
    return results | {name: buffer.clone() for name, buffer in network.named_buffers() if buffer.is_floating_point()}
