"""Feature networks: the embedded one never changes, files are checked, the real one gives the number it should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gancomp.data import read_image
from gancomp.errors import CheckpointError, ConfigError
from gancomp.io import sha256_file
from gancomp.metrics import StatisticsAccumulator, frechet_distance, load_extractor

MOBILENET = "weights/mobilenet_v2/mobilenet_v2_imagenet_bnfolded.pth"


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# The embedded network


def random_weights() -> list[Tensor]:
    """The embedded weights from NumPy alone."""
    rng = np.random.Generator(np.random.Philox(20200613))
    shapes = [(24, 3), (48, 24), (64, 48), (64, 64)]
    return [torch.from_numpy(rng.standard_normal((o, i, 3, 3)) * np.sqrt(2 / (9 * i))).float() for o, i in shapes]


def test_the_embedded_network_never_changes() -> None:
    extractor = load_extractor()
    assert extractor.name == "random"
    assert extractor.digest == "a2777dc1fdb640929b382964bd8d46dcab51e63cbb89375eb409f465877612fd"
    assert all(torch.equal(a, b) for a, b in zip(extractor.layers, random_weights(), strict=True))


def test_embedded_features_are_statistics_of_three_layers() -> None:
    images = pixels(2, 3, 33, 20)
    x = images.double() / 127.5 - 1
    expected: list[Tensor] = []
    for depth, weight in enumerate(random_weights()):
        x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight.double(), stride=2), 0.2)
        if depth:
            flat = x.flatten(2)
            expected += [flat.mean(2), flat.std(2, unbiased=False)]
    found = load_extractor().extract(images)
    assert found.shape == (2, 352)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), torch.cat(expected, 1), atol=1e-3)
    assert load_extractor().dim == 352


def test_grey_images_count_as_rgb_and_others_are_refused() -> None:
    extractor = load_extractor()
    grey = pixels(2, 1, 16, 16)
    assert torch.equal(extractor.extract(grey), extractor.extract(grey.repeat(1, 3, 1, 1)))
    for wrong in (pixels(2, 4, 16, 16), pixels(3, 16, 16), torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ConfigError, match=r"images: .*expected uint8 \[N, 3, H, W\]"):
            extractor.extract(wrong)


def test_the_embedded_distance_sees_colour_texture_and_blur() -> None:
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.integers(60, 190, (24, 3, 32, 32)).astype(np.uint8))
    extractor = load_extractor()

    def distance(a: Tensor, b: Tensor) -> float:
        statistics = []
        for images in (a, b):
            accumulator = StatisticsAccumulator()
            accumulator.add(extractor.extract(images))
            statistics.append(accumulator.result())
        return frechet_distance(*statistics)

    again = torch.from_numpy(rng.integers(60, 190, (24, 3, 32, 32)).astype(np.uint8))
    floor = distance(base, again)
    blurred = F.avg_pool2d(again.float(), 3, 1, 1).to(torch.uint8)
    tinted = again.clone()
    tinted[:, 0] += 40
    assert min(distance(base, blurred), distance(base, tinted)) > 3 * floor


# MobileNetV2

WIDTHS = (16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)
HALVING = (2, 4, 7, 14)


def mobilenet_state() -> dict[str, Tensor]:
    """Random weights under torchvision's names, BatchNorms folded. Source of the widths: Sandler et al. 2018, table 2."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{name}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel, generator=generator) * (2 / inputs / kernel**2) ** 0.5
        )
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    conv("features.18.0", 1280, 320, 1)
    conv("features.0.0", 32, 3, 3)
    inputs = 32
    for block, outputs in enumerate(WIDTHS, start=1):
        hidden = inputs if block == 1 else 6 * inputs
        if block > 1:
            conv(f"features.{block}.conv.0.0", hidden, inputs, 1)
        conv(f"features.{block}.conv.{int(block > 1)}.0", hidden, 1, 3)
        conv(f"features.{block}.conv.{1 + int(block > 1)}", outputs, hidden, 1)
        inputs = outputs
    state["classifier.1.weight"], state["classifier.1.bias"] = torch.zeros(10, 1280), torch.zeros(10)
    return state


