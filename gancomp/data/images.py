"""Image files to tensors and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gancomp.errors import ConfigError, DataError, first_line
from gancomp.io import atomic_path
from gancomp.pictures import eight_bits

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 80_000_000  # Pillow itself warns above 89 million


def read_image(path: Path, channels: int = 3) -> Image.Image:
    """Read an image file as 8-bit RGB (``channels`` 3) or grey (1).

    What becomes of other kinds of images is said in :func:`gancomp.pictures.eight_bits`.

    Raises:
        DataError: not an image, damaged, cut short, NaN inside, or above 80 megapixels; the message names the path.
        ConfigError: ``channels`` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ConfigError(f"channels={channels}: image files have 1 or 3")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS}")
            image.load()
            return eight_bits(image, channels)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: has more pixels than the allowed {MAX_PIXELS}") from None
    except Exception as error:
        # Pillow's decoders raise many kinds of exceptions on damaged data.
        raise DataError(f"{path}: cannot be read as an image ({first_line(error)})") from None


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, truncated as the literature's evaluation does: ``clip((x + 1) / 2 * 255, 0, 255)``."""
    return ((images + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def _levels() -> Tensor:
    """``v / 127.5 - 1`` of every 8-bit value, float32 [256], each rounded to the side from which :func:`to_uint8` gives v back.

    Rounded to nearest, a fifth of them would lie a hair low and be truncated to v - 1.
    """
    values = torch.arange(256)
    levels = (values.double() / 127.5 - 1).float()
    above = torch.nextafter(levels, torch.tensor(2.0))
    return torch.where(to_uint8(levels) == values, levels, above)


_LEVELS = _levels()


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit image as float32 [C, H, W] in [-1, 1]; :func:`to_uint8` gives its samples back."""
    samples = np.array(image, dtype=np.uint8)
    tensor = torch.from_numpy(samples if samples.ndim == 3 else samples[:, :, None])
    return _LEVELS[tensor.permute(2, 0, 1).contiguous().int()]


def to_image(tensor: Tensor) -> Image.Image:
    """[C, H, W] in [-1, 1] (C 1 or 3) as an 8-bit picture."""
    samples = to_uint8(tensor.detach().float().cpu()).permute(1, 2, 0).numpy()
    return Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)


def save_image(tensor: Tensor, path: Path) -> None:
    """Write [C, H, W] in [-1, 1] as a PNG file, whole or not at all."""
    with atomic_path(path) as temporary:
        to_image(tensor).save(temporary, format="PNG")


def image_grid(rows: Sequence[Sequence[Tensor]], captions: Sequence[str] = (), gap: int = 4) -> Image.Image:
    """A picture of equally sized images [C, H, W] in [-1, 1] in rows and columns, with captions above the columns."""
    pictures = [[to_image(image).convert("RGB") for image in row] for row in rows]
    if not pictures or not pictures[0] or len({len(row) for row in pictures}) > 1:
        raise ConfigError(f"rows={[len(row) for row in pictures]}: expected at least one image and equally long rows")
    width, height = pictures[0][0].size
    # Small images are enlarged by whole factors so that they can be looked at.
    factor = max(1, 128 // max(width, height))
    width, height = width * factor, height * factor
    header = 18 if captions else 0
    columns = len(pictures[0])
    canvas = Image.new("RGB", (columns * (width + gap) + gap, len(pictures) * (height + gap) + gap + header), "white")
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        draw.text((gap + column * (width + gap) + 2, 4), caption, fill=(60, 60, 60))
    for r, row in enumerate(pictures):
        for c, picture in enumerate(row):
            place = (gap + c * (width + gap), header + gap + r * (height + gap))
            canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    return canvas
