"""Padded tensors without their padding, and back.

A packed tensor holds only the real elements of a padded one, in row-major order. The number of real elements depends on
data. While a model is exported, every shape must follow from the shapes of the inputs, so there padding stays in and is
set to zero at the end; the results are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.places import true_places

QUERY_KEY_VALUE = 3  # projections side by side in a joint tensor


def can_pack() -> bool:
    """Whether shapes may depend on data: False while a model is exported."""
    return not torch.compiler.is_exporting()


def real_places(mask: Tensor) -> Tensor | None:
    """The K True entries of mask [B, R] as indices of [B * R]: int64 [K]. Waits for the device. None in an export."""
    return true_places(mask) if can_pack() else None


def pack(x: Tensor, places: Tensor | None) -> Tensor:
    """x [B, R, ...] at K places of [B * R]: [K, ...]. Without places nothing is left out: [B * R, ...]."""
    x = x.flatten(0, 1)
    return x if places is None else x.index_select(0, places)


def unpack(packed: Tensor, mask: Tensor, places: Tensor | None) -> Tensor:
    """The reverse of `pack`, with zeros where the mask is False: [K, F] -> [B, R, F]."""
    if places is None:
        return packed.unflatten(0, mask.shape).masked_fill(~mask[..., None], 0.0)
    out = packed.new_zeros(mask.numel(), packed.shape[-1])
    return out.index_copy_(0, places, packed).unflatten(0, mask.shape)


def longest(lengths: Tensor, limit: int) -> int:
    """The largest of int64 lengths, none of which is above `limit`. During an export the limit itself."""
    return int(lengths.max()) if can_pack() else limit


class PackedHeads:
    """Conversion between packed states [N, ...] and padded attention heads [B * heads, L, d].

    Attention needs padded sequences, the linear layers do not. The index tensors are computed once for all layers.
    mask: bool [B, L] with N True entries. at: int64 [2, N], sample and position of each, in row-major order.
    """

    def __init__(self, mask: Tensor, at: Tensor, heads: int) -> None:
        (batch, length), device = mask.shape, mask.device
        self.heads, self.length = heads, length
        sample, position = at
        real = sample * length + position  # (N,)
        count = len(real)
        state = torch.arange(count, device=device)
        head, part = torch.arange(heads, device=device), torch.arange(QUERY_KEY_VALUE, device=device)
        # A padded position gets a copy of state 0. Its key is masked, and nothing reads the context of its query.
        place = state.new_zeros(batch * length).index_copy_(0, real, state).view(batch, 1, length)
        self._split = ((place[None] * QUERY_KEY_VALUE + part[:, None, None, None]) * heads + head[:, None]).flatten()
        where = (sample[:, None] * heads + head) * length + position[:, None]  # (N, heads)
        self._unsplit = (where[:, None] + part[:, None] * (batch * heads * length)).flatten()
        self._join = where.flatten()
        # Index count * heads lies behind the last gradient, so that padding has gradient zero.
        self._unjoin = torch.where(mask[:, None], place * heads + head[:, None], count * heads).flatten()

    def split(self, joint: Tensor) -> Tensor:
        """Query, key and value side by side [N, 3 * heads * d] -> [3, B * heads, L, d]."""
        vectors = joint.view(len(joint) * QUERY_KEY_VALUE * self.heads, -1)
        taken = _Taken.apply(vectors, self._split, self._unsplit)
        return taken.view(QUERY_KEY_VALUE, -1, self.length, vectors.shape[1])

    def join(self, context: Tensor) -> Tensor:
        """Context [B * heads, L, d] -> [N, heads * d]."""
        return _Taken.apply(context.flatten(0, 1), self._join, self._unjoin).view(-1, self.heads * context.shape[-1])


class _Taken(torch.autograd.Function):
    """x [n, d] -> x[index]. The gradient of x[i] is that of result[back[i]], or 0 where back[i] is behind the end.

    PyTorch's own gradient would add one index at a time into zeros.
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
