"""What the original computes, written plainly: the baseline of every ratio.

The model is built with NETWORK.FAST_PATH false: padded batches through separate projections and an explicit softmax,
batch norms as layers of their own, word logits at every position, in float32. Clipping and the optimizer treat one
parameter at a time. Baseline and ours do the same work on the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from common.train.adamw import AdamW

PLAIN_MODEL = ("NETWORK.FAST_PATH=false",)  # overrides of a config


class PlainAdamW(AdamW):
    """The same update, one parameter at a time."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options, fused=False)


def plain_clip(model: nn.Module, norm: float) -> None:
    """Clipping by a loop over parameters, with a number on the host for each."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = sum(float(g.norm()) ** 2 for g in grads) ** 0.5
    if total > norm:
        for g in grads:
            g.mul_(norm / (total + 1e-6))
