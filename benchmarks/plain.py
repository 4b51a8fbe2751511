"""What the original computes, written plainly: the baseline of every ratio.

Padded batches through separate projections and an explicit softmax, batch norms as layers of their own, word logits at
every position, one parameter at a time in clipping and in the optimizer, float32. The model is ours with its shortcuts
switched off, so that both do the same work on the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.nn.functional as F
from torch import Tensor, nn

from common.nn import bert, resnet
from common.nn.dropout import Dropout
from common.nn.rows import HeadRows
from common.train.adamw import AdamW


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block models compute as the original does."""
    with (
        mock.patch.object(bert.SelfAttention, "forward", _attention),
        mock.patch.object(bert.Encoder, "packed", False),
        mock.patch.object(Dropout, "masked", _dropout),
        mock.patch.object(Dropout, "forward", nn.Dropout.forward),
        mock.patch.object(resnet, "conv_norm", lambda x, conv, norm: norm(conv(x))),
    ):
        yield


def all_positions(model: nn.Module) -> nn.Module:
    """Word and region logits everywhere, where the model has a choice."""
    if hasattr(model, "all_positions"):
        model.all_positions = True  # type: ignore[assignment]
    return model


def _attention(
    self: bert.SelfAttention, hidden: Tensor, bias: Tensor, with_probs: bool, rows: HeadRows | None = None
) -> tuple[Tensor, Tensor]:
    query, key, value = (self._heads(p(hidden)) for p in (self.query, self.key, self.value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    probs = self.dropout(scores.softmax(-1))
    return (probs @ value).transpose(1, 2).flatten(2), probs


def _dropout(self: Dropout, x: Tensor) -> tuple[Tensor, float]:
    return F.dropout(x, self.p, self.training), 1.0


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
