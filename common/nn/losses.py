"""Losses that more than one task needs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Soft labels are a target when they sum to one within this margin (original 4.18).
SOFT_LABEL_MARGIN = 0.1


def soft_label_mask(target: Tensor) -> Tensor:
    """Which soft labels are targets, because they sum to about one: [..., C] -> bool [...]."""
    return (target.sum(-1) - 1.0).abs() < SOFT_LABEL_MARGIN


def soft_cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy against soft labels, over the samples whose labels sum to about one (original 4.18).

    logits, target: [N, C]. reduction: mean or sum over the valid samples, or none for [N] with 0 for invalid ones.
    Without a valid sample the result is 0 with a gradient of zero, so that every rank takes part in a backward.
    Raises ValueError for another reduction.
    """
    mask = soft_label_mask(target)
    loss = -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1)
    loss = loss.masked_fill(~mask, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / mask.sum().clamp(min=1)
    raise ValueError(f"reduction {reduction!r}: expected mean, sum or none")


def binary_cross_entropy_sum(logits: Tensor, target: Tensor) -> Tensor:
    """BCE with logits, summed over the last axis and averaged over the rest: [B, V] -> scalar (original 9.16)."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float()) * target.shape[-1]
