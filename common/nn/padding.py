"""Real rows out of padded tensors and back.

While a model is exported, every shape must follow from the shapes of its inputs, so that the padding goes along and is
set to zero at the end; the results are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def real_rows(x: Tensor, mask: Tensor) -> Tensor:
    """x [B, R, ...] at the K True places of mask [B, R], row by row: [K, ...]; all of its rows during an export."""
    return x.flatten(0, 1) if torch.compiler.is_exporting() else x[mask]


def rows_back(rows: Tensor, mask: Tensor) -> Tensor:
    """The reverse, with zeros where the mask is False: [K, F] -> [B, R, F]."""
    if torch.compiler.is_exporting():
        return rows.unflatten(0, mask.shape).masked_fill(~mask[..., None], 0.0)
    out = rows.new_zeros(*mask.shape, rows.shape[-1])
    out[mask] = rows
    return out


def packed_length(used: Tensor, most: int) -> int:
    """Length of packed rows, END included. used: int64 [B, 1], real positions before it; most: what fits at most."""
    return (most if torch.compiler.is_exporting() else int(used.max())) + 1
