"""Proposals of the region proposal network, with its box arithmetic (original 12.5 to 12.7).

A box x1, y1, x2, y2 contains its last pixel: its width is x2 - x1 + 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from common.boxes import clip_boxes

STRIDE = 16  # pixels of the network input for one cell of the feature map
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALES = (4, 8, 16, 32)
NUM_ANCHORS = len(RATIOS) * len(SCALES)
NMS_THRESHOLD = 0.7


class Proposals(NamedTuple):
    """boxes: float32 [P, 4] xyxy in pixels of the network input, best first. scores: float32 [P], of an object."""

    boxes: Tensor
    scores: Tensor


def base_anchors() -> Tensor:
    """The anchors of the first cell, float64 [12, 4] xyxy; scales vary fastest.

    Width and height of a ratio are rounded before they are scaled.
    """
    centre = (STRIDE - 1) / 2
    anchors = []
    for ratio in RATIOS:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))
        height = round(width * ratio)
        for scale in SCALES:
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append([centre - x, centre - y, centre + x, centre + y])
    return torch.tensor(anchors, dtype=torch.float64)


def grid_anchors(height: int, width: int, device: torch.device) -> Tensor:
    """The anchors of all cells in the order y, x, anchor: float32 [height * width * 12, 4]."""
    y, x = torch.meshgrid(torch.arange(height) * STRIDE, torch.arange(width) * STRIDE, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + base_anchors()).float().reshape(-1, 4).to(device)


def decode(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes [N, 4] moved by deltas [N, 4] (dx, dy, dw, dh). The corners have no -1, as in the original."""
    sizes = boxes[:, 2:] - boxes[:, :2] + 1  # (N, 2)
    centres = boxes[:, :2] + 0.5 * sizes
    centres = deltas[:, :2] * sizes + centres
    half = 0.5 * (deltas[:, 2:].exp() * sizes)
    return torch.cat([centres - half, centres + half], dim=1)


def find_proposals(
    prob: Tensor, deltas: Tensor, size: tuple[int, int], scale: float, num_candidates: int = 6000, num_kept: int = 300
) -> Proposals:
    """The best boxes of one image.

    prob: float32 [1, 24, h, w], background in the channels 0..11. deltas: float32 [1, 48, h, w]. size: width and height
    of the network input. scale: of the network input. num_candidates: boxes that enter NMS.
    """
    scores = prob[0, NUM_ANCHORS:].permute(1, 2, 0).reshape(-1)  # (h * w * 12,)
    moves = deltas[0].permute(1, 2, 0).reshape(-1, 4)
    height, width = prob.shape[2:]
    boxes = clip_boxes(decode(grid_anchors(height, width, prob.device), moves), *size)
    large = (boxes[:, 2:] - boxes[:, :2] + 1 >= 16 * scale).all(dim=1)
    boxes, scores = boxes[large], scores[large]
    order = _ranking(scores)[:num_candidates]
    order = order[_ranking(scores[order])]  # the original sorts again for NMS, which moves equal scores
    boxes, scores = boxes[order], scores[order]
    kept = suppress(boxes, scores)[:num_kept]
    return Proposals(boxes[kept], scores[kept])


def _ranking(scores: Tensor) -> Tensor:
    """int64 indices of scores [N] from the best to the worst. Equal scores have the order of NumPy's default sort,
    reversed, as in the original: it decides which of two boxes survives."""
    order = scores.cpu().numpy().argsort()[::-1]
    return torch.from_numpy(order.copy()).to(scores.device)


def suppress(boxes: Tensor, scores: Tensor) -> Tensor:
    """int64 indices of the boxes that NMS keeps, best first. A box goes at an IoU of 0.7 or more.

    torchvision's NMS has areas without the +1 and removes boxes above the threshold. Both differences are in the
    arguments.
    """
    if boxes.numel() == 0:  # torchvision's CUDA NMS accepts no empty input in every version
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    below = torch.nextafter(torch.tensor(NMS_THRESHOLD), torch.tensor(0.0)).item()  # IoUs are float32
    return nms(boxes + boxes.new_tensor([0, 0, 1, 1]), scores, below)
