"""Groups of touching pixels become boxes, whatever their form."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.95])
def test_groups_are_those_of_a_flood_fill(share):
    blocks = np.random.default_rng(0).random((14, 17)) < share
    mask = np.pad(np.kron(blocks, np.ones((6, 6), bool)), 4)  # a block has more pixels than noise
    expected, left = [], {tuple(p) for p in np.argwhere(mask).tolist()}
    while left:
        group, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            group.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        ys, xs = zip(*group, strict=True)
        expected.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    assert boxes(mask) == sorted(expected)


def test_pixels_that_touch_at_a_corner_are_one_group():
    mask = np.zeros((60, 60), bool)
    mask[10:20, 10:20] = mask[20:30, 20:30] = True
    assert boxes(mask) == [[10, 10, 30, 30]]
    mask[20:30, 20] = mask[20, 20:30] = False
    assert boxes(mask) == [[10, 10, 20, 20], [21, 21, 30, 30]]
