"""The BERT encoder: post-norm layers with the parameter names of the published checkpoints (spec 02 §2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting as exporting

from common.nn import recompute
from common.nn.dropout import Dropout
from common.nn.linear import Linears, fuses, lowered
from common.nn.rows import HeadRows

LAYER_NORM_EPS = 1e-12
VECTOR = 16  # numbers
HAS_AMX = hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_tile"))

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu}


def layer_norm(size: int) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=LAYER_NORM_EPS)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of a `hidden_act` value. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class EncoderOutput(NamedTuple):
    """layers: outputs of layers 1..n, each [B, L, H] (only the last one unless all were asked for).
    attention: probabilities after dropout, n x [B, heads, L, L], or None."""

    layers: list[Tensor]
    attention: list[Tensor] | None


class SelfAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self._product = Linears()

    def forward(
        self, hidden: Tensor, bias: Tensor, with_probs: bool, rows: HeadRows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """hidden [B, L, H], additive bias [B, 1, 1, L] -> context [B, L, H], probabilities [B, heads, L, L] or None.

        rows: where the rows of a packed hidden [N, H] lie in [B, L]; the context is then [N, H] too, and L that of the
        bias.
        """
        if rows is not None:
            return self._packed(hidden, bias, rows), None
        query, key, value = (self._heads(p(hidden)) for p in (self.query, self.key, self.value))
        probs = None
        if with_probs:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
            probs = self.dropout(scores.softmax(-1))
            context = probs.to(value.dtype) @ value
        else:
            context = self._attend(query, key, value, bias)
        return context.transpose(1, 2).flatten(2), probs

    def _packed(self, hidden: Tensor, bias: Tensor, rows: HeadRows) -> Tensor:
        """Only the scores see padding: they are a small part of the work, the projections are a large one."""
        joint = self._product(hidden, (self.query, self.key, self.value))  # (N, 3H)
        query, key, value = rows.split(joint).unflatten(1, (-1, self.num_heads))
        return rows.join(self._attend(query, key, value, bias).flatten(0, 1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        bias = bias.to(query.dtype)
        dropout = self.dropout.p if self.training else 0.0
        # CPUs have no fused kernel with dropout, and the one for bf16 needs AMX to be faster than its parts.
        slow = dropout > 0.0 or (query.dtype == torch.bfloat16 and not HAS_AMX)
        if query.device.type == "cpu" and slow and not exporting():
            return self._attend_in_parts(query, key, value, bias)
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)

    def _attend_in_parts(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        size = query.shape[:2]  # B, heads
        bias = bias.expand(*size, -1, -1).flatten(0, 1)
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
            probs, factor = self.dropout.masked(scores.softmax(-1))
            value = value if factor == 1.0 else value * factor  # smaller than the probabilities
            return (probs @ value).unflatten(0, size)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, H/heads)


class ResidualNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual)."""

    def __init__(self, in_size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, hidden_size)
        self.LayerNorm = layer_norm(hidden_size)
        self.dropout = Dropout(dropout)
        self._product = Linears()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        if fuses(residual):
            return self.LayerNorm(self._product(x, (self.dense,), residual=residual))
        y, factor = self.dropout.masked(self._product(x, (self.dense,)))
        # One dtype before the sum: adding bf16 to float32 is ten times slower on a CPU.
        return self.LayerNorm(torch.add(residual, y.to(residual.dtype), alpha=factor))


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, hidden_dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(hidden_size, num_heads, attention_dropout)
        self.output = ResidualNorm(hidden_size, hidden_size, hidden_dropout)

    def forward(
        self, hidden: Tensor, bias: Tensor, with_probs: bool, rows: HeadRows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        context, probs = self.self(hidden, bias, with_probs, rows)
        return self.output(context, hidden), probs


class Intermediate(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.hidden_act, self.activation = hidden_act, activation(hidden_act)
        self._product = Linears()

    def forward(self, hidden: Tensor) -> Tensor:
        if fuses(hidden, self.hidden_act):
            return self._product(hidden, (self.dense,), self.hidden_act)
        return self.activation(self._product(hidden, (self.dense,)))


class EncoderLayer(nn.Module):
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

    def forward(
        self, hidden: Tensor, bias: Tensor, with_probs: bool = False, rows: HeadRows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        hidden, probs = self.attention(hidden, bias, with_probs, rows)
        return self.output(self.intermediate(hidden), hidden), probs


class Encoder(nn.Module):
    """A stack of `num_layers` encoder layers.

    recompute: in training keep their inputs alone for the backward pass. packed: leave padding out of the work; where
    False, masked positions are computed as in the original, though nothing may read them.
    """

    recompute = False
    packed = True

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layer = nn.ModuleList(
            EncoderLayer(hidden_size, num_heads, intermediate_size, hidden_act, hidden_dropout, attention_dropout)
            for _ in range(num_layers)
        )

    def forward(
        self, hidden: Tensor, mask: Tensor, all_layers: bool = False, with_probs: bool = False
    ) -> EncoderOutput:
        """hidden [B, L, H], mask bool [B, L] (True is real) -> EncoderOutput.

        A masked key gets -10000 added to its score, as in the original. What stands at masked positions is meaningless:
        zeros, or with attention probabilities, or not `packed`, what the layers make of them.
        """
        if not self.packed or with_probs or exporting():
            return self._run(hidden, mask, None, all_layers, with_probs)
        # The kernels of softmax and of products like rows of whole vectors.
        keys = F.pad(mask, (0, -mask.shape[1] % VECTOR))
        ways = HeadRows(keys, self.num_heads)
        real = ways.places(mask.shape[1])
        rows = hidden.flatten(0, 1).index_select(0, real)  # (N, H)
        if lowered(hidden.device) and not torch.is_grad_enabled():
            rows = rows.to(torch.bfloat16)  # what each layer adds is then part of its products
        layers = self._run(rows, keys, ways, all_layers, False).layers
        return EncoderOutput([self._padded(x.to(hidden.dtype), real, mask.shape) for x in layers], None)

    @staticmethod
    def _padded(rows: Tensor, real: Tensor, size: torch.Size) -> Tensor:
        """rows [N, H] at their places in zeros [B, L, H]. real: int64 [N], the places in [B * L]."""
        return rows.new_zeros(size.numel(), rows.shape[1]).index_copy_(0, real, rows).unflatten(0, size)

    def _run(
        self, hidden: Tensor, keys: Tensor, rows: HeadRows | None, all_layers: bool, with_probs: bool
    ) -> EncoderOutput:
        """The layers on hidden [B, L, H], or on packed rows [N, H] whose places `rows` knows."""
        bias = (~keys)[:, None, None, :].to(hidden.dtype) * -10000.0
        layers, attention = [], []
        for layer in self.layer:
            hidden, probs = recompute.call(
                layer, hidden, bias, with_probs, rows, again=self.recompute and self.training
            )
            layers.append(hidden)
            attention.append(probs)
        return EncoderOutput(layers if all_layers else layers[-1:], attention if with_probs else None)


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
    """The BERT rule for every sub-module: Normal(0, std) weights, zero biases, LayerNorm 1 and 0 (spec 02 §3.6)."""
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Embedding):
            nn.init.normal_(m.weight, std=std)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
        if isinstance(m, nn.Linear | nn.LayerNorm) and m.bias is not None:
            nn.init.zeros_(m.bias)
