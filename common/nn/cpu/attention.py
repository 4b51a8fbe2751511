"""Scaled dot-product attention by the fastest kernel that a device has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.cpu.dropout import masked
from common.nn.cpu.exact import is_exact

HAS_AMX = hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_tile"))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Module) -> Tensor:
    """query, key, value [B, heads, L, d], bias [B, 1, 1, L], dropout of the probabilities -> [B, heads, L, d]."""
    bias = bias.to(query.dtype)
    if not is_exact(dropout, nn.Dropout):
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias  # (B, heads, L, L)
        return dropout(scores.softmax(-1)).to(value.dtype) @ value
    p = dropout.p if dropout.training else 0.0
    # CPUs have no fused kernel with dropout, and the one for bf16 needs AMX to be faster than its parts.
    if query.device.type == "cpu" and (p > 0.0 or (query.dtype == torch.bfloat16 and not HAS_AMX)):
        return _attend_in_parts(query, key, value, bias, p)
    return F.scaled_dot_product_attention(query, key, value, bias, p)


def _attend_in_parts(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, p: float) -> Tensor:
    size = query.shape[:2]  # B, heads
    bias = bias.expand(*size, -1, -1).flatten(0, 1)  # (B * heads, 1, L)
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (B * heads, L, d)
    with torch.autocast("cpu", enabled=False):
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)  # (B * heads, L, L)
        probs, factor = masked(scores.softmax(-1), p)
        value = value if factor == 1.0 else value * factor  # smaller than the probabilities
        return (probs @ value).unflatten(0, size)
