import numpy as np
import pytest

from vcr.masks import instance_mask

BOX = [10, 20, 109, 79]
# original 8.7, inclusive rule.
TRIANGLE = (
    "10000000000000 01000000000000 01110000000000 01111100000000 00111111000000 00111111110000 00111111111100 "
    "00011111111111 00011111111100 00011111111000 00001111100000 00001111000000 00001100000000 00000000000000"
)


def rows(mask: np.ndarray) -> str:
    return " ".join("".join(str(int(x)) for x in row) for row in mask)


def test_the_box_itself_is_all_ones():
    mask = instance_mask([[(10, 20), (109, 20), (109, 79), (10, 79)]], BOX)
    assert mask.shape == (14, 14) and mask.dtype == np.float32 and mask.all()


def test_the_specified_triangle_either_way_round():
    triangle = [(10, 20), (109, 50), (40, 79)]
    mask = instance_mask([triangle], BOX)
    assert mask.sum() == 73
    assert rows(mask) == TRIANGLE
    assert np.array_equal(instance_mask([triangle[::-1]], BOX), mask)


def test_degenerate_polygons():
    assert instance_mask([], BOX).sum() == 0
    assert instance_mask([[(10, 20)] * 3], BOX).sum() == 1  # the grid point under the vertex
    assert instance_mask([[(0, 0), (5, 0), (5, 5)]], BOX).sum() == 1  # all outside: clamped to the corner
    for bad in ([], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="polygon of shape"):
            instance_mask([bad], BOX)


def test_polygons_are_united_and_left_as_they_are():
    left = np.array([(10, 20), (50, 20), (50, 79), (10, 79)], dtype=np.float32)
    right = np.array([(70, 20), (109, 20), (109, 79), (70, 79)], dtype=np.float32)
    before = left.copy()
    both = instance_mask([left, right], BOX, size=7)
    assert both.shape == (7, 7)
    assert np.array_equal(both, np.maximum(instance_mask([left], BOX, 7), instance_mask([right], BOX, 7)))
    assert np.array_equal(left, before)
