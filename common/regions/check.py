"""A check of a whole region store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from common.errors import RegionError
from common.regions.regions import Regions, RegionStore


@dataclass(frozen=True)
class Problem:
    """A fault in the regions of image `name`."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def check(
    store: RegionStore,
    expected_ids: Iterable[str | int] | None = None,
    expected_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> list[Problem]:
    """Reads every image and returns its faults: missing, damaged, not finite, boxes outside, wrong image size.

    expected_ids: images that the store must have (default: those of expected_sizes, or what the store has).
    expected_sizes: width and height in pixels by image name.
    """
    sizes = expected_sizes or {}
    if expected_ids is None:
        expected_ids = list(sizes) or store.names()
    problems = []
    for name in map(str, expected_ids):
        try:
            messages = _faults(store.regions(name).in_memory(), sizes.get(name))
        except FileNotFoundError:
            messages = ["missing"]
        except RegionError as error:
            messages = [str(error)]
        problems += [Problem(name, message) for message in messages]
    return problems


def _faults(regions: Regions, size: tuple[int, int] | None) -> list[str]:
    messages = []
    for key in ("boxes", "features", "image_feature", "class_scores", "attribute_scores"):
        tensor = getattr(regions, key)
        if tensor is not None and not torch.isfinite(tensor).all():
            messages.append(f"{key} has {int((~torch.isfinite(tensor)).sum())} values that are not finite")
    stored = (regions.width, regions.height)
    if size is not None and None not in stored and stored != tuple(size):
        messages.append(f"image size {stored} in the file, expected {tuple(size)}")
    x1, y1, x2, y2 = regions.boxes.unbind(1)
    # A pixel is allowed: x + w - 1 of an annotation thinner than a pixel is less than x.
    if bool(((x2 < x1 - 1) | (y2 < y1 - 1)).any()):
        messages.append("a box ends before it starts")
    width, height = size or stored
    # Up to the full width, not width - 1: detectors clip in their own frame, which may be larger (original 7.7).
    if width and height and bool(((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)).any()):
        messages.append(f"a box lies outside the {width} x {height} image")
    # Pretraining drops the target of a region whose scores do not sum to 1 within 0.1 (original 7.8).
    for what, scores in (("class", regions.class_scores), ("attribute", regions.attribute_scores)):
        if scores is not None and bool(((scores.sum(1) - 1).abs() >= 0.1).any()):
            messages.append(f"{what} scores of a box do not sum to 1")
    return messages
