"""The detector's input: an image in float32, without its means, scaled (original 12.1 and 12.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import ImageError

BGR_MEANS = (102.9801, 115.9465, 122.7717)
SHORTER_SIDE, LONGER_SIDE = 600, 1000
_LEAST_SIDE = 3  # pixels; the stem of the trunk has no output for less


class NetworkInput(NamedTuple):
    """pixels: float32 [1, 3, h, w], B, G, R. scale: pixels of the input for one pixel of the image."""

    pixels: Tensor
    scale: float


def network_input(image: Image.Image) -> NetworkInput:
    """The input of one image, used as it is: no EXIF orientation is applied.

    Raises ImageError for an image that is too narrow.
    """
    return scaled_input(np.asarray(image.convert("RGB"))[:, :, ::-1])


def scaled_input(bgr: np.ndarray) -> NetworkInput:
    """The same from uint8 [H, W, 3] in the order B, G, R."""
    height, width = bgr.shape[:2]
    scale = input_scale(height, width)
    h, w = round(height * scale), round(width * scale)  # Python rounds half to even, as the original does
    if min(h, w) < _LEAST_SIDE:
        raise ImageError(f"image of {width}x{height} pixels: the detector's input would be {w}x{h}, too narrow for it")
    pixels = torch.from_numpy((bgr - np.array(BGR_MEANS)).astype(np.float32))  # (H, W, 3), subtracted in float64
    pixels = pixels.permute(2, 0, 1)[None]
    # interpolate() would pass on either the sizes or the scale. The original has sizes that are rounded and coordinates
    # from the scale itself.
    return NetworkInput(torch.ops.aten.upsample_bilinear2d(pixels, [h, w], False, scale, scale), scale)


def input_scale(height: int, width: int) -> float:
    """The scale that makes the shorter side 600 pixels, or the longer side 1000 where it would be longer."""
    scale = SHORTER_SIDE / min(height, width)
    if round(scale * max(height, width)) > LONGER_SIDE:
        scale = LONGER_SIDE / max(height, width)
    return scale
