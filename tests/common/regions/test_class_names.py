"""Names of classes and attributes, and the labels that they make."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from common.regions.class_names import FOLDER, attribute_names, object_names, region_labels
from common.regions.regions import Regions

BOXES = torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]])
DOG, MAN, RED = 118, 51, 5


def scores(width: int, *rows: dict[int, float]) -> Tensor:
    """float32 [len(rows), width] with the given columns of each row."""
    out = torch.zeros(len(rows), width)
    for row, columns in zip(out, rows, strict=True):
        for column, value in columns.items():
            row[column] = value
    return out


class TestNames:
    def test_of_visual_genome_are_those_of_the_specification(self):
        digest = hashlib.sha256((FOLDER / "objects_vocab.txt").read_bytes()).hexdigest()
        assert digest == "d985096938db111f585a311ff0a2ee9092fbc325c3a619ac9622e57e5389722f"
        names = object_names(1601)
        checked = {0: "background", 1: "yolk", 2: "goal", 3: "bathroom", 4: "macaroni", 5: "umpire", 17: "stop sign"}
        checked |= {27: "refrigerator", 44: "television", 51: "man", 53: "car", 73: "sky", 91: "woman", 118: "dog"}
        checked |= {292: "tree", 365: "person", 1600: "buoy"}
        assert len(names) == 1601 and {i: names[i] for i in checked} == checked

    def test_of_attributes(self):
        names = attribute_names(401)
        assert len(names) == 401 and names[:6] == ("", "gray", "multi colored", "double decker", "unmade", "red")

    def test_of_coco_are_torchvisions(self):
        names = object_names(91)
        assert len(names) == 91 and (names[0], names[1], names[18], names[90]) == (
            "background",
            "person",
            "dog",
            "toothbrush",
        )

    @pytest.mark.parametrize("width", [0, 1, 81, 1600, 401])
    def test_other_widths_have_none(self, width):
        assert object_names(width) is None and attribute_names(width - 1) is None


class TestLabels:
    def test_best_class_without_background_and_an_attribute_that_is_likely(self):
        classes = scores(1601, {0: 0.9, DOG: 0.06, MAN: 0.04}, {MAN: 0.874, DOG: 0.1})
        attributes = scores(401, {0: 0.8, RED: 0.1}, {0: 0.95, RED: 0.05})
        regions = Regions(BOXES, class_scores=classes, attribute_scores=attributes)
        assert region_labels(regions) == ["red dog 0.06", "man 0.87"]

    def test_of_coco_and_without_attributes(self):
        assert region_labels(Regions(BOXES, class_scores=scores(91, {18: 0.5}, {1: 1.0}))) == [
            "dog 0.50",
            "person 1.00",
        ]

    def test_attributes_of_another_width_are_left_out(self):
        regions = Regions(BOXES, class_scores=scores(91, {18: 0.5}, {1: 1}), attribute_scores=torch.ones(2, 7))
        assert region_labels(regions) == ["dog 0.50", "person 1.00"]

    def test_a_box_that_is_background_alone_has_none(self):
        assert region_labels(Regions(BOXES, class_scores=scores(1601, {0: 1.0}, {DOG: 1.0}))) == ["", "dog 1.00"]

    @pytest.mark.parametrize("classes", [None, torch.ones(2, 81)])
    def test_nothing_known(self, classes):
        assert region_labels(Regions(BOXES, class_scores=classes)) == ["", ""]

    def test_no_boxes(self):
        assert region_labels(Regions(torch.zeros(0, 4), class_scores=torch.zeros(0, 1601))) == []
