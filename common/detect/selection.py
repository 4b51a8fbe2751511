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


def class_confidence(overlaps: Tensor, scores: Tensor) -> Tensor:
    """The confidence of each proposal: its best score among the classes in which it survives NMS, 0 without one.

    overlaps: IoU of all pairs, [P, P]. scores: float32 [P, classes], not negative, background in column 0. A box goes
    at an IoU of 0.3 or more (original 12.11). Of equal scores the first proposal wins. Returns float32 [P], on the CPU.

    The steps are hundreds and small. NumPy needs neither launches of kernels nor threads for them.
    """
    by_class = np.ascontiguousarray(scores[:, 1:].cpu().numpy().T)  # (classes, P)
    near = _pack((overlaps >= NMS_THRESHOLD).fill_diagonal_(False).cpu().numpy())  # (P, words)
    suppressed = np.zeros((len(by_class), near.shape[1]), np.int64)  # (classes, words), a bit for each proposal
    order = _ranking(by_class)  # (P, classes)
    first_word = np.arange(len(by_class)) * near.shape[1]  # of each class
    # All classes at once, from the best proposal of each class to the worst.
    for best in order:  # (classes,)
        word, bit = best // _WORD + first_word, best % _WORD
        is_suppressed = (suppressed.reshape(-1).take(word) >> bit) & 1  # (classes,)
        suppressed |= near.take(best, axis=0) & (is_suppressed - 1)[:, None]  # 0 - 1 has all bits, 1 - 1 none
    survivors = np.where(_unpack(suppressed, len(order)), np.float32(0), by_class)
    return torch.from_numpy(survivors.max(axis=0, initial=0))


def _ranking(scores: np.ndarray) -> np.ndarray:
    """Proposals of each class [classes, P] from the best to the worst, int64 [P, classes].

    Score and index are the halves of one integer, which NumPy sorts faster than floats with their indices. Floats that
    are not negative have the order of their bits.
    """
    keys = np.empty((*scores.shape, 2), "<i4")
    keys[..., 0] = np.arange(scores.shape[1])
    keys[..., 1] = -scores.view(np.int32)
    keys.view("<i8")[..., 0].sort(axis=1)
    return keys[..., 0].T.astype(np.int64, order="C")


def _pack(flags: np.ndarray) -> np.ndarray:
    """bool [P, N] -> int64 [P, words], flag n in bit n % 64 of word n // 64."""
    padded = np.pad(flags, ((0, 0), (0, -flags.shape[1] % _WORD)))
    return np.packbits(padded, axis=1, bitorder="little").view("<i8")


def _unpack(words: np.ndarray, count: int) -> np.ndarray:
    """int64 [N, words] -> bool [N, count], the inverse of `_pack`."""
    return np.unpackbits(words.view(np.uint8), axis=1, count=count, bitorder="little").view(bool)
