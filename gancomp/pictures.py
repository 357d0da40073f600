"""PIL images in the form that data sets and the engine take. Needs no PyTorch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """An image as 8-bit RGB (``channels`` 3) or grey (1).

    Orientation tags are applied, transparency is laid on white, palettes are expanded, 16-bit and floating-point samples are
    scaled to 8 bits (16-bit ones by their full range, floats from [0, 1]); values beyond the range are cut off.

    Raises:
        ValueError: NaN inside.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image, dtype=np.float64)
        if np.isnan(samples).any():
            raise ValueError("has samples that are not numbers")
        scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
        image = Image.fromarray(np.clip(samples * scale + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB" if channels == 3 else "L")
