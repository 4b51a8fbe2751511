"""Image files, decoded to RGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps

from common.errors import ImageError
from common.files.archives import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")

# What Pillow raises on damaged data. It has no error class of its own for that.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Returns the decoded image as RGB, whatever its mode on disk. Of an animation it returns the first frame.

    path: a file or an archive's member (see `common.files.archives`).
    upright: rotate the image by its EXIF orientation. Images of data sets stay as stored, because their annotated boxes
    are in the frame of the stored pixels (original 7.6).
    Raises FileNotFoundError as `read_bytes` does, and ImageError for a file that cannot be decoded.
    """
    try:
        data = read_bytes(path)
    except BadZipFile as error:
        raise ImageError(f"unreadable image: {error}") from error
    return decode_image(data, str(path), upright)


def decode_image(data: bytes, what: str, upright: bool = False) -> Image.Image:
    """Returns the image that the content of a file holds, as `load_image` does. what: its name in errors."""
    try:
        image = Image.open(io.BytesIO(data))
        return as_rgb(ImageOps.exif_transpose(image) if upright else image)
    except _DECODE_ERRORS as error:
        raise ImageError(f"unreadable image {what} ({len(data)} bytes): {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as RGB with 8 bits, as image viewers show it.

    Transparent pixels are on white. Grey values of 16 bits are divided by 257. In an image of 32 bits, values up to 255
    are taken as 8 bits, and values up to 65535 as 16 bits. Floats up to 1 are fractions of white. Other values are
    scaled from the smallest to the largest. Raises ValueError for values that are not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values uint8 [H, W] from integers or floats."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise ValueError("it has values that are not finite")
    if low < 0 or high > 65535:
        scaled = (values.astype(np.float64) - low) * (255 / (high - low or 1.0))
    elif values.dtype.kind == "f" and high <= 1:
        scaled = values * 255.0
    elif values.dtype.itemsize == 2 or high > 255:
        scaled = values / 257.0
    else:
        scaled = values
    return np.rint(scaled).astype(np.uint8)
