"""Linear layers in bf16 on a CPU, where bias, activation and residual are part of the matrix product.

Autocast adds the bias in a pass of its own, which with AMX takes a third of the time of the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN's product with what follows it; not in builds without that library.
_product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
FUSED_ACTIVATIONS = {"gelu": ("gelu", "none"), "relu": ("relu", "")}  # our name -> oneDNN's, and its algorithm


def lowered(device: torch.device) -> bool:
    """Whether bf16 autocast is on for a CPU that computes in it, by a library that has these products."""
    return (
        device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and _product is not None
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Linears:
    """Linear layers of one input as one product.

    Where it is lowered, weights are cast to bf16 here; without gradients the casts are kept until a weight changes.
    """

    def __init__(self) -> None:
        self._key: tuple[int, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> Any:
        return Linears, ()  # a copy makes its own casts

    def __call__(
        self, x: Tensor, layers: Sequence[nn.Linear], activation: str = "", residual: Tensor | None = None
    ) -> Tensor:
        """x [..., in] -> [..., sum of out].

        Where `fuses` says so also the activation, a key of FUSED_ACTIVATIONS, or the sum with `residual` [..., out].
        """
        if not lowered(x.device):
            return F.linear(x, *_joint(layers))
        x = x.to(torch.bfloat16)
        if torch.is_grad_enabled():
            self._kept = None
            return _Linear.apply(x, *_joint(layers, x.dtype))
        weight, bias = self._casts(layers, x.dtype)
        assert _product is not None
        if residual is not None:
            return _product.binary(x, residual, weight, bias, "add")
        return _product(x, weight, bias, *_of_activation(activation))

    def _casts(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        if any(p.is_inference() for p in parameters):  # nothing tells whether they changed
            return _joint(layers, dtype)
        key = tuple(number for p in parameters for number in (id(p), p.data_ptr(), p._version))
        if self._kept is None or key != self._key:
            self._key, self._kept = key, _joint(layers, dtype)
        return self._kept


def fuses(stream: Tensor, activation: str = "") -> bool:
    """Whether Linears computes activation or residual with the product; stream: what the residual is, or like it."""
    return (
        stream.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and activation in ("", *FUSED_ACTIVATIONS)
        and lowered(stream.device)
    )


def flop_formulas() -> dict[Any, Any]:
    """For torch.utils.flop_counter, which does not know these products."""
    return {} if _product is None else {_product: _flops}


def _flops(x: Sequence[int], *shapes: Any, out_shape: Sequence[int], **options: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def _joint(layers: Sequence[nn.Linear], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Weights [sum of out, in] and biases [sum of out]."""
    weights, biases = [layer.weight.to(dtype) for layer in layers], [layer.bias.to(dtype) for layer in layers]
    return (weights[0], biases[0]) if len(layers) == 1 else (torch.cat(weights), torch.cat(biases))


def _of_activation(name: str) -> tuple[str, list, str]:
    attribute, algorithm = FUSED_ACTIVATIONS[name] if name else ("none", "")
    return attribute, [], algorithm


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out], all of one dtype -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        assert _product is not None
        return _product(x, weight, bias, *_of_activation(""))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            grad @ weight if for_x else None,
            rows.t() @ x.flatten(0, -2) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
