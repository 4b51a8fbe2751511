"""ResNet with the stride and dilation choices of the detector family (spec 02 §7).

Parameter names are torchvision's (conv1, bn1, layer1.0.conv1, ...), so its checkpoints load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.linear import lowered

# Blocks of layer1..layer4. Depths 18 and 34 have basic blocks, whose 512 channels do not fit a 2048-d region feature.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4

# oneDNN's convolution with what follows it; not in builds without that library.
_convolution = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics and never trains; keys as nn.BatchNorm2d (spec 02, 12.22)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        super().train(False)
        return self


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(x)); a frozen norm is folded into the convolution, which is exact and saves passes over the maps.

    The weight that trains stays `conv.weight`: the fold is made anew in each forward.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    return F.conv2d(x, *_folded(conv, norm), conv.stride, conv.padding, conv.dilation, conv.groups)


def conv_norm_relu(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
    """relu(norm(conv(x)) + residual), in bf16 on a CPU with sum and relu as a part of the convolution."""
    if _convolution is None or not isinstance(norm, FrozenBatchNorm2d) or not lowered(x.device):
        y = conv_norm(x, conv, norm)
        return F.relu(y if residual is None else y + residual, inplace=True)
    tensors = (None if t is None else t.to(torch.bfloat16) for t in (x, *_folded(conv, norm), residual))
    return _ConvRelu.apply(*tensors, conv.stride, conv.padding, conv.dilation, conv.groups)


def _folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the norm inside."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class _ConvRelu(torch.autograd.Function):
    """The bias gets no gradient: that of a frozen norm has none."""

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
    """For torch.utils.flop_counter, which does not know these convolutions."""
    return {} if _convolution is None else {_convolution: _flops}


def _flops(*shapes: Any, out_shape: Sequence[int], **options: Any) -> int:
    weight = next(shape for shape in shapes[1:] if tuple(shape) != tuple(out_shape))  # a residual may come before it
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual connection: [N, in, h, w] -> [N, 4 * planes, h / stride, w / stride]."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, dilation: int, stride_in_1x1: bool, norm: type[nn.BatchNorm2d]
    ) -> None:
        super().__init__()
        out_channels = planes * EXPANSION
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, planes, 1, stride=first, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm_relu(x, self.conv1, self.bn1)
        y = conv_norm_relu(y, self.conv2, self.bn2)
        return conv_norm_relu(
            y, self.conv3, self.bn3, residual=x if self.downsample is None else conv_norm(x, *self.downsample)
        )


def build_layer(
    num_blocks: int,
    in_channels: int,
    planes: int,
    stride: int,
    dilation: int,
    stride_in_1x1: bool,
    norm: type[nn.BatchNorm2d],
) -> nn.Sequential:
    """One residual stage; only its first block strides, every block dilates."""
    blocks = [Bottleneck(in_channels, planes, stride, dilation, stride_in_1x1, norm)]
    blocks += [Bottleneck(planes * EXPANSION, planes, 1, dilation, stride_in_1x1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


class ResNetC4(nn.Module):
    """Stem and layer1..layer3: images [B, 3, h, w] -> [B, 1024, h / 16, w / 16]."""

    def __init__(self, num_layers: int = 101, stride_in_1x1: bool = False, frozen_bn: bool = True) -> None:
        super().__init__()
        if num_layers not in BLOCKS:
            raise ValueError(f"NETWORK.IMAGE_NUM_LAYERS {num_layers}: expected one of {sorted(BLOCKS)}")
        norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        n1, n2, n3, _ = BLOCKS[num_layers]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = build_layer(n1, 64, 64, 1, 1, stride_in_1x1, norm)
        self.layer2 = build_layer(n2, 256, 128, 2, 1, stride_in_1x1, norm)
        self.layer3 = build_layer(n3, 512, 256, 2, 1, stride_in_1x1, norm)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = conv_norm_relu(images, self.conv1, self.bn1)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.layer3(self.layer2(self.layer1(x)))

    def stage(self, number: int) -> list[nn.Module]:
        """Modules of stage 1 (the stem) to 4 (layer3), as NETWORK.IMAGE_FROZEN_BACKBONE_STAGES counts them."""
        return [self.conv1, self.bn1] if number == 1 else [getattr(self, f"layer{number - 1}")]


def init_convolutions(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def build_c5(dilated: bool, stride_in_1x1: bool, frozen_bn: bool) -> nn.Sequential:
    """The fourth stage as RoI head: [K, 1024, 14, 14] -> [K, 2048, 14, 14] dilated, else [K, 2048, 7, 7]."""
    norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
    stride, dilation = (1, 2) if dilated else (2, 1)
    c5 = build_layer(3, 1024, 512, stride, dilation, stride_in_1x1, norm)
    init_convolutions(c5)
    return c5


def freeze(modules: list[nn.Module]) -> None:
    for m in modules:
        for p in m.parameters():
            p.requires_grad_(False)
