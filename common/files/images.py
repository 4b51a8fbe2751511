"""Image files, decoded to RGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from zipfile import BadZipFile

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
        return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except _DECODE_ERRORS as error:
        raise ImageError(f"unreadable image {what} ({len(data)} bytes): {error}") from error
