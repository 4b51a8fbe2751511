"""CUDA's attention kernels on CPU tensors, without dropout: `CPU_KERNELS`, operator name -> function.

The arguments and results are those of the operators of the same name. Results that only the backward of CUDA reads
(seeds, offsets) are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _probabilities(
    q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Softmax of the scores and their logsumexp, float32. q, k: [B, heads, L, d]."""
    scores = q.float() @ k.float().transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        above = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(above, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    probabilities, logsumexp = _probabilities(q, k, bias, causal, scale)
    out = (probabilities @ v.float()).to(q.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2), logsumexp  # CUDA's layout


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    p, _ = _probabilities(q, k, bias, causal, scale)
    grad = grad.float()
    of_p = grad @ v.float().transpose(-1, -2)
    of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    of_k = of_scores.transpose(-1, -2) @ q.float()
    return (of_scores @ k.float()).to(q.dtype), of_k.to(k.dtype), (p.transpose(-1, -2) @ grad).to(v.dtype)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def efficient(q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):  # type: ignore[no-untyped-def]
    return *_forward(q, k, v, attn_bias, is_causal, scale), _zero(), _zero()


def efficient_backward(  # type: ignore[no-untyped-def]
    grad, q, k, v, attn_bias, out, lse, seed, offset, dropout_p, grad_input_mask, is_causal=False, *, scale=None
):
    return *_backward(grad, q, k, v, attn_bias, is_causal, scale), None


def cudnn(  # type: ignore[no-untyped-def]
    q, k, v, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None
):
    out, logsumexp = _forward(q, k, v, attn_bias, is_causal, scale)
    return out, logsumexp, None, None, q.shape[2], k.shape[2], _zero(), _zero(), torch.empty(0)


def cudnn_backward(  # type: ignore[no-untyped-def]
    grad, q, k, v, out, lse, seed, offset, attn_bias, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, *, scale=None
):
    return _backward(grad, q, k, v, attn_bias, is_causal, scale)


def flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):  # type: ignore[no-untyped-def]
    out, logsumexp = _forward(q, k, v, None, is_causal, scale)
    return out, logsumexp, None, None, q.shape[2], k.shape[2], _zero(), _zero(), torch.empty(0)


def flash_backward(  # type: ignore[no-untyped-def]
    grad, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed, offset, *, scale=None
):
    return _backward(grad, q, k, v, None, is_causal, scale)


CPU_KERNELS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_efficient_attention": efficient,
    "_scaled_dot_product_efficient_attention_backward": efficient_backward,
    "_scaled_dot_product_cudnn_attention": cudnn,
    "_scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    "_scaled_dot_product_flash_attention": flash,
    "_scaled_dot_product_flash_attention_backward": flash_backward,
}
