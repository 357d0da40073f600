"""What is measured: the released networks, and the shapes their operators meet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gancomp import ops
from gancomp.checkpoints import load_generator
from gancomp.data import DataConfig, open_dataset, read_image, to_tensor
from gancomp.models import Generator, ResnetConfig, ResnetGenerator
from gancomp.models.resnet import layer_by_layer
from gancomp.nn import InstanceNormAct, SlicedDepthwiseConv2d
from gancomp.ops import reference

NETS = {
    "C1": ResnetConfig.parse("16_16_32_16_32_32_16_16"),
    "C2": ResnetConfig.parse("32_32_48_32_48_48_16_16"),
    "mobile": ResnetConfig.uniform(64, separable=True),
    "teacher": ResnetConfig.uniform(64),
}
"""The compressed CycleGAN and pix2pix generators of GAN Compression, the mobile generator and the teacher they come from."""


def build(config: ResnetConfig, seed: int = 0) -> ResnetGenerator:
    """A generator in evaluation mode whose weights depend on ``config`` and ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResnetGenerator(config).eval()


def shared_file(name: str) -> Path | None:
    """A file or folder of the real images and weights, which lie in GANCOMP_SHARED or in ``shared`` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("GANCOMP_SHARED", default)) / name
    return path if path.exists() else None


def weighted(net: str) -> tuple[Generator, str]:
    """A network of ``NETS`` with the released weights where they are at hand (C1), else random ones; and which they are."""
    released = shared_file("weights/gan_compression/horse2zebra_compressed_latest_net_G.pth") if net == "C1" else None
    if released is None:
        return build(NETS[net]), "random weights"
    return load_generator(released).eval(), "released weights"


def photographs(count: int, side: int = 256) -> tuple[Tensor, str]:
    """Images [N, 3, side, side] in [-1, 1]: real horses where they are at hand, else the embedded drawings; and which."""
    folder = shared_file("data/horse2zebra/testA")
    if folder is None:
        drawings = open_dataset(DataConfig(load_size=side, crop_size=side), "val")
        return torch.stack([drawings.load(index).input for index in range(count)]), "embedded drawings"
    images = [to_tensor(read_image(path).resize((side, side))) for path in sorted(folder.iterdir())[:count]]
    return torch.stack(images), "photographs of horse2zebra"


@dataclass(frozen=True, order=True)
class OpCase:
    """A call of an operator: its input [N, C, H, W] and what is folded in."""

    op: str
    shape: tuple[int, int, int, int]
    relu: bool = False
    residual: bool = False

    @property
    def size(self) -> str:
        """The input's shape, e.g. ``1x128x64x64``."""
        return "x".join(map(str, self.shape))

    @property
    def options(self) -> str:
        """What is folded in, e.g. ``relu``."""
        return "+".join(name for name in ("relu", "residual") if getattr(self, name)) or "plain"

    def __str__(self) -> str:
        return f"{self.op}-{self.size}-{self.options}"

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """The tensors of the call: the image, then filter and bias or the residual where the operator has them."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.shape[1]
        shapes: list[tuple[int, ...]] = [self.shape]
        if self.op == "reflect_pad_depthwise_conv3x3":
            shapes += [(channels, 1, 3, 3), (channels,)]
        elif self.residual:
            shapes += [self.shape]
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    def gancomp(self, *tensors: Tensor, backend: str) -> Tensor:
        """The call through one backend of gancomp."""
        if self.op == "reflect_pad_depthwise_conv3x3":
            return ops.reflect_pad_depthwise_conv3x3(*tensors, backend=backend)
        residual = tensors[1] if self.residual else None
        return ops.instance_norm_act(tensors[0], relu=self.relu, residual=residual, backend=backend)

    def stock(self, *tensors: Tensor) -> Tensor:
        """The same in stock PyTorch, written the obvious way; ReLU is not in place, which would cost copies after a norm."""
        if self.op == "reflect_pad_depthwise_conv3x3":
            x, weight, bias = tensors
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias, groups=x.shape[1])
        y = F.instance_norm(tensors[0])
        y = F.relu(y) if self.relu else y
        return y + tensors[1] if self.residual else y

    def exact(self, *tensors: Tensor) -> Tensor:
        """The specification; give it float64."""
        if self.op == "reflect_pad_depthwise_conv3x3":
            return reference.reflect_pad_depthwise_conv3x3(*tensors)
        residual = tensors[1] if self.residual else None
        return reference.instance_norm_act(tensors[0], None, None, residual, self.relu, 1e-5)


def op_cases(nets: Iterable[str] = NETS, batch: int = 1, side: int = 256) -> dict[OpCase, dict[str, int]]:
    """The operator calls of the named networks on ``side`` x ``side`` images, with how often each network makes them."""
    counts: dict[OpCase, dict[str, int]] = {}
    for net in nets:
        with torch.device("meta"):
            generator = ResnetGenerator(NETS[net]).eval()
            image = torch.empty(batch, NETS[net].in_channels, side, side)

        def count(layer, args, kwargs, output, net=net):
            if isinstance(layer, InstanceNormAct):
                residual = kwargs.get("residual") is not None
                case = OpCase("instance_norm_act", tuple(args[0].shape), layer.relu, residual)
            else:
                case = OpCase("reflect_pad_depthwise_conv3x3", tuple(args[0].shape))
            of_net = counts.setdefault(case, {})
            of_net[net] = of_net.get(net, 0) + 1

        for layer in generator.modules():
            if isinstance(layer, InstanceNormAct | SlicedDepthwiseConv2d):
                layer.register_forward_hook(count, with_kwargs=True)
        with torch.no_grad(), layer_by_layer(generator):
            generator(image)
    return dict(sorted(counts.items()))
