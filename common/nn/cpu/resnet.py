"""ResNet whose frozen batch norms, sums and ReLUs are parts of the convolutions, in channels-last memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.cpu.exact import has_parameters, is_exact
from common.nn.cpu.linear import lowered
from common.nn.resnet import Bottleneck, FrozenBatchNorm2d, ResNetC4

# oneDNN's convolution with the operations after it. Builds without that library lack it.
_convolution = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


class FastResNetC4(ResNetC4):
    """ResNetC4 with a fused stem."""

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        x = conv_norm_relu(images, self.conv1, self.bn1)  # (B, 64, h / 2, w / 2)
        x = self.stem_pool(x)  # (B, 64, h / 4, w / 4)
        return self.layer3(self.layer2(self.layer1(x)))


class FastBottleneck(Bottleneck):
    """Bottleneck of fused convolutions. A convolution or a norm that is not exact is called."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # no copy but for the first block
        y = conv_norm_relu(x, self.conv1, self.bn1)
        y = conv_norm_relu(y, self.conv2, self.bn2)
        return conv_norm_relu(y, self.conv3, self.bn3, residual=self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        if not is_exact(self.downsample, nn.Sequential) or len(self.downsample) != 2:
            return self.downsample(x)
        return conv_norm(x, *self.downsample)


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(x)). A frozen norm is folded into the convolution, which saves passes over the maps.

    The weight is scaled in each forward, so that `conv.weight` stays the weight that trains. The scale and the bias do
    not train and are kept until a tensor of the norm is replaced or written to (not through `.data`).
    """
    if not _is_foldable(conv, norm):
        return norm(conv(x))
    return F.conv2d(x, *_folded(conv, norm), conv.stride, conv.padding, conv.dilation, conv.groups)


def conv_norm_relu(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
    """relu(norm(conv(x)) + residual). In bf16 on a CPU, sum and relu are part of the convolution."""
    if _convolution is None or not lowered(x.device) or not _is_foldable(conv, norm):
        y = conv_norm(x, conv, norm)
        return F.relu(y if residual is None else y + residual, inplace=True)
    tensors = (None if t is None else t.to(torch.bfloat16) for t in (x, *_folded(conv, norm), residual))
    return _ConvRelu.apply(*tensors, conv.stride, conv.padding, conv.dilation, conv.groups)


def _is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        is_exact(norm, FrozenBatchNorm2d)
        and not norm.weight.requires_grad
        and not norm.bias.requires_grad
        and is_exact(conv, nn.Conv2d)
        and has_parameters(conv, "weight")
        and has_parameters(norm, "weight", "bias")
        and conv.bias is None
        and conv.padding_mode == "zeros"
    )


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the norm inside."""
    fold = _folds.get(norm)
    if fold is None or fold.key != _key(norm):
        fold = _folds[norm] = _Fold(norm)
    return conv.weight * fold.scale, fold.bias


class _Fold:
    """What a frozen norm makes of a convolution.

    scale: [C, 1, 1, 1], of the weight. bias: [C], in the dtype of autocast. key: equal as long as both hold.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.key, self._tensors = _key(norm), _tensors(norm)  # the tensors live on, so that their ids stay theirs
        weight, bias, mean, var = self._tensors
        with torch.inference_mode(False), torch.no_grad():  # a training step after an evaluation may use them
            scale = weight * torch.rsqrt(var + norm.eps)
            self.scale, self.bias = scale[:, None, None, None], (bias - mean * scale).to(_dtype(weight))


_folds: WeakKeyDictionary[nn.BatchNorm2d, _Fold] = WeakKeyDictionary()


def _tensors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _key(norm: nn.BatchNorm2d) -> tuple[Any, ...]:
    tensors = _tensors(norm)
    if any(t.is_inference() for t in tensors):
        return (object(),)  # equal to no other, because such tensors do not count their changes
    return _dtype(norm.weight), *((id(t), t.data_ptr(), t._version) for t in tensors)


def _dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a convolution with the weight computes in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _ConvRelu(torch.autograd.Function):
    """The bias has no gradient, because a frozen norm has none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        assert _convolution is not None
        ctx.geometry = [*stride], [*padding], [*dilation], groups
        how = [*padding], [*stride], [*dilation], groups
        if residual is None:
            out = _convolution(x, weight, bias, *how, "relu", [], "")
        else:
            out = _convolution.binary(x, residual, weight, bias, *how, "add", 1.0, "relu", [], "")
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return of_x, of_weight, None, grad if ctx.needs_input_grad[3] else None, None, None, None, None


def flop_formulas() -> dict[Any, Any]:
    """Formulas for torch.utils.flop_counter, which does not know these convolutions."""
    return {} if _convolution is None else {_convolution: _flops}


def _flops(*shapes: Any, out_shape: Sequence[int], **options: Any) -> int:
    weight = next(shape for shape in shapes[1:] if tuple(shape) != tuple(out_shape))  # a residual may come before it
    return 2 * math.prod(out_shape) * math.prod(weight[1:])
