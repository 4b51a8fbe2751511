import math

import pytest
import torch

from common.boxes import clip_boxes, coordinate_embedding, flip_boxes, iou


def test_iou_counts_both_border_pixels():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 14.0, 14.0], [20.0, 20.0, 29.0, 29.0]])
    got = iou(boxes, boxes[:2])
    assert got.shape == (3, 2)
    torch.testing.assert_close(got, torch.tensor([[1.0, 25 / 175], [25 / 175, 1.0], [0.0, 0.0]]))
    # Boxes that share one column of pixels overlap.
    assert iou(torch.tensor([[0.0, 0.0, 4.0, 9.0]]), torch.tensor([[4.0, 0.0, 9.0, 9.0]])) == pytest.approx(0.1)


def test_clip_keeps_the_other_columns_and_the_input():
    boxes = torch.tensor([[-3.0, 5.0, 120.0, 80.0, 0.9], [10.0, -1.0, 20.0, 49.5, 0.5]])
    before = boxes.clone()
    got = clip_boxes(boxes, 100, 50)
    torch.testing.assert_close(got, torch.tensor([[0, 5, 99, 49, 0.9], [10, 0, 20, 49, 0.5]]))
    assert torch.equal(boxes, before)


def test_flip_twice_is_the_identity():
    boxes = torch.tensor([[0.0, 1.0, 30.0, 40.0, 7.0]])
    once = flip_boxes(boxes, 100)
    assert once.tolist() == [[69.0, 1.0, 99.0, 40.0, 7.0]]
    assert torch.equal(flip_boxes(once, 100), boxes)


def test_coordinate_embedding_of_the_specified_example():
    # original 2.30: entry 0 of the sines and of the cosines for xc, yc, w, h.
    got = coordinate_embedding(torch.tensor([[10.0, 20.0, 110.0, 220.0]]), torch.tensor([[800.0, 600.0]]))
    assert got.shape == (1, 2048)
    got = got.reshape(4, 2, 256)
    torch.testing.assert_close(got[:, 0, 0], torch.tensor([0.9380, 0.9129, -0.0663, 0.9405]), atol=1e-4, rtol=0)
    torch.testing.assert_close(got[:, 1, 0], torch.tensor([0.3466, 0.4081, 0.9978, -0.3397]), atol=1e-4, rtol=0)
    # The last wavelength is 1000 ** (255 / 256).
    assert got[0, 0, 255].item() == pytest.approx(math.sin(7.5 / 1000 ** (255 / 256)), abs=1e-6)


def test_coordinate_embedding_is_float32_under_autocast():
    boxes, sizes = torch.tensor([[511.0, 3.0, 777.0, 555.0]]), torch.tensor([[1000.0, 600.0]])
    want = coordinate_embedding(boxes, sizes, dim=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = coordinate_embedding(boxes, sizes, dim=8)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
