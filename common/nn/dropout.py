"""Dropout whose random numbers are cheap on a CPU, where drawing them took a sixth of a bf16 training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 2**16  # probabilities are multiples of 1 / _STEPS


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU one random 64-bit integer of a fast generator decides about four elements."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each element zero with probability p, the others divided by 1 - p."""
    if p == 0.0:
        return x
    if x.device.type != "cpu" or p == 1.0:
        return F.dropout(x, p)
    return x * kept(x.shape, p, x.dtype).mul_(1.0 / (1.0 - p))


def kept(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Tensor of `shape` on the CPU: 0 with probability p to a precision of 1 / 65536, else 1.

    Torch's generator seeds NumPy's SFC64, which draws three times as fast, so the numbers follow torch's seed.
    """
    count = int(torch.Size(shape).numel())
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    bits = torch.from_numpy(generator.random_raw(-(-count // 4)).view(np.int16))
    # Straight into `dtype`: the way over bool costs four times as much.
    out = torch.empty(count, dtype=dtype)
    return torch.ge(bits[:count], round(p * _STEPS) - _STEPS // 2, out=out).view(shape)
