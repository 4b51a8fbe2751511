"""Anchors and proposals."""

import math

import pytest
import torch

from common.detect.proposals import base_anchors, decode, find_proposals, grid_anchors, suppress


def test_the_twelve_anchors():
    anchors = base_anchors()
    assert anchors[4].tolist() == [-24, -24, 39, 39]  # ratio 1, scale 4: 64 x 64 around (7.5, 7.5)
    assert anchors[0].tolist() == [-38, -16, 53, 31]  # ratio 0.5: 23 x 12, four times as large
    sizes = anchors[:, 2:] - anchors[:, :2] + 1
    assert sizes[::4].tolist() == [[92, 48], [64, 64], [44, 88]]
    assert (sizes[3::4] / sizes[::4]).unique().tolist() == [8]


def test_the_grid_goes_through_anchors_then_x_then_y():
    grid = grid_anchors(2, 3, torch.device("cpu")).view(2, 3, 12, 4)
    assert grid[0, 0].equal(base_anchors().float())
    assert (grid[1, 2] - grid[0, 0])[5].tolist() == [32, 16, 32, 16]


def test_decoding_widens_a_box_by_one():
    """A box of 10 x 20 pixels. Without a delta it grows by one on the right and below."""
    box = torch.tensor([[10.0, 20, 19, 39]])
    assert decode(box, torch.zeros(1, 4)).tolist() == [[10, 20, 20, 40]]
    assert decode(box, torch.tensor([[0.5, -0.25, 0, 0]])).tolist() == [[15, 15, 25, 35]]
    doubled = decode(box, torch.tensor([[0, 0, math.log(2), 0]]))
    assert doubled[0].tolist() == pytest.approx([5, 20, 25, 40])


def test_boxes_contain_their_last_pixel_in_nms():
    """7 of 10 rows: an IoU of exactly 0.7 removes a box."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 6], [0, 0, 9, 5]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert suppress(boxes[:2], scores[:2]).tolist() == [0]
    assert suppress(boxes[[0, 2]], scores[:2]).tolist() == [0, 1]  # 0.6


def test_small_boxes_are_dropped_and_the_best_kept_first():
    """One cell, twelve anchors without deltas, clipped to an input of 64 x 64 pixels."""
    prob = torch.zeros(1, 24, 1, 1)
    prob[0, 12:, 0, 0] = torch.linspace(0.1, 0.9, 12)
    found = find_proposals(prob, torch.zeros(1, 48, 1, 1), (64, 64), 1.0)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.scores[0] == pytest.approx(0.9)
    assert len(find_proposals(prob, torch.zeros(1, 48, 1, 1), (64, 64), 1.0, num_kept=1).boxes) == 1
    assert len(find_proposals(prob, torch.zeros(1, 48, 1, 1), (64, 64), 5.0).boxes) == 0  # sides below 80
