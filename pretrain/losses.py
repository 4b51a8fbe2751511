"""Losses of pretraining over the positions with a target (original 5.20 to 5.22)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.nn.losses import soft_cross_entropy, soft_label_mask

EPS = 1e-4  # added to counts in means of samples, as in the original


def masked_word_loss(
    logits: Tensor, labels: Tensor, sample: Tensor | None = None, samples: int | None = None
) -> Tensor:
    """Cross-entropy of logits [n, V] with labels [n], averaged as in `mean_of`."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return mean_of(losses, losses.new_ones(len(losses)), sample, samples)


def masked_region_loss(
    logits: Tensor, labels: Tensor, sample: Tensor | None = None, samples: int | None = None
) -> Tensor:
    """Cross-entropy of logits [n, C] with labels [n, C], averaged over the rows of labels that are distributions."""
    losses = soft_cross_entropy(logits, labels, reduction="none")
    return mean_of(losses, soft_label_mask(labels).to(losses.dtype), sample, samples)


def mean_of(losses: Tensor, counted: Tensor, sample: Tensor | None = None, samples: int | None = None) -> Tensor:
    """The mean of those losses [n] whose `counted` [n] is 1; 0 with zero gradients if there are none.

    sample: int64 [n], number of the sample of each loss, in rising order. If given, the result is the mean over samples
    of their means. As in the original, each denominator is the count plus 1e-4 (original 5.21). samples: B, above every
    number; None to read it from `sample`, which waits for the device.
    """
    losses = losses * counted
    if sample is None:
        return losses.sum() / counted.sum().clamp(min=1)
    if samples is None:
        samples = int(sample[-1]) + 1 if len(sample) else 0
    counts = counted.new_zeros(samples).index_add(0, sample, counted)
    means = losses.new_zeros(samples).index_add(0, sample, losses) / (counts + EPS)
    return means.sum() / ((counts != 0).sum() + EPS)
