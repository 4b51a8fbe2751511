"""Regions of a generated image: boxes and class scores of an imagined detector, and features from the pixels."""

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
CONTRAST = 40  # of 255: the smallest difference between a pixel and the background
FIND_SIZE = 320  # pixels of the longer side of the image in which boxes are searched
FIND_PIXELS = 30  # smaller components are noise
CLASSES = ("background", *(f"{color} {shape}" for color in COLORS for shape in SHAPES))


def region_boxes(scene: Scene, rng: Random) -> np.ndarray:
    """Returns the boxes of an imagined detector, float32 [n, 4]: inexact boxes of all things, and 0 to 2 of
    background."""
    boxes = _shaken_boxes(scene, rng)
    boxes += _background_boxes(scene, rng, rng.choice((0, 0, 1, 1, 2)))
    rng.shuffle(boxes)
    return _inside(scene, boxes)


def thing_boxes(scene: Scene, rng: Random) -> np.ndarray:
    """Returns inexact boxes of all things and of nothing else, float32 [n, 4], in the order of the scene."""
    return _inside(scene, _shaken_boxes(scene, rng))


def class_scores(scene: Scene, boxes: np.ndarray, rng: Random) -> np.ndarray:
    """Returns the class scores of an imagined detector for boxes [n, 4]: float32 [n, len(CLASSES)], background first.

    Each row sums to 1. Classes of the right colour or the right shape score higher than others. In about one box of
    fifty a wrong class has the highest score.
    """
    scores = np.empty((len(boxes), len(CLASSES)))
    for row, box in zip(scores, boxes.tolist(), strict=True):
        thing = next((t for t in scene.things if overlap(tuple(box), t.box)), None)
        row[0] = 6.0 if thing is None else 0.0
        row[1:] = [3.0 * (thing.color == c) + 3.0 * (thing.shape == s) if thing else 0 for c in COLORS for s in SHAPES]
        row += [rng.gauss(0.0, 0.7) for _ in CLASSES]
    scores = np.exp(scores)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def region_features(image: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """Returns features float32 [n, 2048] of n boxes: rectified random projections of the silhouette and the colours of
    a crop.

    A trained detector separates shapes from colours, but a plain projection of pixels depends on colour nearly alone.
    So the first half of a feature depends on the silhouette only. All sums are exact in float32 (integers times +1 or
    -1), so that every BLAS gives the same bits. A box without width or height gets a pixel.
    """
    boxes = np.concatenate([boxes[:, :2], np.where(boxes[:, 2:] > boxes[:, :2], boxes[:, 2:], boxes[:, :2] + 1)], 1)
    size = (CROP_SIZE, CROP_SIZE)
    crops = [image.resize(size, Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]
    pixels = np.stack([np.asarray(crop, np.float32) for crop in crops])  # [n, 16, 16, 3]
    silhouettes = 2.0 * _silhouettes(pixels) - 1.0
    shape = np.maximum(silhouettes.reshape(len(boxes), -1) @ _projection(CROP_SIZE**2), 0) / 16.0
    color = np.maximum((pixels - 192.0).reshape(len(boxes), -1) @ _projection(3 * CROP_SIZE**2), 0) / 1024.0
    return np.concatenate([shape, color], axis=1, dtype=np.float32)  # the divisors are near the deviations


def find_boxes(image: Image.Image) -> np.ndarray:
    """Returns the boxes float32 [n, 4] of the shapes in an image of flat shapes, from left to right, xyxy in pixels.

    A shape is a group of connected pixels that differ clearly from the most frequent colour of the border. Without
    shapes the whole image is the only box.
    """
    small = image.copy()
    small.thumbnail((FIND_SIZE, FIND_SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    found = np.abs(pixels - np.median(border, axis=0)).max(-1) > CONTRAST
    scale = np.array([image.width / small.width, image.height / small.height] * 2)
    components, sizes = _components(found)
    boxes = components[sizes >= FIND_PIXELS].tolist()
    rows = np.array(sorted(boxes) or [(0, 0, small.width, small.height)]) * scale
    return np.clip(rows, 0, np.array([image.width - 1, image.height - 1] * 2)).astype(np.float32)


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes [n, 4], xyxy with exclusive ends, and numbers of pixels [n] of the groups of touching pixels.

    Pixels touch at corners too. Union-find over the runs of True pixels of each row: the time depends on the number of
    runs, not on the length of a winding line.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    y, x1 = np.nonzero(edges == 1)  # [runs], in the order of reading
    x2 = np.nonzero(edges == -1)[1]
    width = mask.shape[1] + 1  # positions of a row and its end
    first = np.searchsorted(y * width + x2, (y + 1) * width + x1)  # of the runs below that touch a run
    stop = np.searchsorted(y * width + x1, (y + 1) * width + x2, side="right")
    above = np.repeat(np.arange(len(y)), stop - first)
    below = np.arange(len(above)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
    groups = np.unique(_roots(len(y), above.tolist(), below.tolist()), return_inverse=True)[1]
    count = groups.max(initial=-1) + 1
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = mask.size, 0
    for column, at, values in ((0, np.minimum, x1), (1, np.minimum, y), (2, np.maximum, x2), (3, np.maximum, y + 1)):
        at.at(boxes[:, column], groups, values)
    return boxes, np.bincount(groups, x2 - x1, minlength=count)


def _roots(count: int, first: list[int], second: list[int]) -> list[int]:
    """Returns the smallest node of the group of each of `count` nodes, where first[i] and second[i] are linked."""
    parents = list(range(count))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = node = parents[parents[node]]
        return node

    for a, b in zip(first, second, strict=True):
        low, high = sorted((root(a), root(b)))
        parents[high] = low
    return [root(node) for node in range(count)]


def _silhouettes(pixels: np.ndarray) -> np.ndarray:
    """Returns bool [n, 16, 16]: pixels that differ clearly from the corners of the crop. pixels: [n, 16, 16, 3]."""
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # [n, 4, 3]
    background = np.sort(corners, axis=1)[:, 1]
    return np.abs(pixels - background[:, None, None]).max(-1) > CONTRAST


@lru_cache(maxsize=2)
def _projection(inputs: int) -> np.ndarray:
    """Returns float32 [inputs, 1024] of +1 and -1, equal in every world like the weights of a detector."""
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
    """Returns up to `count` boxes that touch no thing. A full scene may have no place for one."""
    boxes: list[Box] = []
    for _ in range(20):
        width, height = rng.uniform(16, 40), rng.uniform(16, 40)
        x, y = rng.uniform(0, scene.width - 1 - width), rng.uniform(0, scene.height - 1 - height)
        box = (x, y, x + width, y + height)
        if len(boxes) < count and not any(overlap(box, thing.box) for thing in scene.things):
            boxes.append(box)
    return boxes
