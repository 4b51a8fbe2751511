"""Losses of pretraining, over the positions that have a target (spec 10 §5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.nn.losses import soft_cross_entropy, soft_label_mask

EPS = 1e-4  # added to counts where a sample is averaged first


def masked_word_loss(logits: Tensor, labels: Tensor, sample: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits [n, V] with labels [n], averaged as in `mean_of`."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return mean_of(losses, losses.new_ones(len(losses)), sample)


def masked_region_loss(logits: Tensor, labels: Tensor, sample: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits [n, C] with distributions [n, C], averaged over the rows that are one."""
    losses = soft_cross_entropy(logits, labels, reduction="none")
    return mean_of(losses, soft_label_mask(labels).to(losses.dtype), sample)


def mean_of(losses: Tensor, counted: Tensor, sample: Tensor | None = None) -> Tensor:
    """The mean of losses [n] where `counted` [n] is 1, not 0; 0 with zero gradients where nothing is.

    sample: int64 [n], the row of the batch that each loss belongs to: the mean over each sample comes first, in the
    original's form, whose denominators are 1e-4 larger than the counts (spec 10 §5).
    """
    losses = losses * counted
    if sample is None:
        return losses.sum() / counted.sum().clamp(min=1)
    rows = int(sample[-1]) + 1 if len(sample) else 0
    counts = counted.new_zeros(rows).index_add(0, sample, counted)
    means = losses.new_zeros(rows).index_add(0, sample, losses) / (counts + EPS)
    return means.sum() / ((counts != 0).sum() + EPS)
