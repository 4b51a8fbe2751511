"""Names of the classes and attributes of detectors. For display only: no model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from common.regions.regions import Regions

FOLDER = Path(__file__).parent / "visual_genome"

# The least probability of an attribute that a label shows. Not part of any model.
SHOWN_ATTRIBUTE = 0.1


@cache
def object_names(width: int) -> Sequence[str] | None:
    """The names of the `width` columns of class scores, column 0 the background, or None if they are not known.

    1601: Visual Genome, the first alias of each class. 91: COCO as torchvision numbers it, where "N/A" is unused.
    """
    if width == 1601:
        return ("background", *_first_aliases("objects_vocab.txt"))
    if width == 91:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        _, *names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return ("background", *names)
    return None


@cache
def attribute_names(width: int) -> Sequence[str] | None:
    """The names of the `width` columns of attribute scores, column 0 "" for no attribute, or None if not known.

    401: Visual Genome, the first alias of each attribute.
    """
    return ("", *_first_aliases("attributes_vocab.txt")) if width == 401 else None


def region_labels(regions: Regions) -> list[str]:
    """One label for each box, such as "brown dog 0.87": the best class with its probability, the background left out.

    In front of it is the best attribute, if its probability is at least SHOWN_ATTRIBUTE. The label is "" without class
    scores, without names for their width, and for a box whose class scores are all 0 beside the background.
    """
    scores = regions.class_scores
    names = None if scores is None else object_names(scores.shape[1])
    if scores is None or names is None:
        return [""] * len(regions.boxes)
    attributes = _shown_attributes(regions.attribute_scores, len(scores))
    best = [(value, names[column]) for value, column in _best(scores)]
    return [
        f"{attribute} {name} {value:.2f}".lstrip() if value > 0 else ""
        for attribute, (value, name) in zip(attributes, best, strict=True)
    ]


def _shown_attributes(scores: Tensor | None, count: int) -> list[str]:
    """The attribute in front of each of `count` names, "" for none. scores: [count, attributes]."""
    names = None if scores is None else attribute_names(scores.shape[1])
    if scores is None or names is None:
        return [""] * count
    return [names[column] if value >= SHOWN_ATTRIBUTE else "" for value, column in _best(scores)]


def _best(scores: Tensor) -> list[tuple[float, int]]:
    """The largest score of each row of [R, columns] and its column, column 0 left out."""
    values, columns = scores[:, 1:].max(1)
    return list(zip(values.tolist(), (columns + 1).tolist(), strict=True))


def _first_aliases(file: str) -> list[str]:
    lines = (FOLDER / file).read_text(encoding="utf-8").splitlines()
    return [line.split(",")[0].strip() for line in lines]
