"""Networks whose features a Frechet distance is taken of.

Only the Inception network of the literature gives a number that may be called FID. Distances of other features are named
after their network: ``fd_random`` for the embedded seeded one, ``fd_mobilenet_v2`` for a MobileNetV2 file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancomp.checkpoints import read_weights
from gancomp.errors import CheckpointError, ConfigError, first_line
from gancomp.io import sha256_file


class FeatureExtractor(nn.Module):
    """Maps uint8 images [N, 3, H, W] to features [N, dim].

    Attributes:
        name: what the distance is named after.
        dim: number of features.
        digest: SHA-256 of the weights, part of every reported number's protocol.
        resize: how images are brought to the network's size, in words.
    """

    name: str
    dim: int
    digest: str
    resize: str

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Tensor:
        """Features [N, dim] of uint8 images [N, 3, H, W] (one channel is repeated)."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ConfigError(f"images: {images.dtype} {list(images.shape)}, expected uint8 [N, 3, H, W] or [N, 1, H, W]")
        return self(images.expand(-1, 3, -1, -1))


class RandomFeatures(FeatureExtractor):
    """A fixed convolutional network with seeded weights: no file needed, comparable only with itself.

    Four stride-2 3x3 layers with leaky ReLUs; the features are means and standard deviations of the last three layers'
    channels, so colour, texture and layout all move them. Weights come from NumPy's Philox, which is specified bit for bit.
    """

    name = "random"
    resize = "none"

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.Generator(np.random.Philox(20200613))
        widths = (3, 24, 48, 64, 64)
        digest = hashlib.sha256()
        weights = []
        for inputs, outputs in itertools.pairwise(widths):
            weight = rng.standard_normal((outputs, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
            weight = weight.astype(np.float32)
            digest.update(weight.tobytes())
            weights.append(nn.Parameter(torch.from_numpy(weight), requires_grad=False))
        self.layers = nn.ParameterList(weights)
        self.dim = 2 * sum(widths[2:])
        self.digest = digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        features = []
        for depth, weight in enumerate(self.layers):
            x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, stride=2), 0.2)
            if depth > 0:
                features += [x.mean(dim=(2, 3)), x.var(dim=(2, 3), unbiased=False).add(1e-8).sqrt()]
        return torch.cat(features, 1)


class MobileNetV2Features(FeatureExtractor):
    """Mean of the last feature map (1280) of an ImageNet MobileNetV2 with folded BatchNorms.

    Tensor names are ``features.0.0``, ``features.I.conv.0.0``, ... as in torchvision's network, each convolution with a bias.
    Source: Sandler et al. 2018, table 2.
    """

    name = "mobilenet_v2"
    resize = "bicubic, 224x224, 8 bits"
    dim = 1280

    def __init__(self, state: Mapping[str, Tensor], digest: str) -> None:
        super().__init__()
        self.digest = digest
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2), nn.ReLU()]
        inputs = 32
        for expand, outputs, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for repeat in range(repeats):
                layers.append(_InvertedResidual(inputs, outputs, stride if repeat == 0 else 1, expand))
                inputs = outputs
        layers += [_conv(320, 1280, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        convs = [m for m in self.layers.modules() if isinstance(m, nn.Conv2d)]
        names = [name.removesuffix(".weight") for name in _mobilenet_order(state)]
        if len(names) != len(convs):
            raise CheckpointError(f"has {len(names)} convolutions, a MobileNetV2 has {len(convs)}")
        for conv, name in zip(convs, names, strict=True):
            try:
                conv.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
            except (KeyError, RuntimeError):
                raise CheckpointError(f"{name}: does not fit a MobileNetV2 with folded BatchNorms") from None
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (224, 224):
            # In 8 bits and on the CPU it is Pillow's resize, the same for every device.
            small = F.interpolate(images.cpu(), (224, 224), mode="bicubic", antialias=True)
            images = small.to(images.device)
        return self.layers((images.float() / 255 - self.mean) / self.std).mean(dim=(2, 3))


def _mobilenet_order(state: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in state if name.startswith("features.") and name.endswith(".weight")]
    return sorted(names, key=lambda name: [int(part) for part in name.split(".") if part.isdecimal()])


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [_conv(inputs, hidden, 1), nn.ReLU()]
        layers += [_conv(hidden, hidden, 3, stride, hidden), nn.ReLU(), _conv(hidden, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class ExportedFeatures(FeatureExtractor):
    """A user's own network as a ``torch.export`` program: uint8 [N, 3, H, W] to [N, D]."""

    resize = "as exported"

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self._module = torch.export.load(str(path)).module()
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be loaded as an exported program ({first_line(error)})") from None
        self.name, self.digest, self.dim = path.stem, sha256_file(path), 0

    def forward(self, images: Tensor) -> Tensor:
        features = self._module(images.contiguous())
        if features.dim() != 2:
            raise CheckpointError(f"feature network {self.name}: returned {list(features.shape)}, expected [N, D]")
        self.dim = features.shape[1]
        return features.float()


def load_extractor(path: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """The feature network of a file, or the embedded seeded one where none is given.

    Args:
        path: a MobileNetV2 state dict (``.pth`` or ``.safetensors``, BatchNorms folded) or a ``.pt2`` exported program.

    Raises:
        CheckpointError: missing, damaged, or of no known network.
    """
    if not path:
        return RandomFeatures().eval()
    path = Path(path)
    if path.suffix == ".pt2":
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        return ExportedFeatures(path)
    state, _ = read_weights(path)
    if "features.18.0.weight" in state and "features.0.0.weight" in state:
        try:
            return MobileNetV2Features(state, sha256_file(path))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    raise CheckpointError(f"{path}: not a known feature network; known are MobileNetV2 (folded BatchNorms) and .pt2 programs")
