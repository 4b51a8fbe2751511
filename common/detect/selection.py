"""Which proposals of a detector are kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def select_boxes(boxes: Tensor, scores: Tensor, min_boxes: int, max_boxes: int, threshold: float) -> Tensor:
    """Returns the int64 indices of the proposals to keep (original 7.7).

    boxes: [P, 4] xyxy. scores: [P, classes], background in column 0. A proposal's confidence is its best score among
    the classes in which it survives NMS at 0.3. Kept: those of at least `threshold` in proposal order; where that gives
    fewer than `min_boxes` or more than `max_boxes`, that many of the most confident, best first.
    """
    count, num_classes = scores.shape[0], scores.shape[1] - 1
    flat = scores[:, 1:].reshape(-1)
    index = torch.arange(count * num_classes, device=boxes.device)
    proposal, label = index // num_classes, index % num_classes
    kept = batched_nms(boxes[proposal], flat, label, 0.3)
    confidence = flat.new_zeros(count).scatter_reduce(0, proposal[kept], flat[kept], "amax")
    keep = torch.nonzero(confidence >= threshold).flatten()
    if min_boxes <= len(keep) <= max_boxes:
        return keep
    wanted = min_boxes if len(keep) < min_boxes else max_boxes
    return confidence.argsort(descending=True, stable=True)[:wanted]
