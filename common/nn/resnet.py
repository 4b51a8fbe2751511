"""ResNet with the stride and dilation choices of the detector family (original 2.37).

Parameter names are torchvision's (conv1, bn1, layer1.0.conv1, ...), so its checkpoints load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Blocks of layer1..layer4. Depths 18 and 34 have basic blocks, whose 512 channels do not fit a 2048-d region feature.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics and never trains; keys as nn.BatchNorm2d (original 2.39)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        super().train(False)
        return self


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
        shortcut = x if self.downsample is None else self.downsample(x)  # (N, 4 * planes, h / stride, w / stride)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


def build_layer(
    num_blocks: int,
    in_channels: int,
    planes: int,
    stride: int,
    dilation: int,
    stride_in_1x1: bool,
    norm: type[nn.BatchNorm2d],
    block: type[Bottleneck] = Bottleneck,
) -> nn.Sequential:
    """One residual stage. Only its first block strides, every block dilates."""
    blocks = [block(in_channels, planes, stride, dilation, stride_in_1x1, norm)]
    blocks += [block(planes * EXPANSION, planes, 1, dilation, stride_in_1x1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


class ResNetC4(nn.Module):
    """Stem and layer1..layer3: images [B, 3, h, w] -> [B, 1024, h / 16, w / 16].

    block: class of the residual blocks. caffe_pool: the stem pools without padding and with the output size rounded up,
    as Caffe does. Raises ValueError for a depth other than 50, 101 and 152.
    """

    def __init__(
        self,
        num_layers: int = 101,
        stride_in_1x1: bool = False,
        frozen_bn: bool = True,
        block: type[Bottleneck] = Bottleneck,
        caffe_pool: bool = False,
    ) -> None:
        super().__init__()
        if num_layers not in BLOCKS:
            raise ValueError(f"NETWORK.IMAGE_NUM_LAYERS {num_layers}: expected one of {sorted(BLOCKS)}")
        norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        n1, n2, n3, _ = BLOCKS[num_layers]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.caffe_pool = caffe_pool
        self.layer1 = build_layer(n1, 64, 64, 1, 1, stride_in_1x1, norm, block)
        self.layer2 = build_layer(n2, 256, 128, 2, 1, stride_in_1x1, norm, block)
        self.layer3 = build_layer(n3, 512, 256, 2, 1, stride_in_1x1, norm, block)
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 64, h / 2, w / 2)
        x = self.stem_pool(x)  # (B, 64, h / 4, w / 4)
        x = self.layer1(x)  # (B, 256, h / 4, w / 4)
        x = self.layer2(x)  # (B, 512, h / 8, w / 8)
        return self.layer3(x)  # (B, 1024, h / 16, w / 16)

    def stem_pool(self, x: Tensor) -> Tensor:
        """The max pooling of the stem: [B, 64, h, w] -> [B, 64, h / 2, w / 2]."""
        return F.max_pool2d(x, 3, stride=2, padding=0 if self.caffe_pool else 1, ceil_mode=self.caffe_pool)

    def stage(self, number: int) -> list[nn.Module]:
        """Modules of stage 1 (the stem) to 4 (layer3), as NETWORK.IMAGE_FROZEN_BACKBONE_STAGES counts them."""
        return [self.conv1, self.bn1] if number == 1 else [getattr(self, f"layer{number - 1}")]


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-normal weights for every convolution inside."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def build_c5(
    dilated: bool, stride_in_1x1: bool, frozen_bn: bool, block: type[Bottleneck] = Bottleneck
) -> nn.Sequential:
    """The fourth stage as RoI head: [K, 1024, 14, 14] -> [K, 2048, 14, 14] dilated, else [K, 2048, 7, 7]."""
    norm = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
    stride, dilation = (1, 2) if dilated else (2, 1)
    c5 = build_layer(3, 1024, 512, stride, dilation, stride_in_1x1, norm, block)
    init_convolutions(c5)
    return c5


def freeze(modules: list[nn.Module]) -> None:
    """Switch off the gradients of all parameters."""
    for m in modules:
        for p in m.parameters():
            p.requires_grad_(False)
