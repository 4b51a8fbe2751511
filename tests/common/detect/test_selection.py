"""The choice of a detector's boxes."""

import pytest
import torch

from common.detect.selection import select_boxes


@pytest.mark.parametrize(
    ("height", "kept"),
    [(2.5, [0, 1]), (3.5, [0]), (4.5, [0])],
    ids=["IoU 0.25", "IoU 0.35", "IoU 0.45"],
)
def test_a_less_confident_box_goes_above_an_iou_of_0_3(height, kept):
    """The numbers of bottom-up attention: NMS at 0.3 in each class."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, height]])
    scores = torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    assert select_boxes(boxes, scores, 0, 2, 0.5).tolist() == kept


def test_select_boxes_by_hand() -> None:
    # 0 and 1 overlap and compete for class 1; 1 survives in class 2. 2 stands alone. 3 is background.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.9, 0.1, 0.0]])
    assert select_boxes(boxes, scores, 1, 4, 0.5).tolist() == [0, 2]
    assert select_boxes(boxes, scores, 3, 4, 0.5).tolist() == [0, 2, 1]  # too few: the best three
    assert select_boxes(boxes, scores, 1, 1, 0.0).tolist() == [0]  # too many: the best
    assert select_boxes(boxes, scores, 0, 4, 0.3).tolist() == [0, 1, 2]  # proposal order
