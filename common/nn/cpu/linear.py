"""Linear layers in bf16 on a CPU, where bias, activation and residual are part of the matrix product.

Autocast adds the bias in a pass of its own, which with AMX takes a third of the time of the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.cpu.exact import has_parameters, is_exact

_SAMPLES = 16  # numbers of a parameter that are compared before its cast is used again

# oneDNN's matrix product with the operations after it. Builds without that library lack it.
_product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

# Activation modules as oneDNN's names and algorithms.
_FUSED: dict[type[nn.Module], tuple[str, str]] = {nn.GELU: ("gelu", "none"), nn.ReLU: ("relu", "")}


def lowered(device: torch.device) -> bool:
    """Whether bf16 autocast is on for a CPU that computes in bf16, and this build has oneDNN's products.

    False in code of torch.compile, which chooses the products itself.
    """
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and _product is not None
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def is_fusable(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether FusedLinear may compute the layer: an exact nn.Linear with a bias."""
    return is_exact(layer, nn.Linear) and has_parameters(layer, "weight", "bias")


def fuses_residual(stream: Tensor) -> bool:
    """Whether FusedLinear adds a residual like `stream` inside the product: in bf16 without gradients."""
    return stream.dtype == torch.bfloat16 and not torch.is_grad_enabled() and lowered(stream.device)


def fuses_activation(stream: Tensor, activation: nn.Module) -> bool:
    """Whether FusedLinear applies the activation inside the product: as a residual, and where oneDNN knows it."""
    return fuses_residual(stream) and _onednn_name(activation) is not None


class FusedLinear:
    """Linear layers of one input as one product.

    Under bf16 autocast on a CPU, the weights are cast to bf16 here. Without gradients the casts are kept until a weight
    changes.
    """

    def __init__(self) -> None:
        self._key: tuple[float, ...] = ()
        self._kept: tuple[Tensor, Tensor] | None = None

    def __reduce__(self) -> Any:
        return FusedLinear, ()  # a copy makes its own casts

    def __call__(
        self,
        x: Tensor,
        *layers: nn.Linear,
        activation: nn.Module | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """x [..., in] -> [..., sum of out]. Each layer must be `is_fusable`.

        activation: applied to the result, where `fuses_activation` allows it. residual: [..., out], added to the
        result, where `fuses_residual` allows it.
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
        name, algorithm = (activation and _onednn_name(activation)) or ("none", "")
        return _product(x, weight, bias, name, [], algorithm)

    def _casts(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        if any(p.is_inference() for p in parameters):  # inference tensors do not count their changes
            return _joint(layers, dtype)
        key = tuple(number for p in parameters for number in (id(p), p.data_ptr(), p._version, *_sampled(p)))
        if self._kept is None or key != self._key:
            self._key, self._kept = key, _joint(layers, dtype)
        return self._kept


def _sampled(parameter: Tensor) -> list[float]:
    """Some of the numbers. A write through `.data`, as in the merge of adapters, leaves the version as it was."""
    return parameter.detach().flatten()[:: parameter.numel() // _SAMPLES + 1].tolist()


def flop_formulas() -> dict[Any, Any]:
    """Formulas for torch.utils.flop_counter, which does not know these products."""
    return {} if _product is None else {_product: _flops}


def _flops(x: Sequence[int], *shapes: Any, out_shape: Sequence[int], **options: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def _joint(layers: Sequence[nn.Linear], dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Weights [sum of out, in] and biases [sum of out]."""
    weights, biases = [layer.weight.to(dtype) for layer in layers], [layer.bias.to(dtype) for layer in layers]
    return (weights[0], biases[0]) if len(layers) == 1 else (torch.cat(weights), torch.cat(biases))


def _onednn_name(activation: nn.Module) -> tuple[str, str] | None:
    """Name and algorithm of an exact activation module, None where oneDNN has no counterpart."""
    if not is_exact(activation, type(activation)) or getattr(activation, "approximate", "none") != "none":
        return None
    return _FUSED.get(type(activation))


class _Linear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out], all of one dtype -> [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        assert _product is not None
        return _product(x, weight, bias, "none", [], "")

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
