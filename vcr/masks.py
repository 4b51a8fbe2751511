"""Instance masks from polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

VERTEX_TOLERANCE = 1e-12


def instance_mask(polygons: Sequence[ArrayLike], box: ArrayLike, size: int = 14) -> NDArray[np.float32]:
    """The union of polygons, cropped to a box and drawn on a grid: float32 [size, size] of 0 and 1.

    polygons: each [n, 2], x and y in pixels of the original image. box: xyxy in the same frame.
    Points outside the box are clamped to its border. Vertices and edges belong to a polygon (original 8.7).
    Without a polygon the mask is empty. Raises ValueError for a polygon that is not [n, 2] with n > 0.
    """
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float32)
    scale = np.float32(size) / np.array([x2 - x1 + 1, y2 - y1 + 1], dtype=np.float32)
    mask = np.zeros((size, size), dtype=bool)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float32)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"polygon of shape {points.shape}, expected [n, 2] with n > 0")
        # Float32 up to here, as in the original: rounding decides on which side of a grid point an edge passes.
        mask |= _fill(np.clip((points - np.array([x1, y1])) * scale, 0, size - 1).astype(np.float64), size)
    return mask.astype(np.float32)


def _fill(points: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """bool [size, size]: whether a grid point (row y, column x) lies in or on the polygon with vertices [n, 2].

    Counts the edges that a ray to the right and a ray to the left cross. The two parities differ only on an edge.
    """
    grid = np.arange(size)
    x = points[:, 0] - grid[:, None]  # [column, n] vertices relative to the grid point
    y = points[:, 1] - grid[:, None]  # [row, n]
    x0, y0 = np.roll(x, 1, axis=1), np.roll(y, 1, axis=1)  # the vertex before
    x, x0, y, y0 = x[None], x0[None], y[:, None], y0[:, None]  # broadcast to [row, column, n]
    side = (x * y0 - x0 * y) * np.sign(y0 - y)  # sign: on which side of the grid point the edge meets the ray's line
    right = (((y > 0) != (y0 > 0)) & (side > 0)).sum(-1) % 2
    left = (((y < 0) != (y0 < 0)) & (side < 0)).sum(-1) % 2
    vertex = ((np.abs(x) < VERTEX_TOLERANCE) & (np.abs(y) < VERTEX_TOLERANCE)).any(-1)
    return vertex | (right != left) | (right == 1)
