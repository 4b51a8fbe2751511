"""Regions of an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import RegionError
from common.regions.lazy_features import LazyFeatures, read_features
from common.regions.regions import FEATURE_DIM, Regions, check_shapes, with_image_box
from tests.common.regions.stores import as_packed, make


def test_the_whole_image_comes_first() -> None:
    boxes, features = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1.0, 4], [3, 8]])
    both = with_image_box(boxes, features, torch.tensor([7.0, 9]), 64, 48)
    assert both[0].tolist() == [[0, 0, 63, 47], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert both[1].tolist() == [[7, 9], [1, 4], [3, 8]]
    assert with_image_box(boxes, features, None, 64, 48)[1][0].tolist() == [2, 6]  # the mean
    assert with_image_box(boxes, None, None, 64, 48)[1] is None


def test_lazy_features_stay_lazy_behind_the_whole_image(folder: Path) -> None:
    regions = as_packed(folder).regions(581)
    boxes, features = with_image_box(regions.boxes, regions.features, regions.image_feature, 64, 48)
    assert isinstance(features, LazyFeatures) and len(features) == len(boxes) == 4
    assert torch.equal(features.read(), torch.cat([make(3, seed=3).image_feature[None], make(3, seed=3).features]))


def test_in_memory(folder: Path) -> None:
    lazy = as_packed(folder).regions(581)
    read = lazy.in_memory()
    assert isinstance(lazy.features, LazyFeatures) and torch.equal(read.features, read_features(lazy.features))
    assert read.in_memory().features is read.features and Regions(lazy.boxes).in_memory().features is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("boxes", torch.zeros(0, 4), r"x: boxes must be \[R, 4\] with R >= 1, got \[0, 4\]"),
        ("boxes", torch.zeros(3, 5), r"x: boxes must be \[R, 4\] with R >= 1, got \[3, 5\]"),
        ("features", torch.zeros(2, FEATURE_DIM), r"x: features must be \[3, 2048\], got \[2, 2048\]"),
        ("image_feature", torch.zeros(5), r"x: image_feature must be \[2048\], got \[5\]"),
        ("class_scores", torch.zeros(2, 5), r"x: class_scores must be \[3, classes\], got \[2, 5\]"),
        ("attribute_scores", torch.zeros(3), r"x: attribute_scores must be \[3, attributes\], got \[3\]"),
        ("boxes", torch.tensor([[0.0, 0, 1, 1]] * 2 + [[0, float("nan"), 1, 1]]), "x: box 3 of 3 is not finite"),
    ],
)
def test_wrong_shapes_are_named(field: str, value: torch.Tensor, message: str) -> None:
    regions = make(3)
    check_shapes(regions, "x")
    setattr(regions, field, value)
    with pytest.raises(RegionError, match=message):
        check_shapes(regions, "x")
