"""The BERT encoder without work on padding and with fused linear layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn import recompute
from common.nn.bert import (
    Attention,
    Backend,
    Encoder,
    EncoderLayer,
    EncoderOutput,
    Intermediate,
    ResidualNorm,
    SelfAttention,
    attention_bias,
    sizes_vary,
)
from common.nn.cpu.attention import attend
from common.nn.cpu.dropout import masked
from common.nn.cpu.exact import has_hooks, is_exact
from common.nn.cpu.linear import FusedLinear, fuses_activation, fuses_residual, is_fusable, lowered
from common.nn.packing import PackedHeads, PackedPositions, Packing, can_pack

VECTOR = 16  # kernels of softmax and of products prefer sequences of a multiple of this length


class FastEncoder(Encoder):
    """Encoder with the same arguments, parameters and results, but states at masked positions are zero.

    The layers work on the N real positions only. Where attention probabilities are requested, and during an export, it
    is the plain Encoder. A layer that has a hook somewhere, or a block of another class, is called on padded states.
    In the other layers a linear layer or a dropout of another class (LoRA, quantised, pruned) is called on packed ones.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed_layers: defaultdict[int, PackedLayer] = defaultdict(PackedLayer)
        self._compiled_packed: Callable[..., Tensor] | None = None

    def compile_layers(self, backend: Backend = "inductor") -> None:
        """As that of Encoder. A layer that is called on padded states is not compiled."""
        self._compiled_packed = torch.compile(PackedLayer.__call__, backend=backend)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        all_layers: bool = False,
        with_probs: bool = False,
        at: Tensor | None = None,
    ) -> EncoderOutput:
        """hidden [B, L, H], mask bool [B, L] (True is real) -> EncoderOutput. at: None to find it from the mask."""
        if with_probs or not can_pack():
            return super().forward(hidden, mask, all_layers, with_probs)
        keys = F.pad(mask, (0, -mask.shape[1] % VECTOR))  # (B, L')
        at = mask.nonzero().t() if at is None else at
        compiled = self._compiled_packed if self.training and torch.is_grad_enabled() else None
        packing = PackedPositions if hidden.is_cuda or compiled is not None else PackedHeads
        heads, bias = packing(keys, at, self.num_heads), attention_bias(keys, hidden.dtype)
        places = at[0] * mask.shape[1] + at[1]  # (N,), in [B * L]
        states = hidden.flatten(0, 1).index_select(0, places)  # (N, H)
        if lowered(hidden.device) and not torch.is_grad_enabled():
            states = states.to(torch.bfloat16)  # the residual of each block is then part of its product
        again = self.recompute and self.training
        layers = []
        for number, layer in enumerate(self.layer):
            if _is_ours(layer):
                call = PackedLayer.__call__
                if compiled is not None and isinstance(heads, PackedPositions):
                    sizes_vary((states, 0), (bias, 3), *heads.varying())
                    call = compiled
                packed = partial(recompute.call, call, self._packed_layers[number], again=again)
                states = layer.run(packed, states, bias, heads)
            else:
                padded = _padded(states, places, mask.shape).to(hidden.dtype)  # (B, L, H)
                out, _ = recompute.call(layer, padded, attention_bias(mask, hidden.dtype), again=again)
                states = out.flatten(0, 1).index_select(0, places).to(states.dtype)
            layers.append(states)
        wanted = layers if all_layers else layers[-1:]
        return EncoderOutput([_padded(x.to(hidden.dtype), places, mask.shape) for x in wanted], None)


class PackedLayer:
    """An EncoderLayer on packed states, and the casts of its weights. The layer itself is an argument."""

    def __init__(self) -> None:
        self._query_key_value = FusedLinear()
        self._attention_dense, self._intermediate_dense, self._output_dense = (FusedLinear() for _ in range(3))

    def __call__(self, layer: EncoderLayer, states: Tensor, bias: Tensor, heads: Packing) -> Tensor:
        """states [N, H], bias [B, 1, 1, L] -> [N, H]."""
        context = self._context(layer.attention.self, states, bias, heads)  # (N, H)
        attended = _residual_norm(layer.attention.output, self._attention_dense, context, states)  # (N, H)
        inner = _intermediate(layer.intermediate, self._intermediate_dense, attended)  # (N, intermediate_size)
        return _residual_norm(layer.output, self._output_dense, inner, attended)

    def _context(self, block: SelfAttention, states: Tensor, bias: Tensor, heads: Packing) -> Tensor:
        """Only the scores see padding: they are a small part of the work, the projections are a large one."""
        projections = (block.query, block.key, block.value)
        if all(is_fusable(p) for p in projections):
            joint = self._query_key_value(states, *projections)  # (N, 3H)
        else:
            joint = torch.cat([p(states) for p in projections], dim=-1)  # (N, 3H)
        query, key, value = heads.split(joint)  # (B, heads, L, d)
        return heads.join(attend(query, key, value, bias, block.dropout))


def _residual_norm(block: ResidualNorm, product: FusedLinear, x: Tensor, residual: Tensor) -> Tensor:
    """[N, in], [N, H] -> [N, H]. The block is called where a part of it is not exact."""
    if not is_fusable(block.dense) or not is_exact(block.dropout, nn.Dropout):
        return block(x, residual)
    if fuses_residual(residual) and not block.dropout.training:
        return block.LayerNorm(product(x, block.dense, residual=residual))
    y, factor = masked(product(x, block.dense), block.dropout.p if block.dropout.training else 0.0)
    # One dtype before the sum: adding bf16 to float32 is ten times slower on a CPU.
    return block.LayerNorm(torch.add(residual, y.to(residual.dtype), alpha=factor))


def _intermediate(block: Intermediate, product: FusedLinear, hidden: Tensor) -> Tensor:
    """[N, H] -> [N, intermediate_size]."""
    if not is_fusable(block.dense):
        return block(hidden)
    if fuses_activation(hidden, block.activation):
        return product(hidden, block.dense, activation=block.activation)
    return block.activation(product(hidden, block.dense))


def _is_ours(layer: nn.Module) -> TypeGuard[EncoderLayer]:
    """Whether all blocks of a layer are those that PackedLayer replaces, and no module in it has a hook.

    FSDP makes a subclass of the layer's class and replaces `run` by one that calls its hooks.
    """
    if not isinstance(layer, EncoderLayer):
        return False
    sharded = "run" in layer.__dict__ and type(layer).__bases__[-1] is EncoderLayer
    if not (sharded or is_exact(layer, EncoderLayer)) or not is_exact(layer.attention, Attention):
        return False
    attention = layer.attention
    blocks = (
        (attention.self, SelfAttention),
        (attention.output, ResidualNorm),
        (layer.intermediate, Intermediate),
        (layer.output, ResidualNorm),
    )
    return all(
        is_exact(block, kind) and not any(has_hooks(leaf) for leaf in block.children()) for block, kind in blocks
    )


def _padded(states: Tensor, places: Tensor, size: torch.Size) -> Tensor:
    """states [N, H] at their places in zeros [B, L, H]. places: int64 [N], in [B * L]."""
    return states.new_zeros(size.numel(), states.shape[1]).index_copy_(0, places, states).unflatten(0, size)
