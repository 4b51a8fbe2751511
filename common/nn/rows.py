"""Between packed rows of real positions and what attention works on, padded sequences of heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = 3  # query, key, value


class HeadRows:
    """Where the heads of N packed rows lie in B padded sequences of length L, worked out once for all layers.

    mask: bool [B, L], N True.
    """

    def __init__(self, mask: Tensor, heads: int) -> None:
        (batch, length), device = mask.shape, mask.device
        self.heads, self.length = heads, length
        real = mask.flatten().nonzero().squeeze(1)
        count = len(real)
        row = torch.arange(count, device=device)
        head, part = torch.arange(heads, device=device), torch.arange(PARTS, device=device)
        # Padding gets a copy of row 0: its keys are masked, and nothing reads what its queries find.
        place = row.new_zeros(batch * length).index_copy_(0, real, row).view(batch, 1, length)
        self._split = ((place[None] * PARTS + part[:, None, None, None]) * heads + head[:, None]).flatten()
        self._sample, self._position = real // length, real % length
        where = (self._sample[:, None] * heads + head) * length + self._position[:, None]  # (N, heads)
        self._unsplit = (where[:, None] + part[:, None] * (batch * heads * length)).flatten()
        self._join = where.flatten()
        at = torch.where(mask[:, None], place * heads + head[:, None], count * heads)  # no gradient for padding
        self._unjoin = at.flatten()

    def places(self, length: int) -> Tensor:
        """int64 [N], where the rows lie in B sequences of another length, flattened."""
        return self._sample * length + self._position

    def split(self, joint: Tensor) -> Tensor:
        """Joint projections [N, 3 * heads * d] -> [3, B * heads, L, d]."""
        rows = joint.view(len(joint) * PARTS * self.heads, -1)
        return _Taken.apply(rows, self._split, self._unsplit).view(PARTS, -1, self.length, rows.shape[1])

    def join(self, context: Tensor) -> Tensor:
        """Context [B * heads, L, d] -> [N, heads * d]."""
        return _Taken.apply(context.flatten(0, 1), self._join, self._unjoin).view(-1, self.heads * context.shape[-1])


class _Taken(torch.autograd.Function):
    """x [n, d] -> x[index]. The gradient of row i is that of row back[i] of the result, or 0 where it has no such row.

    PyTorch's own gradient would add up into zeros, one index at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        grad = grad if len(back) <= len(grad) else F.pad(grad, (0, 0, 0, 1))
        return grad.index_select(0, back), None, None
