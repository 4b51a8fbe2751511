"""Regions of a made-up picture: boxes as a detector might return them, and features computed from the pixels."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from data.scene_description import Box, Scene, overlap

FEATURE_SIZE = 2048
CROP_SIZE = 16


def region_boxes(scene: Scene, rng: Random) -> np.ndarray:
    """What a detector might return: float32 [n, 4], slightly wrong boxes of all things, and 0 to 2 of background."""
    boxes = [tuple(x + rng.uniform(-1.5, 1.5) for x in thing.box) for thing in scene.things]
    boxes += _background_boxes(scene, rng, rng.choice((0, 0, 1, 1, 2)))
    rng.shuffle(boxes)
    limits = (scene.width - 1, scene.height - 1) * 2
    return np.clip(np.array(boxes, np.float32), 0, np.array(limits, np.float32))


def region_features(picture: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """float32 [n, 2048] from the pixels of n boxes: a fixed random projection of the crops, rectified.

    Pixels are integers and weights are +1 or -1, so every sum is exact in float32 and no BLAS can change a bit.
    """
    size = (CROP_SIZE, CROP_SIZE)
    crops = [picture.resize(size, Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes]
    pixels = np.stack([np.asarray(crop, np.float32).reshape(-1) for crop in crops]) - 192.0
    return np.maximum(pixels @ _projection(), 0) / 1024.0  # a power of two near the deviation


@lru_cache(maxsize=1)
def _projection() -> np.ndarray:
    """float32 [768, 2048] of +1 and -1; the same in every world, as a detector's weights would be."""
    bits = np.random.RandomState(2020).randint(0, 2, (3 * CROP_SIZE**2, FEATURE_SIZE))
    return (2 * bits - 1).astype(np.float32)


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
