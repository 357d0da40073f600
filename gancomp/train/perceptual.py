"""A perceptual distance between images: of the features that a VGG-19 for ImageNet has of them.

Source: Johnson et al. 2016; the layers and their weights are those of pix2pixHD (Wang et al. 2018, section 3.3) and GauGAN.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.checkpoints import read_weights
from gancomp.errors import CheckpointError

# Convolutions per stage, and the weight of the first activation of each.
_STAGES = (2, 2, 4, 4, 4)
_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class PerceptualDistance(nn.Module):
    """``sum_i w_i |relu_i1(a) - relu_i1(b)|`` over the first activation of each of the five stages, means over elements.

    Args:
        path: a VGG-19's state dict, with the names of torchvision's network: ``features.0.weight``, ``features.2.weight``, ...

    Raises:
        CheckpointError: missing, damaged, or of another network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        state, _ = read_weights(Path(path))
        self.stages = nn.ModuleList()
        index, inputs = 0, 3
        for stage, convs in enumerate(_STAGES):
            # What lies behind the last activation that is compared is not needed.
            kept = convs if stage < len(_STAGES) - 1 else 1
            layers = nn.ModuleList()
            for _ in range(kept):
                layer = _conv(state, index, inputs, path)
                layers.append(layer)
                inputs, index = layer.out_channels, index + 2
            index += 1
            self.stages.append(layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """The first activation of every stage, for images [N, 3, H, W] in [-1, 1]."""
        x, found = ((images + 1) / 2 - self.mean) / self.std, []
        for index, layers in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if index else x
            for depth, layer in enumerate(layers.children()):
                x = F.relu(layer(x))
                if depth == 0:
                    found.append(x)
        return found

    def forward(self, images: Tensor, wanted: Tensor) -> Tensor:
        """The distance of ``images`` [N, 3, H, W] in [-1, 1] from ``wanted``, through which no gradients flow."""
        with torch.no_grad():
            targets = self.features(wanted)
        pairs = zip(_WEIGHTS, self.features(images), targets, strict=True)
        return torch.stack([weight * F.l1_loss(ours.float(), target.float()) for weight, ours, target in pairs]).sum()


def _conv(state: dict[str, Tensor], index: int, inputs: int, path: str | os.PathLike[str]) -> nn.Conv2d:
    weight, bias = (state.get(f"features.{index}.{name}") for name in ("weight", "bias"))
    if weight is None or bias is None or weight.shape[1:] != (inputs, 3, 3) or bias.shape != weight.shape[:1]:
        raise CheckpointError(f"{path}: features.{index} does not fit a VGG-19 (torchvision's names)")
    conv = nn.Conv2d(inputs, len(weight), 3, padding=1)
    conv.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return conv