def mobilenet(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network layer by layer."""

    def conv(x: Tensor, name: str, **options) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = conv((images.float() / 255 - mean) / std, "features.0.0", stride=2, padding=1).relu()
    for block in range(1, 18):
        name, before = f"features.{block}.conv", x
        if block > 1:
            x = conv(x, f"{name}.0.0").relu()
        stride = 2 if block in HALVING else 1
        x = conv(x, f"{name}.{int(block > 1)}.0", stride=stride, padding=1, groups=x.shape[1]).relu()
        x = conv(x, f"{name}.{1 + int(block > 1)}")
        x = x + before if x.shape == before.shape else x
    return conv(x, "features.18.0").relu().mean((2, 3))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_mobilenet_layer_by_layer(tmp_path: Path, ending: str) -> None:
    state, file = mobilenet_state(), tmp_path / f"m.{ending}"
    torch.save(state, file) if ending == "pth" else save_file(state, file)
    extractor = load_extractor(file)
    assert (extractor.name, extractor.dim, extractor.digest) == ("mobilenet_v2", 1280, sha256_file(file))
    images = pixels(1, 3, 224, 224)
    expected = mobilenet(state, images)
    found = extractor.extract(images)
    assert found.shape == (1, 1280)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_mobilenet_resizes_as_pillow_does(tmp_path: Path) -> None:
    torch.save(mobilenet_state(), tmp_path / "m.pth")
    extractor = load_extractor(tmp_path / "m.pth")
    smooth = np.asarray(Image.fromarray(pixels(9, 9, 3).numpy()).resize((256, 180), Image.Resampling.BICUBIC))
    small = np.array(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BICUBIC))
    whole, resized = (extractor.extract(torch.from_numpy(np.array(i)).permute(2, 0, 1)[None]) for i in (smooth, small))
    assert (whole - resized).abs().max() < 0.02 * resized.abs().max()


def test_mobilenet_files_that_do_not_fit(tmp_path: Path) -> None:
    def refused(**changes: Tensor | None) -> str:
        state = {
            k: v
            for k, v in {**mobilenet_state(), **{k.replace("__", "."): v for k, v in changes.items()}}.items()
            if v is not None
        }
        torch.save(state, tmp_path / "m.pth")
        with pytest.raises(CheckpointError) as caught:
            load_extractor(tmp_path / "m.pth")
        assert str(caught.value).startswith(f"{tmp_path / 'm.pth'}: ")
        return str(caught.value)

    assert "features.3.conv.2: does not fit" in refused(features__3__conv__2__bias=torch.zeros(3))
    assert "features.3.conv.2: does not fit" in refused(features__3__conv__2__bias=None)
    assert "has 51 convolutions, a MobileNetV2 has 52" in refused(features__3__conv__2__weight=None)
    assert "not a known feature network" in refused(features__18__0__weight=None)


def test_files_that_hold_no_feature_network(tmp_path: Path) -> None:
    from gancomp.models import ResnetConfig, ResnetGenerator

    ResnetGenerator(ResnetConfig.uniform(4, 1)).save(tmp_path / "g.safetensors")
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "text.pt2").write_text("program")
    for name, message in (
        ("g.safetensors", "not a known feature network"), ("text.pth", "cannot be read"), ("text.pt2", "cannot be loaded"),
        ("gone.pth", "no such file"), ("gone.pt2", "no such file"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message) as caught:
            load_extractor(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_distance_of_real_photos_is_the_known_one(shared: Path) -> None:
    """Horses against zebras, whole images: 507.7, measured by others on these files with these weights."""
    torch.set_num_threads(2)
    extractor = load_extractor(shared / MOBILENET)

    def statistics(files: Sequence[Path]):
        accumulator = StatisticsAccumulator()
        for begin in range(0, len(files), 16):
            pictures = [np.array(read_image(file)) for file in files[begin : begin + 16]]
            accumulator.add(extractor.extract(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)))
        return accumulator.result()

    horses, zebras = (statistics(sorted((shared / "data/horse2zebra" / name).iterdir())) for name in ("testA", "testB"))
    assert (horses.count, zebras.count) == (96, 112)
    assert round(frechet_distance(horses, zebras), 1) == 507.7


# A user's own network


class Mean(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


class Flat(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


def export(module: torch.nn.Module, path: Path) -> Path:
    batch, side = torch.export.Dim("batch", min=1, max=64), torch.export.Dim.AUTO
    torch.export.save(torch.export.export(module, (pixels(2, 3, 16, 16),), dynamic_shapes=[{0: batch, 2: side, 3: side}]), path)
    return path


def test_an_exported_program(tmp_path: Path) -> None:
    extractor = load_extractor(export(Mean(), tmp_path / "my-means.pt2"))
    images = pixels(5, 3, 20, 24)
    assert torch.equal(extractor.extract(images), images.float().mean((2, 3)))
    assert (extractor.name, extractor.dim, extractor.digest) == ("my-means", 3, sha256_file(tmp_path / "my-means.pt2"))
    flat = load_extractor(export(Flat(), tmp_path / "flat.pt2"))
    with pytest.raises(CheckpointError, match=r"feature network flat: returned \[5, 3, 20, 24\], expected \[N, D\]"):
        flat.extract(images)
