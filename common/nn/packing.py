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
    Heads are gathered one by one into contiguous sequences, which the kernels of a CPU prefer.

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

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value side by side [N, 3 * heads * d] -> three of [B, heads, L, d]."""
        vectors = joint.view(len(joint) * QUERY_KEY_VALUE * self.heads, -1)
        taken = _Taken.apply(vectors, self._split, self._unsplit)
        query, key, value = taken.view(QUERY_KEY_VALUE, -1, self.heads, self.length, vectors.shape[1])
        return query, key, value

    def join(self, context: Tensor) -> Tensor:
        """Context [B, heads, L, d] -> [N, heads * d]."""
        vectors = context.flatten(0, 2)
        return _Taken.apply(vectors, self._join, self._unjoin).view(-1, self.heads * context.shape[-1])


class PackedPositions:
    """PackedHeads that gathers positions with all their heads: [B, heads, L, d] is then a view of [B, L, heads * d].

    This is the memory that the attention kernels of CUDA read and write, so that nothing else is copied.
    """

    def __init__(self, mask: Tensor, at: Tensor, heads: int) -> None:
        self.heads = heads
        self.real = at[0] * mask.shape[1] + at[1]  # (N,), in [B * L]
        state = torch.arange(len(self.real), device=mask.device)
        # A padded position gets a copy of state 0. Its key is masked, and nothing reads the context of its query.
        self.place = state.new_zeros(mask.numel()).index_copy_(0, self.real, state).view_as(mask)  # (B, L)

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value side by side [N, 3 * heads * d] -> three of [B, heads, L, d]."""
        return _SplitPositions.apply(joint, self.place, self.real, self.heads)

    def join(self, context: Tensor) -> Tensor:
        """Context [B, heads, L, d] -> [N, heads * d]."""
        return _JoinedPositions.apply(context, self.real)

    def varying(self) -> tuple[tuple[Tensor, int], ...]:
        """The sizes that differ between batches: tensor and axis of each."""
        return (self.real, 0), (self.place, 1)


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


Packing = PackedHeads | PackedPositions


class _SplitPositions(torch.autograd.Function):
    """joint [N, 3 * heads * d] at place [B, L] -> query, key, value [B, heads, L, d]. Padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, place: Tensor, real: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(real)
        batch, length = place.shape
        size = joint.shape[1] // (QUERY_KEY_VALUE * heads)
        taken = joint.index_select(0, place.view(-1)).view(batch, length, QUERY_KEY_VALUE, heads, size)
        return taken.permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (real,) = ctx.saved_tensors
        grad = torch.stack([g.transpose(1, 2) for g in grads], dim=2)  # (B, L, 3, heads, d)
        return grad.flatten(0, 1).flatten(1).index_select(0, real), None, None, None


class _JoinedPositions(torch.autograd.Function):
    """context [B, heads, L, d] at real [N] of [B * L] -> [N, heads * d]."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, real: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        ctx.size = context.shape
        return context.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, real)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (real,) = ctx.saved_tensors
        batch, heads, length, size = ctx.size
        out = grad.new_zeros(batch * length, heads * size).index_copy_(0, real, grad)
        return out.view(batch, length, heads, size).transpose(1, 2), None
