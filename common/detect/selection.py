"""Which proposals of a detector are kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NMS_THRESHOLD = 0.3
_WORD = 64  # bits


def select_boxes(confidence: Tensor, min_boxes: int, max_boxes: int, threshold: float) -> Tensor:
    """Returns the int64 indices of the proposals to keep (original 7.7).

    confidence: [P], of `class_confidence`. Kept: those of at least `threshold` in proposal order; where that gives
    fewer than `min_boxes` or more than `max_boxes`, that many of the most confident, best first.
    """
    keep = torch.nonzero(confidence >= threshold).flatten()
    if min_boxes <= len(keep) <= max_boxes:
        return keep
    wanted = min_boxes if len(keep) < min_boxes else max_boxes
    return confidence.argsort(descending=True, stable=True)[:wanted]


def class_confidence(boxes: Tensor, scores: Tensor, pixel: float = 0) -> Tensor:
    """The confidence of each proposal: its best score among the classes in which it survives NMS, 0 without one.

    boxes: float32 [P, 4] xyxy. scores: float32 [P, classes], not negative, background in column 0. pixel: added to
    widths and heights, 1 where a box contains its last pixel. A box goes at an IoU of 0.3 or more. Of equal scores the
    first proposal wins. Returns float32 [P], on the CPU.
    """
    boxes, scores = boxes.cpu(), scores[:, 1:].cpu()  # hundreds of small steps, which are faster there
    order = _ranking(scores)  # (P, classes)
    overlaps = _pack(_overlaps(boxes, pixel))  # (P, words)
    suppressed = torch.zeros(scores.shape[1], overlaps.shape[1], dtype=torch.int64)  # (classes, words)
    word = order // _WORD + torch.arange(scores.shape[1]) * overlaps.shape[1]  # where the bit of a proposal is
    bit = order % _WORD
    # All classes at once, from the best proposal of each class to the worst.
    for rank in range(len(boxes)):
        is_suppressed = (suppressed.view(-1).take(word[rank]) >> bit[rank]) & 1  # (classes,)
        suppressed |= overlaps[order[rank]] & (is_suppressed - 1)[:, None]  # 0 - 1 has all bits, 1 - 1 has none
    return scores.masked_fill(_unpack(suppressed, len(boxes)).t(), 0).amax(dim=1)


def _ranking(scores: Tensor) -> Tensor:
    """Proposals of each class from the best to the worst, int64 [P, classes].

    Score and index are one integer, because NumPy sorts integers ten times as fast as PyTorch sorts along an axis.
    Floats that are not negative have the order of their bits.
    """
    bits = scores.t().contiguous().numpy().view(np.int32).astype(np.int64)  # (classes, P)
    keys = np.sort(-bits * 2**32 + np.arange(scores.shape[0]), axis=1)
    return torch.from_numpy(keys.T % 2**32).contiguous()


def _overlaps(boxes: Tensor, pixel: float) -> Tensor:
    """Which boxes suppress each other, bool [P, P], False on the diagonal."""
    areas = (boxes[:, 2:] - boxes[:, :2] + pixel).prod(dim=1)
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])  # (P, P, 2)
    high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    common = (high - low + pixel).clamp(min=0).prod(dim=2)
    return (common / (areas[:, None] + areas - common) >= NMS_THRESHOLD).fill_diagonal_(False)


def _pack(flags: Tensor) -> Tensor:
    """bool [P, N] -> int64 [P, words], flag n in bit n % 64 of word n // 64."""
    padded = torch.nn.functional.pad(flags, (0, -flags.shape[1] % _WORD))
    return torch.from_numpy(np.packbits(padded.numpy(), axis=1, bitorder="little").view("<i8"))


def _unpack(words: Tensor, count: int) -> Tensor:
    """int64 [N, words] -> bool [N, count], the inverse of `_pack`."""
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=1, count=count, bitorder="little")
    return torch.from_numpy(bits).bool()
