"""RoIAlign's samples, on a map where their number matters: on a linear map any number has the same mean."""

import torch

from common.nn.fast_rcnn import ROI_SIZE, roi_align_features, roi_rows


def test_one_sample_in_the_middle_of_a_bin():
    """A bin of two cells has its middle on a cell. Two samples a side would add 0.5 of each square's factor."""
    x = torch.arange(40.0)
    feature_map = (x**2 + 10 * x[:, None] ** 2)[None, None]  # x^2 + 10 y^2
    side = ROI_SIZE * 2 * 16  # pixels, of bins of two cells of 16 pixels
    left, top = 16.0, 48.0
    boxes = torch.tensor([[[left, top, left + side, top + side]]])
    grid = roi_align_features(feature_map, roi_rows(boxes, torch.tensor([0])))
    middle_x, middle_y = (first + 1 + 2 * torch.arange(float(ROI_SIZE)) for first in (1, 3))
    assert torch.equal(grid[0, 0], middle_x**2 + 10 * middle_y[:, None] ** 2)
