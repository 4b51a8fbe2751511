"""The choice of a detector's boxes."""

import pytest
import torch

from common.regions.box_sources import select_boxes


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
