"""The regions of one image, and what a store of them offers.

Boxes are xyxy in pixels of the original image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.boxes import FEATURE_DIM
from common.errors import RegionError
from common.regions.lazy_features import Features, mean_feature, put_first, read_features


@dataclass
class Regions:
    """The regions of one image, in file order.

    boxes: float32 [R, 4], xyxy in pixels of the original image, R >= 1.
    features: float32 [R, 2048], or None; a packed store returns LazyFeatures.
    image_feature: float32 [2048] of the whole image, or None.
    class_scores: float32 [R, classes] (Visual Genome: 1601), softmax with background in column 0, or None.
    width, height: pixels of the original image, None where the file does not state them.
    attribute_scores: float32 [R, attributes] (Visual Genome: 401), softmax with "no attribute" in column 0, or None.
    """

    boxes: Tensor
    features: Features | None = None
    image_feature: Tensor | None = None
    class_scores: Tensor | None = None
    width: int | None = None
    height: int | None = None
    attribute_scores: Tensor | None = None

    def in_memory(self) -> Regions:
        """These regions with their features as a tensor, read if they are lazy."""
        return self if self.features is None else replace(self, features=read_features(self.features))


def with_image_box(
    boxes: Tensor, features: Features | None, image_feature: Tensor | None, width: int, height: int
) -> tuple[Tensor, Features | None]:
    """Puts the whole image (0, 0, width - 1, height - 1) in front of the boxes [R, 4] and the features [R, 2048].

    image_feature: float32 [2048], the feature of the whole image; None for the mean of `features`. Lazy features stay
    lazy.
    """
    boxes = torch.cat([torch.tensor([[0.0, 0.0, width - 1.0, height - 1.0]]), boxes])
    if features is None:
        return boxes, None
    whole = mean_feature(features) if image_feature is None else image_feature
    return boxes, put_first(whole, features)


def check_shapes(regions: Regions, name: str) -> None:
    """Raises RegionError unless every field has the shape that `Regions` documents and boxes are finite.

    name: of the image, for errors.
    """
    count = len(regions.boxes)
    if count < 1 or tuple(regions.boxes.shape) != (count, 4):
        raise RegionError(f"{name}: boxes must be [R, 4] with R >= 1, got {list(regions.boxes.shape)}")
    for key, wanted in (("features", (count, FEATURE_DIM)), ("image_feature", (FEATURE_DIM,))):
        value = getattr(regions, key)
        if value is not None and tuple(value.shape) != wanted:
            raise RegionError(f"{name}: {key} must be {list(wanted)}, got {list(value.shape)}")
    for key, columns in (("class_scores", "classes"), ("attribute_scores", "attributes")):
        scores = getattr(regions, key)
        if scores is not None and (scores.ndim != 2 or len(scores) != count):
            raise RegionError(f"{name}: {key} must be [{count}, {columns}], got {list(scores.shape)}")
    check_finite_boxes(regions.boxes, name)


def check_finite_boxes(boxes: Tensor, name: str) -> None:
    """Raises RegionError for boxes [R, 4] with NaN or infinity: torchvision's RoIAlign crashes the process on NaN.

    name: of the image, for errors.
    """
    finite = np.isfinite(boxes.numpy())  # NumPy takes a fifth of the time that PyTorch takes for so few numbers
    if not finite.all():
        number = int(np.argmin(finite.all(axis=1)))
        raise RegionError(f"{name}: box {number + 1} of {len(boxes)} is not finite: {boxes[number].tolist()}")


class RegionStore(ABC):
    """Regions by image name: the image id without padding for COCO, the file's stem otherwise.

    A store can be pickled (to a loader's workers) and used after a fork.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    @abstractmethod
    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        """Returns the regions of one image. with_features: False leaves features and image_feature out.

        Raises FileNotFoundError for an image that is not there, RegionError for a damaged entry.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all images, sorted as strings."""

    @abstractmethod
    def __contains__(self, name: str | int) -> bool: ...
