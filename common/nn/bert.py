"""The BERT encoder: post-norm layers with the parameter names of the published checkpoints (original 2.1 to 2.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.nn import recompute

LAYER_NORM_EPS = 1e-12
MASKED_SCORE = -10000.0  # added to the score of a masked key

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "swish": nn.SiLU}


def layer_norm(size: int) -> nn.LayerNorm:
    """LayerNorm with the small epsilon of BERT."""
    return nn.LayerNorm(size, eps=LAYER_NORM_EPS)


def activation(name: str) -> nn.Module:
    """The activation of a `hidden_act` value. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: bool [B, L] (True is real) -> [B, 1, 1, L], 0 or MASKED_SCORE."""
    return (~mask)[:, None, None, :].to(dtype) * MASKED_SCORE


class EncoderOutput(NamedTuple):
    """layers: outputs of layers 1..n, each [B, L, H]; only the last one unless all layers were requested.
    attention: probabilities after dropout, n x [B, heads, L, L], or None."""

    layers: list[Tensor]
    attention: list[Tensor] | None


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention. Raises ValueError where the heads do not divide hidden_size."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, L, H], bias [B, 1, 1, L] -> context [B, L, H], probabilities after dropout [B, heads, L, L]."""
        query = self._split_heads(self.query(hidden))  # (B, heads, L, d)
        key = self._split_heads(self.key(hidden))  # (B, heads, L, d)
        value = self._split_heads(self.value(hidden))  # (B, heads, L, d)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias  # (B, heads, L, L)
        probs = self.dropout(scores.softmax(-1))  # (B, heads, L, L)
        context = probs @ value  # (B, heads, L, d)
        return context.transpose(1, 2).flatten(2), probs

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, H / heads)


class ResidualNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual): [..., in], [..., H] -> [..., H]."""

    def __init__(self, in_size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, hidden_size)
        self.LayerNorm = layer_norm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Self-attention with its residual connection."""

    def __init__(self, hidden_size: int, num_heads: int, hidden_dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(hidden_size, num_heads, attention_dropout)
        self.output = ResidualNorm(hidden_size, hidden_size, hidden_dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, L, H], bias [B, 1, 1, L] -> [B, L, H], probabilities [B, heads, L, L]."""
        context, probs = self.self(hidden, bias)
        return self.output(context, hidden), probs


class Intermediate(nn.Module):
    """First half of the feed-forward block: [..., H] -> [..., intermediate_size]."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.activation = activation(hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each with a residual connection and a LayerNorm after it."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str,
        hidden_dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(hidden_size, num_heads, hidden_dropout, attention_dropout)
        self.intermediate = Intermediate(hidden_size, intermediate_size, hidden_act)
        self.output = ResidualNorm(intermediate_size, hidden_size, hidden_dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, L, H], bias [B, 1, 1, L] -> [B, L, H], probabilities [B, heads, L, L]."""
        attended, probs = self.attention(hidden, bias)  # (B, L, H)
        inner = self.intermediate(attended)  # (B, L, intermediate_size)
        return self.output(inner, attended), probs

    def run(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """`function(self, *args)`, another way to compute this layer. FSDP gathers weights around it and forward."""
        return function(self, *args)


Backend = str | Callable[..., Any]  # of torch.compile


class Encoder(nn.Module):
    """A stack of `num_layers` encoder layers.

    recompute: in training, keep only the inputs of the layers and compute each layer again for the backward pass.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.recompute = recompute
        self.layer = nn.ModuleList(
            EncoderLayer(hidden_size, num_heads, intermediate_size, hidden_act, hidden_dropout, attention_dropout)
            for _ in range(num_layers)
        )
        self._compiled_layer: Callable[..., tuple[Tensor, Tensor]] | None = None

    def compile_layers(self, backend: Backend = "inductor") -> None:
        """Let torch.compile make the code of a layer, which all layers and all lengths of sequences share.

        It runs in training with gradients. Everything else, and the keys of the state dict, stay as they are.
        """
        self._compiled_layer = torch.compile(_call, backend=backend)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        all_layers: bool = False,
        with_probs: bool = False,
        at: Tensor | None = None,
    ) -> EncoderOutput:
        """hidden [B, L, H], mask bool [B, L] (True is real) -> EncoderOutput.

        at: int64 [2, N], sample and position of the real states, for subclasses that leave out the others.

        A masked key gets MASKED_SCORE added to its score, as in the original. States at masked positions carry no
        meaning, and nothing may read them.
        """
        bias = attention_bias(mask, hidden.dtype)  # (B, 1, 1, L)
        compiled = self._compiled_layer if self.training and torch.is_grad_enabled() else None
        layers, attention = [], []
        for layer in self.layer:
            if compiled is not None:
                sizes_vary((hidden, 1), (bias, 3))
            hidden, probs = recompute.call(
                compiled or _call, layer, hidden, bias, again=self.recompute and self.training
            )
            layers.append(hidden)
            if with_probs:
                attention.append(probs)
        return EncoderOutput(layers if all_layers else layers[-1:], attention if with_probs else None)


def sizes_vary(*sizes: tuple[Tensor, int]) -> None:
    """Mark sizes, each a tensor and an axis, that code of torch.compile must not fix."""
    for tensor, axis in sizes:
        torch._dynamo.maybe_mark_dynamic(tensor, axis)


def _call(layer: nn.Module, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return layer(hidden, bias)


class Pooler(nn.Module):
    """tanh(dense(first position)): [B, L, H] -> [B, H]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class PredictionHeadTransform(nn.Module):
    """dense, activation, LayerNorm: [..., H] -> [..., H]."""

    def __init__(self, hidden_size: int, hidden_act: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = activation(hidden_act)
        self.LayerNorm = layer_norm(hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden)))


def init_weights(module: nn.Module, std: float) -> None:
    """The BERT rule for every sub-module: Normal(0, std) weights, zero biases, LayerNorm 1 and 0 (original 2.11)."""
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Embedding):
            nn.init.normal_(m.weight, std=std)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
        if isinstance(m, nn.Linear | nn.LayerNorm) and m.bias is not None:
            nn.init.zeros_(m.bias)
