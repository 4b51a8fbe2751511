"""Groups of touching pixels become boxes, whatever their form."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data.scenes.regions import find_boxes


def boxes(mask: np.ndarray) -> list[list[float]]:
    pixels = np.full((*mask.shape, 3), 230, np.uint8)
    pixels[mask] = 20
    return find_boxes(Image.fromarray(pixels)).tolist()


def test_a_long_winding_group_is_one_box():
    mask = np.zeros((60, 60), bool)
    mask[4:56:4, 6:54] = True  # lines, joined at the right, at the left, at the right ...
    for number, y in enumerate(range(4, 52, 4)):
        mask[y : y + 5, 6 if number % 2 else 53] = True
    assert boxes(mask) == [[6, 4, 54, 53]]


def test_pixels_that_touch_at_a_corner_are_one_group():
    mask = np.zeros((60, 60), bool)
    mask[10:20, 10:20] = mask[20:30, 20:30] = True
    assert boxes(mask) == [[10, 10, 30, 30]]
    mask[20:30, 20] = mask[20, 20:30] = False
    assert boxes(mask) == [[10, 10, 20, 20], [21, 21, 30, 30]]
