"""Regions of a made-up image: boxes and classes as a detector might return them, and features from the pixels."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from data.scenes.description import (
    COLORS,
    SHAPES,
    Box,
    Scene,
    overlap,
)

FEATURE_SIZE = 2048
CROP_SIZE = 16
CONTRAST = 40  # of 255, from which a pixel is not background
FIND_SIZE = 320  # pixels of the longer side at which boxes are looked for
FIND_PIXELS = 30  # what has fewer is noise
CLASSES = ("background", *(f"{color} {shape}" for color in COLORS for shape in SHAPES))


def region_boxes(scene: Scene, rng: Random) -> np.ndarray:
    """What a detector might return: float32 [n, 4], slightly wrong boxes of all things, and 0 to 2 of background."""
    boxes = _shaken_boxes(scene, rng)
    boxes += _background_boxes(scene, rng, rng.choice((0, 0, 1, 1, 2)))
    rng.shuffle(boxes)
    return _inside(scene, boxes)


def thing_boxes(scene: Scene, rng: Random) -> np.ndarray:
    """float32 [n, 4], slightly wrong boxes of all things and of nothing else, in the order of the scene."""
    return _inside(scene, _shaken_boxes(scene, rng))


def class_scores(scene: Scene, boxes: np.ndarray, rng: Random) -> np.ndarray:
    """What a detector might think of boxes [n, 4]: float32 [n, len(CLASSES)], rows that sum to 1, background first.

    What shares colour or shape with the truth is likelier than the rest; in about one box of fifty a wrong class wins.
    """
    scores = np.empty((len(boxes), len(CLASSES)))
    for row, box in zip(scores, boxes.tolist(), strict=True):
        thing = next((t for t in scene.things if overlap(tuple(box), t.box)), None)
        row[0] = 6.0 if thing is None else 0.0
        row[1:] = [3.0 * (thing.color == c) + 3.0 * (thing.shape == s) if thing else 0 for c in COLORS for s in SHAPES]
        row += [rng.gauss(0.0, 0.7) for _ in CLASSES]
    scores = np.exp(scores)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def region_features(entry: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """float32 [n, 2048] from the pixels of n boxes: rectified random projections of a crop's silhouette and colours.

    A trained detector tells shapes from colours; a plain projection of pixels would be colour nearly alone. So half
    of the numbers see only what differs from the crop's border. Everything is exact in float32 (integers times
    +1 or -1), so that no BLAS can change a bit.
    """
    size = (CROP_SIZE, CROP_SIZE)
    crops = [entry.resize(size, Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]
    pixels = np.stack([np.asarray(crop, np.float32) for crop in crops])  # [n, 16, 16, 3]
    silhouettes = 2.0 * _silhouettes(pixels) - 1.0
    shape = np.maximum(silhouettes.reshape(len(boxes), -1) @ _projection(CROP_SIZE**2), 0) / 16.0
    color = np.maximum((pixels - 192.0).reshape(len(boxes), -1) @ _projection(3 * CROP_SIZE**2), 0) / 1024.0
    return np.concatenate([shape, color], axis=1, dtype=np.float32)  # the divisors are near the deviations


def find_boxes(entry: Image.Image) -> np.ndarray:
    """Boxes [n, 4] of what stands out from the background of any image of flat shapes, from left to right.

    A detector for these images and for those that people draw: connected pixels that differ clearly from the most
    frequent colour of the border. At least one box; the whole image where nothing stands out.
    """
    small = entry.copy()
    small.thumbnail((FIND_SIZE, FIND_SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    found = np.abs(pixels - np.median(border, axis=0)).max(-1) > CONTRAST
    labels = _components(found)
    scale = np.array([entry.width / small.width, entry.height / small.height] * 2)
    boxes = []
    for label in np.unique(labels[found]):
        y, x = np.nonzero(labels == label)
        if len(x) >= FIND_PIXELS:
            boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    rows = np.array(sorted(boxes) or [(0, 0, small.width, small.height)]) * scale
    return np.clip(rows, 0, np.array([entry.width - 1, entry.height - 1] * 2)).astype(np.float32)


def _components(mask: np.ndarray) -> np.ndarray:
    """int64, the shape of `mask`: one positive number for each group of True pixels that touch, 0 elsewhere."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
        spread = np.where(mask, around, 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _silhouettes(pixels: np.ndarray) -> np.ndarray:
    """bool [n, 16, 16]: pixels that differ clearly from the crop's corners; pixels [n, 16, 16, 3]."""
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # [n, 4, 3]
    background = np.sort(corners, axis=1)[:, 1]
    return np.abs(pixels - background[:, None, None]).max(-1) > CONTRAST


@lru_cache(maxsize=2)
def _projection(inputs: int) -> np.ndarray:
    """float32 [inputs, 1024] of +1 and -1; the same in every world, as a detector's weights would be."""
    bits = np.random.RandomState(2020).randint(0, 2, (inputs, FEATURE_SIZE // 2))
    return (2 * bits - 1).astype(np.float32)


def _shaken_boxes(scene: Scene, rng: Random) -> list[Box]:
    boxes = []
    for thing in scene.things:
        x1, y1, x2, y2 = (value + rng.uniform(-1.5, 1.5) for value in thing.box)
        boxes.append((x1, y1, x2, y2))
    return boxes


def _inside(scene: Scene, boxes: list[Box]) -> np.ndarray:
    limits = (scene.width - 1, scene.height - 1) * 2
    return np.clip(np.array(boxes, np.float32), 0, np.array(limits, np.float32))


def _background_boxes(scene: Scene, rng: Random, count: int) -> list[Box]:
    """Up to `count` boxes that touch no thing; in a full scene there may be no place for one."""
    boxes: list[Box] = []
    for _ in range(20):
        width, height = rng.uniform(16, 40), rng.uniform(16, 40)
        x, y = rng.uniform(0, scene.width - 1 - width), rng.uniform(0, scene.height - 1 - height)
        box = (x, y, x + width, y + height)
        if len(boxes) < count and not any(overlap(box, thing.box) for thing in scene.things):
            boxes.append(box)
    return boxes
