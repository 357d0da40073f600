"""A generator that gancomp does not know: with this file it is saved, profiled and compressed like its own."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gancomp
from gancomp.cli import main
from gancomp.nn import InstanceNormAct, SlicedConv2d


@dataclass(frozen=True)
class HourglassConfig(gancomp.ChannelsConfig):
    """Widths of stem, body, the body's inside, and last layer."""

    channels: tuple[int, ...] = (32, 96, 128, 32)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = SlicedConv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect")
    return nn.Sequential(layer, InstanceNormAct(outputs, relu=True))


@gancomp.register_generator("hourglass", HourglassConfig)
class Hourglass(gancomp.SlicedGenerator):
    """Four layers at a quarter of the size, with a skip around them."""

    size_multiple = 4
    feature_layers = ("down", "body.1", "body.3")

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config = config
        stem, body, inside, last = config.channels
        self.stem = conv(config.in_channels, stem, 7)
        self.down = conv(stem, body, 5, stride=4)
        self.body = nn.Sequential(conv(body, inside), conv(inside, body), conv(body, inside), conv(inside, body))
        self.up = nn.Sequential(nn.Upsample(scale_factor=4), conv(body, last))
        self.head = SlicedConv2d(last, config.out_channels, 7, padding=3, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.stem(x))
        return torch.tanh(self.head(self.up(y + self.body(y))))


if __name__ == "__main__":
    raise SystemExit(main())
