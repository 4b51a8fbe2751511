"""Dropout whose random numbers are cheap on a CPU; torch's take a sixth of a bf16 training step there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 256  # values of the random byte that decides about an element
_BLOCK = 512  # elements that share a threshold
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class FastDropout(nn.Dropout):
    """nn.Dropout. On a CPU one byte of a fast generator decides about an element."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each element zero with probability p, the others divided by 1 - p."""
    x, factor = masked(x, p)
    return x if factor == 1.0 else x * factor


def masked(x: Tensor, p: float) -> tuple[Tensor, float]:
    """x with each element zero with probability p, and the factor that completes `dropout`.

    A caller that multiplies anyway applies the factor there at no cost.
    """
    if p == 0.0:
        return x, 1.0
    if x.device.type != "cpu" or p >= 1.0 - 1.0 / _LEVELS or torch.compiler.is_compiling():  # NumPy cannot be compiled
        return F.dropout(x, p), 1.0
    return _Masked.apply(x, kept(x.shape, p, _INTEGERS[x.element_size()])), 1.0 / (1.0 - p)


def kept(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Integers of `shape` on the CPU: 0 with probability p, else -1, which has all bits set.

    A byte has 256 values and 0.1 is no multiple of 1 / 256. Each block of elements therefore has the threshold above or
    below p at random, so that every element is dropped with probability p. Torch's generator seeds NumPy's SFC64, which
    draws three times as fast, so that the numbers follow torch's seed.
    """
    count = int(torch.Size(shape).numel())
    blocks = -(-count // _BLOCK)
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    bits = torch.from_numpy(generator.random_raw(blocks * _BLOCK // 8).view(np.uint8)).view(blocks, _BLOCK)
    below = int(p * _LEVELS)
    threshold = (torch.rand(blocks, 1) < p * _LEVELS - below).to(torch.uint8).add_(below)
    # Directly into `dtype`: a bool tensor in between costs more than twice as much.
    out = torch.empty(blocks, _BLOCK, dtype=dtype)
    return torch.ge(bits, threshold, out=out).neg_().view(-1)[:count].view(tuple(shape))


class _Masked(torch.autograd.Function):
    """x and mask, bit by bit, which takes half the time of a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return _and(x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _and(grad, *ctx.saved_tensors), None


def _and(x: Tensor, mask: Tensor) -> Tensor:
    return (x.contiguous().view(mask.dtype) & mask).view(x.dtype)
