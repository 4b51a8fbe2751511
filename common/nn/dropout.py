"""Dropout whose random numbers are cheap on a CPU, where drawing them took a sixth of a bf16 training step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 2**16  # probabilities are multiples of 1 / _STEPS


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU one random 64-bit integer decides about four elements."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each element zero with probability p, the others divided by 1 - p."""
    if p == 0.0:
        return x
    if x.device.type != "cpu" or p == 1.0:
        return F.dropout(x, p)
    return x * kept(x.shape, p).to(x.dtype).mul_(1.0 / (1.0 - p))


def kept(shape: Sequence[int], p: float) -> Tensor:
    """bool of `shape` on the CPU, False with probability p to a precision of 1 / 65536, from torch's generator."""
    count = int(torch.Size(shape).numel())
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[:count] >= round(p * _STEPS) - _STEPS // 2).view(shape)
