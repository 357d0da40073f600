"""A released generator on real photographs: what the engine and its precisions change in the images.

    python -m benchmarks.photographs --csv benchmarks/results/photographs.csv --picture docs/images/engine-horse2zebra.jpg

Needs the released weights, the photographs and, for the Frechet distance, the MobileNetV2 weights (benchmarks/cases.py says
where they are looked for).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.cases import shared_file
from benchmarks.schema import Conditions, Row, conditions, percentiles, write_rows
from gancomp import Engine, load_generator
from gancomp.data import image_grid, read_image, to_tensor, to_uint8
from gancomp.errors import GancompError, RunError
from gancomp.io import atomic_path
from gancomp.metrics.features import FeatureExtractor, load_extractor
from gancomp.metrics.frechet import Statistics, StatisticsAccumulator, frechet_distance
from gancomp.metrics.image import psnr, ssim

WEIGHTS = "weights/gan_compression/horse2zebra_compressed_latest_net_G.pth"
FEATURES = "weights/mobilenet_v2/mobilenet_v2_imagenet_bnfolded.pth"
PHOTOGRAPHS = "data/horse2zebra/testA"
TARGETS = ("data/horse2zebra/trainB", "data/horse2zebra/testB")
PRECISIONS = {"engine": "f32", "engine-int8": "int8"}
SHOWN = 5
EQUAL = 100.0  # dB, of equal images

Translate = Callable[[Tensor], Tensor]


def found(name: str) -> Path:
    """A file or folder of the real images and weights.

    Raises:
        RunError: it is not at hand.
    """
    path = shared_file(name)
    if path is None:
        raise RunError(f"{name}: not at hand; set GANCOMP_SHARED to the folder that holds weights/ and data/")
    return path


def load(folder: Path) -> list[Tensor]:
    """The photographs of a folder, [3, H, W] in [-1, 1], by name."""
    return [to_tensor(read_image(path)) for path in sorted(folder.iterdir())]


def statistics(images: Iterable[Tensor], extractor: FeatureExtractor, what: str) -> Statistics:
    """Feature statistics of images [3, H, W]."""
    sums = StatisticsAccumulator()
    for image in tqdm(list(images), desc=what, leave=False, disable=None):
        sums.add(extractor.extract(to_uint8(image[None])))
    return sums.result()


def contenders(model: Path) -> dict[str, Translate]:
    """PyTorch in float32, then the engine in every precision that this processor has."""
    generator = load_generator(model).eval()
    translators: dict[str, Translate] = {"PyTorch": torch.inference_mode()(generator.translate)}
    for name, precision in PRECISIONS.items():
        try:
            translators[name] = Engine(generator.to_bytes(), precision=precision)
        except GancompError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return translators


def compare(name: str, made: Sequence[Tensor], wanted: Sequence[Tensor], common: dict[str, Any]) -> list[Row]:
    """Rows of how far images are from those of PyTorch: as bytes, and as what a user sees."""
    bytes_of = [to_uint8(image[None]).short() for image in made]
    truth = [to_uint8(image[None]).short() for image in wanted]
    levels = [(a - b).abs() for a, b in zip(bytes_of, truth, strict=True)]
    measured = {
        ("psnr", "dB"): [min(float(psnr(a[None], b[None])), EQUAL) for a, b in zip(made, wanted, strict=True)],
        ("ssim", ""): [float(ssim(a[None], b[None])) for a, b in zip(made, wanted, strict=True)],
        ("equal bytes", "%"): [100 * float((level == 0).float().mean()) for level in levels],
        ("largest step", "levels"): [float(level.max()) for level in levels],
    }
    rows = []
    for (metric, unit), values in measured.items():
        spread: dict[str, Any] = percentiles(values)
        rows.append(Row(metric=metric, unit=unit, **spread, config="of PyTorch's", provider=name, **common))
        worst = max(values) if metric == "largest step" else min(values)
        rows.append(
            Row(metric=metric, unit=unit, p20=worst, p50=worst, p80=worst, config="worst image", provider=name, **common)
        )
    return rows


def measure(model: Path, folder: Path, targets: Sequence[Path], features: Path | None, picture: Path | None) -> list[Row]:
    """Translate every photograph by every contender, compare, and draw a few.

    Args:
        model: the released generator.
        folder: of the photographs.
        targets: folders of the target domain.
        features: weights of the feature network of the Frechet distance; None takes the embedded one.
        picture: JPEG file to draw into, or None.
    """
    photographs = load(folder)
    images = {
        name: [translate(x[None])[0] for x in tqdm(photographs, desc=name, leave=False, disable=None)]
        for name, translate in contenders(model).items()
    }
    where: Conditions = conditions(torch.get_num_threads())
    common: dict[str, Any] = {"kernel": "C1", "mode": "photographs", "x": f"{len(photographs)} photographs", **asdict(where)}
    rows = []
    extractor = load_extractor(features)
    reference = statistics((image for target in targets for image in load(target)), extractor, "target domain")
    for name, made in images.items():
        if name != "PyTorch":
            rows += compare(name, made, images["PyTorch"], common)
        distance = frechet_distance(statistics(made, extractor, f"features, {name}"), reference)
        config = f"to {reference.count} images of the target domain"
        percentile: dict[str, Any] = dict.fromkeys(("p20", "p50", "p80"), distance)
        rows.append(Row(metric=f"fd_{extractor.name}", unit="", config=config, provider=name, **percentile, **common))
    if picture is not None:
        # Every so often one, and the one that the last contender changes most.
        worst = int(np.argmin([float(psnr(a[None], b[None])) for a, b in zip(made, images["PyTorch"], strict=True)]))
        shown = [*np.linspace(0, len(photographs) - 1, SHOWN - 1).astype(int), worst]
        grid = image_grid([[photographs[i], *(made[i] for made in images.values())] for i in shown], ["photograph", *images])
        with atomic_path(picture) as temporary:
            grid.save(temporary, format="JPEG", quality=88)
    return rows


def main(arguments: Sequence[str]) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--csv", type=Path, required=True, help="results file to write")
    parser.add_argument("--picture", type=Path, help="JPEG file to draw the first images into")
    options = parser.parse_args(arguments)
    rows = measure(found(WEIGHTS), found(PHOTOGRAPHS), [found(name) for name in TARGETS], found(FEATURES), options.picture)
    write_rows(options.csv, rows)
    for row in rows:
        print(f"{row.provider:12} {row.metric:16} {row.p50:10.4g} {row.unit:7} {row.config}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GancompError as error:
        sys.exit(str(error))
