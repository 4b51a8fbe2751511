"""Box arithmetic. Boxes are xyxy in pixels; functions on [N, >=4] touch columns 0..3 and keep the rest."""

from __future__ import annotations

import torch
from torch import Tensor

FEATURE_DIM = 2048  # of a region's appearance vector

# The coordinate embedding: values run to 100 over the image, wavelengths from 1 to 1000 (original 2.30).
COORDINATE_SCALE = 100.0
WAVE_BASE = 1000.0


def iou(boxes: Tensor, query: Tensor) -> Tensor:
    """Intersection over union of all pairs, with both border pixels inside a box: [N, 4], [K, 4] -> [N, K].

    A side is x2 - x1 + 1 (original 4.19). Both arguments are in the same frame.
    """
    low = torch.maximum(boxes[:, None, :2], query[None, :, :2])  # [N, K, 2]
    high = torch.minimum(boxes[:, None, 2:4], query[None, :, 2:4])
    intersection = (high - low + 1).clamp(min=0).prod(-1)  # [N, K]
    return intersection / (_area(boxes)[:, None] + _area(query)[None, :] - intersection)


def clip_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes [N, >=4] moved into the image: x in [0, width - 1], y in [0, height - 1] (original 4.7)."""
    last = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    inside = boxes[:, :4].clamp(min=0).minimum(last)
    return inside if boxes.shape[1] == 4 else torch.cat([inside, boxes[:, 4:]], dim=1)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes [N, >=4] of the left-right mirrored image of `width` pixels (original 4.4)."""
    out = boxes.clone()
    out[:, 0] = width - 1 - boxes[:, 2]
    out[:, 2] = width - 1 - boxes[:, 0]
    return out


def coordinate_embedding(boxes: Tensor, sizes: Tensor, dim: int = 256) -> Tensor:
    """Sines and cosines of centre x, centre y, width, height relative to the image: [K, 8 * dim] float32.

    boxes: [K, 4]. sizes: [K, 2], image width and height in the frame of the boxes. Each of the four numbers gives `dim`
    sines, then `dim` cosines (original 2.30). Always float32: half precision rounds coordinates to half pixels.
    """
    boxes, sizes = boxes.float(), sizes.float()
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2 / sizes
    extent = (boxes[:, 2:4] - boxes[:, :2]) / sizes
    geometry = torch.cat([centre, extent], dim=1) * COORDINATE_SCALE  # [K, 4]
    waves = WAVE_BASE ** (torch.arange(dim, dtype=torch.float32, device=boxes.device) / dim)  # [dim]
    angles = geometry[:, :, None] / waves  # [K, 4, dim]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
