"""The choice of a detector's boxes."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from common.detect.selection import class_confidence, select_boxes


def kept(boxes: Tensor, scores: Tensor, min_boxes: int, max_boxes: int, threshold: float) -> list[int]:
    return select_boxes(class_confidence(box_iou(boxes, boxes), scores), min_boxes, max_boxes, threshold).tolist()


@pytest.mark.parametrize(
    ("height", "expected"),
    [(2.5, [0, 1]), (3.5, [0]), (4.5, [0])],
    ids=["IoU 0.25", "IoU 0.35", "IoU 0.45"],
)
def test_a_less_confident_box_goes_above_an_iou_of_0_3(height, expected):
    """The numbers of bottom-up attention: NMS at 0.3 in each class."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, height]])
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    assert kept(boxes, scores, 0, 2, 0.5) == expected


def test_select_boxes_by_hand() -> None:
    # 0 and 1 overlap and compete for class 1; 1 survives in class 2. 2 stands alone. 3 is background.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.9, 0.1, 0.0]])
    assert kept(boxes, scores, 1, 4, 0.5) == [0, 2]
    assert kept(boxes, scores, 3, 4, 0.5) == [0, 2, 1]  # too few: the best three
    assert kept(boxes, scores, 1, 1, 0.0) == [0]  # too many: the best
    assert kept(boxes, scores, 0, 4, 0.3) == [0, 1, 2]  # proposal order


def test_a_suppressed_box_suppresses_nothing():
    """IoU of neighbours: 6 / 14. Of the first and the last: 2 / 18."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    assert class_confidence(box_iou(boxes, boxes), scores).tolist() == pytest.approx([0.9, 0, 0.7])


def one_class_after_another(overlaps: Tensor, scores: Tensor) -> Tensor:
    """The definition of `class_confidence`."""
    confidence = torch.zeros(len(scores))
    for label in range(1, scores.shape[1]):
        survivors: list[int] = []
        for i in scores[:, label].argsort(descending=True, stable=True).tolist():
            if all(overlaps[i, j] < 0.3 for j in survivors):
                survivors.append(i)
                confidence[i] = max(confidence[i], scores[i, label])
    return confidence


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_all_classes_at_once_equal_one_class_after_another(count):
    """Few distinct scores, so that many are equal; corners are integers, so that boxes are equal too."""
    random = torch.Generator().manual_seed(count)
    low = torch.randint(0, 30, (count, 2), generator=random)
    boxes = torch.cat([low, low + torch.randint(1, 20, (count, 2), generator=random)], dim=1).float()
    scores = torch.randint(0, 12, (count, 8), generator=random) / 16
    overlaps = box_iou(boxes, boxes)
    assert class_confidence(overlaps, scores).equal(one_class_after_another(overlaps, scores))


def test_an_image_without_proposals_has_no_boxes():
    confidence = class_confidence(torch.zeros(0, 0), torch.zeros(0, 9))
    assert select_boxes(confidence, 10, 100, 0.5).tolist() == []
